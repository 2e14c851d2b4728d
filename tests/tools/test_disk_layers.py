# SPDX-License-Identifier: MIT
"""pagurus disk create, check, resize, snapshot, list, revert, commit, delete, and convert into qcow2; qemu-img says whether they are right."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time

from rig import PATIENCE, Rig, expect, wait_until

MIB = 1 << 20


def qemu(folder, *words, status=0):
    r = subprocess.run(words, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    expect(r.returncode == status, f"{words}: {r.returncode}: {r.stderr}")


def write(folder, name, *commands):
    qemu(folder, "qemu-io", "-f", "qcow2", *[word for c in commands for word in ("-c", c)], name)


def with_programs(packages, *programs):
    """Of tests of disks: in a rig without its daemon, with `pagurus disk` in its folder; skipped without the programs of these packages."""
    def of(test):
        def run():
            if not all(shutil.which(program) for program in programs):
                print(f"SKIP tools.{test.__module__.removeprefix('test_')}.{test.__name__.removeprefix('test_')}: needs {packages}")
                return
            with Rig("a", start=False) as rig:
                test(rig, lambda *words, status=0: rig.a.run("disk", *words, cwd=rig.dir).must(status))
        run.__name__ = test.__name__
        return run
    return of


with_qemu = with_programs("qemu-utils", "qemu-img", "qemu-io")


@contextlib.contextmanager
def in_use_by_qemu(rig, name):
    """Another program than ours has it open, and may write it."""
    p = subprocess.Popen(["qemu-io", "-f", "qcow2", name], cwd=rig.dir, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        p.stdin.write(b"read 0 512\n")
        p.stdin.flush()
        p.stdout.readline()
        yield
    finally:
        p.stdin.close()
        p.wait()
        p.stdout.close()


class Contents:
    """What a disk held once, as a raw file, to compare with."""

    def __init__(self, folder, disk):
        self.folder, self.raw = folder, f"was-{os.urandom(4).hex()}.raw"
        qemu(folder, "qemu-img", "convert", "-O", "raw", disk, self.raw)

    def must_be(self, disk):
        qemu(self.folder, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", self.raw, disk)


def chain(rig, disk):
    """Three snapshots, and what each of them and the disk hold."""
    disk("create", "web.qcow2", "16M")
    was = {}
    for number, name in enumerate(("one", "two", "three"), 1):
        write(rig.dir, "web.qcow2", f"write -P {number} {number}M 4M", f"write -z {number * 3}M 512k", f"write -P {number + 64} 10M 1M")
        was[name] = Contents(rig.dir, "web.qcow2")
        disk("snapshot", "web.qcow2", name)
    write(rig.dir, "web.qcow2", "write -P 9 2M 1M", "write -z 5M 1M", "write -P 8 15M 64k")
    was["disk"] = Contents(rig.dir, "web.qcow2")
    return was


def tree(disk):
    return {layer["name"]: layer for layer in disk("list", "--json", "web.qcow2").lines()}


def sound(rig, disk):
    for path in rig.dir.glob("*.qcow2"):
        qemu(rig.dir, "qemu-img", "check", path.name)
        disk("check", path.name)
    left = [p.name for p in rig.dir.iterdir() if p.name.endswith((".partial", ".leaving"))]
    expect(not left, f"left behind: {left}")


def sound_when_repaired(rig, disk):
    """After a kill: killed just before two names were exchanged, a new layer stands on itself; the next one of its name replaces it."""
    for layer in tree(disk).values():
        if layer["below"] == layer["path"]:
            os.unlink(layer["path"])
    for path in rig.dir.glob("*.qcow2"):
        disk("check", "--repair", path.name)
    sound(rig, disk)


@with_qemu
def test_create(rig, disk):
    expect(disk("create", "--json", "a.qcow2", "3.5G").result()["size"] == 7 << 29, "size")
    qemu(rig.dir, "qemu-img", "check", "a.qcow2")
    expect("is there already" in disk("create", "a.qcow2", "1G", status=1).err, "it is there")
    disk("create", "huge.qcow2", "60T")
    expect((rig.dir / "huge.qcow2").stat().st_size < 4 * MIB, "a large disk takes no room")
    disk("create", "--cluster-size", "4K", "small.qcow2", "40G")
    disk("create", "--cluster-size", "512", "tiny.qcow2", "100M")
    disk("create", "--format", "qcow2", "b.img", "1M")
    disk("create", "r.raw", "10M")
    expect((rig.dir / "r.raw").stat().st_size == 10 * MIB, "raw")
    disk("create", "--backing", "r.raw", "over.qcow2")
    disk("create", "--backing", "over.qcow2", "over2.qcow2", "20M")
    o = json.loads(disk("info", "--json", "over2.qcow2").out)
    expect(o["size"] == 20 * MIB, str(o))
    for name in ("huge.qcow2", "small.qcow2", "tiny.qcow2", "over.qcow2", "over2.qcow2"):
        qemu(rig.dir, "qemu-img", "check", name)
        write(rig.dir, name, "write -P 1 0 5M")
        qemu(rig.dir, "qemu-img", "check", name)
    expect("size" in disk("create", "c.qcow2", status=2).err, "no size")
    expect("no size" in disk("create", "c.qcow2", "big", status=2).err, "no size")
    expect("missing.raw" in disk("create", "--backing", "missing.raw", "c.qcow2", status=1).err, "no backing file")
    expect("raw disk" in disk("create", "--backing", "r.raw", "c.raw", status=1).err, "raw over something")
    expect("at most" in disk("create", "--cluster-size", "512", "c.qcow2", "1T", status=1).err, "too large")
    expect(not (rig.dir / "c.qcow2").exists() and not (rig.dir / "c.raw").exists(), "something is left")


@with_qemu
def test_check(rig, disk):
    disk("create", "a.qcow2", "16M")
    write(rig.dir, "a.qcow2", "write -P 1 0 8M")
    expect("sound" in disk("check", "a.qcow2").out, "sound")
    # A cluster that is counted and that nobody names: the entry is made that of zeros.
    with open(rig.dir / "a.qcow2", "r+b") as f:
        f.seek(4 * 65536)
        f.write((1).to_bytes(8, "big"))
    qemu(rig.dir, "qemu-img", "check", "a.qcow2", status=3)
    expect("leak" in disk("check", "a.qcow2", status=6).out, "leak")
    o = disk("check", "--json", "--repair", "a.qcow2").lines()[-1]
    expect((o["leaks"], o["damages"], o["repaired"]) == (0, 0, 1), str(o))
    qemu(rig.dir, "qemu-img", "check", "a.qcow2")
    # Lazy reference counts of a program that was killed.
    qemu(rig.dir, "qemu-img", "create", "-f", "qcow2", "-o", "lazy_refcounts=on", "lazy.qcow2", "16M")
    qemu(rig.dir, "sh", "-c", "qemu-io -f qcow2 -c 'write -P 1 0 3M' -c flush -c abort lazy.qcow2; true")
    expect("check --repair" in disk("resize", "lazy.qcow2", "20M", status=1).err, "not written before it is repaired")
    disk("check", "lazy.qcow2", status=7)
    disk("check", "--repair", "lazy.qcow2")
    qemu(rig.dir, "qemu-img", "check", "lazy.qcow2")
    write(rig.dir, "lazy.qcow2", "read -P 1 0 3M")
    disk("resize", "lazy.qcow2", "20M")
    # Two that name the same cluster are no matter of counting.
    with open(rig.dir / "a.qcow2", "r+b") as f:
        f.seek(4 * 65536 + 8)
        entry = f.read(8)
        f.seek(4 * 65536 + 16)
        f.write(entry)
    disk("check", "a.qcow2", status=7)
    expect("no tables" in disk("check", "--format", "raw", "a.qcow2", status=1).err, "raw")


@with_qemu
def test_resize(rig, disk):
    disk("create", "a.qcow2", "1G")
    write(rig.dir, "a.qcow2", "write -P 1 1000M 24M")
    disk("resize", "a.qcow2", "+3G")
    write(rig.dir, "a.qcow2", "read -P 1 1000M 24M", "read -P 0 1G 16M", "read -P 0 2G 16M", "write -P 2 3G 1M")
    expect("--shrink" in disk("resize", "a.qcow2", "1010M", status=1).err, "shrinking")
    disk("resize", "--shrink", "a.qcow2", "1010M")
    disk("resize", "a.qcow2", "4G")
    write(rig.dir, "a.qcow2", "read -P 1 1000M 10M", "read -P 0 1010M 32M", "read -P 0 3G 1M")
    disk("create", "r.raw", "1M")
    disk("resize", "r.raw", "2M")
    expect((rig.dir / "r.raw").stat().st_size == 2 * MIB, "raw")
    expect("512" in disk("resize", "r.raw", "2100001", status=1).err, "no multiple")
    sound(rig, disk)


@with_qemu
def test_snapshots(rig, disk):
    was = chain(rig, disk)
    layers = tree(disk)
    expect(list(layers) == ["one", "two", "three", "web.qcow2"] and layers["web.qcow2"]["disk"], str(layers))
    expect(layers["two"]["below"].endswith("web.one.qcow2") and layers["one"]["below"] is None, str(layers))
    expect(len(disk("list", "web.qcow2").out.splitlines()) == 4, "a line for each")
    was["disk"].must_be("web.qcow2")
    for name in ("one", "two", "three"):
        was[name].must_be(f"web.{name}.qcow2")
    expect("is there already" in disk("snapshot", "web.qcow2", "two", status=1).err, "the name is taken")
    # In the middle, at the bottom, at the top; everything else holds what it held.
    disk("delete", "web.qcow2", "two")
    was["disk"].must_be("web.qcow2")
    was["one"].must_be("web.one.qcow2")
    was["three"].must_be("web.three.qcow2")
    disk("delete", "web.qcow2", "one")
    was["three"].must_be("web.three.qcow2")
    disk("revert", "web.qcow2", "three")
    was["three"].must_be("web.qcow2")
    write(rig.dir, "web.qcow2", "write -P 77 0 16M")
    now = Contents(rig.dir, "web.qcow2")
    disk("delete", "web.qcow2", "three")
    now.must_be("web.qcow2")
    expect(list(tree(disk)) == ["web.qcow2"], "one layer is left")
    sound(rig, disk)
    expect("no snapshot" in disk("revert", "web.qcow2", "two", status=1).err, "gone")
    disk("revert", "web.qcow2", "web.qcow2", status=1)


@with_qemu
def test_branches(rig, disk):
    was = chain(rig, disk)
    disk("revert", "web.qcow2", "one")
    was["one"].must_be("web.qcow2")
    write(rig.dir, "web.qcow2", "write -P 33 0 1M")
    now = Contents(rig.dir, "web.qcow2")
    layers = tree(disk)
    expect(set(layers) == {"one", "two", "three", "web.qcow2"} and layers["web.qcow2"]["below"].endswith("one.qcow2"), str(layers))
    r = disk("delete", "web.qcow2", "one", status=1)
    expect("web.two.qcow2" in r.err and "stand on it" in r.err, r.err)
    r = disk("commit", "web.qcow2", status=1)
    expect("stand on it" in r.err, r.err)
    disk("delete", "web.qcow2", "two")  # three stands on it
    was["three"].must_be("web.three.qcow2")
    disk("delete", "web.qcow2", "three")  # a leaf
    now.must_be("web.qcow2")
    disk("commit", "web.qcow2")
    now.must_be("web.qcow2")
    now.must_be("web.one.qcow2")
    expect((rig.dir / "web.qcow2").stat().st_size < MIB, "the disk's own layer is empty")
    # Somebody else's image is none of the disk's.
    disk("create", "other.qcow2", "1M")
    expect("no layer of" in disk("delete", "web.qcow2", "other.qcow2", status=1).err, "another disk")
    # One that cannot be read may stand on anything.
    qemu(rig.dir, "qemu-img", "create", "-f", "qcow2", "-o", "extended_l2=on", "strange.qcow2", "1M")
    expect("strange.qcow2" in disk("commit", "web.qcow2", status=1).err, "unclear")
    os.unlink(rig.dir / "strange.qcow2")
    # What was killed while it made an image stands on nothing.
    for size in 0, 3 * 65536:
        (rig.dir / "web.half.qcow2").write_bytes(bytes(size))
        disk("commit", "web.qcow2")
    expect("no qcow2 image" in disk("revert", "web.qcow2", "half", status=1).err.replace("not a", "no"), "nothing to go back to")
    os.unlink(rig.dir / "web.half.qcow2")
    sound(rig, disk)


@with_qemu
def test_commit_into_raw(rig, disk):
    disk("create", "base.raw", "8M")
    disk("create", "--backing", "base.raw", "top.qcow2", "12M")
    write(rig.dir, "top.qcow2", "write -P 5 1M 2M", "write -z 1M 64k", "write -P 6 11M 1M")
    was = Contents(rig.dir, "top.qcow2")
    disk("commit", "top.qcow2")
    was.must_be("top.qcow2")
    qemu(rig.dir, "qemu-img", "compare", "-f", "raw", "-F", "raw", was.raw, "base.raw")
    r = disk("delete", "top.qcow2", "./base.raw", status=1)
    expect("commit" in r.err, r.err)
    sound(rig, disk)


def interrupted(rig, *words):
    """Ctrl-C, then kill -9, in the middle of a merge; then it is done."""
    for number, status in ((signal.SIGINT, 5), (signal.SIGKILL, -9)):
        p = rig.a.popen("disk", words[0], "--rate", "2M", *words[1:], cwd=rig.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda p=p: p.poll() is not None or list(rig.dir.glob("*.leaving")), "the merge to begin")
        expect(p.poll() is None, "it was done too soon to be interrupted")
        p.send_signal(number)
        _, err = p.communicate()
        expect(p.returncode == status and (status < 0 or "reads as before" in err), f"{p.returncode}: {err}")
        yield
    rig.a.run("disk", *words, cwd=rig.dir).must(0)
    yield


@with_qemu
def test_interrupted(rig, disk):
    was = chain(rig, disk)
    for _ in interrupted(rig, "delete", "web.qcow2", "two"):
        was["disk"].must_be("web.qcow2")
        was["three"].must_be("web.three.qcow2")
        was["one"].must_be("web.one.qcow2")
        if "two" in tree(disk):
            expect(tree(disk)["two"]["leaving"], "it is marked")
            expect("finish that" in disk("revert", "web.qcow2", "two", status=1).err, "it is void")
    write(rig.dir, "web.qcow2", "write -P 44 0 12M")
    now = Contents(rig.dir, "web.qcow2")
    for _ in interrupted(rig, "commit", "web.qcow2"):
        now.must_be("web.qcow2")
        was["one"].must_be("web.one.qcow2")
    sound(rig, disk)


@with_qemu
def test_in_use(rig, disk):
    chain(rig, disk)
    with in_use_by_qemu(rig, "web.qcow2"):
        for words in (("snapshot", "web.qcow2", "four"), ("resize", "web.qcow2", "20M"), ("revert", "web.qcow2", "one"), ("commit", "web.qcow2"),
                      ("delete", "web.qcow2", "two"), ("check", "web.qcow2")):
            expect("in use" in disk(*words, status=1).err or "being written" in disk(*words, status=1).err, str(words))
        disk("list", "web.qcow2")
    sound(rig, disk)


@with_qemu
def test_convert_into_qcow2(rig, disk):
    was = chain(rig, disk)
    disk("convert", "web.qcow2", "copy.qcow2")
    was["disk"].must_be("copy.qcow2")
    disk("convert", "--overwrite", "copy.qcow2", "copy.qcow2")
    was["disk"].must_be("copy.qcow2")
    disk("convert", "--target-format", "qcow2", "web.qcow2", "copy.img")
    was["disk"].must_be("copy.img")
    (rig.dir / "again.qcow2.partial").write_bytes(b"of one that was killed")
    disk("convert", "web.qcow2", "again.qcow2")
    was["disk"].must_be("again.qcow2")
    sound(rig, disk)


class Served:
    """A disk, offered by `disk serve`, and written by its clients."""

    def __init__(self, rig, disk="web.qcow2"):
        self.rig, self.disk = rig, disk

    def __enter__(self):
        self.process = self.rig.a.popen("disk", "serve", "--unix", "s.sock", self.disk, cwd=self.rig.dir, stdout=subprocess.PIPE, text=True)
        self.uri = self.process.stdout.readline().strip()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def do(self, *commands):
        write_raw(self.rig.dir, self.uri, *commands)

    def kill(self):
        self.process.kill()
        self.process.wait()


def write_raw(folder, name, *commands):
    qemu(folder, "qemu-io", "-f", "raw", *[word for c in commands for word in ("-c", c)], name)


@with_qemu
def test_while_it_is_served(rig, disk):
    """The same commands go to the server of the disk, and do what they do without one."""
    was = chain(rig, disk)
    with Served(rig) as served:
        r = disk("snapshot", "--json", "web.qcow2", "four").result()
        expect(r["path"].endswith("/web.four.qcow2") and r["held_ns"] > 0, str(r))
        served.do("write -P 10 3M 2M")
        was["disk"].must_be("web.four.qcow2")
        expect("is there already" in disk("snapshot", "web.qcow2", "four", status=1).err, "the name is taken")
        expect("requests waited for" in disk("snapshot", rig.dir / "web.qcow2", "five").out, "how long")
        expect(list(tree(disk)) == ["one", "two", "three", "four", "five", "web.qcow2"], str(tree(disk)))
        disk("delete", "web.qcow2", "two")
        disk("delete", "web.qcow2", "five")
        served.do("read -P 10 3M 2M", "write -P 11 4M 64k")
        expect(list(tree(disk)) == ["one", "three", "four", "merging", "web.qcow2"], str(tree(disk)))
        was["three"].must_be("web.three.qcow2")
        was["disk"].must_be("web.four.qcow2")
        disk("commit", "web.qcow2")
        expect("shut the guest down" in disk("revert", "web.qcow2", "one", status=1).err, "revert")
        disk("snapshot", "web.qcow2", "merging", status=2)
        expect("no snapshot" in disk("delete", "web.qcow2", "two", status=1).err, "it is gone")
        # What stands beside the disk is not below it: as if it were not in use.
        disk("create", "--backing", "web.one.qcow2", "web.side.qcow2")
        expect("stand on it" in disk("delete", "web.qcow2", "one", status=1).err, "two stand on it")
        disk("delete", "web.qcow2", "side")
        served.do("read -P 10 3M 1M", "read -P 11 4M 64k", "read -P 10 4160k 960k")
    was["one"].must_be("web.one.qcow2")
    sound(rig, disk)
    expect(not list((rig.dir / "run").iterdir()), "a socket is left")


@with_qemu
def test_looks_go_to_the_server(rig, disk):
    """What is only in the memory of who serves the disk is in what info and check say."""
    disk("create", "web.qcow2", "64M")
    with Served(rig) as served:
        served.do("write -P 1 1M 3M", "write -P 2 40M 1M")
        o = json.loads(disk("info", "--json", "web.qcow2").out)
        expect((o["format"], o["data_here"], o["data_below"], o["zeros"], o["note"]) == ("qcow2", 4 * MIB, 0, 60 * MIB, "in use"), str(o))
        expect("4.00 MiB here" in disk("info", "web.qcow2").out, "text")
        disk("snapshot", "web.qcow2", "one")
        served.do("write -P 3 1M 1M", "discard 2M 1M")
        o = json.loads(disk("info", "--json", "web.qcow2").out)
        expect((o["data_here"], o["data_below"]) == (MIB, 3 * MIB), str(o))
        for words in ("check", "web.qcow2"), ("check", "--json", "web.qcow2"):
            expect("sound" in disk(*words).out or disk(*words).result()["leaks"] == 0, str(words))
        served.do("write -P 4 8M 4M")
        expect("sound" in disk("check", "web.qcow2").out, "while it is written")
        expect("in use" in disk("check", "--repair", "web.qcow2", status=1).err, "not repaired")
        expect("sound" in disk("check", "web.one.qcow2").out, "a layer below is not the disk")
    sound(rig, disk)
    disk("create", "r.raw", "1M")
    with Served(rig, "r.raw"):
        expect(json.loads(disk("info", "--json", "r.raw").out)["format"] == "raw", "raw")
        expect("raw disk" in disk("check", "r.raw", status=1).err, "raw")


@with_qemu
def test_a_killed_server_leaves_nothing_for_long(rig, disk):
    """The socket for its commands goes when the next server begins."""
    chain(rig, disk)
    with Served(rig) as served:
        served.kill()
    left = [path.name for path in (rig.dir / "run").glob("*.sock")]
    with Served(rig) as served:
        now = [path.name for path in (rig.dir / "run").glob("*.sock")]
        expect(len(left) == 1 and now == [f"serve-{served.process.pid}.sock"], f"{left} {now}")
    expect(not list((rig.dir / "run").glob("*.sock")), "a socket is left")


@contextlib.contextmanager
def server_that_ends(rig, says=b""):
    """It takes each connection, says that and ends it, as one does that was told to end meanwhile."""
    (rig.dir / "run").mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(rig.dir / "run" / "serve-1.sock"))
        s.listen()
        taken = []

        def serve():
            while len(taken) < 100:
                with s.accept()[0] as c, contextlib.suppress(BrokenPipeError):
                    taken.append(1)
                    if says and c.recv(1 << 16):
                        c.sendall(says)

        threading.Thread(target=serve, daemon=True).start()
        yield taken
        taken.extend([1] * 100)
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(s.getsockname())


@with_qemu
def test_another_server_ends_meanwhile(rig, disk):
    """The server of whichever disk, asked whether this one is its own, and gone before it said so."""
    was = chain(rig, disk)
    with server_that_ends(rig) as taken:
        disk("snapshot", "web.qcow2", "four")
        with Served(rig) as served:
            disk("snapshot", "web.qcow2", "five")
            served.do("write -P 10 3M 2M")
        expect(list(tree(disk)) == ["one", "two", "three", "four", "five", "web.qcow2"], str(tree(disk)))
        expect(taken, "it was not asked")
    for says, heard in (b'{"type":"begun"}\n', "the server of the disk ended; say it again"), (b'{"type":"error","code":-32,"text":"xvda: its process died"}\n', "xvda: its process died"):
        (rig.dir / "run" / "serve-1.sock").unlink()
        with server_that_ends(rig, says):
            expect(disk("snapshot", "web.qcow2", "six", status=1).err.strip() == f"pagurus: {heard}", str(says))
    was["disk"].must_be("web.four.qcow2")
    sound(rig, disk)


@contextlib.contextmanager
def stopped(process):
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def is_connected(process):
    """Whether it has a socket: it then asks a server."""
    with contextlib.suppress(OSError):
        return any(os.readlink(link).startswith("socket:") for link in pathlib.Path(f"/proc/{process.pid}/fd").iterdir())
    return False


@with_qemu
def test_a_server_that_stands_still(rig, disk):
    """It holds up nobody for ever, and whoever asks it can be stopped."""
    disk("create", "other.qcow2", "8M")
    write(rig.dir, "other.qcow2", "write -P 7 0 1M")
    chain(rig, disk)
    with Served(rig) as served, stopped(served.process):
        asked = [rig.a.popen(*words, cwd=rig.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                 for words in (("status",), ("disk", "snapshot", "other.qcow2", "one"), ("disk", "snapshot", "web.qcow2", "four"))]
        p = rig.a.popen("disk", "snapshot", "other.qcow2", "two", cwd=rig.dir, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: is_connected(p), "the question")
        p.send_signal(signal.SIGINT)
        err = p.communicate(timeout=PATIENCE)[1]
        expect(p.returncode == 5 and "stopped" in err, f"{p.returncode}: {err}")
        # There is no daemon either; and the last disk is in use.
        for p, status in zip(asked, (1, 0, 1)):
            err = p.communicate(timeout=PATIENCE)[1]
            expect(p.returncode == status and "serve-" in err and "does not answer" in err, f"{p.args}: {p.returncode}: {err}")
    names = [layer["name"] for layer in disk("list", "--json", "other.qcow2").lines()]
    expect(names == ["one", "other.qcow2"] and "four" not in tree(disk), f"{names} {list(tree(disk))}")
    sound(rig, disk)


@with_qemu
def test_marks_of_files_that_are_gone(rig, disk):
    """What a kill between the last steps of a merge leaves does not make another file of that name void."""
    was = chain(rig, disk)
    for name in "four", "five":
        (rig.dir / f"web.{name}.qcow2.leaving").touch()
    disk("snapshot", "web.qcow2", "four")
    with Served(rig):
        disk("snapshot", "web.qcow2", "five")
    expect(not any(layer["leaving"] for layer in tree(disk).values()), str(tree(disk)))
    disk("revert", "web.qcow2", "four")
    was["disk"].must_be("web.qcow2")
    sound(rig, disk)


@with_qemu
def test_served_and_interrupted(rig, disk):
    """A merge of a served disk is stopped, its server killed; said again with and without a server it is finished."""
    was = chain(rig, disk)
    for again in True, False:
        finished = False
        with Served(rig) as served:
            for words in (("delete", "web.qcow2", "two" if again else "one"), ("commit", "web.qcow2")):
                for end in "stop", "kill":
                    p = rig.a.popen("disk", words[0], "--rate", "256K", *words[1:], cwd=rig.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                    wait_until(lambda p=p: p.poll() is not None or list(rig.dir.glob("*.leaving")), "the merge to begin")
                    served.do("read -P 9 2M 1M", "write -P 9 2M 1M")
                    if end == "stop":
                        p.send_signal(signal.SIGINT)
                    elif words[0] == "commit":
                        served.kill()
                    else:
                        p.kill()
                    err = p.communicate()[1]
                    # Killed before it began, the server left all of it to the command.
                    finished = (words[0], end, p.returncode) == ("commit", "kill", 0)
                    expect(finished or p.returncode == {"stop": 5, "kill": 1 if words[0] == "commit" else -9}[end], f"{words} {end}: {p.returncode} {err}")
                    expect(not finished or ("merging" not in tree(disk) and not list(rig.dir.glob("*.leaving"))), f"said to be done: {tree(disk)}")
                if words[0] == "delete":
                    # The server has noticed that its client has gone when it takes the next.
                    wait_until(lambda w=words: rig.a.run("disk", *w, cwd=rig.dir).status == 0, "the merge to be finished")
            was["disk"].must_be("web.qcow2")
        if again:
            with Served(rig) as served:
                if not finished:
                    disk("commit", "web.qcow2")
                served.do("read -P 9 2M 1M")
        elif not finished:
            disk("commit", "web.qcow2")
        was["disk"].must_be("web.qcow2")
        sound_when_repaired(rig, disk)


def asks(rig, served, request):
    """A connection to the server's commands, and the first answer: None when there was no place."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(PATIENCE)
    s.connect(str(rig.dir / "run" / f"serve-{served.process.pid}.sock"))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        s.sendall(json.dumps(request).encode() + b"\n")
        line = s.makefile().readline()
        if line:
            return s, json.loads(line)
    s.close()
    return s, None


