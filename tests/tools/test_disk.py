# SPDX-License-Identifier: MIT
"""pagurus disk: what it says of images that qemu-img made, and what it leaves behind."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess

from rig import PATIENCE, Failure, Rig, expect, free_port, wait_until

MIB = 1 << 20


def qemu(folder, *words):
    subprocess.run(words, cwd=folder, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def images(folder):
    """A chain: data at 1 MiB below, at 3 MiB here, zeros over a part of what is below."""
    qemu(folder, "qemu-img", "create", "-f", "qcow2", "base.qcow2", "8M")
    qemu(folder, "qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M", "base.qcow2")
    qemu(folder, "qemu-img", "create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    qemu(folder, "qemu-io", "-f", "qcow2", "-c", "write -P 2 3M 512k", "-c", "write -z 1M 512k", "top.qcow2")


def with_qemu(test):
    def run():
        if not shutil.which("qemu-img") or not shutil.which("qemu-io"):
            print(f"SKIP tools.disk.{test.__name__.removeprefix('test_')}: needs qemu-utils")
            return
        with Rig("a", start=False) as rig:
            images(rig.dir)
            test(rig)
    run.__name__ = test.__name__
    return run


@with_qemu
def test_info(rig):
    text = rig.a.run("disk", "info", rig.dir / "top.qcow2").must(0).out
    expect("8.00 MiB" in text and "512 KiB here, 512 KiB below" in text.replace(".0 ", " "), text)
    o = json.loads(rig.a.run("disk", "info", "--json", rig.dir / "top.qcow2").must(0).out)
    expect((o["format"], o["size"], o["data_here"], o["data_below"], o["zeros"]) == ("qcow2", 8 * MIB, MIB // 2, MIB // 2, 7 * MIB), str(o))


@with_qemu
def test_map(rig):
    lines = rig.a.run("disk", "map", "--json", rig.dir / "top.qcow2").must(0).lines()
    got = [(o["offset"], o["length"], o["holds"], o["here"]) for o in lines]
    half = MIB // 2
    expect(got == [(0, MIB, "zeros", False), (MIB, half, "zeros", True), (MIB + half, half, "data", False), (2 * MIB, MIB, "zeros", False),
                   (3 * MIB, half, "data", True), (3 * MIB + half, 4 * MIB + half, "zeros", False)], str(got))
    expect(len(rig.a.run("disk", "map", rig.dir / "top.qcow2").must(0).out.splitlines()) == len(got), "lines without --json")


@with_qemu
def test_convert(rig):
    target = rig.dir / "copy.raw"
    rig.a.run("disk", "convert", rig.dir / "top.qcow2", target).must(0)
    qemu(rig.dir, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "copy.raw")
    expect(target.stat().st_blocks * 512 < 2 * MIB, "the copy is not sparse")
    again = rig.a.run("disk", "convert", rig.dir / "top.qcow2", target).must(1)
    expect("--overwrite" in again.err, again.err)
    rig.a.run("disk", "convert", "--overwrite", target, target).must(0)  # its own source, until the copy gets the name
    qemu(rig.dir, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "copy.raw")
    qemu(rig.dir, "qemu-io", "-f", "qcow2", "-c", "write -P 3 0 64k", "top.qcow2")
    r = rig.a.run("disk", "convert", "--json", "--overwrite", rig.dir / "top.qcow2", target).must(0)
    expect(r.result()["size"] == 8 * MIB, r.out)
    qemu(rig.dir, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "copy.raw")
    expect(not list(rig.dir.glob("*.partial")), "something is left")


@with_qemu
def test_convert_interrupted(rig):
    qemu(rig.dir, "qemu-img", "create", "-f", "raw", "big.raw", "64G")
    # All of it is data to the file system, so it takes a while.
    qemu(rig.dir, "fallocate", "-l", "400M", "big.raw")
    with open(rig.dir / "big.raw", "r+b") as f:
        for at in range(0, 400 * MIB, MIB):
            f.seek(at)
            f.write(b"x")
    partial = rig.dir / "copy.raw.partial"
    p = rig.a.popen("disk", "convert", rig.dir / "big.raw", rig.dir / "copy.raw", stderr=subprocess.PIPE, text=True)
    wait_until(lambda: p.poll() is not None or (partial.exists() and partial.stat().st_blocks > 0), "the copy to begin")
    expect(p.poll() is None, "it was done too soon to be interrupted")
    p.send_signal(signal.SIGINT)
    _, err = p.communicate()
    expect(p.returncode == 5 and "nothing was made" in err, f"{p.returncode}: {err}")
    expect(not partial.exists() and not (rig.dir / "copy.raw").exists(), "something is left")


class Server:
    """`pagurus disk serve`, which can be made to stand still: its kernel goes on taking connections and bytes."""

    def __init__(self, rig, disk):
        self.disk = disk
        self.process = rig.a.popen("disk", "serve", "--listen", f"127.0.0.1:{free_port()}", disk, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.uri = self.process.stdout.readline().strip()
        expect(self.uri.startswith("nbd://"), f"it says {self.uri!r}")

    def stand_still(self):
        self.process.send_signal(signal.SIGSTOP)
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the server to stand still")


def full(path, megabytes=400):
    with open(path, "wb") as f:
        for _ in range(megabytes):
            f.write(b"x" * MIB)
    return path


def empty(path, megabytes=400):
    with open(path, "wb") as f:
        f.truncate(megabytes * MIB)
    return path


def has_a_socket(p):
    with contextlib.suppress(OSError):  # it closes others meanwhile
        return any(os.readlink(link).startswith("socket:") for link in pathlib.Path(f"/proc/{p.pid}/fd").iterdir())
    return False


def interrupted(rig, words, moment, what, server=None):
    """What `pagurus disk` with these words says when it is interrupted at the moment, its server standing still."""
    p = rig.a.popen("disk", *words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: p.poll() is not None or moment(p), what)
    if server:
        server.stand_still()
    expect(p.poll() is None, "it has ended before it was interrupted")
    p.send_signal(signal.SIGINT)
    try:
        _, err = p.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{words[0]} goes on after Ctrl-C") from late
    expect(p.returncode == 5, f"{p.returncode}: {err}")
    return err


def test_interrupted_while_a_server_is_silent():
    with Rig("a", start=False) as rig:
        local, copy, partial = full(rig.dir / "local.raw"), rig.dir / "copy.raw", rig.dir / "copy.raw.partial"
        server = Server(rig, full(rig.dir / "served.raw"))
        err = interrupted(rig, ["convert", server.uri, copy], lambda p: partial.exists() and partial.stat().st_blocks > 0, "the copy to begin", server)
        expect("nothing was made" in err, err)
        expect(not partial.exists() and not copy.exists(), "something is left")
        # It is there, but says nothing from the beginning.
        err = interrupted(rig, ["convert", server.uri, copy], has_a_socket, "the connection")
        expect("stopped" in err and not partial.exists() and not copy.exists(), err)
        for verb in "convert", "mirror":
            server = Server(rig, empty(rig.dir / f"{verb}.raw"))
            err = interrupted(rig, [verb, "--overwrite", local, server.uri], lambda p, disk=server.disk: disk.stat().st_blocks > 0, "the copy to begin", server)
            expect("the target is half done" in err, err)


@with_qemu
def test_refusals(rig):
    os.rename(rig.dir / "top.qcow2", rig.dir / "top.img")
    r = rig.a.run("disk", "info", rig.dir / "top.img").must(1)
    expect("--format" in r.err, r.err)
    rig.a.run("disk", "info", "--format", "qcow2", rig.dir / "top.img").must(0)
    o = json.loads(rig.a.run("disk", "info", "--json", "--format", "raw", rig.dir / "top.img").must(0).out)
    expect(o["format"] == "raw", str(o))
    expect("raw and qcow2" in rig.a.run("disk", "info", "--format", "vhdx", rig.dir / "top.img").must(1).err, "formats")
    e = json.loads(rig.a.run("disk", "map", "--json", rig.dir / "none.qcow2").must(1).out)
    expect(e["type"] == "error" and "none.qcow2" in e["text"], str(e))
    rig.a.run("disk", "convert", rig.dir / "base.qcow2", rig.dir / "no" / "such").must(1)


def serve(rig, *words):
    """nbdkit with these words on a socket in the rig's folder; the address of its disk."""
    name, ready = rig.dir / "nbd.sock", rig.dir / "nbd.pid"
    rig.popen(["nbdkit", "-f", "--exit-with-parent", "-P", ready, "-U", name, *words])
    wait_until(ready.exists, "nbdkit")
    return f"nbd+unix:///?socket={name}"


