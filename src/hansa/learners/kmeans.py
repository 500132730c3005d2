"""k-means in NumPy: what the clients' rows say about centres, as sums.

Labels are not looked at, and the data need have none. Params: ``centers`` (clusters, features) float64; ``counts`` (clusters,), the
training rows of each; ``inertia`` (), the sum of the squared distances of all training rows to their centres; ``iterations`` ().
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.randomness import generator
from hansa.core.updates import Update
from hansa.learners.given import named
from hansa.learners.nearest import nearest, placed, squares_of, sums_of
from hansa.learners.unlabelled import features_of


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
        """x as :func:`~hansa.learners.nearest.placed`; no labels."""
        return Table(placed(features_of(table)))

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
            chosen = np.zeros((slots, int(np.prod(self.schema.shape))))
            chosen[hits] = np.asarray(table.x[random.integers(len(table), size=int(hits.sum()))])
            found.append((chosen, hits.astype(np.float64)))
        rows, counts = (np.stack(some) for some in zip(*found, strict=True))
        return Update({"rows": rows, "hits": counts}, np.ones(len(block)))

    def _sums(self, centers: np.ndarray, x: Any, spread: bool) -> dict[str, Any]:
        sums, counts, inertia = sums_of(centers, x)
        result = {"sums": sums, "counts": counts, "inertia": np.array(inertia)}
        return result | {"squares": squares_of(x)} if spread else result

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("inertia",)

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """inertia: the mean squared distance of a row to its centre."""
        sums = [sums_of(params["centers"], table.x)[2] for table in block.tables]
        return stack([{"inertia": (own, float(len(table)))} for own, table in zip(sums, block.tables, strict=True)])

    def predict(self, params: Params, x: Any) -> np.ndarray:
        """The number of each row's cluster, int64 (rows,)."""
        x = features_of(Table(x))
        return np.concatenate([np.zeros(0, np.int64), *(labels for _, labels, _ in nearest(params["centers"], x))])

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
