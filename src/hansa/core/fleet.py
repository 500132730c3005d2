"""What a virtual clock asks about the clients' devices: who can be invited, how fast each is, and who drops out.

:mod:`hansa.core.devices` draws them from distributions, :mod:`hansa.core.traces` reads them from a recording;
:mod:`hansa.core.clock` plays rounds with either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Ge

from hansa.core.blocks import Client


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


@dataclass(frozen=True)
class Rules:
    """When a round closes.

    over_select:  so many times the cohort is invited, rounded up; the round closes when the cohort is full.
    deadline:     seconds after which reports are not used any more; 0 waits for every report.
    """

    over_select: Annotated[float, Ge(1)] = 1.0
    deadline: Annotated[float, Ge(0)] = 0.0
