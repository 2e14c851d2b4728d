#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The pagurus command on real guests: two hosts in the lab, with the hypervisor of this tree or with HYPERVISOR=xen Debian's Xen, and a stock Debian guest
with its verifier.

lab_guests.py [WORD...] runs the tests whose name has one of the words, in the lab LAB_NAME (default: one of its own, which it brings
up and ends); SOAK=1: with all that takes long. The tests share the lab; each leaves the guest running on host a with its verifier content. tests/lab/test_faults runs them among others.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True

from rig import ROOT, VERIFIER, expect, run_module, wait_until  # noqa: E402

sys.path.insert(0, str(ROOT / "tests" / "lab"))
from labkit import use  # noqa: E402

LAB = str(ROOT / "tests" / "lab" / "lab")
NAME = os.environ.get("LAB_NAME") or f"tools-{os.getpid()}"
GUEST = "tiny"
CONFIG = "/var/lib/pagurus/guests/tiny.cfg"
CONSOLE = f"/var/log/xen/console/guest-{GUEST}.log"
SLOW = 600.0
LATE = 99
HYPERVISOR = os.environ.get("HYPERVISOR", "pagurus")
# Its verifier writes more than the rig's network carries: as short a stop as that allows.
ANY_STOP = ("--downtime", "0")
# Each mark of a session is tried on simulated guests (test_crash.py); here those at which most hangs on what the hypervisor has done, or with SOAK all.
ALL_MARKS = "SOAK" in os.environ


def lab(*words):
    r = subprocess.run([LAB, "--name", NAME, *words], capture_output=True, text=True)
    expect(r.returncode == 0, f"lab {' '.join(words)}: {r.stderr[-800:]}")
    return r.stdout


def sh(host, command, status=0):
    r = subprocess.run(use.line(NAME, host, command), capture_output=True, text=True, timeout=2 * SLOW)
    expect(status is None or r.returncode == status,
           f"{host}: {command}: exit status {r.returncode}, expected {status}: {r.stdout[-400:]} {r.stderr[-800:]}")
    return r


def until(condition, what, then="true", host="a"):
    """Waits until the shell's condition holds in the host, and does the rest; what it says. To ask again and again from here would cost the host more than the condition."""
    r = sh(host, f"end=$((SECONDS + {SLOW:.0f})); until {condition}; do [ $SECONDS -lt $end ] || exit {LATE}; sleep 0.5; done; {then}", None)
    expect(r.returncode != LATE, f"waited {SLOW:.0f} s in vain for {what}")
    expect(r.returncode == 0, f"{what}: exit status {r.returncode}: {r.stdout[-400:]} {r.stderr[-400:]}")
    return r.stdout


def only(guests, host):
    """Waits until these are the host's."""
    until(f"""[ "$(xl list | awk 'NR > 2 {{ printf "%s ", $1 }}')" = "{''.join(f'{name} ' for name in guests)}" ]""", f"only {guests or 'dom0'} at {host}", host=host)


def domains(host):
    """Names of the guests there and their states."""
    rows = [line.split() for line in sh(host, "xl list").stdout.splitlines()[2:]]
    return {row[0]: row[4] for row in rows}


def verdicts(host):
    text = sh(host, f"cat {CONSOLE} 2>/dev/null || true").stdout
    expect("VERIFIER FAILED" not in text, f"{host}: {text[text.find('VERIFIER FAILED'):][:300]}")
    return text.count("VERIFIER ok")


def runs_at(host):
    """The guest runs there and nowhere else, nothing is half made, and its verifier goes on being content."""
    other = "b" if host == "a" else "a"
    only([GUEST], host)
    only([], other)
    before = verdicts(host)
    until(f"grep -q 'VERIFIER FAILED' {CONSOLE} || [ $(grep -c 'VERIFIER ok' {CONSOLE}) -gt {before + 1} ]", f"the verifier at {host}", host=host)
    verdicts(host)
    verdicts(other)


def journals_over():
    def over():
        for host in "ab":
            found = json.loads(sh(host, "pagurus status --all --json", None).stdout or "{}")
            if not found or any(not j["done"] for j in found["journals"]) or found["sessions"]:
                return False
        return True
    wait_until(over, "both journals to be over", SLOW)


