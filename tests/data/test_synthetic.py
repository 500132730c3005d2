"""Synthetic(alpha, beta): made from (seed, client) alone, and as its authors define it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import InputError
from hansa.data import IID, Column, Fixed, Holders, Lognormal, Split, Synthetic
from hansa.data.recipes import central, clients, task_of
from hansa.options import build

SMALL = Synthetic(clients=200, rows=Fixed(count=40), dtype="float64")


def many(source: Synthetic, seed: int = 0) -> list[np.ndarray]:
    return [source.table(position, seed).x for position in range(source.clients)]


def same(first: Any, second: Any) -> bool:
    return all(
        np.array_equal(first[name].x, second[name].x) and np.array_equal(first[name].y, second[name].y) for name in first | second
    )


@settings(max_examples=20)
@given(position=st.integers(0, 199), seed=st.integers(0, 2**32))
def test_a_client_is_a_function_of_the_seed_and_its_number(position: int, seed: int) -> None:
    few, population = (clients(SMALL, Column(), Split(0.1, 0.2), seed) for _ in range(2))
    other = (position + 1) % 200
    population[other].load()  # whoever was loaded before
    sent = pickle.loads(pickle.dumps(population))  # noqa: S301  # of our own making
    loaded = few[position].load()
    assert same(loaded, population[position].load())
    assert same(loaded, sent[position].load())
    assert same(loaded, pickle.loads(pickle.dumps(few[position])).load())  # noqa: S301  # of our own making
    assert not np.array_equal(loaded["train"].x, population[other].load()["train"].x)
    assert few[position].rows == len(loaded["train"]) == 28


def test_nothing_is_stored_and_little_is_sent() -> None:
    population = clients(Synthetic(clients=10_000_000), Column(), Split(), 0)
    assert isinstance(population.holders.source, Holders)
    assert len(pickle.dumps(population)) < 1000
    assert len(pickle.dumps(population[9_999_999])) < 1000
    assert population[-1].id == population[9_999_999].id == "client-9999999"
    assert [client.id for client in population[5:7]] == ["client-0000005", "client-0000006"]
    with pytest.raises(IndexError, match="there are 10,000,000 clients"):
        population[10_000_000]


def test_features_have_the_spectrum_of_the_paper() -> None:
    """diag(j^-1.2) within a client; between clients B_k, of standard deviation beta, plus v_k's own 1 for every feature."""
    source = Synthetic(clients=400, rows=Fixed(count=60), beta=3.0, dtype="float64")
    xs = many(source)
    within = np.mean([x.var(axis=0, ddof=1) for x in xs], axis=0)
    np.testing.assert_allclose(within, np.arange(1, 61) ** -1.2, rtol=0.06)
    means = np.array([x.mean(axis=0) for x in xs])
    assert means.mean(axis=1).std() == pytest.approx(np.sqrt(9 + 1 / 60), rel=0.1)
    assert (means - means.mean(axis=1, keepdims=True))[:, 20:].std() == pytest.approx(1.0, rel=0.05)


def test_beta_moves_the_features_and_alpha_the_models() -> None:
    still = Synthetic(clients=100, rows=Fixed(count=50), alpha=0.0, beta=0.0)
    spread = [np.std([x.mean() for x in many(Synthetic(clients=100, rows=Fixed(count=50), beta=b))]) for b in (0.0, 0.5, 2.0)]
    assert spread[0] < 0.3 < spread[1] < 1.0 < spread[2]
    for source in (still, Synthetic(clients=100, rows=Fixed(count=50), alpha=5.0, beta=0.0)):
        labels = np.array([np.bincount(source.table(k, 0).y, minlength=10) for k in range(100)])
        assert (labels.sum(axis=0) > 0).all()


def test_iid_has_one_model_for_all() -> None:
    source = Synthetic(clients=60, rows=Fixed(count=80), iid=True, dtype="float64")
    tables = [source.table(k, 3) for k in range(60)]
    x, y = np.concatenate([table.x for table in tables]), np.concatenate([table.y for table in tables])
    np.testing.assert_allclose(x.mean(axis=0), 0.0, atol=0.06)
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e4, max_iter=2000).fit(x[:4000], y[:4000])
    assert fitted.score(x[4000:], y[4000:]) > 0.9


def test_sizes_are_those_of_the_authors_code() -> None:
    """Whole part of a lognormal(4, 2), plus 50; each client's size is its own."""
    source, places = Synthetic(clients=50_000), np.arange(50_000)
    sizes = source.sizes(places, 1)
    assert sizes.min() >= 50
    logs = np.log(sizes[sizes > 50] - 50 + 0.5)
    assert np.median(logs) == pytest.approx(4.0, abs=0.1)
    assert np.subtract(*np.quantile(logs, [0.84, 0.5])) == pytest.approx(2.0, rel=0.05)
    assert np.array_equal(source.sizes(places[::-1], 1), sizes[::-1])
    assert len(source.table(7, 1)) == sizes[7]
    assert not np.array_equal(source.sizes(places, 2), sizes)


def test_it_is_written_in_a_job() -> None:
    table = {"name": "synthetic", "clients": 50, "rows": {"name": "fixed", "count": 20}, "alpha": 0.5}
    assert build("data", table) == Synthetic(clients=50, rows=Fixed(count=20), alpha=0.5)
    assert build("data", {"name": "synthetic", "rows": "lognormal"}) == Synthetic(rows=Lognormal())
    assert task_of(SMALL) == "classification"
    assert central(SMALL) is None


def test_what_cannot_work_is_said_in_one_sentence() -> None:
    with pytest.raises(InputError, match="200 clients of its own and no rows to deal to others; leave"):
        clients(SMALL, IID(clients=3), Split(), 0)
    with pytest.raises(InputError, match="most = 10 is below least = 50"):
        Lognormal(most=10)
    with pytest.raises(InputError, match=r"client client-000: has 1 rows, and .* leaves none for training"):
        clients(Synthetic(rows=Fixed(count=1)), Column(), Split(test=0.6), 0)
