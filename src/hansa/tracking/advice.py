"""Where the time of a run's rounds went, and whether another engine or larger blocks would serve it better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Final

from hansa.core.accounting import TIMES
from hansa.tracking.labels import duration

PARTS: Final = tuple(name.partition("/")[2] for name in TIMES[:4])
"""Wait, transfer, compute and reduce."""

LEAST: Final = 5
"""Rounds, without the first one, in which data is loaded, that must have been played."""

GAIN: Final = 0.7
"""The share of a round's time that another way must stay below to be worth a word."""

_BLOCK: Final = 16  # of hansa.job.Rounds, where the job does not say


@dataclass(frozen=True)
class Cost:
    """Seconds that an engine takes for an exchange, and for each of its blocks, beside the work: measured on two cores, to compare."""

    exchange: float
    block: float


COSTS: Final = {
    "inline": Cost(0.0, 0.0),
    "processes": Cost(0.0005, 0.00015),
    "torchrun": Cost(0.001, 0.0003),
    "ray": Cost(0.005, 0.0008),
    "dask": Cost(0.018, 0.002),
    "spark": Cost(0.07, 0.0),
}


def advice(records: Sequence[Mapping[str, Any]], job: Mapping[str, Any], cores: int) -> str:
    """One sentence where scheduling takes most of a round and something else would take clearly less; else nothing.

    records: of rounds, as in ``metrics.jsonl``; job: as plain values; cores: of this machine, which other engines would use.
    """
    engine = _name(job.get("engine", "inline"))
    counted = [record for record in records if record["round"] > 1 and all(name in record for name in TIMES)]
    in_a_gang = "parallel" in job.get("algorithm", {})  # which is what it is, and has no blocks that could be larger
    if engine not in COSTS or engine == "inline" or in_a_gang or len(counted) < LEAST:
        return ""
    wait, transfer, compute, reduce, work = (median(record[name] for record in counted) for name in TIMES)
    whole = wait + transfer + compute + reduce
    if wait + transfer <= compute + reduce:
        return ""
    block = job.get("rounds", {}).get("block", _BLOCK)
    clients = round(median(record["clients"] for record in counted))
    blocks = -(-clients // block)
    exchanges = 1 + sum(bool(job.get("split", {}).get(split, 0.0)) for split in ("validation", "test"))
    ways = {
        f"{name!r}": exchanges * (COSTS[name].exchange + blocks * COSTS[name].block) + reduce + work / parallel
        for name, parallel in (("inline", 1), ("processes", min(cores, blocks)))
        if name != engine
    }
    workers = max(1, min(blocks, round(work / compute))) if compute else 1
    if blocks > workers:
        larger = -(-clients // workers)
        ways[f"blocks of {larger} clients (rounds.block)"] = (
            (wait + transfer) * _share(COSTS[engine], blocks, workers) + compute + reduce
        )
    best = min(ways, key=ways.__getitem__)
    if ways[best] > GAIN * whole:
        return ""
    lost = [f"{_time(wait)} is waiting for {engine}"] * (wait >= transfer / 8)
    lost += [f"{_time(transfer)} moving messages and results"] * (transfer >= wait / 8)
    return f"rounds take {_time(whole)}, of which {' and '.join(lost)}; {best} would take about {_time(ways[best])}"


def _share(cost: Cost, blocks: int, fewer: int) -> float:
    """What is left of an engine's own time where there are fewer blocks."""
    return (cost.exchange + fewer * cost.block) / (cost.exchange + blocks * cost.block)


def _name(part: Any) -> str:
    """The name of a part of a job: a table, or a word that may be an address."""
    return str(part.get("name") if isinstance(part, Mapping) else part).partition("://")[0]


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 1}f} ms" if seconds < 1 else duration(seconds)


def shares(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Seconds of each part of the time, by round: ``round`` and :data:`PARTS`; nothing for a run that did not measure them."""
    counted = [record for record in records if all(name in record for name in TIMES)]
    parts = {part: [float(record[f"time/{part}"]) for record in counted] for part in PARTS}
    return {"round": [float(record["round"]) for record in counted], **parts} if counted else {}


def means(told: Mapping[str, Sequence[float]]) -> list[tuple[str, float, float]]:
    """Each part of the time with its seconds a round in the mean, and its share of all."""
    mean = {part: fmean(told[part]) for part in PARTS}
    whole = sum(mean.values()) or 1.0
    return [(part, seconds, seconds / whole) for part, seconds in mean.items()]
