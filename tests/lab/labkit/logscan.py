# SPDX-License-Identifier: MIT
"""Looks for warnings in what hosts and guests wrote on their consoles."""

import os
import re

from labkit.place import LAB

ALLOWED = os.path.join(LAB, "warnings-allowed")

SUSPICIOUS = re.compile(
    r"WARNING|\bBUG\b|\bOops\b|[Pp]anic( -|:| on)|Call Trace|\(XEN\) .*(Assertion|FATAL|Error:|[Ww]arning:|Unhandled|\bfault\b)"
    r"|soft lockup|hard LOCKUP|hung_task|blocked for more than|rcu.*(stall|detected)|general protection"
    r"|double fault|unable to handle|bad page|page allocation failure|[Oo]ut of memory|oom-kill|segfault"
    r"|traps: |I/O error|EXT4-fs (error|warning)|\bwatchdog\b|clocksource.*unstable|nobody cared|use-after-free"
    r"|refcount_t|Unhandled|invalid opcode|systemd\[1\]: .*[Ff]ailed|lab: .*cannot|VERIFIER FAILED|KILLED signal=", re.ASCII)


def allowed():
    """The allow list: compiled expressions; each line of the file is EXPRESSION, tab, reason."""
    expressions = []
    with open(ALLOWED, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.startswith("#") or not line.strip():
                continue
            expression, tab, reason = line.rstrip("\n").partition("\t")
            if not tab or not reason.strip():
                raise ValueError(f"{ALLOWED}:{number}: an entry needs a tab and a reason")
            expressions.append(re.compile(expression))
    return expressions


def scan(path, expressions):
    """Yields (line number, line) for each suspicious line of the file that is not allowed."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if SUSPICIOUS.search(line) and not any(item.search(line) for item in expressions):
                yield number, line
