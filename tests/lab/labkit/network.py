# SPDX-License-Identifier: MIT
"""
The lab's networks: a network namespace of its own with two bridges.

"manage" carries lab sh and nothing else, so that cutting a host from the others does not cut
the user from it. "between" is the network between the hosts and their guests; the namespace has
an address on it as well, a third place to watch from.
"""

import os
import subprocess

from labkit.errors import LabError
from labkit.place import HOST_NAMES

MANAGE = "10.98.0"
BETWEEN = "10.99.0"
THIRD_PLACE = 254


def _ip(*words, batch=None, netns=None):
    command = ["ip"] + (["-n", netns] if netns else []) + list(words)
    done = subprocess.run(command, input=batch, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise LabError(f"'{' '.join(command)}' failed: {done.stderr.strip()}: the lab needs root, and a kernel with"
                       " tun, bridge and network namespaces")
    return done.stdout


def number(host):
    """1 for a, 2 for b, ...: the last part of the host's addresses."""
    return HOST_NAMES.index(host) + 1


def manage_address(host):
    """Address of the host for lab sh."""
    return f"{MANAGE}.{number(host)}"


def taps(host):
    """Names of the host's two taps: (manage, between)."""
    return f"m-{host}", f"n-{host}"


def mac(host, card):
    """Address of network card 0 (manage) or 1 (between), the same at every boot."""
    return f"52:54:00:50:{card:02x}:{number(host):02x}"


def exists(netns):
    """True when the namespace is there."""
    return os.path.exists(path(netns))


def path(netns):
    """The file that stands for the namespace, for nsenter."""
    return f"/run/netns/{netns}"


def create(netns, hosts):
    """Makes the namespace with its bridges and a pair of taps for each host."""
    if not os.path.exists("/dev/net/tun"):
        raise LabError("/dev/net/tun is not there: load the kernel module tun, or run on a kernel that has it")
    _ip("netns", "add", netns)
    lines = ["link set lo up"]
    for bridge, prefix in (("manage", MANAGE), ("between", BETWEEN)):
        lines += [f"link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                  f"address add {prefix}.{THIRD_PLACE}/24 dev {bridge}", f"link set {bridge} up"]
    for host in hosts:
        for tap, bridge in zip(taps(host), ("manage", "between")):
            lines += [f"tuntap add dev {tap} mode tap", f"link set {tap} up master {bridge}"]
    _ip("-batch", "-", batch="\n".join(lines) + "\n", netns=netns)


def destroy(netns):
    """Removes the namespace and with it bridges and taps; nothing happens when it is not there."""
    if exists(netns):
        _ip("netns", "del", netns)


def set_cut(netns, host, cut):
    """
    Stops (or starts again) the port of the host on the network between the hosts.

    Frames are dropped in both directions without either end losing its carrier, as when a cable
    breaks behind a switch.
    """
    command = ["bridge", "-n", netns, "link", "set", "dev", taps(host)[1], "state", "0" if cut else "3"]
    done = subprocess.run(command, text=True, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise LabError(f"'{' '.join(command)}' failed: {done.stderr.strip()}")


def is_cut(netns, host):
    """True when the host is cut off from the network between the hosts."""
    return "state disabled" in subprocess.run(
        ["bridge", "-n", netns, "link", "show", "dev", taps(host)[1]], text=True,
        stdout=subprocess.PIPE, check=False).stdout