def move(here, there, *options, status=0):
    return sh(here, f"pagurus migrate {shlex.join((*ANY_STOP, *options))} {GUEST} {there}", status)


def back_at_a():
    if GUEST in domains("b"):
        move("b", "a")
    if GUEST not in domains("a"):
        sh("a", f"xl create -q {CONFIG}")
    runs_at("a")


# Changes to the daemon's unit until the next boot.
DROP_IN = "/run/systemd/system/pagurus.service.d"


def drop_in(host, name, *lines):
    text = "\\n".join(("[Service]", *lines, ""))
    sh(host, f"mkdir -p {DROP_IN} && printf '{text}' > {DROP_IN}/{name}.conf && systemctl daemon-reload")


def with_faults(host, faults):
    drop_in(host, "fault", f"Environment=PAGURUS_FAULTS={faults}")
    sh(host, "systemctl restart pagurus")


def prepare():
    for host in "ab":
        sh(host, "[ -e /etc/pagurus/key.pem ] || pagurus host init")
    sh("a", "pagurus host trust b")
    for host in "ab":
        sh(host, f"rm -rf {DROP_IN}")
        # What arrived is not kept for a dead source as long as a user would want it.
        drop_in(host, "patience", "ExecStart=", "ExecStart=/usr/bin/pagurus daemon --foreground --resume-wait 30s")
        sh(host, "systemctl restart pagurus")
    wait_until(lambda: sh("a", "pagurus host check b", None).returncode == 0, "the daemon of b")


def test_0_hosts_know_each_other():
    for host, other in ("ab", "ba"):
        facts = json.loads(sh(host, f"pagurus host check --json {other}").stdout)
        expect(facts["hypervisor"].startswith("Xen 4.17") and facts["free_memory_bytes"] > 0, str(facts))


# In the gate the demonstration, test_live and the ends of the faults do the same.
if ALL_MARKS:
    def test_1_there_and_back():
        back_at_a()
        r = move("a", "b")
        expect("stood still" in r.stdout, r.stdout)
        print(f"  {r.stdout.splitlines()[-3]}")
        runs_at("b")
        result = json.loads(move("b", "a", "--json", "--channels", "4", "--verify").stdout.splitlines()[-1])
        expect(result["outcome"] == "moved" and result["verified"], str(result))
        runs_at("a")


def test_2_save_inspect_restore():
    back_at_a()
    sh("a", f"pagurus save --overwrite {GUEST} /var/tmp/{GUEST}.image")
    expect(not domains("a"), f"left at a: {domains('a')}")
    facts = json.loads(sh("a", f"pagurus inspect --json /var/tmp/{GUEST}.image").stdout)
    expect(facts["ok"] and facts["digest_recomputed"] and facts["guest"] == GUEST, str(facts))
    with tempfile.TemporaryDirectory() as folder:
        lab("get", "a", f"/var/tmp/{GUEST}.image", folder)
        r = subprocess.run([sys.executable, VERIFIER, "--quiet", f"{folder}/{GUEST}.image"], capture_output=True, text=True)
        expect(r.returncode == 0, r.stdout + r.stderr)
    sh("a", f"pagurus restore /var/tmp/{GUEST}.image")
    runs_at("a")
    r = sh("a", f"pagurus restore /var/tmp/{GUEST}.image", None)
    expect(r.returncode == 3, f"a second copy of a running guest: exit status {r.returncode} {r.stderr}")
    runs_at("a")


def test_3_refusals_leave_it_alone():
    back_at_a()
    sh("b", f"xl create -q -p {CONFIG}")
    r = move("a", "b", status=3)
    expect(GUEST in r.stderr and "runs here as before" in r.stderr, r.stderr)
    sh("b", f"xl destroy {GUEST}")
    runs_at("a")


def test_4_a_wrong_certificate():
    back_at_a()
    sh("b", "cd /etc/pagurus/trusted && cp -a a.pem /var/tmp/a.pem && cp ../cert.pem a.pem")
    r = move("a", "b", status=3)
    expect("trust" in r.stderr, r.stderr)
    sh("b", "cp -a /var/tmp/a.pem /etc/pagurus/trusted/a.pem")
    runs_at("a")


