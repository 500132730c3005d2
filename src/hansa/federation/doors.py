"""Who calls, and may they: asked at every call, and again while a call lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import grpc

from hansa.core.errors import InputError
from hansa.federation import transfer
from hansa.federation.desk import LOOK, Desk
from hansa.federation.identity import Identity, identity_of
from hansa.federation.office import Office
from hansa.federation.protocol import PROTOCOL

REVOKED = "its certificate was revoked, or has expired"


class Doors:
    """Lets in who may come in."""

    def __init__(self, office: Office, desk: Desk) -> None:
        self._office, self._desk = office, desk

    async def let_in(self, context: Any, *roles: str) -> Identity:
        """The caller, who has one of the roles and is heard of now; else the call ends here, and the audit log says so."""
        who = await self.known(context, *roles)
        self._office.presence.heard(who.name)
        return who

    async def known(self, context: Any, *roles: str) -> Identity:
        """As :meth:`let_in`, for a call that does not tell that its member takes part: one that joins, or a probe."""
        self._office.handshakes.arrived(context.peer())
        try:
            who = _who_says(context) if self._office.insecure else identity_of(context.auth_context()["x509_pem_cert"][0])
        except InputError as error:
            await self.refuse(context, "", "unknown", str(error))
        if who.role not in roles:
            await self.refuse(context, who.name, who.role, f"the role {who.role} may not do this ({', '.join(roles)} may)")
        if who.role != "joining" and not self.knows(who):
            if self._office.insecure or (self._office.own_pki and who.serial not in self._desk.revoked):
                expires = who.expires.timestamp()
                await asyncio.to_thread(self._office.state.admit, who.name, who.role, who.serial, expires)
            await self._desk.look()  # another server process may have let it join a moment ago
            if not self.knows(who):
                await self.refuse(context, who.name, who.role, "its certificate was revoked, has expired, or is unknown here")
        return who

    def knows(self, who: Identity) -> bool:
        return self._desk.serials.get(who.serial) == who.name

    async def refuse(self, context: Any, name: str, role: str, why: str) -> Any:
        await asyncio.to_thread(self._office.audit.write, name or "unknown", "refused", role=role, why=why)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)

    async def same_protocol(self, context: Any, protocol: int) -> None:
        if protocol != PROTOCOL:
            said = (
                f"you speak version {protocol} of the protocol and this server speaks {PROTOCOL}; install the same version of hansa"
            )
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, said)

    def watched(self, who: Identity) -> Callable[[int], None]:
        """Called with every chunk that a member sends or takes: it is a sign of life, and the end where it was revoked meanwhile."""

        def on_bytes(size: int) -> None:
            if not self.knows(who):
                raise transfer.Rejected(grpc.StatusCode.PERMISSION_DENIED, REVOKED)
            self._office.presence.heard(who.name)

        return on_bytes

    async def message(self, each: AsyncIterator[Any], who: Identity) -> Any:
        """The next message of a member, None after the last one. Raises Rejected where it is revoked, also while it sends nothing."""
        coming = asyncio.ensure_future(anext(each, None))
        while not (await asyncio.wait({coming}, timeout=LOOK))[0]:
            if not self.knows(who):
                coming.cancel()
                raise transfer.Rejected(grpc.StatusCode.PERMISSION_DENIED, REVOKED)
        return coming.result()

    async def messages(self, requests: AsyncIterator[Any], who: Identity) -> AsyncIterator[Any]:
        """What a member sends. Raises Rejected as :meth:`message` does."""
        each = aiter(requests)
        while (message := await self.message(each, who)) is not None:
            yield message

    async def end(self, context: Any, who: Identity, why: transfer.Rejected) -> None:
        """End a transfer."""
        if why.code is grpc.StatusCode.PERMISSION_DENIED:
            await self.refuse(context, who.name, who.role, why.message)
        await context.abort(why.code, why.message)


def _who_says(context: Any) -> Identity:
    """Who a caller of a server without TLS says it is."""
    said = dict(context.invocation_metadata())
    name, role = str(said.get("hansa-name", "")), str(said.get("hansa-role", ""))
    if not name or role not in ("client", "relay", "admin", "viewer"):
        raise InputError("the caller did not say who it is (metadata hansa-name and hansa-role)")
    return Identity(name[:64], role, f"insecure-{name[:48]}", datetime(9999, 1, 1, tzinfo=UTC))  # type: ignore[arg-type]  # the role was looked up above
