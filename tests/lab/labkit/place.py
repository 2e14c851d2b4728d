# SPDX-License-Identifier: MIT
"""Where things are: the repository, the cache, the state and the disks of a lab."""

import os
import re
import zlib

from labkit.errors import LabError

LAB = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REPO = os.path.dirname(os.path.dirname(LAB))

CACHE = os.path.join(os.environ.get("PAGURUS_CACHE") or "/var/cache/pagurus", "lab")

HOST_NAMES = "abcdefgh"
# What a host's disks and network cards can be, and the drivers that its initramfs loads for them.
DISK_DRIVERS = {"virtio": ("virtio_pci", "virtio_blk"), "ide": ("ata_piix", "sd_mod"), "ahci": ("ahci", "sd_mod"), "nvme": ("nvme",)}
NIC_DRIVERS = {"virtio": ("virtio_pci", "virtio_net"), "e1000": ("e1000",), "e1000e": ("e1000e",)}
KERNELS = ("6.1", "6.12")  # of dom0; root/build makes them
MAX_SOCKET_PATH = 90  # sun_path holds 108 bytes and ssh adds 17 while it makes its socket


class Place:
    """Paths and names that belong to the lab called name; nothing here touches the disk."""

    def __init__(self, name):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name):
            raise LabError(f"'{name}' cannot be the name of a lab: use up to 32 small letters, digits and -", 2)
        own = os.environ.get("PAGURUS_LAB_DIR")
        self.name = name
        self.state = os.path.join(own or "/run/pagurus-lab", name)
        self.disks = os.path.join(own or "/var/tmp/pagurus-lab", name)
        if own:
            self.disks = os.path.join(self.disks, "disks")
        self.file = os.path.join(self.state, "lab.json")
        # Two labs of the same name in different folders must not share a network.
        suffix = f"-{zlib.crc32(own.encode()):08x}" if own else ""
        self.netns = f"pagurus-{name}{suffix}"
        longest = len(self.host("a", "console.sock"))
        if longest > MAX_SOCKET_PATH:
            raise LabError(
                f"{self.state} is too long a path for Unix sockets ({longest} bytes of {MAX_SOCKET_PATH}):"
                " set PAGURUS_LAB_DIR to a shorter one", 2)

    def host(self, host, item=""):
        """Path of a file that belongs to one host."""
        return os.path.join(self.state, host, item) if item else os.path.join(self.state, host)

    def disk(self, host, item):
        """Path of a disk image that belongs to one host."""
        return os.path.join(self.disks, f"{host}-{item}")
