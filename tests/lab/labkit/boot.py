# SPDX-License-Identifier: MIT
"""Waiting for a host to be usable, and what is done in it once it is."""

import re
import time

from labkit import qemu, ssh
from labkit.errors import LabError, say

READY = re.compile(rb"lab: host \S+ is ready")
FATAL = re.compile(rb"lab: initramfs: .*|Kernel panic[^\r\n]*|\(XEN\) Panic on CPU[^\r\n]*|\(XEN\) Xen BUG[^\r\n]*")
SAY_EVERY = 10

# A host that was saved after its boot has an old clock. The guests' disk is mounted now and not at
# boot: its contents may be newer than the boot.
SET_CLOCK = "date -s @{now:.3f} >/dev/null; "
PREPARE = "mountpoint -q /var/lib/pagurus/guests || mount -o noatime LABEL=guests /var/lib/pagurus/guests"


def log_size(place, host):
    """Where the console log of the coming boot will begin."""
    try:
        with open(place.host(host, "console.log"), "rb") as file:
            return file.seek(0, 2)
    except FileNotFoundError:
        return 0


def wait(place, host, since, seconds):
    """Returns when the host has said on its console (from offset since) that it is ready."""
    path = place.host(host, "console.log")
    deadline = time.monotonic() + seconds
    told = time.monotonic()
    while True:
        with open(path, "rb") as file:
            file.seek(since)
            text = file.read()
        if READY.search(text):
            return
        last = text.rstrip().rsplit(b"\n", 1)[-1].decode("utf-8", "replace").strip()
        bad = FATAL.search(text)
        if bad:
            raise LabError(f"host {host} cannot boot: {bad.group(0).decode('utf-8', 'replace')} (console: {path})")
        if qemu.pid(place, host) is None:
            raise LabError(f"QEMU of host {host} ended during boot; the last line on its console: '{last}' ({path})")
        if time.monotonic() > deadline:
            raise LabError(f"host {host} was not ready after {seconds:.0f} s; the last line on its console: '{last}'"
                           f" ({path}). When the machine is busy, use --wait with more seconds")
        if time.monotonic() - told > SAY_EVERY:
            told = time.monotonic()
            say(f"host {host} is booting: {last[:90]}")
        time.sleep(0.05)


def finish(place, host, root, seconds, saved=False):
    """Connects to a host that is ready and prepares it for use; saved: its boot was some time ago."""
    ssh.open_master(place, host, root, seconds)
    done = ssh.run(place, host, root, (SET_CLOCK.format(now=time.time()) if saved else "") + PREPARE, seconds, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"host {host} cannot be prepared: {done.stderr.strip()}")
