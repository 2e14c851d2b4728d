# SPDX-License-Identifier: MIT
"""
Whole streams: a file, or all channels of a session in both directions, against stream.md.

A pfn stays on one channel, so the channels of a session can be read one after the other into one Memory; what needs all of
them (digest, page tables, equal numbers of rounds) is checked by Session.finish().
"""

import os

from . import Incomplete, Refused
from .bodies import DECODERS, DISKS_MAX
from .framing import FILE_KINDS, HEADER_SIZE, MAGIC, RECORD_HEADER_SIZE, TYPES, Header, read_record
from .memory import CODECS, TRANSFORMS, Batch, Memory
from .order import SKIPPED, Order
from .pvguest import PvState

END_SIZE = 48
RECORDS_MAX = (1 << 32) - 1
STATE = ("PV_INFO", "PV_P2M_FRAMES", "PV_SHARED_INFO", "VCPU_CONTEXT", "VCPU_EXTENDED", "VCPU_XSAVE", "VCPU_MSRS")


def describe_batch(batch):
    return {"round": batch.round, "pages": [[pfn, TRANSFORMS[t], kind] for pfn, t, kind in batch.pages],
            "groups": [[CODECS[codec], nr, len(data)] for codec, nr, data in batch.groups]}


class Parents:
    """The finished streams that a later one may name as its parent."""

    def __init__(self):
        self.known = {}

    def add(self, session):
        self.known[session.header.session.hex(), session.digest] = session

    def find(self, fields):
        parent = self.known.get((fields["session"], fields["digest"]))
        if parent is None:
            raise Refused("its parent, session %s with digest 0x%016x, is not among the files given before it"
                          % (fields["session"], fields["digest"]))
        return parent


