"""The worker's side of a round: whoever holds clients' data calls these; every engine uses the same."""

from __future__ import annotations

import copy
import math
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from time import perf_counter
from typing import Any, ClassVar, Literal

import numpy as np

from hansa.core.accounting import Spent, here
from hansa.core.blocks import Block, Client, LoadedBlock, Splits, Table
from hansa.core.contracts import Additive, Algorithm, ClientStore, Context, Learner, Message, Schema, Transform, UnboundLearner
from hansa.core.errors import Diverged, InputError
from hansa.core.metrics import Metrics
from hansa.core.params import Params
from hansa.core.pixels import Pixels
from hansa.core.reduction import reduce_block
from hansa.core.updates import Failure, Total, Update

Weighting = Literal["examples", "equal"]


KEPT = 256 * 2**20
"""Bytes of clients' data that a worker keeps."""


@dataclass(frozen=True)
class Learners:
    """The learners of several tasks, for an engine to start with in place of one. Who names none gets the first."""

    all: tuple[UnboundLearner, ...]

    @property
    def needs(self) -> frozenset[str]:
        return self.all[0].needs

    @property
    def can(self) -> frozenset[str]:
        return self.all[0].can

    def bind(self, schema: Schema) -> Learner:
        return self.all[0].bind(schema)


@dataclass(frozen=True)
class _Loaded:
    client: Client
    splits: Splits
    size: int


@dataclass(frozen=True)
class _Bound:
    """A learner that knows a schema. place: of its kin among the engine's learners."""

    place: int
    schema: Schema
    learner: Learner

    def is_for(self, place: int, schema: Schema) -> bool:
        return self.place == place and (self.schema is schema or self.schema == schema)


class _Held:
    """What a worker holds for all its seats: tables, and learners that know a schema. Tasks with the same learner and schema share
    both; what no task uses any more is dropped.

    keep: see :class:`Worker`.
    """

    def __init__(self, keep: int) -> None:
        self.keep, self.size = keep, 0
        self.tables: OrderedDict[tuple[int, int | None], _Loaded] = OrderedDict()
        self.bound: dict[int, _Bound] = {}
        self._of: dict[str, int] = {}
        self._tasks: tuple[str, ...] = ()
        self._numbers = count()

    def bind(self, task: str, place: int, learner: UnboundLearner, schema: Schema) -> int:
        """The number of the task's learner that knows the schema; bound once, and in place of what the task had before."""
        number = self._of.get(task)
        if number is not None and self.bound[number].is_for(place, schema):
            if self.bound[number].schema is not schema:  # it came anew with the call; its other clients need not compare it again
                self.bound[number] = replace(self.bound[number], schema=schema)
            return number
        number = next((n for n, bound in self.bound.items() if bound.is_for(place, schema)), None)
        if number is None:
            number = next(self._numbers)
            self.bound[number] = _Bound(place, schema, learner.bind(schema))
        self._of[task] = number
        self._drop_unused()
        return number

    def only(self, tasks: tuple[str, ...]) -> None:
        """Forget all tasks but these."""
        if tasks != self._tasks:
            self._tasks = tasks
            self._of = {task: self._of[task] for task in tasks if task in self._of}
            self._drop_unused()

    def _drop_unused(self) -> None:
        used = set(self._of.values())
        unused = self.bound.keys() - used
        for number in unused:
            del self.bound[number]
        if unused:
            for entry in [entry for entry in self.tables if entry[1] in unused]:
                self.size -= self.tables.pop(entry).size

    def add(self, entry: tuple[int, int | None], loaded: _Loaded) -> None:
        self.tables[entry] = loaded
        self.size += loaded.size
        while self.size > self.keep and len(self.tables) > 1:
            self.size -= self.tables.popitem(last=False)[1].size


