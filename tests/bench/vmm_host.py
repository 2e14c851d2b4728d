# SPDX-License-Identifier: MIT
"""One machine that is measured: what it boots from, its boot under `-icount`, and what its only program says."""

import collections
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lab"))

from labkit.root import root_folder  # noqa: E402

QEMU = "qemu-system-x86_64"
KERNEL = "6.1"
SYSTEMS = ("native", "xen", "pagurus")
COMPILER_ROWS = ("tiny-cc", "cc")
DOM0_MIB = 512
# What the hypervisors and their tables need is beyond what the kernel has.
SPARE_MIB = 256
LINUX = "quiet transparent_hugepage=never nokaslr norandmaps audit=0 tsc=nowatchdog"
HYPERVISOR = f"console=com1 com1=115200,8n1 loglvl=warning noreboot dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus=1"
# (hypervisor, kernel): mitigations of processor faults off, and as each decides by itself.
MITIGATIONS = {"off": ("spec-ctrl=no xpti=no", "mitigations=off"), "on": ("", "")}
COUNTS = ("user", "kernel", "hypervisor", "syscall", "return", "cr3", "invlpg")
SAID = re.compile(r"bench: (init|row|skip|failed:?|done)\b ?(.*)")


class BenchError(Exception):
    """What cannot be measured and why; for the user."""


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


def libraries(program):
    """What the dynamic linker loads for it, itself included."""
    text = run("ldd", program).decode()
    return re.findall(r"(/\S+) \(0x", text)


class Image:
    """The initramfs, the kernel and the plugin; in folder."""

    def __init__(self, folder, compiler):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.base = pathlib.Path(root_folder())
        self.kernel = self.base / f"vmlinux-{KERNEL}"
        self.xen = self.base / "xen"
        self.pagurus = ROOT / "build/vmm/pagurus"
        self.plugin = self.folder / "counts.so"
        self.initrd = self.folder / "initrd"
        if not self.pagurus.exists():
            raise BenchError(f"{self.pagurus} is not built: run make vmm")
        source = HERE / "vmm_guest"
        run("gcc", "-O2", "-shared", "-fPIC", "-o", self.plugin, source / "counts.c")
        tree = self.folder / "tree"
        for name in ("proc", "sys", "dev", "tmp", "work", "bin"):
            (tree / name).mkdir(parents=True)
        run("gcc", "-O2", "-static", "-o", tree / "init", source / "init.c")
        run("cp", run("which", "busybox").decode().strip(), tree / "bin/busybox")
        (tree / "bin/true").symlink_to("busybox")
        self.add_module(tree / "xen-privcmd.ko")
        if compiler:
            self.add_compiler(tree)
        names = "\n".join(sorted(str(p.relative_to(tree)) for p in tree.rglob("*")))
        with open(self.initrd, "wb") as out:
            subprocess.run(["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", "--reproducible"], cwd=tree, input=names.encode(),
                           stdout=out, check=True)

    def add_module(self, path):
        """The driver that passes hypercalls on, out of the lab's root."""
        image = self.base / "root.img"
        release = run("debugfs", "-R", "ls -p /lib/modules", image).decode()
        found = [name for name in re.findall(r"/([^/]+)//", release) if name.startswith(KERNEL + ".")]
        if len(found) != 1:
            raise BenchError(f"{image} does not hold the modules of one kernel {KERNEL}: {release}")
        run("debugfs", "-R", f"dump /lib/modules/{found[0]}/kernel/drivers/xen/xen-privcmd.ko {path}", image)
        if not path.exists() or not path.stat().st_size:
            raise BenchError(f"{image} has no xen-privcmd.ko for {found[0]}")

    @staticmethod
    def add_compiler(tree):
        """gcc as this machine has it, and what it compiles."""
        gcc = pathlib.Path(run("readlink", "-f", "/usr/bin/gcc").decode().strip())
        programs = [pathlib.Path(run("gcc", f"-print-prog-name={name}").decode().strip()) for name in ("cc1", "as")]
        programs = [gcc] + [p if p.is_absolute() else pathlib.Path(run("which", p).decode().strip()) for p in programs]
        for path in {*programs, *(pathlib.Path(lib) for p in programs for lib in libraries(p))}:
            target = tree / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            run("cp", "-L", path, target)
        link = tree / "usr/bin/gcc"
        if not link.exists():
            link.symlink_to(gcc)
        run("gcc", "-E", "-o", tree / "work/large.i", HERE / "vmm_guest/init.c")
        (tree / "work/tiny.i").write_text("int twice(int x)\n{\n\treturn 2 * x;\n}\n", "ascii")


