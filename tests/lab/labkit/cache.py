# SPDX-License-Identifier: MIT
"""Things that take long to make, kept outside the tree under a hash of what they are made from."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time

from labkit.errors import say
from labkit.place import CACHE

UNUSED_DAYS = 14


def digest(*parts):
    """Short hash of texts and bytes, to name what is made from them."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def digest_tree(folder):
    """Hash of the names, modes and contents of all files below folder."""
    parts = []
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(where, name)
            parts.append(os.path.relpath(path, folder))
            parts.append(oct(os.lstat(path).st_mode))
            if os.path.islink(path):
                parts.append(os.readlink(path))
            else:
                with open(path, "rb") as file:
                    parts.append(file.read())
    return digest(*parts)


def apt_versions(*packages):
    """The versions of packages that apt knows: a new one is a reason to make again what contains them."""
    done = subprocess.run(["apt-cache", "policy", *packages], stdout=subprocess.PIPE, check=True, text=True,
                          env={**os.environ, "LC_ALL": "C"})
    # A package's name, its candidate, and the lines of its version table.
    return "\n".join(line for line in done.stdout.splitlines() if re.match(r"\S|  Candidate:|     \S", line))


@contextlib.contextmanager
def locked(path, waiting_for):
    """Holds an exclusive lock on path; says so when somebody else has it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is making {waiting_for}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget(kind):
    """Removes what was made of this kind and not used for UNUSED_DAYS."""
    for entry in os.listdir(CACHE):
        path = os.path.join(CACHE, entry)
        if entry.startswith(f"{kind}-") and time.time() - os.stat(path).st_mtime > UNUSED_DAYS * 86400:
            shutil.rmtree(path, ignore_errors=True)


def cached(kind, key, make):
    """
    Returns the folder kind-key of the cache, calling make(empty folder) when it is not there.

    Processes that want the same thing wait for the one that makes it. What fails half way is
    removed: a folder in the cache under its own name is complete.
    """
    final = os.path.join(CACHE, f"{kind}-{key}")
    if os.path.isdir(final):
        os.utime(final)
        return final
    with locked(os.path.join(CACHE, f"{kind}.lock"), kind):
        if os.path.isdir(final):
            return final
        partial = f"{final}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        try:
            make(partial)
            os.rename(partial, final)
            _forget(kind)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return final
