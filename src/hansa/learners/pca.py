"""Principal components in NumPy: the clients' second moments, and the projection on what the server found in them.

Labels are not looked at, and the data need have none. Params, float64: ``mean`` (features,), ``components`` (components, features) in
descending order of their ``variance`` (components,); ``total`` (), the variance of all features together; ``rows`` ().
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.coded import Coded
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.metrics import Metrics, stack
from hansa.core.params import Kinds, Params
from hansa.core.updates import Update
from hansa.learners.given import named
from hansa.learners.unlabelled import features_of, squared_norms

LARGEST = 5000


@dataclass(frozen=True)
class PCA:
    """Principal components; the algorithm is "principal_components".

    components: how many; 0 for all.
    """

    name: Literal["pca"] = field(default="pca", kw_only=True)
    components: Annotated[int, Ge(0)] = 0

    needs: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    can: frozenset[str] = field(default=frozenset({"moments"}), init=False, repr=False)

    def bind(self, schema: Schema) -> BoundPCA:
        """Raises InputError for more components than the data can have, and for features whose moments are too many."""
        features = int(np.prod(schema.shape))
        if features > LARGEST:
            raise InputError(
                f"learner pca: the data has {features:,} features, whose products take {features * features * 8 / 1e9:.1f} GB per "
                f"client; pca takes up to {LARGEST:,} features (leave some out)"
            )
        most = min(schema.rows, features)
        if self.components > most:
            raise InputError(
                f"learner.components = {self.components}: {schema.rows:,} training rows of {features} features have at most {most} "
                "principal components; ask for fewer, or write 0 for all"
            )
        return BoundPCA(self.components or most, schema)


@dataclass(frozen=True)
class BoundPCA:
    """The learner that knows the data."""

    components: int
    schema: Schema
    can: frozenset[str] = frozenset({"moments"})

    def arrays(self, table: Table) -> Table:
        """x to float64 (rows, features); no labels."""
        return Table(features_of(table))

    def init(self, seed: int) -> Params:
        features = int(np.prod(self.schema.shape))
        return {
            "mean": np.zeros(features), "components": np.zeros((self.components, features)), "variance": np.zeros(self.components),
            "total": np.zeros(()), "rows": np.zeros(()),
        }  # fmt: skip

    def kinds(self) -> Kinds:
        return {"mean": "weight", "components": "weight", "variance": "weight", "total": "buffer", "rows": "buffer"}

    def moments(self, block: LoadedBlock) -> Update:
        """For each client: ``sum`` (features,) and ``products`` (features, features), the sums of x and of x x', and ``rows``."""
        values = {
            "sum": np.stack([np.ones(len(table)) @ table.x for table in block.tables]),
            "products": np.stack([_products(table.x) for table in block.tables]),
            "rows": block.rows.astype(np.float64),
        }
        return Update(values, np.ones(len(block)))

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("explained_variance",)

    def evaluate(self, params: Params, block: LoadedBlock) -> Metrics:
        """explained_variance: the share of the rows' squared distance to the mean that lies along the components."""
        return stack([{"explained_variance": _explained(params, table.x)} for table in block.tables])

    def predict(self, params: Params, x: Any) -> np.ndarray:
        """The rows in the space of the components, (rows, components)."""
        return np.asarray(_projected(params, features_of(Table(x))))

    def export(self, params: Params) -> Any:
        """A fitted :class:`sklearn.decomposition.PCA`."""
        from sklearn.decomposition import PCA as Estimator

        components, variance = np.array(params["components"]), np.array(params["variance"])
        rows, total, features = int(params["rows"]), float(params["total"]), components.shape[1]
        fitted = Estimator(n_components=len(components), svd_solver="covariance_eigh")
        fitted.components_, fitted.mean_, fitted.explained_variance_ = components, np.array(params["mean"]), variance
        fitted.explained_variance_ratio_ = variance / total if total > 0 else np.full(len(variance), np.nan)
        fitted.singular_values_ = np.sqrt(variance * (rows - 1))
        left = min(rows, features) - len(components)
        fitted.noise_variance_ = max(total - float(variance.sum()), 0.0) / left if left else 0.0
        fitted.n_components_, fitted.n_samples_, fitted.n_features_in_ = len(components), rows, features
        fitted._fit_svd_solver = "covariance_eigh"
        return named(fitted, self.schema)


def _products(x: Any) -> np.ndarray:
    return np.asarray(x.gram(np.ones(len(x))) if isinstance(x, Coded) else x.T @ x)


def _projected(params: Params, x: Any) -> np.ndarray:
    components = params["components"]
    return np.asarray(x @ components.T - components @ params["mean"])


def _explained(params: Params, x: Any) -> tuple[float, float]:
    mean = params["mean"]
    if isinstance(x, Coded):
        whole = float((squared_norms(x) - 2.0 * (x @ mean) + mean @ mean).sum())
    else:
        whole = float(squared_norms(x - mean).sum())
    return float(squared_norms(_projected(params, x)).sum()), whole
