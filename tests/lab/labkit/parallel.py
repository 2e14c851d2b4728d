# SPDX-License-Identifier: MIT
"""The same work on several hosts at once."""

from concurrent.futures import ThreadPoolExecutor, as_completed


def each(work, hosts, abort):
    """
    Calls work(host) for every host, each in a thread, and returns when all are done.

    The first failure, or an interruption, calls abort(), which must make the others end soon, and
    is raised once they have.
    """
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        running = [pool.submit(work, host) for host in hosts]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:
            abort()
            raise
