"""Organisations with a PKI of their own: nobody joins, and whoever has a certificate of it is a member until it is revoked."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w

from hansa.core.errors import HansaError
from hansa.federated.client import Client
from hansa.federated.server import Server
from hansa.federation.identity import Authority, Credentials
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
