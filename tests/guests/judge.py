# SPDX-License-Identifier: MIT
"""Which test guests there are (tests/guests/test_*.c), what their sources ask for, and what they say is worth."""

import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
PROCESSORS = re.compile(r"^ \* Processors: (\d+)", re.M)
PART = re.compile(r"^part (\S+)$")
VERDICT = re.compile(r"^verdict (SUCCESS|SKIP|FAILURE|ERROR) ([^\s:]+)(?:: (.*))?$")
NOT_ASKED = "not asked for"
END = "all parts done"


def known():
    return sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.c"))


def source(name):
    return (HERE / f"test_{name}.c").read_text()


def processors(name):
    found = PROCESSORS.search(source(name))
    return int(found[1]) if found else 1


def parts(name, lines, end=END, silent="it said no more"):
    """(word, name, why) for each part, in order. With another end than END the last part may be one that does not end."""
    found, part = [], None
    for line in lines:
        begins, says = PART.match(line), VERDICT.match(line)
        if begins:
            part = begins[1]
        elif says and says[2] == part:
            why = f"{says[1]}: {says[3]}" if says[1] in ("FAILURE", "ERROR") else says[3] or ""
            word = {"SUCCESS": "PASS", "SKIP": "SKIP"}.get(says[1], "FAIL")
            if word != "SKIP" or why != NOT_ASKED:
                found.append((word, f"{name}.{part}", why))
            part = None
    if part and (end == END or end not in lines):
        found.append(("FAIL", f"{name}.{part}", f"CRASH: {silent}"))
    elif end not in lines:
        found.append(("FAIL", name, "CRASH: it did not come to its end"))
    return found
