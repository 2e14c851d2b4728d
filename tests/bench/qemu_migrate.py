# SPDX-License-Identifier: MIT
"""QEMU migrating a machine between two of its processes over loopback, measured.

The source's RAM is a file (memory-backend-file, share=on) with the contents to move, so that exactly the bytes that Pagurus moves
are moved; the target's RAM is anonymous memory, there before the migration begins (prealloc=on; see map_populated() in
bench_engine.c). A machine that does not write is never started (-S);
one that writes runs qemu_guest/dirtier.c under TCG. Bandwidth is not capped; everything else is QEMU's default but for
what a setting says:

    tcp | tls            transport; TLS with X.509 certificates checked at both ends
    none | zstd          multifd's compression
    0 | 2 | 4            multifd channels; 0: the single stream of old
    xbzrle               the single stream with its delta compression
"""

import json
import os
import pathlib
import socket
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
QEMU = "qemu-system-x86_64"
DEADLINE_S = 300


class QemuError(Exception):
    """QEMU did not do what was asked."""


class Qemu:
    """One QEMU process and its QMP connection."""

    def __init__(self, name, folder, arguments):
        self.name = name
        self.log = open(folder / f"{name}.log", "w+", encoding="utf-8")
        path = folder / f"{name}.qmp"
        if path.exists():
            path.unlink()
        self.process = subprocess.Popen(
            [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg",
             "-qmp", f"unix:{path},server=on,wait=off"] + arguments,
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.events = []
        self.socket = None
        until = time.monotonic() + DEADLINE_S
        while self.socket is None:
            candidate = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                candidate.connect(str(path))
                self.socket = candidate
            except OSError:
                candidate.close()
                self.check_alive(until)
                time.sleep(0.02)
        self.socket.settimeout(DEADLINE_S)
        self.stream = self.socket.makefile("rw", encoding="utf-8")
        json.loads(self.stream.readline())
        self.command("qmp_capabilities")

    def check_alive(self, until):
        """Raise when the process is gone or the time is up."""
        if self.process.poll() is not None or time.monotonic() > until:
            self.log.seek(0)
            raise QemuError(f"{self.name}: {self.log.read().strip() or 'does not answer'}")

    def command(self, name, **arguments):
        """Run a QMP command and return what it returns."""
        json.dump({"execute": name, "arguments": arguments}, self.stream)
        self.stream.flush()
        while True:
            line = self.stream.readline()
            if not line:
                self.check_alive(0)
            answer = json.loads(line)
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QemuError(f"{self.name}: {name}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait_migration(self):
        """Wait for the event that says how the migration ended."""
        while True:
            for event in self.events:
                status = event["data"].get("status") if event["event"] == "MIGRATION" else None
                if status == "completed":
                    return
                if status == "failed":
                    why = self.command("query-migrate").get("error-desc", "no reason given")
                    raise QemuError(f"{self.name}: the migration failed: {why}")
            self.events = []
            line = self.stream.readline()
            if not line:
                self.check_alive(0)
            self.events.append(json.loads(line))

    def cpu(self):
        """Processor seconds of the whole process so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        """End the process."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        if self.socket:
            self.socket.close()
        self.log.close()


def make_certificates(folder):
    """A CA and a certificate for each end, named as tls-creds-x509 wants them."""
    folder.mkdir()

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-days", "2", "-subj", "/CN=bench CA",
            "-addext", "keyUsage=critical,keyCertSign")
    for end, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        (folder / f"{end}.ext").write_text(
            "basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
            f"extendedKeyUsage={usage}\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n", "utf-8")
        openssl("req", *new_key, "-keyout", f"{end}-key.pem", "-out", f"{end}.csr", "-subj", f"/CN={end}")
        openssl("x509", "-req", "-in", f"{end}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
                "-out", f"{end}-cert.pem", "-days", "2", "-extfile", f"{end}.ext")


def build_dirtier(folder):
    """Compile the guest that writes; returns its path."""
    path = folder / "dirtier.elf"
    guest = HERE / "qemu_guest"
    subprocess.run(["gcc", "-m32", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pic", "-no-pie",
                    "-fno-stack-protector", "-mgeneral-regs-only", "-nostdlib", "-static", "-Wl,--build-id=none,--no-warn-rwx-segments", "-T", str(guest / "link.ld"),
                    "-o", str(path), str(guest / "dirtier.c")], check=True)
    return path


def free_port():
    """A port of the loopback that nobody listens on at the moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def configure(machine, setting, downtime_ms):
    """Capabilities and parameters that both ends must have alike."""
    transport, compression, channels = setting.split(":")
    capabilities = {"events": True}
    parameters = {"max-bandwidth": 100 * 10**9, "downtime-limit": downtime_ms}
    if compression == "xbzrle":
        capabilities["xbzrle"] = True
    elif int(channels):
        capabilities["multifd"] = True
        parameters["multifd-channels"] = int(channels)
        parameters["multifd-compression"] = compression
    if transport == "tls":
        parameters["tls-creds"] = "tls0"
    machine.command("migrate-set-capabilities",
                    capabilities=[{"capability": c, "state": s} for c, s in capabilities.items()])
    machine.command("migrate-set-parameters", **parameters)


def migrate(folder, memory_file, mib, setting, dirtier=None, load=(0, 0), downtime_ms=300):
    """Move one machine once; returns what it cost.

    dirtier: the guest's kernel, with load = (working set, rate) in MiB and MiB/s; None: a machine that is never started.
    """
    tls = setting.startswith("tls")
    common = ["-m", str(mib), "-machine", "pc,memory-backend=ram"]
    if dirtier:
        common += ["-kernel", str(dirtier), "-append", f"{load[0]} {load[1]}"]
    credentials = f"tls-creds-x509,id=tls0,dir={folder / 'certificates'},verify-peer=on,endpoint="
    size = f"size={mib}M"
    source = target = None
    try:
        target = Qemu("target", folder, common + ["-object", f"memory-backend-ram,id=ram,{size},prealloc=on", "-incoming", "defer"] +
                      (["-object", credentials + "server"] if tls else []))
        source = Qemu("source", folder, common +
                      ["-object", f"memory-backend-file,id=ram,{size},mem-path={memory_file},share=on,prealloc=on"] +
                      (["-object", credentials + "client"] if tls else []) + ([] if dirtier else ["-S"]))
        configure(target, setting, downtime_ms)
        configure(source, setting, downtime_ms)
        uri = f"tcp:127.0.0.1:{free_port()}"
        target.command("migrate-incoming", uri=uri)
        if dirtier:
            time.sleep(1)  # the firmware and the boot loader are through
        before = source.cpu(), target.cpu()
        source.command("migrate", uri=uri)
        source.wait_migration()
        target.wait_migration()
        after = source.cpu(), target.cpu()
        info = source.command("query-migrate")
    finally:
        for machine in (source, target):
            if machine:
                machine.close()
    return {"who": "qemu", "setting": setting, "memory": mib << 20, "seconds": info["total-time"] / 1000,
            "bytes": info["ram"]["transferred"], "cpu_source": after[0] - before[0], "cpu_target": after[1] - before[1],
            "downtime": info["downtime"] / 1000, "rounds": info["ram"]["dirty-sync-count"]}
