"""Which clients take part in a round: a pure function of (seed, round), at the cost of the cohort and not of the population."""

from __future__ import annotations

from math import ceil

import numpy as np

from hansa.core.randomness import generator


def cohort(population: int, size: int, seed: int, round: int) -> np.ndarray:
    """Positions of the round's clients, ascending, drawn uniformly without replacement; all of them when ``size`` covers all."""
    return sample(population, size, seed, "round", round, "cohort")


def sample(population: int, size: int, *path: int | str) -> np.ndarray:
    """``size`` positions of a population, ascending, the same ones for the same path; all of them when ``size`` covers all."""
    if size >= population:
        return np.arange(population)
    return np.sort(generator(*path).choice(population, size=size, replace=False, shuffle=False))


def cohort_size(population: int, clients: float) -> int:
    """A fraction in (0, 1] of the population, rounded up, or a whole number of clients above one."""
    wanted = ceil(clients * population - 1e-9) if clients <= 1 else int(clients)
    return max(1, min(population, wanted))
