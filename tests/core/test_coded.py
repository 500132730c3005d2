"""Coded matrices: the same products as the dense ones, in a fraction of the memory, from preparation to fitted model."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import hansa
from hansa.algorithms.lbfgs import LBFGS
from hansa.algorithms.lloyd import Lloyd
from hansa.core.coded import SPAN, Coded
from hansa.data.preparation import WIDE
from hansa.learners.kmeans import KMeans
from hansa.learners.sklearn import Sklearn
from tests.conformance.problem import same_bits


@st.composite
def matrices(draw: Any) -> np.ndarray:
    """Mostly zeros: one-hot columns, scaled ones, columns of any numbers, empty columns and rows."""
    rows, columns = draw(st.integers(0, 40)), draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    kinds = [draw(st.sampled_from(("ones", "scaled", "numbers", "empty"))) for _ in range(columns)]
    there = random.random((rows, columns)) < draw(st.floats(0, 1))
    values = {"ones": 1.0, "scaled": 2.5, "numbers": random.standard_normal((rows, 1)), "empty": 0.0}
    return np.hstack([there[:, [j]] * (np.zeros((rows, 1)) + values[kind]) for j, kind in enumerate(kinds)])


@settings(max_examples=60)
@given(matrices(), st.integers(1, 3))
def test_products_are_those_of_the_dense_matrix(dense: np.ndarray, outputs: int) -> None:
    coded = Coded.of(sparse.csr_matrix(dense))
    random = np.random.default_rng(0)
    right, left = random.standard_normal((dense.shape[1], outputs)), random.standard_normal((outputs, len(dense)))
    weight = random.random(len(dense))
    assert coded.shape == dense.shape
    assert np.array_equal(np.asarray(coded), dense)
    np.testing.assert_allclose(coded @ right, dense @ right, atol=1e-12)
    np.testing.assert_allclose(coded @ right[:, 0], dense @ right[:, 0], atol=1e-12)
    np.testing.assert_allclose(left @ coded, left @ dense, atol=1e-12)
    np.testing.assert_allclose(left[0] @ coded, left[0] @ dense, atol=1e-12)
    np.testing.assert_allclose(coded.gram(weight), dense.T @ (weight[:, None] * dense), atol=1e-12)
    some = random.permutation(len(dense))[: len(dense) // 2]
    assert np.array_equal(np.asarray(coded[some]), dense[some])
    assert np.array_equal(coded.take(some), dense[some])
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(coded))), dense)  # noqa: S301  # its own pickle


def test_longer_than_a_span_and_wider_than_two_bytes() -> None:
    random = np.random.default_rng(0)
    rows, columns = 2 * SPAN + 17, 70_000
    at = random.integers(columns, size=rows)
    matrix = sparse.csr_matrix((np.ones(rows), (np.arange(rows), at)), shape=(rows, columns))
    coded, weights = Coded.of(matrix), random.standard_normal(columns)
    assert coded.codes.dtype == np.uint32
    np.testing.assert_allclose(coded @ weights, weights[at], rtol=1e-15)
    np.testing.assert_allclose(weights[:rows] @ coded, weights[:rows] @ matrix, atol=1e-12)


def test_an_entry_takes_two_bytes() -> None:
    random = np.random.default_rng(0)
    hot = OneHotEncoder().fit_transform(random.integers(300, size=(10_000, 2)))
    assert Coded.of(hot).nbytes == 10_000 * 2 * 2


def flights(rows: int = 3000) -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(1)
    x = pd.DataFrame({
        "distance": random.gamma(2.0, 400.0, rows),
        "origin": [f"o{k}" for k in random.zipf(1.5, rows) % 90],
        "destination": [f"d{k}" for k in random.integers(80, size=rows)],
    })  # fmt: skip
    late = 0.001 * x["distance"] + (x["origin"] < "o4") + random.standard_normal(rows)
    return x, (late > 1.4).astype(np.int64).to_numpy()


def pipeline(estimator: Any, *, dense: bool) -> Any:
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=not dense)
    parts = [("numbers", StandardScaler(), ["distance"]), ("categories", encoder, ["origin", "destination"])]
    return make_pipeline(ColumnTransformer(parts), estimator)


def run_of(tmp_path: Path, learner: Any, algorithm: Any, **more: Any) -> hansa.Run:
    x, y = flights()
    job = hansa.Job(
        data=hansa.from_arrays(x, y, clients=[f"c{k % 5}" for k in range(len(y))]), learner=learner, algorithm=algorithm,
        rounds=hansa.Rounds(count=60, block=2), **more,
    )  # fmt: skip
    return hansa.run(job, directory=tmp_path, quiet=True)


ALGORITHMS = {
    "newton": hansa.Newton(),
    "lbfgs": LBFGS(),
    "fedavg": hansa.FedAvg(local=hansa.Local(epochs=1, batch_size=64)),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())
def test_a_sparse_pipeline_trains_what_the_dense_one_does(algorithm: Any, tmp_path: Path) -> None:
    ours, dense = (run_of(tmp_path, pipeline(LogisticRegression(C=0.5), dense=d), algorithm) for d in (False, True))
    assert len(ours.params["coef"][0]) >= WIDE
    for name, value in dense.params.items():
        np.testing.assert_allclose(ours.params[name], value, rtol=0, atol=1e-9)
    for name, number in dense.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], number, rtol=1e-9)
    assert ours.model[0].named_transformers_["categories"].sparse_output
    x, _ = flights()
    np.testing.assert_allclose(ours.model.predict_proba(x), dense.model.predict_proba(x), atol=1e-9)


def test_one_gradient_of_both_is_the_same_to_rounding() -> None:
    from hansa.core.blocks import Client, LoadedBlock, Table
    from hansa.core.contracts import Schema

    x, y = flights(500)
    transformer = pipeline(LogisticRegression(), dense=False)[0]
    wide = transformer.fit_transform(x)
    bound = Sklearn(estimator=LogisticRegression()).bind(Schema((), (wide.shape[1],), "float64", (0, 1), 500))
    random = np.random.default_rng(0)
    params = {name: random.standard_normal(value.shape) for name, value in bound.init(0).items()}
    told = []
    for features in (Coded.of(wide), wide.toarray()):
        block = LoadedBlock(0, (Client("a", dict, {}, 500),), (bound.arrays(Table(features, y)),), np.ones(1), 0, 1)
        told.append(bound.hessian(params, block).values)
    for name, value in told[1].items():
        np.testing.assert_allclose(told[0][name], value, rtol=0, atol=1e-12)


def test_the_standard_preparation_is_sparse_where_there_are_many_categories(tmp_path: Path) -> None:
    run = run_of(tmp_path, LogisticRegression(), hansa.Newton(), preparation=hansa.Standard())
    assert run.model[-2].sparse_output_
    few = hansa.Standard().build({"a": "category"}, {}, {"a": ["x", "y"]})
    assert not few.transformers[0][1][-1].sparse_output


def test_every_engine_gets_the_same_bits_from_codes(tmp_path: Path) -> None:
    learner = pipeline(LogisticRegression(), dense=False)
    inline, processes = (run_of(tmp_path, learner, hansa.Newton(), engine=e) for e in (hansa.Inline(), hansa.Processes(workers=2)))
    assert same_bits(inline.params, processes.params)


def test_kmeans_takes_codes(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path, KMeans(clusters=3), Lloyd(), preparation=pipeline(LogisticRegression(), dense=dense)[0])
        for dense in (False, True)
    ]
    assert runs[0].model[-1].cluster_centers_.shape[1] >= WIDE
    np.testing.assert_allclose(runs[0].params["centers"], runs[1].params["centers"], atol=1e-9)
    np.testing.assert_allclose(runs[0].metrics["test/inertia"], runs[1].metrics["test/inertia"], rtol=1e-9)
