# SPDX-License-Identifier: MIT
"""pagurus disk bitmap, and serve --bitmap: dirty bitmaps of qcow2 that we and QEMU's tools keep in turn."""

import json
import os
import shutil
import subprocess

from rig import expect, wait_until
from test_disk_layers import qemu, sound, tree, with_programs, write

MIB = 1 << 20


with_qemu = with_programs("qemu-utils and libnbd-bin", "qemu-img", "qemu-io", "nbdinfo", "nbdcopy")


def of_qemu(rig, name="a.qcow2"):
    """What qemu-img says of the bitmaps: name to (granularity, flags)."""
    done = subprocess.run(["qemu-img", "info", "--output=json", name], cwd=rig.dir, check=True, capture_output=True)
    found = json.loads(done.stdout)["format-specific"]["data"].get("bitmaps", [])
    return {b["name"]: (b["granularity"], sorted(b["flags"])) for b in found}


def of_us(disk, name="a.qcow2"):
    return {o["name"]: (o["granularity"], o["dirty"], o["state"]) for o in disk("bitmap", "list", "--json", name).lines()}


class Server:
    """A server, ours or qemu-nbd, that shows a bitmap."""

    def __init__(self, rig, *words, ours=True, name="a.qcow2"):
        self.rig, self.socket = rig, rig.dir / "s.sock"
        if ours:
            self.process = rig.a.popen("disk", "serve", "--unix", self.socket, *words, name, cwd=rig.dir, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                       text=True)
            expect("://" in self.process.stdout.readline(), "it did not start")
        else:
            pid = rig.dir / "nbd.pid"
            subprocess.run(["qemu-nbd", "--fork", f"--pid-file={pid}", "-t", "-r", "-f", "qcow2", "-k", self.socket, *words, name], cwd=rig.dir, check=True,
                           stdin=subprocess.DEVNULL)
            self.process, self.pid = None, int(pid.read_text())
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process:
            if self.process.poll() is None:
                self.process.terminate()
            self.process.wait()
            self.process.stdout.close()
        else:
            os.kill(self.pid, 15)
            wait_until(lambda: not os.path.exists(f"/proc/{self.pid}"), "the end of qemu-nbd")

    def map(self, name):
        done = subprocess.run(["nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", self.uri], check=True, capture_output=True)
        return [(e["offset"], e["length"]) for e in json.loads(done.stdout) if e["type"] & 1]

    def do(self, *commands):
        qemu(self.rig.dir, "qemu-io", "-f", "raw", *[word for c in commands for word in ("-c", c)], self.uri)


def map_of(rig, name="b", ours=True, image="a.qcow2"):
    with Server(rig, *(["--read-only", "--bitmap", name] if ours else ["-B", name]), ours=ours, name=image) as s:
        return s.map(name)


@with_qemu
def test_both_ways(rig, disk):
    """Made here and there, written here and there, read here and there."""
    disk("create", "a.qcow2", "64M")
    qemu(rig.dir, "qemu-img", "create", "-f", "qcow2", "q.qcow2", "64M")
    for image in "a.qcow2", "q.qcow2":
        disk("bitmap", "add", image, "b")
        qemu(rig.dir, "qemu-img", "bitmap", "--add", "-g", "4096", image, "fine")
        expect(of_qemu(rig, image) == {"b": (65536, ["auto"]), "fine": (4096, ["auto"])}, str(of_qemu(rig, image)))
        expect(of_us(disk, image) == {"b": (65536, 0, "recording"), "fine": (4096, 0, "recording")}, str(of_us(disk, image)))
        write(rig.dir, image, "write -P 1 1M 64k")  # QEMU
        with Server(rig, name=image) as s:  # us
            s.do("write -P 2 20M 5k", "write -z 40M 128k", "discard 50M 64k")
        for ours in True, False:
            expect(map_of(rig, "b", ours, image) == [(MIB, 65536), (20 * MIB, 65536), (40 * MIB, 131072), (50 * MIB, 65536)], f"ours {ours}")
            expect(map_of(rig, "fine", ours, image)[1] == (20 * MIB, 8192), f"fine, ours {ours}: {map_of(rig, 'fine', ours, image)}")
        disk("bitmap", "clear", image, "b")
        expect(map_of(rig, "b", False, image) == [] and of_us(disk, image)["fine"][1] > 0, "cleared")
        # All of it: a table that says so without clusters.
        with Server(rig, name=image) as s:
            s.do("write -P 3 0 64M")
        expect(of_us(disk, image)["b"][1] == 64 * MIB and map_of(rig, "b", False, image) == [(0, 64 * MIB)], "all")
        qemu(rig.dir, "qemu-img", "bitmap", "--clear", image, "b")
        expect(of_us(disk, image)["b"][1] == 0, "cleared by QEMU")
        qemu(rig.dir, "qemu-img", "bitmap", "--disable", image, "b")
        with Server(rig, name=image) as s:
            s.do("write -P 3 0 1M")
        expect(of_us(disk, image)["b"] == (65536, 0, "kept"), str(of_us(disk, image)))
        expect(disk("bitmap", "clear", image, "b", status=1).err.count("--enable") == 1, "it does not record")
        disk("bitmap", "remove", image, "b")
        qemu(rig.dir, "qemu-img", "bitmap", "--remove", image, "fine")
        expect(of_qemu(rig, image) == {} and of_us(disk, image) == {}, "none is left")
        disk("bitmap", "add", image, "last")
        disk("bitmap", "remove", image, "last")
        expect(of_qemu(rig, image) == {}, "none is left")
    sound(rig, disk)


