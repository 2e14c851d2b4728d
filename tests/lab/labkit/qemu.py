# SPDX-License-Identifier: MIT
"""One host as a QEMU process: its command line, its birth and its end."""

import json
import os
import signal
import socket
import subprocess
import time

from labkit import network
from labkit.errors import LabError

BINARY = "qemu-system-x86_64"

# A PV dom0 sees machine addresses in its own way: virtio must go through its DMA interface.
VIRTIO = "iommu_platform=on,disable-legacy=on"


def make_overlay(path, backing, form):
    """A new disk at path over the read-only image backing."""
    done = subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", form, path],
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"qemu-img could not make {path} over {backing}: {done.stderr.strip()}")


def _comma(text):
    """QEMU reads a comma in a module's command line as the end of it unless it is doubled."""
    return text.replace(",", ",,")


def command_line(place, host, options):
    """The whole command line of a host; options as lab up stored them."""
    root = options["root"]
    kernel = options["kernel"]
    xen = f"console=com1 com1=115200,8n1 dom0_mem={options['dom0_mem']}M,max:{options['dom0_mem']}M" \
          f" loglvl=warning guest_loglvl=warning noreboot {options['xen_args']}".strip()
    linux = f"console=hvc0 lab.host={host} lab.hosts={len(options['hosts'])} {options['dom0_args']}".strip()
    manage, between = network.taps(host)
    words = [
        BINARY, "-nodefaults", "-no-user-config", "-display", "none", "-name", f"{place.name}-{host}",
        "-machine", options["machine"], "-accel", "tcg,thread=multi", "-cpu", options["cpu"],
        "-smp", str(options["smp"]), "-m", str(options["mem"]),
        "-kernel", f"{root}/xen", "-append", xen,
        "-initrd", f"{root}/vmlinux-{kernel} {_comma(linux)},{root}/initrd-{kernel}",
        "-chardev", f"socket,id=console,path={place.host(host, 'console.sock')},server=on,wait=off,"
                    f"logfile={place.host(host, 'console.log')},logappend=on",
        "-serial", "chardev:console",
        "-qmp", f"unix:{place.host(host, 'qmp.sock')},server=on,wait=off",
        "-device", f"virtio-rng-pci,{VIRTIO},addr=0x8",
    ]
    for slot, item in enumerate(("root.qcow2", "guests.qcow2"), 4):
        words += ["-drive", f"file={place.disk(host, item)},format=qcow2,if=none,id=disk{slot},discard=unmap",
                  "-device", f"virtio-blk-pci,drive=disk{slot},{VIRTIO},addr={slot:#x}"]
    for card, tap in enumerate((manage, between)):
        words += ["-netdev", f"tap,id=net{card},ifname={tap},script=no,downscript=no",
                  "-device", f"virtio-net-pci,netdev=net{card},mac={network.mac(host, card)},romfile=,"
                             f"{VIRTIO},addr={6 + card:#x}"]
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


def start(place, host, options):
    """Starts the host's QEMU and returns when it listens on its QMP socket."""
    for item in ("console.sock", "qmp.sock"):
        if os.path.exists(place.host(host, item)):
            os.unlink(place.host(host, item))
    log = place.host(host, "qemu.log")
    with open(log, "ab") as output:
        process = subprocess.Popen(  # pylint: disable=consider-using-with
            ["nsenter", f"--net={network.path(place.netns)}"] + command_line(place, host, options),
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
    """Ends the host's QEMU at once, as a power cut would; returns when it is gone."""
    number = pid(place, host)
    if number is None:
        return False
    os.kill(number, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while pid(place, host) is not None and not _zombie(number):
        if time.monotonic() > deadline:
            raise LabError(f"QEMU of host {host} (process {number}) does not end 30 s after SIGKILL:"
                           " it waits for the disk or the kernel; try again later")
        time.sleep(0.01)
    return True


def _zombie(number):
    try:
        with open(f"/proc/{number}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


class Qmp:
    """A connection to the host's QEMU monitor."""

    def __init__(self, place, host):
        self.host = host
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(120)
        try:
            self.socket.connect(place.host(host, "qmp.sock"))
        except OSError as error:
            raise LabError(f"QEMU of host {host} does not answer on its monitor: {error}") from error
        self.file = self.socket.makefile("rw", encoding="utf-8")
        self.file.readline()
        self.ask("qmp_capabilities")

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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()
