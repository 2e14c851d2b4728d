# SPDX-License-Identifier: MIT
"""The command line itself: help, exit statuses, man pages, completion."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios

from rig import PATIENCE, ROOT, SMALL, TOOL, Rig, expect, wait_until

VERBS = ("migrate", "save", "restore", "inspect", "status", "cancel", "recover", "daemon", "version")
ACTIONS = ("init", "cert", "trust", "check", "list", "evacuate")
DISK_ACTIONS = ("info", "map", "create", "check", "resize", "convert", "export", "bitmap", "snapshot", "list", "revert", "commit", "delete", "mirror", "serve")
BITMAP_ACTIONS = ("add", "list", "remove", "clear")
COMMANDS = ([(v,) for v in VERBS] + [("host", a) for a in ACTIONS] + [("disk", a) for a in DISK_ACTIONS if a != "bitmap"]
            + [("disk", "bitmap", a) for a in BITMAP_ACTIONS])


def options_of(host, words):
    return set(re.findall(r"^  (--[a-z-]+)", host.run(*words, "--help").must(0).out, re.M))


def test_help_of_every_verb():
    with Rig("a", start=False) as rig:
        main = rig.a.run("--help").must(0).out
        for verb in (*VERBS, "host", "disk"):
            expect(f"\n  {verb} " in main, f"--help does not list {verb}")
            expect(rig.a.run(verb, "--help").must(0).out.startswith("Usage: pagurus"), verb)
        for words in COMMANDS:
            expect("--help" in options_of(rig.a, words), f"{words}")


def test_help_of_make():
    r = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True)
    expect(r.returncode == 0 and not r.stderr, r.stderr)
    for target in ("test", "demo", "bench-vmm", "lab", "vmm"):
        expect(re.search(rf"^  {target} ", r.stdout, re.M), f"make help does not list {target}: {r.stdout}")


def test_wrong_command_lines_exit_2():
    wrong = [(), ("frobnicate",), ("migrate",), ("migrate", "g"), ("migrate", "g", "h", "x"),
             ("migrate", "--downtime", "soon", "g", "h"), ("migrate", "--channels", "17", "g", "h"),
             ("migrate", "--channels", "0", "g", "h"), ("migrate", "--bandwidth", "-3", "g", "h"),
             ("migrate", "--compress", "rar", "g", "h"), ("migrate", "--throttle", "101", "g", "h"),
             ("migrate", "--channels"), ("migrate", "--verify=1", "g", "h"), ("migrate", "-x", "g", "h"),
             ("migrate", "--bandwidth", "99999999999G", "g", "h"), ("save", "g"), ("restore",),
             ("save", "--compress", "no", "g", "f"), ("inspect",), ("inspect", "--json", "--records", "f"),
             ("host",), ("host", "nothing"), ("host", "trust"), ("cancel",), ("status", "x"),
             ("disk",), ("disk", "nothing"), ("disk", "info"), ("disk", "map", "a", "b"), ("disk", "convert", "a"),
             ("recover", "--run-here"), ("recover", "00"), ("keeper",), ("keeper", "0")]
    with Rig("a", start=False) as rig:
        for words in wrong:
            r = rig.a.run(*words).must(2)
            expect(r.err and not r.out, f"{words}: complains on standard output")


def test_without_a_daemon():
    with Rig(start=False) as rig:
        r = rig.a.run("migrate", SMALL, "b").must(1)
        expect("pagurus daemon" in r.err, f"does not say how to start one: {r.err!r}")
        rig.a.run("status").must(1)
        rig.a.run("cancel", "x").must(1)
        rig.a.run("recover").must(0)


def test_daemon_refuses_a_bad_start():
    with Rig(trust=False) as rig:
        again = rig.a.run("daemon", "--foreground", "--listen", "127.0.0.1:0").must(1)
        expect("port" in again.err or "daemon" in again.err, again.err)
        again = rig.a.run("daemon", "--foreground", "--listen", f"127.0.0.1:{rig.b.port}").must(1)
        expect("another daemon" in again.err, again.err)
        rig.a.stop()
        taken = rig.a.run("daemon", "--foreground", "--listen", f"127.0.0.1:{rig.b.port}").must(1)
        expect(str(rig.b.port) in taken.err, taken.err)
        none = rig.a.run("daemon", "--foreground", "--config", rig.dir / "none").must(1)
        expect("pagurus host init" in none.err, none.err)


def test_daemon_in_the_background():
    with Rig(start=False) as rig:
        for host in (rig.a, rig.b):
            host.run("daemon", "--listen", f"127.0.0.1:{host.port}", "--allow-sim").must(0)
        rig.a.run("host", "check", "b").must(0)
        for path in map(str, os.listdir("/proc")):
            if not path.isdigit():
                continue
            try:
                with open(f"/proc/{path}/environ", "rb") as f:
                    ours = str(rig.dir).encode() in f.read()
                with open(f"/proc/{path}/cmdline", "rb") as f:
                    daemon = b"\0daemon\0" in f.read()
            except OSError:
                continue
            if ours and daemon:
                os.kill(int(path), 15)


def test_control_socket_survives_nonsense():
    with Rig("a") as rig:
        for text in (b"hello\n", b"[1]\n", b"{}\n", b'{"request":7}\n', b'{"request":"cancel"}\n',
                     b'{"request":"release","which":"zz"}\n', b'\xff\xfe\n'):
            expect(rig.a.ask(text)["type"] == "error", f"{text!r} was accepted")
        expect(rig.a.ask({"request": "status"})["sessions"] == [], "status")
        mode = rig.a.control.stat().st_mode & 0o777
        expect(mode == 0o600, f"the control socket has mode {mode:o}")


def test_terminal_display_fits_the_width():
    for width in (40, 120):
        with Rig() as rig:
            master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
            p = rig.a.popen("migrate", "--bandwidth", "20M", "sim:memory=24M,set=2M,rate=2M,content=random", "b",
                            env={"TERM": "xterm"}, stdout=slave, stderr=slave)
            os.close(slave)
            text = b""
            while True:
                try:
                    part = os.read(master, 65536)
                except OSError:
                    break
                if not part:
                    break
                text += part
            os.close(master)
            expect(p.wait(timeout=PATIENCE) == 0, text.decode(errors="replace")[-500:])
            drawn = [re.sub(r"\x1b\[[0-9]*[A-Z]", "", line)
                     for line in re.split(r"[\r\n]+", text.decode())]
            live = [line for line in drawn if "sent at" in line or "saved by zero" in line]
            expect(len(live) > 4, f"no live display: {drawn}")
            expect(max(map(len, live)) < width, f"a line is longer than {width}")
            expect("\x1b[A" in text.decode(), "it does not redraw")
            expect("stood still" in text.decode(), "no summary")


def test_plain_lines_are_few():
    with Rig() as rig:
        r = rig.a.run("migrate", "--bandwidth", "10M", "sim:memory=32M,content=random", "b").must(0)
        expect("\x1b" not in r.out, "escape sequences without a terminal")
        expect(len(r.out.splitlines()) < 40, f"{len(r.out.splitlines())} lines")
        expect("copying while it runs" in r.out and "stood still" in r.out, r.out)


def test_man_pages_are_clean_and_complete():
    pages = sorted((ROOT / "docs" / "man").glob("*.[18]"))
    expect(pages, "no man pages")
    r = subprocess.run(["mandoc", "-Tlint", "-W", "warning", *map(str, pages)],
                       capture_output=True, text=True)
    expect(r.returncode == 0 and not r.stdout.strip(), r.stdout + r.stderr)
    where = {"migrate": "pagurus-migrate.1", "save": "pagurus-save.1", "restore": "pagurus-save.1",
             "inspect": "pagurus-save.1", "host": "pagurus-host.1", "disk": "pagurus-disk.1", "daemon": "pagurus-daemon.8"}
    with Rig("a", start=False) as rig:
        for words in COMMANDS:
            page = (ROOT / "docs" / "man" / where.get(words[0], "pagurus.1")).read_text()
            for option in options_of(rig.a, words) - {"--help"}:
                # mdoc: "Fl -name"
                expect(f"Fl -{option[2:]}" in page,
                       f"{where.get(words[0], 'pagurus.1')} does not describe {option} of {' '.join(words)}")


def complete(rig, words, current):
    """What the completion offers for the last word."""
    script = ROOT / "tools" / "completion" / "pagurus"
    program = rig.dir / "bin"
    program.mkdir(exist_ok=True)
    link = program / "pagurus"
    if not link.exists():
        link.symlink_to(os.path.abspath(TOOL))
    line = ["pagurus", *words, current]
    quoted = " ".join(f"'{w}'" for w in line)
    code = (f"source '{script}'; COMP_WORDS=({quoted}); COMP_CWORD={len(line) - 1}; "
            "_pagurus; printf '%s\\n' \"${COMPREPLY[@]}\"")
    env = rig.a.environment({"PATH": f"{program}:{os.environ['PATH']}"})
    r = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, env=env,
                       cwd=rig.dir)
    expect(r.returncode == 0 and not r.stderr, r.stderr)
    return {w.rstrip() for w in r.stdout.split("\n") if w}


def test_completion_knows_every_verb_and_option():
    with Rig(start=False) as rig:
        expect(set((*VERBS, "host", "disk")) <= complete(rig, [], ""), "verbs")
        expect(complete(rig, ["host"], "") == set(ACTIONS), "actions")
        expect(complete(rig, ["disk"], "") == set(DISK_ACTIONS), "actions of disk")
        expect(complete(rig, ["disk", "bitmap"], "") == set(BITMAP_ACTIONS), "actions of disk bitmap")
        expect(complete(rig, ["disk", "info", "--format"], "") == {"raw", "qcow2"}, "formats")
        for words in COMMANDS:
            expect(complete(rig, list(words), "--") == options_of(rig.a, words),
                   f"options of {words}")
        expect(complete(rig, ["migrate", "guest"], "") == {"b"}, "hosts")
        expect(complete(rig, ["migrate", "--compress"], "") == {"lz4", "zstd", "none"}, "methods")
        (rig.dir / "web.image").write_text("")
        expect("web.image" in complete(rig, ["restore"], "web"), "files")
        r = subprocess.run(["shellcheck", "-s", "bash", ROOT / "tools" / "completion" / "pagurus"],
                           capture_output=True, text=True)
        expect(r.returncode == 0, r.stdout)


def test_status_shows_what_is_at_work():
    with Rig() as rig:
        expect("No session" in rig.a.run("status").must(0).out, "idle")
        p = rig.a.popen("migrate", "--bandwidth", "2M", "sim:name=big,memory=48M,content=random", "b",
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: "rounds" in rig.a.run("status").out, "rounds in status")
        text = rig.a.run("status").must(0).out
        expect("big to b" in text, text)
        expect("big from a" in wait_until(lambda: rig.b.run("status").must(0).out, "b"), "b")
        s = json.loads(rig.a.run("status", "--json").must(0).out)["sessions"]
        expect(len(s) == 1 and s[0]["guest"] == "big" and s[0]["progress"]["phase"] == "rounds", str(s))
        rig.a.run("cancel", "nobody").must(1)
        rig.a.run("cancel", "big").must(0)
        expect(p.wait(timeout=PATIENCE) == 5, f"exit status {p.returncode} after cancel")
        # The command has its answer before the worker's journal is closed.
        wait_until(lambda: "returned" in rig.a.run("status", "--all").must(0).out, "the session's end in status --all")
