"""A virtual clock: which of the invited clients report in time, and how long a round would take on devices of their kind.

A simulation takes as long as this machine needs; on phones it would take as long as the phones need. The clock computes that time and
lets it decide who takes part, before any work is done:

1. The round's cohort is drawn as without a clock, but ``ceil(over_select * cohort)`` clients. One that is not available is replaced by
   another, drawn in turn from at most :data:`ASKED` clients for each place; no more are asked, so that a round costs its cohort and
   not the population.
2. An invited client takes ``latency + bytes_down / down + rows * epochs / speed + bytes_up / up`` seconds. It may drop out instead.
3. The round closes when as many clients as the cohort wants have reported, or at the deadline. Who dropped out or would have
   reported later is not worked on at all: what would be thrown away is not computed.

This is the round of Bonawitz et al.: Towards Federated Learning at Scale: System Design, MLSys 2019, sections 2.2 and 9 (the server
selects 130 % of the devices that it wants, so that it can do without those that drop out or are slow).

Every draw is a function of (seed, round, client, purpose); the devices' availability also depends on the virtual time, which is a
function of the rounds before. So the same clients take part on every engine, with any number of workers, and after a resume.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, inf, isfinite
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeAlias

import numpy as np
from annotated_types import Ge, Gt, Interval

from hansa.core.blocks import Client
from hansa.core.errors import InputError, RunFailed, did_you_mean
from hansa.core.randomness import combine, derive, generator, uniforms
from hansa.core.sampling import cohort

ASKED = 20
"""Clients that are asked at most, for each place in a round, when those who were drawn are not available."""


@dataclass(frozen=True)
class Known:
    """What the clock knows of some clients: ids, keys (uint64) and training rows (int64), each (clients,)."""

    ids: tuple[str, ...]
    keys: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, clients: Sequence[Client]) -> Known:
        keys = np.array([client.key for client in clients], dtype=np.uint64)
        return cls(tuple(client.id for client in clients), keys, np.array([client.rows for client in clients], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Known]) -> Known:
        ids = tuple(id for part in parts for id in part.ids)
        return cls(ids, np.concatenate([part.keys for part in parts]), np.concatenate([part.rows for part in parts]))

    def take(self, places: np.ndarray) -> Known:
        return Known(tuple(self.ids[k] for k in places), self.keys[places], self.rows[places])


@dataclass(frozen=True)
class Speeds:
    """Devices as float64 (clients,): speed in rows a second, down and up in bytes a second, latency in seconds."""

    speed: np.ndarray
    down: np.ndarray
    up: np.ndarray
    latency: np.ndarray


@dataclass(frozen=True)
class Load:
    """What a round asks of a client: passes over its rows, and the bytes of the message and of its update."""

    epochs: int
    bytes_down: int
    bytes_up: int

    def seconds(self, devices: Speeds, rows: np.ndarray) -> np.ndarray:
        """Seconds from the invitation to the report, (clients,)."""
        moving = self.bytes_down / devices.down + self.bytes_up / devices.up
        return np.asarray(devices.latency + moving + rows * self.epochs / devices.speed)


class Fleet(Protocol):
    """The devices of all clients, ready to be asked."""

    @property
    def digest(self) -> str:
        """Changes when the devices do; empty where they follow from the job alone."""
        ...

    def available(self, who: Known, seed: int, round: int, now: float) -> np.ndarray:
        """Who can be invited ``now`` seconds after the start, bool (clients,)."""
        ...

    def speeds(self, who: Known, seed: int) -> Speeds: ...

    def drops(self, who: Known, seed: int, round: int, now: float, seconds: np.ndarray) -> np.ndarray:
        """Who does not report although invited ``now``, given the seconds that each needs, bool (clients,)."""
        ...


def _draw(keys: np.ndarray, count: int, *path: int | str) -> np.ndarray:
    """Uniform numbers in [0, 1), (clients, count), of each client and purpose."""
    return uniforms(combine(keys, derive(*path)), count)


# Distributions over clients: drawn once for each client


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


# Availability


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


# The two clocks


@dataclass(frozen=True)
class Rules:
    """When a round closes.

    over_select:  so many times the cohort is invited, rounded up; the round closes when the cohort is full.
    deadline:     seconds after which reports are not used any more; 0 waits for every report.
    """

    over_select: Annotated[float, Ge(1)] = 1.0
    deadline: Annotated[float, Ge(0)] = 0.0


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


Windows = tuple[tuple[float, float], ...]
"""When a device is available: (start, end) in seconds, apart from each other, ascending."""


@dataclass(frozen=True)
class Trace(Rules):
    """Devices that were recorded: a CSV file with the columns client, speed, down, up and, where they are known, latency, start, end.

    path:    of the file. speed is in rows a second, down and up in bytes a second, the others in seconds.
    period:  seconds after which the windows come again; 0 for never. A window over the end of the period has its end beyond it.

    A client has a row for each window (start, end) in which it is available, or one row without start and end when it always is. A
    client whose window ends before it would report drops out.
    """

    name: Literal["trace"] = field(default="trace", kw_only=True)
    path: str = field(kw_only=True)
    period: Annotated[float, Ge(0)] = 0.0

    def open(self, ids: Iterable[str]) -> Fleet:
        """Read the file. InputError in one sentence where it cannot be used, or knows nothing of one of the clients."""
        recorded = _read(self.path, self.period)
        for id in ids:
            if id not in recorded.devices:
                known = len(recorded.devices)
                raise InputError(f"clock.path: {self.path} has no row of client {id!r}, and rows of {known:,} others; add one")
        return recorded


@dataclass(frozen=True)
class Recorded:
    """What a trace says. devices: client -> (speed, down, up, latency); windows: client -> its windows, none when it is always there."""

    devices: dict[str, tuple[float, float, float, float]]
    windows: dict[str, Windows]
    period: float
    digest: str

    def available(self, who: Known, seed: int, round: int, now: float) -> np.ndarray:
        return np.array([self._until(id, now) > 0 for id in who.ids], dtype=bool)

    def speeds(self, who: Known, seed: int) -> Speeds:
        speed, down, up, latency = np.array([self.devices[id] for id in who.ids]).reshape(-1, 4).T
        return Speeds(speed, down, up, latency)

    def drops(self, who: Known, seed: int, round: int, now: float, seconds: np.ndarray) -> np.ndarray:
        left = np.array([self._until(id, now) for id in who.ids])
        return np.asarray(seconds > left)

    def _until(self, id: str, now: float) -> float:
        """Seconds for which a client stays available, 0 when it is not."""
        if id not in self.windows:
            return inf
        if self.period and any(end - start >= self.period for start, end in self.windows[id]):
            return inf
        times = (now % self.period, now % self.period + self.period) if self.period else (now,)
        return max((end - time for start, end in self.windows[id] for time in times if start <= time < end), default=0.0)


Clock: TypeAlias = Devices | Trace


def _read(path: str, period: float) -> Recorded:
    """A trace from its file; windows of one client that touch are one."""
    try:
        data = Path(path).expanduser().read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(
            f"clock.path: {path} cannot be read ({error.strerror}); name a CSV file with a row for each client"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"clock.path: {path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    devices: dict[str, tuple[float, float, float, float]] = {}
    windows: dict[str, list[tuple[float, float]]] = {}
    for where, row in _rows(path, lines):
        id, device = row["client"], (_number(row, "speed", where), _number(row, "down", where), _number(row, "up", where))
        own = (*device, _number(row, "latency", where, above=False) if row.get("latency") else 0.0)
        if devices.setdefault(id, own) != own:
            raise InputError(
                f"{where}: client {id!r} is another device than in a row before; repeat its speed, down, up and latency"
            )
        if bool(row.get("start")) != bool(row.get("end")):
            raise InputError(f"{where}: client {id!r} has a {'start' if row.get('start') else 'end'} alone; give both, or none")
        if row.get("start"):
            windows.setdefault(id, []).append(_window(row, where, period))
    if not devices:
        raise InputError(f"clock.path: {path} holds no rows; write one for each client")
    joined = {id: _joined(sorted(own)) for id, own in windows.items()}
    return Recorded(devices, joined, period, hashlib.sha256(data).hexdigest())


def _rows(path: str, lines: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row by column, with where it stands; without spaces around names and values."""
    needed, known = ("client", "speed", "down", "up"), ("client", "speed", "down", "up", "latency", "start", "end")
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    for name in header:
        if name not in known:
            raise InputError(f"clock.path: {path} has a column {name!r}{did_you_mean(name, known)}")
    for name in needed:
        if name not in header:
            raise InputError(f"clock.path: {path} has no column {name!r}; it needs {', '.join(needed)}")
    for row in reader:
        where = f"clock.path: {path}, line {reader.line_num}"
        if len(row) != len(header):
            raise InputError(f"{where}: has {len(row)} values for {len(header)} columns; write one for each")
        yield where, dict(zip(header, (value.strip() for value in row), strict=True))


