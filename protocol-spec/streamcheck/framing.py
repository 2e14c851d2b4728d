# SPDX-License-Identifier: MIT
"""Stream headers and records as bytes (stream.md 3): found, and checked in themselves."""

import struct
import zlib

from . import Incomplete, Refused

MAGIC = b"PAGURUS\0"
VERSION = 1
HEADER_SIZE = 40
RECORD_HEADER_SIZE = 16
BODY_MAX = 2 << 20
CHANNELS_MAX = 16
OPTIONAL = 0x80000000

KINDS = {1: "MIGRATE", 2: "IMAGE", 3: "CHECKPOINT", 4: "REPLICATE"}
FILE_KINDS = ("IMAGE", "CHECKPOINT")

TYPES = {
    0x01: "HELLO", 0x02: "IDENTITY", 0x03: "CPU_POLICY", 0x04: "CONFIG", 0x05: "PARENT", 0x06: "OPEN",
    0x10: "PAGES", 0x11: "ROUND_END", 0x12: "STOP", 0x13: "VERIFY", 0x14: "DIGEST",
    0x20: "PV_INFO", 0x21: "PV_P2M_FRAMES", 0x22: "PV_SHARED_INFO", 0x23: "VCPU_CONTEXT",
    0x24: "VCPU_EXTENDED", 0x25: "VCPU_XSAVE", 0x26: "VCPU_MSRS", 0x27: "TSC_INFO", 0x28: "DEVICE_STATE",
    0x2F: "SIM_STATE",
    0x30: "DISK", 0x31: "DISK_ATTACH", 0x32: "DISK_DATA",
    0x40: "HELLO_REPLY", 0x41: "PRECHECK", 0x42: "ACK", 0x43: "READY", 0x44: "COMMIT", 0x45: "RUNNING",
    0x46: "ABORT", 0x47: "QUERY", 0x48: "STATUS", 0x49: "RESUME", 0x4A: "RESUME_REPLY", 0x4B: "CHECK",
    0x4C: "CHECK_REPLY", 0x4D | OPTIONAL: "KEEPALIVE", 0x4E | OPTIONAL: "CONNECTED",
    0x50 | OPTIONAL: "INDEX", 0x51 | OPTIONAL: "NOTE", 0x5F: "END",
}


def padded(length):
    return length + 7 & ~7


def any_set(view):
    return any(bytes(view))


class Header:
    """A stream header that was found right."""

    def __init__(self, data, pos):
        raw = bytes(data[pos:pos + HEADER_SIZE])
        if len(raw) < HEADER_SIZE:
            raise Incomplete("stream header at offset 0x%x: the file ends inside it" % pos)
        magic, version, kind, self.session, self.channel, self.channels, crc = struct.unpack("<8sII16sHHI", raw)
        where = "stream header at offset 0x%x: " % pos
        if magic != MAGIC:
            raise Refused(where + "the magic is wrong: not a Pagurus stream")
        if version != VERSION:
            raise Refused(where + "version %d, and this program knows version %d" % (version, VERSION))
        if crc != zlib.crc32(raw[:36] + bytes(4)):
            raise Refused(where + "the crc is wrong")
        if kind not in KINDS:
            raise Refused(where + "kind %d does not exist" % kind)
        if not 1 <= self.channels <= CHANNELS_MAX:
            raise Refused(where + "%d channels where 1 to %d are possible" % (self.channels, CHANNELS_MAX))
        if self.channel >= self.channels:
            raise Refused(where + "channel %d of %d" % (self.channel, self.channels))
        self.kind = KINDS[kind]
        if self.kind in FILE_KINDS and self.channels != 1:
            raise Refused(where + "a file has one channel, not %d" % self.channels)

    def same_session(self, other):
        return (self.kind, self.session, self.channels) == (other.kind, other.session, other.channels)


class Record:
    """A record with a right length, padding and crc. `body` is a view into the file."""

    __slots__ = ("type", "name", "sequence", "offset", "body", "size", "crc")

    def where(self):
        return "record %d %s at offset 0x%x: " % (self.sequence, self.name, self.offset)


def read_record(data, pos, sequence):
    """The record at pos. `sequence` is what its number has to be; None: any, the caller looks."""
    left = len(data) - pos
    where = "record %s at offset 0x%x: " % ("?" if sequence is None else sequence, pos)
    if left < RECORD_HEADER_SIZE:
        raise Incomplete(where + "the file ends inside its header")
    head = bytes(data[pos:pos + RECORD_HEADER_SIZE])
    rec = Record()
    rec.type, length, rec.sequence, rec.crc = struct.unpack("<IIII", head)
    rec.offset = pos
    rec.name = TYPES.get(rec.type, "type 0x%x" % rec.type)
    where = where[:-2].replace(" at", " %s at" % rec.name) + ": "
    if length > BODY_MAX:
        raise Refused(where + "length %d is over the limit of %d" % (length, BODY_MAX))
    if sequence is not None and rec.sequence != sequence:
        raise Refused(where + "its sequence is %d instead of %d" % (rec.sequence, sequence))
    rec.size = RECORD_HEADER_SIZE + padded(length)
    if rec.size > left:
        raise Incomplete(where + "the file ends inside it, %d bytes are missing" % (rec.size - left))
    view = memoryview(data)[pos + RECORD_HEADER_SIZE:pos + rec.size]
    if zlib.crc32(view, zlib.crc32(head[:12] + bytes(4))) != rec.crc:
        raise Refused(where + "the crc is wrong")
    if any_set(view[length:]):
        raise Refused(where + "the padding is not zero")
    rec.body = view[:length]
    if rec.type not in TYPES and not rec.type & OPTIONAL:
        raise Refused(where + "unknown, and it may not be skipped")
    return rec
