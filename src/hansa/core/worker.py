"""The worker's side of a round: whoever holds clients' data calls these; every engine uses the same."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hansa.core.blocks import Block, Client, LoadedBlock, Splits, Table
from hansa.core.contracts import Algorithm, ClientStore, Context, Learner, Message, Schema, Transform, UnboundLearner
from hansa.core.errors import Diverged, InputError
from hansa.core.metrics import Metrics
from hansa.core.params import Params
from hansa.core.reduction import reduce_block
from hansa.core.updates import Failure, Total, Update

Weighting = Literal["examples", "equal"]


class Worker:
    """Holds recipes, the data loaded from them, and the learner. What it holds can be rebuilt; nothing else is kept here.

    keep: at most so many clients' prepared data stay in memory; the least recently used are dropped and loaded again.
    """

    def __init__(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore, keep: int = 4096) -> None:
        self.clients = clients
        self.store = store
        self._learner = learner
        self._bound: tuple[Schema, Learner] | None = None
        self._keep = keep
        self._data: OrderedDict[tuple[int, bool], Splits] = OrderedDict()

    def learner(self, schema: Schema | None) -> Any:
        """The learner that knows the data, bound once for each schema, which also drops what was prepared for another; the unbound
        one where no schema is known yet."""
        if schema is None:
            return self._learner
        if self._bound is None or (self._bound[0] is not schema and self._bound[0] != schema):
            self._bound = (schema, self._learner.bind(schema))
            self._data.clear()
        return self._bound[1]

    def table(self, position: int, split: str, schema: Schema | None) -> Table:
        """A client's rows: as loaded without a schema, as the learner's arrays with one."""
        learner, entry = self.learner(schema), (position, schema is None)
        splits = self._data.get(entry)
        if splits is None:
            splits = self.clients[position].load()
            if schema is not None:
                splits = {name: _prepared(table, schema, learner) for name, table in splits.items()}
            self._data[entry] = splits
            if len(self._data) > self._keep:
                self._data.popitem(last=False)
        else:
            self._data.move_to_end(entry)
        if split not in splits:
            raise InputError(f"client {self.clients[position].id}: has no {split!r} rows; set split.{split} above 0 in the job")
        return splits[split]

    def load(self, block: Block, call: WorkCall | EvaluateCall, split: str) -> LoadedBlock:
        clients = tuple(self.clients[position] for position in block.members)
        tables = tuple(self.table(position, split, call.schema) for position in block.members)
        rows = np.array([len(table) for table in tables], dtype=np.float64)
        weight = rows if call.weighting == "examples" else np.ones(len(tables))
        return LoadedBlock(block.number, clients, tables, weight, call.seed, call.round)


def _prepared(table: Table, schema: Schema, learner: Learner) -> Table:
    if schema.preparer is not None:
        table = schema.preparer.prepare(table, schema.preparation)
    table = learner.arrays(table)
    # Aligned and contiguous: NumPy and BLAS take other code paths for other layouts, and those give other bits.
    x, y = (None if array is None else np.require(array, requirements=["A", "C"]) for array in (table.x, table.y))
    return Table(x, y)


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

    def __call__(self, worker: Worker, block: Block) -> Update | Total:
        loaded = worker.load(block, self, self.split)
        if self.message.keeps is not None:
            entries = [worker.store.read(client.id, self.round) or self.message.keeps for client in loaded.clients]
            stacked = {name: np.stack([np.asarray(entry[name]) for entry in entries]) for name in self.message.keeps}
            loaded = replace(loaded, state=stacked)
        update = self.algorithm.work(worker.learner(self.schema), self.message, loaded)
        _check_finite(update, loaded)
        context = Context(self.seed, self.round, loaded.clients, loaded.keys("transform"))
        for transform in self.transforms:
            update = transform.client(update, context)
        ids = tuple(client.id for client in loaded.clients)
        if update.state:
            rows = ({name: np.asarray(value[k]) for name, value in update.state.items()} for k in range(len(update)))
            worker.store.write(self.round, dict(zip(ids, rows, strict=True)))
        update = replace(update, state={}, clients=ids)
        return reduce_block(update) if self.algorithm.collective == "sum" else update


def _check_finite(update: Update, loaded: LoadedBlock) -> None:
    for k, client in enumerate(loaded.clients):
        total, count = (float(update.metrics["loss"][side][k]) for side in (0, 1)) if "loss" in update.metrics else (0.0, 1.0)
        broken = [n for n, v in update.values.items() if not isinstance(v, list) and not _finite(v[k])]
        if broken or not np.isfinite(total):
            what = f"the loss is {total / max(count, 1.0)}" if not np.isfinite(total) else f"{broken[0]} is not finite"
            raise Diverged(
                f"round {loaded.round}, client {client.id}: {what}; lower algorithm.local.learning_rate "
                "(or scale the features with a preparation)"
            )


def _finite(value: Any) -> bool:
    # The sum is finite only if every entry is: one pass, no temporary of the size of the value.
    return bool(np.isfinite(float(value.sum())))


@dataclass(frozen=True)
class EvaluateCall:
    """Metrics of one split of a block's clients under given params, per client (clients,)."""

    params: Params
    schema: Schema
    seed: int
    round: int
    split: str
    weighting: Weighting = field(default="examples", init=False)

    def __call__(self, worker: Worker, block: Block) -> Update:
        loaded = worker.load(block, self, self.split)
        metrics: Metrics = worker.learner(self.schema).evaluate(self.params, loaded)
        return Update({}, loaded.weight, metrics, clients=tuple(client.id for client in loaded.clients))


def attempt(call: Any, worker: Worker, block: Block) -> Update | Total | Failure:
    """Do a call on a block; an exception becomes a :class:`Failure` with its traceback."""
    try:
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