class Session:
    """What the channels of one session (or the one of a file) have in common."""

    def __init__(self, parents=None, incomplete=False, watch=None):
        self.parents = parents
        self.incomplete = incomplete
        self.watch = watch
        self.header = None
        self.hello = None
        self.reply = None
        self.identity = None
        self.parent = None
        self.disks = []
        self.generation = 0
        self.memory = Memory()
        self.verified = set()
        self.pv = None
        self.announced = None
        self.digest = None
        self.ready = None
        self.records = {}
        self.rounds = {}
        self.verify = {}
        self.aborted = False
        self.committed = False

    def seen(self, rec, fields):
        self.records[rec.name] = self.records.get(rec.name, 0) + 1
        if self.watch:
            self.watch(rec, fields)

    def take_header(self, header):
        if self.header is None:
            self.header = header
        elif not self.header.same_session(header):
            raise Refused("stream header: kind, session or number of channels differ from the session's")

    def features(self):
        if self.hello is None:
            raise Refused("memory comes before HELLO: channel 0 is missing")
        both = set(self.hello["features"])
        return both & set(self.reply["features"]) if self.reply else both

    def take_parent(self, fields):
        self.parent = self.parents.find(fields) if self.parents is not None else None
        if self.parent is None:
            raise Refused("its parent was not given")
        for what in ("guest", "nr_pfns"):
            if self.hello[what] != self.parent.hello[what]:
                raise Refused("%s is %s, and %s in the parent" % (what, self.hello[what], self.parent.hello[what]))
        if self.identity["uuid"] != self.parent.identity["uuid"]:
            raise Refused("the parent is of another guest")
        if fields["generation"] != self.parent.generation + 1:
            raise Refused("generation %d after %d" % (fields["generation"], self.parent.generation))
        self.generation = fields["generation"]
        self.memory = Memory(self.parent.memory)

    def take_disk(self, fields):
        if "DISKS" not in self.hello["features"] or self.header.kind != "MIGRATE":
            raise Refused("HELLO did not say that disks come along")
        if len(self.disks) == DISKS_MAX:
            raise Refused("more than %d disks" % DISKS_MAX)
        if fields["path"] in self.disks:
            raise Refused("two disks in %s" % fields["path"])
        self.disks.append(fields["path"])

    def take(self, name, fields):
        """A record of channel 0 that is about the whole guest."""
        if name == "HELLO":
            self.hello = fields
            if self.reply:
                self.check_reply()
        elif name == "IDENTITY":
            self.identity = fields
        elif name == "CONFIG":
            if (fields["format"] == "SIM") != (self.hello["guest"] == "SIM"):
                raise Refused("format %s of a %s guest" % (fields["format"], self.hello["guest"]))
        elif name == "PARENT":
            self.take_parent(fields)
        elif name == "DISK":
            self.take_disk(fields)
        elif name == "OPEN" and "DISKS" in self.hello["features"] and not self.disks:
            raise Refused("HELLO says that disks come along, and none does")
        elif name in ("PV_INFO", "SIM_STATE"):
            if (name == "SIM_STATE") != (self.hello["guest"] == "SIM"):
                raise Refused("the state of another kind of guest than the %s of HELLO" % self.hello["guest"])
            self.pv = PvState(self.hello) if name == "PV_INFO" else None
        elif name == "DIGEST":
            self.announced = fields
        elif name == "COMMIT":
            self.committed = True
        if name in STATE:
            self.pv.take(name, fields)

    def take_reply(self, fields):
        self.reply = fields
        if self.hello:
            self.check_reply()

    def check_reply(self):
        more = set(self.reply["features"]) - set(self.hello["features"])
        if more:
            raise Refused("HELLO_REPLY: features %s, which HELLO did not offer" % " ".join(sorted(more)))
        if self.reply["channels"] > self.header.channels:
            raise Refused("HELLO_REPLY: %d channels where %d were offered" % (self.reply["channels"], self.header.channels))

    def check_alike(self, values, what):
        if len(set(values.values())) > 1:
            raise Refused("the channels differ in %s: %s" % (what, values))

    def finish(self):
        if self.aborted or (self.incomplete and self.announced is None):
            return
        if self.announced is None:
            raise Refused("no channel 0 was given, so nothing says what the whole is")
        if self.reply and sorted(self.rounds) != list(range(self.reply["channels"])):
            raise Refused("channels %s were given, and HELLO_REPLY accepted %d" % (sorted(self.rounds), self.reply["channels"]))
        if not self.incomplete:
            self.check_alike(self.rounds, "their number of rounds")
            self.check_alike(self.verify, "VERIFY")
        if any(self.verify.values()) and not self.incomplete:
            missing = set(self.memory.channel) - self.verified
            if missing:
                raise Refused("VERIFY: %d pfns did not come again, the first is 0x%x" % (len(missing), min(missing)))
        digest, pages = self.memory.digest()
        if pages != self.announced["pages"]:
            raise Refused("DIGEST: %d pages, and %d hold memory" % (self.announced["pages"], pages))
        if digest != self.announced["digest"]:
            raise Refused("DIGEST: 0x%016x, and the memory has 0x%016x" % (self.announced["digest"], digest))
        if self.ready and self.ready != self.announced:
            raise Refused("READY: digest 0x%016x of %d pages, which is not that of DIGEST" % (self.ready["digest"], self.ready["pages"]))
        if self.pv:
            self.pv.finish(self.memory)
        self.digest = digest
        if self.parents is not None:
            self.parents.add(self)

    def summary(self):
        out = {"kind": self.header.kind, "session": self.header.session.hex(), "channels": len(self.rounds),
               "records": dict(sorted(self.records.items())), "pages": self.memory.pages, "groups": self.memory.groups,
               "rounds": max(self.rounds.values(), default=0), "verified": any(self.verify.values()),
               "aborted": self.aborted, "generation": self.generation}
        if self.hello:
            out["guest"] = self.hello["guest"]
            out["nr_pfns"] = self.hello["nr_pfns"]
        if self.identity:
            out.update(self.identity)
        if self.digest is not None:
            out["digest"] = "0x%016x" % self.digest
            out["memory_pages"] = len(self.memory.page)
        return out