class Worker:
    """Holds recipes, the data loaded from them, and the learner. What it holds can be rebuilt; nothing else is kept here.

    keep: at most so many bytes of clients' data stay in memory beyond the block at work; the least recently used are dropped and
          loaded again when they are needed.
    """

    def __init__(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore, keep: int = KEPT) -> None:
        self.clients = clients
        self.store = store
        self._learner = learner
        self._task, self._place = "", 0
        self._held = _Held(keep)

    def seat(self, task: str, place: int, tasks: tuple[str, ...]) -> Worker:
        """The worker as one of the tasks that share it sees it: all data, the learner at its place among the engine's
        :class:`Learners`, and client state of its own. What is held for others than ``tasks`` is dropped."""
        self._held.only(tasks)
        seat = copy.copy(self)
        seat._task, seat._place = task, place
        seat._learner = self._learner.all[place] if isinstance(self._learner, Learners) else self._learner
        seat.store = OwnEntries(self.store, task)
        return seat

    def learner(self, schema: Schema | None) -> Any:
        """The learner that knows the data, bound once for each schema, which also drops what was prepared for another; the unbound
        one where no schema is known yet."""
        if schema is None:
            return self._learner
        return self._held.bound[self._held.bind(self._task, self._place, self._learner, schema)].learner

    def table(self, position: int, split: str, schema: Schema | None) -> tuple[Client, Table]:
        """A client and its rows: as loaded without a schema, as the learner's arrays with one. InputError for a table that is not
        what the schema says."""
        held = self._held
        number = None if schema is None else held.bind(self._task, self._place, self._learner, schema)
        loaded = held.tables.get((position, number))
        if loaded is None:
            raw = held.tables.get((position, None))
            client = self.clients[position] if raw is None else raw.client
            splits = client.load() if raw is None else raw.splits
            if schema is not None and number is not None:
                learner = held.bound[number].learner
                splits = {name: _prepared(table, schema, learner, client.id) for name, table in splits.items()}
            loaded = _Loaded(client, splits, sum(_bytes(table) for table in splits.values()))
            held.add((position, number), loaded)
        else:
            held.tables.move_to_end((position, number))
        if split not in loaded.splits:
            raise InputError(f"client {loaded.client.id}: has no {split!r} rows; set split.{split} above 0 in the job")
        return loaded.client, loaded.splits[split]

    def keeps(self, clients: int) -> bool:
        """Whether so many clients stay in memory together, if they are like those that were loaded."""
        held = self._held
        return bool(held.tables) and held.size * clients <= held.keep * len(held.tables)

    def load(self, block: Block, call: WorkCall | EvaluateCall | ScoreCall, split: str) -> LoadedBlock:
        clients, tables = zip(*(self.table(position, split, call.schema) for position in block.members), strict=True)
        rows = np.array([len(table) for table in tables], dtype=np.float64)
        weight = rows if call.weighting == "examples" else np.ones(len(tables))
        return LoadedBlock(block.number, clients, tables, weight, call.seed, call.round)


@dataclass(frozen=True)
class OwnEntries:
    """The entries of one of several tasks in the store that they share."""

    store: ClientStore
    task: str

    def read(self, client: str, before: int) -> Params | None:
        return self.store.read(own_entry(self.task, client), before)

    def write(self, round: int, states: Mapping[str, Params]) -> None:
        self.store.write(round, {own_entry(self.task, client): state for client, state in states.items()})


def own_entry(task: str, client: str) -> str:
    """The name of a client's entry that belongs to a task; a job that has its engine for itself is the task ``""``."""
    return f"{task}\x1f{client}" if task else client


def _bytes(table: Table) -> int:
    x = int(table.x.memory_usage(index=False, deep=True).sum()) if hasattr(table.x, "memory_usage") else table.x.nbytes
    return int(x + (0 if table.y is None else table.y.nbytes))


