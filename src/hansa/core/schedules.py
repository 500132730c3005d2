"""Learning-rate schedules over rounds: each gives the factor for a round, counted from 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, pi
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval


@dataclass(frozen=True)
class Constant:
    """The same rate in every round."""

    name: Literal["constant"] = field(default="constant", kw_only=True)

    def factor(self, round: int, rounds: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Exponential:
    """``decay`` to the power of the rounds played before (0.99 in McMahan et al. 2017, section 3, for CIFAR)."""

    name: Literal["exponential"] = field(default="exponential", kw_only=True)
    decay: Annotated[float, Interval(gt=0, le=1)] = 0.99

    def factor(self, round: int, rounds: int) -> float:
        return self.decay ** (round - 1)


@dataclass(frozen=True)
class Step:
    """Times ``factor_per_step`` after every ``every`` rounds."""

    name: Literal["step"] = field(default="step", kw_only=True)
    every: Annotated[int, Ge(1)] = 100
    factor_per_step: Annotated[float, Gt(0)] = 0.1

    def factor(self, round: int, rounds: int) -> float:
        return self.factor_per_step ** ((round - 1) // self.every)


@dataclass(frozen=True)
class Cosine:
    """From 1 in the first round to ``floor`` in the last, along half a cosine (Loshchilov and Hutter 2017, without restarts)."""

    name: Literal["cosine"] = field(default="cosine", kw_only=True)
    floor: Annotated[float, Interval(ge=0, le=1)] = 0.0

    def factor(self, round: int, rounds: int) -> float:
        progress = (round - 1) / max(1, rounds - 1)
        return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * progress))


Schedule = Constant | Exponential | Step | Cosine
