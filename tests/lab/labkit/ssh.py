# SPDX-License-Identifier: MIT
"""
Commands and files into a host, over ssh on the management network.

A master connection made when the host comes up is shared by everything after it, so that a
command costs a channel and not a handshake under emulation. Without a master (it died with the
host) the same command line makes its own connection.
"""

import contextlib
import os
import subprocess
import sys
import time

from labkit import network, qemu
from labkit.errors import LabError

CONNECT_SECONDS = 60
TIMED_OUT = 124  # as timeout(1)


def _options(place, host, root):
    return [
        "-F", "none", "-i", f"{root}/ssh/id", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={root}/ssh/known_hosts", "-o", "GlobalKnownHostsFile=none",
        "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR",
        "-o", "Ciphers=aes128-gcm@openssh.com", "-o", "KexAlgorithms=curve25519-sha256",
        "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8",
        "-o", f"ControlPath={place.host(host, 'ssh.sock')}",
    ]


def _enter(place):
    return ["nsenter", f"--net={network.path(place.netns)}"]


def _target(host):
    return f"root@{network.manage_address(host)}"


def _ssh(place, host, root, *words):
    return _enter(place) + ["ssh"] + _options(place, host, root) + list(words)


def open_master(place, host, root, seconds):
    """Makes the master connection; the host must be up or come up within seconds."""
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(
            _ssh(place, host, root, "-o", "ControlMaster=yes", "-o", "ControlPersist=yes", "-fN", _target(host)),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline or qemu.pid(place, host) is None:
            raise LabError(f"host {host} does not let the lab in by ssh within {seconds:.0f} s: {done.stderr.strip()};"
                           f" its console: {place.host(host, 'console.log')}")
        time.sleep(0.2)


def close_master(place, host, root):
    """Ends the master connection, if there is one."""
    if not os.path.exists(place.host(host, "ssh.sock")):
        return
    # A master that does not answer ends with its host or its network.
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(_ssh(place, host, root, "-O", "exit", _target(host)), stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=CONNECT_SECONDS)
    # It removes its socket itself, at any time after it has agreed to end.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.host(host, "ssh.sock"))


def command(place, host, root, line, terminal=False):
    """The local command line that runs line (shell text) in the host as root."""
    return _ssh(place, host, root, "-o", "ControlMaster=no", "-t" if terminal else "-T", _target(host), "--", line)


def run(place, host, root, line, seconds, **kwargs):
    """Runs line in the host; returns the finished process. Ends it after seconds (at both ends)."""
    quoted = line.replace("'", "'\\''")
    bounded = f"timeout --kill-after=5 {seconds:g} bash -c '{quoted}'"
    try:
        done = subprocess.run(command(place, host, root, bounded), timeout=seconds + CONNECT_SECONDS,
                              check=False, **kwargs)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"host {host} did not answer for {seconds + CONNECT_SECONDS:g} s while it was to run: {line}",
                       TIMED_OUT) from error
    if done.returncode == TIMED_OUT:
        raise LabError(f"host {host}: waited {seconds:g} s, in vain, for this to end: {line}", TIMED_OUT)
    return done


def replace(place, host, root, words):
    """Becomes the command in the host: this process ends with its exit status. Never returns."""
    if words:
        # Arguments are joined as ssh joins them, so that 'a && b' is for the host's shell.
        line = command(place, host, root, " ".join(words))
    else:
        line = _ssh(place, host, root, "-o", "ControlMaster=no", _target(host))
    sys.stdout.flush()
    os.execvp(line[0], line)


def copy(place, host, root, source, target, into_host):
    """Copies a file or folder into the host or out of it, with modes and times."""
    far = f"{_target(host)}:{target if into_host else source}"
    ends = [source, far] if into_host else [far, target]
    # scp reads a colon in a local name as the end of a host's name.
    ends = [end if end is far or end.startswith("/") else f"./{end}" for end in ends]
    done = subprocess.run(_enter(place) + ["scp", "-q", "-r", "-p"] + _options(place, host, root) + ["--"] + ends,
                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        way = "into" if into_host else "out of"
        raise LabError(f"could not copy {source} {way} host {host} as {target}: {done.stderr.strip()}")
