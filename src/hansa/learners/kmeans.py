"""k-means in NumPy: what the clients' rows say about centres, as sums.

Labels are not looked at, and the data need have none. Params: ``centers`` (clusters, features) float64; ``counts`` (clusters,), the
training rows of each; ``inertia`` (), the sum of the squared distances of all training rows to their centres; ``iterations`` ().
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.coded import SPAN, Coded
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.randomness import generator
from hansa.core.updates import Update
from hansa.learners.given import named
from hansa.learners.unlabelled import features_of, squared_norms

STRIPE = 1 << 16
"""Numbers of the rows, or distances of them, that are computed with at a time. It decides the bits, as a block does."""

CANCELLED = 1e-6
"""Share of the squared distances from the middle below which those from the own centres are no difference of sums."""


@dataclass(frozen=True)
class KMeans:
    """Clusters of rows, each about its centre; the algorithm is "lloyd".

    clusters: how many.
    """

    name: Literal["kmeans"] = field(default="kmeans", kw_only=True)
    clusters: Annotated[int, Ge(1)] = 8

    needs: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    can: frozenset[str] = field(default=frozenset({"clusters"}), init=False, repr=False)

    def bind(self, schema: Schema) -> BoundKMeans:
        """Raises InputError for fewer training rows than clusters."""
        if schema.rows < self.clusters:
            raise InputError(
                f"learner.clusters = {self.clusters}: the data has {schema.rows:,} training rows; ask for at most so many clusters"
            )
        return BoundKMeans(self.clusters, schema)


@dataclass(frozen=True)
class BoundKMeans:
    """The learner that knows the data."""

    clusters: int
    schema: Schema
    can: frozenset[str] = frozenset({"clusters"})

    def arrays(self, table: Table) -> Table:
        """x to float64 (rows, features); no labels."""
        return Table(features_of(table))

    def init(self, seed: int) -> Params:
        """Zeros; where the centres begin is the algorithm's business."""
        centers = np.zeros((self.clusters, int(np.prod(self.schema.shape))))
        return {"centers": centers, "counts": np.zeros(self.clusters), "inertia": np.zeros(()), "iterations": np.zeros(())}

    def kinds(self) -> Kinds:
        return {"centers": "weight", "counts": "buffer", "inertia": "buffer", "iterations": "counter"}

    def clustered(self, centers: np.ndarray, block: LoadedBlock, *, spread: bool = False) -> Update:
        """For each client: ``sums`` (clusters, features) and ``counts`` (clusters,) of the rows nearest to each centre, ``inertia``;
        with ``spread`` also ``squares`` (features,), the sums of the squared features. Each client weighs one: these are plain sums.
        """
        found = [self._sums(centers, table.x, spread) for table in block.tables]
        values = {name: np.stack([np.asarray(one[name]) for one in found]) for name in found[0]}
        return Update(values, np.ones(len(block)), {"inertia": (values["inertia"], block.rows.astype(np.float64))})

    def sampled(self, slots: int, block: LoadedBlock) -> Update:
        """Some of each client's rows, such that in the sum over all clients every slot is about one row of anybody's.

        ``rows`` (slots, features) and ``hits`` (slots,): a client puts a row into a slot with the probability of its share of all
        rows. A slot whose hits add up to one is a row drawn evenly from all rows; those of the others are mixed.
        """
        keys, found = block.keys("start"), []
        for k, table in enumerate(block.tables):
            random = generator(int(keys[k]))
            hits = random.random(slots) < len(table) / self.schema.rows
            chosen = np.zeros((slots, table.x.shape[1]))
            chosen[hits] = np.asarray(table.x[random.integers(len(table), size=int(hits.sum()))])
            found.append((chosen, hits.astype(np.float64)))
        rows, counts = (np.stack(some) for some in zip(*found, strict=True))
        return Update({"rows": rows, "hits": counts}, np.ones(len(block)))

    def _sums(self, centers: np.ndarray, x: Any, spread: bool) -> dict[str, Any]:
        sums, counts, inertia = _sums_of_codes(centers, x) if isinstance(x, Coded) else _sums(centers, x)
        result = {"sums": sums, "counts": counts, "inertia": np.array(inertia)}
        return result | {"squares": _squares(x)} if spread else result

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("inertia",)

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """inertia: the mean squared distance of a row to its centre."""
        centers = params["centers"]
        sums = [sum(float(distance.sum()) for _, _, distance in _nearest(centers, table.x)) for table in block.tables]
        return stack([{"inertia": (own, float(len(table)))} for own, table in zip(sums, block.tables, strict=True)])

    def predict(self, params: Params, x: Any) -> np.ndarray:
        """The number of each row's cluster, int64 (rows,)."""
        x = features_of(Table(x))
        return np.concatenate([np.zeros(0, np.int64), *(labels for _, labels, _ in _nearest(params["centers"], x))])

    def export(self, params: Params) -> Any:
        """A fitted :class:`sklearn.cluster.KMeans`; without ``labels_``, as nobody knows the labels of all rows."""
        from sklearn.cluster import KMeans as Estimator
        from sklearn.utils._openmp_helpers import _openmp_effective_n_threads

        centers = np.array(params["centers"])
        fitted = Estimator(n_clusters=len(centers), n_init=1)
        fitted.cluster_centers_, fitted.inertia_ = centers, float(params["inertia"])
        fitted.n_iter_, fitted.n_features_in_ = int(params["iterations"]), centers.shape[1]
        fitted._n_threads = _openmp_effective_n_threads()  # predict takes it from there
        return named(fitted, self.schema)


