# SPDX-License-Identifier: MIT
"""How the lab talks to its user: progress, and errors that end a command."""

import sys
import time

_start = time.monotonic()


class LabError(Exception):
    """What went wrong, where, why and what to do, in words; status is the exit status."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


def say(message):
    """One line of progress on standard error, with the seconds since the command began."""
    print(f"lab: {time.monotonic() - _start:5.1f} s  {message}", file=sys.stderr, flush=True)
