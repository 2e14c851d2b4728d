# SPDX-License-Identifier: MIT
"""One machine that is measured: what it boots from, its boot under `-icount`, and what its only program says.

There are four kinds of them. In a `dom0` one the rows run in the first program of the kernel that the hypervisor boots, or of one that runs without. In an `alone`
one a PV kernel of our own (vmm_guest/peers.c) is in its place. A `guest` one has a dom0 with the lab's root and Debian's tools (vmm_guest/host), which makes
guests, and the rows are theirs; so has a `disk` one, whose guests have a disk each (vmm_disks.py).
"""

import collections
import dataclasses
import gzip
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lab"))

import vmm_disks  # noqa: E402
from labkit.root import root_folder  # noqa: E402

QEMU = "qemu-system-x86_64"
KERNEL = "6.1"
SYSTEMS = ("native", "xen", "pagurus")
HYPERVISORS = ("xen", "pagurus")
COMPILER_ROWS = ("tiny-cc", "cc")
# Of peers.c, in its order.
ALONE_ROWS = ("self-event", "self-copy", "self-copies", "self-map")
PEERS_ROWS = ("event", "copy", "copies", "map")
PEERS_OPERATIONS, PEERS_BATCHES = 500, 3
DEVICE_ROWS = ("disk-write", "disk-read", "net-out", "net-in")
IDLE_ROWS = ("idle-0", "idle-1", "idle-8", "idle-30")
# The second: of one that has guests' disks in its memory as well.
DOM0_MIB, DISKS_MIB = 512, 1024
ALONE_MIB = 64
# What the hypervisors and their tables need is beyond what the kernel has.
SPARE_MIB = 256
# Guests that are measured, one after the other, and those that stay (vmm_guest/host).
GUEST_MIB, IDLE_MIB = 192, 100
# Debian's, which has the device model of Xen's guests and no other; with its libraries it is as this machine has it.
XEN_QEMU, XEN_QEMU_KEYMAPS = pathlib.Path("/usr/libexec/xen-qemu-system-i386"), pathlib.Path("/usr/share/qemu/keymaps")
LINUX = "quiet transparent_hugepage=never nokaslr norandmaps audit=0 tsc=nowatchdog"
HYPERVISOR = "console=com1 com1=115200,8n1 loglvl=warning noreboot dom0_mem={0}M,max:{0}M dom0_max_vcpus=1"
# (hypervisor, kernel): mitigations of processor faults off, and as each decides by itself.
MITIGATIONS = {"off": ("spec-ctrl=no xpti=no", "mitigations=off"), "on": ("", "")}
COUNTS = ("user", "kernel", "hypervisor", "syscall", "return", "cr3", "invlpg")
SAID = re.compile(r"bench: (init|row|skip|peers|failed:?|done)\b ?(.*)")
PEERS_SAID = re.compile(r"^verdict (SUCCESS|\w+) rows(.*)")


class BenchError(Exception):
    """What cannot be measured and why; for the user."""


@dataclasses.dataclass
class Part:
    """What boots, and the rows that are wanted of it."""
    kind: str                       # dom0, alone, guest, disk
    rows: list


@dataclasses.dataclass
class Batch:
    """One batch of a row, for one operation; instructions by the machine's clock and by the plugin."""
    operations: int
    clock: float
    nanoseconds: float
    counts: dict

    @property
    def counted(self):
        """Instructions, by the plugin."""
        return self.counts["user"] + self.counts["kernel"] + self.counts["hypervisor"]


@dataclasses.dataclass
class Result:
    """What one boot said."""
    init: int = 0                   # instructions from power-on to the first of init, by the plugin
    rows: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    skipped: dict = dataclasses.field(default_factory=dict)


