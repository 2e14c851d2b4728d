# SPDX-License-Identifier: MIT
"""Hosts for testing the pagurus command without a hypervisor: daemons on loopback, each with folders of its own.

A Rig is a temporary folder with hosts in it; leaving it ends every process that it started and looks for
what is left behind. Tests are functions named test_*; run_module() runs those of a module and prints one line each.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = os.environ.get("PAGURUS_TOOL", str(ROOT / "build" / "pagurus"))
VERIFIER = ROOT / "protocol-spec" / "verify_stream.py"

# A guest that is quickly made and takes long enough to move that a test can act meanwhile.
SMALL = "sim:name=web,memory=16M,set=2M,rate=4M"
PATIENCE = 180.0


# Ended from outside, a test still puts its processes, hosts and folders away.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Failure(AssertionError):
    pass


def expect(condition, text):
    if not condition:
        raise Failure(text)


def wait_until(condition, what, patience=PATIENCE):
    """Poll until condition() is true; its value. Generous: a busy machine is no failure."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"waited {patience:.0f} s in vain for: {what}")
        time.sleep(0.02)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Result:
    def __init__(self, args, status, out, err):
        self.args, self.status, self.out, self.err = args, status, out, err

    def must(self, status):
        expect(self.status == status,
               f"{' '.join(self.args[1:])}: exit status {self.status}, expected {status}; "
               f"out: {self.out[-600:]!r} err: {self.err[-600:]!r}")
        return self

    def lines(self):
        """The JSON objects of --json output; every line must be one."""
        found = [json.loads(line) for line in self.out.splitlines()]
        expect(all(isinstance(o, dict) for o in found), "a line of --json output is no object")
        return found

    def result(self):
        found = [o for o in self.lines() if o["type"] == "result"]
        expect(len(found) == 1, f"{len(found)} result objects in --json output")
        return found[0]


class Host:
    def __init__(self, rig, name):
        self.rig, self.name, self.port = rig, name, free_port()
        self.dir = rig.dir / name
        self.config, self.state = self.dir / "etc", self.dir / "state"
        self.control, self.log_path = self.dir / "control.sock", self.dir / "log"
        self.process = None
        self.dir.mkdir()

    def environment(self, extra=None):
        env = {k: v for k, v in os.environ.items() if not k.startswith("PAGURUS_")}
        env.update(PAGURUS_CONFIG=str(self.config), PAGURUS_STATE=str(self.state),
                   PAGURUS_CONTROL=str(self.control), PAGURUS_DISKS=str(self.rig.dir / "run"), LC_ALL="C.UTF-8")
        env.update(extra or {})
        return env

    def popen(self, *args, env=None, **more):
        return self.rig.popen([TOOL, *map(str, args)], env=self.environment(env), **more)

    def run(self, *args, env=None, stdin="", **more):
        p = self.popen(*args, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, **more)
        out, err = p.communicate(stdin, timeout=PATIENCE * 2)
        return Result(p.args, p.returncode, out, err)

    def start(self, *options, env=None, sim=True):
        with open(self.log_path, "ab") as log:
            self.process = self.popen("daemon", "--foreground", "--listen",
                                      f"127.0.0.1:{self.port}", "--sim-run", "100ms",
                                      "--resume-wait", "4s",
                                      *(["--allow-sim"] if sim else []), *options,
                                      env=env, stdout=log, stderr=log)
        wait_until(lambda: self.process.poll() is not None or self.answers(),
                   f"daemon of {self.name}")
        expect(self.process.poll() is None, f"daemon of {self.name} ended: {self.log()[-800:]}")
        return self

    def answers(self):
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(str(self.control))
            except OSError:
                return False
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=PATIENCE)
        self.process = None

    def kill(self):
        self.process.kill()
        self.process.wait(timeout=PATIENCE)
        self.process = None

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def journals(self):
        found = {}
        for path in sorted((self.state / "sessions").glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                found[path.stem] = json.loads(path.read_text())
        return found

    def settled(self):
        """All journals, once none is unfinished."""
        try:
            wait_until(lambda: all(j["done"] for j in self.journals().values()),
                       f"journals of {self.name} to be over")
        except Failure as failure:
            raise Failure(f"{failure}; marks {[j['mark'] for j in self.journals().values()]}; the daemon's last words: {self.log()[-1200:]}") from failure
        return self.journals()

    def trust(self, other):
        self.run("host", "trust", "--file", other.config / "cert.pem", "--address",
                 f"127.0.0.1:{other.port}", other.name).must(0)

    def ask(self, request):
        """One request on the control socket, the first answer."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(PATIENCE)
            s.connect(str(self.control))
            s.sendall(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
            return json.loads(s.makefile().readline())


class Rig:
    def __init__(self, names="ab", start=True, trust=True):
        self.names, self.want_start, self.want_trust = names, start, trust
        self.processes = []

    def __enter__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="pagurus-test-"))
        self.hosts = {}
        try:
            self.set_up()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def set_up(self):
        self.hosts = {name: Host(self, name) for name in self.names}
        for host in self.hosts.values():
            host.run("host", "init", "--name", host.name).must(0)
        for one in self.hosts.values():
            for other in self.hosts.values():
                if self.want_trust and one is not other:
                    one.trust(other)
        if self.want_start:
            for host in self.hosts.values():
                host.start()

    def __getattr__(self, name):
        if name in self.__dict__.get("hosts", {}):
            return self.hosts[name]
        raise AttributeError(name)

    def popen(self, args, **more):
        p = subprocess.Popen(args, **more)
        self.processes.append(p)
        return p

    def __exit__(self, kind, *_):
        for host in self.hosts.values():
            with contextlib.suppress(Exception):
                host.stop()
        for p in self.processes:
            if p.poll() is None:
                p.kill()
                p.wait()
        try:
            if kind is None:
                self.look_for_leftovers()
        finally:
            if os.environ.get("PAGURUS_TEST_KEEP"):
                print(f"kept {self.dir}")
            else:
                shutil.rmtree(self.dir, ignore_errors=True)

    def look_for_leftovers(self):
        mark = str(self.dir).encode()

        def alive():
            found = []
            for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
                with contextlib.suppress(OSError):
                    if mark in path.read_bytes():
                        found.append(path.parent.name)
            return found
        wait_until(lambda: not alive(), "every process of the rig to end")


def signal_when(process, number, condition, what):
    wait_until(lambda: process.poll() is not None or condition(), what)
    expect(process.poll() is None, f"the command ended before: {what}")
    process.send_signal(number)


def run_module(module, only=()):
    failed = 0
    for name, function in sorted(vars(module).items()):
        if not name.startswith("test_") or not callable(function):
            continue
        label = f"{module.__name__.removeprefix('test_').replace('__main__', 'lab')}.{name.removeprefix('test_')}"
        if only and not any(word in label for word in only):
            continue
        began = time.monotonic()
        try:
            function()
            print(f"PASS tools.{label} ({time.monotonic() - began:.1f} s)", flush=True)
        except Exception as error:  # a test that breaks is a test that fails
            failed += 1
            text = str(error) or type(error).__name__
            print(f"FAIL tools.{label}: {' '.join(text.split())}", flush=True)
            if not isinstance(error, Failure):
                traceback.print_exc(file=sys.stdout)
    return failed


__all__ = ["Failure", "Host", "PATIENCE", "ROOT", "Rig", "SMALL", "TOOL", "VERIFIER", "expect",
           "free_port", "run_module", "signal", "signal_when", "wait_until"]