class SourceStream:
    """
    One channel from the source. Bytes of several connections may follow each other: a stream header where a record could be
    begins the next one, with RESUME and then, verbatim, what the target had not got.
    """

    def __init__(self, data, session):
        self.data = data
        self.session = session
        self.header = Header(data, 0)
        session.take_header(self.header)
        self.channel = self.header.channel
        self.order = Order("source", self.header.kind, self.channel)
        self.sequence = 0
        self.bytes = HEADER_SIZE
        self.past = []
        self.resumed_at = []
        self.resuming = False
        self.round = 0
        self.round_pages = 0
        self.round_bytes = 0
        self.verifying = False
        self.stopped = False
        self.index = []
        self.index_offset = 0
        self.index_records = 0
        self.batches = []

    def run(self):
        pos = HEADER_SIZE
        data = self.data
        while pos < len(data):
            if bytes(data[pos:pos + 8]) == MAGIC and self.sequence:
                pos = self.reconnect(pos)
                continue
            rec = self.next_record(pos)
            pos += rec.size
            if rec.sequence < self.sequence:
                self.check_repeated(rec)
                continue
            self.resuming = False
            try:
                self.take(rec)
            except Refused as why:
                raise Refused(rec.where() + str(why)) from None
            self.past.append((rec.type, len(rec.body), rec.crc))
            self.sequence += 1
            self.bytes += rec.size
        if not self.order.complete() and not self.session.incomplete:
            raise Incomplete("the stream ends after record %d, before %s" % (self.sequence - 1, " or ".join(dict(self.order.allowed()))))
        self.session.rounds[self.channel] = self.round
        self.session.verify[self.channel] = self.verifying
        self.session.aborted |= self.order.aborted
        if self.header.kind in FILE_KINDS and self.order.complete():
            self.check_file_end()

    def next_record(self, pos):
        rec = read_record(self.data, pos, None if self.resuming else self.sequence)
        if self.resuming:
            if len(self.resumed_at) > 0 and self.resumed_at[-1] is None:
                self.resumed_at[-1] = rec.sequence
                self.expected = rec.sequence
            if rec.sequence != self.expected or rec.sequence > self.sequence:
                raise Refused(rec.where() + "its sequence is not %d" % min(self.expected, self.sequence))
            self.expected += 1
        return rec

    def reconnect(self, pos):
        header = Header(self.data, pos)
        self.session.take_header(header)
        if header.channel != self.channel:
            raise Refused("stream header at offset 0x%x: channel %d instead of %d" % (pos, header.channel, self.channel))
        if "RESUME" not in self.session.features():
            raise Refused("stream header at offset 0x%x: RESUME is not among the features" % pos)
        rec = read_record(self.data, pos + HEADER_SIZE, 0)
        if rec.name != "RESUME":
            raise Refused(rec.where() + "expected RESUME as the first record of a resumed connection")
        fields = DECODERS["RESUME"](rec.body)
        if fields["next_sequence"] != self.sequence:
            raise Refused(rec.where() + "next_sequence is %d, and %d records were sent" % (fields["next_sequence"], self.sequence))
        self.session.seen(rec, fields)
        self.resuming = True
        self.resumed_at.append(None)
        return pos + HEADER_SIZE + rec.size

    def check_repeated(self, rec):
        if (rec.type, len(rec.body), rec.crc) != self.past[rec.sequence]:
            raise Refused(rec.where() + "is not what was sent under this number before")

    def take(self, rec):
        if rec.name == "PAGES":
            self.order.next("PAGES")
            self.take_pages(rec)
            return
        fields = DECODERS[rec.name](rec.body) if rec.type in TYPES else {}
        self.order.next(rec.name if rec.type in TYPES else SKIPPED)
        if rec.name == "ROUND_END":
            self.take_round_end(fields)
        elif rec.name == "VERIFY":
            if "VERIFY" not in self.session.features():
                raise Refused("VERIFY is not among the features")
            self.verifying = True
        elif rec.name == "STOP":
            self.stopped = True
        elif rec.name == "INDEX":
            self.index += fields["entries"]
            self.index_offset = self.index_offset or rec.offset
            self.index_records += 1
        elif rec.name == "END":
            self.take_end(fields)
        elif rec.name == "DISK_DATA" and not rec.body:
            self.order.state = "over"
        self.session.take(rec.name, fields)
        self.session.seen(rec, fields)

    def take_pages(self, rec):
        session = self.session
        features = session.features()
        batch = Batch(rec.body, session.hello["nr_pfns"])
        if batch.round != self.round:
            raise Refused("round %d instead of %d" % (batch.round, self.round))
        if not session.hello["live"] and not self.stopped and not self.channel:
            raise Refused("comes before STOP, and HELLO says stop and copy")
        session.memory.check_features(batch, features)
        if self.verifying:
            session.memory.compare(batch, self.channel, session.verified)
        else:
            session.memory.apply(batch, self.channel)
        self.round_pages += batch.nr
        self.round_bytes += rec.size
        pfns = [pfn for pfn, _, _ in batch.pages]
        self.batches.append((rec.offset, min(pfns), max(pfns), batch.nr))
        session.seen(rec, describe_batch(batch) if session.watch else None)

    def take_round_end(self, fields):
        for what, have in (("round", self.round), ("pages", self.round_pages), ("bytes", self.round_bytes)):
            if fields[what] != have:
                raise Refused("%s is %d instead of %d" % (what, fields[what], have))
        self.round += 1
        self.round_pages = self.round_bytes = 0

    def take_end(self, fields):
        have = {"records": self.sequence, "bytes": self.bytes, "index_offset": self.index_offset, "index_records": self.index_records}
        for what, value in have.items():
            if fields[what] != value:
                raise Refused("%s is %d instead of %d" % (what, fields[what], value))
        if not self.index_records:
            return
        if len(self.index) != len(self.batches):
            raise Refused("the index has %d entries for %d PAGES records" % (len(self.index), len(self.batches)))
        for i, (entry, batch) in enumerate(zip(self.index, self.batches)):
            if entry != batch:
                raise Refused("index entry %d is %s instead of %s" % (i, entry, batch))

    def check_file_end(self):
        """END is the last 48 bytes; a NOTE or the like after it was refused by the order."""
        if not self.order.aborted and self.bytes != len(self.data):
            raise Refused("%d bytes follow END" % (len(self.data) - self.bytes))


