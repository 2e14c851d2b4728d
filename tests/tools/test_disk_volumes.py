# SPDX-License-Identifier: MIT
"""pagurus disk on volumes of LVM, with tests/tools/fake_lvm in the place of LVM's commands: what is asked of them, and what is left when one fails or dies.

tests/lab/test_disks has volumes and commands of the real one.
"""

import json
import pathlib
import signal

from rig import Rig, expect

MIB = 1 << 20
FAKE = pathlib.Path(__file__).resolve().parent / "fake_lvm"
THIN = {"pool": {"size": 512 * MIB, "content": ""}, "web": {"size": 64 * MIB, "pool": "pool", "content": "now"},
        "other": {"size": 64 * MIB, "pool": "pool", "content": "other"}}
CLASSIC = {"web": {"size": 64 * MIB, "content": "now"}, "other": {"size": 64 * MIB, "content": "other"}}


class Group:
    """The group vg with these volumes."""

    def __init__(self, rig, volumes):
        self.rig, self.state = rig, rig.dir / "volumes"
        self.environment = {"PAGURUS_LVM": str(FAKE), "FAKE_LVM": str(self.state)}
        self.put(volumes)

    def put(self, volumes):
        self.state.write_text(json.dumps(volumes))

    def volumes(self):
        return json.loads(self.state.read_text())

    def write(self, content, name="web"):
        volumes = self.volumes()
        volumes[name]["content"] = content
        self.put(volumes)

    def run(self, *words, env=None, status=0):
        (self.rig.dir / "volumes.count").unlink(missing_ok=True)
        return self.rig.a.run("disk", *words, env={**self.environment, **(env or {})}, cwd=self.rig.dir).must(status)

    def listed(self, name="vg/web"):
        return {o["name"]: o for o in self.run("list", "--json", name).lines() if o["type"] == "snapshot"}


def with_group(*kinds):
    def wrap(test):
        def run():
            for volumes in kinds:
                with Rig("a", start=False) as rig:
                    test(Group(rig, volumes))
        run.__name__ = test.__name__
        return run
    return wrap


@with_group(THIN, CLASSIC)
def test_snapshots(g):
    g.write("one")
    expect("/dev/vg/web.monday" in g.run("snapshot", "vg/web", "monday").out, "where it is")
    expect("already" in g.run("snapshot", "/dev/vg/web", "monday", status=1).err, "twice")
    g.write("two")
    g.run("snapshot", "/dev/vg/web", "tuesday")
    g.write("three")
    g.run("snapshot", "vg/other", "monday")
    listed = g.listed()
    expect(sorted(listed) == ["monday", "tuesday"] and listed["monday"]["path"] == "/dev/vg/web.monday", str(listed))
    expect(listed["monday"]["size"] == 64 * MIB and listed["monday"]["made"] == 1795894118, str(listed))
    text = g.run("list", "vg/web").out.splitlines()
    expect(len(text) == 3 and "the disk" in text[0] and "snapshot" in text[2], str(text))
    for name, content in (("monday", "one"), ("web.tuesday", "two"), ("vg/web.monday", "one")):
        g.run("revert", "vg/web", name)
        volumes = g.volumes()
        expect(volumes["web"]["content"] == content, f"after {name}: {volumes}")
        expect(sorted(g.listed()) == ["monday", "tuesday"] and volumes["web.tuesday"]["content"] == "two", f"after {name}: {volumes}")
        expect(not [v for v in volumes if "+" in v], f"left: {volumes}")
    # What the disk came from is no reason to call the disk a snapshot.
    expect(not g.listed("vg/web.monday"), str(g.listed("vg/web.monday")))
    expect("no snapshot" in g.run("delete", "vg/web", "other", status=1).err and "other" in g.volumes(), "another disk")
    g.run("delete", "vg/web", "other.monday", status=1)
    g.run("delete", "vg/web", "monday")
    g.run("delete", "vg/web", "tuesday")
    expect("no snapshot" in g.run("revert", "vg/web", "monday", status=1).err, "gone")
    expect(sorted(v for v in g.volumes() if v != "pool") == ["other", "other.monday", "web"], str(g.volumes()))


