# SPDX-License-Identifier: MIT
"""The one-owner rule under kill -9: every process, before and after every mark. The table is docs/one-owner.md.

A simulated guest ends with its worker, so what is asserted is what both journals say in the end: over at both ends, and
"moved" at both or at neither. Real guests are killed in the lab.
"""

import json
import subprocess

from rig import PATIENCE, SMALL, Rig, expect, signal, wait_until

# A peer that is dead is given up sooner than a user would.
PATIENT = ("--reconnect", "4s")

SOURCE_POINTS = ("source-begin", "source-begin-done", "source-stopping", "source-stopping-done",
                 "source-commit", "source-commit-done", "source-moved", "source-moved-done")
TARGET_POINTS = ("target-begin", "target-begin-done", "target-commit", "target-commit-done",
                 "target-moved", "target-moved-done")


def agreed(rig, point):
    """Both ends are over and tell the same story; what it is."""
    print(f"  {point}", flush=True)
    ours = [j["mark"] for j in rig.a.settled().values()]
    theirs = [j["mark"] for j in rig.b.settled().values()]
    expect(len(ours) <= 1 and len(theirs) <= 1, f"{point}: {ours} {theirs}")
    expect(set(ours) | set(theirs) <= {"moved", "returned"}, f"{point}: {ours} {theirs}")
    expect((ours == ["moved"]) == (theirs == ["moved"]), f"{point}: source {ours}, target {theirs}")
    return "moved" if ours == ["moved"] else "returned"


def story(point):
    """What must have become of the guest when a process died at this point."""
    before_handover = ("source-begin", "source-stopping", "source-commit")
    if point.removesuffix("-done") in before_handover and point != "source-commit-done":
        return {"returned"}
    if point in ("target-begin", "target-begin-done", "target-commit"):
        return {"returned"}
    # Its worker is what a simulated guest runs on: as if the host had lost its power between the marks.
    if point in ("target-commit-done", "target-moved"):
        return {"returned"}
    if point == "source-commit-done":
        return {"returned"} # COMMIT never left
    return {"moved"}


def retry_works(rig, point):
    wait_until(lambda: "repair" not in rig.a.run("status").out, "status to be clean")
    r = rig.a.run("migrate", SMALL, "b")
    expect(r.status == 0, f"{point}: a retry fails: {r.err}")


def kill_worker_at(points):
    for point in points:
        with Rig(start=False) as rig:
            env = {"PAGURUS_FAULTS": f"kill@{point}"}
            rig.a.start(env=env if point.startswith("source") else None)
            rig.b.start(env=env if point.startswith("target") else None)
            r = rig.a.run("migrate", *PATIENT, SMALL, "b")
            allowed = (0,) if point in ("source-moved-done", "target-moved-done") else (1, 4)
            expect(r.status in allowed, f"{point}: exit status {r.status}: {r.err}")
            if point.startswith("source-moved"):
                # The repair passes the same point and would die there as well, for ever.
                rig.a.stop()
                rig.a.start()
            outcome = agreed(rig, point)
            expect(outcome in story(point), f"{point}: the guest has {outcome}")
            for host in (rig.a, rig.b):
                host.stop()
                host.start()
            retry_works(rig, point)


