#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Tests of verify_stream.py: the vectors decode as written, what must be refused is refused for its reason, damage never passes.

test_verify.py [--thorough] [NAME-PART]: only the tests whose name contains it. One line a test; exit 0 when all passed.
--thorough flips every byte of every vector; else of image-sim and of the short ones, and of long ones every 61st.
"""

import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import zlib

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "vectors"))

import make  # noqa: E402
from streamcheck import Refused, lz4block, zstdframe  # noqa: E402
from streamcheck.session import Parents, check_file, check_session  # noqa: E402

VERIFY = os.path.join(HERE, "verify_stream.py")
THOROUGH = "--thorough" in sys.argv[1:]
# Streams small enough to flip each of their bytes, image-sim among them; of the others every STRIDE-th.
WHOLE = 1 << 30 if THOROUGH else 3000
IMAGE_SIM = 8624
STRIDE = 61


def check(condition, why):
    if not condition:
        raise AssertionError(why)


def refusal(action, *args):
    """The text of the refusal; AssertionError when there is none."""
    try:
        action(*args)
    except Refused as why:
        return str(why)
    raise AssertionError("was accepted")


class Vectors:
    """The binaries in a folder of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.good = make.read_good()
        self.bad = make.make_rejected(self.good)
        for name, (parts, _) in self.good.items():
            self.put(name, parts)
        for entry, parts in self.bad:
            self.put(entry["name"], parts)

    def path(self, name, part):
        return os.path.join(self.folder, "%s.%s.stream" % (name, part))

    def put(self, name, parts):
        for part, data in parts.items():
            with open(self.path(name, part), "wb") as f:
                f.write(data)

    def run(self, name, parts, session, watch=None):
        """Verify a vector; the list of Sessions."""
        paths = {part: self.path(name, part) for part in parts}
        if not session:
            parents = Parents()
            return [check_file(path, parents, watch and (lambda r, f, p=part: watch(p, r, f))) for part, path in paths.items()]
        sources = [path for part, path in paths.items() if part.startswith("source")]
        targets = [path for part, path in paths.items() if part.startswith("target")]
        return [check_session(sources, targets, watch=watch and (lambda r, f: watch(None, r, f)))]


def plain(record, fields):
    """A record as the .json files have it."""
    return {"type": record.name, "sequence": record.sequence, "offset": record.offset, "length": len(record.body),
            "fields": json.loads(json.dumps(fields))}


def test_good(vectors, name):
    parts, expected = vectors.good[name]
    seen = []
    sessions = vectors.run(name, parts, expected["session"], lambda part, rec, fields: seen.append(plain(rec, fields)))
    wanted = [rec for records in expected["files"].values() for rec in records]
    check(len(seen) == len(wanted), "%d records instead of %d" % (len(seen), len(wanted)))

    def order(rec):
        return json.dumps(rec, sort_keys=True)

    for have, want in zip(sorted(seen, key=order), sorted(wanted, key=order)):
        check(have == want, "decoded %s\n  instead of %s" % (have, want))
    memory = {str(pfn): "%08x" % zlib.crc32(page) for pfn, page in sorted(sessions[-1].memory.page.items())}
    check(memory == expected["memory"], "the memory is %s instead of %s" % (memory, expected["memory"]))


def test_every_type(vectors):
    numbers = {rec["type"] for _, expected in vectors.good.values() for records in expected["files"].values() for rec in records}
    from streamcheck.framing import TYPES
    # No kind of device exists, so no stream with a DEVICE_STATE is good: device-unknown has one.
    missing = set(TYPES.values()) - numbers - {"DEVICE_STATE"}
    check(not missing, "no good vector has %s" % " ".join(sorted(missing)))


def test_bad(vectors, entry, parts):
    why = refusal(vectors.run, entry["name"], parts, entry["session"])
    check(entry["reason"] in why, "refused with '%s' instead of '%s'" % (why, entry["reason"]))
    check(why.startswith(vectors.folder), "the refusal does not begin with the file: %s" % why)


def damage(vectors, name, change, which=""):
    """Each part of the vector whose name begins with `which`, changed in each way of change(bytes), is refused."""
    parts, expected = vectors.good[name]
    for part, data in parts.items():
        if not part.startswith(which):
            continue
        for number, damaged in change(data):
            vectors.put("damaged", dict(parts, **{part: damaged}))
            try:
                refusal(vectors.run, "damaged", parts, expected["session"])
            except AssertionError:
                raise AssertionError("%s: %s %d was accepted" % (part, change.__name__, number)) from None


def flipped_byte(data):
    step = 1 if len(data) <= WHOLE or len(data) == IMAGE_SIM else STRIDE
    for at in range(0, len(data), step):
        out = bytearray(data)
        out[at] ^= 1 << at % 8
        yield at, bytes(out)


def length(data):
    for size in range(0, len(data), 8 if len(data) <= WHOLE else 8 * STRIDE + 1):
        yield size, data[:size]


def test_flips(vectors, name):
    damage(vectors, name, flipped_byte)


def test_cuts(vectors, name):
    """A target may fall silent at any record, so in a session only what the source says has an end."""
    damage(vectors, name, length, "source" if vectors.good[name][1]["session"] else "")