def test_5_ctrl_c():
    back_at_a()
    # The bandwidth makes it take minutes; a quarter of one is enough for it to have begun, however slow the host is.
    r = sh("a", f"timeout --foreground -s INT 15 pagurus migrate --bandwidth 256K {GUEST} b", None)
    expect("runs here as before" in r.stderr, f"{r.returncode} {r.stdout[-300:]} {r.stderr}")
    journals_over()
    runs_at("a")


def test_6_keeper_does_what_the_configuration_says():
    back_at_a()
    move("a", "b")
    runs_at("b")
    before = sh("b", f"xl domid {GUEST}").stdout.strip()
    sh("b", f"xl reboot {GUEST}")
    until(f"id=$(xl domid {GUEST} 2> /dev/null) && [ $id != {before} ]", "the reboot", host="b")
    until(f"grep -q 'VERIFIER ok' {CONSOLE}", "the verifier of the rebooted guest", host="b")
    sh("b", f"xl shutdown {GUEST}")
    only([], "b")
    wait_until(lambda: "keeper" not in sh("b", "ps -e -o args").stdout, "the end of the keeper")
    back_at_a()


def daemon_dies_at(host, point, guest, *options):
    """kill -9 of a daemon whose worker stands at the point of a move from a to b; where the guest is then, which is at one host."""
    with_faults(host, f"stop@{point}")
    sh("a", f"nohup pagurus migrate {' '.join((*ANY_STOP, *options))} --reconnect 9s {guest} b > /var/tmp/move.log 2>&1 &")
    wait_until(lambda: re.search(r"^T.*pagurus worker", sh(host, "ps -e -o stat=,args=").stdout, re.M), f"a worker at {point}", 2 * SLOW)
    sh(host, f"rm -f {DROP_IN}/fault.conf; systemctl daemon-reload;"
       " systemctl kill -s KILL --kill-who=main pagurus")
    journals_over()
    where = [h for h in "ab" if guest in domains(h)]
    expect(len(where) == 1, f"{point}: the guest is at {where}")
    return where[0]


def killed_at(host, point):
    """The guest is wherever one_owner says then, and whole."""
    back_at_a()
    where = daemon_dies_at(host, point, GUEST)
    runs_at(where)
    return where


def test_7_source_daemon_killed_before_commit():
    for point in ("source-begin-done", "source-stopping-done", "source-commit") if ALL_MARKS else ("source-stopping-done",):
        expect(killed_at("a", point) == "a", f"{point}: it moved")


if ALL_MARKS:
    def test_8_source_daemon_killed_at_commit():
        expect(killed_at("a", "source-commit-done") == "a", "COMMIT never left, yet it moved")


def test_9_target_daemon_killed():
    expect(killed_at("b", "target-commit-done") == "b", "it was committed and did not start")
    if ALL_MARKS:
        expect(killed_at("b", "target-begin-done") == "a", "it moved")
        expect(killed_at("b", "target-moved-done") == "b", "it ran there and was taken back")


def test_z_no_warning_in_any_console():
    r = subprocess.run([LAB, "--name", NAME, "logs"], capture_output=True, text=True)
    expect(r.returncode == 0, r.stdout + r.stderr)


def step(name, act):
    """What is done around the tests is reported as they are: 0, or 1 when it failed."""
    try:
        act()
    except Exception as error:
        print(f"FAIL tools.lab.{name}: {' '.join(str(error).split()) or type(error).__name__}", flush=True)
        return 1
    return 0


def run_in_lab(*modules):
    """The tests of the modules that the command line asks for, in a lab of our own unless LAB_NAME names one; the exit status."""
    own = "LAB_NAME" not in os.environ
    failed = step("up", lambda: lab("up", "--hypervisor", HYPERVISOR)) if own else 0
    try:
        failed = failed or step("prepare", prepare) or sum(run_module(module, sys.argv[1:]) for module in modules)
    finally:
        if own:
            failed += step("down", lambda: lab("down"))
    return 1 if failed else 0


def main():
    return run_in_lab(sys.modules["__main__"])


if __name__ == "__main__":
    sys.exit(main())
