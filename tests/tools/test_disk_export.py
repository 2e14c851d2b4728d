# SPDX-License-Identifier: MIT
"""pagurus disk export: one moment of a disk, whoever uses it meanwhile; and what is left behind."""

import os
import signal
import subprocess
import threading

from rig import expect, wait_until
from test_disk_layers import Contents, Served, chain, in_use_by_qemu, qemu, sound, tree, with_qemu, write, write_raw

MIB = 1 << 20


def same(rig, contents, name, file_format="raw"):
    qemu(rig.dir, "qemu-img", "compare", "-f", "raw", "-F", file_format, contents.raw, name)


def nothing_left(rig, *names):
    """No half of a copy, none of these files, and no snapshot that was made for one."""
    left = [p.name for p in rig.dir.iterdir() if p.name.endswith(".partial") or ".export-" in p.name or p.name in names]
    expect(not left, f"left behind: {left}")


def to_pipe(rig, *words, **more):
    """An export to a pipe that nobody reads yet."""
    return rig.a.popen("disk", "export", *words, "-", cwd=rig.dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **more)


def big(rig, name="big.raw"):
    """More than a pipe takes at once, all of it data."""
    with open(rig.dir / name, "wb") as f:
        for i in range(64):
            f.write(bytes([i + 1]) * MIB)
    return (rig.dir / name).read_bytes()


@with_qemu
def test_files(rig, disk):
    was = chain(rig, disk)
    o = disk("export", "--json", "web.qcow2", "flat.raw").result()
    expect((o["format"], o["size"], o["held_ns"]) == ("raw", 16 * MIB, 0), str(o))
    same(rig, was["disk"], "flat.raw")
    expect((rig.dir / "flat.raw").stat().st_blocks * 512 < 14 * MIB, "the copy is not sparse")
    expect((rig.dir / "flat.raw").stat().st_mode & 0o777 == 0o600, "others can read it")
    disk("export", "web.qcow2", "flat.qcow2")
    same(rig, was["disk"], "flat.qcow2", "qcow2")
    disk("export", "--target-format", "qcow2", "web.qcow2", "flat.img")
    same(rig, was["disk"], "flat.img", "qcow2")
    before = (rig.dir / "flat.raw").read_bytes()
    expect("--overwrite" in disk("export", "--snapshot", "one", "web.qcow2", "flat.raw", status=1).err, "it is there")
    expect((rig.dir / "flat.raw").read_bytes() == before, "it was written over")
    for name in "one", "two", "three":
        disk("export", "--overwrite", "--snapshot", name, "web.qcow2", "flat.raw")
        same(rig, was[name], "flat.raw")
        disk("export", f"web.{name}.qcow2", f"{name}.raw")
        same(rig, was[name], f"{name}.raw")
    expect("no snapshot" in disk("export", "--snapshot", "four", "web.qcow2", "four.raw", status=1).err, "no such snapshot")
    (rig.dir / "web.two.qcow2.leaving").touch()
    expect("finish that" in disk("export", "--snapshot", "two", "web.qcow2", "void.raw", status=1).err, "it is void")
    os.unlink(rig.dir / "web.two.qcow2.leaving")
    disk("export", "web.qcow2", "no/such/folder", status=1)
    expect("convert" in disk("export", "web.qcow2", "nbd://localhost/x", status=1).err, "no file")
    nothing_left(rig, "void.raw", "four.raw")
    sound(rig, disk)


@with_qemu
def test_standard_output(rig, disk):
    was = chain(rig, disk)
    whole = (rig.dir / was["disk"].raw).read_bytes()
    p = to_pipe(rig, "web.qcow2")
    out, err = p.communicate()
    expect(p.returncode == 0 and out == whole and not err, f"{p.returncode}: {len(out)} bytes, {err}")
    # Into a file: its holes are holes; behind something it is appended.
    for mode, before in ("wb", b""), ("ab", b"first"):
        with open(rig.dir / "out", mode) as f:
            f.write(before if mode == "ab" else b"")
            f.flush()
            rig.a.popen("disk", "export", "web.qcow2", "-", cwd=rig.dir, stdout=f).wait()
        if mode == "wb":
            expect((rig.dir / "out").stat().st_blocks * 512 < 14 * MIB, "not sparse")
            expect((rig.dir / "out").read_bytes() == whole, "another content")
            os.truncate(rig.dir / "out", 0)
    expect((rig.dir / "out").read_bytes() == b"first" + whole, "not appended")
    # What is there already is not taken for zeros.
    (rig.dir / "full").write_bytes(b"x" * (17 * MIB))
    with open(rig.dir / "full", "r+b") as f:
        rig.a.popen("disk", "export", "web.qcow2", "-", cwd=rig.dir, stdout=f).wait()
    expect((rig.dir / "full").read_bytes() == whole + b"x" * MIB, "what was there shows through")
    expect("raw" in disk("export", "--target-format", "qcow2", "web.qcow2", "-", status=1).err, "qcow2")
    disk("export", "--json", "web.qcow2", "-", status=2)
    # A size that is no multiple of a sector is rounded up.
    (rig.dir / "odd.raw").write_bytes(b"y" * 1000)
    p = to_pipe(rig, "odd.raw")
    expect(p.communicate()[0] == b"y" * 1000 + bytes(24), "rounded up")


