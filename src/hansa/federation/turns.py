"""Whose bytes move now: a server whose clients all transfer at the same time holds the bytes of a few of them, and not of all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MOST: Final = 32
"""Transfers in one direction that begin at a time."""

SECONDS: Final = 2.0
"""After which a transfer that is not over counts no longer: its line is slow, so that it fills no memory, and others must not wait."""


class Turns:
    """Gives turns to transfers, first come, first served. It belongs to one event loop."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(MOST)

    async def next(self) -> None:
        """Wait for a turn; :meth:`taken` has to follow at once."""
        await self._free.acquire()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Around a transfer that has its turn."""
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