@with_qemu
def test_who_has_gone_does_not_wait_for_a_merge(rig, disk):
    """As many as there are places ask for snapshots behind a long merge, and go: the server has room for others at once, and makes none of the snapshots later."""
    disk("create", "web.qcow2", "128M")
    disk("snapshot", "web.qcow2", "one")
    with Served(rig) as served:
        served.do("write -P 10 0 128M")
        merge = rig.a.popen("disk", "commit", "--rate", "2M", "web.qcow2", cwd=rig.dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: merge.poll() is not None or list(rig.dir.glob("*.leaving")), "the merge to begin")
        waiting = []
        while True:
            s, answer = asks(rig, served, {"request": "snapshot", "disk": str(rig.dir / "web.qcow2"), "name": f"gone-{len(waiting)}"})
            if not answer:
                break
            expect(answer["type"] == "begun" and len(waiting) < 100, f"{len(waiting)}: {answer}")
            waiting.append(s)
        expect(waiting, "nobody waits")
        # One stays.
        stays = waiting.pop(len(waiting) // 2)
        for s in waiting:
            s.shutdown(socket.SHUT_RDWR)
            s.close()

        def has_room():
            s, answer = asks(rig, served, {"request": "status"})
            s.close()
            return answer and answer["type"] == "disk"
        wait_until(has_room, "room for another command")
        expect(merge.poll() is None, "there was room only when the merge had ended")
        merge.send_signal(signal.SIGINT)
        merge.wait()
        last = disk("snapshot", "--json", "web.qcow2", "last").result()
        made = sorted(path.name for path in rig.dir.glob("web.gone-*"))
        expect(last["path"].endswith("web.last.qcow2") and made == [f"web.gone-{len(waiting) // 2}.qcow2"], f"made: {made}")
        stays.close()
        served.do("read -P 10 0 128M")
    qemu(rig.dir, "qemu-img", "check", "web.qcow2")


@with_qemu
def test_killed_at_any_time_of_a_commit(rig, disk):
    """Said again, it is done, and nothing is left of the one before."""
    was = chain(rig, disk)
    for i in range(16):
        with Served(rig) as served:
            served.do(f"write -P {20 + i} {i}M 1M")
            with rig.a.popen("disk", "commit", "web.qcow2", cwd=rig.dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
                time.sleep(i / 100)
                served.kill()
        disk("commit", "web.qcow2")
        # Of itself: sound_when_repaired().
        below = {name: layer["below"] and os.path.basename(layer["below"]) for name, layer in tree(disk).items()}
        expect(below.pop("merging", "web.merging.qcow2") == "web.merging.qcow2" and below["web.qcow2"] == "web.three.qcow2", str(below))
        expect(not list(rig.dir.glob("*.leaving")), str(sorted(os.listdir(rig.dir))))
        qemu(rig.dir, "qemu-io", "-r", "-f", "qcow2", *[word for n in range(i + 1) for word in ("-c", f"read -P {20 + n} {n}M 1M")], "web.qcow2")
    was["two"].must_be("web.two.qcow2")
    sound_when_repaired(rig, disk)


@with_qemu
def test_killed_at_the_end_of_a_commit(rig, disk):
    """The disk stands on what was merged into; what was merged is there still, and nobody's. A file like it whose name or time is another one's stays."""
    was = chain(rig, disk)
    merging, three = rig.dir / "web.merging.qcow2", rig.dir / "web.three.qcow2"
    with Served(rig):
        p = rig.a.popen("disk", "commit", "--rate", "256K", "web.qcow2", cwd=rig.dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(merging.exists, "the layer on top")
        wait_until(lambda: list(rig.dir.glob("*.leaving")), "the merge to begin")
        p.send_signal(signal.SIGINT)
        expect(p.wait() == 5, f"stopped: {p.returncode}")
    merged = merging.read_bytes()
    disk("commit", "web.qcow2")

    def killed(leaving=True):
        merging.write_bytes(merged)
        if leaving:
            three.with_name(f"{three.name}.leaving").touch()
        expect(tree(disk)["merging"]["below"] == str(three) == tree(disk)["web.qcow2"]["below"], str(tree(disk)))

    def gone():
        expect(not merging.exists() and not list(rig.dir.glob("*.leaving")), str(sorted(os.listdir(rig.dir))))

    killed()
    with Served(rig) as served:
        served.do("write -P 12 6M 1M")
        disk("commit", "web.qcow2")
        served.do("read -P 12 6M 1M")
    gone()
    killed()
    disk("commit", "web.qcow2")
    gone()
    killed()
    disk("delete", "web.qcow2", "two")
    gone()
    for name in "web.mine.qcow2", "merging.qcow2", "merging-mine.qcow2":
        killed()
        merging.rename(rig.dir / name)
        expect("stand on it" in disk("commit", "web.qcow2", status=1).err and (rig.dir / name).exists(), name)
        (rig.dir / name).unlink()
    three.with_name(f"{three.name}.leaving").unlink()
    killed(leaving=False)
    expect("stand on it" in disk("commit", "web.qcow2", status=1).err and merging.exists(), "nothing was being merged")
    merging.unlink()
    qemu(rig.dir, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 12 6M 1M", "web.qcow2")
    was["one"].must_be("web.one.qcow2")
    sound(rig, disk)
