"""Training by a gang: members that hold one model between them and meet in every step, or after some.

A round is here not one exchange with clients but one call of a gang, which may play many optimiser steps. What the members have built
(their share of the rows and of the model, their process group) is worth keeping, so that a call comes in two sizes: a thin one that
only says which round is to be played, for members that stand ready, and a full one with everything from which a member can be built.
What has to survive the members lies in a checkpoint in the run folder, written at the end of every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import Annotated, Any, Literal, Protocol

from annotated_types import Ge, Gt

from hansa.core.accounting import Times
from hansa.core.blocks import Client
from hansa.core.contracts import Collectives, Engine, Learner, Schema, UnboundLearner
from hansa.core.errors import InputError, RunFailed
from hansa.core.params import Params
from hansa.core.store import MemoryStore
from hansa.core.worker import Worker


@dataclass(frozen=True)
class Layout:
    """How many ways a model and its rows are split over the members of a gang; there are as many members as the product.

    data:      replicas of the model, each with its share of the rows of a batch; 0 for as many as the engine has places for.
    shard:     members that hold a part of every parameter, and their share of the rows (FSDP2).
    tensor:    members that hold a part of every layer, and the same rows (tensor parallel).
    pipeline:  stages of consecutive layers.
    """

    data: Annotated[int, Ge(0)] = 1
    shard: Annotated[int, Ge(1)] = 1
    tensor: Annotated[int, Ge(1)] = 1
    pipeline: Annotated[int, Ge(1)] = 1

    @property
    def members(self) -> int:
        return self.data * self.shard * self.tensor * self.pipeline

    @property
    def shares(self) -> int:
        """Into how many parts the rows are cut."""
        return self.data * self.shard

    def __str__(self) -> str:
        """Every factor: "tensor 2 x pipeline 2 x data 2 x shard 1"."""
        return " x ".join(f"{name} {getattr(self, name)}" for name in ("tensor", "pipeline", "data", "shard"))

    def filled(self, engine: str, slots: int | None) -> Layout:
        """The layout on an engine with so many places (None where they are not known before it runs).

        Raises InputError, with every factor, where it does not fit.
        """
        others = self.shard * self.tensor * self.pipeline
        if self.data == 0:
            if slots is None:
                raise InputError(
                    f"parallel: data 0 fills the places of an engine and engine {engine} has no fixed number; write data"
                )
            if slots % others or not slots:
                raise InputError(
                    f"parallel: {replace(self, data=1)} = {others} members a replica, and the {slots} places of engine {engine} are no "
                    f"multiple of that (write factors whose product divides {slots}, or other engine.workers)"
                )
            return replace(self, data=slots // others)
        if slots is not None and self.members > slots:
            hint = (
                'the members of a gang there are threads, which cannot be members of a process group: write engine = "processes" or '
                '"torchrun"'
                if engine == "inline"
                else f"write engine.workers = {self.members}, or smaller factors"
            )
            raise InputError(f"parallel: {self} = {self.members} members, and engine {engine} has {slots} ({hint})")
        return self


@dataclass(frozen=True)
class Synchrony:
    """What a user sets of a gang's training.

    steps:         optimiser steps a round; 0 for one pass over all rows.
    batch_size:    rows of one step, of all members together; 0 takes all rows in every step. The last batch of a pass may be smaller.
    optimizer:     by its name in ``torch.optim``.
    learning_rate: of the optimiser; the job's schedule multiplies it.
    arguments:     of the optimiser beside the rate, as ``{weight_decay = 0.01}``.
    parallel:      how often the rows (``data``), every param (``shard``), the layers (``tensor``) and their sequence (``pipeline``) are
                   split over members, as ``{data = 2, tensor = 2}``; 1 where nothing is said, ``data = 0`` fills the engine's places.
    schedule:      of a pipeline's micro-batches: "gpipe" (Huang et al. 2019) or "1f1b" (Narayanan et al. 2019).
    microbatches:  into which a batch is cut for a pipeline; 0 for one a stage.
    stages:        the children of an ``nn.Sequential`` with which stages after the first begin; empty cuts where the stages' params
                   are most even.
    tensor_plan:   layer -> "colwise", "rowwise" or "gathered" (colwise, its output put together again); ``*`` stands for any part of
                   a name. Empty for the plan that follows from an ``nn.Sequential`` of linear layers and activations.
    compression:   of gradients between replicas: "fp16", "bf16" or "powersgd", which are PyTorch's own hooks.
    rank:          of PowerSGD's approximation.
    """

    steps: Annotated[int, Ge(0)] = 0
    batch_size: Annotated[int, Ge(0)] = 32
    optimizer: str = "SGD"
    learning_rate: Annotated[float, Gt(0)] = 0.1
    arguments: Mapping[str, Any] = field(default_factory=dict)
    parallel: Layout = field(default_factory=Layout)
    schedule: Literal["gpipe", "1f1b"] = "1f1b"
    microbatches: Annotated[int, Ge(0)] = 0
    stages: tuple[str, ...] = ()
    tensor_plan: Mapping[str, Literal["colwise", "rowwise", "gathered"]] = field(default_factory=dict)
    compression: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    rank: Annotated[int, Ge(1)] = 2

    @property
    def apart(self) -> bool:
        """Whether replicas step on their own rows without each other, and only meet at the end of a round."""
        return False


WHERE = ("parallel", "schedule", "microbatches", "stages", "tensor_plan")
"""Options of :class:`Synchrony` that say where the work is done and not what: a run may be resumed with others."""


@dataclass(frozen=True)
class Part:
    """What one member gives of a round.

    params:  entries of the model that this member answers for, whole; none where another one does.
    replica: of which replica they are.
    loss:    sum over the rows that this member answers for, and their number.
    seconds: that the round took there, waiting for other members included.
    """

    params: Params
    replica: int
    loss: tuple[float, int]
    seconds: float = 0.0


class Trainer(Protocol):
    """What a learner builds in each member of a gang: a share of the rows and of the model.

    round:   the last one that was played.
    lasting: it can play another round when this gang is over and the next one has come together in the same processes.
    """

    round: int
    lasting: bool

    def play(self, call: GangCall) -> Part: ...

    def end(self) -> None: ...


class GangLearner(Learner, Protocol):
    """What a learner that offers "gang" also has."""

    def assembled(self, call: GangCall, worker: Worker, schema: Schema, gang: Collectives) -> Trainer:
        """This member's part of the gang, with its rows of the worker's clients; all members call it."""
        ...


@dataclass(frozen=True)
class Basis:
    """From what a member is built, the same in every round."""

    learner: UnboundLearner
    clients: Sequence[Client]
    schema: Schema


@dataclass(frozen=True)
class Lacking:
    """The answer of members of which one is not ready: a thin call has to be made again as a full one."""


@dataclass(frozen=True)
class GangCall:
    """One round's work of a gang, called in each of its members.

    basis:   None in a thin call.
    params:  from which the round begins; None where the members, or their last checkpoint, know it.
    home:    the folder of the checkpoints, which all members reach; no two runs have the same.
    """

    basis: Basis | None
    options: Synchrony
    layout: Layout
    seed: int
    round: int
    rate: float
    home: str
    params: Params | None

    kept: bool = field(default=True, init=False)
    """Asks an engine that can to keep the members for the next call that asks for it."""

    def thin(self) -> GangCall:
        return replace(self, basis=None, params=self.params if self.options.apart else None)

    def __call__(self, gang: Collectives) -> Part | Lacking:
        station = _here.get(self.home)
        ready = station is not None and station.ready(self)
        told = gang.all_gather((station is not None, ready))
        # The params from which training begins come with a full call only.
        if self.basis is None and not all(ready if self.round == 1 else built for built, ready in told):
            return Lacking()
        if station is None:
            assert self.basis is not None
            forget()
            station = _here[self.home] = Station(self.basis)
        return station.play(self, gang, fresh=not all(ready for _, ready in told))


class Station:
    """What a member's process keeps between calls: the rows it has loaded, and what the learner has built."""

    def __init__(self, basis: Basis) -> None:
        self.schema = basis.schema
        self.worker = Worker(basis.learner, basis.clients, MemoryStore(), keep=0)
        self.trainer: Trainer | None = None
        self._built: tuple[Any, ...] = ()

    def ready(self, call: GangCall) -> bool:
        return self.trainer is not None and self.trainer.round == call.round - 1 and self._built == _what(call)

    def play(self, call: GangCall, gang: Collectives, fresh: bool) -> Part:
        began = perf_counter()
        if fresh:
            self.end()
            learner: GangLearner = self.worker.learner(self.schema)
            self.trainer = learner.assembled(call, self.worker, self.schema, gang)
            self._built = _what(call)
        assert self.trainer is not None
        try:
            part = replace(self.trainer.play(call), seconds=perf_counter() - began)
        except BaseException:
            self.end()  # what it holds is no round's end
            raise
        if not self.trainer.lasting:
            self.end()
        return part

    def end(self) -> None:
        if self.trainer is not None:
            self.trainer.end()
            self.trainer = None


