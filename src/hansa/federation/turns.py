"""Whose bytes move now: a server whose clients all transfer at the same time holds the bytes of a few of them, and not of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

MOST: Final = 32
"""Transfers in one direction that begin at a time."""

EACH: Final = 8
"""Transfers in one direction that a member may have: who asks for more waits for its own, and nobody else does."""

SECONDS: Final = 2.0
"""After which a transfer that is not over counts no longer among the :data:`MOST`: its line is slow, so that it fills no memory, and
others must not wait."""


@dataclass
class _Member:
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(EACH))
    asking: int = 0


class Turns:
    """Gives turns to transfers, first come, first served. It belongs to one event loop."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(MOST)
        self._members: dict[str, _Member] = {}

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """Around a transfer of a member: entered when it has its turn."""
        member = self._members.setdefault(who, _Member())
        member.asking += 1
        try:
            async with member.free:
                await self._free.acquire()
                ended = False

                def end() -> None:
                    nonlocal ended
                    if not ended:
                        ended = True
                        self._free.release()

                timer = asyncio.get_running_loop().call_later(SECONDS, end)
                try:
                    yield
                finally:
                    timer.cancel()
                    end()
        finally:
            member.asking -= 1
            if not member.asking:
                del self._members[who]