def _number(row: dict[str, str], name: str, where: str, above: bool = True) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = inf
    if not isfinite(value) or value < 0 or (above and value == 0):
        raise InputError(f"{where}: {name} = {row[name]!r} is not a number {'above 0' if above else 'from 0 on'}; correct it")
    return value


def _window(row: dict[str, str], where: str, period: float) -> tuple[float, float]:
    start, end = _number(row, "start", where, above=False), _number(row, "end", where)
    if start >= end:
        raise InputError(f"{where}: start = {start:g} is not before end = {end:g}; correct them")
    if period and (start >= period or end - start > period):
        raise InputError(
            f"{where}: the window from {start:g} to {end:g} does not fit into clock.period = {period:g}; raise it, or cut the window"
        )
    return start, end


def _joined(windows: list[tuple[float, float]]) -> Windows:
    result = windows[:1]
    for start, end in windows[1:]:
        if start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return tuple(result)


# A round


@dataclass(frozen=True)
class Turnout:
    """Who takes part in a round, and how long it takes.

    used:     positions of the clients whose reports are used, int64, ascending; at most ``wanted``.
    wanted:   clients that the job asks for in a round.
    invited:  how many were; ``len(used) + dropped + late``.
    dropped:  invited clients that do not report.
    late:     those that would report after the deadline, or after the cohort was full.
    seconds:  from the invitation until the last report that is used, or until the deadline where the server waits in vain.
    quorum:   share of ``used`` that must give a result so that it is the quorum of ``wanted``.
    """

    used: np.ndarray
    wanted: int
    invited: int
    dropped: int
    late: int
    seconds: float
    quorum: float


