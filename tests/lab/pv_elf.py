# SPDX-License-Identifier: MIT
"""Makes the smallest kernels for the control domain, right ones and wrong ones, byte by byte (ELF: System V ABI; notes: xen/elfnote.h)."""

import struct

ENTRY, HYPERCALL_PAGE, VIRT_BASE, PADDR_OFFSET, INIT_P2M = 1, 2, 3, 4, 15
BASE = 0xFFFFFFFF80000000
CODE_AT = 0x1000
UD2, FOR_EVER = b"\x0f\x0b", b"\xeb\xfe"


def note(number, value):
    return struct.pack("<III4sQ", 4, 8, number, b"Xen\0", value)


def kernel(code=FOR_EVER, notes=None, machine=62, bits=2, paddr=0, memory=0x2000, file_bytes=None, header_bytes=56):
    """An ELF file that is loaded at paddr and begins with code; notes: a dictionary that changes or (None) takes away the usual ones."""
    wanted = {ENTRY: BASE, VIRT_BASE: BASE, PADDR_OFFSET: 0, **(notes or {})}
    body = b"".join(note(number, value) for number, value in wanted.items() if value is not None)
    notes_at = 64 + 2 * 56
    head = struct.pack("<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", bits, 1, 1, 0, 2, machine, 1, BASE, 64, 0, 0, 64, header_bytes, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, CODE_AT, BASE, paddr, len(code) if file_bytes is None else file_bytes, memory, 4096)
    about = struct.pack("<IIQQQQQQ", 4, 4, notes_at, 0, 0, len(body), len(body), 4)
    return (head + load + about + body).ljust(CODE_AT, b"\0") + code