def kill_daemon_at(points):
    for point in points:
        with Rig(start=False) as rig:
            env = {"PAGURUS_FAULTS": f"stop@{point}"}
            victim = rig.a if point.startswith("source") else rig.b
            rig.a.start(env=env if victim is rig.a else None)
            rig.b.start(env=env if victim is rig.b else None)
            p = rig.a.popen("migrate", *PATIENT, SMALL, "b", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            wait_until(stopped_worker, f"a worker to stand at {point}")
            victim.kill()
            victim.start()
            out, err = p.communicate(timeout=PATIENCE * 2)
            # A source's daemon that dies takes the command's answer along, unless the move was done and only its figures were missing.
            allowed = (0,) if point == "source-moved-done" else (1, 4) if victim is rig.a else (0, 1)
            expect(p.returncode in allowed, f"{point}: exit status {p.returncode}: {err}")
            outcome = agreed(rig, point)
            expect(outcome in story(point), f"{point}: the guest has {outcome}")
            retry_works(rig, point)


def stopped_worker():
    """Whether some worker of ours stands still."""
    r = subprocess.run(["ps", "-o", "stat=,args=", "-A"], capture_output=True, text=True, check=True)
    return any(line.lstrip().startswith("T") and "pagurus worker" in line for line in r.stdout.splitlines())


def test_source_worker_killed_at_every_mark():
    kill_worker_at(SOURCE_POINTS)


def test_target_worker_killed_at_every_mark():
    kill_worker_at(TARGET_POINTS)


def test_source_daemon_killed_at_every_mark():
    kill_daemon_at(SOURCE_POINTS)


def test_target_daemon_killed_at_every_mark():
    kill_daemon_at(TARGET_POINTS)


def start_in_rounds(rig):
    p = rig.a.popen("migrate", *PATIENT, "--bandwidth", "4M", "sim:name=long,memory=64M,content=random", "b",
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: "rounds" in rig.a.run("status").out, "rounds")
    return p


def test_workers_die_with_their_daemon():
    with Rig() as rig:
        p = start_in_rounds(rig)
        rig.a.kill()
        out, err = p.communicate(timeout=PATIENCE)
        expect(p.returncode == 4 and "status" in err, f"{p.returncode} {err}")
        rig.a.start()
        expect(agreed(rig, "rounds") == "returned", "moved")


def test_target_daemon_killed_in_rounds():
    with Rig() as rig:
        p = start_in_rounds(rig)
        rig.b.kill()
        rig.b.start()
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=PATIENCE * 2)
        expect(p.returncode in (1, 5) and "runs here as before" in err, f"{p.returncode} {err}")
        expect(agreed(rig, "rounds") == "returned", "moved")


def test_a_daemon_that_ends_orderly_cancels():
    with Rig() as rig:
        p = start_in_rounds(rig)
        rig.a.stop()
        out, err = p.communicate(timeout=PATIENCE)
        expect(p.returncode == 5, f"{p.returncode} {err}")
        expect(agreed(rig, "orderly") == "returned", "moved")


def test_a_target_that_never_answers_needs_a_person():
    with Rig(start=False) as rig:
        rig.a.start(env={"PAGURUS_FAULTS": "kill@source-commit-done"})
        rig.b.start(env={"PAGURUS_FAULTS": "stop@target-commit"})
        p = rig.a.popen("migrate", *PATIENT, SMALL, "b", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: any(j["mark"] == "commit" for j in rig.a.journals().values()), "the handover")
        rig.b.kill()
        out, err = p.communicate(timeout=PATIENCE)
        expect(p.returncode == 4 and "by hand" in err, f"{p.returncode} {err}")
        session = next(iter(rig.a.journals()))
        wait_until(lambda: "finding out" in rig.a.run("status").out, "the search for the outcome")
        rig.a.run("cancel", session).must(1)
        # The copy that is here may be the old self of a guest that runs there: nobody may take it.
        for words in (("migrate", *PATIENT, SMALL, "b"), ("save", SMALL, str(rig.a.state / "copy"))):
            r = rig.a.run(*words)
            expect(r.status == 1 and "another session" in r.err, f"{words[0]}: {r.status} {r.err}")
        rig.a.kill()
        r = rig.a.run("save", SMALL, str(rig.a.state / "copy"))
        expect(r.status == 1 and "not over" in r.err, f"save without a daemon: {r.status} {r.err}")
        rig.a.start()
        wait_until(lambda: "finding out" in rig.a.run("status").out, "the search for the outcome to go on")
        rig.a.run("recover", "--run-here", session).must(2)
        expect(not rig.a.journals()[session]["done"], "decided without being told")
        rig.a.run("recover", "--run-here", "--other-host-is-lost", session).must(0)
        expect(rig.a.settled()[session]["mark"] == "returned", "not decided")
        rig.a.run("recover", "--run-here", "--other-host-is-lost", session).must(1)


