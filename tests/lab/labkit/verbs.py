# SPDX-License-Identifier: MIT
"""What each verb of the lab does."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from labkit import boot, console, guests, logscan, network, project, qemu, root, ssh, state, warm
from labkit.errors import LabError, say
from labkit.place import HOST_NAMES

GUEST_LOGS = "cd /var/log/xen/console && tar -cf - --ignore-failed-read guest-*.log"


def _power_on(place, hosts, options, fresh):
    """Boots the hosts, or goes on from hosts that were saved after their boot; returns when they are usable."""
    folders = {} if fresh else warm.prepare(place, hosts, options)
    say(f"{'booting' if fresh else 'starting'} {', '.join(hosts)}")

    def one(host):
        if fresh:
            qemu.start(place, host, options)
            boot.wait(place, host, 0, options["wait"])
        else:
            warm.resume(place, host, options, folders[host])
        boot.finish(place, host, options["root"], options["wait"])

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, hosts))


def up(place, args):
    """Makes and boots the hosts; whatever goes wrong, nothing is left running."""
    if args.hypervisor == "pagurus":
        raise LabError("the pagurus hypervisor is not built yet: use --hypervisor xen", 2)
    if not 1 <= args.hosts <= len(HOST_NAMES):
        raise LabError(f"--hosts must be 1 to {len(HOST_NAMES)}", 2)
    if args.dom0_mem + 128 > args.mem:
        raise LabError(f"--mem {args.mem} leaves no room for guests beside --dom0-mem {args.dom0_mem}: give at least 128 MB more", 2)
    if os.geteuid() != 0:
        raise LabError("the lab needs root (network namespaces, packages): use sudo")
    with state.exclusive(place):
        if state.is_up(place):
            raise LabError(f"the lab '{place.name}' is up already: 'lab --name {place.name} down' ends it,"
                           " or use another name")
        names = list(HOST_NAMES[:args.hosts])
        options = {
            "hosts": names, "root": root.root_folder(), "kernel": args.kernel, "smp": args.smp, "mem": args.mem,
            "dom0_mem": args.dom0_mem, "machine": args.machine, "cpu": args.cpu, "xen_args": args.xen_args,
            "dom0_args": args.dom0_args, "qemu_args": args.qemu_args.split(), "hypervisor": args.hypervisor,
            "wait": args.wait, "limits": {},
        }
        guests_disk = guests.guests_disk(not args.no_guests)
        state.clear_logs(place)
        state.store(place, options)
        try:
            os.makedirs(place.disks, mode=0o700, exist_ok=True)
            network.create(place.netns, names)
            for host in names:
                os.makedirs(place.host(host), mode=0o700)
                qemu.make_overlay(place.disk(host, "root.qcow2"), os.path.join(options["root"], "root.img"), "raw")
                qemu.make_overlay(place.disk(host, "guests.qcow2"), guests_disk, "raw")
            _power_on(place, names, options, args.fresh)
            if not args.no_install:
                project.push(place, names, options["root"])
        except BaseException:
            state.remove(place, options["root"])
            raise
    say(f"ready: {', '.join(names)}; consoles are logged to {place.state}/HOST/console.log")


def shell(place, args):
    """Runs a command in a host, or a shell there."""
    options = state.load(place)
    state.check_host(options, args.host)
    if qemu.pid(place, args.host) is None:
        raise LabError(f"host {args.host} is not running: 'lab start {args.host}' powers it on")
    if args.timeout is None:
        ssh.replace(place, args.host, options["root"], args.command)
    if not args.command:
        raise LabError("--timeout needs a command", 2)
    sys.exit(ssh.run(place, args.host, options["root"], " ".join(args.command), args.timeout).returncode)


def put(place, args):
    """Copies into a host."""
    options = state.load(place)
    state.check_host(options, args.host)
    ssh.copy(place, args.host, options["root"], args.source, args.target, True)


def get(place, args):
    """Copies out of a host."""
    options = state.load(place)
    state.check_host(options, args.host)
    ssh.copy(place, args.host, options["root"], args.source, args.target, False)


def attach(place, args):
    """Attaches the terminal to a host's console."""
    state.check_host(state.load(place), args.host)
    console.attach(place, args.host)


def cut(place, args):
    """Cuts a host off from the others."""
    state.check_host(state.load(place), args.host)
    network.set_cut(place.netns, args.host, True)


def heal(place, args):
    """Connects a host with the others again."""
    state.check_host(state.load(place), args.host)
    network.set_cut(place.netns, args.host, False)


