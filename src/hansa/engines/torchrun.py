"""The engine of torch.distributed: ranks that are started together, by ``torchrun`` on any number of machines, or by this process.

Under a launcher every rank runs the same program. The first one plays the rounds, and does its own share of the work beside them; all
others serve it from the moment on at which they would begin the run, and end with it. Without a launcher the ranks are processes on
this machine.

A round's errands and results go between the driver and each rank, and a block is always done by the rank that owns it. Only a gang is a
process group, gloo and for CUDA tensors NCCL, made for its members and given up with them: nothing collective is waiting while rounds
are played, so a rank may die without the others being stuck. A rank of this process that dies is started again and its block tried a
second time. Under torchrun a death ends the run; ``torchrun --max-restarts`` starts all ranks again, and they go on with it.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt

from hansa.core.accounting import Stopwatch
from hansa.core.blocks import Block, Client
from hansa.core.contracts import Call, ClientStore, Collectives, Engine, Result, UnboundLearner
from hansa.core.errors import InputError, RunFailed, missing_extra
from hansa.core.updates import Failure
from hansa.engines.machine import cores
from hansa.engines.remote import Lacking, Sender, owner
from hansa.engines.remote_gang import pack_function
from hansa.engines.torchrun_launch import Launch, launched
from hansa.engines.torchrun_ranks import Rank, Ranks

R = TypeVar("R")

Backend = Literal["auto", "gloo", "nccl"]

AFTERMATH = 1.0
"""Seconds in which the member that broke a gang's connection may say why, once others have noticed."""


@dataclass(frozen=True)
class Torchrun:
    """Ranks of torch.distributed: those that ``torchrun`` has started, else processes on this machine.

    workers: how many ranks to start where there is no launcher, 0 for one per CPU core; each is started when it is needed first.
    backend: of a gang's tensors: "gloo" on the CPU, "nccl" with NCCL beside it for tensors on CUDA devices; "auto" is "nccl" where
             there is a CUDA device.
    timeout: seconds in which all ranks must have come.
    """

    name: Literal["torchrun"] = field(default="torchrun", kw_only=True)
    workers: Annotated[int, Ge(0)] = 0
    backend: Backend = "auto"
    timeout: Annotated[float, Gt(0)] = 60.0

    @property
    def slots(self) -> int:
        """Places for members of a gang that are in a process group."""
        launch = launched()
        return launch.size if launch is not None else self.workers or cores()

    def build(self) -> Engine:
        """Raises InputError where PyTorch is not installed."""
        _need_torch()
        return TorchrunEngine(self)

    def serve(self) -> str:
        """Under a launcher: does not return in any rank but the first, which serve it until it ends and then end too.

        Returns what identifies the launch over its restarts; empty where the launcher restarts nothing, and without one. Raises
        InputError for a launch that is not complete, RunFailed when the ranks do not find each other.
        """
        launch = launched()
        if launch is None:
            return ""
        _need_torch()
        if self.workers not in (0, launch.size):
            raise InputError(
                f"engine.workers = {self.workers}: the launcher has started {launch.size} ranks (leave it out, or start as many)"
            )
        if launch.rank:
            raise SystemExit(launch.attend(self.timeout))
        _ranks_of(launch, self.timeout)
        return launch.identity


def _need_torch() -> None:
    if find_spec("torch") is None:
        raise missing_extra("torch", "torch")


_launched: list[Ranks] = []


def _ranks_of(launch: Launch, timeout: float) -> Ranks:
    """The ranks of this process's launch: the same for all engines, for they serve until this process ends."""
    if not _launched:
        _launched.append(launch.lead(timeout))
    return _launched[0]


