# SPDX-License-Identifier: MIT
"""What a host boots from: hypervisor, dom0 kernel, initramfs and root, out of Debian's packages."""

import os
import subprocess

from labkit.cache import apt_versions, cached, digest, digest_tree
from labkit.errors import LabError, say
from labkit.place import LAB


def _make(folder):
    say("building the hosts' root, kernels and initramfs (about a minute, once)")
    done = subprocess.run([os.path.join(LAB, "root", "build"), folder], check=False)
    if done.returncode != 0:
        raise LabError(
            f"tests/lab/root/build failed with status {done.returncode} (its messages are above);"
            " run tools/setup lab, then try again")


def root_folder():
    """The folder in the cache with root.img, xen, vmlinux-V, initrd-V and ssh/."""
    return cached("root", digest(digest_tree(os.path.join(LAB, "root")), apt_versions("xen-hypervisor-4.17-amd64", "linux-image-amd64", "systemd", "openssh-server")), _make)
