"""Many tasks on one started engine and one loaded data set: in every step one map does the blocks of all tasks that are under way.

A task is a sequence of exchanges (:data:`hansa.core.loop.Steps`), as a job alone is. Workers stay busy even where a task has but one
block, and what a task computes is what it would compute alone, to the same bits: its blocks, their order and their randomness are
its own, and only who does them differs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Generic, TypeVar

from hansa.core.accounting import Account
from hansa.core.blocks import Block
from hansa.core.contracts import Call, Engine, Result
from hansa.core.errors import HansaError, InputError
from hansa.core.loop import Answer, Exchange, Harvest, Steps
from hansa.core.synchrony import Assembly
from hansa.core.worker import Worker

R = TypeVar("R")

AT_ONCE = 64
"""Tasks under way at the same time: each has its params at the server and in the message of every step."""


@dataclass(frozen=True)
class Task(Generic[R]):
    """Steps that share an engine with others.

    name:          unlike that of any other task; client state is kept under it.
    start, stride: the task's client number k is the engine's number ``start + k * stride``.
    learner:       place of the task's learner among the engine's :class:`hansa.core.worker.Learners`.
    """

    name: str
    steps: Steps[R]
    start: int = 0
    stride: int = 1
    learner: int = 0

    def blocks(self, exchange: Exchange, first: int) -> list[Block]:
        """The blocks of an exchange as the engine numbers blocks and clients; the first one has the number ``first``."""
        places = ((block, tuple(self.start + member * self.stride for member in block.members)) for block in exchange.blocks)
        return [Block(first + block.number, members) for block, members in places]


@dataclass(frozen=True)
class Ended(Generic[R]):
    """How a task ended: with its steps' result, or with what was raised."""

    name: str
    result: R | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Part:
    """One task's call among those of a map. first: the number of its first block; learner: as in :class:`Task`."""

    call: Call
    task: str
    first: int
    learner: int = 0


@dataclass(frozen=True)
class Many:
    """The calls of several tasks as one: each block is done by the call that it belongs to."""

    parts: tuple[Part, ...]

    @cached_property
    def _firsts(self) -> list[int]:
        return [part.first for part in self.parts]

    @cached_property
    def _tasks(self) -> tuple[str, ...]:
        return tuple(part.task for part in self.parts)

    def part(self, block: Block) -> Part:
        """Whose block it is."""
        return self.parts[bisect_right(self._firsts, block.number) - 1]

    @property
    def before(self) -> int | None:
        """None, as for a call without client state. InputError where a task keeps any: there is no one round for all of them, and an
        engine that carries client state with the blocks has to ask :func:`part_of` for each block."""
        keeping = [part.task for part in self.parts if getattr(part.call, "before", None) is not None]
        if keeping:
            raise InputError(
                f"task {keeping[0]}: its algorithm keeps state at the clients, which this engine carries for one task only; "
                "write engine.name = 'processes' or 'inline', or an algorithm without client state"
            )
        return None

    def __call__(self, worker: Worker, block: Block) -> Result:
        part = self.part(block)
        own: Result = part.call(worker.seat(part.task, part.learner, self._tasks), replace(block, number=block.number - part.first))
        return own


def part_of(call: Call, block: Block) -> Part:
    """The call of a block and the task that it is of; for a call of a job that has its engine for itself that call, and the task ``""``."""
    return call.part(block) if isinstance(call, Many) else Part(call, "", 0)


def together(engine: Engine, tasks: Iterable[Task[R]], at_once: int = AT_ONCE) -> Iterator[Ended[R]]:
    """Play the steps of many tasks on a started engine, at most ``at_once`` of them at the same time; yields each as it ends.

    What a task raises, at a client or here, ends that task and no other one. What the engine itself raises ends all.
    """
    waiting, under_way = iter(tasks), dict[str, tuple[Task[R], Exchange]]()
    while True:
        while len(under_way) < at_once and (task := next(waiting, None)) is not None:
            reached = _next(task, None)
            if isinstance(reached, Ended):
                yield reached
            else:
                under_way[task.name] = (task, reached)
        if not under_way:
            return
        step = list(under_way.values())
        for (task, _), answer in zip(step, _collect(engine, step), strict=True):
            reached = Ended(task.name, error=answer) if isinstance(answer, HansaError) else _next(task, answer)
            if isinstance(reached, Ended):
                del under_way[task.name]
                yield reached
            else:
                under_way[task.name] = (task, reached)


def _next(task: Task[R], answer: Answer | None) -> Exchange | Ended[R]:
    """The task's next exchange, or its end."""
    try:
        wanted = task.steps.send(answer)
    except StopIteration as end:
        return Ended(task.name, end.value)
    except Exception as error:  # noqa: BLE001  # one task's error, wherever it lies, must not end the others
        return Ended(task.name, error=error)
    if isinstance(wanted, Assembly):
        why = f"task {task.name}: its algorithm trains in a gang, which needs an engine for itself; write hansa.run(job) for each"
        return Ended(task.name, error=InputError(why))
    return wanted


def _collect(engine: Engine, step: Sequence[tuple[Task[Any], Exchange]]) -> list[Answer | HansaError]:
    """One map for the exchanges of all tasks; what came back for each of them, or why it failed. Its times are those of each."""
    firsts = [0, *accumulate(len(exchange.blocks) for _, exchange in step)][:-1]
    parts = tuple(Part(x.call, task.name, first, task.learner) for (task, x), first in zip(step, firsts, strict=True))
    blocks = [block for (task, x), first in zip(step, firsts, strict=True) for block in task.blocks(x, first)]
    harvests, failed = [Harvest(exchange) for _, exchange in step], dict[int, HansaError]()
    account = Account(engine)
    for number, result in engine.map(Many(parts), blocks):
        k = bisect_right(firsts, number) - 1
        account.add(result.spent)
        if k not in failed:
            try:
                with account.reduce:
                    harvests[k].add(number - firsts[k], result)
            except HansaError as error:
                failed[k] = error
        if len(failed) == len(step):
            break
    with account.reduce:
        answers = [failed.get(k) or _answer(harvest) for k, harvest in enumerate(harvests)]
    times = account.close()
    for _, exchange in step:
        exchange.times.add(times)
    return answers


def _answer(harvest: Harvest) -> Answer | HansaError:
    try:
        return harvest.answer()
    except HansaError as error:
        return error