def _what(call: GangCall) -> tuple[Any, ...]:
    return (call.layout, call.seed, call.home, {f.name: getattr(call.options, f.name) for f in fields(call.options)})


_here: dict[str, Station] = {}
"""The one station of this process."""


def forget() -> None:
    """Give up what this process keeps for gangs."""
    while _here:
        _here.popitem()[1].end()


@dataclass(frozen=True)
class Assembly:
    """What steps yield in place of an exchange with clients: a call for a gang.

    times: what its answer took, filled in by it.
    """

    call: GangCall
    times: Times = field(default_factory=Times, compare=False, repr=False)

    def answer(self, engine: Engine) -> list[Part]:
        """What each member gives, in rank order.

        Raises RunFailed in the words of the member that failed, and its InputError where the engine knows that it was one.
        """
        began = perf_counter()
        results: list[Any] = []
        try:
            if getattr(engine, "keeps_members", False):
                results = engine.gang(self.call.thin(), self.call.layout.members)
            if not results or any(isinstance(result, Lacking) for result in results):
                results = engine.gang(self.call, self.call.layout.members)
        except RunFailed as error:
            if isinstance(error.__cause__, InputError):
                raise error.__cause__ from None
            raise
        seconds = [part.seconds for part in results]
        self.times.add(Times(wait=perf_counter() - began - max(seconds), compute=max(seconds), work=sum(seconds)))
        return results