@with_qemu
def test_refusals(rig, disk):
    disk("create", "a.qcow2", "8M")
    disk("bitmap", "add", "--granularity", "512", "a.qcow2", "b")
    expect("already" in disk("bitmap", "add", "a.qcow2", "b", status=1).err, "twice")
    expect("power of two" in disk("bitmap", "add", "--granularity", "3000", "a.qcow2", "c", status=1).err, "granularity")
    disk("bitmap", "add", "a.qcow2", "x" * 1023)
    expect("1023" in disk("bitmap", "add", "a.qcow2", "x" * 1024, status=1).err, "a long name")
    expect("1023" in disk("bitmap", "add", "a.qcow2", "", status=1).err, "no name")
    for verb in "remove", "clear":
        expect("bitmap list" in disk("bitmap", verb, "a.qcow2", "none", status=1).err, verb)
    expect("no bitmap" in disk("serve", "--unix", "s", "--bitmap", "none", "a.qcow2", status=1).err, "serve")
    disk("create", "r.raw", "1M")
    expect("only qcow2" in disk("bitmap", "add", "r.raw", "b", status=1).err, "raw")
    disk("serve", "--unix", "s", "--bitmap", "b", "a.qcow2", "r.raw", status=2)
    qemu(rig.dir, "qemu-img", "create", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "1M")
    expect("version 2" in disk("bitmap", "add", "old.qcow2", "b", status=1).err, "version 2")
    expect("bitmaps" in disk("resize", "a.qcow2", "9M", status=1).err, "resize")
    disk("create", "huge.qcow2", "60T")
    expect("larger granularity" in disk("bitmap", "add", "huge.qcow2", "b", status=1).err, "too large")
    disk("bitmap", "add", "--granularity", "1M", "huge.qcow2", "b")
    disk("bitmap", "nothing", status=2)
    with Server(rig):
        expect("in use" in disk("bitmap", "add", "a.qcow2", "d", status=1).err, "in use")
    for size in 512, 1024, 4096:
        disk("create", "--cluster-size", str(size), f"s{size}.qcow2", "4M")
        disk("bitmap", "add", "--granularity", "512", f"s{size}.qcow2", "b")
        write(rig.dir, f"s{size}.qcow2", "write 0 3k", "write 3M 100k")
        expect(of_us(disk, f"s{size}.qcow2")["b"][1] == 103 << 10, str(size))
    sound(rig, disk)


@with_qemu
def test_killed(rig, disk):
    """What kept a bitmap and did not close it leaves it inconsistent, for us and for QEMU."""
    for killed in "us", "qemu":
        disk("create", "a.qcow2", "8M")
        disk("bitmap", "add", "a.qcow2", "b")
        write(rig.dir, "a.qcow2", "write 1M 64k")
        if killed == "us":
            with Server(rig) as s:
                s.do("write 2M 64k")
                s.process.kill()
        else:
            qemu(rig.dir, "sh", "-c", "qemu-io -f qcow2 -c 'write 2M 64k' -c flush -c abort a.qcow2; true")
        expect(of_qemu(rig)["b"][1] == ["auto", "in-use"], str(of_qemu(rig)))
        expect(of_us(disk)["b"] == (65536, 0, "inconsistent"), str(of_us(disk)))
        with Server(rig) as s:
            s.do("write 3M 64k")
        expect(of_qemu(rig)["b"][1] == ["auto", "in-use"], "it is not made consistent by closing it")
        for words in ("serve", "--unix", "s", "--bitmap", "b", "a.qcow2"), ("bitmap", "clear", "a.qcow2", "b"):
            expect("inconsistent" in disk(*words, status=1).err, str(words))
        disk("bitmap", "remove", "a.qcow2", "b")
        disk("check", "--repair", "a.qcow2")
        sound(rig, disk)
        os.unlink(rig.dir / "a.qcow2")


