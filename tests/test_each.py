"""Many models: each client's is what it would be if there were no other client, and one that fails leaves the others alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hansa
from hansa import training
from tests.conformance.problem import same_bits

KEYS = 12


def table() -> pd.DataFrame:
    """A regression per key, each with a slope of its own."""
    random = np.random.default_rng(3)
    frame = pd.DataFrame({"key": [f"shop-{k:02}" for k in range(KEYS) for _ in range(20 + k)]})
    frame["a"], frame["b"] = random.standard_normal((2, len(frame)))
    frame["y"] = frame["key"].str[-2:].astype(float) * frame["a"] - frame["b"] + 0.1 * random.standard_normal(len(frame))
    return frame


def job(**changes: Any) -> hansa.Job:
    one = hansa.Job(
        data=hansa.from_table(table(), "y", "key"), learner=make_pipeline(StandardScaler(), Ridge(alpha=0.1)),
        algorithm=hansa.Newton(), rounds=hansa.Rounds(count=20),
    )  # fmt: skip
    return replace(one, **changes)


@pytest.mark.parametrize("engine", [hansa.Inline(), hansa.Processes(workers=2)], ids=lambda engine: engine.name)
@pytest.mark.parametrize("algorithm", [hansa.Newton(), hansa.Scaffold(local=hansa.Local(batch_size=4))], ids=lambda a: a.name)
def test_each_model_has_the_bits_that_it_has_alone(engine: Any, algorithm: Any) -> None:
    one = job(engine=engine, algorithm=algorithm, rounds=hansa.Rounds(count=3, clients=0.5))
    many = hansa.fit_each(one, at_once=5)
    assert [own.client for own in many.table] == [f"shop-{k:02}" for k in range(KEYS)] == list(many.models)
    for client, own in zip(training.clients_of(one), many.table, strict=True):
        setting = training.open_setting(replace(one, engine=hansa.Inline()), [client], lenient=True)
        state = training.prepare(setting)
        for after, record in training.train(setting, state):
            state, last = after, record
        setting.engine.stop()
        assert same_bits(many.params[client.id], state["algorithm"]["params"])
        assert own.metrics == {name[5:]: value for name, value in last.items() if name.startswith("test/")}
        assert (own.rows, own.rounds) == (client.rows, state["round"])


def test_each_model_is_scikit_learns_on_the_rows_of_its_key() -> None:
    one = job(split=hansa.Split(test=0.0))
    many = hansa.fit_each(one)
    for key, rows in table().groupby("key"):
        theirs = make_pipeline(StandardScaler(), Ridge(alpha=0.1)).fit(rows[["a", "b"]], rows["y"])
        np.testing.assert_allclose(many.models[key].predict(rows[["a", "b"]]), theirs.predict(rows[["a", "b"]]), rtol=1e-8)
    assert all(own.metrics == {} and own.status == "finished" for own in many.table)


def test_a_client_from_which_nothing_can_be_learned_is_a_row() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((90, 3)), random.integers(0, 2, 90)
    owner = np.repeat(["one", "two", "three"], 30)
    y[owner == "two"] = 1
    one = hansa.Job(data=hansa.from_arrays(x, y, owner), learner=LogisticRegression(), algorithm=hansa.Newton())
    told: list[tuple[int, int]] = []
    many = hansa.fit_each(one, progress=lambda done, of: told.append((done, of)))
    assert [(own.client, own.status) for own in many.table] == [("one", "finished"), ("three", "finished"), ("two", "failed")]
    assert many.table[2].ended == (
        "InputError: data: every training row of all clients has the label 1; at least two classes are needed"
    )
    assert list(many.models) == ["one", "three"] == list(many.params)
    assert told == [(1, 3), (2, 3), (3, 3)]


class Unlucky(hansa.Newton):
    """Newton's method that raises at one client."""

    def work(self, learner, message, block):  # type: ignore[no-untyped-def]
        if block.clients[0].id == "shop-07":
            raise OSError("no luck today")
        return super().work(learner, message, block)


def test_what_one_client_raises_touches_no_other() -> None:
    many, whole = hansa.fit_each(job(algorithm=Unlucky())), hansa.fit_each(job())
    failed = [own for own in many.table if own.status == "failed"]
    assert [own.client for own in failed] == ["shop-07"]
    assert "OSError: no luck today" in failed[0].ended and "\n" not in failed[0].ended
    assert all(same_bits(params, whole.params[client]) for client, params in many.params.items())
    assert len(many.params) == KEYS - 1