def limit(place, args):
    """Slows down a host's network with the others, in both directions."""
    options = state.load(place)
    state.check_host(options, args.host)
    if args.rate == "none":
        line = "/usr/lib/pagurus-lab/limit none"
    else:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?[kmg]?bit", args.rate):
            raise LabError(f"'{args.rate}' is not a rate: write for example 100mbit, or none", 2)
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(us|ms|s)", args.delay or "0ms"):
            raise LabError(f"'{args.delay}' is not a delay: write for example 20ms", 2)
        line = f"/usr/lib/pagurus-lab/limit {args.rate} {args.delay or '0ms'}"
    done = ssh.run(place, args.host, options["root"], line, 60, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"host {args.host} cannot limit its network: {done.stderr.strip()}")
    with state.exclusive(place):
        options = state.load(place)
        options["limits"][args.host] = f"{args.rate} {args.delay or ''}".strip()
        state.store(place, options)


def kill(place, args):
    """Cuts the power of a host."""
    with state.exclusive(place):
        options = state.load(place)
        state.check_host(options, args.host)
        if not qemu.kill(place, args.host):
            raise LabError(f"host {args.host} is not running")
        ssh.close_master(place, args.host, options["root"])
        options["limits"].pop(args.host, None)
        state.store(place, options)


def start(place, args):
    """Powers a host on again, with the disk that it had."""
    with state.exclusive(place):
        options = state.load(place)
        state.check_host(options, args.host)
        if qemu.pid(place, args.host) is not None:
            raise LabError(f"host {args.host} is running already")
        ssh.close_master(place, args.host, options["root"])
        since = boot.log_size(place, args.host)
        say(f"booting {args.host}")
        try:
            qemu.start(place, args.host, options)
            boot.wait(place, args.host, since, options["wait"])
            boot.finish(place, args.host, options["root"], options["wait"])
        except BaseException:
            qemu.kill(place, args.host)
            raise
    say(f"ready: {args.host}")


def push(place, args):
    """Installs the built tree into the running hosts again."""
    options = state.load(place)
    hosts = args.hosts or [host for host in options["hosts"] if qemu.pid(place, host) is not None]
    for host in hosts:
        state.check_host(options, host)
    project.push(place, hosts, options["root"])


def _fetch_guest_logs(place, host, options, seconds):
    """Brings the logs of the guests' consoles beside the host's; an unreachable host keeps its own."""
    done = ssh.run(place, host, options["root"], f"{GUEST_LOGS} 2>/dev/null", seconds, stdin=subprocess.DEVNULL,
                   capture_output=True)
    if done.stdout:
        subprocess.run(["tar", "-C", place.host(host), "-xf", "-"], input=done.stdout, check=False)


def logs(place, _args):
    """Scans the console logs; returns 1 when there is a warning that is not allowed."""
    if state.is_up(place):
        options = state.load(place)
        for host in options["hosts"]:
            if qemu.pid(place, host) is not None:
                _fetch_guest_logs(place, host, options, 60)
    expressions = logscan.allowed()
    found = scanned = 0
    for host in HOST_NAMES:
        folder = place.host(host)
        for item in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            if not item.endswith(".log") or item == "qemu.log":
                continue
            scanned += 1
            for number, line in logscan.scan(os.path.join(folder, item), expressions):
                found += 1
                print(f"{folder}/{item}:{number}: {line}")
    if not scanned:
        raise LabError(f"there are no console logs in {place.state}: was the lab '{place.name}' ever up?")
    print(f"lab: {found} warnings in {scanned} console logs", file=sys.stderr)
    return 1 if found else 0


def status(place, _args):
    """Shows the hosts of the lab."""
    options = state.load(place)
    print(f"lab {place.name}: {options['hypervisor']}, dom0 kernel {options['kernel']}, {options['mem']} MB,"
          f" {options['smp']} CPU a host; network namespace {place.netns}")
    for host in options["hosts"]:
        number = qemu.pid(place, host)
        power = f"on, process {number}" if number else "off"
        net = "cut" if network.is_cut(place.netns, host) else "connected"
        limited = options["limits"].get(host, "none")
        print(f"{host}  {power}; network {net}; limit {limited}; {network.BETWEEN}.{network.number(host)};"
              f" console {place.host(host, 'console.log')}")


def down(place, args):
    """Ends the lab; a lab that is not up is fine."""
    with state.exclusive(place):
        if not state.is_up(place) and not network.exists(place.netns):
            say(f"the lab '{place.name}' is not up")
            return
        options = state.load(place) if state.is_up(place) else {"hosts": [], "root": None}
        if not args.fast:
            for host in options["hosts"]:
                if os.path.exists(place.host(host, "ssh.sock")) and qemu.pid(place, host) is not None:
                    try:
                        _fetch_guest_logs(place, host, options, 5)
                    except LabError as error:
                        say(f"the logs of the guests of {host} are lost: {error}")
        state.remove(place, options["root"])
    say(f"down; console logs stay in {place.state} until the next up")
