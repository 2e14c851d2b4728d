# SPDX-License-Identifier: MIT
"""`pagurus host evacuate` with simulated guests, which have to be named: which goes where, and what becomes of those that fail."""

import json
import subprocess
import zlib

from rig import Rig, expect, signal, signal_when, wait_until


def sim(name, memory="16M", more=""):
    # Its identity comes from its seed.
    return f"sim:name={name},seed={zlib.crc32(name.encode())},memory={memory},set=1M,rate=1M{more}"


def by_guest(lines, kind="left"):
    return {o["guest"]: o for o in lines if o["type"] == kind}


def moved(host):
    return sorted(j["guest"] for j in host.settled().values() if j["mark"] == "moved")


def test_everything_leaves():
    with Rig("abc") as rig:
        r = rig.a.run("host", "evacuate", "--json", "--bandwidth", "200M", sim("small", "8M"), sim("large", "48M"), sim("middle")).must(0)
        kinds = [o["type"] for o in r.lines()]
        expect(kinds[0] == "plan" and kinds[-1] == "result" and "progress" in kinds, str(kinds))
        plan = r.lines()[0]["guests"]
        expect([g["guest"] for g in plan] == ["large", "middle", "small"], f"not the largest first: {plan}")
        expect(all(g["host"] in ("b", "c") for g in plan), str(plan))
        result = r.result()
        expect((result["moved"], result["stayed"], result["unknown"], result["exit"]) == (3, 0, 0, 0), str(result))
        expect(result["longest_stop_ns"] > 0 and result["bytes"] > 0, str(result))
        expect(moved(rig.a) == ["large", "middle", "small"], str(rig.a.journals()))
        wait_until(lambda: (rig.b.log() + rig.c.log()).count("its memory is right") == 3, "all guests to be verified")


def test_in_words():
    with Rig() as rig:
        out = rig.a.run("host", "evacuate", "--to", "b", sim("web")).must(0).out
        for words in ("web", "to b", "web moved to b in", "stood still for", "1 of 1 guests have left this host"):
            expect(words in out, f"{words!r} is not in {out!r}")


def test_places_by_free_memory():
    """Each goes where most is left when those before it are there."""
    with Rig("abc", start=False) as rig:
        rig.a.start()
        rig.b.start("--sim-free", "100M")
        rig.c.start("--sim-free", "150M")
        words = [sim("one", "64M"), sim("two", "48M"), sim("three", "40M"), sim("four", "32M")]
        out = rig.a.run("host", "evacuate", "--json", "--dry-run", *words).must(0).lines()[0]["guests"]
        # 64 to c leave 77 with what a guest needs beside its memory; 48 to b leave 43; 40 to c leave 28.
        places = {g["guest"]: g["host"] for g in out}
        expect(places == {"one": "c", "two": "b", "three": "c", "four": "b"}, str(places))
        refused = rig.a.run("host", "evacuate", *words, sim("five", "64M")).must(3)
        expect("five" in refused.out and "no host has enough memory left" in refused.out, refused.out)
        expect("--partial" in refused.err, refused.err)
        expect(not rig.a.journals(), "something was moved although not all have a place")
        r = rig.a.run("host", "evacuate", "--json", "--partial", *words[:2], sim("five", "200M")).must(1).result()
        expect((r["moved"], r["stayed"]) == (2, 1), str(r))
        expect(moved(rig.a) == ["one", "two"], str(rig.a.journals()))


def test_dry_run_touches_nothing():
    with Rig("abc") as rig:
        out = rig.a.run("host", "evacuate", "--dry-run", sim("web"), sim("db", "32M")).must(0).out
        expect(out.index("db") < out.index("web"), f"not the largest first: {out!r}")
        expect(not rig.a.journals(), "a dry run left a journal")


def test_a_host_that_refuses_is_passed_by():
    """What a host refuses beforehand another one gets."""
    with Rig("abc", start=False) as rig:
        rig.a.start()
        rig.b.start("--sim-free", "10G", sim=False)
        rig.c.start()
        named = rig.a.run("host", "evacuate", "--to", "b", sim("web")).must(1)
        expect("b runs no hypervisor" in named.err, named.err)
        r = rig.a.run("host", "evacuate", "--json", sim("web")).must(0)
        expect(any("left out: b" in o.get("text", "") for o in r.lines()), "nothing is said of b")
        expect(by_guest(r.lines())["web"]["host"] == "c", str(r.lines()))


