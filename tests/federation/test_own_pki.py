"""Organisations with a PKI of their own: nobody joins, and whoever has a certificate of it is a member until it is revoked."""

from __future__ import annotations

import ipaddress
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from hansa.cli import federation as cli
from hansa.cli.main import main
from hansa.core.errors import HansaError, InputError
from hansa.federated.client import Client
from hansa.federated.relay import Relay
from hansa.federated.server import Server
from hansa.federation.authority import Authority
from hansa.federation.credentials import Credentials
from hansa.job import to_text
from tests.federation.parties import NAMES, job, mine, same_bits, served, simulated, working


def files(credentials: Credentials, folder: Path) -> Credentials:
    """As read from the three files of a PKI."""
    folder.mkdir(parents=True)
    paths = [folder / name for name in ("key.pem", "certificate.pem", "authority.pem")]
    for path, content in zip(paths, (credentials.key, credentials.certificate, credentials.authority), strict=True):
        path.write_bytes(content)
    return Credentials.read(*paths)


def test_a_run_among_members_of_an_own_pki(tmp_path: Path) -> None:
    pki, given = Authority.create(tmp_path / "pki", "A health trust"), job(count=2)
    own = files(pki.server(()), tmp_path / "server-files")
    with Server(served(given), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True, pki=own) as server:
        clients = []
        for name in NAMES:
            (tmp_path / name).mkdir()
            (tmp_path / name / "mine.toml").write_text(tomli_w.dumps(mine(given, name)))
            held = files(pki.member(name, "client"), tmp_path / name / "files")
            clients.append(Client(server.address, data=tmp_path / name / "mine.toml", home=tmp_path / name, pki=held))
        with working(clients):
            done = server.train()
        assert same_bits(done.params, simulated(given, tmp_path))

        server.revoke(NAMES[0])
        again = Client(server.address, data=tmp_path / NAMES[0] / "mine.toml", home=tmp_path / NAMES[0], pki=clients[0].credentials)
        with pytest.raises(HansaError, match="revoked"):
            again.run()


def relay_of(pki: Authority, name: str) -> Credentials:
    """A certificate for both of a relay's sides, as an organisation's PKI issues it: with its role, and the address of its clients."""
    key, own = ec.generate_private_key(ec.SECP256R1()), x509.load_pem_x509_certificate(pki.certificate)
    subject = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "relay"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    where = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(own.subject, x509.Name(subject), key.public_key(), x509.random_serial_number())
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_before_utc + timedelta(days=1))
        .add_extension(where, critical=False)
        .sign(pki._key, hashes.SHA256())
    )
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Credentials(plain, made.public_bytes(Encoding.PEM), pki.certificate)


def test_a_relay_of_an_own_pki(tmp_path: Path) -> None:
    """It shows one certificate to its server and to its clients, and nobody joins."""
    pki, given = Authority.create(tmp_path / "pki", "A health trust"), job(count=2)
    north = files(relay_of(pki, "north"), tmp_path / "north-files")
    own = files(pki.server(()), tmp_path / "server-files")
    with (
        Server(served(given), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True, pki=own) as server,
        Relay(server.address, home=tmp_path / "north", listen="127.0.0.1:0", pki=north) as relay,
    ):
        relaying = threading.Thread(target=relay.run)
        relaying.start()
        try:
            held = [(name, files(pki.member(name, "client"), tmp_path / f"{name}-files")) for name in NAMES]
            clients = [Client(relay.address, data=mine(given, name), home=tmp_path / name, pki=one) for name, one in held]
            with working(clients):
                done = server.train()
            via = server.office.state.via()
        finally:
            relay.stop.set()
            relay.hang_up()
            relaying.join()
    assert same_bits(done.params, simulated(given, tmp_path))
    assert via == dict.fromkeys(NAMES, "north")


def test_an_administrator_of_an_own_pki(tmp_path: Path) -> None:
    """Nobody joins, so its files and the server's address are all that the verbs are told."""
    pki = Authority.create(tmp_path / "pki", "A health trust")
    files(pki.member("boss", "admin"), tmp_path / "files")
    (tmp_path / "job.toml").write_text(to_text(served(job())))
    shown = [f"--{name}={tmp_path}/files/{file}.pem" for name, file in
             (("key", "key"), ("certificate", "certificate"), ("believe", "authority"))]  # fmt: skip
    own = files(pki.server(()), tmp_path / "server-files")
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True, pki=own) as server:

        def said(*words: str, code: int = 0) -> str:
            ended = CliRunner().invoke(main, [*words])
            assert ended.exit_code == code, ended.output
            return ended.output

        there = [*shown, "--address", server.address]
        run = said("submit", str(tmp_path / "job.toml"), *there).strip()
        assert run in said("runs", *there) and "boss" in said("members", *there)
        assert run in said("stop", run, *there)
        assert said("revoke", "--name", "boss", *there).strip() == "boss"
        assert "revoked" in said("members", *there, code=2)
        assert "--address: none was given" in said("members", *shown, code=2)
        assert "--home: none was given" in said("members", code=2)
        assert "give an administrator's --key" in said("members", "--home", str(tmp_path / "server"), code=2)


def test_a_relay_needs_a_certificate_of_its_role(tmp_path: Path) -> None:
    pki = Authority.create(tmp_path / "pki", "A health trust")
    with pytest.raises(InputError, match="is that of a client; a relay needs one"):
        Relay("127.0.0.1:1", home=tmp_path / "north", pki=pki.member("north", "client"))


def test_a_relay_is_told_its_pki_and_its_database_as_a_server_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    class Heard(Exception):
        """It was told all."""

    def listening(address: str, **given: Any) -> None:
        told.update(given)
        raise Heard

    held = relay_of(Authority.create(tmp_path / "pki", "A health trust"), "north")
    files(held, tmp_path / "files")
    monkeypatch.setattr("hansa.federated.relay.Relay", listening)
    paths = [f"--{name}={tmp_path}/files/{file}.pem" for name, file in
             (("key", "key"), ("certificate", "certificate"), ("believe", "authority"))]  # fmt: skip
    shared = ["--database=sqlite:///a", "--blobs=b", "--authority=c"]
    ended = CliRunner().invoke(cli.relay, ["--home", str(tmp_path / "north"), *shared, *paths])
    assert isinstance(ended.exception, Heard), ended.output
    assert told["pki"].identity == held.identity
    assert (told["database"], told["blobs"], told["authority"]) == ("sqlite:///a", "b", "c")
    alike = {name for option in cli.server.params for name in option.opts} - {
        option for one in cli.relay.params for option in one.opts
    }
    assert alike == {"job", "--keep", "--again", "--insecure"}
