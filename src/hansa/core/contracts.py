"""The contracts. Everything else in Hansa is an implementation of one of these, or a user of them.

Read them in the order of a round: an :class:`Algorithm` says what is broadcast, what a client does with its :class:`Learner`, and
how the sum becomes the next state; :class:`Transform` stands between client and sum; an :class:`Engine` decides where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from hansa.core.blocks import Block, Client, LoadedBlock, Table
from hansa.core.local import Plan, Trained
from hansa.core.metrics import Metrics
from hansa.core.params import Array, Kinds, Params
from hansa.core.updates import Absorbed, Failure, Gathered, Total, Update

State: TypeAlias = dict[str, Any]
"""A tree: dictionaries whose leaves are arrays or plain JSON values. Whatever an algorithm knows between two rounds is in it."""

Collective = Literal["sum", "gather"]
R = TypeVar("R")


@dataclass(frozen=True)
class Schema:
    """What all parties agree on about the data after the first exchange, and before the first round.

    features:     names of the columns, or empty where the features are one array.
    shape, dtype: of one prepared example.
    classes:      labels in ascending order for classification, else None.
    rows:         training rows of all clients together (some objectives need it: scikit-learn's C is per sum, not per mean).
    preparation:  the fitted preparation as plain JSON values, None where there is none.
    preparer:     turns a raw table into a prepared one, given ``preparation``; None where there is none.
    parts:        where the columns are split and not the rows: client -> the schema of its own columns alone.
    places:       of such a part: where its prepared columns stand in a prepared example of the whole.
    """

    features: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = "float64"
    classes: tuple[Any, ...] | None = None
    rows: int = 0
    preparation: Any = field(default=None, repr=False)
    preparer: Preparer | None = field(default=None, repr=False)
    parts: Mapping[str, Schema] = field(default_factory=dict, repr=False)
    places: tuple[int, ...] = field(default=(), repr=False)

    def of(self, client: str) -> Schema:
        """What a client's own table must be."""
        return self.parts.get(client, self)


class Preparer(Protocol):
    """Applies a fitted preparation at a client."""

    def prepare(self, table: Table, fitted: Any) -> Table: ...


@dataclass(frozen=True)
class Message:
    """What a client receives. Never changed by its receiver.

    extra:  what else the algorithm needs at the clients: arrays and plain JSON values.
    keeps:  for algorithms with client state: what a client that has none yet starts from; None for algorithms without.
    """

    params: Params = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    keeps: Params | None = None


class UnboundLearner(Protocol):
    """What is trained, before the data is known: what a job names. Immutable, and small enough to send anywhere."""

    @property
    def needs(self) -> frozenset[str]:
        """Facts of the data it cannot work without: "classes", "two classes", "numbers" or "counts" for labels."""
        ...

    @property
    def can(self) -> frozenset[str]:
        """What it offers beyond the least: "train", "gradient" (with :meth:`Learner.losses`) and "hessian", methods of the
        :class:`Learner`; "parts" (:class:`Additive`); "clusters" (:class:`Clustered`); "moments" (:class:`Summed`); "trees"
        (:class:`Grown`); "gang"."""
        ...

    def bind(self, schema: Schema) -> Learner:
        """The learner that knows the data. Raises InputError where the two do not go together."""
        ...


class Learner(Protocol):
    """What is trained, knowing the data. One file per framework. A learner is immutable; its state is the params it is given."""

    @property
    def can(self) -> frozenset[str]: ...

    def arrays(self, table: Table) -> Table:
        """The table as arrays of the learner's own dtype, labels encoded by the schema's classes."""
        ...

    def init(self, seed: int) -> Params: ...

    def kinds(self) -> Kinds: ...

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        """Local training of every client from the same ``params``; the result is stacked (clients, ...)."""
        ...

    def gradient(self, params: Params, block: LoadedBlock) -> Update:
        """Full gradient of each client's mean loss: values ``gradient/<name>``, metric ``loss``."""
        ...

    def hessian(self, params: Params, block: LoadedBlock) -> Update:
        """As :meth:`gradient`, with ``objective`` (clients,), the mean loss with its penalty, and ``hessian`` (clients, p, p) over
        the flattened params."""
        ...

    def losses(self, candidates: Sequence[Params], block: LoadedBlock) -> Update:
        """Each client's mean loss, penalty included, under several params: values ``losses`` (clients, candidates)."""
        ...

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What :meth:`evaluate` gives, whatever the rows."""
        ...

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """Metrics of each client's table as (sum, count), each (clients,)."""
        ...

    def predict(self, params: Params, x: Array) -> np.ndarray: ...

    def export(self, params: Params) -> Any:
        """What the user came for: a fitted scikit-learn estimator, an ``nn.Module``."""
        ...


@runtime_checkable
class Curved(Protocol):
    """What a learner with "gradient" may have as well."""

    def curvature(self, params: Params, block: LoadedBlock) -> Update:
        """For each client the Hessian's diagonal, ``diagonal/<name>``, and of params that share entries with ``intercept`` (outputs,)
        these, ``border/<name>`` (outputs, ...). No values where the objective has no second derivative to speak of."""
        ...


@runtime_checkable
class InOnePass(Protocol):
    """What a learner that offers "gradient" may have as well: objective and gradient from one pass over the rows, for algorithms that
    search along a line. :func:`hansa.core.objective.value_and_gradient` asks for both of any learner."""

    def value_and_gradient(self, params: Params, block: LoadedBlock) -> Update:
        """As :meth:`Learner.gradient`, with ``objective`` (clients,), the mean loss with its penalty."""
        ...


class Additive(Learner, Protocol):
    """What a learner that offers "parts" also has: its scores are sums over the columns, ``x @ coef.T + intercept``, so that clients
    who hold some of the columns each know their part of a score. Its params are ``coef`` (outputs, columns) and ``intercept``
    (outputs,); minimised is the mean of the rows' losses plus ``l2 / 2 |coef|^2 + l1 |coef|_1``.

    Scores and targets are (rows, outputs). None of this needs a column.
    """

    @property
    def l1(self) -> float: ...

    @property
    def l2(self) -> float: ...

    @property
    def intercept(self) -> bool:
        """Whether there is one; it is not penalised."""
        ...

    def columns(self, client: str) -> np.ndarray:
        """Where the columns of a client stand in ``coef``, int64."""
        ...

    def partial(self, params: Params, client: str, x: np.ndarray) -> np.ndarray:
        """A client's part of the scores, without the intercept."""
        ...

    def targets(self, y: np.ndarray) -> np.ndarray:
        """What scores are compared with, from labels as :meth:`arrays` gives them."""
        ...

    def values(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Losses (rows,)."""
        ...

    def slopes(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """First derivatives by the scores (rows, outputs)."""
        ...

    def curvatures(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Second derivatives by the scores (rows, outputs, outputs)."""
        ...

    def judge(self, params: Params, scores: np.ndarray, y: np.ndarray) -> Metrics:
        """The metrics of :meth:`evaluate` from partial scores summed over all clients, as totals."""
        ...


class Clustered(Learner, Protocol):
    """What a learner that offers "clusters" also has. Each client weighs one: these are plain sums."""

    def clustered(self, centers: np.ndarray, block: LoadedBlock, *, spread: bool = False) -> Update:
        """``sums`` (clusters, features), ``counts`` (clusters,) and ``inertia`` of the rows nearest to each centre; with ``spread``
        also ``squares`` (features,)."""
        ...

    def sampled(self, slots: int, block: LoadedBlock) -> Update:
        """``rows`` (slots, features) and ``hits`` (slots,): about one row of anybody's in each slot of the sum over all clients."""
        ...


class Summed(Learner, Protocol):
    """What a learner that offers "moments" also has."""

    def moments(self, block: LoadedBlock) -> Update:
        """``sum`` (features,) and ``products`` (features, features), the sums of x and of x x', and ``rows``; plain sums."""
        ...


class Grown(Learner, Protocol):
    """What a learner that offers "trees" also has."""

    def trees(self, block: LoadedBlock, counts: Sequence[int]) -> dict[str, list[np.ndarray]]:
        """As many trees of each client as are asked for: by the names of :data:`hansa.core.decision_trees.TREES` an array per client."""
        ...


@runtime_checkable
class Algorithm(Protocol):
    """How the clients' work becomes one model; both halves in one file. State in, state out.

    ``state["params"]`` is always the global model. The loop sets ``state["rate"]``, the learning-rate schedule's factor for the
    round, and ``state["population"]``, the number of all clients; an algorithm sets ``state["done"]`` to True when nothing is left
    to improve.
    """

    @property
    def collective(self) -> Collective: ...

    @property
    def needs(self) -> frozenset[str]:
        """Which of a learner's abilities it uses: see :attr:`UnboundLearner.can`.

        One that needs "parts" is for data whose columns are split. Its server's half computes with the model as well: it has a
        method ``knowing(learner)``, which returns the algorithm with the bound learner.

        One whose server sees single rows says so in an attribute ``shows``, a clause for the run's account of what was shared; empty,
        or no such attribute, for none. One that trains locally keeps its :class:`hansa.core.local.Local` as ``local``: the clock and
        a client's policy read from it how many epochs are asked for. One for a gang has the gang's layout as ``parallel``.
        """
        ...

    def init(self, params: Params, kinds: Kinds) -> State: ...

    def broadcast(self, state: State, round: int) -> Message: ...

    def work(self, learner: Learner, message: Message, block: LoadedBlock) -> Update: ...

    def update(self, state: State, total: Any) -> State:
        """``total`` is a :class:`Total` for the sum, a :class:`Gathered` for gather."""
        ...


@runtime_checkable
class Demanding(Protocol):
    """What an algorithm may have as well, where a job that offers what it needs may still be one that it cannot work in."""

    def check(self, rounds: int, transforms: Sequence[Transform]) -> None:
        """Raise InputError for so many rounds at most, or for these transforms; asked before any data is read."""
        ...


@dataclass(frozen=True)
class Context:
    """Where a transform stands: which run and round, and whose update it is (empty at the server)."""

    seed: int
    round: int
    clients: tuple[Client, ...] = ()
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))


