"""The engine across organisations: a block is a client, its work is a task in the database, its result a blob that was uploaded.

The name of an exchange is the digest of its call, and that of a task comes from it. A server that was killed in mid-round plays the
round again from its start, makes the same call, and finds the tasks and what was reported of them: nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hansa.core.blocks import Block, Client
from hansa.core.contracts import ClientStore, Collectives, Result, UnboundLearner
from hansa.core.errors import InputError, RunFailed
from hansa.core.updates import Absorbed, Failure, Total, Update
from hansa.federation import calls, expectations, parcels
from hansa.federation.blobs import Blob, Blobs
from hansa.federation.faults import reached
from hansa.federation.options import Federation
from hansa.federation.presence import Bell, Presence
from hansa.federation.results import decode_result
from hansa.federation.seen import UNWATCHED, Unwatched
from hansa.federation.state import State, Task

R = TypeVar("R")

LOOK = 0.5
"""Seconds after which the database is asked even if nothing was heard: another server process may have taken the report."""

LEASE = 15.0
"""Seconds that a server process plays a run without renewing its claim; then another one may take it over."""


class Stopped(RunFailed):
    """An administrator asked the run to stop."""


@dataclass(frozen=True)
class Playing:
    """The run that an engine works for. owner: this server process. bell: rung when tasks are opened; reported: when some were
    answered, with their ids. check: raises Stopped, and LeaseLost."""

    run: str
    owner: str
    state: State
    blobs: Blobs
    presence: Presence
    bell: Bell
    reported: Bell
    options: Federation
    tell: Callable[[str, dict[str, Any]], None]
    check: Callable[[], None]
    watch: Unwatched = UNWATCHED


class FederationEngine:
    """See the module."""

    def __init__(self, playing: Playing) -> None:
        self._playing = playing
        self._clients: Sequence[Client] = ()
        self._closed: list[str] = []  # exchanges that are over, to be forgotten with the round

    def start(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None:
        self._clients = clients

    def map(self, call: Any, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        """Ask every block's client for the call. What has not come when the round closes is a failure of its client.

        Raises InputError for blocks of several clients, Stopped, and LeaseLost.
        """
        if any(len(block.members) != 1 for block in blocks):
            raise InputError(
                "rounds.block: a federation's blocks hold one client each, whose sum nobody else sees; write rounds.block = 1"
            )
        play, tree = self._playing, calls.encode_call(call)
        blob = self._stored(tree)
        reached("server.call_stored")
        number = {self._task_id(blob, block): block for block in blocks}
        opened = time.time()
        wanted = [
            Task(
                id,
                play.run,
                blob.digest,
                blob.size,
                self._id(block),
                block.members[0],
                len(self._clients),
                "open",
                opened,
                None,
                0,
                None,
                block.number,
                len(blocks),
            )
            for id, block in number.items()
        ]
        play.watch.asked(play.run, calls.kind_of(call), {task.id: task.client for task in wanted})
        play.state.open_tasks(play.run, play.owner, wanted)
        reached("server.tasks_opened")
        play.bell.ring()
        yield from self._harvest(call, blob, number)

    def _harvest(self, call: calls.RemoteCall, blob: Blob, left: dict[str, Block]) -> Iterator[tuple[int, Result]]:
        play, total, results = self._playing, len(left), 0
        # Before training every client has to say what it has: only silence ends the wait there.
        timed = calls.kind_of(call) in ("train", "evaluate")
        enough = math.ceil(play.options.enough * total) if timed else total
        alike: expectations.Expected | None = None  # what the first result shows of the others, beyond what the call tells
        opened = {task.id: task.opened for task in play.state.tasks_of(play.run, blob.digest)}
        looked = 0.0
        news: set[str] = set()
        while left:
            # What this process heard is named; what others heard is found by looking at all, now and then.
            every = time.monotonic() - looked > LOOK
            looked = time.monotonic() if every else looked
            told = play.state.answered(play.run, blob.digest, news & left.keys())
            if every and play.state.count_answered(play.run, blob.digest) > total - len(left) + len(told):
                told = play.state.answered(play.run, blob.digest)
            for task in told:
                block = left.pop(task.id, None)
                if block is not None:
                    expected = alike or expectations.expected(call, task.client)
                    result = self._result(task, expected)
                    if alike is None and isinstance(result, Total | Update) and not expected.nested:
                        alike = expected.like(result)
                    results += not isinstance(result, Failure)
                    play.watch.answered(task.id, result.kind if isinstance(result, Failure) else "")
                    yield block.number, result
            if not left:
                break
            # Whoever answered a relay has answered: the relay sends what it keeps once the others of its sum are wanted no longer.
            held = play.state.held(play.run, blob.digest) & left.keys() if every or results >= enough else set()
            closing = enough if results + len(held) >= enough else 0
            lost = self._lost(left, held, opened, closing, timed) if every or closing else {}
            for why in sorted(set(lost.values())):
                # What comes between the two is used, what comes afterwards is told that it came too late.
                play.state.close_tasks(play.run, play.owner, [id for id, reason in lost.items() if reason == why], why)
                looked = 0.0
            play.check()
            news = set() if lost else play.reported.wait(LOOK)
        play.watch.over()
        self._closed.append(blob.digest)
        reached("server.exchange_over")

    def tidy(self) -> None:
        """Forget the exchanges of a round that has been committed, and drop their blobs."""
        play = self._playing
        dropped = set(self._closed)
        for call in self._closed:
            dropped.update(task.result for task in play.state.tasks_of(play.run, call) if task.result is not None)
            play.state.forget_tasks(play.run, call)
        for digest in play.state.unused(dropped) if dropped else ():
            play.blobs.remove(digest)
        self._closed.clear()

    def _lost(
        self, left: dict[str, Block], held: set[str], opened: dict[str, float], closing: int, timed: bool
    ) -> dict[str, str]:  # fmt: skip
        """The tasks that are waited for no longer, and why. held: those whose answers a relay keeps. opened: when each was."""
        play, now, options = self._playing, time.time(), self._playing.options
        awaited = left.keys() - held
        if closing and awaited:
            return dict.fromkeys(awaited, f"the round closed: {closing} results were enough (engine.enough = {options.enough:g})")
        if timed and awaited and options.deadline and now > min(opened.values()) + options.deadline:
            return dict.fromkeys(awaited, f"the round closed at its deadline (engine.deadline = {options.deadline:g} s)")
        names = {id: self._id(block) for id, block in left.items()}
        if held:
            via = play.state.via()
            names |= {id: via.get(names[id], names[id]) for id in held}
        heard = play.presence.last(names.values())
        lost = {}
        for id, name in names.items():
            silent = now - max(heard[name], opened[id], play.presence.began)
            if silent > options.liveness:
                lost[id] = f"no byte for {options.liveness:g} s (engine.liveness)"
        return lost

    def _result(self, task: Task, expected: Any) -> Result:
        if task.status == "closed":
            why = str((task.outcome or {}).get("why", "the round closed"))
            return Failure((task.client,), "TimedOut", why)
        if task.result is not None:
            clients = int((task.outcome or {}).get("clients", 1))
            try:
                result = decode_result(parcels.read(self._playing.blobs.local(task.result)), expected, clients, taken=True)
            except InputError as error:  # it is unlike those of the others; alone it was well-formed
                return Failure((task.client,), "ResultRefused", f"client {task.client}: {error}")
            return replace(result, clients=(task.client,)) if isinstance(result, Update) else result
        told = task.outcome or {}
        if "in" in told:
            return Absorbed()
        if "rule" in told:
            self._playing.tell("refused", {"client": task.client, "rule": told["rule"], "message": told["message"]})
            return Failure(
                (task.client,), "Refused", f"client {task.client} refuses ({told['rule']}): {told['message']}", bad_input=True
            )
        self._playing.tell("failed", {"client": task.client, "kind": told["kind"], "message": told["message"]})
        return Failure((task.client,), told["kind"], told["message"], told["traceback"], bool(told["bad_input"]))

    def _stored(self, tree: Any) -> Blob:
        with tempfile.TemporaryDirectory(dir=self._playing.blobs.scratch) as folder:
            path = Path(folder) / "call"
            parcels.write(path, tree)
            return self._playing.blobs.put(path)

    def _id(self, block: Block) -> str:
        return self._clients[block.members[0]].id

    def _task_id(self, blob: Blob, block: Block) -> str:
        return hashlib.sha256(f"{self._playing.run}\x1f{blob.digest}\x1f{self._id(block)}".encode()).hexdigest()[:32]

    def gang(self, function: Callable[[Collectives], R], members: int) -> list[R]:
        raise InputError("engine federation: organisations share no gang; a job that needs one runs at one owner's machines")

    def stop(self) -> None:
        self._clients = ()
