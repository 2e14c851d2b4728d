# SPDX-License-Identifier: MIT
"""What the state of a PV64 guest says about its memory (stream.md 6.5, 7): checked when all of both is known."""

import struct

from . import Refused

PRESENT = 1
LARGE = 1 << 7
FRAME_SHIFT = 12
FRAME_MASK = (1 << 40) - 1
HYPERVISOR_SLOTS = range(256, 272)
ENTRIES = struct.Struct("<512Q")


def check_ordinary(memory, pfn, what):
    if memory.type.get(pfn) != 0:
        reason = "is a page table" if pfn in memory.type else "holds no memory"
        raise Refused("%s: pfn 0x%x %s" % (what, pfn, reason))


def check_table(memory, pfn, level, nr_pfns):
    for slot, entry in enumerate(ENTRIES.unpack(memory.page[pfn])):
        if not entry:
            continue
        where = "page table pfn 0x%x level %d entry %d: " % (pfn, level, slot)
        if level == 4 and slot in HYPERVISOR_SLOTS:
            raise Refused(where + "belongs to the hypervisor and is not zero")
        if not entry & PRESENT:
            continue
        frame = entry >> FRAME_SHIFT & FRAME_MASK
        if frame >= nr_pfns:
            raise Refused(where + "pfn 0x%x is not below nr_pfns 0x%x" % (frame, nr_pfns))
        if frame not in memory.page:
            raise Refused(where + "pfn 0x%x holds no memory" % frame)
        if level > 1:
            if entry & LARGE:
                raise Refused(where + "maps a large page")
            if memory.type[frame] & 7 not in (level - 1, level):
                raise Refused(where + "pfn 0x%x is not a table of level %d" % (frame, level - 1))


def check_tables(memory, nr_pfns):
    for pfn, kind in memory.type.items():
        if kind & 7:
            check_table(memory, pfn, kind & 7, nr_pfns)


class PvState:
    """The state records of one guest, one after the other; finish() when the memory is complete."""

    def __init__(self, hello):
        self.nr_pfns = hello["nr_pfns"]
        self.vcpus = hello["vcpus"]
        self.p2m = []
        self.contexts = []
        self.info = None
        self.p2m_cr3 = 0

    def take(self, name, fields):
        if name == "PV_INFO":
            if fields["nr_pfns"] != self.nr_pfns:
                raise Refused("nr_pfns 0x%x, and HELLO has 0x%x" % (fields["nr_pfns"], self.nr_pfns))
            self.info = fields
        elif name == "PV_P2M_FRAMES":
            if fields["first"] != len(self.p2m):
                raise Refused("first is %d instead of %d" % (fields["first"], len(self.p2m)))
            self.p2m += fields["pfns"]
            if len(self.p2m) > self.p2m_pages():
                raise Refused("more P2M pages than the %d that cover nr_pfns" % self.p2m_pages())
        elif name == "PV_SHARED_INFO":
            self.p2m_cr3 = fields["p2m_cr3_pfn"]
        elif name.startswith("VCPU_"):
            self.take_vcpu(name, fields)

    def p2m_pages(self):
        return (self.nr_pfns + 511) // 512

    def take_vcpu(self, name, fields):
        number = fields["vcpu"]
        if name != "VCPU_CONTEXT":
            if number != self.contexts[-1]["vcpu"]:
                raise Refused("vcpu %d after VCPU_CONTEXT of vcpu %d" % (number, self.contexts[-1]["vcpu"]))
            return
        if number >= self.vcpus:
            raise Refused("vcpu %d, and HELLO has %d" % (number, self.vcpus))
        if not self.contexts and number:
            raise Refused("the first vcpu is %d instead of 0" % number)
        if self.contexts and number <= self.contexts[-1]["vcpu"]:
            raise Refused("vcpu %d after vcpu %d" % (number, self.contexts[-1]["vcpu"]))
        if not number and fields["rdx"] != self.info["start_info_pfn"]:
            raise Refused("rdx is 0x%x and start_info_pfn 0x%x" % (fields["rdx"], self.info["start_info_pfn"]))
        self.contexts.append(fields)

    def finish(self, memory):
        if len(self.p2m) != self.p2m_pages():
            raise Refused("PV_P2M_FRAMES: %d P2M pages, and %d cover nr_pfns" % (len(self.p2m), self.p2m_pages()))
        for k, pfn in enumerate(self.p2m):
            check_ordinary(memory, pfn, "PV_P2M_FRAMES: P2M page %d" % k)
        check_ordinary(memory, self.info["start_info_pfn"], "PV_INFO: start_info")
        for context in self.contexts:
            what = "VCPU_CONTEXT of vcpu %d: " % context["vcpu"]
            for pfn in context["gdt_frames"]:
                check_ordinary(memory, pfn, what + "GDT")
            self.check_top(memory, context["cr3_pfn"], what + "CR3")
            if context["user_cr3_pfn"]:
                self.check_top(memory, context["user_cr3_pfn"], what + "user CR3")
        if self.p2m_cr3:
            self.check_top(memory, self.p2m_cr3, "PV_SHARED_INFO: p2m_cr3")
        check_tables(memory, self.nr_pfns)

    @staticmethod
    def check_top(memory, pfn, what):
        if memory.type.get(pfn, 0) & 7 != 4:
            raise Refused("%s: pfn 0x%x is not a page table of level 4" % (what, pfn))
