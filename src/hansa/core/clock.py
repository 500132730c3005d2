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

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import TypeAlias

import numpy as np

from hansa.core.devices import Devices
from hansa.core.errors import RunFailed
from hansa.core.fleet import Fleet, Known, Load
from hansa.core.randomness import combine, derive, generator
from hansa.core.sampling import cohort
from hansa.core.traces import Trace

ASKED = 20
"""Clients that are asked at most, for each place in a round, when those who were drawn are not available."""

Clock: TypeAlias = Devices | Trace


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