def command_line(image, system, options, extra):
    """QEMU's. options: cpu, mitigations, rows, batches."""
    for_hypervisor, for_linux = MITIGATIONS[options.mitigations]
    linux = f"{LINUX} {for_linux} bench.batches={options.batches} bench.rows={','.join(options.rows)}"
    words = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-accel", "tcg", "-icount", "shift=0,sleep=off",
             "-smp", "1", "-cpu", options.cpu, "-rtc", "base=2026-01-01T00:00:00,clock=vm", "-monitor", "none", "-serial", "stdio",
             "-no-reboot", *extra]
    if system == "native":
        return words + ["-m", str(DOM0_MIB), "-kernel", str(image.kernel), "-append", f"console=ttyS0,115200 {linux}",
                        "-initrd", str(image.initrd)]
    hypervisor = image.xen if system == "xen" else image.pagurus
    module = f"{image.kernel} console=hvc0 {linux}".replace(",", ",,")
    return words + ["-m", str(DOM0_MIB + SPARE_MIB), "-kernel", str(hypervisor), "-append", f"{HYPERVISOR} {for_hypervisor}",
                    "-initrd", f"{module},{image.initrd}"]


def boot(image, system, options, progress, limit, name, profile=None):
    """Boots, waits for the end, returns the Result. The console goes to NAME.log in the image's folder, the plugin's output to NAME.counts."""
    counts = image.folder / f"{name}.counts"
    plugin = f"file={image.plugin},out={counts}" + (f",profile={profile}" if profile else "")
    result, lines = Result(), []
    with open(image.folder / f"{name}.log", "w", encoding="utf-8") as log, \
            tempfile.TemporaryFile() as errors, \
            subprocess.Popen(command_line(image, system, options, ["-plugin", plugin]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=errors, encoding="utf-8", errors="replace") as qemu:
        late = threading.Timer(limit, qemu.kill)
        late.start()
        try:
            for line in qemu.stdout:
                log.write(line)
                log.flush()
                said = SAID.search(line)
                if said:
                    lines.append((said[1], said[2].split()))
                    if said[1] in ("row", "init"):
                        progress(system, said[2].split()[0] if said[1] == "row" else "init")
                if said and said[1] in ("done", "failed", "failed:"):
                    break
            if not lines or lines[-1][0] != "done":
                errors.seek(0)
                raise BenchError(f"{system} did not come to its end; its console is in {log.name} {errors.read().decode(errors='replace')}")
        finally:
            late.cancel()
            qemu.terminate()
    windows = [dict(zip(COUNTS, map(int, line.split()))) for line in counts.read_text("ascii").splitlines()]
    for kind, words in lines:
        if kind == "init":
            first = windows.pop(0)
            result.init = first["user"] + first["kernel"] + first["hypervisor"]
        elif kind == "skip":
            result.skipped[words[0]] = " ".join(words[1:])
        elif kind == "row":
            row, operations, clock, nanoseconds = words[0], *map(int, words[1:])
            window = windows.pop(0)
            result.rows[row].append(Batch(operations, clock / operations, nanoseconds / operations,
                                          {key: value / operations for key, value in window.items()}))
    if windows:
        raise BenchError(f"{system}: {len(windows)} more windows than rows")
    return result
