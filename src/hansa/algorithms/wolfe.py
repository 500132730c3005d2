"""A line search that asks for one point at a time, so that every point may be one exchange with the clients.

Nocedal and Wright 2006, algorithms 3.5 (bracketing) and 3.6 (zoom), with cubic interpolation (equation 3.59), for the strong Wolfe
conditions along phi(t) = F(x + t d):

    phi(t) <= phi(0) + c1 t phi'(0)    and    |phi'(t)| <= c2 |phi'(0)|

A search is a dictionary of plain values, which is part of the algorithm's state: ``start`` is (phi(0), phi'(0)), ``low`` the best point
so far and ``high`` the other end of the bracket, both (t, phi(t), phi'(t)), ``t`` the point that is asked for next.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Search: TypeAlias = dict[str, Any]

ARMIJO, CURVATURE = 1e-4, 0.9
"""c1 and c2."""

TRIES = 25
"""Points after which a search is given up."""

LARGEST = 2.0**40


def begin(value: float, slope: float, first: float) -> Search:
    """The search along a direction of descent, ``slope`` = phi'(0) < 0; ``first`` is the first point to ask for."""
    return {"start": [value, slope], "low": [0.0, value, slope], "high": None, "t": first, "tries": 0}


def advance(search: Search, value: float, slope: float) -> tuple[bool, Search | None]:
    """What follows from phi and phi' at ``search["t"]``: (whether the point is accepted, the search that goes on).

    (False, None) when no point lowers phi any more. A value that is not finite is a point too far away.
    """
    t, (value0, slope0) = search["t"], search["start"]
    low, high, tries = search["low"], search["high"], search["tries"] + 1
    # What is lost to rounding must not look like a rise.
    slack = 8 * np.finfo(np.float64).eps * max(1.0, abs(value0))
    found = [t, value, slope]
    rises = value > value0 + ARMIJO * t * slope0 + slack or (low[0] > 0 and value >= low[1] + slack)
    if rises or not np.isfinite(value):
        high = found
    elif abs(slope) <= -CURVATURE * slope0 or (search.get("last") and value <= value0 + slack):
        return True, None
    elif (high is not None and slope * (high[0] - low[0]) >= 0) or (high is None and slope >= 0):
        low, high = found, low
    else:
        low = found
    if tries >= TRIES or (high is not None and abs(high[0] - low[0]) <= 1e-12 * max(abs(high[0]), abs(low[0]))):
        # The best point so far is taken, which has to be asked for again because only its figures are known here.
        if low[0] == 0.0 or search.get("last"):
            return False, None
        return False, {**search, "low": low, "high": high, "t": low[0], "tries": tries, "last": True}
    t = min(_beyond(search["low"], found), LARGEST) if high is None else _between(low, high)
    return False, {**search, "low": low, "high": high, "t": t, "tries": tries}


def _cubic(a: list[float], b: list[float]) -> float | None:
    """Where the cubic through two points with their slopes has its minimum; None where it has none."""
    (ta, fa, da), (tb, fb, db) = a, b
    if not (np.isfinite(fa) and np.isfinite(fb)):
        return None
    d1 = da + db - 3 * (fa - fb) / (ta - tb)
    square = d1 * d1 - da * db
    if square < 0:
        return None
    d2 = np.copysign(np.sqrt(square), tb - ta)
    below = db - da + 2 * d2
    return None if below == 0 else float(tb - (tb - ta) * (db + d2 - d1) / below)


def _between(low: list[float], high: list[float]) -> float:
    # Never nearer to an end than a tenth of the bracket, which therefore shrinks for sure.
    ends = sorted((low[0], high[0]))
    margin = 0.1 * (ends[1] - ends[0])
    t = _cubic(low, high)
    return (ends[0] + ends[1]) / 2 if t is None else float(min(max(t, ends[0] + margin), ends[1] - margin))


def _beyond(before: list[float], last: list[float]) -> float:
    t = _cubic(before, last)
    return 2 * last[0] if t is None or t <= last[0] else float(min(max(t, 1.1 * last[0]), 10 * last[0]))
