# SPDX-License-Identifier: MIT
"""The verbs that use a lab that is up. They are called often: import little."""

import os
import re
import sys

from labkit import network, qemu, ssh, state
from labkit.errors import LabError
from labkit.place import HOST_NAMES, Place


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


def line(name, host, command):
    """The local command line for a command in a host, for who gives many: the start of lab sh costs more than most of them."""
    place = Place(name)
    options = state.load(place)
    state.check_host(options, host)
    return ssh.command(place, host, options["root"], command)


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
    from labkit import console  # pylint: disable=import-outside-toplevel

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


def logs(place, _args):
    """Scans the console logs; returns 1 when there is a warning that is not allowed."""
    from labkit import guestlogs, logscan  # pylint: disable=import-outside-toplevel

    if state.is_up(place):
        options = state.load(place)
        for host in options["hosts"]:
            if qemu.pid(place, host) is not None:
                guestlogs.fetch(place, host, options, 60)
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
    print(f"lab {place.name}: dom0 kernel {options['kernel']}, {options['mem']} MB, {options['smp']} CPU a host; network namespace {place.netns}")
    for host in options["hosts"]:
        number = qemu.pid(place, host)
        power = f"on, process {number}" if number else "off"
        net = "cut" if network.is_cut(place.netns, host) else "connected"
        limited = options["limits"].get(host, "none")
        print(f"{host}  {power}; {'pagurus' if options['image'][host] else 'xen'}; network {net}; limit {limited};"
              f" {network.BETWEEN}.{network.number(host)}; console {place.host(host, 'console.log')}")
