# SPDX-License-Identifier: MIT
"""Attaches the terminal to a host's serial console."""

import os
import select
import socket
import sys
import termios
import tty

from labkit.errors import LabError

LEAVE = b"\x1d"  # Ctrl-]


def attach(place, host):
    """Copies between the terminal and the console until Ctrl-], the end of input, or of the host."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(place.host(host, "console.sock"))
    except OSError as error:
        raise LabError(f"the console of host {host} cannot be reached: {error}; is it running (lab status)?") from error
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"lab: console of host {host}; Ctrl-] leaves, Enter shows the prompt", file=sys.stderr)
        before = termios.tcgetattr(0)
        tty.setraw(0)
    try:
        while True:
            ready, _, _ = select.select([0, link], [], [])
            if link in ready:
                data = link.recv(65536)
                if not data:
                    return
                os.write(1, data)
            if 0 in ready:
                data = os.read(0, 4096)
                if not data or LEAVE in data:
                    link.sendall(data.partition(LEAVE)[0])
                    return
                link.sendall(data)
    finally:
        if terminal:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
            print("\nlab: left the console", file=sys.stderr)
        link.close()
