# SPDX-License-Identifier: MIT
"""
One Zstandard frame (RFC 8878) to an exact size; no dictionaries, no skippable frames.

A frame is blocks; a compressed block is literals (plain, one byte repeated, or Huffman) and sequences (copy so many literals, then
a match), whose three numbers are coded by finite state machines. Huffman and sequence bits are read backwards from the end of their part.
"""

from . import Refused
from .lz4block import append_match

MAGIC = b"\x28\xb5\x2f\xfd"
BLOCK_MAX = 128 << 10
WINDOW_MAX = 1 << 20
HUFFMAN_BITS_MAX = 11

LITERAL_LENGTHS = [(n, 0) for n in range(16)] + [
    (16, 1), (18, 1), (20, 1), (22, 1), (24, 2), (28, 2), (32, 3), (40, 3), (48, 4), (64, 6)
] + [(1 << n, n) for n in range(7, 17)]
MATCH_LENGTHS = [(n + 3, 0) for n in range(32)] + [
    (35, 1), (37, 1), (39, 1), (41, 1), (43, 2), (47, 2), (51, 3), (59, 3), (67, 4), (83, 4), (99, 5)
] + [((1 << n) + 3, n) for n in range(7, 17)]
OFFSETS = [(1 << n, n) for n in range(32)]


def predefined(text):
    """'4 3 2x11' as a list of probabilities."""
    out = []
    for word in text.split():
        value, _, times = word.partition("x")
        out += [int(value)] * int(times or 1)
    return out


class Kind:
    """One of the three numbers of a sequence: its codes, its built-in distribution, how fine its tables may be."""

    def __init__(self, name, codes, distribution, log, log_max):
        self.name = name
        self.codes = codes
        self.log_max = log_max
        self.default = with_codes(state_table(predefined(distribution), log), log, self)


class Forward:
    """Bits from the low end of the first byte on."""

    def __init__(self, data, pos):
        self.data = data
        self.pos = pos * 8

    def peek(self, count):
        byte = self.pos >> 3
        return int.from_bytes(self.data[byte:byte + 4], "little") >> (self.pos & 7) & (1 << count) - 1

    def byte_position(self):
        return (self.pos + 7) >> 3


class Backward:
    """Bits from the end of data to its beginning; above the first of them is a 1 that marks the end."""

    __slots__ = ("data", "left", "acc", "have")

    def __init__(self, data, what):
        if not data or data[-1] == 0:
            raise Refused("Zstandard: %s has no end mark" % what)
        self.data = data
        self.left = len(data) - 1
        self.have = data[-1].bit_length() - 1
        self.acc = data[-1] & (1 << self.have) - 1

    def fill(self):
        """Take up to 32 more bytes."""
        start = max(0, self.left - 32)
        chunk = self.data[start:self.left]
        bits = len(chunk) * 8
        self.acc = (self.acc & (1 << self.have) - 1) << bits | int.from_bytes(chunk, "little")
        self.have += bits
        self.left = start

    def remaining(self):
        return self.have + self.left * 8

    def read(self, count):
        if self.have < count:
            self.fill()
            if self.have < count:
                raise Refused("Zstandard: bits are missing")
        self.have -= count
        return self.acc >> self.have & (1 << count) - 1


def read_distribution(data, pos, log_max, symbols_max):
    """A table description: (probabilities, accuracy log, position after it)."""
    bits = Forward(data, pos)
    log = bits.peek(4) + 5
    bits.pos += 4
    if log > log_max:
        raise Refused("Zstandard: a table of 2^%d states where 2^%d is the most" % (log, log_max))
    left = 1 << log
    probabilities = []
    while left > 0:
        width = (left + 1).bit_length()
        value = bits.peek(width)
        low = value & (1 << width - 1) - 1
        short = (1 << width) - 2 - left
        if low < short:
            value = low
            bits.pos += width - 1
        else:
            if value >= 1 << width - 1:
                value -= short
            bits.pos += width
        probability = value - 1
        left -= abs(probability)
        probabilities.append(probability)
        while probability == 0:
            repeat = bits.peek(2)
            bits.pos += 2
            probabilities += [0] * repeat
            if repeat != 3:
                break
        if len(probabilities) > symbols_max:
            raise Refused("Zstandard: a table with more than %d symbols" % symbols_max)
    if left < 0 or bits.byte_position() > len(data):
        raise Refused("Zstandard: a table description is damaged")
    return probabilities, log, bits.byte_position()


