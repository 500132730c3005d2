"""What a run waits for that has not begun, in words: an administrator sees no other sign of it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence

from hansa.federation.options import Federation
from hansa.federation.state import RunRow

NAMED = 10
"""Clients that are named, at most."""


def awaited(row: RunRow, rows: Sequence[RunRow], heard: Mapping[str, float], now: float) -> str:
    """What a waiting run waits for. rows: all runs. heard: when each client was last heard of, Unix seconds, 0 for never."""
    if row.leased <= now:
        others = [other.id for other in rows if other.id != row.id and other.leased > now]
        return f"waits until run {others[0]} is over" if others else "waits for a server process to play it"
    engine = tomllib.loads(row.job).get("engine", {})
    wanted, liveness = engine.get("clients", Federation.clients), engine.get("liveness", Federation.liveness)
    there = sorted(name for name, when in heard.items() if when and now - when < liveness)
    absent = sorted(heard.keys() - set(there))
    parts = [f"waits for clients: {len(there)} of {wanted} are there{f' ({_named(there)})' if there else ''}"]
    if absent:
        parts.append(f"joined and not running: {_named(absent)}")
    if (more := wanted - len(heard)) > 0:
        parts.append(f"still to join: {more}")
    return "; ".join(parts)


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
