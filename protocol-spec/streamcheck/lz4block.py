# SPDX-License-Identifier: MIT
"""The LZ4 block format (stream.md 6.4), to an exact size."""

from . import Refused

LAST_LITERALS = 5


def decompress(src, size):
    """The block src as bytes of exactly `size`; Refused when it is anything else."""
    src = bytes(src)
    end = len(src)
    out = bytearray()
    pos = 0
    last_match_end = 0
    try:
        while True:
            token = src[pos]
            pos += 1
            literals = token >> 4
            if literals == 15:
                while True:
                    more = src[pos]
                    pos += 1
                    literals += more
                    if more != 255:
                        break
            if literals:
                if pos + literals > end:
                    raise Refused("LZ4: literals reach beyond the block")
                out += src[pos:pos + literals]
                pos += literals
            if pos == end:
                if token & 15:
                    raise Refused("LZ4: the block ends inside a sequence")
                break
            offset = src[pos] | src[pos + 1] << 8
            pos += 2
            length = token & 15
            if length == 15:
                while True:
                    more = src[pos]
                    pos += 1
                    length += more
                    if more != 255:
                        break
            length += 4
            have = len(out)
            if offset == 0 or offset > have:
                raise Refused("LZ4: a match reaches %d bytes back where %d are there" % (offset, have))
            if have + length > size:
                raise Refused("LZ4: decompresses to more than %d bytes" % size)
            append_match(out, offset, length)
            last_match_end = len(out)
    except IndexError:
        raise Refused("LZ4: the block ends inside a sequence") from None
    if len(out) != size:
        raise Refused("LZ4: decompresses to %d bytes instead of %d" % (len(out), size))
    if last_match_end > size - LAST_LITERALS:
        raise Refused("LZ4: the last %d bytes are not literals" % LAST_LITERALS)
    return bytes(out)


def append_match(out, offset, length):
    """Append length bytes from offset back; they may overlap what is being written."""
    start = len(out) - offset
    if offset >= length:
        out += out[start:start + length]
    else:
        piece = bytes(out[start:])
        out += (piece * (length // offset + 1))[:length]
