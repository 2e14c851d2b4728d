# SPDX-License-Identifier: MIT
"""One host as a QEMU process: its command line, its birth and its end."""

import json
import os
import select
import signal
import socket
import subprocess
import time

from labkit import network
from labkit.errors import LabError
from labkit.place import DISK_DRIVERS, NIC_DRIVERS

BINARY = "qemu-system-x86_64"
KILL_SECONDS = 30

# Mitigations of processor faults that an emulator does not have cost time only. But the FPU must be
# switched eagerly: with Xen's lazy switching (the default on AMD) this emulator loses the upper half
# of a guest's AVX registers, within a minute, and the guests' verifier fails.
XEN_ARGS = "console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=warning noreboot spec-ctrl=no,eager-fpu"
PAGURUS_ARGS = "console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=warning noreboot spec-ctrl=no"
# The clock watchdog compares clocks that a busy machine reads at different times. What hangs does so for longer than these
# two minutes and ten; a processor or a disk that somebody else uses does not.
DOM0_ARGS = ("console=hvc0 mitigations=off tsc=nowatchdog watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120"
             " sysctl.kernel.hung_task_timeout_secs=600")

# A PV dom0 sees machine addresses in its own way: virtio must go through its DMA interface.
VIRTIO = "iommu_platform=on,disable-legacy=on"

FIRST_DISK_SLOT, FIRST_NIC_SLOT = 4, 6


def make_overlay(path, backing, form):
    """A new disk at path over the read-only image backing."""
    done = subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", form, path],
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"qemu-img could not make {path} over {backing}: {done.stderr.strip()}")


def _comma(text):
    """QEMU reads a comma in a module's command line as the end of it unless it is doubled."""
    return text.replace(",", ",,")


def _controller(options):
    """The disks' controller, where they need one and the machine has none of that kind."""
    kind = {("pc", "ahci"): "ich9-ahci", ("q35", "ide"): "piix3-ide"}.get((options["machine"], options["disk"]))
    return ["-device", f"{kind},id=disks,addr={FIRST_DISK_SLOT:#x}"] if kind else []


def _disk(options, number, file):
    """One of the two disks."""
    words = ["-drive", f"file={file},format=qcow2,if=none,id=disk{number},discard=unmap"]
    slot = f"addr={FIRST_DISK_SLOT + number:#x}"
    if options["disk"] == "virtio":
        return words + ["-device", f"virtio-blk-pci,drive=disk{number},{VIRTIO},{slot}"]
    if options["disk"] == "nvme":
        # Without shadow doorbells, as most controllers are: with them QEMU leaves a line interrupt asserted when the driver has taken an entry that
        # came while it wrote the doorbell, until the next request; a storm that the kernel ends by "nobody cared".
        return words + ["-device", f"nvme,dbcs=off,drive=disk{number},serial=lab{number},{slot}"]
    bus = "disks" if _controller(options) else "ide"
    return words + ["-device", f"ide-hd,drive=disk{number},bus={bus}.{number}"]


def _card(options, number, tap, mac):
    """One of the two network cards."""
    kind = f"virtio-net-pci,{VIRTIO}" if options["nic"] == "virtio" else options["nic"]
    return ["-netdev", f"tap,id=net{number},ifname={tap},script=no,downscript=no",
            "-device", f"{kind},netdev=net{number},mac={mac},romfile=,addr={FIRST_NIC_SLOT + number:#x}"]


