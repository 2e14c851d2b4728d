# SPDX-License-Identifier: MIT
"""The disk that brings guest kernels and images into a host, made from what guest-linux/ builds."""

import os
import shutil
import subprocess

from labkit.cache import cached, digest
from labkit.errors import LabError, say
from labkit.place import CACHE, REPO

SIZE = "4G"
BUILD = os.path.join(REPO, "guest-linux", "build")


def _inventory(folder):
    """Names, sizes and times of what the guest builder left: another of these, another disk."""
    entries = []
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            info = os.stat(os.path.join(where, name))
            entries.append(f"{os.path.join(where, name)} {info.st_size} {info.st_mtime_ns}")
    return "\n".join(entries)


def _make_disk(source):
    def make(folder):
        say("packing the guest images into a disk")
        image = os.path.join(folder, "guests.img")
        with open(image, "wb") as file:
            file.truncate(int(SIZE[:-1]) << 30)
        done = subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "guests", "-m", "0", "-E",
             "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-d", source, image], check=False)
        if done.returncode != 0:
            raise LabError(f"mke2fs could not make a {SIZE} disk from {source}: see its message above")
    return make


def guests_disk(wanted=True):
    """Path of the guests' disk image in the cache; an empty one when there is nothing to put in."""
    folder = os.path.join(CACHE, "guests")
    if wanted and os.access(BUILD, os.X_OK):
        os.makedirs(folder, exist_ok=True)
        done = subprocess.run([BUILD, folder], stdout=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise LabError(
                f"guest-linux/build failed with status {done.returncode} (its messages are above);"
                " mend it, or use lab up --no-guests")
    else:
        if wanted:
            say("guest-linux/build is not there: hosts get no guest images")
        folder = os.path.join(CACHE, "no-guests")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder, exist_ok=True)
    return os.path.join(cached("guests-disk", digest(SIZE, _inventory(folder)), _make_disk(folder)),
                        "guests.img")
