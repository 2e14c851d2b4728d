# SPDX-License-Identifier: MIT
"""
Hosts that have booted already.

Booting under emulation takes most of the time of lab up. So the first lab with given options
boots each host, saves it when it is ready (memory file, device state, disk, console log) and
ends it; this and every later lab with the same options goes on from there, with the memory file
mapped privately, which costs what is touched and is shared between labs. lab up --fresh boots.

The hypervisor has measured the processor's clock: what was saved is good for this boot of this
machine only, and the key says so. The host's clock is set when it is prepared for use.
"""

import os
import shutil
import subprocess
import time

from labkit import boot, parallel, qemu
from labkit.cache import digest, locked
from labkit.errors import say
from labkit.place import CACHE

SAVE_SECONDS = 120
KEPT = 8  # saved hosts, of 0.4 GB each, that may lie unused for longer than:
UNUSED_SECONDS = 3600
MACHINE_OPTIONS = ("root", "kernel", "smp", "mem", "dom0_mem", "machine", "cpu", "xen_args", "dom0_args",
                   "qemu_args", "disk", "nic")


def _this_boot():
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(8)


def _folder(host, options):
    version = subprocess.run([qemu.BINARY, "--version"], stdout=subprocess.PIPE, check=True).stdout
    key = digest(version, host, str(options["image"][host]), *(str(options.get(item)) for item in MACHINE_OPTIONS), *_code())
    return os.path.join(CACHE, f"warm-{_this_boot()}-{host}-{key}")


def _code():
    """The command line is made by these files: another command line is another machine."""
    for module in (qemu, boot):
        with open(module.__file__, "rb") as file:
            yield file.read()


def _forget():
    """Removes saved hosts that cannot be used any more and those that were not used lately."""
    here = [entry for entry in os.listdir(CACHE) if entry.startswith("warm-") and entry != "warm.lock"]
    usable = [entry for entry in here if entry.startswith(f"warm-{_this_boot()}-")]
    old = [entry for entry in usable if time.time() - os.stat(os.path.join(CACHE, entry)).st_mtime > UNUSED_SECONDS]
    old.sort(key=lambda entry: os.stat(os.path.join(CACHE, entry)).st_mtime, reverse=True)
    for entry in set(here) - set(usable) | set(old[KEPT:]):
        shutil.rmtree(os.path.join(CACHE, entry), ignore_errors=True)


def _save(place, host, options, final):
    """Boots the host, saves it into final, ends it."""
    partial = f"{final}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
        qemu.start(place, host, options, memory=(os.path.join(partial, "memory"), "on"))
        boot.wait(place, host, 0, options["wait"])
        with qemu.Qmp(place, host) as monitor:
            monitor.ask("stop")
            monitor.ask("migrate-set-capabilities",
                        capabilities=[{"capability": "x-ignore-shared", "state": True}])
            monitor.ask("migrate", uri=f"file:{partial}/state")
            monitor.migrated(SAVE_SECONDS)
        qemu.kill(place, host)
        os.rename(place.disk(host, "root.qcow2"), os.path.join(partial, "root.qcow2"))
        os.rename(place.host(host, "console.log"), os.path.join(partial, "console.log"))
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def prepare(place, hosts, options):
    """Makes what is missing of the saved hosts; returns the folder of each."""
    folders = {host: _folder(host, options) for host in hosts}
    if all(os.path.isdir(folder) for folder in folders.values()):
        return folders
    with locked(os.path.join(CACHE, "warm.lock"), "booted hosts"):
        missing = [host for host in hosts if not os.path.isdir(folders[host])]
        _forget()
        if missing:
            say(f"booting {', '.join(missing)} for the first time with these options (later labs skip this)")
            parallel.each(lambda host: _save(place, host, options, folders[host]), missing,
                          lambda: qemu.kill_all(place, missing))
    return folders


def resume(place, host, options, folder):
    """Starts the host from the saved one in folder."""
    os.utime(folder)
    shutil.copyfile(os.path.join(folder, "root.qcow2"), place.disk(host, "root.qcow2"))
    shutil.copyfile(os.path.join(folder, "console.log"), place.host(host, "console.log"))
    qemu.start(place, host, options, memory=(os.path.join(folder, "memory"), "off"), incoming=True)
    with qemu.Qmp(place, host) as monitor:
        monitor.ask("migrate-set-capabilities",
                    capabilities=[{"capability": "x-ignore-shared", "state": True}])
        monitor.ask("migrate-incoming", uri=f"file:{folder}/state")
        monitor.migrated(SAVE_SECONDS)
        monitor.ask("cont")