def run(*command, **options):
    """A command's output."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **options)
    if done.returncode:
        raise BenchError(f"{' '.join(map(str, command))} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def pack(tree, file):
    """A folder as an initramfs."""
    names = "\n".join(sorted(str(p.relative_to(tree)) for p in tree.rglob("*")))
    with open(file, "wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", "--reproducible"], cwd=tree, input=names.encode(), stdout=out, check=True)


def libraries(program):
    """What the dynamic linker loads for it, itself included."""
    text = run("ldd", program).decode()
    return re.findall(r"(/\S+) \(0x", text)


def add_programs(tree, programs):
    """Programs of this machine, by their paths, with their libraries."""
    for path in {*programs, *(pathlib.Path(lib) for p in programs for lib in libraries(p))}:
        target = tree / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        run("cp", "-L", path, target)


class Image:
    """The initramfs, the kernel and the plugin; in folder."""

    def __init__(self, folder, compiler):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base = pathlib.Path(root_folder())
        self.kernel = self.base / f"vmlinux-{KERNEL}"
        self.xen = self.base / "xen"
        self.pagurus = ROOT / "build/vmm/pagurus"
        self.peers = ROOT / "build/guests/bench/peers"
        self.plugin = self.folder / "counts.so"
        self.initrd = self.folder / "initrd"
        self.host_initrd, self.disk_initrd = self.folder / "host-initrd", self.folder / "disk-initrd"
        self.release = None
        for built in (self.pagurus, self.peers):
            if not built.exists():
                raise BenchError(f"{built} is not built: run make vmm-guests")
        source = HERE / "vmm_guest"
        run("gcc", "-O2", "-shared", "-fPIC", "-o", self.plugin, source / "counts.c")
        tree = self.folder / "tree"
        for name in ("proc", "sys", "dev", "tmp", "work", "bin"):
            (tree / name).mkdir(parents=True)
        run("gcc", "-O2", "-D_GNU_SOURCE", "-static", "-o", tree / "init", source / "init.c")
        run("cp", run("which", "busybox").decode().strip(), tree / "bin/busybox")
        (tree / "bin/true").symlink_to("busybox")
        self.add_module(tree / "xen-privcmd.ko")
        if compiler:
            self.add_compiler(tree)
        pack(tree, self.initrd)

    def add_guests(self):
        """What a dom0 with guests boots from: the lab's initramfs with the first program, the guests' kernels, and their initramfs, which has drivers besides."""
        drivers, guest, host = self.folder / "drivers", self.folder / "guest", self.folder / "host"
        host_files = host / "bench"
        host_files.mkdir(parents=True)
        run(ROOT / "guest-linux/build", drivers, "tiny")
        run("cp", "-r", self.folder / "tree", guest)
        for path in ("usr", "lib", "lib64", "work"):
            shutil.rmtree(guest / path, ignore_errors=True)
        packed = gzip.decompress((drivers / "tiny.cpio.gz").read_bytes())
        for name in ("xen-blkfront.ko", "xen-netfront.ko"):
            (guest / name).write_bytes(run("cpio", "-i", "--quiet", "--to-stdout", f"lib/modules/{self.release}/{name}", input=packed))
        source = HERE / "vmm_guest"
        pack(guest, host_files / "initrd")
        for name, path in (("bench/vmlinux", self.kernel), ("bench/peers", self.peers), ("bench/init", guest / "init"), ("bench/host", source / "host"),
                           ("init", source / "host-init")):
            run("cp", path, host / name)
        (host_files / "linux").write_text(f"{LINUX}\n", "ascii")
        pack(host, self.folder / "host.cpio")
        with open(self.host_initrd, "wb") as out:
            for path in (self.base / f"initrd-{KERNEL}", self.folder / "host.cpio"):
                out.write(path.read_bytes())

    def add_disks(self):
        """What serves guests' disks and is not in the lab's root, and an image; over what add_guests() made."""
        blk, tree = ROOT / "build/pagurus-blk", self.folder / "disks"
        bench = tree / "bench"
        bench.mkdir(parents=True)
        for path, what in ((XEN_QEMU, "apt-get install qemu-system-xen"), (blk, "make")):
            if not path.exists():
                raise BenchError(f"{path}, which serves guests' disks, is not there: run {what}")
        add_programs(bench / "qemu-root", [XEN_QEMU])
        run("cp", "-rL", XEN_QEMU_KEYMAPS, bench / "qemu-root")
        run("cp", blk, HERE / "vmm_guest/qemu", bench)
        run("qemu-img", "create", "-q", "-f", "qcow2", bench / "disk.qcow2", "32M")
        pack(tree, self.folder / "disks.cpio")
        with open(self.disk_initrd, "wb") as out:
            for path in (self.host_initrd, self.folder / "disks.cpio"):
                out.write(path.read_bytes())

    def add_module(self, path):
        """The driver that passes hypercalls on, out of the lab's root."""
        image = self.base / "root.img"
        release = run("debugfs", "-R", "ls -p /lib/modules", image).decode()
        found = [name for name in re.findall(r"/([^/]+)//", release) if name.startswith(KERNEL + ".")]
        if len(found) != 1:
            raise BenchError(f"{image} does not hold the modules of one kernel {KERNEL}: {release}")
        self.release = found[0]
        run("debugfs", "-R", f"dump /lib/modules/{self.release}/kernel/drivers/xen/xen-privcmd.ko {path}", image)
        if not path.exists() or not path.stat().st_size:
            raise BenchError(f"{image} has no xen-privcmd.ko for {found[0]}")

    @staticmethod
    def add_compiler(tree):
        """gcc as this machine has it, and what it compiles."""
        gcc = pathlib.Path(run("readlink", "-f", "/usr/bin/gcc").decode().strip())
        programs = [pathlib.Path(run("gcc", f"-print-prog-name={name}").decode().strip()) for name in ("cc1", "as")]
        add_programs(tree, [gcc] + [p if p.is_absolute() else pathlib.Path(run("which", p).decode().strip()) for p in programs])
        link = tree / "usr/bin/gcc"
        if not link.exists():
            link.symlink_to(gcc)
        run("gcc", "-E", "-D_GNU_SOURCE", "-o", tree / "work/large.i", HERE / "vmm_guest/init.c")
        (tree / "work/tiny.i").write_text("int twice(int x)\n{\n\treturn 2 * x;\n}\n", "ascii")


