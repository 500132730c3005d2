"""Devices that are drawn: how fast they are, and when they can be invited, from distributions over the clients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Interval

from hansa.core.errors import InputError
from hansa.core.fleet import Fleet, Known, Rules, Speeds
from hansa.core.randomness import combine, derive, uniforms


def _draw(keys: np.ndarray, count: int, *path: int | str) -> np.ndarray:
    """Uniform numbers in [0, 1), (clients, count), of each client and purpose."""
    return uniforms(combine(keys, derive(*path)), count)


@dataclass(frozen=True)
class Constant:
    """The same value for every client.

    value:  of every client.
    """

    value: Annotated[float, Gt(0)]
    name: Literal["constant"] = field(default="constant", kw_only=True)

    def values(self, keys: np.ndarray, *path: int | str) -> np.ndarray:
        return np.full(len(keys), float(self.value))


@dataclass(frozen=True)
class Uniform:
    """Evenly spread over an interval.

    low:   smallest value.
    high:  largest value.
    """

    low: Annotated[float, Gt(0)]
    high: Annotated[float, Gt(0)]
    name: Literal["uniform"] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise InputError(
                f"clock: a uniform distribution from low = {self.low:g} to high = {self.high:g}; write the smaller one as low"
            )

    def values(self, keys: np.ndarray, *path: int | str) -> np.ndarray:
        return np.asarray(self.low + (self.high - self.low) * _draw(keys, 1, *path)[:, 0])


@dataclass(frozen=True)
class Lognormal:
    """exp(N(log(median), deviation)): most clients near the middle, a few far above.

    median:     half of the clients are below it.
    deviation:  standard deviation of the logarithm. With 0.5 one client in six is below 0.6 times the median and one in six above 1.65
                times; with 1.0 these are 0.37 and 2.7 times.
    """

    median: Annotated[float, Gt(0)]
    deviation: Annotated[float, Interval(ge=0, le=5)] = 0.5
    name: Literal["lognormal"] = field(default="lognormal", kw_only=True)

    def values(self, keys: np.ndarray, *path: int | str) -> np.ndarray:
        u = _draw(keys, 2, *path)
        z = np.sqrt(-2.0 * np.log1p(-u[:, 0])) * np.cos(2.0 * np.pi * u[:, 1])
        return np.asarray(self.median * np.exp(self.deviation * z))


Distribution = Constant | Uniform | Lognormal


@dataclass(frozen=True)
class Always:
    """Every client can be invited in every round."""

    name: Literal["always"] = field(default="always", kw_only=True)

    def chance(self, keys: np.ndarray, seed: int, now: float) -> np.ndarray:
        return np.ones(len(keys))


@dataclass(frozen=True)
class Probability:
    """A client can be invited in a round by chance, whatever happened before.

    value:  the probability.
    """

    value: Annotated[float, Interval(gt=0, le=1)]
    name: Literal["probability"] = field(default="probability", kw_only=True)

    def chance(self, keys: np.ndarray, seed: int, now: float) -> np.ndarray:
        return np.full(len(keys), float(self.value))


@dataclass(frozen=True)
class Diurnal:
    """A client can be invited with a probability that falls and rises once a day, as a cosine of the virtual time.

    period:  seconds of a day.
    most:    the probability at a client's best time.
    least:   the probability half a day later.
    spread:  the clients' own best times lie within this share of the period: 1 for all around the world, 0 for one and the same time.
    """

    period: Annotated[float, Gt(0)] = 86_400.0
    most: Annotated[float, Interval(gt=0, le=1)] = 0.8
    least: Annotated[float, Interval(ge=0, le=1)] = 0.05
    spread: Annotated[float, Interval(ge=0, le=1)] = 0.25
    name: Literal["diurnal"] = field(default="diurnal", kw_only=True)

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise InputError(f"clock.availability: least = {self.least:g} is above most = {self.most:g}; exchange them")

    def chance(self, keys: np.ndarray, seed: int, now: float) -> np.ndarray:
        phase = self.spread * _draw(keys, 1, seed, "clock", "phase")[:, 0]
        return np.asarray(self.least + (self.most - self.least) * 0.5 * (1.0 + np.cos(2.0 * np.pi * (now / self.period - phase))))


Availability = Always | Probability | Diurnal


@dataclass(frozen=True)
class Devices(Rules):
    """Devices that are drawn from distributions, once for each client.

    speed:         rows that a device trains on in a second; time your model on one.
    down:          bytes a second from the server.
    up:            bytes a second to the server.
    latency:       seconds from the invitation to the first byte; none by default.
    availability:  who can be invited.
    dropout:       probability that an invited client does not report.
    """

    name: Literal["devices"] = field(default="devices", kw_only=True)
    speed: Distribution = field(default_factory=lambda: Lognormal(median=100.0, deviation=0.7))
    down: Distribution = field(default_factory=lambda: Lognormal(median=2_500_000.0, deviation=0.8))
    up: Distribution = field(default_factory=lambda: Lognormal(median=600_000.0, deviation=0.8))
    latency: Distribution | None = None
    availability: Availability = field(default_factory=Always)
    dropout: Annotated[float, Interval(ge=0, le=1)] = 0.0

    @property
    def digest(self) -> str:
        return ""

    def open(self, ids: Iterable[str]) -> Fleet:
        return self

    def available(self, who: Known, seed: int, round: int, now: float) -> np.ndarray:
        drawn = _draw(who.keys, 1, seed, "clock", round, "available")[:, 0]
        return np.asarray(drawn < self.availability.chance(who.keys, seed, now))

    def speeds(self, who: Known, seed: int) -> Speeds:
        own = {purpose: (seed, "clock", purpose) for purpose in ("speed", "down", "up", "latency")}
        return Speeds(
            self.speed.values(who.keys, *own["speed"]),
            self.down.values(who.keys, *own["down"]),
            self.up.values(who.keys, *own["up"]),
            np.zeros(len(who.keys)) if self.latency is None else self.latency.values(who.keys, *own["latency"]),
        )

    def drops(self, who: Known, seed: int, round: int, now: float, seconds: np.ndarray) -> np.ndarray:
        return np.asarray(_draw(who.keys, 1, seed, "clock", round, "dropout")[:, 0] < self.dropout)
