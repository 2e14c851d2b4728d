# SPDX-License-Identifier: MIT
"""Moving a simulated guest between two daemons, when nothing dies: docs/one-owner.md has the rest, in test_crash.py."""

import contextlib
import os
import pathlib
import re
import select
import socket
import ssl
import struct
import subprocess
import threading
import time

from rig import PATIENCE, SMALL, Rig, expect, signal, signal_when, wait_until

LONG = "sim:name=long,memory=64M,content=random"
PREAMBLE = struct.Struct("<8s16sHHI")


def marks(host):
    return sorted(j["mark"] for j in host.settled().values())


def moved(rig):
    expect(marks(rig.a) == ["moved"] and marks(rig.b) == ["moved"],
           f"marks {marks(rig.a)} {marks(rig.b)}")
    wait_until(lambda: "its memory is right" in rig.b.log(), "the guest to be verified at the target")


def stayed(rig):
    expect(set(marks(rig.a)) <= {"returned"} and set(marks(rig.b)) <= {"returned"},
           f"marks {marks(rig.a)} {marks(rig.b)}")
    expect("does not run" not in rig.a.log(), "the guest did not go on at the source")


def start_long(rig, *options, **more):
    return rig.a.popen("migrate", "--bandwidth", "4M", *options, LONG, "b",
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def in_rounds(rig):
    return "rounds" in rig.a.run("status").out


def test_moves_a_guest():
    with Rig() as rig:
        r = rig.a.run("migrate", "--json", SMALL, "b").must(0)
        result = r.result()
        expect(result["outcome"] == "moved" and result["digest_pages"] == 4096, str(result))
        expect(result["stop"]["total_ns"] > 0 and result["bytes"] > 0, str(result))
        kinds = {o["type"] for o in r.lines()}
        expect({"accepted", "guest", "progress", "mark", "result"} <= kinds, str(kinds))
        moved(rig)


def connected(devices_ns, announced_ns, devices, waiting):
    return {"PAGURUS_SIM_CONNECTED": f"{devices_ns},{announced_ns},{devices},{waiting}"}


def test_tells_when_the_guest_had_its_devices():
    with Rig() as rig:
        told = rig.a.run("migrate", SMALL, "b").must(0).out
        expect("after it ran again" not in told, f"it has no devices: {told}")
        rig.b.stop()
        rig.b.start(env=connected(120_000_000, 140_000_000, 3, 0))
        told = rig.a.run("migrate", SMALL, "b").must(0).out
        expect("; its devices were connected 120 ms after it ran again, its first packet left after 140 ms." in told, told)
        stop = rig.a.run("migrate", "--json", SMALL, "b").must(0).result()["stop"]
        expect([stop[k] for k in ("devices_ns", "announced_ns", "devices", "devices_waiting")] == [120_000_000, 140_000_000, 3, 0], str(stop))
        rig.b.stop()
        rig.b.start(env=connected(8_000_000_000, 0, 3, 1))
        result = rig.a.run("migrate", "--json", SMALL, "b").must(0).result()
        expect(result["stop"]["devices_waiting"] == 1 and result["stop"]["devices_ns"] == 8_000_000_000, str(result))


def waits_for_devices(rig):
    """A move that is over at the source, but for the figures: they will not come."""
    rig.b.stop()
    rig.b.start(env=connected(1, 0, 3, 1))
    p = rig.a.popen("migrate", SMALL, "b", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: [j["mark"] for j in rig.a.journals().values() if j["done"]] == ["moved"], "the guest to be gone from a")
    return p


def test_a_move_is_done_although_nobody_tells_of_the_devices():
    for how in ("ctrl-c", "cancel", "source", "target"):
        with Rig() as rig:
            p = waits_for_devices(rig)
            if how == "ctrl-c":
                p.send_signal(signal.SIGINT)
            elif how == "cancel":
                r = rig.a.run("cancel", "web").must(1)
                expect("handed over" in r.err, r.err)
            elif how == "source":
                rig.a.kill()
            else:
                rig.b.kill()
            out, err = p.communicate(timeout=PATIENCE)
            expect(p.returncode == 0 and "moved to b" in out and not err, f"{how}: exit status {p.returncode}: {out} {err}")
            for host in (rig.a, rig.b):
                if not host.answers():
                    host.start()
            expect(marks(rig.a) == ["moved"] and marks(rig.b) == ["moved"], f"{how}: {marks(rig.a)} {marks(rig.b)}")


def test_moves_with_every_option():
    variants = (("--verify",), ("--channels", "4"), ("--compress", "zstd"), ("--compress", "none"),
                ("--delta-cache", "0"), ("--downtime", "0"), ("--max-rounds", "2"),
                ("--throttle", "20"), ("--channels", "16", "--verify", "--bandwidth", "400Mbit"))
    with Rig() as rig:
        for options in variants:
            result = rig.a.run("migrate", "--json", *options, SMALL, "b").must(0).result()
            expect(result["outcome"] == "moved", f"{options}: {result}")
            expect(result["verified"] == ("--verify" in options), f"{options}: verified")
        moved_to_b = [j["mark"] for j in rig.b.settled().values()]
        expect(moved_to_b == ["moved"] * len(variants), str(moved_to_b))
        wait_until(lambda: rig.b.log().count("its memory is right") == len(variants), "verifications")


def test_dry_run_moves_nothing():
    with Rig() as rig:
        out = rig.a.run("migrate", "--dry-run", SMALL, "b").must(0).out
        expect("would be taken by b" in out, out)
        expect(not rig.a.journals(), "a dry run left a journal at the source")
        expect(marks(rig.b) in ([], ["returned"]), str(rig.b.journals()))


def test_refusals_exit_3_and_say_why():
    with Rig() as rig:
        rig.b.stop()
        rig.b.start(sim=False)
        for options in ((), ("--dry-run",)):
            r = rig.a.run("migrate", *options, SMALL, "b").must(3)
            expect("allow-sim" in r.err and "runs here as before" in r.err, r.err)
        rig.b.stop()
        rig.b.start(env={"PAGURUS_SIM_FAULTS": "precheck-refuse"})
        rig.a.run("migrate", SMALL, "b").must(3)
        stayed(rig)


def test_target_faults_leave_the_guest_at_the_source():
    with Rig() as rig:
        for fault in ("precheck", "create", "map:3", "set-types:2", "sink-state", "finish", "start"):
            rig.b.stop()
            rig.b.start(env={"PAGURUS_SIM_FAULTS": fault})
            r = rig.a.run("migrate", SMALL, "b")
            expect(r.status in (1, 3) and r.err.strip(), f"{fault}: exit status {r.status} {r.err}")
            stayed(rig)


def test_source_faults_leave_the_guest_at_the_source():
    with Rig() as rig:
        for fault in ("describe", "log-start", "log-clean", "read:3", "suspend", "suspend-timeout",
                      "let-go", "state"):
            r = rig.a.run("migrate", "--suspend-timeout", "1s", f"{SMALL},fault={fault}", "b").must(1)
            expect(r.err.strip(), f"{fault}: no message")
            stayed(rig)


def test_wrong_names_are_explained():
    with Rig() as rig:
        expect("host trust" in rig.a.run("migrate", SMALL, "nowhere").must(1).err, "unknown host")
        expect("sim:" in rig.a.run("migrate", "sim:colour=red", "b").must(1).err, "unknown key")
        rig.a.run("migrate", "there-is-no-such-guest", "b").must(1)
        rig.b.stop()
        r = rig.a.run("migrate", SMALL, "b").must(1)
        expect(str(rig.b.port) in r.err, f"does not say where: {r.err!r}")


def test_a_guest_does_not_move_to_its_own_host():
    with Rig() as rig:
        rig.a.run("host", "trust", "--file", rig.a.config / "cert.pem", "--address",
                  f"127.0.0.1:{rig.a.port}", "self").must(0)
        r = rig.a.run("migrate", SMALL, "self")
        expect(r.status == 1, f"exit status {r.status}")
        stayed(rig)


def test_one_session_for_a_guest():
    with Rig() as rig:
        p = start_long(rig)
        wait_until(lambda: in_rounds(rig), "the first session")
        # The same seed makes the same uuid.
        r = rig.a.run("migrate", LONG, "b").must(1)
        expect("another session" in r.err, r.err)
        p.send_signal(signal.SIGINT)
        expect(p.wait(timeout=PATIENCE) == 5, f"exit status {p.returncode}")


def test_ctrl_c_cancels_and_says_so():
    for number in (signal.SIGINT, signal.SIGTERM):
        with Rig() as rig:
            p = start_long(rig)
            signal_when(p, number, lambda: in_rounds(rig), "rounds")
            out, err = p.communicate(timeout=PATIENCE)
            expect(p.returncode == 5, f"exit status {p.returncode}: {err}")
            expect("runs here as before" in err, err)
            stayed(rig)


def test_cancel_at_the_target():
    with Rig() as rig:
        p = start_long(rig)
        wait_until(lambda: "from a" in rig.b.run("status").out, "the session at the target")
        wait_until(lambda: in_rounds(rig), "rounds")
        rig.b.run("cancel", "long").must(0)
        out, err = p.communicate(timeout=PATIENCE)
        expect(p.returncode in (1, 5), f"exit status {p.returncode}: {err}")
        stayed(rig)


def test_a_lost_terminal_does_not_stop_a_move():
    with Rig() as rig:
        p = rig.a.popen("migrate", "--bandwidth", "3M", "sim:name=web,memory=16M,content=random", "b",
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        signal_when(p, signal.SIGHUP, lambda: in_rounds(rig), "rounds")
        p.wait(timeout=PATIENCE)
        moved(rig)


def test_detach():
    with Rig() as rig:
        r = rig.a.run("migrate", "--detach", "--bandwidth", "8M", "sim:memory=16M,content=random", "b")
        expect("background" in r.must(0).out, r.out)
        moved(rig)
        rig.b.stop()
        rig.a.run("migrate", "--detach", SMALL, "b").must(1)


def test_bandwidth_is_kept():
    with Rig() as rig:
        began = time.monotonic()
        result = rig.a.run("migrate", "--json", "--bandwidth", "8M", "--compress", "none",
                           "sim:memory=16M,content=random", "b").must(0).result()
        least = result["bytes"] / (8 << 20) * 0.7
        expect(time.monotonic() - began > least, f"{result['bytes']} bytes in less than {least:.1f} s")


def preamble(magic=b"PGRCONN1", session=b"\1" * 16, channel=0, purpose=1, reserved=0):
    return PREAMBLE.pack(magic, session, channel, purpose, reserved)


def test_garbage_connections():
    with Rig() as rig:
        texts = [b"", b"x", os.urandom(32), b"GET / HTTP/1.0\r\n\r\n" + b"y" * 100,
                 preamble(magic=b"PGRCONN2"), preamble(purpose=0), preamble(purpose=6),
                 preamble(channel=16), preamble(reserved=1), preamble(session=bytes(16)),
                 preamble(purpose=5), preamble(purpose=2), preamble(purpose=3),
                 preamble() + os.urandom(4096), preamble(purpose=4) + os.urandom(4096),
                 preamble(purpose=5, session=bytes(16)) + os.urandom(64)]
        for text in texts:
            with socket.create_connection(("127.0.0.1", rig.b.port)) as s:
                s.settimeout(PATIENCE)
                try:
                    s.sendall(text)
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(4096):
                        pass
                except (ConnectionError, OSError) as error:
                    expect(not isinstance(error, TimeoutError), f"{text[:40]!r} keeps a connection")
        expect(not rig.b.journals(), "a stranger made a journal")
        rig.a.run("migrate", SMALL, "b").must(0)
        moved(rig)


# Each address of the loopback network is another host.
STRANGER = "127.0.0.66"


def stranger(rig):
    return socket.create_connection(("127.0.0.1", rig.b.port), source_address=(STRANGER, 0))


def half_done(rig, **more):
    """A connection that says what it is for, and then nothing more."""
    s = stranger(rig)
    s.sendall(preamble(**{"session": os.urandom(16), **more}))
    return s


class Crowd(threading.Thread):
    """Strangers who hold as many connections to b as they can, and make each again that is lost."""

    def __init__(self, rig, make, number):
        super().__init__(daemon=True)
        self.rig, self.make, self.number, self.over, self.made = rig, make, number, False, 0

    def run(self):
        waiting = []
        while not self.over:
            while len(waiting) < self.number:
                waiting.append(self.make(self.rig))
                self.made += 1
            for s in select.select(waiting, [], [], 0.02)[0]:
                waiting.remove(s)
                s.close()
        for s in waiting:
            s.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over = True
        self.join()


def test_strangers_keep_nobody_out():
    with Rig() as rig:
        for make, number, full in ((stranger, 80, "connections wait already"),
                                   (half_done, 20, "too many connections at once")):
            with Crowd(rig, make, number) as crowd:
                wait_until(lambda: full in rig.b.log() and crowd.made > number, f"the crowd: {full}")
                for _ in range(3):
                    rig.a.run("migrate", "--channels", "4", SMALL, "b").must(0)
        wait_until(lambda: rig.b.log().count("its memory is right") == 6, "verifications")


def test_strangers_who_know_a_session_do_not_stop_it():
    with Rig() as rig:
        p = start_long(rig)
        wait_until(lambda: in_rounds(rig), "rounds")
        session = bytes.fromhex(next(iter(rig.a.journals())))
        # Handshakes that are never done, more than the session's worker has room for.
        with Crowd(rig, lambda rig: half_done(rig, purpose=2, session=session), 40) as crowd:
            wait_until(lambda: crowd.made > 44, "strangers to make room for each other")
            p.send_signal(signal.SIGINT)
            out, err = p.communicate(timeout=PATIENCE)
        expect(p.returncode == 5, f"exit status {p.returncode}: {err}")
        stayed(rig)


class Handshakes(threading.Thread):
    """One after the other with what works on a session, by somebody without a certificate."""

    def __init__(self, rig, session):
        super().__init__(daemon=True)
        self.rig, self.session, self.over, self.made = rig, session, False, 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    def run(self):
        while not self.over:
            with contextlib.suppress(OSError), half_done(self.rig, purpose=2, session=self.session) as s:
                s.settimeout(PATIENCE)
                with self.context.wrap_socket(s) as tls:
                    self.made += 1
                    tls.recv(1)


def test_a_session_ends_amid_handshakes():
    """What they use is not taken away while they use it."""
    for _ in range(3):
        with Rig() as rig:
            p = start_long(rig)
            wait_until(lambda: in_rounds(rig), "rounds")
            session = bytes.fromhex(next(iter(rig.a.journals())))
            crowd = [Handshakes(rig, session) for _ in range(12)]
            for one in crowd:
                one.start()
            wait_until(lambda: all(one.made > 2 for one in crowd), "handshakes")
            p.send_signal(signal.SIGINT)
            p.communicate(timeout=PATIENCE)
            stayed(rig)
            wait_until(lambda: not rig.b.ask({"request": "status"})["sessions"], "the process of the session to end")
            for one in crowd:
                one.over = True
            for one in crowd:
                one.join()
            expect("ended by signal" not in rig.b.log() and "Sanitizer" not in rig.b.log(), rig.b.log()[-3000:])


def test_silent_connections_are_bounded_and_end():
    with Rig() as rig:
        idle = [stranger(rig) for _ in range(80)]
        wait_until(lambda: "connections wait already" in rig.b.log(), "the bound")
        wait_until(lambda: "said nothing in time" in rig.b.log(), "the time limit")
        for s in idle:
            s.close()
        time.sleep(1.5) # the log takes a few lines a second
        half = []
        for _ in range(20):
            half.append(half_done(rig))
        wait_until(lambda: "too many connections at once" in rig.b.log(), "the bound on strangers")
        for s in half:
            s.close()
        wait_until(lambda: rig.a.run("migrate", "--dry-run", SMALL, "b").status == 0, "room again")
        expect(rig.b.log().count("\n") < 200, "strangers fill the log")


def test_strangers_do_not_have_the_journals_read():
    """Who only comes and goes costs the daemon nothing that grows with what it remembers."""
    with Rig() as rig:
        rig.a.run("migrate", SMALL, "b").must(0)
        one, = (rig.b.state / "sessions").glob("*.json")
        text = one.read_text()
        for n in range(400):
            other = f"{n:032x}"
            one.with_name(f"{other}.json").write_text(text.replace(one.stem, other))
        size = 401 * len(text)
        # Of this process without the ended ones.
        read = pathlib.Path(f"/proc/{rig.b.process.pid}/task/{rig.b.process.pid}/io")

        def read_so_far():
            return int(re.search(r"rchar: (\d+)", read.read_text())[1])

        wait_until(lambda: read_so_far() > size, "the daemon to look at its journals")
        before, began = read_so_far(), time.monotonic()
        for _ in range(30):
            with half_done(rig, purpose=5, session=bytes(16)) as s:
                s.sendall(b"x" * 64)
                s.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionError):
                    while s.recv(4096):
                        pass
        # It looks by itself each five seconds, and reads other things as well, but not all of them for each stranger.
        looked = (read_so_far() - before) / size - (time.monotonic() - began) / 5
        expect(looked < 20, f"30 strangers had the journals read {looked:.0f} times")


def test_strangers_learn_nothing():
    with Rig("abc", trust=False) as rig:
        rig.a.trust(rig.b)
        rig.b.trust(rig.a)
        # c trusts b, b does not know c.
        rig.c.trust(rig.b)
        r = rig.c.run("migrate", SMALL, "b").must(3)
        expect("trust" in r.err, r.err)
        expect(not rig.b.journals(), "a stranger's session is in the journal")
        expect("web" not in rig.b.log(), "the guest's name reached a host that refused")