class Transform(Protocol):
    """Clip, noise, quantise, sparsify, mask: two halves, composed like a pipeline."""

    @property
    def guarantee(self) -> str:
        """What it promises about privacy, shown in every report: "none", "heuristic", or a formal one."""
        ...

    def client(self, update: Update, context: Context) -> Update:
        """Applied to a block's stacked update, in the order of the job."""
        ...

    def server(self, total: Total, context: Context) -> Total:
        """Applied to the sum, in reverse order."""
        ...


class ClientStore(Protocol):
    """Where clients keep their own state. Entries are versioned by round, so that a resumed run reads what it read before."""

    def read(self, client: str, before: int) -> Params | None:
        """The newest entry of a client from a round earlier than ``before``."""
        ...

    def write(self, round: int, states: Mapping[str, Params]) -> None:
        """Keep the entries of several clients, id -> params in NumPy arrays, all or none; keep the version before them."""
        ...


Result: TypeAlias = "Update | Total | Failure | Absorbed"
Call: TypeAlias = "Callable[[Any, Block], Result]"
"""A piece of work as a value: called with the worker that holds the data and the block.

One that has fields whose values are the same objects round after round, which nobody changes, names them in ``standing``, so that an
engine need not send them with every call.
One that reads the clients' own entries has ``before``, the round before which they were written, and None where it reads none; one for
data that is known has its ``schema``.
"""


