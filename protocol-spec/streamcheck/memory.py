# SPDX-License-Identifier: MIT
"""PAGES (stream.md 6): batches decoded, applied to a guest's memory, compared with it, and the digest over it."""

import struct
import zlib

from . import Refused, lz4block, zstdframe
from .framing import any_set, padded

PAGE = 4096
ZERO_PAGE = bytes(PAGE)
ZERO_CRC = zlib.crc32(ZERO_PAGE)
BATCH_MAX = 256
DATA, ZERO, DELTA, ABSENT = range(4)
TRANSFORMS = ("data", "zero", "delta", "absent")
CODECS = ("raw", "lz4", "zstd")
CODEC_FEATURE = {1: "LZ4", 2: "ZSTD"}
# Bits of a page word that mean something: pfn, transform, type.
WORD_BITS = 0x0F0F00FFFFFFFFFF
MASK = (1 << 64) - 1


def mix64(x):
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def xor(a, b):
    return (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).to_bytes(len(a), "little")


def decompress(codec, data, size):
    if codec == 0:
        if len(data) != size:
            raise Refused("raw data of %d bytes instead of %d" % (len(data), size))
        return bytes(data)
    if codec == 1:
        return lz4block.decompress(data, size)
    return zstdframe.decompress(data, size)


class Batch:
    """A PAGES body: words, groups, and (after contents()) the data of each page that has some."""

    def __init__(self, body, nr_pfns):
        if len(body) < 16:
            raise Refused("length %d where 16 is the least" % len(body))
        self.nr, nr_groups, self.round, reserved = struct.unpack_from("<IIII", body)
        if reserved:
            raise Refused("the reserved field is not zero")
        if not 1 <= self.nr <= BATCH_MAX:
            raise Refused("nr_pages is %d, not 1 to %d" % (self.nr, BATCH_MAX))
        if nr_groups > self.nr:
            raise Refused("%d groups for %d pages" % (nr_groups, self.nr))
        groups_at = 16 + 8 * self.nr
        data_at = groups_at + 16 * nr_groups
        if data_at > len(body):
            raise Refused("length %d is too short for its page words and groups" % len(body))
        self.body = body
        self.read_words(struct.unpack_from("<%dQ" % self.nr, body, 16), nr_pfns)
        self.read_groups(list(struct.iter_unpack("<IIII", body[groups_at:data_at])), data_at)

    def read_words(self, words, nr_pfns):
        self.pages = []
        self.with_data = 0
        seen = set()
        for i, word in enumerate(words):
            if word & ~WORD_BITS:
                raise Refused("page %d: reserved bits of the page word are set" % i)
            pfn, transform, kind = word & 0xFFFFFFFFFF, word >> 48 & 15, word >> 56
            if transform > ABSENT:
                raise Refused("page %d: transform %d does not exist" % (i, transform))
            if kind & 7 > 4:
                raise Refused("page %d: type %d does not exist" % (i, kind & 7))
            if kind == 8:
                raise Refused("page %d: an ordinary page cannot be pinned" % i)
            if pfn >= nr_pfns:
                raise Refused("page %d: pfn 0x%x is not below nr_pfns 0x%x" % (i, pfn, nr_pfns))
            if pfn in seen:
                raise Refused("page %d: pfn 0x%x comes twice in the record" % (i, pfn))
            if transform in (DELTA, ABSENT) and kind:
                raise Refused("page %d: %s of a page table" % (i, TRANSFORMS[transform].upper()))
            seen.add(pfn)
            self.with_data += transform in (DATA, DELTA)
            self.pages.append((pfn, transform, kind))

    def read_groups(self, groups, pos):
        self.groups = []
        total = 0
        for i, (codec, nr, length, reserved) in enumerate(groups):
            if reserved:
                raise Refused("group %d: the reserved field is not zero" % i)
            if codec >= len(CODECS):
                raise Refused("group %d: codec %d does not exist" % (i, codec))
            if not nr:
                raise Refused("group %d: has no pages" % i)
            total += nr
            if total > self.with_data:
                raise Refused("group %d: the groups have more pages than the %d with data" % (i, self.with_data))
            if not 1 <= length <= nr * PAGE:
                raise Refused("group %d: length %d is not 1 to %d" % (i, length, nr * PAGE))
            end = pos + padded(length)
            if end > len(self.body):
                raise Refused("group %d: its data reach beyond the record" % i)
            if any_set(self.body[pos + length:end]):
                raise Refused("group %d: the padding is not zero" % i)
            self.groups.append((codec, nr, self.body[pos:pos + length]))
            pos = end
        if total != self.with_data:
            raise Refused("the groups have %d pages, and %d have data" % (total, self.with_data))
        if pos != len(self.body):
            raise Refused("%d bytes are left over after the groups" % (len(self.body) - pos))

    def contents(self):
        """The data of the pages with data, in order."""
        for i, (codec, nr, data) in enumerate(self.groups):
            try:
                raw = decompress(codec, data, nr * PAGE)
            except Refused as why:
                raise Refused("group %d: %s" % (i, why)) from None
            for at in range(0, len(raw), PAGE):
                yield raw[at:at + PAGE]


