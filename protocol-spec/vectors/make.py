#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
make.py OUTDIR: the binaries of the vectors.

For each good vector NAME with parts PART:  NAME.PART.stream, and NAME.json as it is here.
For each one to refuse: the same, NAME.json is {"about", "accept": false, "session", "parts", "part": which one is wrong, "needs", "reason"}.

NAME.hex is text: '#' comments, 'file PART' begins a part, else bytes in hex; XX*N is N times XX.

rejected.txt makes streams to refuse out of good ones:

  reject NAME            begins one
  base VECTOR PART       what it is made of
  needs NEED             what a reader has to look at to notice:
                           codec   single records and their order
                           memory  contents, features, counters: what a target keeps account of
                           guest   what the state says about the guest: whoever builds the guest checks it
                           index   the index: INDEX is an optional record, and who does not use it may skip it
  because TEXT           what a refusal has to say (a part of the verifier's message)
  EDITS, one a line, done in order on the records; REC is TYPE.N (the N-th of that type, from 0) or the record's number:
    body REC AT BYTES      overwrite           append REC BYTES      lengthen the body      resize REC LENGTH
    type REC NUMBER        delete REC          repeat REC            swap REC REC           insert REC NUMBER BYTES (before REC)
    number REC N           the sequence number (otherwise records are numbered again)
    header AT BYTES        the stream header (its crc is repaired)
  Afterwards crcs are repaired, and END counts again unless its body was edited. Then, with nothing repaired:
    raw AT BYTES           overwrite           cut N                 keep the first N bytes (N < 0: all but -N)
    tail BYTES             append              recrc AT              repair the crc of the record at AT after all
  BYTES: words of hex, XX*N, u16:N u32:N u64:N, text:LETTERS.
"""

import json
import os
import struct
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
HEADER = 40
END = 0x5F


def to_bytes(words):
    out = bytearray()
    for word in words:
        kind, _, value = word.partition(":")
        if kind in ("u16", "u32", "u64"):
            out += int(value, 0).to_bytes(int(kind[1:]) // 8, "little")
        elif kind == "text":
            out += value.encode()
        else:
            digits, _, times = word.partition("*")
            out += bytes.fromhex(digits) * int(times or 1)
    return bytes(out)


def read_hex(path):
    """{part: bytes}"""
    parts = {}
    with open(path, encoding="utf-8") as f:
        for line in f:
            words = line.partition("#")[0].split()
            if words and words[0] == "file":
                current = parts[words[1]] = bytearray()
            elif words:
                current += to_bytes(words)
    return {name: bytes(data) for name, data in parts.items()}


class Record:
    """One record that edits may change; number None: the next in turn."""

    def __init__(self, kind, body, number=None):
        self.type = kind
        self.body = bytearray(body)
        self.number = number


def split(data):
    """(stream header, records) of a good stream of one connection."""
    records, pos = [], HEADER
    while pos < len(data):
        kind, length = struct.unpack_from("<II", data, pos)
        records.append(Record(kind, data[pos + 16:pos + 16 + length]))
        pos += 16 + (length + 7 & ~7)
    return bytearray(data[:HEADER]), records


def join(header, records, count_again):
    header[36:40] = bytes(4)
    header[36:40] = struct.pack("<I", zlib.crc32(header))
    out = bytearray(header)
    for turn, rec in enumerate(records):
        if rec.type == END and count_again and len(rec.body) == 32:
            rec.body[:16] = struct.pack("<QQ", turn, len(out))
        number = turn if rec.number is None else rec.number
        head = struct.pack("<III", rec.type, len(rec.body), number)
        padded = bytes(rec.body) + bytes(-len(rec.body) % 8)
        out += head + struct.pack("<I", zlib.crc32(padded, zlib.crc32(head + bytes(4)))) + padded
    return out


class Edits:
    """The edit language of the module's text."""

    RAW = ("raw", "cut", "tail", "recrc")

    def __init__(self, data, types):
        self.original = data
        self.header = self.records = None
        self.types = types
        self.count_again = True
        self.data = None

    def at(self, name):
        kind, _, nth = name.partition(".")
        if not nth:
            return int(kind)
        return [i for i, r in enumerate(self.records) if r.type == self.types[kind]][int(nth)]

    def do(self, verb, words):
        if verb in self.RAW:
            if self.data is None:
                self.data = self.assemble()
            getattr(self, "do_" + verb)(*words)
            return
        if self.records is None:
            self.header, self.records = split(self.original)
        if verb == "header":
            self.overwrite(self.header, words[0], words[1:])
        else:
            getattr(self, "do_" + verb)(self.at(words[0]), *words[1:])

    def assemble(self):
        """A stream of several connections cannot be taken apart, but stays as it is when no record is edited."""
        if self.records is None:
            return bytearray(self.original)
        return join(self.header, self.records, self.count_again)

    def result(self):
        return bytes(self.assemble() if self.data is None else self.data)

    @staticmethod
    def overwrite(where, at, words):
        new = to_bytes(words)
        at = int(at, 0)
        if at + len(new) > len(where):
            raise ValueError("an edit reaches beyond what it edits")
        where[at:at + len(new)] = new

    def do_body(self, i, at, *words):
        if self.records[i].type == END:
            self.count_again = False
        self.overwrite(self.records[i].body, at, words)

    def do_append(self, i, *words):
        self.records[i].body += to_bytes(words)

    def do_resize(self, i, length):
        body = self.records[i].body
        self.records[i].body = body[:int(length, 0)] + bytes(max(0, int(length, 0) - len(body)))

    def do_type(self, i, number):
        self.records[i].type = int(number, 0)

    def do_delete(self, i):
        del self.records[i]

    def do_repeat(self, i):
        self.records.insert(i, Record(self.records[i].type, self.records[i].body))

    def do_swap(self, i, other):
        k = self.at(other)
        self.records[i], self.records[k] = self.records[k], self.records[i]

    def do_insert(self, i, number, *words):
        self.records.insert(i, Record(int(number, 0), to_bytes(words)))

    def do_number(self, i, number):
        self.records[i].number = int(number, 0)

    def do_raw(self, at, *words):
        self.overwrite(self.data, at, words)

    def do_cut(self, length):
        self.data = self.data[:int(length, 0)]

    def do_tail(self, *words):
        self.data += to_bytes(words)

    def do_recrc(self, at):
        at = int(at, 0)
        end = at + 16 + (struct.unpack_from("<I", self.data, at + 4)[0] + 7 & ~7)
        self.data[at + 12:at + 16] = bytes(4)
        self.data[at + 12:at + 16] = struct.pack("<I", zlib.crc32(self.data[at:end]))


def read_rejected(path):
    """The entries as dicts: name, base, part, needs, reason, about, edits."""
    entries, about = [], []
    with open(path, encoding="utf-8") as f:
        for line in f:
            text = line.strip()
            verb, _, rest = text.partition(" ")
            if text.startswith("#"):
                about.append(text[1:].strip())
            elif verb == "reject":
                entries.append({"name": rest, "edits": [], "about": " ".join(about)})
                about = []
            elif verb == "base":
                entries[-1]["base"], entries[-1]["part"] = rest.split()
            elif verb in ("needs", "because"):
                entries[-1][{"needs": "needs", "because": "reason"}[verb]] = rest
            elif text:
                entries[-1]["edits"].append((verb, rest.split()))
            else:
                about = []
    return entries


def type_numbers(good):
    """{name: number} out of the good vectors and their decoding."""
    numbers = {}
    for parts, expected in good.values():
        for part, records in expected["files"].items():
            for rec in records:
                numbers[rec["type"]] = struct.unpack_from("<I", parts[part], rec["offset"])[0]
    return numbers


def read_good():
    """{name: ({part: bytes}, expected)}"""
    good = {}
    for name in sorted(os.listdir(HERE)):
        if name.endswith(".hex"):
            with open(os.path.join(HERE, name[:-4] + ".json"), encoding="utf-8") as f:
                good[name[:-4]] = (read_hex(os.path.join(HERE, name)), json.load(f))
    return good


def make_rejected(good):
    """[(entry, {part: bytes})]"""
    types = type_numbers(good)
    out = []
    for entry in read_rejected(os.path.join(HERE, "rejected.txt")):
        edits = Edits(good[entry["base"]][0][entry["part"]], types)
        try:
            for verb, words in entry["edits"]:
                edits.do(verb, words)
        except (ValueError, IndexError, KeyError, AttributeError) as why:
            raise SystemExit("rejected.txt: %s: %s %s: %r" % (entry["name"], verb, " ".join(words), why))
        parts, expected = good[entry["base"]]
        if edits.result() == parts[entry["part"]]:
            raise SystemExit("rejected.txt: %s: nothing was changed" % entry["name"])
        entry["session"] = expected["session"]
        entry["parts"] = list(parts)
        out.append((entry, {name: data if name != entry["part"] else edits.result() for name, data in parts.items()}))
    return out


def write_vector(folder, name, parts, about):
    for part, data in parts.items():
        with open(os.path.join(folder, "%s.%s.stream" % (name, part)), "wb") as f:
            f.write(data)
    with open(os.path.join(folder, name + ".json"), "w", encoding="utf-8") as f:
        json.dump(about, f, indent=1)


def main():
    if len(sys.argv) != 2:
        print(__doc__.split("\n")[1], file=sys.stderr)
        return 2
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    good = read_good()
    for name, (parts, expected) in good.items():
        write_vector(folder, name, parts, dict(expected, parts=list(parts)))
    for entry, parts in make_rejected(good):
        keys = ("about", "session", "base", "part", "parts", "needs", "reason")
        write_vector(folder, entry["name"], parts, dict({key: entry[key] for key in keys}, accept=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
