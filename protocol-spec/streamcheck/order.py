# SPDX-License-Identifier: MIT
"""Which record may come when (stream.md 4), as tables: state -> record -> next state."""

from . import Refused
from .framing import FILE_KINDS

ANYWHERE = ("KEEPALIVE", "NOTE")
# A record of unknown type that may be skipped.
SKIPPED = "optional"

STATE_FOLLOWS = {"PV_INFO": "pv-info", "SIM_STATE": "state-done"}
AFTER_VCPU = {"VCPU_CONTEXT": "context", "PV_SHARED_INFO": "shared"}

SOURCE_FIRST = {
    "start": {"HELLO": "hello", "QUERY": "over", "CHECK": "over", "DISK_ATTACH": "disk-bytes"},
    "hello": {"IDENTITY": "identity"},
    "identity": {"CPU_POLICY": "policy", "CONFIG": "config"},
    "policy": {"CONFIG": "config"},
    "config": {"PARENT": "parent", "OPEN": "live", "DISK": "disk"},
    "disk": {"DISK": "disk", "OPEN": "live"},
    "disk-bytes": {"DISK_DATA": "disk-bytes"},
    "parent": {"OPEN": "live"},
    "live": {"PAGES": "live-round", "ROUND_END": "live", "STOP": "stopped"},
    "live-round": {"PAGES": "live-round", "ROUND_END": "live"},
    "stopped": dict(STATE_FOLLOWS, PAGES="stopped-round", ROUND_END="stopped", VERIFY="verify"),
    "stopped-round": {"PAGES": "stopped-round", "ROUND_END": "stopped"},
    "verify": {"PAGES": "verify", "ROUND_END": "verified"},
    "verified": STATE_FOLLOWS,
    "pv-info": {"PV_P2M_FRAMES": "p2m"},
    "p2m": {"PV_P2M_FRAMES": "p2m", "TSC_INFO": "tsc", "VCPU_CONTEXT": "context"},
    "tsc": {"VCPU_CONTEXT": "context"},
    "context": dict(AFTER_VCPU, VCPU_EXTENDED="extended", VCPU_XSAVE="xsave", VCPU_MSRS="msrs"),
    "extended": dict(AFTER_VCPU, VCPU_XSAVE="xsave", VCPU_MSRS="msrs"),
    "xsave": dict(AFTER_VCPU, VCPU_MSRS="msrs"),
    "msrs": AFTER_VCPU,
    "shared": {"DEVICE_STATE": "shared", "DIGEST": "digest"},
    "state-done": {"DIGEST": "digest"},
    "digest": {"INDEX": "index", "END": "end"},
    "index": {"INDEX": "index", "END": "end"},
    "end": {"COMMIT": "over"},
    "over": {},
}

SOURCE_FURTHER = {
    "start": {"PAGES": "round", "ROUND_END": "start", "VERIFY": "verify", "END": "over"},
    "round": {"PAGES": "round", "ROUND_END": "start"},
    "verify": {"PAGES": "verify", "ROUND_END": "verified"},
    "verified": {"END": "over"},
    "over": {},
}

TARGET_FIRST = {
    "start": {"HELLO_REPLY": "reply", "RESUME_REPLY": "resumed", "STATUS": "over", "CHECK_REPLY": "over",
              "DISK_DATA": "disk-bytes"},
    "disk-bytes": {"DISK_DATA": "disk-bytes"},
    "reply": {"PRECHECK": "checked"},
    "refused": {},
    "checked": {"ACK": "checked", "READY": "ready"},
    "ready": {"ACK": "ready", "RUNNING": "running"},
    "resumed": {"ACK": "resumed", "READY": "ready", "RUNNING": "running"},
    "running": {"CONNECTED": "over"},
    "over": {},
}

TARGET_FURTHER = {
    "start": {"RESUME_REPLY": "joined", "ACK": "joined"},
    "joined": {"ACK": "joined"},
}


class Order:
    """One channel in one direction of one connection (source: of all its connections)."""

    def __init__(self, side, kind, channel):
        first, further = (SOURCE_FIRST, SOURCE_FURTHER) if side == "source" else (TARGET_FIRST, TARGET_FURTHER)
        self.table = further if channel else first
        self.kind = kind
        self.state = "start"
        self.aborted = False

    def allowed(self):
        for name, state in self.table[self.state].items():
            if name == "COMMIT" and self.kind != "MIGRATE":
                continue
            if name == "INDEX" and self.kind not in FILE_KINDS:
                continue
            if name == "PARENT" and self.kind not in ("CHECKPOINT", "REPLICATE"):
                continue
            if self.state == "config" and name == "OPEN" and self.kind == "CHECKPOINT":
                continue
            yield name, state

    def next(self, name):
        if self.aborted:
            raise Refused("comes after ABORT")
        if name == "ABORT":
            self.aborted = True
        elif name not in ANYWHERE and name != SKIPPED:
            allowed = dict(self.allowed())
            if name not in allowed:
                expected = " or ".join(allowed) or "nothing"
                raise Refused("has no place here (after %s): expected %s" % (self.state, expected))
            self.state = allowed[name]
        elif self.kind in FILE_KINDS and self.state == "end":
            raise Refused("comes after END of a file")

    def complete(self):
        return self.aborted or self.state in ("end", "over", "refused", "running")