class Memory:
    """A guest's memory as a stream makes it: contents, types, who sent what."""

    def __init__(self, parent=None):
        self.page = dict(parent.page) if parent else {}
        self.type = dict(parent.type) if parent else {}
        # pfn -> channel, for all that this stream has sent.
        self.channel = {}
        self.pages = dict.fromkeys(TRANSFORMS, 0)
        self.groups = dict.fromkeys(CODECS, 0)

    def check_features(self, batch, features):
        for codec, _, _ in batch.groups:
            if codec and CODEC_FEATURE[codec] not in features:
                raise Refused("uses %s, which is not among the features" % CODEC_FEATURE[codec])
        if "DELTA" not in features and any(t == DELTA for _, t, _ in batch.pages):
            raise Refused("uses DELTA, which is not among the features")

    def count(self, batch):
        for _, transform, _ in batch.pages:
            self.pages[TRANSFORMS[transform]] += 1
        for codec, _, _ in batch.groups:
            self.groups[CODECS[codec]] += 1

    def check_channel(self, pfn, channel):
        if self.channel.setdefault(pfn, channel) != channel:
            raise Refused("pfn 0x%x was sent on channel %d before" % (pfn, self.channel[pfn]))

    def apply(self, batch, channel):
        contents = batch.contents()
        for pfn, transform, kind in batch.pages:
            if transform == DELTA and (pfn not in self.channel or pfn not in self.page or self.type[pfn]):
                raise Refused("DELTA of pfn 0x%x, of which no ordinary page was sent before" % pfn)
            self.check_channel(pfn, channel)
            if transform == ABSENT:
                self.page.pop(pfn, None)
                self.type.pop(pfn, None)
                continue
            if transform == ZERO:
                self.page[pfn] = ZERO_PAGE
            elif transform == DATA:
                self.page[pfn] = next(contents)
            else:
                self.page[pfn] = xor(self.page[pfn], next(contents))
            self.type[pfn] = kind
        for _ in contents:
            raise Refused("data without a page")
        self.count(batch)

    def compare(self, batch, channel, done):
        """A batch of the VERIFY round. `done`: the pfns that came in it so far."""
        contents = batch.contents()
        for pfn, transform, kind in batch.pages:
            if transform == DELTA:
                raise Refused("DELTA of pfn 0x%x in a VERIFY round" % pfn)
            if pfn not in self.channel:
                raise Refused("pfn 0x%x comes in the VERIFY round and was not sent before" % pfn)
            self.check_channel(pfn, channel)
            if pfn in done:
                raise Refused("pfn 0x%x comes twice in the VERIFY round" % pfn)
            done.add(pfn)
            page = {ABSENT: None, ZERO: ZERO_PAGE}.get(transform, b"")
            if page == b"":
                page = next(contents)
            if page != self.page.get(pfn) or (page is not None and kind != self.type[pfn]):
                raise Refused("VERIFY: pfn 0x%x differs from what was sent before" % pfn)
        self.count(batch)

    def digest(self):
        """(digest, number of pages)"""
        total = 0
        crc32 = zlib.crc32
        for pfn, page in self.page.items():
            crc = ZERO_CRC if page is ZERO_PAGE else crc32(page)
            total += mix64(pfn << 32 | crc)
        return total & MASK, len(self.page)