@with_qemu
def test_damaged(rig, disk):
    """What contradicts itself is not believed; who writes the image then says that it has no bitmaps any more."""
    disk("create", "good.qcow2", "8M")
    disk("bitmap", "add", "good.qcow2", "b")
    write(rig.dir, "good.qcow2", "write 1M 64k")
    disk("bitmap", "list", "good.qcow2")
    good = (rig.dir / "good.qcow2").read_bytes()
    extension = good.index(bytes.fromhex("23852875")) + 8
    directory = int.from_bytes(good[extension + 16:extension + 24], "big")
    table = int.from_bytes(good[directory:directory + 8], "big")
    clusters = len(good) // 65536
    wrong = {
        "no bitmaps of so many": (extension, 4, 2), "very many": (extension, 4, 0xffffffff), "a directory beyond the end": (extension + 16, 8, clusters + 1 << 16),
        "a directory between clusters": (extension + 16, 8, directory + 8), "a directory over the header": (extension + 16, 8, 0),
        "a directory that is too long": (extension + 8, 8, 64), "too short": (extension + 8, 8, 24), "huge": (extension + 8, 8, 1 << 62),
        "a table beyond the end": (directory, 8, 1 << 40), "a table between clusters": (directory, 8, table + 512),
        "a table that is the directory": (directory, 8, directory), "a table that is too long": (directory + 8, 4, 2), "none": (directory + 8, 4, 0),
        "a huge one": (directory + 8, 4, 0xffffffff), "unknown flags": (directory + 12, 4, 0x82), "an unknown kind": (directory + 16, 1, 2),
        "a granularity too small": (directory + 17, 1, 8), "too large": (directory + 17, 1, 63), "no name": (directory + 18, 2, 0),
        "a name too long": (directory + 18, 2, 1024), "longer than all": (directory + 18, 2, 0xffff), "more data": (directory + 20, 4, 8),
        "a zero in the name": (directory + 24, 1, 0), "bits beyond the end": (table, 8, 1 << 40), "bits between clusters": (table, 8, table + 512),
        "reserved bits": (table, 8, table | 2), "bits and ones": (table, 8, table | 1), "bits where the table is": (table, 8, table),
        "bits where the header is": (table, 8, 65536),
    }
    for why, (at, length, value) in wrong.items():
        image = bytearray(good)
        image[at:at + length] = value.to_bytes(length, "big")
        (rig.dir / "a.qcow2").write_bytes(image)
        r = rig.a.run("disk", "bitmap", "list", "a.qcow2", cwd=rig.dir)
        overlaps = why in ("a table that is the directory", "bits where the table is", "bits where the header is")
        expect(r.status == (0 if overlaps else 1) and (overlaps or "bitmaps cannot be read" in r.err), f"{why}: {r.status} {r.out} {r.err}")
        with Server(rig) as s:
            s.do("write 2M 64k", "read -P 0xcd 1M 64k", "read -P 0xcd 2M 64k")
        after = (rig.dir / "a.qcow2").read_bytes()
        expect(after[88:96] == bytes(8), f"{why}: they are still believed")
        expect(of_us(disk) == {}, why)
        write(rig.dir, "a.qcow2", "read -P 0xcd 1M 64k", "read -P 0xcd 2M 64k")
        disk("bitmap", "add", "a.qcow2", "b")
        disk("check", "--repair", "a.qcow2")
        sound(rig, disk)