class TargetStream:
    """One channel from the target: one or more connections, each from its stream header on."""

    def __init__(self, data, session):
        self.data = data
        self.session = session
        self.channel = Header(data, 0).channel
        self.acked = 0
        self.resumed_at = []
        self.running = False
        self.complete = False

    def run(self):
        pos = 0
        while pos < len(self.data):
            pos = self.connection(pos)

    def connection(self, pos):
        header = Header(self.data, pos)
        self.session.take_header(header)
        if header.channel != self.channel:
            raise Refused("stream header at offset 0x%x: channel %d instead of %d" % (pos, header.channel, self.channel))
        order = Order("target", header.kind, self.channel)
        pos += HEADER_SIZE
        sequence = 0
        while pos < len(self.data) and bytes(self.data[pos:pos + 8]) != MAGIC:
            rec = read_record(self.data, pos, sequence)
            try:
                fields = DECODERS[rec.name](rec.body) if rec.type in TYPES else {}
                order.next(rec.name if rec.type in TYPES else SKIPPED)
                self.take(rec.name, fields, order)
            except Refused as why:
                raise Refused(rec.where() + str(why)) from None
            self.session.seen(rec, fields)
            pos += rec.size
            sequence += 1
        self.complete = order.complete()
        return pos

    def take(self, name, fields, order):
        if name == "HELLO_REPLY":
            self.session.take_reply(fields)
        elif name == "DISK_DATA" and not fields["bytes"]:
            order.state = "over"
        elif name == "PRECHECK" and fields["refusals"]:
            order.state = "refused"
        elif name == "ACK":
            if fields["sequence"] < self.acked:
                raise Refused("acknowledges %d after %d" % (fields["sequence"], self.acked))
            self.acked = fields["sequence"]
        elif name == "RESUME_REPLY":
            if fields["next_sequence"] < self.acked:
                raise Refused("next_sequence is %d, and %d was acknowledged" % (fields["next_sequence"], self.acked))
            self.acked = fields["next_sequence"]
            self.resumed_at.append(fields["next_sequence"])
        elif name == "READY":
            self.session.ready = fields
        elif name == "RUNNING":
            self.running = True