@with_group(CLASSIC)
def test_room(g):
    g.run("snapshot", "--room", "10M", "vg/web", "small")
    expect(g.volumes()["web.small"]["size"] == 12 * MIB and g.listed()["small"]["used"] == 12 * MIB, "as much as was said, in extents")
    g.run("revert", "vg/web", "small")
    expect(g.volumes()["web.small"]["size"] == 12 * MIB, "made anew with the same room")
    g.put({"web": {"size": 900 * MIB, "content": ""}})
    said = g.run("snapshot", "vg/web", "large", status=1).err
    expect("--room SIZE" in said and "insufficient free space" in said, said)
    g.put({**CLASSIC, "web.full": {"size": 4 * MIB, "origin": "web", "content": "", "invalid": True}})
    expect("void" in g.run("list", "vg/web").out and g.listed()["full"]["void"] is True, "that it is void")
    expect("void" in g.run("revert", "vg/web", "full", status=1).err, "back to nothing")


@with_group({**THIN, "clone": {"size": 64 * MIB, "pool": "pool", "origin": "web", "content": "precious"}})
def test_a_clone_is_no_snapshot(g):
    g.run("snapshot", "vg/web", "monday")
    expect(list(g.listed()) == ["monday"], str(g.listed()))
    g.run("delete", "vg/web", "clone", status=1)
    g.run("revert", "vg/web", "clone", status=1)
    expect("clone" in g.volumes(), "it is gone")


@with_group(THIN)
def test_thin_has_no_room(g):
    expect("from the pool" in g.run("snapshot", "--room", "10M", "vg/web", "x", status=1).err, "room")
    g.run("create", "x.raw", "1M")
    expect("--room is for" in g.run("snapshot", "--room", "10M", "x.raw", "y", status=2).err, "room of a file")


@with_group(THIN, CLASSIC)
def test_in_use(g):
    g.run("snapshot", "vg/web", "monday")
    for name, words in (("web", "is in use"), ("web.monday", "web.monday is in use")):
        before = g.volumes()
        before[name]["open"] = True
        g.put(before)
        expect(words in g.run("revert", "vg/web", "monday", status=1).err, words)
        expect(g.volumes() == before, "something was done")
        del before[name]["open"]
        g.put(before)
    before["web.monday"]["open"] = True
    g.put(before)
    g.run("delete", "vg/web", "monday", status=1)
    expect(g.volumes() == before, "something was done")


@with_group(CLASSIC)
def test_a_merge_that_waits(g):
    """Somebody opens the disk just then: LVM takes that as success, and merges later."""
    g.write("one")
    g.run("snapshot", "vg/web", "monday")
    g.write("two")
    said = g.run("revert", "vg/web", "monday", env={"FAKE_LVM_OPENED": "1"}, status=1).err
    expect("activated the next time" in said, said)
    expect("finish that first" in g.run("delete", "vg/web", "monday", status=1).err, "removed under the merge")


def attempts(g, start, fault, must):
    """A revert whose first, second ... command fails or dies; must(status, volumes) after each. How many there were."""
    for n in range(1, 20):
        g.put(start)
        (g.rig.dir / "volumes.count").unlink(missing_ok=True)
        r = g.rig.a.run("disk", "revert", "vg/web", "monday", env={**g.environment, "FAKE_LVM_FAIL": fault.format(n)}, cwd=g.rig.dir)
        if r.status == 0:
            return n - 1
        must(n, r, g.volumes())
    return 0


def started(g):
    g.write("one")
    g.run("snapshot", "vg/web", "monday")
    g.run("snapshot", "vg/web", "tuesday")
    g.write("two")
    return g.volumes()


@with_group(THIN)
def test_each_step_fails(g):
    start = started(g)

    def must(n, r, volumes):
        expect(r.status == 1 and "fault on demand" in r.err, f"{n}: {r.status} {r.err}")
        # The last one: reverted, and what was before is still there; the error says so.
        expect(volumes["web"]["content"] == ("two" if n < 4 else "one"), f"{n}: {volumes}")
        expect(n < 4 or "is left" in r.err, r.err)
        expect(n == 4 or not [v for v in volumes if "+" in v], f"{n}: left: {volumes}")
        g.run("revert", "vg/web", "monday")
        expect(g.volumes()["web"]["content"] == "one" and not [v for v in g.volumes() if "+" in v], f"{n}: the next time: {g.volumes()}")
        expect(sorted(g.listed()) == ["monday", "tuesday"], str(g.listed()))

    expect(attempts(g, start, "{}", must) == 4, "not each of the four steps failed")


