# SPDX-License-Identifier: MIT
"""The disk that brings guest kernels and images into a host, made from what guest-linux/ builds."""

import os
import shutil
import subprocess

from labkit.cache import apt_versions, cached, digest, digest_tree
from labkit.errors import LabError, say
from labkit.place import REPO

SIZE_GB = 4
SOURCE = os.path.join(REPO, "guest-linux")
BUILD = os.path.join(SOURCE, "build")


def _pack(content, image):
    with open(image, "wb") as file:
        file.truncate(SIZE_GB << 30)
    done = subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "guests", "-m", "0", "-E",
         "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-d", content, image], check=False)
    if done.returncode != 0:
        raise LabError(f"mke2fs could not make a {SIZE_GB} GB disk from {content}: see its message above")


def _make(folder):
    content = os.path.join(folder, "content")
    os.mkdir(content)
    say("building the guest images (guest-linux/build)")
    done = subprocess.run([BUILD, content], stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise LabError(
            f"guest-linux/build failed with status {done.returncode} (its messages are above);"
            " mend it, or use lab up --no-guests")
    _pack(content, os.path.join(folder, "guests.img"))
    shutil.rmtree(content)


def _make_empty(folder):
    os.mkdir(os.path.join(folder, "content"))
    _pack(os.path.join(folder, "content"), os.path.join(folder, "guests.img"))


def guests_disk(wanted=True):
    """Path of the guests' disk image in the cache; an empty one when there is nothing to put in."""
    if wanted and os.access(BUILD, os.X_OK):
        key = digest(SIZE_GB, digest_tree(SOURCE), apt_versions("linux-image-amd64", "linux-image-cloud-amd64"))
        folder = cached("guests", key, _make)
    else:
        if wanted:
            say("guest-linux/build is not there: hosts get no guest images")
        folder = cached("guests", digest(SIZE_GB, "empty"), _make_empty)
    return os.path.join(folder, "guests.img")