class TorchrunEngine:
    """See :class:`Torchrun`."""

    keeps_members = True

    def __init__(self, options: Torchrun) -> None:
        self._options = options
        self._own: Ranks | None = None
        self._sender: Sender | None = None

    @property
    def transfer(self) -> Stopwatch | None:
        """Runs while messages and results are packed, moved and unpacked here."""
        return None if self._sender is None else self._sender.transfer

    def start(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None:
        """Raises InputError for a learner or a recipe that cannot be sent to another process."""
        self._options.serve()
        self._sender = Sender("torchrun", learner, clients, store)

    def map(self, call: Call, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        """Do the call on every block. A map that was left early is finished before the next one begins.

        Raises RunFailed when ranks cannot be started and when one of a launcher's is lost, InputError when they cannot read what
        they are sent.
        """
        assert self._sender is not None, "start the engine first"
        ranks, sender = self._ranks(), self._sender
        serial, deaths = ranks.begin(), Counter[int]()
        ranks.transfer = sender.transfer
        packed = sender.call(call)
        for block in blocks:
            ranks[owner(block, len(ranks), len(sender.clients))].queue.append(block)
        for rank in ranks:
            _next(rank, sender, packed, serial)
        left = len(blocks)
        while left:
            if serial != ranks.serial:
                raise RunFailed("engine torchrun: this map was given up when the next one began; use its results first")
            done: list[tuple[int, Result]] = []
            for rank, answer in ranks.listen():
                block = rank.queue[0]
                result = sender.take(answer) if answer is not None else _lost(rank, block, sender, deaths)
                if isinstance(result, Lacking):
                    rank.knows = sender.token, serial
                    rank.send(("errand", sender.errand(block), packed, sender.parcels(result.parcels)))
                else:
                    done.append((block.number, result))
                    rank.queue.popleft()
                    _next(rank, sender, packed, serial)
            left -= len(done)
            yield from done  # only now: whoever leaves early must leave no answer unheard

    def gang(self, function: Callable[[Collectives], R], members: int) -> list[R]:
        """Run ``function`` in the first ``members`` ranks, as the members of the default group of torch.distributed.

        Raises InputError where there are not as many ranks, and for a function that cannot be sent to another process.
        """
        ranks = self._ranks()
        if members > len(ranks):
            raise InputError(
                f"engine torchrun: a gang of {members} members needs {members} ranks and there are {len(ranks)}; "
                f"{'start torchrun with more processes' if ranks.launched else f'write engine.workers = {members}'}"
            )
        packed = pack_function("torchrun", function)
        ranks.begin()
        store = (*ranks.rendezvous(), f"hansa/{secrets.token_hex(8)}")
        for number in range(members):
            ranks[number].send(("gang", packed, number, members, store, self._options.backend))
        try:
            return _results(ranks, members)
        except BaseException:
            ranks.abandon()
            raise
        finally:
            for number in range(members):
                ranks[number].tell(("over",))

    def stop(self) -> None:
        """End the ranks that this process has started; those of a launcher serve on. The engine may be started again."""
        self._sender = None
        if self._own is not None:
            self._own.close()
            self._own = None

    def _ranks(self) -> Ranks:
        if _launched:
            return _launched[0]
        launch = launched()
        if launch is not None:
            return _ranks_of(launch, self._options.timeout)
        if self._own is None:
            self._own = Ranks(self._options.workers or cores(), self._options.timeout)
        return self._own


def _next(rank: Rank, sender: Sender, packed: bytes, serial: int) -> None:
    """Send a rank the first block of its queue; with it the call, the first time, unless it will say first that it lacks the setup."""
    if rank.queue:
        rank.wake()
        token, last = rank.knows
        call = packed if token == sender.token and last != serial else b""
        rank.knows = token, serial
        rank.send(("errand", sender.errand(rank.queue[0]), call, {}))


def _lost(rank: Rank, block: Block, sender: Sender, deaths: Counter[int]) -> Lacking | Failure:
    """What becomes of a block whose rank has died."""
    how = rank.bury()
    deaths[block.number] += 1
    rank.wake()
    return sender.lost(block, how) if deaths[block.number] > 1 else Lacking(())


def _results(ranks: Ranks, members: int) -> list[Any]:
    """What the members of a gang return, in rank order; RunFailed in the words of the first that raises."""
    results: dict[int, Any] = {}
    broken, until = "", 0.0
    while len(results) < members:
        heard = ranks.listen(max(0.0, until - time.monotonic()) if broken else None)
        if broken and not heard:
            raise RunFailed(broken)
        for rank, answer in heard:
            who = f"gang member {rank.number} of {members}"
            if answer is None:
                raise RunFailed(f"{who}: its process ended before it was done ({rank.bury()})")
            kind, *content = answer
            if kind == "done":
                results[rank.number] = content[0]
            elif kind == "failed":
                raise RunFailed(f"{who}: {content[0]}\n{content[1]}".rstrip())
            elif not broken:  # it lost the others, and one of them is to say why
                broken, until = f"{who}: {content[0]}", time.monotonic() + AFTERMATH
    return [results[number] for number in range(members)]
