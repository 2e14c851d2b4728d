# SPDX-License-Identifier: MIT
"""Guests on the hypervisor of this tree: what the tests of them ask of host a, and how they are run on one host.

After each test the hypervisor recounts who holds which frame; when no guest is there, what it has given away is compared with what that was at the beginning.
With HYPERVISOR=xen (tests that do not need ours) it is Debian's, which has no such counts.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))

import lab_guests  # noqa: E402
from lab_guests import CONFIG, CONSOLE, GUEST, HYPERVISOR, domains, lab, prepare, sh, until, verdicts  # noqa: E402
from rig import expect, wait_until  # noqa: E402
from vmm_hosts import END, ROOT, SLOW, run  # noqa: E402

HOST = ("--hosts", "1", "--hypervisor", HYPERVISOR, "--smp", "2", "--mem", "1536")
OURS = HYPERVISOR == "pagurus"
SAMPLES = 5


def detach(guest, vdev):
    """Of a disk. libxl gives a guest ten seconds for it, which in a busy emulated host may be too few; the next call does the rest."""
    devid = 51712 + 16 * (ord(vdev[-1]) - ord("a"))
    until(f"xl block-detach {guest} {vdev} || [ -z \"$(xl block-list {guest} | grep {devid})\" ]", f"{vdev} to be detached")


def dmesg():
    return sh("a", "xl dmesg").stdout


@dataclasses.dataclass
class Held:
    """What there is of the hypervisor's, as it counts: pages that are free for others, everybody's mappings of grants, timers that run."""
    free: int
    mappings: int
    timers: int

    def no_more_than(self, before):
        return self.free == before.free and self.mappings <= before.mappings and self.timers <= before.timers


def held(times=1, host="a"):
    """Now and some moments later."""
    text = sh(host, f"for i in $(seq {times}); do xl debug-keys gtm; done; xl dmesg").stdout
    # What a domain once needed to keep its mappings in, it keeps.
    return [Held(int(re.search(r"Memory: (\d+) of", part)[1]) + sum(map(int, re.findall(r"mappings of others' in (\d+) frames", part))),
                 sum(map(int, re.findall(r"(\d+) mappings of others", part))), int(re.search(r"(\d+) timers run", part)[1]))
            for part in text.split("Grants of domain 0")[-times:]]


def held_at_most(host="a"):
    """For comparing later: dom0's timers come and go."""
    samples = held(SAMPLES, host)
    return Held(samples[-1].free, *(max(getattr(s, what) for s in samples) for what in ("mappings", "timers")))


def nothing_left(before, host="a"):
    """Frames of the last guest may still be on their way back."""
    wait_until(lambda: held(1, host)[0].no_more_than(before), f"no more to be held than {before}", SLOW)


def build_vmm_log(to):
    """The program for dom0."""
    libraries = [f"{ROOT}/build/{name}" for name in ("libpagurus-xen.a", "libpagurus.a")]
    subprocess.run(["make", "-s", "-C", str(ROOT), *(f"build/{os.path.basename(name)}" for name in libraries)], check=True)
    subprocess.run([os.environ.get("CC", "gcc"), "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{ROOT}", "-o", str(to),
                    str(ROOT / "tests/lab/vmm_log.c"), *libraries, "-lxenforeignmemory", "-lxencall"], check=True)


def audit(host="a"):
    said = re.findall(r"audit: .*", sh(host, "xl debug-keys a; xl dmesg").stdout)
    expect(said and "all counted right" in said[-1], "\n".join(said[-8:]))


def gone(host="a"):
    until("[ $(xl list | wc -l) = 2 ]", "no guest to be there", host=host)


def end(host="a"):
    """Of all guests, and of what they said."""
    sh(host, "for id in $(xl list | awk 'NR > 2 { print $2 }'); do xl destroy $id; done; truncate -c -s 0 /var/log/xen/console/guest-*.log", None)
    gone(host)


def says(words, times=1, host="a"):
    """The guest."""
    until(f"[ $(grep -c '{words}' {CONSOLE}) -ge {times} ]", f"{GUEST} to say '{words}'", host=host)


def goes_on(host="a"):
    says("VERIFIER ok", verdicts(host) + 2, host)
    verdicts(host)


def begin(*options):
    """The only guest, with its verifier at work."""
    end()
    sh("a", " ".join((f"xl create -q {CONFIG}", *options)))
    goes_on()


