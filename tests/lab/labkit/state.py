# SPDX-License-Identifier: MIT
"""What lab up decided, for the verbs that come after it."""

import contextlib
import json
import os
import shutil

from labkit import network, qemu, ssh
from labkit.cache import locked
from labkit.errors import LabError
from labkit.place import HOST_NAMES

KEPT = ("console.log", "qemu.log")


def store(place, options):
    """Writes the options of the lab; the file's existence means that there is something to take down."""
    os.makedirs(place.state, mode=0o700, exist_ok=True)
    with open(place.file + ".new", "w", encoding="utf-8") as file:
        json.dump(options, file, indent=1)
    os.rename(place.file + ".new", place.file)


def load(place):
    """The options of the lab; an error when it is not up."""
    try:
        with open(place.file, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise LabError(f"there is no lab '{place.name}': 'lab --name {place.name} up' makes one") from None


def is_up(place):
    """True when the lab is up, or half up."""
    return os.path.exists(place.file)


def check_host(options, host):
    """An error when the lab has no such host."""
    if host not in options["hosts"]:
        raise LabError(f"this lab has no host '{host}': it has {', '.join(options['hosts'])}", 2)


@contextlib.contextmanager
def exclusive(place):
    """Held by verbs that start or end hosts, so that two of them do not mix."""
    with locked(os.path.join(os.path.dirname(place.state), f".{place.name}.lock"), f"changes to the lab {place.name}"):
        yield


def clear_logs(place):
    """Forgets the logs of the lab that was here before."""
    for host in HOST_NAMES:
        shutil.rmtree(place.host(host), ignore_errors=True)


def remove(place, root):
    """
    Ends all hosts and removes everything but the logs; works on a lab that is half up as well.
    root is the folder with the keys, or None when it is not known yet.
    """
    for host in HOST_NAMES if root else ():
        ssh.close_master(place, host, root)
    qemu.kill_all(place, HOST_NAMES)
    network.destroy(place.netns)
    shutil.rmtree(place.disks, ignore_errors=True)
    for host in HOST_NAMES:
        folder = place.host(host)
        for item in os.listdir(folder) if os.path.isdir(folder) else ():
            if item not in KEPT and not item.startswith("guest-"):
                # A master connection that ends removes its socket itself.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, item))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.file)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(place.disks))