def _sums(centers: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Of the rows nearest to each centre: their sums (clusters, features), and how many they are; and all rows' squared distances to
    their centres, summed. No row's number of its cluster is made: where a row's smallest distance stands, the matrix is one that is
    multiplied by the rows."""
    (clusters, features), middle = centers.shape, centers.mean(axis=0)
    away = centers - middle
    norms = np.einsum("kf,kf->k", away, away)[:, None]
    # New arrays of this size come from the system, page by page, and would take longer than what is computed in them.
    span = max(STRIPE // max(clusters, features), 256)
    origin, moved = np.tile(middle, (span, 1)), np.empty((span, features))
    apart, least = np.empty((clusters, span)), np.empty(span)
    sums, counts, inertia = np.zeros(centers.shape), np.zeros(clusters), 0.0
    for start in range(0, len(x), span):
        many = min(span, len(x) - start)
        if many < span:
            moved, apart, least = moved[:many], np.empty((clusters, many)), least[:many]
        rows = x[start : start + many]
        np.subtract(rows, origin[:many], out=moved)
        # The squared distances less those from the middle, which are the same for all centres.
        np.matmul(-2.0 * away, moved.T, out=apart)
        apart += norms
        apart.min(axis=0, out=least)
        whole = float(np.vdot(moved, moved))
        inside = max(whole + float(least.sum()), 0.0)
        belongs = np.equal(apart, least, out=apart)
        own = belongs.sum(axis=1)
        if own.sum() != many:  # the first of equals
            belongs[np.cumsum(belongs, axis=0) > 1] = 0.0
            own = belongs.sum(axis=1)
        if inside < CANCELLED * whole:
            inside = float(np.square(moved - belongs.T @ away).sum())
        counts += own
        sums += belongs @ rows  # as they are, so that the same clusters have the same sums whatever the middle was
        inertia += inside
    return sums, counts, inertia


def _sums_of_codes(centers: np.ndarray, x: Coded) -> tuple[np.ndarray, np.ndarray, float]:
    sums, counts, inertia = np.zeros(centers.shape), np.zeros(len(centers)), 0.0
    for rows, labels, distance in _nearest(centers, x):
        belongs = (labels == np.arange(len(centers))[:, None]).astype(np.float64)
        sums += belongs @ rows
        counts += belongs.sum(axis=1)
        inertia += float(distance.sum())
    return sums, counts, inertia


def _nearest(centers: np.ndarray, x: Any) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """For runs of rows: the rows, the number of each one's nearest centre, and its squared distance; the first of equals."""
    # About the middle of the centres the products are small, and less is lost when they are taken from each other.
    middle = np.zeros(centers.shape[1]) if isinstance(x, Coded) else centers.mean(axis=0)
    away = centers - middle
    norms = np.einsum("kf,kf->k", away, away)
    for start in range(0, len(x), SPAN):
        rows = x[start : start + SPAN]
        moved = rows if isinstance(x, Coded) else rows - middle
        labels = (norms - 2.0 * (moved @ away.T)).argmin(axis=1)
        if isinstance(x, Coded):
            distance = squared_norms(rows) + (norms - 2.0 * (rows @ away.T))[np.arange(len(rows)), labels]
            yield rows, labels, np.maximum(distance, 0.0)
        else:
            apart = moved - away[labels]
            yield rows, labels, np.einsum("nf,nf->n", apart, apart)


def _squares(x: Any) -> np.ndarray:
    if not isinstance(x, Coded):
        return np.asarray(np.einsum("nf,nf->f", x, x))
    whole = np.bincount(x.codes.ravel(), minlength=x.width + 1)[:-1] * (1.0 if x.scale is None else x.scale**2)
    whole[x.places] = np.einsum("nf,nf->f", x.numbers, x.numbers)
    return np.asarray(whole)
