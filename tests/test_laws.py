"""The laws that a newcomer may check: what federated learning must equal when nothing stands in its way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import BaggingClassifier, BaggingRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import hansa
from hansa.core.randomness import combine, derive, permutations
from tests.conformance.problem import same_bits

NUMBERS = ["age", "trestbps", "chol", "thalch", "oldpeak", "ca", "fbs", "exang"]
CATEGORIES = ["sex", "cp", "restecg", "slope", "thal"]


def pipeline(estimator: Any) -> Any:
    numeric = make_pipeline(SimpleImputer(), StandardScaler())
    categorical = make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    )
    return make_pipeline(ColumnTransformer([("numbers", numeric, NUMBERS), ("categories", categorical, CATEGORIES)]), estimator)


def quick(job: hansa.Job, path: Path) -> hansa.Run:
    return hansa.run(job, directory=path, quiet=True)


def pooled_training_rows(job: hansa.Job) -> tuple[pd.DataFrame, np.ndarray]:
    from hansa.opening import clients_of

    tables = [client.load()["train"] for client in clients_of(job)]
    return pd.concat([table.x for table in tables], ignore_index=True), np.concatenate([table.y for table in tables])


def test_newton_on_four_hospitals_equals_scikit_learn_on_pooled_rows(tmp_path: Path) -> None:
    job = hansa.Job(
        data=hansa.BuiltIn("heart_disease"),
        learner=pipeline(LogisticRegression(C=0.7)),
        algorithm=hansa.Newton(),
        rounds=hansa.Rounds(count=30),
    )
    run = quick(job, tmp_path)
    x, y = pooled_training_rows(job)
    theirs = pipeline(LogisticRegression(C=0.7, solver="newton-cholesky", tol=1e-12, max_iter=1000)).fit(x, y)
    np.testing.assert_allclose(run.model[:-1].transform(x), theirs[:-1].transform(x), rtol=0, atol=1e-12)
    np.testing.assert_allclose(run.model[-1].coef_, theirs[-1].coef_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(run.model[-1].intercept_, theirs[-1].intercept_, rtol=0, atol=1e-6)
    assert np.array_equal(run.model.predict(x), theirs.predict(x))
    assert "converged" in run.ended


def arrays() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(x), y


@pytest.mark.parametrize("partition", [hansa.IID(clients=3), hansa.Features(parts=3)], ids=["rows", "columns"])
def test_a_pipeline_keeps_the_names_of_its_steps(partition: Any, tmp_path: Path) -> None:
    given = Pipeline([("gaps", SimpleImputer()), ("scale", StandardScaler()), ("risk", LogisticRegression())])
    algorithm = hansa.CoordinateDescent() if isinstance(partition, hansa.Features) else hansa.Newton()
    job = hansa.Job(
        data=hansa.BuiltIn("breast_cancer"), learner=given, algorithm=algorithm, partition=partition, rounds=hansa.Rounds(count=1)
    )
    model = quick(job, tmp_path).model
    assert isinstance(model["risk"], LogisticRegression)
    if isinstance(partition, hansa.Features):
        model = model[0].named_transformers_[model[0].transformers[0][0]]
        assert list(model.named_steps) == ["gaps", "scale"]
    else:
        assert list(model.named_steps) == ["gaps", "scale", "risk"]


def test_fedavg_with_one_client_is_centralised_sgd(tmp_path: Path) -> None:
    """The same mini-batches, written out by hand."""
    x, y = arrays()
    job = hansa.Job(
        data=hansa.from_arrays(x, y),
        learner=SGDClassifier(loss="log_loss", alpha=0.01),
        algorithm=hansa.FedAvg(local=hansa.Local(epochs=2, batch_size=32, learning_rate=0.1)),
        partition=hansa.IID(clients=1),
        split=hansa.Split(test=0.0),
        rounds=hansa.Rounds(count=3),
        seed=4,
    )
    run = quick(job, tmp_path)
    from hansa.opening import clients_of

    (client,) = clients_of(job)
    own = client.load()["train"]
    w, b, t = np.zeros(x.shape[1]), 0.0, np.where(own.y == 1, 1.0, -1.0)
    for round in (1, 2, 3):
        key = combine(np.array([client.key], dtype=np.uint64), derive(4, "round", round, "shuffle"))
        for epoch in (0, 1):
            order = permutations(combine(key, derive("epoch", epoch)), np.array([len(own)]))[0]
            for start in range(0, len(own), 32):
                chosen = order[start : start + 32]
                slope = -t[chosen] / (1 + np.exp(t[chosen] * (own.x[chosen] @ w + b))) / len(chosen)
                w, b = w - 0.1 * (slope @ own.x[chosen] + 0.01 * w), b - 0.1 * slope.sum()
    np.testing.assert_allclose(run.params["coef"][0], w, rtol=1e-9)
    np.testing.assert_allclose(run.params["intercept"][0], b, rtol=1e-9)


def shared(algorithm: Any, **changes: Any) -> hansa.Job:
    x, y = arrays()
    job = hansa.Job(
        data=hansa.from_arrays(x, y),
        learner=SGDClassifier(loss="log_loss", alpha=0.01),
        algorithm=algorithm,
        partition=hansa.Dirichlet(clients=6, alpha=0.5),
        rounds=hansa.Rounds(count=5, block=2),
    )
    return replace(job, **changes)


def test_fedavg_with_one_full_batch_step_is_gradient_descent(tmp_path: Path) -> None:
    from hansa.algorithms.server_optimizers import SGD

    local = hansa.Local(epochs=1, batch_size=0, learning_rate=0.3)
    averaged = quick(shared(hansa.FedAvg(local=local)), tmp_path).params
    descended = quick(shared(hansa.GradientDescent(server=SGD(learning_rate=0.3))), tmp_path).params
    for name in averaged:
        np.testing.assert_allclose(averaged[name], descended[name], rtol=1e-12, atol=1e-14)


def test_fedprox_without_mu_is_fedavg(tmp_path: Path) -> None:
    local = hansa.Local(epochs=2, batch_size=16)
    plain, proximal = (quick(shared(a), tmp_path).params for a in (hansa.FedAvg(local=local), hansa.FedProx(local=local, mu=0.0)))
    assert same_bits(plain, proximal)


def test_scaffold_in_its_first_round_is_fedavg(tmp_path: Path) -> None:
    """All control variates are zero at first."""
    local = hansa.Local(epochs=2, batch_size=16)
    jobs = [shared(a, rounds=hansa.Rounds(count=1)) for a in (hansa.FedAvg(local=local), hansa.Scaffold(local=local))]
    assert same_bits(*(quick(job, tmp_path).params for job in jobs))


@pytest.mark.parametrize("algorithm", [hansa.FedAvg(local=hansa.Local(batch_size=8)), hansa.Newton()], ids=lambda a: a.name)
def test_the_order_of_clients_changes_nothing(algorithm: Any, tmp_path: Path) -> None:
    """Clients are known by their ids: however their rows are put together, the bits are the same."""
    x, y = arrays()
    owner = np.array([f"site-{k % 5}" for k in range(len(y))])
    results = []
    for order in (range(5), (3, 1, 4, 0, 2)):
        rows = np.concatenate([np.flatnonzero(owner == f"site-{k}") for k in order])
        job = hansa.Job(
            data=hansa.from_arrays(x[rows], y[rows], clients=owner[rows]),
            learner=LogisticRegression(),
            algorithm=algorithm,
            rounds=hansa.Rounds(count=3, block=2),
        )
        results.append(quick(job, tmp_path).params)
    assert same_bits(*results)


def test_a_round_with_every_client_does_not_depend_on_how_they_are_weighted_when_they_are_equal(tmp_path: Path) -> None:
    x, y = arrays()
    owner = np.array([f"site-{k % 4}" for k in range(568)])
    job = hansa.Job(
        data=hansa.from_arrays(x[:568], y[:568], clients=owner),
        learner=LogisticRegression(),
        algorithm=hansa.FedAvg(),
        split=hansa.Split(test=0.0),
        rounds=hansa.Rounds(count=3),
    )
    by_rows = quick(job, tmp_path).params
    equal = quick(replace(job, rounds=replace(job.rounds, weighting="equal")), tmp_path).params
    for name in by_rows:
        np.testing.assert_allclose(by_rows[name], equal[name], rtol=1e-12)


def module() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(30, 4), nn.ReLU(), nn.Linear(4, 2))


def function() -> Any:
    return hansa.JaxLearner(model="hansa.learners.jax_models:perceptron", options={"widths": [4, 2]})


SMALL: dict[str, tuple[Any, Any]] = {
    "linear, fedavg": (lambda: LogisticRegression(), hansa.FedAvg()),
    "linear, fedprox": (lambda: SGDClassifier(), hansa.FedProx()),
    "linear, scaffold": (lambda: LogisticRegression(), hansa.Scaffold()),
    "linear, gradient_descent": (lambda: LogisticRegression(), hansa.GradientDescent()),
    "linear, lbfgs": (lambda: LogisticRegression(), hansa.LBFGS()),
    "numbers, newton": (lambda: Ridge(), hansa.Newton()),
    "mlp": (lambda: hansa.MLP(hidden=(4,)), hansa.FedAvg()),
    "numbers, mlp": (lambda: hansa.MLP(hidden=(4,), task="regression"), hansa.FedAvg(local=hansa.Local(learning_rate=0.001))),
    "torch": (module, hansa.FedAvg()),
    "jax": (function, hansa.FedAvg()),
    "forest": (lambda: RandomForestClassifier(n_estimators=4), hansa.Forest()),
    "numbers, forest": (lambda: RandomForestRegressor(n_estimators=4), hansa.Forest()),
    "one against the rest": (lambda: OneVsRestClassifier(LogisticRegression()), hansa.Newton()),
    "bagging": (lambda: BaggingClassifier(LogisticRegression(), n_estimators=2), hansa.Newton()),
    "numbers, bagging": (lambda: BaggingRegressor(Ridge(), n_estimators=2), hansa.Newton()),
    "kmeans": (lambda: KMeans(2), hansa.Lloyd()),
    "pca": (lambda: PCA(2), hansa.PrincipalComponents()),
}


@pytest.mark.parametrize("which", SMALL)
def test_a_client_whose_held_out_part_has_no_rows_changes_nothing_in_the_metrics(which: str, tmp_path: Path) -> None:
    """The metrics of a split are sums over its rows, whoever has none of them; where nobody has any, nothing is known."""
    learner, algorithm = SMALL[which]
    x, y = arrays()
    y = np.arange(len(x)) % 3 if which == "one against the rest" else x[:, 0] if which.startswith("numbers") else y
    owner = np.repeat(["large", "small", "middle"], [60, 2, 30])
    order = np.random.default_rng(1).permutation(len(x))[:92]  # both rows of the small client are for training
    job = hansa.Job(
        data=hansa.from_arrays(x[order], y[order], clients=owner, task="regression" if which.startswith("numbers") else None),
        learner=learner(),
        algorithm=algorithm,
        rounds=hansa.Rounds(count=2),
        seed=3,
    )
    run = quick(job, tmp_path)
    rows = {"large": 12, "middle": 6}
    own = run.by_client
    for name in own["large"]:
        assert np.isnan(own["small"][name])
        if name not in ("auc", "explained_variance"):  # their counts are no rows
            mean = sum(own[client][name] * count for client, count in rows.items()) / 18
            assert run.metrics[f"test/{name}"] == pytest.approx(mean, rel=1e-12)
    only = quick(replace(job, split=hansa.Split(test=0.008)), tmp_path)
    assert all(np.isnan(value) for name, value in only.metrics.items() if name.startswith("test/"))
    assert {name for name in only.metrics if name.startswith("test/")} == {f"test/{name}" for name in own["large"]}


def test_clients_that_are_smaller_than_their_folds_are_judged_on_what_they_have(tmp_path: Path) -> None:
    x, _ = arrays()
    job = hansa.Job(
        data=hansa.from_arrays(x[:60], x[:60, 0], clients=np.repeat(["large", "small", "single"], [56, 3, 1]), task="regression"),
        learner={"name": "sklearn", "estimator": "Ridge"},
        algorithm=hansa.Newton(),
        split=hansa.Split(test=0.0),
        rounds=hansa.Rounds(count=1),
    )
    found = hansa.search(job, {"learner.options.alpha": [1.0]}, folds=5, quiet=True, directory=tmp_path)
    assert np.isfinite(found.table[0].scores).all()


def test_a_best_model_cannot_be_chosen_where_nobody_has_validation_rows(tmp_path: Path) -> None:
    job = shared(
        hansa.FedAvg(), partition=hansa.IID(clients=190), split=hansa.Split(validation=0.1), evaluation=hansa.Evaluation(best=True)
    )
    with pytest.raises(hansa.InputError, match=r"no client has validation rows .* \(raise split.validation = 0.1"):
        quick(job, tmp_path)
