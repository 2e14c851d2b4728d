#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""
Verify Pagurus streams against stream.md. Independent of the C code, standard library only.

  verify_stream.py [--json] [--quiet] FILE...             image and checkpoint files; a parent before its children
  verify_stream.py [...] --channels SOURCE0 SOURCE1 ...   the captured source-to-target channels of one session
  verify_stream.py [...] --dir DIR                        DIR/source-N.bin and DIR/target-N.bin of one session

Exit status: 0 all is right, 1 something is refused (the line says file, record, offset and why), 2 wrong usage.
"""

import argparse
import json
import os
import re
import sys

sys.dont_write_bytecode = True

from streamcheck import Refused  # noqa: E402
from streamcheck.session import Parents, check_file, check_session  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(description="Verify Pagurus streams against stream.md.",
                                     epilog="Exit status: 0 right, 1 refused, 2 wrong usage.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="streams (with --dir: folders)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--channels", action="store_true", help="the files are the source's channels of one session")
    how.add_argument("--dir", action="store_true", help="each folder has source-N.bin and target-N.bin of one session")
    parser.add_argument("--incomplete", action="store_true",
                        help="with --channels or --dir: the session may have been cut off at any record")
    parser.add_argument("--json", action="store_true", help="print a JSON array of summaries")
    parser.add_argument("--quiet", action="store_true", help="print only what is refused")
    arguments = parser.parse_args()
    if arguments.incomplete and not (arguments.channels or arguments.dir):
        parser.error("--incomplete needs --channels or --dir: a file is complete or refused")
    return arguments


def captured(folder, side):
    found = []
    for name in sorted(os.listdir(folder)):
        match = re.fullmatch(side + r"-(\d+)\.bin", name)
        if match:
            found.append(os.path.join(folder, name))
    return found


def print_summary(name, summary):
    print("%s: good" % name)
    print("  %(kind)s, session %(session)s, %(channels)d channel(s), %(rounds)d round(s)" % summary)
    if "name" in summary:
        print("  guest %(name)s (%(guest)s, %(nr_pfns)d pfns), uuid %(uuid)s" % summary)
    print("  records: " + ", ".join("%s %d" % item for item in summary["records"].items()))
    print("  pages:   " + ", ".join("%s %d" % item for item in summary["pages"].items()))
    print("  groups:  " + ", ".join("%s %d" % item for item in summary["groups"].items()))
    if "digest" in summary:
        verified = ", sent twice and equal" if summary["verified"] else ""
        print("  digest:  %(digest)s over %(memory_pages)d pages" % summary + verified)
    elif summary["aborted"]:
        print("  digest:  none, the session was aborted")


def check_folder(folder, incomplete):
    sources = captured(folder, "source")
    if not sources:
        raise Refused("%s: no source-N.bin in it" % folder)
    return check_session(sources, captured(folder, "target"), incomplete)


def check_all(arguments):
    """(name, Session or Refused) of each, in turn."""
    if arguments.channels:
        jobs = [("session", lambda: check_session(arguments.files, [], arguments.incomplete))]
    elif arguments.dir:
        jobs = [(d, lambda d=d: check_folder(d, arguments.incomplete)) for d in arguments.files]
    else:
        parents = Parents()
        jobs = [(f, lambda f=f: check_file(f, parents)) for f in arguments.files]
    for name, job in jobs:
        try:
            yield name, job()
        except Refused as why:
            yield name, why
        except OSError as why:
            yield name, Refused("%s: %s" % (why.filename or name, why.strerror))


def main():
    arguments = parse_arguments()
    summaries = []
    bad = False
    for name, result in check_all(arguments):
        if isinstance(result, Refused):
            bad = True
            print(result, file=sys.stderr)
            summaries.append({"name": name, "error": str(result)})
            continue
        summary = result.summary()
        summaries.append(dict(summary, file=name))
        if not arguments.json and not arguments.quiet:
            print_summary(name, summary)
    if arguments.json:
        print(json.dumps(summaries, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
