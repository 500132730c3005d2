"""Devices that were recorded: how fast each client is, and when it was there, from a CSV file."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from hansa.core.errors import InputError, did_you_mean
from hansa.core.fleet import Fleet, Known, Rules, Speeds

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
