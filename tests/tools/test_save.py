# SPDX-License-Identifier: MIT
"""A guest into a file, looked at, and back."""

import json
import resource
import subprocess
import sys
import time

from rig import PATIENCE, SMALL, VERIFIER, Rig, expect, signal, wait_until


def save(rig, *options, guest=SMALL, name="web.image"):
    path = rig.dir / name
    rig.a.run("save", *options, guest, path).must(0)
    return path


def over(host, mark):
    found = [(j["done"], j["mark"]) for j in host.journals().values()]
    expect(found and all(one == (True, mark) for one in found), f"journals {found}, expected {mark}")


def test_save_inspect_restore():
    with Rig("a", start=False) as rig:
        for method in ("lz4", "zstd", "none"):
            path = save(rig, "--compress", method, name=f"{method}.image")
            words = rig.a.run("inspect", path).must(0).out
            expect("web (simulated)" in words and "16.0 MiB" in words and "right" in words, words)
            facts = json.loads(rig.a.run("inspect", "--json", path).must(0).out)
            expect(facts["ok"] and facts["guest"] == "web" and facts["digest_recomputed"], str(facts))
            expect(sum(facts["pages"][k] for k in ("data", "zero", "absent")) == 4096, str(facts))
            listed = rig.a.run("inspect", "--records", path).must(0).out
            expect("HELLO" in listed and "DIGEST" in listed and "END" in listed, listed[:500])
            r = subprocess.run([sys.executable, VERIFIER, "--quiet", path], capture_output=True, text=True)
            expect(r.returncode == 0, f"the independent verifier: {r.stdout} {r.stderr}")
            out = rig.a.run("restore", "--allow-sim", "--sim-run", "100ms", path).must(0).out
            expect("Guest web was restored" in out, out)
        over(rig.a, "moved")


def test_save_as_json():
    with Rig("a", start=False) as rig:
        path = rig.dir / "x"
        result = rig.a.run("save", "--json", SMALL, path).must(0).result()
        expect(result["outcome"] == "moved" and result["digest_pages"] == 4096, str(result))
        result = rig.a.run("restore", "--json", "--allow-sim", "--sim-run", "0", path).must(0).result()
        expect(result["exit"] == 0, str(result))


def test_files_are_not_overwritten_by_accident():
    with Rig("a", start=False) as rig:
        path = save(rig)
        before = path.read_bytes()
        r = rig.a.run("save", SMALL, path).must(1)
        expect("--overwrite" in r.err and "runs here as before" in r.err, r.err)
        expect(path.read_bytes() == before, "the file changed")
        save(rig, "--overwrite")
        rig.a.run("save", SMALL, rig.dir / "none" / "x").must(1)
        expect(path.stat().st_mode & 0o777 == 0o600, "others can read the guest's memory")


def test_keep_running():
    with Rig("a", start=False) as rig:
        save(rig, "--keep-running")
        over(rig.a, "returned")


def test_live():
    """While it runs: pages that changed meanwhile are in the file twice, and the last one counts."""
    busy = "sim:name=busy,memory=32M,set=8M,rate=16M"
    with Rig("a", start=False) as rig:
        path = rig.dir / "live"
        # At 8 MB/s the first round takes seconds, in which it writes all of its set.
        r = rig.a.run("save", "--live", "--json", "--bandwidth", "8M", "--downtime", "20s", busy, path).must(0)
        result = r.result()
        expect(result["rounds"] >= 2 and result["outcome"] == "moved", str(result))
        phases = [o["phase"] for o in r.lines() if o["type"] == "progress"]
        expect("rounds" in phases and phases.index("rounds") < phases.index("stop"), str(phases))
        expect(0 < result["stop"]["total_ns"] < result["elapsed_ns"], str(result["stop"]))
        over(rig.a, "returned")
        facts = json.loads(rig.a.run("inspect", "--json", path).must(0).out)
        expect(facts["digest_recomputed"] and sum(facts["pages"].values()) > 32 << 8, str(facts))
        verified = subprocess.run([sys.executable, VERIFIER, "--quiet", path], capture_output=True, text=True)
        expect(verified.returncode == 0, f"the independent verifier: {verified.stdout} {verified.stderr}")
        out = rig.a.run("restore", "--allow-sim", "--sim-run", "100ms", path).must(0).out
        expect("Guest busy was restored" in out, out)


def test_live_gives_up():
    """A guest that writes faster than the file takes it: it runs on, and there is no file."""
    with Rig("a", start=False) as rig:
        r = rig.a.run("save", "--live", "--bandwidth", "2M", "--downtime", "1ms", "--max-rounds", "2",
                      "sim:name=busy,memory=16M,set=8M,rate=100M,content=random", rig.dir / "live").must(1)
        expect("runs here as before" in r.err and "gave up" in r.err, r.err)
        expect(not list(rig.dir.glob("live*")), "a piece of a file is left")
        over(rig.a, "returned")