def longer_initrd(more, host="a"):
    """The tiny guest's initramfs with a packed one of this machine behind it, in the host; its path there."""
    lab("put", host, str(more), "/root/more.cpio.gz")
    # Not packed: of two packed ones libxl unpacks the first.
    sh(host, f"zcat {CONFIG.rpartition('/')[0]}/tiny.cpio.gz /root/more.cpio.gz > /root/both.cpio && rm /root/more.cpio.gz")
    return "/root/both.cpio"


def console(guest, host="a"):
    return sh(host, f"cat /var/log/xen/console/guest-{guest}.log 2>/dev/null || true").stdout


def do(guest, commands, host="a"):
    """In the shell on the guest's console; what it says until they are done."""
    log = f"/var/log/xen/console/guest-{guest}.log"
    # The console daemon gives a restored guest its terminal when it comes to that.
    terminal = until(f"t=$(xenstore-read /local/domain/$(xl domid {guest})/console/tty 2>/dev/null) && [ -c \"$t\" ]", f"the terminal of {guest}", "echo $t", host).strip()
    # The shell shows what it was given as well, but not with the sum done.
    before = sh(host, f"stat -c %s {log}; echo '{commands}; echo did-$((40+2))' > {terminal}").stdout.strip()
    new = f"tail -c +$(({before} + 1)) {log}"
    return until(f"{new} | grep -q did-42", f"{guest}: {commands}", new, host)


def no_warning():
    lab_guests.test_z_no_warning_in_any_console()
    for log in pathlib.Path(f"/run/pagurus-lab/{lab_guests.NAME}").glob("?/console.log"):
        text = log.read_text(errors="replace")
        expect(not END.search(text) and "counts are WRONG" not in text, text[-1500:])


class Suite:
    """Tests on hosts of their own, mostly one, or on those of the lab LAB_NAME; those whose name has one of the command line's words."""

    def __init__(self, name, hosts="a", options=HOST):
        self.name, self.own, self.bad = name, "LAB_NAME" not in os.environ, 0
        self.hosts, self.options, self.before = hosts, options, None

    def wants(self, name):
        return not sys.argv[1:] or any(word in name for word in sys.argv[1:])

    def run(self, name, test):
        self.bad += run(self.name, name, test)

    def first_guest(self):
        """What dom0 needs for its first guest it keeps: a page of event channels."""
        end()
        sh("a", f"xl create -q {CONFIG}; xl destroy {GUEST}")
        gone()
        if OURS:
            self.before = held_at_most()

    def counted(self, test):
        test()
        no_warning()
        for host in self.hosts if OURS else "":
            audit(host)
            if not domains(host):
                self.nothing_left(host)

    def nothing_left(self, _):
        nothing_left(self.before)

    def each(self, tests):
        """Those that are wanted of all names and what is run for them, in this order."""
        for name, test in tests:
            if self.wants(name):
                self.run(name, lambda test=test: self.counted(test))

    def main(self, tests):
        """Runs what tests() runs; the exit status."""
        if self.own:
            lab_guests.NAME = f"{self.name}-{os.getpid()}"
        try:
            if self.own:
                self.run("comes up", lambda: lab("up", *self.options))
            if not self.bad:
                self.run("first guest", self.first_guest)
            if not self.bad:
                tests()
                self.run("no warning", no_warning)
        finally:
            if self.own:
                self.run("goes down", lambda: lab("down"))
        return 1 if self.bad else 0


def main(name, module, suite=None):
    """The tests of the module, by their names; the exit status."""
    suite = suite or Suite(name)
    tests = sorted((name.removeprefix("test_"), test) for name, test in module.items() if name.startswith("test_"))
    unknown = [word for word in sys.argv[1:] if not any(word in name for name, _ in tests)]
    if unknown:
        asked = {"-h", "--help"} & set(unknown)
        print(f"{module['__doc__']}\nIts tests: {', '.join(name for name, _ in tests)}" if asked else
              f"no test has '{unknown[0]}' in its name; --help names them", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return suite.main(lambda: suite.each(tests))


__all__ = ["CONFIG", "CONSOLE", "GUEST", "SLOW", "Suite", "audit", "begin", "build_vmm_log", "console", "dmesg", "do", "domains", "end", "expect", "goes_on", "gone",
           "held_at_most", "lab", "longer_initrd", "main", "nothing_left", "prepare", "says", "sh", "until", "verdicts"]