def state_table(probabilities, log):
    """For each state (symbol, bits to read, base of the next state)."""
    size = 1 << log
    symbols = [0] * size
    top = size - 1
    count = []
    for symbol, probability in enumerate(probabilities):
        count.append(abs(probability))
        if probability == -1:
            symbols[top] = symbol
            top -= 1
    step = (size >> 1) + (size >> 3) + 3
    place = 0
    for symbol, probability in enumerate(probabilities):
        for _ in range(probability):
            symbols[place] = symbol
            place = (place + step) & size - 1
            while place > top:
                place = (place + step) & size - 1
    table = []
    for symbol in symbols:
        number = count[symbol]
        count[symbol] += 1
        width = log - number.bit_length() + 1
        table.append((symbol, width, (number << width) - size))
    return table


def with_codes(table, log, kind):
    """(log, for each state (base, extra bits, bits to read, base of the next state))."""
    try:
        return log, [kind.codes[symbol] + (width, base) for symbol, width, base in table]
    except IndexError:
        raise Refused("Zstandard: a %s code that does not exist" % kind.name) from None


KINDS = (
    Kind("literal length", LITERAL_LENGTHS, "4 3 2x11 1x3 2x9 3 2 1x5 -1x4", 6, 9),
    Kind("offset", OFFSETS, "1x6 2x3 1x15 -1x5", 5, 8),
    Kind("match length", MATCH_LENGTHS, "1 4 3 2x6 1x37 -1x7", 6, 9),
)