def _prepared(table: Table, whole: Schema, learner: Learner, client: str) -> Table:
    schema = whole.of(client)
    try:
        if schema.preparer is not None:
            table = schema.preparer.prepare(table, schema.preparation)
        else:
            _refuse_features(table.x, schema)
        _refuse_labels(table.y, schema)
        table = learner.arrays(table)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(f"client {client}:") else f"client {client}: {message}") from None
    # Aligned and contiguous: NumPy and BLAS take other code paths for other layouts, and those give other bits.
    return Table(_aligned(table.x), _aligned(table.y))


def _aligned(array: Any) -> Any:
    return np.require(array, requirements=["A", "C"]) if isinstance(array, np.ndarray) else array


def _refuse_features(x: Any, schema: Schema) -> None:
    """InputError for features that are not what all clients agreed on; not every client may have been asked before training."""
    if hasattr(x, "columns"):
        names = tuple(str(name) for name in x.columns)
        if schema.features and names != schema.features:
            raise InputError(f"has the columns {', '.join(names)}, and the other clients have {', '.join(schema.features)}")
        text = [name for name, kind in zip(names, x.dtypes, strict=True) if kind.kind not in "biuf"]
        if text:
            raise InputError(f"column {text[0]!r} holds text and the models need numbers")
        x = x.to_numpy()
    elif schema.shape and x.shape[1:] != schema.shape:
        raise InputError(f"has examples of shape {x.shape[1:]}, and the other clients have {schema.shape}")
    elif schema.shape and x.dtype.kind != np.dtype(schema.dtype).kind:
        raise InputError(f"has features of type {x.dtype}, and the other clients have {schema.dtype}")
    if x.dtype.kind == "f" and not isinstance(x, Pixels) and not np.isfinite(x).all():
        raise InputError("has features that are missing or infinite; replace them, or add a preparation to the job")


def _refuse_labels(y: Any, schema: Schema) -> None:
    """InputError for labels of another kind than the other clients'; which labels are known is for the learner to say."""
    if schema.classes is None:
        if y is not None and not (y.dtype.kind in "biuf" and np.isfinite(y).all()):
            raise InputError("has targets that are not finite numbers; correct them or delete their rows")
    elif y is None:
        raise InputError("has no labels, and the other clients have")
    elif (y.dtype.kind in "biu") != (np.asarray(schema.classes).dtype.kind in "biu"):
        raise InputError(f"has labels such as {y[:1].tolist()}, and those of the other clients are {list(schema.classes[:5])}")


@dataclass(frozen=True)
class WorkCall:
    """One round's work on a block: the algorithm's client half, the transforms' client halves, and the block's own reduction.

    For the ``sum`` collective the result is the block's :class:`Total`, for ``gather`` its :class:`Update`.
    """

    algorithm: Algorithm
    message: Message
    schema: Schema | None
    seed: int
    round: int
    weighting: Weighting = "examples"
    transforms: tuple[Transform, ...] = ()
    split: str = "train"

    standing: ClassVar[tuple[str, ...]] = ("algorithm", "schema", "transforms")

    @property
    def before(self) -> int | None:
        """The round before which the clients' own entries were written that this call reads; None where the algorithm keeps none."""
        return None if self.message.keeps is None else self.round

    def __call__(self, worker: Worker, block: Block) -> Update | Total:
        loaded = worker.load(block, self, self.split)
        if self.message.keeps is not None:
            entries = [worker.store.read(client.id, self.round) or self.message.keeps for client in loaded.clients]
            stacked = {name: np.stack([np.asarray(entry[name]) for entry in entries]) for name in self.message.keeps}
            loaded = replace(loaded, state=stacked)
        update = self.algorithm.work(worker.learner(self.schema), self.message, loaded)
        _check_finite(update, loaded)
        if self.transforms:
            context = Context(self.seed, self.round, loaded.clients, loaded.keys("transform"))
            for transform in self.transforms:
                update = transform.client(update, context)
        ids = tuple(client.id for client in loaded.clients)
        if update.state:
            rows = ({name: np.asarray(value[k]) for name, value in update.state.items()} for k in range(len(update)))
            worker.store.write(self.round, dict(zip(ids, rows, strict=True)))
        return reduce_block(update) if self.algorithm.collective == "sum" else replace(update, state={}, clients=ids)


