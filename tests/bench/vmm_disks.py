# SPDX-License-Identifier: MIT
"""A guest's disk by requests: who serves it, the rows of vmm_run for that, and their table."""

KERNEL, QEMU, OURS = "blkback", "qemu", "pagurus"
RAW, QCOW2 = "raw", "qcow2"
# In the order in which vmm_guest/host makes guests with them; the kernel's has raw disks only.
KINDS = {
    f"{KERNEL}-{RAW}": "blkback, raw",
    f"{QEMU}-{RAW}": "qdisk, raw",
    f"{OURS}-{RAW}": "pagurus-blk, raw",
    f"{QEMU}-{QCOW2}": "qdisk, qcow2",
    f"{OURS}-{QCOW2}": "pagurus-blk, qcow2",
}
# Rows of vmm_guest/init.c.
LOADS = {
    "read-4k": "4 KiB read anywhere",
    "write-4k": "4 KiB written anywhere",
    "read-4k-32": "4 KiB read anywhere, 32 at a time",
    "write-4k-32": "4 KiB written anywhere, 32 at a time",
    "read-64k": "64 KiB read one behind the other",
    "write-64k": "64 KiB written one behind the other",
}
ROWS = {f"{kind}:{load}": f"{kind_title}: {load_title}" for kind, kind_title in KINDS.items() for load, load_title in LOADS.items()}


def words(rows):
    """Those of our rows as vmm_guest/host takes them, KIND:LOAD+LOAD: a hypervisor gives a kernel 1,024 letters."""
    loads = {}
    for kind, _, load in (row.partition(":") for row in rows if row in ROWS):
        loads.setdefault(kind, []).append(load)
    return [f"{kind}:{'+'.join(names)}" for kind, names in loads.items()]


def goals(value):
    """(row, met, text) for each row of ours: no more than QEMU takes for the same. value(row): instructions for a request, None: not measured."""
    found = []
    for image in RAW, QCOW2:
        for load in LOADS:
            row = f"{OURS}-{image}:{load}"
            ours, theirs = value(row), value(f"{QEMU}-{image}:{load}")
            if ours and theirs:
                found.append((row, ours <= theirs, f"{ours / theirs:.3f} of qdisk's, goal 1.0"))
    return found


def print_table(rows, value, number):
    """One line for each load, one column for each who serves it."""
    kinds = [kind for kind in KINDS if any(row.startswith(f"{kind}:") for row in rows)]
    print("| for one request | " + " | ".join(KINDS[kind] for kind in kinds) + " |")
    print("| --- |" + " ---: |" * len(kinds))
    for load, title in LOADS.items():
        if any(row.endswith(f":{load}") for row in rows):
            print(f"| {title} | " + " | ".join(number(value(f"{kind}:{load}")) for kind in kinds) + " |")
