# SPDX-License-Identifier: MIT
"""Puts what `make install` installs into the hosts."""

import os
import shutil
import subprocess
import tempfile

from labkit import ssh
from labkit.cache import cached, digest
from labkit.errors import LabError, say
from labkit.place import REPO

# Started at boot from now on, and now; a daemon that lacks its keys may refuse to start, which is
# for the user of the host to see and not a failure of the lab.
AFTER = """tar -C / -xf - --no-same-owner &&
if [ -e /lib/systemd/system/pagurus.service ] || [ -e /usr/lib/systemd/system/pagurus.service ] ||
   [ -e /etc/systemd/system/pagurus.service ] || [ -e /usr/local/lib/systemd/system/pagurus.service ]; then
	systemctl daemon-reload && systemctl -q enable pagurus.service &&
	systemctl --no-block restart pagurus.service
fi"""


def hypervisor_image():
    """The hypervisor as it was built last, under a name that stands for its contents: hosts that were saved belong to one image."""
    built = os.path.join(REPO, "build", "vmm", "pagurus")
    try:
        with open(built, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise LabError(f"{built} is not built yet: make vmm", 2) from None
    place = cached("vmm", digest(content), lambda folder: shutil.copy(built, os.path.join(folder, "pagurus")))
    return os.path.join(place, "pagurus")


def _has_install():
    if not os.path.isdir(os.path.join(REPO, "build")) or not os.path.exists(os.path.join(REPO, "Makefile")):
        return False
    return subprocess.run(["make", "-C", REPO, "-n", "-s", "install", "DESTDIR=/nonexistent"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def push(place, hosts, root, seconds=120):
    """Installs the built tree into each host; says so and does nothing when there is none."""
    if not _has_install():
        say("nothing is built (no build/ or no make install): the hosts have no pagurus command yet")
        return
    with tempfile.TemporaryDirectory(prefix="pagurus-lab-") as stage:
        done = subprocess.run(["make", "-C", REPO, "-s", "install", f"DESTDIR={stage}"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"make install DESTDIR={stage} failed: {done.stderr.strip()[-600:]}")
        archive = os.path.join(stage, "..", os.path.basename(stage) + ".tar")
        try:
            subprocess.run(["tar", "-C", stage, "--owner=0", "--group=0", "-cf", archive, "."], check=True)
            for host in hosts:
                with open(archive, "rb") as file:
                    done = ssh.run(place, host, root, AFTER, seconds, stdin=file, capture_output=True)
                if done.returncode != 0:
                    raise LabError(f"could not install into host {host}: {done.stderr.decode('utf-8', 'replace').strip()}")
        finally:
            if os.path.exists(archive):
                os.unlink(archive)
    say(f"make install put into {', '.join(hosts)}")