@with_qemu
def test_layers(rig, disk):
    """A snapshot, of a disk in use or not, goes on with the bitmaps; to go back ends them."""
    disk("create", "web.qcow2", "16M")
    disk("bitmap", "add", "web.qcow2", "b")
    write(rig.dir, "web.qcow2", "write 1M 64k")
    disk("snapshot", "web.qcow2", "one")
    expect(of_us(disk, "web.qcow2")["b"] == (65536, 65536, "recording"), "the disk goes on with it")
    expect(of_us(disk, "web.one.qcow2")["b"] == (65536, 0, "inconsistent"), "the snapshot has none that could be believed")
    with Server(rig, "--bitmap", "b", name="web.qcow2") as s:
        s.do("write 2M 64k")
        disk("snapshot", "web.qcow2", "two")
        s.do("write 3M 64k")
        disk("export", "web.qcow2", "copy.raw")
        s.do("write 4M 64k")
        expect(s.map("b") == [(n * MIB, 65536) for n in (1, 2, 3, 4)], str(s.map("b")))
        disk("commit", "web.qcow2")
        s.do("write 5M 64k")
        expect(s.map("b") == [(n * MIB, 65536) for n in (1, 2, 3, 4, 5)], str(s.map("b")))
    expect(map_of(rig, "b", False, "web.qcow2") == [(n * MIB, 65536) for n in (1, 2, 3, 4, 5)], "after all of it")
    for layer in tree(disk).values():
        qemu(rig.dir, "qemu-img", "check", layer["path"])
    disk("delete", "web.qcow2", "one")
    disk("delete", "web.qcow2", "two")
    expect(map_of(rig, "b", False, "web.qcow2") == [(n * MIB, 65536) for n in (1, 2, 3, 4, 5)], "layers below were merged")
    # A backup after the snapshot has what is undone here.
    disk("snapshot", "web.qcow2", "three")
    write(rig.dir, "web.qcow2", "write 6M 64k")
    disk("bitmap", "clear", "web.qcow2", "b")
    disk("revert", "web.qcow2", "three")
    expect(of_us(disk, "web.qcow2") == {}, "a new layer has no bitmaps")
    disk("delete", "web.qcow2", "three")
    expect(of_us(disk, "web.qcow2")["b"][2] == "inconsistent", "an old bitmap is believed again")
    sound(rig, disk)


@with_qemu
def test_incremental_backup(rig, disk):
    """A full copy, then only what the bitmap says, and the copy is the disk again."""
    disk("create", "a.qcow2", "32M")
    write(rig.dir, "a.qcow2", "write -P 1 0 8M")
    disk("export", "a.qcow2", "backup.raw")
    disk("bitmap", "add", "a.qcow2", "day")
    with Server(rig) as s:
        s.do("write -P 2 1M 64k", "write -z 4M 1M", "write -P 3 30M 300k")
    with Server(rig, "--read-only", "--bitmap", "day") as s, open(rig.dir / "backup.raw", "r+b") as f:
        parts = s.map("day")
        expect(sum(length for _, length in parts) < 2 * MIB, str(parts))
        for at, length in parts:
            qemu(rig.dir, "qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=65536", f"skip={at // 65536}", f"count={-(-(at + length) // 65536)}", f"if={s.uri}",
                 "of=part")
            f.seek(at)
            f.write((rig.dir / "part").read_bytes())
        listed = subprocess.run(["nbdinfo", "--json", s.uri], check=True, capture_output=True)
        expect(json.loads(listed.stdout)["exports"][0]["contexts"] == ["base:allocation", "qemu:dirty-bitmap:day"], listed.stdout)
    qemu(rig.dir, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", "a.qcow2", "backup.raw")


@with_qemu
def test_headers(rig, disk):
    """The extension finds room beside what else there is, and the name of the backing file stays right."""
    disk("create", "base.qcow2", "4M")
    write(rig.dir, "base.qcow2", "write -P 7 0 4M")
    deep = rig.dir / ("d" * 200) / ("e" * 200)
    os.makedirs(deep)
    shutil.copy(rig.dir / "base.qcow2", deep / "base.qcow2")
    for number, below in enumerate((rig.dir / "base.qcow2", deep / "base.qcow2")):
        qemu(rig.dir, "qemu-img", "create", "-f", "qcow2", "-b", below, "-F", "qcow2", f"q{number}.qcow2")
        disk("bitmap", "add", f"q{number}.qcow2", "b")
        disk("create", "--backing", below, f"p{number}.qcow2")
        r = rig.a.run("disk", "bitmap", "add", f"p{number}.qcow2", "b", cwd=rig.dir).must(number)
        expect(number == 0 or "shorter name" in r.err, r.err)
        for image in f"q{number}.qcow2", f"p{number}.qcow2":
            write(rig.dir, image, "read -P 7 0 4M")
            expect(number == 1 and image[0] == "p" or of_qemu(rig, image)["b"] == (65536, ["auto"]), image)
    sound(rig, disk)