def test_a_question_about_an_unknown_session_buries_it():
    with Rig(start=False) as rig:
        # The source's journal says COMMIT for a session that the target never heard of.
        rig.a.start(env={"PAGURUS_FAULTS": "kill@source-commit-done"})
        rig.b.start()
        rig.a.run("migrate", *PATIENT, SMALL, "b").must(4)
        rig.b.kill()
        for path in (rig.b.state / "sessions").glob("*"):
            path.unlink()
        rig.b.start()
        expect(agreed(rig, "unknown") == "returned", "moved")
        session = next(iter(rig.a.journals()))
        expect(rig.b.journals()[session]["done"], "the target would still take that session")


def test_a_peer_cannot_fill_the_journal():
    with Rig("abc", start=False) as rig:
        rig.a.start()
        rig.b.start()
        rig.a.run("migrate", SMALL, "b").must(0)
        started, journal = next(iter(rig.b.settled().items()))
        rig.b.stop()

        def plant(number, peer):
            session = f"{number:032x}"
            planted = {**journal, "session": session, "mark": "returned", "peer": peer, "changed": journal["changed"] - 1000 + number}
            (rig.b.state / "sessions" / f"{session}.json").write_text(json.dumps(planted))
            return session
        old = [plant(number, "a") for number in range(1, 301)]
        others = [plant(number, "c") for number in range(301, 311)]
        rig.b.start()
        rig.a.run("migrate", "--dry-run", SMALL, "b").must(0)
        left = rig.b.settled()
        new = set(left) - set(old) - set(others) - {started}
        expect(len(new) == 1 and len(set(left) & set(old)) == 255, f"{len(new)} new, {len(set(left) & set(old))} old ones")
        expect(not set(left) & set(old[:45]), "the oldest are still there")
        expect(set(others) <= set(left) and left[started]["mark"] == "moved", "it forgot what is not that peer's, or a guest that runs here")
        # A question about a session that is not known is one more of them.
        rig.a.stop()
        rig.a.start(env={"PAGURUS_FAULTS": "kill@source-commit-done"})
        rig.a.run("migrate", *PATIENT, SMALL, "b").must(4)
        session = next(name for name, j in rig.a.journals().items() if j["mark"] == "commit")
        wait_until(lambda: rig.b.journals().get(session, {}).get("done"), "the target to give up")
        rig.b.stop()
        (rig.b.state / "sessions" / f"{session}.json").unlink()
        rig.b.start()
        wait_until(lambda: rig.a.journals()[session]["done"], "the answer")
        left = rig.b.journals()
        expect(session in left, "it was answered without a trace")
        expect(sum(j["peer"] == "a" and j["mark"] == "returned" for j in left.values()) <= 256, f"{len(left)} journals")


def test_strangers_cannot_ask_about_a_session():
    with Rig("abc", start=False) as rig:
        rig.a.start(env={"PAGURUS_FAULTS": "stop@source-commit-done"})
        rig.b.start()
        rig.c.start()
        rig.a.popen("migrate", *PATIENT, SMALL, "b", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: any(j["mark"] == "commit" for j in rig.a.journals().values()), "the handover")
        rig.a.kill()
        session, journal = next(iter(rig.a.journals().items()))
        # c pretends to be the source of that session; b knows c, but not as its peer.
        sessions = rig.c.state / "sessions"
        sessions.mkdir(parents=True, exist_ok=True)
        wait_until(lambda: rig.b.journals()[session]["done"], "the target to give up")
        (sessions / f"{session}.json").write_text(json.dumps(journal))
        wait_until(lambda: "not its own" in rig.b.log(), "the refusal")
        expect(not rig.c.journals()[session]["done"], "the stranger got an answer")
        expect(rig.b.journals()[session]["mark"] == "returned", "b")
        rig.c.kill()
