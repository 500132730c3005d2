"""Clipping: no client moves the sum by more than a bound. The first half of differential privacy; alone it promises nothing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Gt
from array_api_compat import array_namespace

from hansa.core.contracts import Context
from hansa.core.errors import InputError
from hansa.core.params import Array
from hansa.core.updates import Total, Update


@dataclass(frozen=True)
class Clip:
    """Scale each client's update to an L2 norm of at most ``norm`` over all its entries.

    McMahan, Ramage, Talwar, Zhang: Learning Differentially Private Recurrent Language Models, ICLR 2018, FlatClip:
    Delta * min(1, S / |Delta|), before the client's weight is applied.
    """

    name: Literal["clip"] = field(default="clip", kw_only=True)
    norm: Annotated[float, Gt(0)] = 1.0

    guarantee: str = field(default="none", init=False, repr=False)

    def client(self, update: Update, context: Context) -> Update:
        if any(isinstance(value, list) for value in update.values.values()):
            raise InputError(
                "transform clip: the algorithm sends values that differ in size, which have no common norm (remove the clip)"
            )
        squares = [0.0] * len(update)
        for value in update.values.values():
            squares = [total + float((value[k] ** 2).sum()) for k, total in enumerate(squares)]
        # A client that sends zeros has nothing to scale.
        scale = [min(1.0, self.norm / square**0.5) if square > 0 else 1.0 for square in squares]
        return replace(update, values={name: _scaled(value, scale) for name, value in update.values.items()})

    def server(self, total: Total, context: Context) -> Total:
        return total


def _scaled(value: Array, scale: list[float]) -> Array:
    xp = array_namespace(value)
    return value * xp.reshape(xp.asarray(scale, dtype=value.dtype), (-1,) + (1,) * (value.ndim - 1))