def command_line(place, host, options, memory=None, incoming=False):
    """
    The whole command line of a host; options as lab up stored them.

    memory is a pair (file, "on" or "off"): the host's memory is that file, written to or private.
    With incoming the machine waits for the state of another.
    """
    root = options["root"]
    kernel = options["kernel"]
    image = options["image"][host]
    xen = f"{PAGURUS_ARGS if image else XEN_ARGS} dom0_mem={options['dom0_mem']}M,max:{options['dom0_mem']}M {options['xen_args']}".strip()
    drivers = ",".join(DISK_DRIVERS[options["disk"]] + NIC_DRIVERS[options["nic"]])
    linux = f"{DOM0_ARGS} lab.host={host} lab.drivers={drivers} {options['dom0_args']}".strip()
    manage, between = network.taps(host)
    words = [
        BINARY, "-nodefaults", "-no-user-config", "-display", "none", "-name", f"{place.name}-{host}",
        "-machine", options["machine"], "-accel", "tcg,thread=multi", "-cpu", options["cpu"],
        "-smp", str(options["smp"]), "-m", str(options["mem"]),
        "-kernel", image or f"{root}/xen", "-append", xen,
        "-initrd", f"{root}/vmlinux-{kernel} {_comma(linux)},{root}/initrd-{kernel}",
        "-chardev", f"socket,id=console,path={place.host(host, 'console.sock')},server=on,wait=off,"
                    f"logfile={place.host(host, 'console.log')},logappend=on",
        "-serial", "chardev:console",
        "-qmp", f"unix:{place.host(host, 'qmp.sock')},server=on,wait=off",
        "-device", f"virtio-rng-pci,{VIRTIO},addr=0x8",
    ]
    words += _controller(options)
    for number, item in enumerate(("root.qcow2", "guests.qcow2")):
        words += _disk(options, number, place.disk(host, item))
    for number, tap in enumerate((manage, between)):
        words += _card(options, number, tap, network.mac(host, number))
    if memory:
        words += ["-object", f"memory-backend-file,id=ram,size={options['mem']}M,mem-path={memory[0]},share={memory[1]}",
                  "-machine", "memory-backend=ram"]
    if incoming:
        words += ["-incoming", "defer"]
    return words + options["qemu_args"]


def pid(place, host):
    """Process number of the host's QEMU, or None when it does not run."""
    try:
        with open(place.host(host, "qemu.pid"), encoding="ascii") as file:
            number = int(file.read())
        with open(f"/proc/{number}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except (OSError, ValueError):
        return None
    # The number may belong to another process by now.
    mine = f"unix:{place.host(host, 'qmp.sock')},server=on,wait=off".encode()
    return number if mine in words else None


def start(place, host, options, **kwargs):
    """Starts the host's QEMU and returns when it listens on its monitor; kwargs as for command_line."""
    for item in ("console.sock", "qmp.sock"):
        if os.path.exists(place.host(host, item)):
            os.unlink(place.host(host, item))
    log = place.host(host, "qemu.log")
    with open(log, "ab") as output:
        process = subprocess.Popen(  # pylint: disable=consider-using-with
            ["nsenter", f"--net={network.path(place.netns)}"] + command_line(place, host, options, **kwargs),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    with open(place.host(host, "qemu.pid"), "w", encoding="ascii") as file:
        file.write(str(process.pid))
    deadline = time.monotonic() + 60
    while not os.path.exists(place.host(host, "qmp.sock")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"QEMU of host {host} did not start: {_tail(log)} (all of it: {log})")
        time.sleep(0.02)


def _tail(path):
    with open(path, "rb") as file:
        return file.read()[-400:].decode("utf-8", "replace").strip()


def kill(place, host):
    """
    Ends the host's QEMU at once, as a power cut would; returns when it is gone and has let go of
    its network cards and disks. False when it did not run.
    """
    number = pid(place, host)
    if number is None:
        return False
    try:
        handle = os.pidfd_open(number)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], KILL_SECONDS)[0]:
            raise LabError(f"QEMU of host {host} (process {number}) does not end {KILL_SECONDS} s after SIGKILL:"
                           " it waits for the disk or the kernel; try again later")
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
    return True


def kill_all(place, hosts):
    """Ends the QEMU of each host that runs."""
    for host in hosts:
        kill(place, host)


class Qmp:
    """A connection to the host's QEMU monitor."""

    def __init__(self, place, host):
        self.host = host
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(120)
        self.file = self.socket.makefile("rw", encoding="utf-8")
        try:
            self.socket.connect(place.host(host, "qmp.sock"))
            self.file.readline()
            self.ask("qmp_capabilities")
        except OSError as error:
            self.socket.close()
            raise LabError(f"QEMU of host {host} does not answer on its monitor: {error}; what it said:"
                           f" {_tail(place.host(host, 'qemu.log'))}") from error

    def ask(self, command, **arguments):
        """Runs one command and returns what it returns; events in between are dropped."""
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise LabError(f"QEMU of host {self.host} ended while it was asked to {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QEMU of host {self.host} refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def migrated(self, seconds):
        """Waits for a migration that was started, in either direction."""
        deadline = time.monotonic() + seconds
        while True:
            info = self.ask("query-migrate")
            if info.get("status") == "completed":
                return
            if info.get("status") == "failed" or time.monotonic() > deadline:
                raise LabError(f"QEMU of host {self.host} could not save or load its state:"
                               f" {info.get('error-desc', info.get('status'))}; lab up --fresh does without")
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()