@with_group(THIN)
def test_killed_at_each_step(g):
    start = started(g)

    def must(n, r, volumes):
        expect(r.status == -signal.SIGKILL, f"{n}: {r.status} {r.err}")
        if "web" not in volumes:
            expect("was stopped" in g.run("list", "vg/web", status=1).err, "where the disk is")
            expect("was stopped" in g.run("snapshot", "vg/web", "x", status=1).err, "where the disk is")
        else:
            expect(volumes["web"]["content"] in ("one", "two"), str(volumes))
        # Another snapshot than at first: nothing of that is left.
        g.run("revert", "vg/web", "tuesday")
        expect(g.volumes()["web"]["content"] == "one" and not [v for v in g.volumes() if "+" in v], f"{n}: the next time: {g.volumes()}")
        expect(sorted(g.listed()) == ["monday", "tuesday"], str(g.listed()))

    for fault in ("{}!", "{}+!"):
        expect(attempts(g, start, fault, must) == 4, "not each of the four steps")


@with_group(CLASSIC)
def test_each_step_of_a_merge_fails(g):
    start = started(g)

    def must(n, r, volumes):
        expect(r.status == 1 and "fault on demand" in r.err, f"{n}: {r.status} {r.err}")
        expect(volumes["web"]["content"] == ("two" if n == 1 else "one") and ("web.monday" in volumes) == (n == 1), f"{n}: {volumes}")
        expect(n == 1 or "cannot be made again" in r.err, r.err)

    expect(attempts(g, start, "{}", must) == 2, "not both steps failed")


@with_group(CLASSIC)
def test_made_and_refused(g):
    before = g.volumes()
    # There is no device here, so the new volume cannot be filled with zeros, and has to go again.
    expect("/dev/vg/new" in g.run("create", "vg/new", "10M", status=1).err and g.volumes() == before, str(g.volumes()))
    expect("/dev/vg/thin" in g.run("create", "--pool", "pool", "vg/thin", "10M", status=1).err and g.volumes() == before, str(g.volumes()))
    expect("fault on demand" in g.run("create", "vg/new", "10M", env={"FAKE_LVM_FAIL": "1"}, status=1).err, "what LVM said")
    expect("no name for a pool" in g.run("create", "--pool", "-x", "vg/new", "10M", status=1).err, "an option for LVM")
    expect("needs no pool" in g.run("create", "--pool", "pool", "new.raw", "10M", status=1).err, "a pool for a file")
    expect("no backing file" in g.run("create", "--backing", "x.raw", "vg/new", "10M", status=1).err, "an image in a volume")
    for name in ("a b", "a;b", "$(x)", "x" * 127):
        expect("is no name for a snapshot" in g.run("snapshot", "--", "vg/web", name, status=1).err, name)
    expect("no volume none" in g.run("snapshot", "vg/none", "x", status=1).err, "no volume")
    expect('group "elsewhere" not found' in g.run("list", "elsewhere/web", status=1).err, "no group")
    expect("no layers" in g.run("commit", "vg/web", status=1).err, "commit")
    expect(g.volumes() == before, "something was done")
    said = g.run("list", "vg/web", env={"PAGURUS_LVM": "/not/there"}, status=1).err
    expect("apt-get install lvm2" in said and said.count("\n") == 1, said)
    # A path that looks like a volume.
    (g.rig.dir / "images").mkdir()
    g.run("create", "images/web", "1M")
    expect((g.rig.dir / "images" / "web").stat().st_size == MIB and g.volumes() == before, "a file in a folder")
    expect("the disk" in g.run("list", "images/web").out, "the list of a file in a folder")


@with_group(CLASSIC)
def test_reports_that_are_none(g):
    volume = {"lv_name": "web", "lv_size": "x", "origin": 7, "lv_tags": None}
    for report in ("", "{", "[]", '{"report": []}', '{"report": [{"lv": 5}]}', '{"report": [{"lv": {"a": 1}}]}'):
        expect("no list of volumes" in g.run("list", "vg/web", env={"FAKE_LVM_SAYS": report or " "}, status=1).err, report)
    for report in ({"report": [{"lv": []}]}, {"report": [{"lv": [7, None, "web", {}]}]}, {"report": [{"lv": [{"lv_name": "w" * 300}]}]},
                   {"report": [{"lv": [{"lv_name": "../web"}]}]}):
        expect("no volume web" in g.run("list", "vg/web", env={"FAKE_LVM_SAYS": json.dumps(report)}, status=1).err, str(report))
    g.run("list", "vg/web", env={"FAKE_LVM_SAYS": json.dumps({"report": [{"lv": [volume]}]})})
