"""A draw depends on (seed, round, client, purpose) and on nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.randomness import combine, derive, generator, permutations, uniforms
from hansa.core.sampling import cohort, cohort_size

keys = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8, unique=True)


@given(keys, st.data())
def test_permutations_are_permutations_and_ignore_the_neighbours(values: list[int], data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, 30), min_size=len(values), max_size=len(values))))
    together = permutations(np.array(values, dtype=np.uint64), rows)
    for k, count in enumerate(rows):
        own = together[k, :count]
        assert sorted(own) == list(range(count))
        alone = permutations(np.array(values[k : k + 1], dtype=np.uint64), rows[k : k + 1])[0, :count]
        assert np.array_equal(own, alone)


def test_different_paths_give_different_keys() -> None:
    paths = [(seed, word, number) for seed in range(5) for word in ("a", "b") for number in range(50)]
    assert len({derive(*path) for path in paths}) == len(paths)
    assert derive(1, "2") != derive("1", 2)
    assert derive("ab", "c") != derive("a", "bc")


def test_keys_are_the_same_on_every_machine() -> None:
    assert derive(0, "round", 1) == 0x684E753A4698A9EC
    assert generator(0, "x").integers(2**32) == 1512179533
    assert permutations(np.array([1, 2], dtype=np.uint64), np.array([5, 5])).tolist() == [[4, 3, 0, 1, 2], [4, 0, 2, 1, 3]]


def test_uniforms_are_uniform() -> None:
    draws = uniforms(combine(np.arange(1000, dtype=np.uint64), 7), 100)
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / 12) < 0.002
    counts = np.bincount((draws * 16).astype(int).ravel(), minlength=16)
    assert ((counts - 6250) ** 2 / 6250).sum() < 40  # chi squared, 15 degrees of freedom


def test_shuffles_are_fair() -> None:
    """Every row is as likely as any other to come first."""
    first = permutations(combine(np.arange(6000, dtype=np.uint64), 3), np.full(6000, 6))[:, 0]
    counts = np.bincount(first, minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 25


@given(st.integers(1, 10**6), st.integers(1, 100), st.integers(0, 5), st.integers(0, 5))
def test_cohorts_are_sorted_distinct_and_repeatable(population: int, size: int, seed: int, round: int) -> None:
    drawn = cohort(population, size, seed, round)
    assert len(drawn) == min(size, population)
    assert (np.diff(drawn) > 0).all()
    assert drawn[0] >= 0 and drawn[-1] < population
    assert np.array_equal(drawn, cohort(population, size, seed, round))


def test_cohort_size() -> None:
    assert cohort_size(100, 0.1) == 10
    assert cohort_size(100, 1.0) == 100
    assert cohort_size(100, 7) == 7
    assert cohort_size(3, 0.01) == 1
    assert cohort_size(3, 50) == 3