def loops_initrd(folder, scripts, programs):
    """An initramfs to go behind a guest's own, packed: shell scripts by their names, gcc and what it compiles, and programs of this machine."""
    tree, file = folder / "loops", folder / "loops.cpio"
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("work", "usr/bin", "usr/lib/pagurus"):
        (tree / name).mkdir(parents=True)
    for name, text in scripts.items():
        script = tree / "usr/lib/pagurus" / name
        script.write_text(text)
        script.chmod(0o755)
    Image.add_compiler(tree)
    add_programs(tree, programs)
    # Of a length between the other two.
    run("gcc", "-E", "-D_GNU_SOURCE", "-o", tree / "work/source.i", HERE.parents[1] / "guest-linux/workload/ticker.c")
    pack(tree, file)
    run("gzip", "-1f", file)
    return file.with_suffix(".cpio.gz")


def command_line(image, system, part, options, extra):
    """QEMU's. options: cpu, mitigations, batches; part: its kind and rows."""
    for_hypervisor, for_linux = MITIGATIONS[options.mitigations]
    linux = f"{LINUX} {for_linux} bench.batches={options.batches}"
    words = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-accel", "tcg", "-icount", "shift=0,sleep=off",
             "-smp", "1", "-cpu", options.cpu, "-rtc", "base=2026-01-01T00:00:00,clock=vm", "-monitor", "none", "-serial", "stdio",
             "-no-reboot", *extra]
    memory, more, modules = DISKS_MIB if part.kind == "disk" else DOM0_MIB, SPARE_MIB, [image.initrd]
    if part.kind in ("guest", "disk"):
        known = (("bench.devices", DEVICE_ROWS), ("bench.peers", PEERS_ROWS), ("bench.idle", IDLE_ROWS))
        chosen = {name: [row for row in part.rows if row in rows] for name, rows in known}
        chosen["bench.rows"] = [row for row in part.rows if not any(row in rows for _, rows in known) and ":" not in row]
        chosen["bench.disks"] = vmm_disks.words(part.rows)
        idle = [row.split("-")[1] for row in chosen["bench.idle"]]
        chosen["bench.idle"] = idle
        linux += "".join(f" {name}={','.join(rows)}" for name, rows in chosen.items() if rows)
        more += GUEST_MIB + IDLE_MIB * int(idle[-1] if idle else 0)
        modules = [image.host_initrd if part.kind == "guest" else image.disk_initrd]
        words += ["-drive", f"file={image.base}/root.img,format=raw,if=none,id=root,snapshot=on",
                  "-device", "virtio-blk-pci,drive=root,iommu_platform=on,disable-legacy=on"]
    else:
        linux += f" bench.rows={','.join(part.rows)}"
    if system == "native":
        return words + ["-m", str(memory), "-kernel", str(image.kernel), "-append", f"console=ttyS0,115200 {linux}",
                        "-initrd", str(image.initrd)]
    kernel = f"{image.kernel} console=hvc0 {linux}".replace(",", ",,")
    if part.kind == "alone":
        memory, kernel, modules = ALONE_MIB, str(image.peers), []
    hypervisor = image.xen if system == "xen" else image.pagurus
    return words + ["-m", str(memory + more), "-kernel", str(hypervisor), "-append", f"{HYPERVISOR.format(memory)} {for_hypervisor}",
                    "-initrd", ",".join([kernel, *map(str, modules)])]


