"""Fits of models whose columns are split, in memory, and what they are held against: scikit-learn on the whole table."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.preprocessing import StandardScaler

from hansa import judging, opening, training
from hansa.data import Split, from_arrays
from hansa.data.features import Features
from hansa.engines.inline import Inline
from hansa.job import Job, Rounds

LOADERS = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer, "iris": load_iris}


class Fitted(NamedTuple):
    params: dict[str, np.ndarray]
    model: Any
    rounds: int
    ended: str


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Standardised columns, and labels."""
    x, y = LOADERS[name](return_X_y=True)
    return StandardScaler().fit_transform(x), y


def dealt(columns: int, clients: int, seed: int) -> Features:
    """Any assignment of columns to clients, each with at least one, the labels with the last."""
    random = np.random.default_rng(seed)
    whose = np.concatenate([np.arange(clients), random.integers(0, clients, columns - clients)])
    groups = {f"c{k}": tuple(f"x{j}" for j in random.permutation(np.flatnonzero(whose == k))) for k in range(clients)}
    return Features(groups=groups, labels=f"c{clients - 1}")


def fit(
    x: Any, y: Any, estimator: Any, algorithm: Any, partition: Features, *, count: int = 2000, clients: float = 1.0,
    preparation: Any = None, engine: Any = None,
) -> Fitted:  # fmt: skip
    """All rows are for training."""
    job = Job(
        data=from_arrays(x, y), learner=estimator, algorithm=algorithm, partition=partition, split=Split(test=0.0),
        rounds=Rounds(count=count, clients=clients), preparation=preparation, engine=engine or Inline(),
    )  # fmt: skip
    setting = opening.open_setting(job, opening.clients_of(job))
    try:
        state = training.prepare(setting)
        for after, _ in training.train(setting, state):
            state = after
        params = judging.chosen_params(job, state)
        return Fitted(
            params, judging.exported(setting, state["preparation"], params), state["round"], training.why_stopped(job, state)
        )
    finally:
        setting.engine.stop()


def sparse_logistic(x: np.ndarray, y: np.ndarray, estimator: Any) -> tuple[np.ndarray, float]:
    """(coef, intercept) of a LogisticRegression with L1 that scikit-learn has fitted to a few digits, to all of them: Newton's method with
    the signs that it found. Holds the result to the optimality conditions, so that the signs cannot have been wrong."""
    c, w, b = estimator.C, estimator.coef_[0].copy(), float(estimator.intercept_[0])
    own, signs = np.flatnonzero(w), np.sign(w[w != 0])
    z = np.column_stack([x[:, own], np.ones(len(x))])
    v = np.append(w[own], b)
    for _ in range(50):
        p = expit(z @ v)
        v -= np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z, z.T @ (p - y) + np.append(signs / c, 0.0))
    w[own], b = v[:-1], v[-1]
    gradient = c * x.T @ (expit(x @ w + b) - y)
    assert np.array_equal(np.sign(w[own]), signs)
    assert np.allclose(gradient[own], -signs, rtol=0, atol=1e-9)
    assert (np.abs(np.delete(gradient, own)) < 1).all()
    return w, b


def assert_equal(model: Any, coef: np.ndarray, intercept: Any) -> None:
    """To 1e-6 of the largest coefficient."""
    scale = np.abs(coef).max()
    np.testing.assert_allclose(np.ravel(model.coef_) / scale, np.ravel(coef) / scale, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-6, atol=1e-6)


def assert_as_scikit_learn(ours: Any, theirs: Any, data: str, algorithm: Any, partition: Features) -> None:
    """A model of columns that are split is scikit-learn's of the whole table; of an L1 penalty with the same zeros."""
    x, y = table(data)
    fitted = fit(x, y, ours, algorithm, partition)
    theirs.fit(x, y)
    assert fitted.ended.startswith("converged")
    assert_equal(fitted.model, theirs.coef_, theirs.intercept_)
    assert np.array_equal(fitted.model.coef_ == 0, theirs.coef_ == 0)