def read_weights(data):
    """The Huffman tree at the beginning of data: (weights without the last, position after it)."""
    if not data:
        raise Refused("Zstandard: the Huffman tree is missing")
    head = data[0]
    if head >= 128:
        count = head - 127
        end = 1 + (count + 1) // 2
        if end > len(data):
            raise Refused("Zstandard: the Huffman tree is cut off")
        weights = [data[1 + i // 2] >> (0 if i & 1 else 4) & 15 for i in range(count)]
        return weights, end
    end = 1 + head
    if end > len(data):
        raise Refused("Zstandard: the Huffman tree is cut off")
    probabilities, log, pos = read_distribution(data[:end], 1, 6, 256)
    table = state_table(probabilities, log)
    bits = Backward(data[pos:end], "a Huffman tree")
    states = [bits.read(log), bits.read(log)]
    weights = []
    turn = 0
    while True:
        symbol, width, base = table[states[turn]]
        weights.append(symbol)
        if bits.remaining() < width:
            weights.append(table[states[1 - turn]][0])
            break
        states[turn] = base + bits.read(width)
        turn = 1 - turn
        if len(weights) > 254:
            raise Refused("Zstandard: the Huffman tree has too many symbols")
    return weights, end


def huffman_table(weights):
    """(bits, single symbols, runs): what the next `bits` bits decode to: one symbol, or as many as are whole in them."""
    total = 0
    for weight in weights:
        if weight > HUFFMAN_BITS_MAX:
            raise Refused("Zstandard: a Huffman code is too long")
        if weight:
            total += 1 << weight - 1
    if not total:
        raise Refused("Zstandard: the Huffman tree is empty")
    bits = total.bit_length()
    rest = (1 << bits) - total
    if bits > HUFFMAN_BITS_MAX or rest & rest - 1:
        raise Refused("Zstandard: the Huffman tree is not complete")
    weights = weights + [rest.bit_length()]
    single = []
    for weight in range(1, bits + 1):
        for symbol, its in enumerate(weights):
            if its == weight:
                single += [(symbol, bits + 1 - weight)] * (1 << weight - 1)
    runs = []
    for index in range(1 << bits):
        text = bytearray()
        used = 0
        while True:
            symbol, width = single[index << used & (1 << bits) - 1]
            if used + width > bits:
                break
            text.append(symbol)
            used += width
        runs.append((bytes(text), used))
    return bits, single, runs


def huffman_stream(data, table, size):
    """One stream of exactly `size` symbols."""
    bits, single, runs = table
    stream = Backward(data, "a Huffman stream")
    out = bytearray()
    mask = (1 << bits) - 1
    safe = size - bits
    acc, have = stream.acc, stream.have
    while len(out) < safe:
        if have < bits:
            stream.have, stream.acc = have, acc
            stream.fill()
            acc, have = stream.acc, stream.have
            if have < bits:
                break
        text, used = runs[acc >> have - bits & mask]
        out += text
        have -= used
    stream.have, stream.acc = have, acc
    while len(out) < size:
        if stream.have < bits:
            stream.fill()
        if stream.have >= bits:
            index = stream.acc >> stream.have - bits & mask
        else:
            index = stream.acc << bits - stream.have & mask
        symbol, used = single[index]
        if used > stream.have:
            raise Refused("Zstandard: a Huffman stream is too short")
        stream.have -= used
        out.append(symbol)
    if stream.remaining():
        raise Refused("Zstandard: a Huffman stream is too long")
    return out


class Frame:
    """What lives from block to block of a frame."""

    def __init__(self):
        self.out = bytearray()
        self.huffman = None
        self.tables = [None, None, None]
        self.recent = [1, 4, 8]

    def literals(self, data):
        """The literals section: (bytes, position after it)."""
        kind = data[0] & 3
        form = data[0] >> 2 & 3
        if kind < 2:
            head = (1, 2, 1, 3)[form]
            number = int.from_bytes(data[:head], "little")
            size = number >> (3 if head == 1 else 4)
            if size > BLOCK_MAX:
                raise Refused("Zstandard: too many literals in a block")
            stored = size if kind == 0 else 1
            if head + stored > len(data):
                raise Refused("Zstandard: literals are cut off")
            text = data[head:head + stored]
            return (text if kind == 0 else text * size), head + stored
        head, width = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
        number = int.from_bytes(data[:head], "little") >> 4
        size = number & (1 << width) - 1
        stored = number >> width
        end = head + stored
        if size > BLOCK_MAX or end > len(data):
            raise Refused("Zstandard: literals are cut off")
        body = data[head:end]
        if kind == 2:
            weights, pos = read_weights(body)
            self.huffman = huffman_table(weights)
            body = body[pos:]
        elif self.huffman is None:
            raise Refused("Zstandard: a Huffman tree is used before there is one")
        if form == 0:
            return huffman_stream(body, self.huffman, size), end
        if len(body) < 6 or size < 6:
            raise Refused("Zstandard: four Huffman streams in too little space")
        part = (size + 3) // 4
        text = bytearray()
        pos = 6
        for i in range(4):
            if i < 3:
                length = body[2 * i] | body[2 * i + 1] << 8
                its = part
            else:
                length = len(body) - pos
                its = size - 3 * part
            if length < 1 or pos + length > len(body) or its < 0:
                raise Refused("Zstandard: the Huffman streams do not fit")
            text += huffman_stream(body[pos:pos + length], self.huffman, its)
            pos += length
        return text, end

    def choose_table(self, index, mode, data, pos):
        kind = KINDS[index]
        if mode == 0:
            self.tables[index] = kind.default
        elif mode == 1:
            if pos >= len(data):
                raise Refused("Zstandard: the sequences are cut off")
            self.tables[index] = with_codes([(data[pos], 0, 0)], 0, kind)
            pos += 1
        elif mode == 2:
            probabilities, log, pos = read_distribution(data, pos, kind.log_max, len(kind.codes))
            self.tables[index] = with_codes(state_table(probabilities, log), log, kind)
        elif self.tables[index] is None:
            raise Refused("Zstandard: a %s table is used before there is one" % kind.name)
        return pos

    def block(self, data, limit):
        """A compressed block, appended to out, which may reach `limit`."""
        if len(data) < 2:
            raise Refused("Zstandard: a block is too short")
        literals, pos = self.literals(data)
        data = data[pos:]
        if not data:
            raise Refused("Zstandard: the sequences are missing")
        count, pos = data[0], 1
        if count >= 128:
            pos = 2 if count < 255 else 3
            if len(data) < pos:
                raise Refused("Zstandard: the sequences are cut off")
            if count < 255:
                count = (count - 128 << 8) + data[1]
            else:
                count = data[1] + (data[2] << 8) + 0x7F00
        if not count:
            if pos != len(data):
                raise Refused("Zstandard: a block has bytes left over")
            self.out += literals
            return
        if pos >= len(data):
            raise Refused("Zstandard: the sequences are cut off")
        modes = data[pos]
        pos += 1
        if modes & 3:
            raise Refused("Zstandard: reserved bits are set")
        for index in range(3):
            pos = self.choose_table(index, modes >> 6 - 2 * index & 3, data, pos)
        self.sequences(Backward(data[pos:], "the sequences"), count, literals, limit)

    def sequences(self, bits, count, literals, limit):
        (l_log, l_table), (o_log, o_table), (m_log, m_table) = self.tables
        read = bits.read
        out = self.out
        first, second, third = self.recent
        l_state, o_state, m_state = read(l_log), read(o_log), read(m_log)
        taken = 0
        for number in range(count):
            run, l_extra, l_width, l_next = l_table[l_state]
            offset, o_extra, o_width, o_next = o_table[o_state]
            length, m_extra, m_width, m_next = m_table[m_state]
            if o_extra:
                offset += read(o_extra)
            if m_extra:
                length += read(m_extra)
            if l_extra:
                run += read(l_extra)
            if offset > 3:
                offset -= 3
                first, second, third = offset, first, second
            else:
                which = offset if run == 0 else offset - 1
                if which == 0:
                    offset = first
                elif which == 1:
                    offset = second
                    first, second = second, first
                else:
                    offset = third if which == 2 else first - 1
                    first, second, third = offset, first, second
            if number + 1 < count:
                l_state = l_next + read(l_width)
                m_state = m_next + read(m_width)
                o_state = o_next + read(o_width)
            if run:
                out += literals[taken:taken + run]
                taken += run
            if taken > len(literals):
                raise Refused("Zstandard: a sequence takes more literals than there are")
            if offset <= 0 or offset > len(out):
                raise Refused("Zstandard: a match reaches %d bytes back where %d are there" % (offset, len(out)))
            if len(out) + length > limit:
                raise Refused("Zstandard: decompresses to more than its size")
            append_match(out, offset, length)
        if bits.remaining():
            raise Refused("Zstandard: the sequences have bits left over")
        out += literals[taken:]
        self.recent = [first, second, third]


def read_frame_header(src):
    """(content size or None, largest block, has checksum, position after it)."""
    if src[:4] != MAGIC:
        raise Refused("Zstandard: not a frame")
    if len(src) < 6:
        raise Refused("Zstandard: the frame header is cut off")
    flags = src[4]
    if flags & 8:
        raise Refused("Zstandard: a reserved bit is set")
    pos = 5
    window = None
    if not flags & 32:
        window = 1 << 10 + (src[pos] >> 3)
        window += window // 8 * (src[pos] & 7)
        pos += 1
    dictionary = (0, 1, 2, 4)[flags & 3]
    if any(src[pos:pos + dictionary]):
        raise Refused("Zstandard: wants a dictionary")
    pos += dictionary
    width = (1 if flags & 32 else 0, 2, 4, 8)[flags >> 6]
    if pos + width > len(src):
        raise Refused("Zstandard: the frame header is cut off")
    content = None
    if width:
        content = int.from_bytes(src[pos:pos + width], "little") + (256 if width == 2 else 0)
    pos += width
    if window is None:
        window = content
    if window > WINDOW_MAX:
        raise Refused("Zstandard: a window of %d bytes where 1 MiB is the most" % window)
    return content, min(window, BLOCK_MAX), bool(flags & 4), pos


def decompress(src, size):
    """The one frame src as bytes of exactly `size`; Refused when it is anything else."""
    src = bytes(src)
    content, block_max, checksum, pos = read_frame_header(src)
    if content is not None and content != size:
        raise Refused("Zstandard: says that it holds %d bytes instead of %d" % (content, size))
    frame = Frame()
    last = False
    try:
        while not last:
            if pos + 3 > len(src):
                raise Refused("Zstandard: the frame is cut off")
            head = int.from_bytes(src[pos:pos + 3], "little")
            pos += 3
            last = bool(head & 1)
            kind = head >> 1 & 3
            length = head >> 3
            stored = 1 if kind == 1 else length
            if kind == 3 or length > block_max:
                raise Refused("Zstandard: a block of a reserved kind or too long")
            if pos + stored > len(src):
                raise Refused("Zstandard: the frame is cut off")
            before = len(frame.out)
            limit = min(size, before + block_max)
            if kind == 0:
                frame.out += src[pos:pos + length]
            elif kind == 1:
                frame.out += src[pos:pos + 1] * length
            else:
                frame.block(src[pos:pos + length], limit)
            if len(frame.out) > limit:
                raise Refused("Zstandard: decompresses to more than %d bytes" % size)
            pos += stored
    except IndexError:
        raise Refused("Zstandard: a block is damaged") from None
    if checksum:
        pos += 4
    if pos != len(src):
        raise Refused("Zstandard: the frame does not end where its data ends")
    if len(frame.out) != size:
        raise Refused("Zstandard: decompresses to %d bytes instead of %d" % (len(frame.out), size))
    return bytes(frame.out)