def invite(
    fleet: Fleet, population: int, places: int, seed: int, round: int, now: float, look: Callable[[np.ndarray], Known]
) -> tuple[np.ndarray, Known]:
    """The round's invited clients, ``places`` of them or as many as are found: positions, ascending, and what is known of them.

    ``look`` tells what is known of the clients at some positions; it is asked for at most ``(ASKED + 1) * places`` of them. When all
    are available, the invited ones are those that :func:`hansa.core.sampling.cohort` draws.
    """
    drawn = cohort(population, places, seed, round)
    found: list[tuple[np.ndarray, Known]] = []
    others: np.ndarray | None = None
    missing = len(drawn)
    while len(drawn):
        known = look(drawn)
        there = np.flatnonzero(fleet.available(known, seed, round, now))[:missing]
        found.append((drawn[there], known.take(there)))
        missing -= len(there)
        if not missing:
            break
        others = _others(population, drawn, seed, round) if others is None else others
        drawn, others = others[: 2 * missing], others[2 * missing :]
    positions = np.concatenate([some for some, _ in found])
    order = np.argsort(positions)
    return positions[order], Known.joined([known for _, known in found]).take(order)


def _others(population: int, first: np.ndarray, seed: int, round: int) -> np.ndarray:
    """Further clients in the order in which they are asked: none of the first, and at most ASKED for each of them."""
    most = min(population, ASKED * len(first))
    drawn = generator(seed, "round", round, "others").choice(population, size=most, replace=False)
    return np.asarray(drawn[~np.isin(drawn, first)])


def turnout(
    clock: Clock,
    fleet: Fleet,
    look: Callable[[np.ndarray], Known],
    *,
    population: int,
    size: int,
    seed: int,
    round: int,
    now: float,
    load: Load,
    quorum: float,
) -> Turnout:
    """Who takes part in a round of ``size`` clients that begins ``now`` virtual seconds after the start.

    Raises RunFailed when fewer than ``quorum * size`` clients report in time.
    """
    places = min(population, ceil(clock.over_select * size - 1e-9))
    positions, who = invite(fleet, population, places, seed, round, now, look)
    seconds = load.seconds(fleet.speeds(who, seed), who.rows)
    out = fleet.drops(who, seed, round, now, seconds)
    # Equal times are put in order by a lot: by position, the first clients of the population would always be preferred.
    lots = combine(who.keys, derive(seed, "clock", round, "lots"))
    reports = np.lexsort((lots, seconds, out))[: len(out) - int(out.sum())]
    used = reports[: min(size, int((seconds[reports] <= (clock.deadline or inf)).sum()))]
    least = max(1, ceil(quorum * size - 1e-9))
    # Who was invited is known, and so is when all of them have reported; that somebody never will is only known at the deadline.
    full = len(used) == min(size, len(positions))
    result = Turnout(
        used=np.sort(positions[used]),
        wanted=size,
        invited=len(positions),
        dropped=int(out.sum()),
        late=len(reports) - len(used),
        seconds=float(clock.deadline if clock.deadline and not full else seconds[used].max(initial=0.0)),
        # A hair below, so that the loop's ``quorum * clients`` is not above the whole number that it stands for.
        quorum=quorum if len(used) == size else (least - 1e-9) / len(used) if least < len(used) else 1.0,
    )
    if len(used) < least:
        enough = float(seconds[reports[least - 1]]) if len(reports) >= least else None
        raise RunFailed(_too_few(clock, result, round, quorum, places, enough, more=places < population))
    return result


def _too_few(clock: Clock, result: Turnout, round: int, quorum: float, places: int, enough: float | None, more: bool) -> str:
    """The sentence on a round that fails for want of reports. enough: the deadline that would do; more: others could be invited."""
    reported = len(result.used)
    within = f" within the deadline of {clock.deadline:g} s" if clock.deadline else ""
    why = [f"{places - result.invited:,} of {places:,} places found no available client"] if result.invited < places else []
    why += [f"{result.dropped:,} dropped out"] if result.dropped else []
    why += [f"{result.late:,} were late"] if result.late else []
    advice = [] if enough is None else [f"raise clock.deadline to {ceil(enough)}"]
    advice += [f"raise clock.over_select above {clock.over_select:g}"] if more and (result.dropped or result.late) else []
    least = floor(1000 * reported / result.wanted) / 1000
    advice.append(f"lower rounds.quorum to {least:g}" if least else "lower rounds.quorum")
    return (
        f"round {round}: {reported:,} of {result.wanted:,} wanted clients reported{within} ({result.invited:,} were invited; "
        f"{', '.join(why)}), and the quorum is {quorum:.0%}; {', or '.join(advice)}"
    )
