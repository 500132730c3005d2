"""A server whose run waits for its clients, and for what a test says in their name."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from hansa.core.errors import RunFailed
from hansa.federated.client import Client
from hansa.federated.server import Server
from hansa.federation import audit
from hansa.federation.credentials import Credentials
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.protocol import hansa_pb2_grpc as rpc
from hansa.federation.tls import channel_credentials
from hansa.federation.wire import FederationStub
from tests.federation.parties import job, served

NAMES = ("client-000", "client-001")
DENIED = grpc.StatusCode.PERMISSION_DENIED
SHORT = 12.0
"""Seconds, below the longest wait of `Next`: what takes longer was not cut off."""


@dataclass
class Standing:
    """A server whose run waits for its two clients, who say nothing but what a test says for them."""

    server: Server
    folder: Path
    stack: ExitStack
    stubs: dict[str, Any] = field(default_factory=dict)
    channels: dict[str, Any] = field(default_factory=dict)

    def channel(self, credentials: Any) -> Any:
        """A connection of its own."""
        if isinstance(credentials, Credentials):
            credentials = channel_credentials(credentials)
        channel = grpc.secure_channel(self.server.address, credentials, [("grpc.use_local_subchannel_pool", 1)])
        return self.stack.enter_context(channel)

    def stub(self, credentials: Any, administration: bool = False) -> Any:
        channel = self.channel(credentials)
        return rpc.AdministrationStub(channel) if administration else FederationStub(channel)

    def member(self, name: str, role: Any = "client") -> Credentials:
        home = self.folder / name
        if not home.exists():
            Client.join(self.server.address, self.server.token(name, role), home)
        return Credentials.load(home)

    def tasks(self, name: str) -> list[Any]:
        reply = self.stubs[name].Next(pb.NextRequest(protocol=PROTOCOL), timeout=60)
        return list(reply.tasks)

    def logged(self, action: str, who: str, **details: Any) -> bool:
        """Whether the server's log has such an entry; ``why`` is a part of what it says."""
        for line in (self.folder / "server" / "audit.jsonl").read_text().splitlines():
            entry = json.loads(line)
            said = {"role": entry["role"], **entry["details"]}
            why = details.get("why", "") in said.get("why", "")
            others = all(said.get(name) == value for name, value in details.items() if name != "why")
            if entry["action"] == action and entry["who"] == who and why and others:
                return True
        return False


@contextmanager
def standing(folder: Path) -> Iterator[Standing]:
    given = served(job(), clients=len(NAMES))
    with Server(given, home=folder / "server", listen="127.0.0.1:0", quiet=True) as server, ExitStack() as stack:
        place = Standing(server, folder, stack)
        ended: list[BaseException] = []

        def train() -> None:
            try:
                server.train()
            except RunFailed as error:
                ended.append(error)

        training = threading.Thread(target=train)
        for name in NAMES:
            place.channels[name] = place.channel(place.member(name))
            place.stubs[name] = FederationStub(place.channels[name])
            place.stubs[name].Next(pb.NextRequest(protocol=PROTOCOL, working=["0" * 32]))  # heard of
        training.start()
        try:
            yield place
        finally:
            server.stop_playing()
            training.join()
    assert audit.verify(folder / "server" / "audit.jsonl")


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()  # type: ignore[attr-defined]  # grpc's stubs leave it out: every error of a call is a Call too
    return code


def next_of(stub: Any) -> Any:
    return stub.Next(pb.NextRequest(protocol=PROTOCOL), timeout=SHORT)
