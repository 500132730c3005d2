"""Networks that cut, fall silent, are slow or part: what was moved stays moved, and clients come back by themselves."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from hansa.federated.server import Server
from hansa.federation import link as links
from hansa.federation import transfer
from hansa.federation.blobs import blob_of
from hansa.federation.credentials import Credentials
from hansa.federation.link import Link
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.state import Task
from tests.federation.parties import end, joined, same_bits, served, simulated, threads, until
from tests.federation.proxy import Fault, Proxy
from tests.federation.standing import NAMES, Standing, standing
from tests.federation.test_faults import scaffold

SIZE = 24 << 20
LATE = 20 << 20
ALLOWED = 32 << 20
"""Bytes for one blob, with what was on its way when the connection broke; a transfer that began again would need SIZE + LATE."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(tmp_path_factory.mktemp("network")) as place:
        until(lambda: place.tasks(NAMES[0]))
        yield place


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep-alive and the making of a connection take seconds less."""
    shorter = {
        "grpc.keepalive_time_ms": 2_000, "grpc.keepalive_timeout_ms": 1_000, "grpc.http2.ping_timeout_ms": 1_000,
        "grpc.min_reconnect_backoff_ms": 2_000,
    }  # fmt: skip
    monkeypatch.setattr(links, "_OPTIONS", [(name, shorter.get(name, value)) for name, value in links._OPTIONS])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(np.random.default_rng().bytes(SIZE))
    return tmp_path / "file"


@contextmanager
def linked(place: Standing, proxy: Proxy) -> Iterator[Link]:
    link = Link([proxy.address], Credentials.load(place.folder / NAMES[0]))
    try:
        yield link
    finally:
        link.close()


def first(how: Any, after: int, upwards: bool) -> Any:
    return lambda number: Fault(how, after, upwards) if number == 0 else None


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_an_upload_goes_on_where_it_stopped(how: str, place: Standing, file: Path, impatient: None) -> None:
    digest = blob_of(file).digest
    with Proxy(place.server.port, first(how, LATE, True)) as proxy, linked(place, proxy) as link:
        link.call(lambda federation, _: transfer.upload(federation, file, digest))
        assert proxy.connections == 2
        assert SIZE < proxy.moved[True] < ALLOWED
    assert blob_of(place.server.office.blobs.local(digest)).digest == digest


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_download_goes_on_where_it_stopped(how: str, place: Standing, file: Path, tmp_path: Path, impatient: None) -> None:
    blob, office = blob_of(file), place.server.office
    office.blobs.put(file)
    owner = place.server.home.own_name()
    asked = Task(blob.digest[:32], place.server.run_id, blob.digest, blob.size, NAMES[0], 0, 2, "open", 1.0, None, 0, None)
    office.state.open_tasks(place.server.run_id, owner, [asked])
    with Proxy(place.server.port, first(how, LATE, False)) as proxy, linked(place, proxy) as link:
        path = link.call(lambda federation, _: transfer.download(federation, blob, tmp_path, SIZE))
        assert proxy.connections == 2
        assert SIZE < proxy.moved[False] < ALLOWED
    assert blob_of(path) == blob


def test_a_server_that_accepts_and_never_answers(place: Standing, impatient: None) -> None:
    with Proxy(place.server.port, first("stall", 0, True)) as proxy, linked(place, proxy) as link:
        reply = link.call(lambda federation, _: federation.Next(pb.NextRequest(protocol=PROTOCOL)))
        assert reply.tasks and proxy.connections > 1


def test_a_federation_on_a_bad_network(tmp_path: Path, impatient: None) -> None:
    """Connections are cut after some ten thousand bytes, again and again, and every piece is late: the bits are the same."""
    given, chance = scaffold(3), random.Random(1)

    def faults(number: int) -> Fault | None:
        return Fault("cut", chance.randrange(8_000, 40_000), chance.random() < 0.5)

    with Server(served(given, clients=len(NAMES)), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        homes = joined(server, given, tmp_path, NAMES)
        with Proxy(server.port, faults, delay=0.002) as proxy:
            for home in homes:
                (home / "server.toml").write_text(tomli_w.dumps({"address": proxy.address}))
            with threads(homes):
                done = server.train()
            assert proxy.connections > 4
    assert same_bits(done.params, simulated(given, tmp_path))
    assert [record["clients"] for record in done.history] == [2, 2, 2]


# Between network namespaces, where this machine lets us make them


class Namespace:
    """A network of its own, with one cable to this one."""

    def __init__(self, stack: ExitStack) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root, and iproute2")
        number = os.getpid() % 250
        self.name, self.cable = f"hansa{os.getpid()}", f"hn{os.getpid()}"
        self.here, self.there = f"10.213.{number}.1", f"10.213.{number}.2"
        inside = f"hm{os.getpid()}"
        made = self._try("netns", "add", self.name)
        if made:
            stack.callback(self._try, "netns", "del", self.name)  # the cable goes with it
            made = self._try("link", "add", self.cable, "type", "veth", "peer", "name", inside, "netns", self.name)
        if not made:
            pytest.skip("this machine lets nobody make network namespaces")
        for command in (
            ("addr", "add", f"{self.here}/24", "dev", self.cable),
            ("link", "set", self.cable, "up"),
            ("-n", self.name, "addr", "add", f"{self.there}/24", "dev", inside),
            ("-n", self.name, "link", "set", inside, "up"),
            ("-n", self.name, "link", "set", "lo", "up"),
        ):
            assert self._try(*command), command

    def _try(self, *arguments: str) -> bool:
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0

    def join(self, whole: bool) -> None:
        """Plug the cable in, or pull it: what is sent then is lost, and nobody is told."""
        assert self._try("link", "set", self.cable, "up" if whole else "down")

    def worsen(self, *how: str) -> None:
        """With ``tc netem``; skips where the kernel has none."""
        done = subprocess.run(["tc", "qdisc", "add", "dev", self.cable, "root", "netem", *how], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"tc netem: {done.stderr.strip()}")

    def start(self, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        """A process of the command line in there, with a keep-alive of seconds."""
        code = (
            "from hansa.federation import link; from hansa.cli.main import main; "
            "link._OPTIONS = [(n, {'grpc.keepalive_time_ms': 2000, 'grpc.keepalive_timeout_ms': 1000}.get(n, v)) "
            "for n, v in link._OPTIONS]; main()"
        )
        with log.open("ab") as output:
            command = ["ip", "netns", "exec", self.name, sys.executable, "-c", code, *arguments]
            return subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _beyond(stack: ExitStack, folder: Path, given: Any, home: Path, namespace: Namespace, port: int) -> None:
    (home / "server.toml").write_text(tomli_w.dumps({"address": f"{namespace.here}:{port}"}))
    process = namespace.start(["client", "--home", str(home), "--data", str(home / "mine.toml")], folder / "client.log")
    stack.callback(end, process)


def test_a_server_that_restarts_behind_a_partition(tmp_path: Path) -> None:
    """The client does not hear that its connection is no more: half of it is open, and it waits for a task."""
    given = scaffold(4)
    with ExitStack() as stack:
        namespace = Namespace(stack)
        server = Server(served(given, clients=2), home=tmp_path / "server", listen="0.0.0.0:0", hosts=[namespace.here], quiet=True)
        server.start()
        homes = joined(server, given, tmp_path, NAMES)
        port = server.port
        _beyond(stack, tmp_path, given, homes[1], namespace, port)
        office = server.office
        until(lambda: office.presence.last([NAMES[1]])[NAMES[1]])
        namespace.join(False)
        server.stop()
        again = Server(
            served(given, clients=2), home=tmp_path / "server", listen=f"0.0.0.0:{port}", hosts=[namespace.here], quiet=True
        )
        with again, threads(homes[:1]):
            training = threading.Thread(target=again.train)
            training.start()
            until(lambda: again.run_id and again.office.presence.last([NAMES[0]])[NAMES[0]])
            namespace.join(True)
            training.join()
            params = again.get_parameters()
    assert same_bits(params, simulated(given, tmp_path))


def test_a_network_that_loses_and_delays(tmp_path: Path) -> None:
    given = scaffold(2)
    with ExitStack() as stack:
        namespace = Namespace(stack)
        namespace.worsen("delay", "60ms", "20ms", "loss", "3%")
        with Server(
            served(given, clients=2), home=tmp_path / "server", listen="0.0.0.0:0", hosts=[namespace.here], quiet=True
        ) as server:
            homes = joined(server, given, tmp_path, NAMES)
            _beyond(stack, tmp_path, given, homes[1], namespace, server.port)
            with threads(homes[:1]):
                done = server.train()
    assert same_bits(done.params, simulated(given, tmp_path))
