# SPDX-License-Identifier: MIT
"""Hosts of the lab on the hypervisor of this tree, one to a lab, and what the tests of whole machines do in them."""

import os
import pathlib
import re
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))

from labkit import use  # noqa: E402
from rig import ROOT, expect, wait_until  # noqa: E402

LAB = str(ROOT / "tests" / "lab" / "lab")
# Generous: the machine may do other things.
SLOW = 900.0
# What the hypervisor says when it has come to the end.
END = re.compile(r"Pagurus cannot go on|in the hypervisor|double fault|machine check")
# The real time clock counts seconds; a command on a busy machine takes some of them, which are added.
CLOCK_SECONDS = 3.0
PORT = 7000
# Sends back what comes, until the other side has sent everything.
ECHO = f"""
import socket
server = socket.create_server(("", {PORT}))
print("listening", flush=True)
while True:
    link, _ = server.accept()
    with link:
        while data := link.recv(1 << 16):
            link.sendall(data)
"""


class Host:
    """Host a of a lab of its own; leaving it ends the lab."""

    def __init__(self, name, *options):
        self.name, self.options = f"{name}-{os.getpid()}", options

    def run(self, line, status, what):
        r = subprocess.run(line, capture_output=True, text=True, check=False)
        expect(status is None or r.returncode == status, f"{what}: {r.stdout[-800:]} {r.stderr[-800:]}")
        return r.stdout

    def lab(self, *words, status=0):
        return self.run([LAB, "--name", self.name, *words], status, f"lab {' '.join(words)}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lab("down", "--fast", status=None)

    def up(self):
        """Boots it; what was saved of an earlier boot is not used."""
        self.lab("up", "--hosts", "1", "--hypervisor", "pagurus", "--no-guests", "--no-install", "--fresh", "--wait", str(SLOW), *self.options)

    def sh(self, command, status=0):
        return self.run(use.line(self.name, "a", command), status, command)

    def console(self):
        return pathlib.Path(f"/run/pagurus-lab/{self.name}/a/console.log").read_text(errors="replace")

    def is_off(self):
        return re.search(r"^a .*\boff\b", self.lab("status"), re.M)

    def echo_server(self):
        """On this side of the network that eth1 leads to."""
        server = subprocess.Popen(["ip", "netns", "exec", f"pagurus-{self.name}", sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
        expect(server.stdout.readline(), "the echo server does not start")
        return server

    # ---- what is looked at in every host ----

    def clock_is_right(self):
        before = time.time()
        there = float(self.sh("date +%s.%N"))
        after = time.time()
        expect(before - CLOCK_SECONDS <= there <= after + CLOCK_SECONDS, f"the clock there says {there:.1f}, here it is {before:.1f} to {after:.1f}")

    def disk_keeps_what_is_written(self, megabytes):
        self.sh(f"dd if=/dev/urandom of=/var/tmp/data bs=1M count={megabytes} status=none && sync && sha256sum /var/tmp/data > /var/tmp/sum"
                " && echo 3 > /proc/sys/vm/drop_caches && sha256sum -c --quiet /var/tmp/sum")

    def network_carries(self, megabytes):
        """There and back, with a checksum."""
        server = self.echo_server()
        try:
            self.sh(f"dd if=/dev/urandom of=/dev/shm/sent bs=1M count={megabytes} status=none; exec 3<>/dev/tcp/10.99.0.254/{PORT};"
                    f" cat /dev/shm/sent >&3 & head -c {megabytes << 20} <&3 | cmp - /dev/shm/sent && rm /dev/shm/sent")
        finally:
            server.kill()
            server.wait()

    def has_no_warning(self):
        self.lab("logs")
        expect(not END.search(self.console()), self.console()[-1500:])


def run(suite, name, test):
    """One line for the test; 1 when it failed."""
    began = time.monotonic()
    try:
        test()
    except Exception as error:  # a test that breaks is a test that fails
        print(f"FAIL {suite}: {name}: {' '.join(str(error).split()) or type(error).__name__}", flush=True)
        return 1
    print(f"PASS {suite}: {name} ({time.monotonic() - began:.0f} s)", flush=True)
    return 0


__all__ = ["END", "Host", "ROOT", "SLOW", "expect", "run", "wait_until"]
