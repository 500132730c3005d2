"""Clients that are made when they are loaded: as many as one likes, none of them stored.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020, section 5.1 and appendix C.1,
Synthetic(alpha, beta). For client k, with d features (60) and c classes (10):

    u_k ~ N(0, alpha)    W_k ~ N(u_k, 1), (c, d)    b_k ~ N(u_k, 1), (c,)
    B_k ~ N(0, beta)     v_k ~ N(B_k, 1), (d,)      x ~ N(v_k, diag(j^-1.2))    y = argmax softmax(W_k x + b_k)

alpha tells how much the clients' models differ, beta how much their features do. N(0, alpha) has the standard deviation alpha, as in the
authors' code. Synthetic(iid) has one W and b ~ N(0, 1) for all clients, and v_k = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import Table
from hansa.core.errors import InputError
from hansa.core.randomness import combine, derive, generator, uniforms
from hansa.data.sources import Ids, Task


@dataclass(frozen=True)
class Fixed:
    """The same number of rows for every client.

    count: rows of a client.
    """

    name: Literal["fixed"] = field(default="fixed", kw_only=True)
    count: Annotated[int, Ge(1)] = 100


@dataclass(frozen=True)
class Lognormal:
    """``least`` rows, and on top the whole part of exp(N(mean, deviation)); the defaults are those of the authors' code.

    mean:       of the logarithm.
    deviation:  standard deviation of the logarithm.
    least:      no client has fewer rows.
    most:       no client has more; 0 for no limit. Among a million clients, with the defaults, one has about a million rows.
    """

    name: Literal["lognormal"] = field(default="lognormal", kw_only=True)
    mean: float = 4.0
    deviation: Annotated[float, Ge(0)] = 2.0
    least: Annotated[int, Ge(1)] = 50
    most: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        if self.most and self.most < self.least:
            raise InputError(f"data.rows: most = {self.most:,} is below least = {self.least:,}; raise it, or write 0 for no limit")


@dataclass(frozen=True)
class Synthetic:
    """Synthetic(alpha, beta) of Li et al. 2020: every client is made from the job's seed and its own number when it is loaded.

    clients:   any number; a client that is not chosen costs nothing.
    features:  numbers a row (d).
    labels:    classes (c).
    rows:      how many a client has.
    alpha:     how much the clients' models differ.
    beta:      how much the clients' features differ.
    iid:       one model and one distribution of features for all; alpha and beta are not used then.
    dtype:     of the features.
    """

    name: Literal["synthetic"] = field(default="synthetic", kw_only=True)
    clients: Annotated[int, Ge(1)] = 30
    features: Annotated[int, Ge(1)] = 60
    labels: Annotated[int, Ge(2)] = 10
    rows: Fixed | Lognormal = field(default_factory=Lognormal)
    alpha: Annotated[float, Ge(0)] = 1.0
    beta: Annotated[float, Ge(0)] = 1.0
    iid: bool = False
    dtype: Literal["float32", "float64"] = "float32"

    @property
    def task(self) -> Task:
        return "classification"

    @property
    def classes(self) -> tuple[Any, ...]:
        return tuple(range(self.labels))

    @property
    def ids(self) -> Ids:
        return Ids(self.clients)

    def sizes(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Rows of the clients at the given positions, int64, each from the seed and its own position alone."""
        rows = self.rows
        if isinstance(rows, Fixed):
            return np.full(len(positions), rows.count, dtype=np.int64)
        u, angle = uniforms(combine(positions.astype(np.uint64), derive(seed, "synthetic", "rows")), 2).T
        normal = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * angle)  # Box and Muller 1958
        drawn = rows.least + np.exp(rows.mean + rows.deviation * normal).astype(np.int64)
        return np.minimum(drawn, rows.most) if rows.most else drawn

    def table(self, position: int, seed: int) -> Table:
        """The rows of one client: x (rows, features), y (rows,) int64."""
        (rows,) = self.sizes(np.array([position]), seed)
        draw = generator(seed, "synthetic", position)
        model = generator(seed, "synthetic", "model") if self.iid else draw
        shift, centre = (0.0, 0.0) if self.iid else draw.standard_normal(2) * (self.alpha, self.beta)
        weight = shift + model.standard_normal((self.features, self.labels))
        bias = shift + model.standard_normal(self.labels)
        mean = np.zeros(self.features) if self.iid else centre + draw.standard_normal(self.features)
        x = draw.standard_normal((rows, self.features), dtype=np.dtype(self.dtype))
        x *= (np.arange(1, self.features + 1) ** -0.6).astype(x.dtype)
        x += mean.astype(x.dtype)
        return Table(x, (x @ weight + bias).argmax(axis=1))