def test_a_failed_move_is_tried_elsewhere_once():
    with Rig("abc") as rig:
        r = rig.a.run("host", "evacuate", "--json", sim("bad", "16M", ",fault=suspend:1")).must(1)
        result = r.result()
        expect((result["moved"], result["stayed"]) == (0, 1), str(result))
        expect("bad" in by_guest(r.lines()) and result["guests"][0]["text"], str(result))
        expect(len(rig.a.journals()) == 2, f"it was tried {len(rig.a.journals())} times")


def test_hosts_that_do_not_answer():
    with Rig("abc") as rig:
        rig.c.stop()
        named = rig.a.run("host", "evacuate", "--to", "b,c", sim("web")).must(1)
        expect("c" in named.err and not rig.a.journals(), named.err)
        unknown = rig.a.run("host", "evacuate", "--to", "nobody", sim("web")).must(1)
        expect("pagurus host trust nobody" in unknown.err, unknown.err)
        out = rig.a.run("host", "evacuate", sim("web")).must(0).out
        expect("left out" in out and "web moved to b" in out, out)
        rig.b.stop()
        alone = rig.a.run("host", "evacuate", sim("web")).must(1)
        expect("no host that is trusted here is ready" in alone.err, alone.err)


def test_bad_words():
    with Rig() as rig:
        for words in (("--at-once", "0"), ("--at-once", "17"), ("--compress", "rar"), ("--bandwidth", "much"), ("--nonsense",)):
            rig.a.run("host", "evacuate", *words, sim("web")).must(2)
        rig.a.run("host", "evacuate", "--to", "b", "sim:memory=nonsense").must(1)
        rig.a.run("host", "evacuate", "--to", "b", "no-such-guest").must(1)
        rig.a.stop()
        gone = rig.a.run("host", "evacuate", "--to", "b", sim("web")).must(1)
        expect("systemctl start pagurus" in gone.err, gone.err)


def start_slow(rig, *words):
    return rig.a.popen("host", "evacuate", "--json", "--bandwidth", "3M", "--at-once", "2", *words,
                       sim("one", "48M", ",content=random"), sim("two", "40M", ",content=random"), sim("three", "32M", ",content=random"),
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_leaves_the_rest():
    with Rig() as rig:
        p = start_slow(rig)
        signal_when(p, signal.SIGINT, lambda: rig.a.run("status").out.count("rounds") == 2, "two guests to move")
        out, _ = p.communicate()
        expect(p.returncode == 5, f"exit status {p.returncode}: {out[-500:]}")
        result = json.loads(out.splitlines()[-1])
        expect(result["moved"] == 0 and result["stayed"] == 3, str(result))
        expect(all(j["mark"] == "returned" for j in rig.a.settled().values()), str(rig.a.journals()))
        expect(all(j["mark"] == "returned" for j in rig.b.settled().values()), str(rig.b.journals()))


def test_killed_it_is_said_again():
    """The sessions go on without the command; the next one waits for them."""
    with Rig() as rig:
        p = start_slow(rig)
        signal_when(p, signal.SIGKILL, lambda: rig.a.run("status").out.count("rounds") == 2, "two guests to move")
        p.communicate()
        again = rig.a.popen("host", "evacuate", "--json", sim("one", "48M"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = json.loads(again.stdout.readline())
        expect(first["guests"][0]["state"] == "leaves" and first["guests"][0]["host"] == "b", str(first))
        out, err = again.communicate()
        # A simulated guest is there whenever it is asked for: it is moved once more.
        expect(again.returncode == 0, f"{again.returncode}: {out[-400:]} {err[-400:]}")
        expect(moved(rig.a).count("one") == 2 and "two" in moved(rig.a), str(moved(rig.a)))


def test_the_daemon_dies():
    with Rig() as rig:
        p = start_slow(rig)
        wait_until(lambda: rig.a.run("status").out.count("rounds") == 2, "two guests to move")
        rig.a.kill()
        out, _ = p.communicate()
        expect(p.returncode == 4, f"exit status {p.returncode}: {out[-500:]}")
        result = json.loads(out.splitlines()[-1])
        expect(result["unknown"] == 2 and result["moved"] == 0, str(result))
        rig.a.start()
        rig.a.settled()
