#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Write the good vectors (NAME.hex, NAME.json) again: author.py [FOLDER]. Only needed when a vector is added or changed.

The expected decoding in NAME.json is made here from what each vector was built of, not by a reader. LZ4 and Zstandard data come from the
libraries (liblz4.so.1, libzstd.so.1), so the decoders are held against the originals; the text files need neither.
"""

import ctypes
import json
import os
import struct
import sys
import uuid
import zlib

PAGE = 4096
OPTIONAL = 0x80000000
TYPES = {
    "HELLO": 0x01, "IDENTITY": 0x02, "CPU_POLICY": 0x03, "CONFIG": 0x04, "PARENT": 0x05, "OPEN": 0x06,
    "PAGES": 0x10, "ROUND_END": 0x11, "STOP": 0x12, "VERIFY": 0x13, "DIGEST": 0x14,
    "PV_INFO": 0x20, "PV_P2M_FRAMES": 0x21, "PV_SHARED_INFO": 0x22, "VCPU_CONTEXT": 0x23, "VCPU_EXTENDED": 0x24,
    "VCPU_XSAVE": 0x25, "VCPU_MSRS": 0x26, "TSC_INFO": 0x27, "SIM_STATE": 0x2F, "DISK": 0x30, "DISK_ATTACH": 0x31, "DISK_DATA": 0x32,
    "HELLO_REPLY": 0x40, "PRECHECK": 0x41, "ACK": 0x42, "READY": 0x43, "COMMIT": 0x44, "RUNNING": 0x45, "ABORT": 0x46,
    "QUERY": 0x47, "STATUS": 0x48, "RESUME": 0x49, "RESUME_REPLY": 0x4A, "CHECK": 0x4B, "CHECK_REPLY": 0x4C,
    "KEEPALIVE": OPTIONAL | 0x4D, "CONNECTED": OPTIONAL | 0x4E, "INDEX": OPTIONAL | 0x50, "NOTE": OPTIONAL | 0x51, "END": 0x5F,
    "type 0x80001234": OPTIONAL | 0x1234,
}
KINDS = {"MIGRATE": 1, "IMAGE": 2, "CHECKPOINT": 3}
FEATURES = ["LZ4", "ZSTD", "DELTA", "RESUME", "VERIFY"]
ALL_FEATURES = FEATURES + ["DISKS"]
UUID = uuid.UUID("7a3e1d52-90c4-4c5b-8d11-5b6f0e2a9c01")
WALLCLOCK = 1_700_000_000_123_456_789


def pad(data):
    return data + bytes(-len(data) % 8)


def session_id(text):
    return text.encode().ljust(16, b".")


def mix64(x):
    mask = (1 << 64) - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def digest_of(memory):
    return sum(mix64(pfn << 32 | zlib.crc32(page)) for pfn, page in memory.items()) & (1 << 64) - 1, len(memory)


def by_library(name, data):
    out = ctypes.create_string_buffer(2 * len(data) + 1024)
    if name == "lz4":
        n = ctypes.CDLL("liblz4.so.1").LZ4_compress_default(data, out, len(data), len(out))
    else:
        lib = ctypes.CDLL("libzstd.so.1")
        lib.ZSTD_compress.restype = ctypes.c_size_t
        n = lib.ZSTD_compress(out, ctypes.c_size_t(len(out)), data, ctypes.c_size_t(len(data)), 3)
    assert 0 < n < len(data)
    return out.raw[:n]


def text_page(seed):
    """A page of words, compressible as text is."""
    words = b"crab shell tide reef sand wave moon rock kelp pool claw drift".split()
    out = bytearray()
    state = seed
    while len(out) < PAGE:
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        out += words[state >> 16 & 7 if state & 0x800 else (state >> 16) % len(words)] + b" ,.\n"[state >> 9 & 3:][:1]
    return bytes(out[:PAGE])


def changed(page, at, new):
    return page[:at] + new + page[at + len(new):]


class Stream:
    """One direction of one channel, written record by record; remembers its expected decoding."""

    def __init__(self, kind, session, channel=0, channels=1):
        self.kind, self.session, self.channel, self.channels = kind, session, channel, channels
        self.sequence = 0
        self.counted = 40
        self.out = bytearray()
        self.parts = []
        self.expected = []
        self.sent = []
        self.round = self.round_pages = self.round_bytes = 0
        self.index = []
        self.header()

    def header(self):
        raw = struct.pack("<8sII16sHHI", b"PAGURUS\0", 1, KINDS[self.kind], session_id(self.session), self.channel, self.channels, 0)
        self.put("stream header: %s, channel %d of %d" % (self.kind, self.channel, self.channels),
                 raw[:36] + struct.pack("<I", zlib.crc32(raw)))

    def put(self, comment, data):
        self.parts.append((comment, len(self.out), data))
        self.out += data

    def frame(self, name, body, sequence):
        head = struct.pack("<III", TYPES[name], len(body), sequence)
        padded = pad(body)
        return head + struct.pack("<I", zlib.crc32(padded, zlib.crc32(head + bytes(4)))) + padded

    def record(self, name, body=b"", /, **fields):
        data = self.frame(name, body, self.sequence)
        self.expect(name, self.sequence, fields, len(body))
        self.sent.append(data)
        self.put("record %d %s" % (self.sequence, name), data)
        self.sequence += 1
        self.counted += len(data)
        return data

    def expect(self, name, sequence, fields, length):
        self.expected.append({"type": name, "sequence": sequence, "offset": len(self.out), "length": length, "fields": fields})

    # What a source says.

    def opening(self, guest="SIM", nr_pfns=4, populated=3, vcpus=1, live=0, features=FEATURES, policy=False, parent=None, disks=()):
        bits = sum(1 << ALL_FEATURES.index(f) for f in features)
        self.record("HELLO", struct.pack("<IIQQII", {"PV64": 1, "SIM": 2}[guest], bits, nr_pfns, populated, vcpus, live), guest=guest,
                    features=features, nr_pfns=nr_pfns, populated=populated, vcpus=vcpus, live=live)
        self.record("IDENTITY", UUID.bytes + "krebs-é".encode(), uuid=str(UUID), name="krebs-é")
        if policy:
            leaves = [(0, 0xFFFFFFFF, 0xD, 0x756E6547, 0x6C65746E, 0x49656E69), (7, 0, 0, 0x281, 0, 0)]
            names = ("leaf", "subleaf", "eax", "ebx", "ecx", "edx")
            body = struct.pack("<II", 2, 1) + b"".join(struct.pack("<IIIIII", *v) for v in leaves) + struct.pack("<IIQ", 0xCE, 0, 1 << 31)
            self.record("CPU_POLICY", body, leaves=[dict(zip(names, v)) for v in leaves], msrs=[{"index": 0xCE, "value": 1 << 31}])
        form, text = ("SIM", "seed=1") if guest == "SIM" else ("LIBXL_JSON", '{"c_info": {"type": "pv", "name": "krebs"}}')
        self.record("CONFIG", struct.pack("<II", 2 if guest == "SIM" else 1, 0) + text.encode(), format=form, text=text)
        if parent:
            self.record("PARENT", struct.pack("<16sQQ", session_id(parent[0]), parent[1], parent[2]), session=session_id(parent[0]).hex(),
                        digest=parent[1], generation=parent[2])
        for disk in disks:
            self.disk(*disk)
        self.record("OPEN")

    def disk(self, size, used, form, vdev, path):
        self.record("DISK", struct.pack("<QQII", size, used, {"RAW": 1, "QCOW2": 2}[form], len(vdev)) + vdev.encode() + path.encode(),
                    size=size, used=used, format=form, vdev=vdev, path=path)

    def pages(self, memory, pages, groups=()):
        """pages: (pfn, transform, type, page); groups: (codec, number of pages). Applies to memory."""
        code = {"data": 0, "zero": 1, "delta": 2, "absent": 3}
        data = []
        for pfn, transform, _, page in pages:
            if transform == "data":
                data.append(page)
            elif transform == "delta":
                data.append(bytes(a ^ b for a, b in zip(memory[pfn], page)))
            if transform == "absent":
                memory.pop(pfn, None)
            else:
                memory[pfn] = page if transform != "zero" else bytes(PAGE)
        table, blobs, listed = b"", b"", []
        for codec, number in groups:
            raw = b"".join(data[:number])
            data = data[number:]
            blob = raw if codec == "raw" else by_library(codec, raw)
            table += struct.pack("<IIII", ["raw", "lz4", "zstd"].index(codec), number, len(blob), 0)
            blobs += pad(blob)
            listed.append([codec, number, len(blob)])
        assert not data
        body = struct.pack("<IIII", len(pages), len(groups), self.round, 0)
        body += b"".join(struct.pack("<Q", pfn | code[transform] << 48 | kind << 56) for pfn, transform, kind, _ in pages)
        pfns = [p[0] for p in pages]
        self.index.append((len(self.out), min(pfns), max(pfns), len(pages), 0))
        sent = self.record("PAGES", body + table + blobs, round=self.round, pages=[[p, t, k] for p, t, k, _ in pages], groups=listed)
        self.round_pages += len(pages)
        self.round_bytes += len(sent)

    def round_end(self):
        self.record("ROUND_END", struct.pack("<IIQQ", self.round, 0, self.round_pages, self.round_bytes), round=self.round,
                    pages=self.round_pages, bytes=self.round_bytes)
        self.round += 1
        self.round_pages = self.round_bytes = 0

    def stop(self):
        self.record("STOP", struct.pack("<Q", WALLCLOCK), wallclock_ns=WALLCLOCK)

    def sim_state(self):
        self.record("SIM_STATE", b"generation 5", bytes=12)

    def digest(self, memory):
        value, pages = digest_of(memory)
        self.record("DIGEST", struct.pack("<QQ", value, pages), digest=value, pages=pages)

    def end(self, with_index=False):
        at = count = 0
        if with_index:
            at, count = len(self.out), 1
            self.record("INDEX", b"".join(struct.pack("<QQQII", *e) for e in self.index), entries=[list(e[:4]) for e in self.index])
        values = (self.sequence, self.counted, at, count)
        self.record("END", struct.pack("<QQQQ", *values), **dict(zip(("records", "bytes", "index_offset", "index_records"), values)))

    # A connection made again.

    def reconnect(self, first):
        """The connection is lost; the target had got the records before `first`."""
        self.header()
        body = struct.pack("<II", self.sequence, 0)
        self.expect("RESUME", 0, {"next_sequence": self.sequence}, 8)
        self.put("record 0 RESUME", self.frame("RESUME", body, 0))
        for number in range(first, self.sequence):
            self.put("record %d again" % number, self.sent[number])

    # What a target says.

    def reply(self, features=FEATURES, channels=1, window=8):
        bits = sum(1 << ALL_FEATURES.index(f) for f in features)
        self.record("HELLO_REPLY", struct.pack("<IIII", 1, bits, channels, window), features=features, channels=channels, window=window)

    def precheck(self, refusals=()):
        body = struct.pack("<II", len(refusals), 0) + "".join(line + "\n" for line in refusals).encode()
        self.record("PRECHECK", body, refusals=list(refusals))

    def ack(self, sequence):
        self.record("ACK", struct.pack("<II", sequence, 0), sequence=sequence)

    def ready(self, memory):
        value, pages = digest_of(memory)
        self.record("READY", struct.pack("<QQ", value, pages), digest=value, pages=pages)

    def connected(self, *values):
        self.record("CONNECTED", struct.pack("<QQII", *values), **dict(zip(("devices_ns", "announced_ns", "devices", "waiting"), values)))

    def resume_reply(self, sequence):
        self.sequence = 0
        self.header()
        self.record("RESUME_REPLY", struct.pack("<II", sequence, 0), next_sequence=sequence)

    def abort(self, reason, name, text):
        self.record("ABORT", struct.pack("<II", reason, 0) + text.encode(), reason=name, text=text)


# ---- the vectors ----

def image_sim():
    s, m = Stream("IMAGE", "image-sim"), {}
    s.opening()
    s.stop()
    s.pages(m, [(0, "data", 0, text_page(1)), (1, "zero", 0, None), (2, "absent", 0, None), (3, "data", 0, b"\1" * PAGE)], [("raw", 2)])
    s.round_end()
    s.sim_state()
    s.digest(m)
    s.end()
    return "The smallest whole image: a SIM guest, stop and copy, raw data, a zero page, an absent one.", {"image": s}, m


def image_indexed():
    s, m = Stream("IMAGE", "image-indexed"), {}
    s.opening(nr_pfns=600, populated=5)
    s.stop()
    s.pages(m, [(9, "data", 0, text_page(9)), (3, "zero", 0, None)], [("lz4", 1)])
    s.pages(m, [(599, "data", 8 | 4, text_page(3)), (4, "zero", 1, None), (7, "data", 0, text_page(8))], [("raw", 1), ("lz4", 1)])
    s.round_end()
    s.sim_state()
    s.digest(m)
    s.end(with_index=True)
    return "An image with an index, page tables among its pages, one of them pinned.", {"image": s}, m


def image_rounds():
    s, m = Stream("IMAGE", "image-rounds"), {}
    s.opening(nr_pfns=40, populated=30, live=1, policy=True)
    s.record("NOTE", "made by hand".encode(), text="made by hand")
    first = [(p, "data", 0, text_page(p)) for p in range(16)]
    s.pages(m, first[:8], [("lz4", 5), ("raw", 1), ("zstd", 2)])
    s.pages(m, first[8:], [("zstd", 8)])
    s.pages(m, [(p, "zero", 0, None) for p in range(16, 20)] + [(20, "absent", 0, None)])
    s.round_end()
    s.pages(m, [(3, "delta", 0, changed(m[3], 100, b"changed")), (17, "delta", 0, changed(m[17], 8, b"\7\7")), (5, "delta", 0, m[5])],
            [("lz4", 3)])
    s.pages(m, [(4, "absent", 0, None), (20, "data", 0, text_page(77)), (6, "zero", 0, None)], [("lz4", 1)])
    s.record("KEEPALIVE")
    s.round_end()
    s.round_end()
    s.stop()
    s.pages(m, [(3, "delta", 0, changed(m[3], 4000, b"again")), (4, "data", 0, text_page(4)), (6, "delta", 0, text_page(6))],
            [("zstd", 2), ("lz4", 1)])
    s.round_end()
    s.record("VERIFY")
    s.pages(m, [(p, "zero" if not any(m[p]) else "data", 0, m[p]) for p in sorted(m)],
            [("lz4", sum(any(page) for page in m.values()))])
    s.round_end()
    s.sim_state()
    s.digest(m)
    s.end()
    return ("Rounds of a running guest with every codec and transform: DELTA of DATA, of ZERO, of DELTA, an all-zero DELTA; ABSENT and "
            "back; an empty round; VERIFY."), {"image": s}, m


def image_optional():
    s, m = Stream("IMAGE", "image-optional"), {}
    s.record("NOTE", "before all".encode(), text="before all")
    s.opening()
    s.record("type 0x80001234", b"skip me")
    s.stop()
    s.pages(m, [(3, "zero", 0, None)])
    s.record("KEEPALIVE")
    s.round_end()
    s.sim_state()
    s.digest(m)
    s.record("type 0x80001234")
    s.end()
    return "Records that a reader may skip, known and unknown; END counts them.", {"image": s}, m


def table(entries):
    return b"".join(struct.pack("<Q", entries.get(i, 0)) for i in range(512))


def vcpu_blob(number, cr3, user, rdx, gdt):
    blob = bytearray(5168)
    struct.pack_into("<Q", blob, 512, 0x20)
    struct.pack_into("<Q", blob, 616, rdx)
    for i, pfn in enumerate(gdt):
        struct.pack_into("<Q", blob, 4832 + 8 * i, pfn)
    struct.pack_into("<Q", blob, 4960, 512 * len(gdt) - 500 if gdt else 0)
    struct.pack_into("<Q", blob, 5008, cr3 << 12)
    struct.pack_into("<Q", blob, 4992, user << 12)
    return struct.pack("<II", number, 0) + bytes(blob)


def image_pv():
    s, m = Stream("IMAGE", "image-pv"), {}
    s.opening("PV64", nr_pfns=1000, populated=9, vcpus=4)
    s.stop()
    present = 0x67
    tables = [
        (10, "data", 8 | 4, table({0: 11 << 12 | present, 300: 10 << 12 | present})),
        (11, "data", 3, table({0: 12 << 12 | present})),
        (12, "data", 2, table({0: 13 << 12 | present, 511: 0xABCDE000})),
        (13, "data", 1, table({0: 1 << 12 | present | 1 << 63, 1: 2 << 12 | present, 2: 10 << 12 | 0x61, 9: 0x123456})),
        (14, "zero", 8 | 4, None),
    ]
    s.pages(m, [(1, "data", 0, text_page(1)), (2, "zero", 0, None), (3, "data", 0, text_page(3)), (4, "zero", 0, None)] + tables,
            [("lz4", 2), ("lz4", 4)])
    s.round_end()
    s.record("PV_INFO", struct.pack("<IIQQ", 8, 4, 1000, 1), nr_pfns=1000, start_info_pfn=1)
    s.record("PV_P2M_FRAMES", struct.pack("<IIQ", 0, 1, 3), first=0, pfns=[3])
    s.record("PV_P2M_FRAMES", struct.pack("<IIQ", 1, 1, 4), first=1, pfns=[4])
    s.record("TSC_INFO", struct.pack("<IIQII", 2, 2_400_000, 123_456_789, 1, 0), mode=2, khz=2_400_000, nsec=123_456_789, incarnation=1)
    s.record("VCPU_CONTEXT", vcpu_blob(0, 10, 14, 1, [2, 4]), vcpu=0, rdx=1, gdt_ents=524, gdt_frames=[2, 4], cr3_pfn=10, user_cr3_pfn=14)
    s.record("VCPU_EXTENDED", struct.pack("<IIII56x", 0, 0, 0, 64), vcpu=0, size=64)
    s.record("VCPU_XSAVE", struct.pack("<IIQQQQ", 0, 0, 7, 16 + 832, 7, 7) + bytes(832), vcpu=0, xfeature_mask=7, size=848, xcr0=7,
             xcr0_accum=7)
    s.record("VCPU_MSRS", struct.pack("<IIIIQ", 0, 0, 0x140, 0, 1), vcpu=0, msrs=[{"index": 0x140, "value": 1}])
    s.record("VCPU_CONTEXT", vcpu_blob(2, 10, 0, 99, []), vcpu=2, rdx=99, gdt_ents=0, gdt_frames=[], cr3_pfn=10, user_cr3_pfn=0)
    s.record("VCPU_XSAVE", struct.pack("<IIQQQQ", 2, 0, 7, 16, 0, 0), vcpu=2, xfeature_mask=7, size=16, xcr0=0, xcr0_accum=0)
    shared = bytearray(PAGE)
    struct.pack_into("<Q", shared, 3112, 10 << 12)
    s.record("PV_SHARED_INFO", bytes(shared), p2m_cr3_pfn=10)
    s.digest(m)
    s.end()
    return "A PV64 guest: four levels of tables (one maps itself), P2M frames, vCPUs 0 and 2 of 4 with all their records.", {"image": s}, m


def chain():
    one, m = Stream("IMAGE", "chain-1"), {}
    one.opening()
    one.stop()
    one.pages(m, [(0, "data", 0, text_page(1)), (1, "zero", 0, None), (2, "data", 0, text_page(2))], [("lz4", 2)])
    one.round_end()
    one.sim_state()
    one.digest(m)
    one.end()
    two = Stream("CHECKPOINT", "chain-2")
    two.opening(live=1, parent=("chain-1", digest_of(m)[0], 1))
    two.pages(m, [(1, "data", 0, text_page(9)), (2, "absent", 0, None)], [("lz4", 1)])
    two.round_end()
    two.stop()
    two.pages(m, [(1, "delta", 0, changed(m[1], 0, b"child")), (3, "zero", 0, None)], [("lz4", 1)])
    two.round_end()
    two.sim_state()
    two.digest(m)
    two.end(with_index=True)
    three = Stream("CHECKPOINT", "chain-3")
    three.opening(parent=("chain-2", digest_of(m)[0], 2))
    three.stop()
    three.round_end()
    three.sim_state()
    three.digest(m)
    three.end()
    return "An image, a checkpoint of it, and a checkpoint of that in which nothing changed.", {"1-image": one, "2-child": two, "3-child": three}, m


def memory_of_two(c0, c1, m, other):
    """One live round, STOP and the last round on two channels."""
    c0.pages(m, [(0, "data", 0, text_page(1)), (1, "zero", 0, None)], [("lz4", 1)])
    c0.round_end()
    c1.pages(other, [(256, "data", 0, text_page(2)), (299, "data", 0, text_page(3))], [("zstd", 2)])
    c1.round_end()
    c0.stop()
    c0.pages(m, [(0, "delta", 0, changed(m[0], 7, b"tide"))], [("lz4", 1)])
    c0.round_end()
    c1.round_end()


def session():
    c0, c1 = Stream("MIGRATE", "session", 0, 4), Stream("MIGRATE", "session", 1, 4)
    t0, t1 = Stream("MIGRATE", "session", 0, 4), Stream("MIGRATE", "session", 1, 4)
    m, other = {}, {}
    c0.opening(nr_pfns=300, live=1)
    t0.reply(["LZ4", "ZSTD", "DELTA", "VERIFY"], 2)
    t0.precheck()
    memory_of_two(c0, c1, m, other)
    for c, its in ((c0, m), (c1, other)):
        c.record("VERIFY")
        c.pages(its, [(p, "data" if any(its[p]) else "zero", 0, its[p]) for p in its], [("lz4", sum(any(p) for p in its.values()))])
        c.round_end()
    m.update(other)
    t0.ack(4)
    t1.ack(3)
    c0.sim_state()
    c0.digest(m)
    c0.end()
    c1.end()
    t1.ack(6)
    t1.record("KEEPALIVE")
    t0.ack(c0.sequence)
    t0.ready(m)
    c0.record("COMMIT")
    t0.ack(c0.sequence)
    t0.record("RUNNING")
    t0.connected(120_000_000, 140_000_000, 2, 0)
    return ("A whole migration, four channels offered and two accepted, with VERIFY, in both directions.",
            {"source-0": c0, "source-1": c1, "target-0": t0, "target-1": t1}, m)


def disks():
    c0, t0, m = Stream("MIGRATE", "disks"), Stream("MIGRATE", "disks"), {}
    c0.opening(features=ALL_FEATURES, disks=[(1 << 30, 5 << 20, "QCOW2", "xvda", "/srv/guests/krebs.qcow2"), (512, 0, "RAW", "xvdb", "/é")])
    t0.reply(ALL_FEATURES)
    t0.precheck()
    c0.stop()
    c0.pages(m, [(0, "data", 0, text_page(1)), (1, "zero", 0, None), (3, "zero", 0, None)], [("raw", 1)])
    c0.round_end()
    c0.sim_state()
    c0.digest(m)
    c0.end()
    t0.ack(c0.sequence)
    t0.ready(m)
    c0.record("COMMIT")
    t0.record("RUNNING")
    return "A guest that brings two disks.", {"source-0": c0, "target-0": t0}, m


def disk():
    """Its bytes are those of NBD, of which nothing is said here."""
    c0, t0 = Stream("MIGRATE", "disk"), Stream("MIGRATE", "disk")
    c0.record("DISK_ATTACH", struct.pack("<II", 1, 0), disk=1)
    t0.record("DISK_DATA", b"NBDMAGIC", bytes=8)
    c0.record("KEEPALIVE")
    c0.record("DISK_DATA", b"\1\2\3", bytes=3)
    for s in (c0, t0):
        s.record("DISK_DATA", bytes=0)
    return "The connection of a disk.", {"source": c0, "target": t0}, {}


def resumed():
    c0, c1 = Stream("MIGRATE", "resumed", 0, 2), Stream("MIGRATE", "resumed", 1, 2)
    t0, t1 = Stream("MIGRATE", "resumed", 0, 2), Stream("MIGRATE", "resumed", 1, 2)
    m, other = {}, {}
    c0.opening(nr_pfns=300, live=1)
    t0.reply(channels=2)
    t0.precheck()
    memory_of_two(c0, c1, m, other)
    t0.ack(4)
    t1.ack(1)
    c0.reconnect(6)
    c1.reconnect(1)
    t0.resume_reply(6)
    t1.resume_reply(1)
    m.update(other)
    c0.reconnect(9)
    t0.resume_reply(9)
    c0.sim_state()
    c0.digest(m)
    c0.end()
    c1.end()
    t1.ack(c1.sequence)
    t0.ack(c0.sequence)
    t0.ready(m)
    t0.resume_reply(c0.sequence)
    c0.reconnect(c0.sequence)
    t0.ready(m)
    c0.record("COMMIT")
    t0.record("RUNNING")
    t0.record("KEEPALIVE")
    t0.connected(10_000_000_000, 0, 2, 1)
    return ("Connections lost and made again: records sent twice byte for byte, one connection lost again at once, READY repeated.",
            {"source-0": c0, "source-1": c1, "target-0": t0, "target-1": t1}, m)


def refused():
    c0, t0 = Stream("MIGRATE", "refused"), Stream("MIGRATE", "refused")
    c0.opening()
    t0.reply()
    t0.precheck(["the name krebs is taken: rename one of the two", "no bridge br7: create it"])
    c0.abort(2, "REFUSED", "the target does not take the guest")
    return "A target that refuses in PRECHECK.", {"source-0": c0, "target-0": t0}, {}


def aborted():
    c0, t0, m = Stream("MIGRATE", "aborted"), Stream("MIGRATE", "aborted"), {}
    c0.opening(live=1)
    t0.reply()
    t0.precheck()
    c0.pages(m, [(0, "zero", 0, None)])
    t0.ack(5)
    c0.abort(1, "CANCELLED", "")
    t0.abort(5, "RESOURCES", "out of memory: give the host more")
    return "Both sides abort in the middle of a round.", {"source-0": c0, "target-0": t0}, m


def query():
    c0, t0 = Stream("MIGRATE", "query"), Stream("MIGRATE", "query")
    c0.record("QUERY")
    t0.record("STATUS", struct.pack("<II", 4, 0), state="RUNNING")
    return "What became of the session?", {"source": c0, "target": t0}, {}


def check():
    c0, t0 = Stream("MIGRATE", "\0" * 16), Stream("MIGRATE", "\0" * 16)
    c0.record("CHECK")
    host = {"version": "0.1.0", "free_memory": 1 << 30}
    t0.record("CHECK_REPLY", json.dumps(host).encode(), host=host)
    return "Is this host ready to take guests?", {"source": c0, "target": t0}, {}


def hex_lines(data):
    """Hex in lines of 32 bytes, runs of one byte as XX*N."""
    words, pos = [], 0
    while pos < len(data):
        run = 1
        while pos + run < len(data) and data[pos + run] == data[pos]:
            run += 1
        if run >= 16:
            words.append("%02x*%d" % (data[pos], run))
            pos += run
        else:
            words.append("%02x" % data[pos])
            pos += 1
    return "".join(" ".join(words[i:i + 32]) + "\n" for i in range(0, len(words), 32))


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    for make in (image_sim, image_indexed, image_rounds, image_optional, image_pv, chain, session, disks, disk, resumed, refused, aborted, query, check):
        name = make.__name__.replace("_", "-")
        about, streams, memory = make()
        with open(os.path.join(folder, name + ".hex"), "w", encoding="utf-8") as f:
            f.write("# %s\n" % about)
            for part, stream in streams.items():
                f.write("\nfile %s\n" % part)
                for comment, offset, data in stream.parts:
                    f.write("# 0x%x %s\n%s" % (offset, comment, hex_lines(data)))
        expected = {"about": about, "accept": True, "session": name in ("session", "disks", "resumed", "refused", "aborted"),
                    "memory": {str(pfn): "%08x" % zlib.crc32(memory[pfn]) for pfn in sorted(memory)},
                    "files": {part: stream.expected for part, stream in streams.items()}}
        with open(os.path.join(folder, name + ".json"), "w", encoding="utf-8") as f:
            f.write('{\n "about": %s,\n "accept": true,\n "session": %s,\n "memory": %s,\n "files": {\n' % (
                json.dumps(about), json.dumps(expected["session"]), json.dumps(expected["memory"])))
            f.write(",\n".join('  "%s": [\n%s\n  ]' % (part, ",\n".join("   " + json.dumps(r) for r in records))
                               for part, records in expected["files"].items()))
            f.write("\n }\n}\n")


if __name__ == "__main__":
    main()