@with_qemu
def test_readers_that_go(rig, _disk):
    big(rig)
    p = to_pipe(rig, "big.raw")
    expect(p.stdout.read(1000) == bytes([1]) * 1000, "the beginning")
    p.stdout.close()
    err = p.stderr.read()
    expect(p.wait() == 1 and b"Broken pipe" in err, f"{p.returncode}: {err}")
    p = to_pipe(rig, "big.raw")
    p.stdout.read(1)
    p.send_signal(signal.SIGINT)
    expect(p.wait() == 5, f"{p.returncode}")
    p.communicate()
    # A file that may get no larger than 1 MiB.
    p = subprocess.run(["bash", "-c", 'ulimit -f 1024; exec "$0" disk export big.raw - > out', p.args[0]], cwd=rig.dir, capture_output=True, check=False)
    expect(p.returncode == 1 and (rig.dir / "out").read_bytes() == b"", f"{p.returncode}: {p.stderr}")


@with_qemu
def test_in_use(rig, disk):
    """Two places of the disk are written with the same numbers, one after the other, all the time; a copy never has the second without the first."""
    chain(rig, disk)
    stop = threading.Event()

    def work(served):
        number = 100
        while not stop.is_set():
            served.do(f"write -P {number} 0 64k", f"write -P {number} 12M 64k")
            number = number + 1 if number < 250 else 100

    with Served(rig) as served:
        served.do("write -P 100 0 64k", "write -P 100 12M 64k")
        worker = threading.Thread(target=work, args=(served,))
        worker.start()
        try:
            for target in "a.raw", "b.raw", "c.raw":
                o = disk("export", "--json", "web.qcow2", target).result()
                expect(o["held_ns"] > 0, str(o))
                copy = (rig.dir / target).read_bytes()
                first, second = copy[0], copy[12 * MIB]
                expect(copy[:65536] == bytes([first]) * 65536 and (first == second or first == (second + 1 if second < 250 else 100)),
                       f"{target}: {first}, then {second}")
            out = to_pipe(rig, "web.qcow2").communicate()
            expect(len(out[0]) == 16 * MIB and b"requests waited for" in out[1], str(out[1]))
        finally:
            stop.set()
            worker.join()
        # A snapshot needs nobody's leave.
        disk("export", "--snapshot", "one", "web.qcow2", "one.raw")
        expect(disk("export", "web.qcow2", "again.raw").out.count("requests waited for") == 1, "how long")
        nothing_left(rig)
        expect(set(tree(disk)) <= {"one", "two", "three", "merging", "web.qcow2"}, str(tree(disk)))
    sound(rig, disk)


@with_qemu
def test_in_use_and_stopped(rig, disk):
    was = chain(rig, disk)
    with Served(rig) as served:
        for end in "stop", "reader", "kill the server":
            p = to_pipe(rig, "web.qcow2")
            p.stdout.read(1)
            expect(len([n for n in tree(disk) if n.startswith("export-")]) == 1, "a snapshot while it lasts")
            served.do("write -P 33 0 1M", "read -P 33 0 1M") if end == "stop" else None
            if end == "stop":
                p.send_signal(signal.SIGINT)
            elif end == "reader":
                p.stdout.close()
            else:
                served.kill()
                out, err = p.communicate()
                expect(p.returncode == 0 and len(out) == 16 * MIB - 1, f"{p.returncode}: {err}")
            err = err if end == "kill the server" else p.stderr.read()
            expect(p.wait() == {"stop": 5, "reader": 1, "kill the server": 0}[end], f"{end}: {p.returncode}: {err}")
            nothing_left(rig)
    write(rig.dir, "web.qcow2", "read -P 33 0 1M", "write -z 0 1M")
    qemu(rig.dir, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", "web.three.qcow2", was["three"].raw)
    for path in rig.dir.glob("*.qcow2"):
        disk("check", "--repair", path.name)
    sound(rig, disk)


@with_qemu
def test_in_use_by_others(rig, disk):
    chain(rig, disk)
    with in_use_by_qemu(rig, "web.qcow2"):
        err = disk("export", "web.qcow2", "x.raw", status=1).err
        expect("being written" in err, err)
        disk("export", "--snapshot", "three", "web.qcow2", "three.raw")
    nothing_left(rig, "x.raw")


@with_qemu
def test_raw_in_use(rig, disk):
    """Where the file system clones files there is a copy, else a sentence."""
    whole = big(rig, "web.raw")
    with Served(rig, "web.raw") as served:
        r = rig.a.run("disk", "export", "web.raw", "copy.raw", cwd=rig.dir)
        if r.status:
            expect("qcow2" in r.err and r.status == 1, r.err)
            nothing_left(rig, "copy.raw")
        else:
            expect((rig.dir / "copy.raw").read_bytes() == whole, "another content")
        write_raw(rig.dir, served.uri, "write -P 9 0 64k")
    nothing_left(rig)


@with_qemu
def test_interrupted(rig, _disk):
    big(rig)
    subprocess.run(["truncate", "-s", "64G", rig.dir / "big.raw"], check=True)
    subprocess.run(["fallocate", "-l", "400M", rig.dir / "big.raw"], check=True)
    with open(rig.dir / "big.raw", "r+b") as f:
        for at in range(0, 400 * MIB, MIB):
            f.seek(at)
            f.write(b"x")
    partial = rig.dir / "copy.qcow2.partial"
    p = rig.a.popen("disk", "export", "big.raw", "copy.qcow2", cwd=rig.dir, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: p.poll() is not None or (partial.exists() and partial.stat().st_blocks > 10000), "the copy to begin")
    expect(p.poll() is None, "it was done too soon to be interrupted")
    p.send_signal(signal.SIGINT)
    err = p.communicate()[1]
    expect(p.returncode == 5 and "nothing was made" in err, f"{p.returncode}: {err}")
    nothing_left(rig, "copy.qcow2")