def with_nbdkit(test):
    @with_qemu
    def run(rig):
        test(rig)

    def or_not():
        if not shutil.which("nbdkit"):
            print(f"SKIP tools.disk.{test.__name__.removeprefix('test_')}: needs nbdkit")
            return
        run()
    or_not.__name__ = test.__name__
    return or_not


@with_nbdkit
def test_nbd(rig):
    """A disk on a server is looked at, written over and copied back."""
    uri = serve(rig, "memory", "12M")
    qemu(rig.dir, "qemu-io", "-f", "raw", "-c", "write -P 7 0 12M", f"nbd+unix:///?socket={rig.dir}/nbd.sock")
    r = rig.a.run("disk", "convert", rig.dir / "top.qcow2", uri).must(1)
    expect("--overwrite" in r.err, r.err)
    rig.a.run("disk", "convert", "--overwrite", rig.dir / "top.qcow2", uri).must(0)
    o = json.loads(rig.a.run("disk", "info", "--json", uri).must(0).out)
    expect((o["format"], o["size"], o["data_here"], o["zeros"]) == ("nbd", 12 * MIB, 5 * MIB, 7 * MIB), str(o))
    lines = rig.a.run("disk", "map", "--json", uri).must(0).lines()
    expect([(o["offset"], o["holds"]) for o in lines[-3:]] == [(3 * MIB, "data"), (3 * MIB + MIB // 2, "zeros"), (8 * MIB, "data")], str(lines))
    rig.a.run("disk", "convert", uri, rig.dir / "back.raw").must(0)
    os.truncate(rig.dir / "back.raw", 8 * MIB)
    qemu(rig.dir, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "back.raw")
    qemu(rig.dir, "qemu-img", "create", "-f", "raw", "large.raw", "13M")
    expect("13631488" in rig.a.run("disk", "convert", "--overwrite", rig.dir / "large.raw", uri).must(1).err, "a target that is too small")
    expect("cannot be reached" in rig.a.run("disk", "info", "nbd://127.0.0.1:1/").must(1).err, "no server")


@with_nbdkit
def test_nbd_tls(rig):
    """With this host's key; the server's certificate has to be trusted, and to be that of the host in the address."""
    for name in ("localhost", "stranger"):
        folder = rig.dir / name
        rig.a.run("host", "init", "--name", name, "--config", folder).must(0)
        os.makedirs(folder / "tls")
        for given, taken in (("cert.pem", "ca-cert.pem"), ("cert.pem", "server-cert.pem"), ("key.pem", "server-key.pem")):
            shutil.copy(folder / given, folder / "tls" / taken)
    port = free_port()
    ready = rig.dir / "nbd.pid"
    rig.popen(["nbdkit", "-f", "--exit-with-parent", "-P", ready, "-i", "127.0.0.1", "-p", str(port), "--tls=require",
               f"--tls-certificates={rig.dir}/localhost/tls", "memory", "1M"], stderr=subprocess.DEVNULL)
    wait_until(ready.exists, "nbdkit")
    uri = f"nbds://localhost:{port}/"
    expect("host init" in rig.a.run("disk", "info", uri, env={"PAGURUS_CONFIG": str(rig.dir / "none")}).must(1).err, "without an identity")
    expect("host trust" in rig.a.run("disk", "info", uri).must(1).err, "without trust in anybody")
    trusted = rig.a.config / "trusted"
    shutil.copy(rig.dir / "stranger" / "cert.pem", trusted / "stranger.pem")
    rig.a.run("disk", "info", uri).must(1)
    shutil.copy(rig.dir / "localhost" / "cert.pem", trusted / "localhost.pem")
    rig.a.run("disk", "info", uri).must(0)
    rig.a.run("disk", "info", f"nbds://127.0.0.1:{port}/").must(1)
    expect(not list(pathlib.Path("/tmp").glob("pagurus-nbd-??????")), "a folder with certificates is left")