def _check_finite(update: Update, loaded: LoadedBlock) -> None:
    """Raise Diverged with the name of the first client whose values, or loss, are not finite."""
    stacked = {name: value for name, value in update.values.items() if not isinstance(value, list)}
    if all(_finite(value) for value in stacked.values()) and ("loss" not in update.metrics or _finite(update.metrics["loss"][0])):
        return
    total, count = update.metrics.get("loss", (np.zeros(len(loaded)), np.ones(len(loaded))))
    for k, client in enumerate(loaded.clients):
        broken = [name for name, value in stacked.items() if not _finite(value[k])]
        if broken or not _finite(total[k]):
            what = (
                f"the loss is {float(total[k]) / max(float(count[k]), 1.0)}"
                if not _finite(total[k])
                else f"{broken[0]} is not finite"
            )
            raise Diverged(
                f"round {loaded.round}, client {client.id}: {what}; lower algorithm.local.learning_rate "
                "(or scale the features with a preparation)"
            )


def _finite(value: Any) -> bool:
    # The sum is finite only if every entry is: one pass, no temporary of the size of the value. A sum of finite entries may overflow,
    # so that a stack which is not finite may have clients which all are.
    return math.isfinite(value.sum())


@dataclass(frozen=True)
class EvaluateCall:
    """Metrics of one split of a block's clients under given params, per client (clients,)."""

    params: Params
    schema: Schema
    seed: int
    round: int
    split: str
    weighting: Weighting = field(default="examples", init=False)

    standing: ClassVar[tuple[str, ...]] = ("schema",)

    def __call__(self, worker: Worker, block: Block) -> Update:
        loaded = worker.load(block, self, self.split)
        metrics: Metrics = worker.learner(self.schema).evaluate(self.params, loaded)
        return Update({}, loaded.weight, metrics, clients=tuple(client.id for client in loaded.clients))


@dataclass(frozen=True)
class ScoreCall:
    """For clients that hold some of the columns each: the parts of the scores of one split, to be summed, and from whoever holds the
    labels these."""

    params: Params
    schema: Schema
    seed: int
    round: int
    split: str
    weighting: Weighting = field(default="equal", init=False)

    standing: ClassVar[tuple[str, ...]] = ("schema",)

    def __call__(self, worker: Worker, block: Block) -> Total:
        loaded = worker.load(block, self, self.split)
        learner: Additive = worker.learner(self.schema)
        pairs = list(zip(loaded.clients, loaded.tables, strict=True))
        values = {
            "scores": np.stack([learner.partial(self.params, client.id, table.x) for client, table in pairs]),
            "labels": np.stack([np.zeros(len(table)) if table.y is None else table.y.astype(np.float64) for _, table in pairs]),
        }
        return reduce_block(Update(values, loaded.weight))


def attempt(call: Any, worker: Worker, block: Block) -> Update | Total | Failure:
    """Do a call on a block, and say what it took; an exception becomes a :class:`Failure` with its traceback."""
    began = perf_counter()
    result = _tried(call, worker, block)
    return replace(result, spent=Spent(perf_counter() - began, here()))


def _tried(call: Any, worker: Worker, block: Block) -> Update | Total | Failure:
    try:
        # Arithmetic that overflows is found by its result, with the client's name; NumPy's warnings would only say it again.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            result: Update | Total = call(worker, block)
        return result
    except Exception as error:  # noqa: BLE001  # a client's code may raise anything, and it must reach the server as a value
        return Failure(
            clients=tuple(worker.clients[position].id for position in block.members),
            kind=type(error).__name__,
            message=str(error),
            traceback=traceback.format_exc(),
            bad_input=isinstance(error, InputError),
        )