def heard(line):
    """[(what, words)] that a line of a console says."""
    said, peers = SAID.search(line), PEERS_SAID.search(line)
    if peers:
        return [("peers", []), ("done", [])] if peers[1] == "SUCCESS" else [("failed", [])]
    return [(said[1].rstrip(":"), said[2].split())] if said else []


def listen(qemu, log, progress):
    """All that a machine says until it is done or has failed."""
    lines = []
    for line in qemu.stdout:
        log.write(line)
        log.flush()
        for what, words in heard(line):
            lines.append((what, words))
            if what in ("row", "init", "peers"):
                progress(words[0] if what == "row" else what)
        if lines and lines[-1][0] in ("done", "failed"):
            break
    return lines


def understand(part, lines, windows):
    """The Result: each window, which are in the order in which they ended, goes to who said so."""
    result = Result()

    def batches(row, count, operations, clock=0, nanoseconds=0):
        for _ in range(count):
            if not windows:
                raise BenchError(f"there is no window for row {row}")
            window = windows.pop(0)
            result.rows[row].append(Batch(operations, clock / operations, nanoseconds / operations, {k: v / operations for k, v in window.items()}))

    for kind, words in lines:
        if kind == "init":
            first = windows.pop(0)
            result.init = first["user"] + first["kernel"] + first["hypervisor"]
        elif kind == "skip":
            result.skipped[words[0]] = " ".join(words[1:])
        elif kind == "row":
            batches(words[0], 1, *map(int, words[1:]))
        elif kind == "peers":
            for row in ALONE_ROWS if part.kind == "alone" else PEERS_ROWS:
                batches(row, PEERS_BATCHES, PEERS_OPERATIONS)
    if windows:
        raise BenchError(f"{len(windows)} more windows than rows")
    return result


def boot(image, system, part, options, progress, limit, name, profile=None):
    """Boots, waits for the end, returns the Result. The console goes to NAME.log in the image's folder, the plugin's output to NAME.counts."""
    counts = image.folder / f"{name}.counts"
    plugin = f"file={image.plugin},out={counts}" + (f",profile={profile}" if profile else "")
    with open(image.folder / f"{name}.log", "w", encoding="utf-8") as log, \
            tempfile.TemporaryFile() as errors, \
            subprocess.Popen(command_line(image, system, part, options, ["-plugin", plugin]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=errors, encoding="utf-8", errors="replace") as qemu:
        late = threading.Timer(limit, qemu.kill)
        late.start()
        try:
            lines = listen(qemu, log, progress)
            if not lines or lines[-1][0] != "done":
                errors.seek(0)
                raise BenchError(f"{name} did not come to its end; its console is in {log.name} {errors.read().decode(errors='replace')}")
        finally:
            late.cancel()
            qemu.terminate()
    return understand(part, lines, [dict(zip(COUNTS, map(int, line.split()))) for line in counts.read_text("ascii").splitlines()])
