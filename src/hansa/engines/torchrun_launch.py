"""How the ranks of a launcher find each other: the environment that ``torchrun`` sets, and the key-value store that it keeps."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hansa.core.errors import InputError, RunFailed
from hansa.engines.torchrun_ranks import Ranks

RETRY = 0.1
"""Seconds after which a rank looks again where the driver is."""


@dataclass(frozen=True)
class Launch:
    """This process as one of those that a launcher has started.

    rank, size: its number, and how many there are.
    host, port: of the launcher's key-value store.
    attempt:    how often the launcher has started all ranks again.
    identity:   the same for all attempts of one launch; empty where the launcher tells none.
    """

    rank: int
    size: int
    host: str
    port: int
    attempt: int
    identity: str

    def lead(self, timeout: float) -> Ranks:
        """Be the driver: let the ranks in, and keep them until this process ends. RunFailed when they do not come in time."""
        ranks = Ranks(self.size, timeout, (self.host, self.port))
        try:
            self._store(timeout).set(self._key, json.dumps([*ranks.address, ranks.key.hex()]))
        except RuntimeError as error:
            raise self._unreachable(timeout) from error
        ranks.gather()
        atexit.register(ranks.close)
        return ranks

    def attend(self, timeout: float) -> int:
        """Serve the driver until it ends; returns this rank's exit code. RunFailed when the driver is not found in time."""
        from hansa.engines.torchrun_member import ORPHANED, dial, serve

        until = time.monotonic() + timeout
        try:
            store = self._store(timeout)
            while True:
                host, port, key = json.loads(store.get(self._key))
                try:
                    wire = dial((host, port), bytes.fromhex(key), self.rank)
                    break
                except (OSError, EOFError):  # the store may still tell of the driver of an attempt that is over
                    if time.monotonic() > until:
                        raise
                    time.sleep(RETRY)
        except (RuntimeError, OSError, EOFError) as error:
            raise self._unreachable(timeout) from error
        return 0 if serve(wire, lambda: os._exit(ORPHANED)) else ORPHANED

    @property
    def _key(self) -> str:
        return f"hansa/driver/{self.attempt}"

    def _store(self, timeout: float) -> Any:
        from torch import distributed

        # The handler knows whether the launcher or the first rank keeps the store.
        return next(distributed.rendezvous("env://", timeout=timedelta(seconds=timeout)))[0]

    def _unreachable(self, timeout: float) -> RunFailed:
        return RunFailed(
            f"engine torchrun: rank {self.rank} of {self.size} has not found the others by way of {self.host}:{self.port} within "
            f"{timeout:g} seconds; all ranks must run the same job, and be able to dial that address (see a firewall between)"
        )


def launched() -> Launch | None:
    """What the launcher has told this process, None where there is none. InputError where a part is missing."""
    told = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if not (told["RANK"] and told["WORLD_SIZE"]):
        return None
    numbers = [told[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    if not (told["MASTER_ADDR"] and all(number.isdecimal() for number in numbers) and int(told["RANK"]) < int(told["WORLD_SIZE"])):
        given = ", ".join(f"{name}={value!r}" for name, value in told.items())
        raise InputError(f"engine torchrun: {given}: not what a launcher sets (start with torchrun, or unset RANK and WORLD_SIZE)")
    rank, size, port = map(int, numbers)
    return Launch(rank, size, told["MASTER_ADDR"], port, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), _identity())


def _identity() -> str:
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run == "none":  # torchrun's default, the same for all launches; they differ in the process of torchrun
        import psutil

        agent = psutil.Process().parent()
        run = "" if agent is None else f"{agent.pid} {agent.create_time()}"
    return hashlib.sha256(run.encode()).hexdigest()[:16] if run else ""