def check_pair(source, target, session):
    """What the two directions of a channel say about each other."""
    resumed = [n for n in source.resumed_at if n is not None]
    if not set(resumed) <= set(target.resumed_at):
        raise Refused("the source went on at records %s, and RESUME_REPLY named %s" % (resumed, target.resumed_at))
    if target.running and not session.committed:
        raise Refused("RUNNING without COMMIT")
    if target.acked > source.sequence:
        raise Refused("record %d was acknowledged, and %d were sent" % (target.acked - 1, source.sequence))


def is_target_stream(data):
    """Whether what follows the first stream header comes from a target."""
    first = int.from_bytes(bytes(data[HEADER_SIZE:HEADER_SIZE + 4]), "little")
    return len(data) >= HEADER_SIZE + RECORD_HEADER_SIZE and TYPES.get(first) in (
        "HELLO_REPLY", "RESUME_REPLY", "ACK", "STATUS", "CHECK_REPLY", "DISK_DATA")


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def run_named(path, stream, action="run"):
    try:
        return getattr(stream, action)()
    except Refused as why:
        raise type(why)("%s: %s" % (path, why)) from None


def open_stream(path, kind, session):
    try:
        return kind(read_bytes(path), session)
    except Refused as why:
        raise type(why)("%s: %s" % (path, why)) from None


def check_file(path, parents, watch=None):
    """An image or checkpoint file, or one direction of a connection of its own: the finished Session."""
    session = Session(parents, watch=watch)
    try:
        data = read_bytes(path)
        if is_target_stream(data):
            answer = TargetStream(data, session)
            answer.run()
            if not answer.complete:
                raise Incomplete("the stream ends before its last record")
            return session
        stream = SourceStream(data, session)
        if stream.header.channels > 1 and stream.channel:
            raise Refused("channel %d of a session: give all its channels with --channels" % stream.channel)
        stream.run()
        if stream.order.state != "over" or session.hello:
            session.finish()
    except Refused as why:
        raise type(why)("%s: %s" % (path, why)) from None
    return session


def check_session(sources, targets, incomplete=False, watch=None):
    """The channels of one session; `targets` may be empty. The finished Session."""
    session = Session(incomplete=incomplete, watch=watch)
    streams = [(path, open_stream(path, SourceStream, session)) for path in sources]
    streams.sort(key=lambda s: s[1].channel)
    for (_, one), (path, two) in zip(streams, streams[1:]):
        if one.channel == two.channel:
            raise Refused("%s: channel %d comes twice" % (path, two.channel))
    answers = {}
    for path in targets:
        stream = open_stream(path, TargetStream, session)
        answers[stream.channel] = (path, stream)
        run_named(path, stream)
    for path, stream in streams:
        run_named(path, stream)
    for path, stream in streams:
        if stream.channel in answers:
            try:
                check_pair(stream, answers[stream.channel][1], session)
            except Refused as why:
                raise Refused("%s: %s" % (answers[stream.channel][0], why)) from None
    try:
        session.finish()
    except Refused as why:
        raise Refused("%s: %s" % (os.path.dirname(sources[0]) or ".", why)) from None
    return session