class Collectives(Protocol):
    """The handle that the members of a gang share. Every member must make the same calls in the same order."""

    rank: int
    size: int

    def all_gather(self, value: Any) -> list[Any]: ...

    def all_reduce(self, value: Array) -> Array: ...

    def broadcast(self, value: Any, root: int = 0) -> Any: ...

    def barrier(self) -> None: ...


class Engine(Protocol):
    """Where the work runs.

    An engine that moves data says how long by ``transfer``, a :class:`hansa.core.accounting.Stopwatch`, or None before it has started;
    one without the attribute moves none. The options that build an engine may have ``slots``, the places for members of a gang, where
    these are known before it starts, and ``serve()``, which a program that a launcher has started several times calls in each of them
    and which returns in the first alone.
    """

    def start(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None: ...

    def map(self, call: Call, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        """Do the call on every block; yield (block number, result) in any order. Failures are values."""
        ...

    def gang(self, function: Callable[[Collectives], R], members: int) -> list[R]:
        """Run ``function`` in ``members`` co-started members that share collectives: all results, or one error.

        An engine with ``keeps_members = True`` lets the processes of members live on after a function with ``kept = True``, for the
        next such function with as many members.
        """
        ...

    def stop(self) -> None: ...


__all__ = [
    "Additive", "Algorithm", "Call", "ClientStore", "Clustered", "Collective", "Collectives", "Context", "Engine", "Gathered", "Grown",
    "InOnePass", "Learner", "Message", "Preparer", "Result", "Schema", "State", "Summed", "Transform", "UnboundLearner",
]  # fmt: skip