def test_incomplete(vectors):
    """A session cut off anywhere between records is refused, unless the caller says that this may be."""
    parts, expected = vectors.good["session"]
    cut = [rec["offset"] for rec in expected["files"]["source-0"]][9]
    vectors.put("cut", {"source-0": parts["source-0"][:cut], "source-1": parts["source-1"]})
    paths = [vectors.path("cut", part) for part in ("source-0", "source-1")]
    check("ends after record 8" in refusal(check_session, paths, []), "the reason is missing")
    check_session(paths, [], incomplete=True)


def compress(kind, data, level):
    out = ctypes.create_string_buffer(2 * len(data) + 1024)
    if kind == "lz4":
        size = ctypes.CDLL("liblz4.so.1").LZ4_compress_fast(data, out, len(data), len(out), level)
    else:
        lib = ctypes.CDLL("libzstd.so.1")
        lib.ZSTD_compress.restype = ctypes.c_size_t
        size = lib.ZSTD_compress(out, ctypes.c_size_t(len(out)), data, ctypes.c_size_t(len(data)), level)
    check(0 < size <= len(out), "the library does not compress")
    return out.raw[:size]


def contents(chance, size):
    kind = chance.randrange(5)
    if kind == 0:
        return chance.randbytes(size)
    if kind == 1:
        return bytes(chance.choices(b"abcdefgh", [30, 20, 10, 5, 3, 2, 1, 1], k=size))
    if kind == 2:
        return bytes(size)
    if kind == 3:
        with open("/proc/self/exe", "rb") as f:
            program = f.read()
        start = chance.randrange(len(program))
        return (program[start:] + program * (size // len(program) + 1))[:size]
    unit = chance.randbytes(chance.randrange(1, 70))
    return (unit * (size // len(unit) + 1))[:size]


def test_decoder(kind, decompress, levels):
    """What the original compresses, at all levels, comes back; a wrong size and cut-off data are refused."""
    chance = random.Random(kind)
    for turn in range(60):
        size = 4096 * chance.choice((1, 1, 2, 7, 16, 64))
        data = contents(chance, size)
        level = levels[turn % len(levels)]
        packed = compress(kind, data, level)
        check(decompress(packed, size) == data, "turn %d: differs" % turn)
        refusal(decompress, packed, size - 1)
        refusal(decompress, packed, size + 1)
        refusal(decompress, packed[:chance.randrange(len(packed))], size)
        refusal(decompress, packed + b"\0", size)


def test_command(vectors):
    def run(*arguments):
        return subprocess.run([sys.executable, VERIFY, *arguments], capture_output=True, text=True, check=False)

    good, bad = vectors.path("image-sim", "image"), vectors.path("record-crc", "image")
    out = run(good)
    check(out.returncode == 0 and "digest:  0x84b0e01569bd7d50 over 3 pages" in out.stdout, "the summary is %s" % out.stdout)
    out = run("--quiet", good, bad)
    check(out.returncode == 1 and not out.stdout, "--quiet: exit %d, said %s" % (out.returncode, out.stdout))
    check(out.stderr == bad + ": record 5 PAGES at offset 0xc8: the crc is wrong\n", "the refusal is %s" % out.stderr)
    out = run("--json", *[vectors.path("chain", part) for part in vectors.good["chain"][0]])
    summaries = json.loads(out.stdout)
    check(out.returncode == 0 and [s["generation"] for s in summaries] == [0, 1, 2], "--json is %s" % out.stdout)
    check(run().returncode == 2 and run("--nonsense", good).returncode == 2, "wrong usage is not 2")
    check(run(good + ".not-there").returncode == 1, "a missing file is not 1")
    folder = os.path.join(vectors.folder, "session")
    os.makedirs(folder, exist_ok=True)
    for part, data in vectors.good["session"][0].items():
        with open(os.path.join(folder, part + ".bin"), "wb") as f:
            f.write(data)
    out = run("--dir", folder)
    check(out.returncode == 0 and "2 channel(s)" in out.stdout, "--dir: %s%s" % (out.stdout, out.stderr))
    sources = [vectors.path("session", "source-%d" % i) for i in (1, 0)]
    check(run("--channels", *sources).returncode == 0, "--channels refuses")
    out = run("--channels", sources[0])
    check(out.returncode == 1 and "channel 0 is missing" in out.stderr, "a missing channel 0: %s" % out.stderr)


def all_tests(vectors):
    for name in vectors.good:
        yield "verify.good." + name, lambda n=name: test_good(vectors, n)
    yield "verify.every-type", lambda: test_every_type(vectors)
    for entry, parts in vectors.bad:
        yield "verify.refuse." + entry["name"], lambda e=entry, p=parts: test_bad(vectors, e, p)
    for name in vectors.good:
        yield "verify.flip." + name, lambda n=name: test_flips(vectors, n)
        yield "verify.cut." + name, lambda n=name: test_cuts(vectors, n)
    yield "verify.incomplete", lambda: test_incomplete(vectors)
    yield "verify.lz4", lambda: test_decoder("lz4", lz4block.decompress, (1, 1, 9, 50))
    yield "verify.zstd", lambda: test_decoder("zstd", zstdframe.decompress, (1, 3, -5, 6, 19))
    yield "verify.command", lambda: test_command(vectors)


def main():
    names = [a for a in sys.argv[1:] if a != "--thorough"]
    only = names[0] if names else ""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="pagurus-vectors-") as folder:
        for name, test in all_tests(Vectors(folder)):
            if only not in name:
                continue
            try:
                test()
                print("PASS " + name, flush=True)
            except Exception as why:
                failed += 1
                print("FAIL %s: %s: %s" % (name, type(why).__name__, why), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
