# SPDX-License-Identifier: MIT
"""Keys, trust, and whether a host is ready."""

import json
import os
import pathlib
import socket
import ssl
import stat
import subprocess
import threading

from rig import TOOL, Rig, expect


def test_init_makes_a_private_key_once():
    with Rig(start=False, trust=False) as rig:
        key = rig.a.config / "key.pem"
        expect(stat.S_IMODE(key.stat().st_mode) == 0o600, "the key is readable by others")
        expect(stat.S_IMODE(rig.a.config.stat().st_mode) == 0o700, "the folder is open to others")
        before = key.read_bytes()
        again = rig.a.run("host", "init", "--name", "a").must(1)
        expect("--force" in again.err, f"does not name --force: {again.err!r}")
        expect(key.read_bytes() == before, "a second init changed the key")
        rig.a.run("host", "init", "--name", "a", "--force").must(0)
        expect(key.read_bytes() != before, "--force did not change the key")
        rig.a.run("host", "init", "--name", "../x", "--force").must(2)


def test_trust_is_idempotent_and_listed():
    with Rig(start=False, trust=False) as rig:
        expect(rig.a.run("host", "list").must(0).out == "", "trusts somebody from the start")
        for _ in range(2):
            rig.a.trust(rig.b)
        listed = rig.a.run("host", "list").must(0).out
        expect(listed.count("\n") == 1 and f"127.0.0.1:{rig.b.port}" in listed, listed)
        pem = rig.b.run("host", "cert").must(0).out
        rig.a.run("host", "trust", "--file", "-", "c", stdin=pem).must(0)
        expect("c " in rig.a.run("host", "list").out, "a certificate on standard input is not taken")


def test_trust_refuses_what_is_no_certificate():
    with Rig(start=False, trust=False) as rig:
        bad = rig.dir / "bad.pem"
        for text in ("", "hello\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                     "x" * 100000):
            bad.write_text(text)
            rig.a.run("host", "trust", "--file", bad, "b").must(1)
        rig.a.run("host", "trust", "--file", rig.dir / "none.pem", "b").must(1)
        rig.a.run("host", "trust", "--file", rig.b.config / "cert.pem", "../../b").must(2)
        expect(rig.a.run("host", "list").out == "", "something was trusted")


def test_trust_over_ssh_sets_up_both_sides():
    with Rig(start=False, trust=False) as rig:
        # A stand-in for ssh: runs the command with the other host's folders, as a shell over there would.
        programs = rig.dir / "bin"
        programs.mkdir()
        (programs / "pagurus").symlink_to(pathlib.Path(TOOL).resolve())
        fake = programs / "ssh"
        fake.write_text(f"""#!/bin/sh
while [ "$1" != -- ]; do shift; done
[ "$2" = admin@b ] || exit 9
export PAGURUS_CONFIG='{rig.b.config}'
exec sh -c "$3"
""")
        fake.chmod(0o755)
        env = {"PATH": f"{programs}:{os.environ['PATH']}"}
        words = ("host", "trust", "--ssh", "admin@b", "--address", f"127.0.0.1:{rig.b.port}",
                 "--our-address", f"127.0.0.1:{rig.a.port}", "b")
        for _ in range(2):
            out = rig.a.run(*words, env=env).must(0).out
            expect(out.count("SHA256:") == 2, f"does not show both fingerprints: {out!r}")
        rig.a.start()
        rig.b.start()
        rig.a.run("host", "check", "b").must(0)
        rig.b.run("host", "check", "a").must(0)
        bad = rig.a.run("host", "trust", "--ssh", "nobody@b", "b", env=env).must(1)
        expect("failed" in bad.err, bad.err)


def test_check_tells_about_the_host():
    with Rig() as rig:
        facts = json.loads(rig.a.run("host", "check", "--json", "b").must(0).out)
        for key in ("ok", "pagurus", "hypervisor", "kernel", "processors", "clock_offset_ns",
                    "round_trip_ns", "connection"):
            expect(key in facts, f"no {key} in {facts}")
        expect(facts["ok"] is True and "TLS" in facts["connection"], str(facts))
        expect(abs(facts["clock_offset_ns"]) < 5e9, "the same clock is seconds away")
        expect("certificates agree" in rig.a.run("host", "check", "b").must(0).out, "words")


def test_check_of_strangers():
    with Rig(trust=False) as rig:
        unknown = rig.a.run("host", "check", "b").must(1)
        expect("pagurus host trust b" in unknown.err, unknown.err)
        rig.a.trust(rig.b)
        refused = rig.a.run("host", "check", "b").must(3)
        expect("trust" in refused.err, f"does not say what to do: {refused.err!r}")
        as_json = json.loads(rig.a.run("host", "check", "--json", "b").must(3).out)
        expect(as_json["ok"] is False and as_json["error"], str(as_json))
        rig.b.trust(rig.a)
        rig.a.run("host", "check", "b").must(0)


def test_check_notices_an_impostor():
    with Rig("abc") as rig:
        # c sits where b is expected; a trusts both, but asked for b.
        rig.a.run("host", "trust", "--file", rig.b.config / "cert.pem", "--address",
                  f"127.0.0.1:{rig.c.port}", "b").must(0)
        rig.a.run("host", "check", "b").must(3)


def test_expired_certificate_is_refused():
    with Rig(start=False) as rig:
        cert = rig.dir / "expired.pem"
        make_expired(rig, cert)
        rig.a.run("host", "trust", "--file", cert, "old").must(1)
        # It was trusted while it was valid.
        (rig.a.config / "trusted" / "b.pem").write_bytes(cert.read_bytes())
        server = ExpiredServer(rig.b.port, cert, rig.b.config / "key.pem")
        refused = rig.a.run("host", "check", "b").must(3)
        server.close()
        expect("expired" in refused.err, refused.err)
        # A host whose own certificate has expired says so at once.
        (rig.b.config / "cert.pem").write_bytes(cert.read_bytes())
        own = rig.b.run("daemon", "--foreground", "--listen", f"127.0.0.1:{rig.b.port}").must(1)
        expect("expired" in own.err, own.err)


class ExpiredServer(threading.Thread):
    """A host that shows an expired certificate and goes on whatever it gets."""

    def __init__(self, port, cert, key):
        super().__init__(daemon=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(cert, key)
        self.listener = socket.create_server(("127.0.0.1", port))
        self.start()

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(32, socket.MSG_WAITALL)
                try:
                    with self.context.wrap_socket(connection, server_side=True) as tls:
                        tls.recv(1)
                except OSError:
                    pass

    def close(self):
        self.listener.close()


def make_expired(rig, cert):
    """A certificate for b's key that ended: through openssl's small CA, which takes any dates."""
    (rig.dir / "index").write_text("")
    (rig.dir / "serial").write_text("01\n")
    config = rig.dir / "ca.cnf"
    config.write_text(f"""[ca]
default_ca=d
[d]
database={rig.dir}/index
serial={rig.dir}/serial
new_certs_dir={rig.dir}
default_md=sha256
policy=p
[p]
commonName=supplied
[req]
distinguished_name=n
[n]
""")
    key, request = rig.b.config / "key.pem", rig.dir / "b.csr"
    subprocess.run(["openssl", "req", "-new", "-config", config, "-key", key, "-subj", "/CN=b",
                    "-out", request], check=True, capture_output=True)
    subprocess.run(["openssl", "ca", "-batch", "-config", config, "-selfsign", "-keyfile", key,
                    "-in", request, "-startdate", "20200101000000Z", "-enddate", "20210101000000Z", "-notext",
                    "-out", cert], check=True, capture_output=True)