def test_live_needs_a_log():
    with Rig("a", start=False) as rig:
        r = rig.a.run("save", "--live", SMALL + ",track=none", rig.dir / "x").must(1)
        expect("without --live" in r.err, r.err)
        expect(not list(rig.dir.glob("x*")), "a piece of a file is left")


def test_no_room():
    with Rig("a", start=False) as rig:
        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        r = rig.a.run("save", SMALL + ",content=random", rig.dir / "x", preexec_fn=small_files).must(1)
        expect("runs here as before" in r.err, r.err)
        expect(not list(rig.dir.glob("x*")), "a piece of a file is left")
        over(rig.a, "returned")


def test_ctrl_c_of_a_save_leaves_the_guest():
    with Rig("a", start=False) as rig:
        p = rig.a.popen("save", "--bandwidth", "4M", "sim:memory=64M,content=random", rig.dir / "x",
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: any(j["mark"] == "stopping" for j in rig.a.journals().values()), "the stop")
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=PATIENCE)
        expect(p.returncode == 5 and "runs here as before" in err, f"{p.returncode} {err}")
        expect(not list(rig.dir.glob("x*")), "a piece of a file is left")
        over(rig.a, "returned")


def test_damaged_files_are_refused_by_name():
    with Rig("a", start=False) as rig:
        good = save(rig).read_bytes()
        bad = rig.dir / "bad"
        damage = {
            "a bit in the header": good[:9] + bytes([good[9] ^ 1]) + good[10:],
            "a bit in the opening": good[:100] + bytes([good[100] ^ 4]) + good[101:],
            "a bit in memory": good[:-5000] + bytes([good[-5000] ^ 64]) + good[-4999:],
            "cut in the middle": good[:len(good) // 2],
            "without its end": good[:-48],
            "more behind the end": good + b"x",
            "empty": b"",
            "something else": b"#!/bin/sh\necho hello\n" * 10,
            "newer": good[:8] + b"\2" + good[9:],
        }
        for what, data in damage.items():
            bad.write_bytes(data)
            r = rig.a.run("inspect", bad).must(1)
            expect(str(bad) in r.err, f"{what}: does not name the file: {r.err!r}")
            if what in ("a bit in the opening", "a bit in memory", "cut in the middle", "without its end"):
                expect("record" in r.err and "0x" in r.err or "offset" in r.err, f"{what}: {r.err!r}")
            facts = json.loads(rig.a.run("inspect", "--json", bad).must(1).out)
            expect(not facts["ok"] and facts["error"], what)
            r = rig.a.run("restore", "--allow-sim", bad).must(1)
            expect("Nothing of it is left" in r.err, f"{what}: {r.err!r}")
        expect("version" in rig.a.run("inspect", bad).err, "a newer version is not named")
        rig.a.run("inspect", rig.dir / "none").must(1)
        rig.a.run("inspect", rig.dir).must(1)


def test_restore_of_a_simulated_guest_needs_consent():
    with Rig("a", start=False) as rig:
        r = rig.a.run("restore", save(rig)).must(3)
        expect("--allow-sim" in r.err and "Nothing of it is left" in r.err, r.err)


def test_restore_under_another_name():
    with Rig("a", start=False) as rig:
        out = rig.a.run("restore", "--allow-sim", "--sim-run", "10ms", "--name", "web2", save(rig)).must(0).out
        expect("web2" in out, out)


def test_restore_paused():
    with Rig("a", start=False) as rig:
        path = save(rig)
        began = time.monotonic()
        rig.a.run("restore", "--allow-sim", "--paused", "--sim-run", "1h", path).must(0)
        expect(time.monotonic() - began < 1800, "it ran although it was to stay paused")
        over(rig.a, "moved")


def test_a_killed_save_is_repaired():
    for point, mark, left in (("save-begin-done", "returned", False), ("save-stopping", "returned", False),
                              ("save-stopping-done", "returned", False), ("save-committed", "moved", True),
                              ("save-moved-done", "moved", True)):
        with Rig("a", start=False) as rig:
            path = rig.dir / "x"
            r = rig.a.run("save", SMALL, path, env={"PAGURUS_FAULTS": f"kill@{point}"})
            expect(r.status == -signal.SIGKILL, f"{point}: exit status {r.status}")
            expect(any(not j["done"] for j in rig.a.journals().values()), f"{point}: nothing to repair")
            rig.a.run("recover").must(0)
            over(rig.a, mark)
            expect(path.exists() == left, f"{point}: file there: {path.exists()}")
            expect(not (rig.dir / "x.partial").exists(), f"{point}: a piece is left")


def test_a_killed_restore_is_repaired_by_the_daemon():
    for point in ("restore-begin-done", "restore-commit", "restore-commit-done", "restore-moved-done"):
        with Rig("a") as rig:
            path = save(rig)
            r = rig.a.run("restore", "--allow-sim", path, env={"PAGURUS_FAULTS": f"kill@{point}"})
            expect(r.status == -signal.SIGKILL, f"{point}: exit status {r.status}")
            journals = rig.a.settled()
            expect(path.exists(), f"{point}: the file is gone")
            expect({j["mark"] for j in journals.values()} <= {"moved", "returned"}, str(journals))
