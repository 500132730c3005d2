"""Rounds that models take whose columns are split over clients: `python -m benchmarks.by_columns` prints the table of
docs/model-parallel.md.

A cell is "k of n": from round k on all coefficients stay within 1e-6 (of the largest) of the solution, and the run ended by itself after
n rounds. Columns are standardised, all rows train, and clients have equal numbers of columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import hansa
from hansa import opening, training
from hansa.data import Split, from_arrays
from hansa.data.features import Features
from hansa.job import Job, Rounds

NEAR = 1e-6
METHODS = (
    ("coordinate_descent", hansa.CoordinateDescent(), 400),
    ("the same, `memory = 0`", hansa.CoordinateDescent(memory=0), 400),
    ("sharing_admm", hansa.SharingADMM(), 1500),
    ("the same, `memory = 0`", hansa.SharingADMM(memory=0), 1500),
)
"""Each with the most rounds that it is given."""

PROBLEMS = (
    ("diabetes", "Ridge(alpha=1)", Ridge(alpha=1), (2, 5, 10)),
    ("diabetes", "Lasso(alpha=0.5)", Lasso(alpha=0.5), (2, 5, 10)),
    ("breast_cancer", "LogisticRegression(C=1)", LogisticRegression(C=1), (2, 5, 30)),
    (
        "breast_cancer",
        "LogisticRegression(C=0.1, l1_ratio=1)",
        LogisticRegression(C=0.1, l1_ratio=1, solver="saga", max_iter=100_000, tol=1e-8),
        (2, 5, 30),
    ),
    (
        "breast_cancer",
        "LogisticRegression(C=1, l1_ratio=1)",
        LogisticRegression(C=1, l1_ratio=1, solver="saga", max_iter=1_000_000, tol=1e-8),
        (4,),
    ),
)


def main() -> None:
    print(f"| | clients | {' | '.join(name for name, _, _ in METHODS)} |", "|---|" + "---:|" * (1 + len(METHODS)), sep="\n")
    for data, name, estimator, splits in PROBLEMS:
        x, y = (load_diabetes if data == "diabetes" else load_breast_cancer)(return_X_y=True)
        x = StandardScaler().fit_transform(x)
        best = solution(x, y, estimator)
        for place, clients in enumerate(splits):
            cells = [cell(list(path(x, y, estimator, method, clients, most)), best, most) for _, method, most in METHODS]
            print(
                f"| {f'{data}, `{name}`' if not place else ''} | {clients} | {' | '.join(cells)} |".replace("|  |", "| |"),
                flush=True,
            )


def path(x: np.ndarray, y: np.ndarray, estimator: Any, algorithm: Any, clients: int, most: int) -> Iterator[np.ndarray]:
    """The coefficients after every round, until the run ends by itself or has taken most."""
    job = Job(
        data=from_arrays(x, y), learner=estimator, algorithm=algorithm, partition=Features(parts=clients), split=Split(test=0.0),
        rounds=Rounds(count=most),
    )  # fmt: skip
    setting = opening.open_setting(job, opening.clients_of(job))
    try:
        for state, _ in training.train(setting, training.prepare(setting)):
            yield state["algorithm"]["params"]["coef"]
    finally:
        setting.engine.stop()


def cell(path: list[np.ndarray], best: np.ndarray, most: int) -> str:
    apart = np.array([np.abs(coef - best).max() for coef in path]) / np.abs(best).max()
    if len(path) == most:
        return f"over {most:,}"
    far = np.flatnonzero(apart > NEAR)
    return f"{far[-1] + 2} of {len(path)}" if apart[-1] <= NEAR else f"ended {apart[-1]:.0e} away after {len(path)}"


def solution(x: np.ndarray, y: np.ndarray, estimator: Any) -> np.ndarray:
    """scikit-learn's coefficients, (1, columns), to all digits."""
    if not isinstance(estimator, LogisticRegression):
        return np.atleast_2d(estimator.__class__(**{**estimator.get_params(), "tol": 1e-14, "max_iter": 1_000_000}).fit(x, y).coef_)
    fitted = estimator.fit(x, y)
    w, sparse = np.append(fitted.coef_[0], fitted.intercept_), estimator.solver == "saga"
    own = np.append(np.flatnonzero(fitted.coef_[0]) if sparse else np.arange(x.shape[1]), x.shape[1])
    z = np.column_stack([x, np.ones(len(x))])[:, own]
    flat = np.append(np.ones(len(own) - 1), 0.0) / estimator.C  # the intercept is not penalised
    for _ in range(50):  # Newton's method, on the columns and with the signs that scikit-learn has found
        p = expit(z @ w[own])
        pull = flat * np.sign(w[own]) if sparse else flat * w[own]
        bend = (z * (p * (1 - p))[:, None]).T @ z + (0.0 if sparse else np.diag(flat))
        w[own] -= np.linalg.solve(bend, z.T @ (p - y) + pull)
    return w[None, :-1]


if __name__ == "__main__":
    main()
