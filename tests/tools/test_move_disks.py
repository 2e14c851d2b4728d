# SPDX-License-Identifier: MIT
"""Disks that come along with a guest, as far as that goes without a hypervisor: tests/unit/test_move_disks.c has both ends, tests/lab/test_live real guests."""

import json
import time

from rig import SMALL, Rig, expect, wait_until


def test_a_guest_without_disks_of_its_own_has_none_to_take_along():
    with Rig() as rig:
        r = rig.a.run("migrate", "--json", "--with-disks", SMALL, "b").must(1).result()
        expect("no disk in a file" in r["text"] and r["outcome"] == "stayed", str(r))
        expect(not rig.b.journals(), "the other host was asked")
        rig.a.run("migrate", SMALL, "b").must(0)


def test_what_a_dead_worker_made_is_removed():
    """By its journal: before it had its name, and with it, but for a file that is another one; and nothing of a guest that runs here."""
    with Rig(start=False) as rig:
        rig.a.start()
        rig.b.start()
        rig.a.run("migrate", SMALL, "b").must(0)
        journal = next(iter(rig.b.settled().values()))
        rig.b.stop()

        def plant(number, **more):
            disks = []
            for name, inode in (("new", False), ("made", True), ("foreign", True)):
                path = rig.b.dir / f"{number}-{name}.qcow2"
                partial = path.with_name(f"{path.name}.{number:032x}.partial")
                (path if inode else partial).write_text("a disk")
                disks.append({"path": str(path), "partial": str(partial), "inode": path.stat().st_ino if inode else 0})
            # Its name belongs to another file meanwhile, while the old one is still somewhere.
            path.rename(path.with_suffix(".kept"))
            path.write_text("mine")
            session = f"{number:032x}"
            planted = {**journal, "session": session, "done": False, "know_guest": False, "disks": disks, **more}
            (rig.b.state / "sessions" / f"{session}.json").write_text(json.dumps(planted))
            return session
        begun, running = plant(1, mark="begin"), plant(2, mark="moved")
        # The host went down when it had come: whether the guest ran before shows in its disk.
        never, ran = plant(3, mark="commit", boot="another", changed=int(time.time()) + 100), plant(4, mark="commit", boot="another", changed=int(time.time()) - 100)
        rig.b.start()
        wait_until(lambda: all(rig.b.journals()[s]["done"] for s in (begun, running, never, ran)), "the repair")
        left = {number: sorted(path.name for path in rig.b.dir.glob(f"{number}-*")) for number in (3, 4)}
        expect(len(left[3]) == 2 and "4-made.qcow2" in left[4] and "written here since" in rig.b.log(), f"{left} {rig.b.log()}")
        left = sorted(path.name for path in rig.b.dir.glob("1-*"))
        expect(left == ["1-foreign.kept", "1-foreign.qcow2"], str(left))
        left = sorted(path.name for path in rig.b.dir.glob("2-*"))
        expect(len(left) == 4, str(left))
