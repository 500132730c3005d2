"""scikit-learn estimators as learners: what is minimised is theirs, and what comes back is theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge, SGDClassifier, SGDRegressor
from sklearn.metrics import roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

import hansa
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.learners.linear import encode
from hansa.learners.measures import concordance
from hansa.learners.sklearn import DISTANCES, MARGINS, Sklearn, objective_of
from tests.conformance import problem

# scikit-learn has its own loss code for stochastic gradient descent; its one-row steps show the slope of every loss.


@pytest.mark.parametrize("loss", MARGINS)
def test_margin_losses_are_those_of_scikit_learn(loss: str) -> None:
    x, y = problem.rows("breast_cancer")
    theirs = SGDClassifier(
        loss=loss, alpha=0.0, learning_rate="constant", eta0=0.01, shuffle=False, fit_intercept=False, penalty=None
    )
    check_steps(theirs, x, y, classes=(0, 1))


@pytest.mark.parametrize("loss", DISTANCES)
def test_distance_losses_are_those_of_scikit_learn(loss: str) -> None:
    x, y = problem.rows("diabetes")
    theirs = SGDRegressor(
        loss=loss, alpha=0.0, learning_rate="constant", eta0=0.01, shuffle=False, fit_intercept=False, penalty=None, epsilon=0.3
    )
    check_steps(theirs, x, y, classes=None)


def check_steps(theirs: Any, x: np.ndarray, y: np.ndarray, classes: tuple[int, ...] | None) -> None:
    learner = Sklearn(estimator=theirs).bind(Schema((), x.shape[1:], "float64", classes, len(x)))
    w = np.zeros((1, x.shape[1]))
    for row in range(40):
        arguments = {} if classes is None else {"classes": np.array(classes)}
        theirs.partial_fit(x[row : row + 1], y[row : row + 1], **arguments)
        target = y[row : row + 1].astype(np.int64 if classes else np.float64)
        gradient, _ = learner.batch_gradient({"coef": w[None]}, x[None, row : row + 1], target[None], np.ones((1, 1)))
        w = w - 0.01 * gradient["coef"][0]
        np.testing.assert_allclose(w.ravel(), theirs.coef_.ravel(), rtol=1e-9, atol=1e-12)


def test_the_penalty_is_on_the_scale_of_the_mean() -> None:
    assert objective_of(LogisticRegression(C=0.5), 100, (0, 1)).l2 == pytest.approx(1 / 50)
    assert objective_of(Ridge(alpha=4.0), 100, None).l2 == pytest.approx(0.04)
    assert objective_of(SGDClassifier(alpha=0.3), 100, (0, 1)).l2 == 0.3
    assert objective_of(LogisticRegression(C=np.inf), 100, (0, 1)).l2 == 0.0
    sparse = objective_of(LogisticRegression(C=0.5, l1_ratio=0.25, solver="saga"), 100, (0, 1))
    assert (sparse.l1, sparse.l2) == (pytest.approx(0.005), pytest.approx(0.015))
    assert objective_of(Lasso(alpha=0.3), 100, None).l1 == 0.3
    net = objective_of(ElasticNet(alpha=0.4, l1_ratio=0.75), 100, None)
    assert (net.l1, net.l2) == (pytest.approx(0.3), pytest.approx(0.1))


REFUSED = {
    "class_weight": LogisticRegression(class_weight="balanced"),
    "penalty": SGDClassifier(penalty="l1"),
    "positive": Ridge(positive=True),
    "multi_class": LinearSVC(multi_class="crammer_singer"),
    "average": SGDClassifier(average=True),
}


@pytest.mark.parametrize("option", REFUSED)
def test_options_that_a_sum_cannot_honour_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=option):
        Sklearn(estimator=REFUSED[option]).unfitted  # noqa: B018  # the property does the check


VALUES: list[tuple[Any, str]] = [
    (
        LogisticRegression(C=-1),
        r"learner LogisticRegression: C = -1 is a value that scikit-learn refuses \(write a float in the range",
    ),
    (LogisticRegression(C=0), "C = 0"),
    (LogisticRegression(C="a"), "C = 'a'"),
    (LogisticRegression(solver="foo"), "solver = 'foo'"),
    ({"name": "sklearn", "estimator": "LogisticRegression", "options": {"penalty": "foo"}}, "penalty = 'foo'"),
    (Ridge(alpha=-1), "alpha = -1"),
    (Ridge(alpha="a"), "alpha = 'a'"),
    (make_pipeline(StandardScaler(), Ridge(alpha="a")), "alpha = 'a'"),
    (RandomForestClassifier(n_estimators=-1), "n_estimators = -1"),
    (RandomForestClassifier(criterion="foo"), "criterion = 'foo'"),
    (OneVsRestClassifier(LogisticRegression(C=-1)), "C = -1"),
    (BaggingClassifier(LogisticRegression(), n_estimators=0), "n_estimators = 0"),
    (KMeans(0), "n_clusters = 0"),
]


def job(given: Any, algorithm: Any) -> hansa.Job:
    return hansa.Job(data=hansa.BuiltIn("iris"), partition=hansa.IID(clients=3), learner=given, algorithm=algorithm)


@pytest.mark.parametrize(("given", "said"), VALUES)
def test_values_that_scikit_learn_refuses_are_refused_with_the_job(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        job(given, hansa.Newton())


OTHERS: list[tuple[Any, str]] = [
    ("RandomForestClassifier", "learner.name = 'forest'"),
    ("KMeans", "learner.name = 'kmeans'"),
    ("LogisticRegresion", "did you mean 'LogisticRegression'"),
    ("KNeighborsClassifier", "Hansa trains LogisticRegression, .*, perceptrons, and modules"),
    (MLPClassifier(), r"nearest to it is hansa.MLP\(\)"),
    (MLPRegressor(), r"nearest to it is hansa.MLP\(task='regression'\)"),
    (DecisionTreeClassifier(), r"nearest to it is RandomForestClassifier\(\)"),
    (SVC(), r"nearest to it is LinearSVC\(\)"),
    (GaussianNB(), "Hansa trains LogisticRegression, .*, perceptrons, and modules"),
    (LogisticRegression, "LogisticRegression is a class, not an object of it"),
    (make_pipeline(StandardScaler(), LogisticRegression), "LogisticRegression is a class, not an object of it"),
    (RandomForestClassifier(), r"write algorithm.name = 'forest'; in Python hansa.Forest\(\)"),
    (SGDClassifier(), r"write algorithm.name = 'lbfgs' or 'fedavg'"),
]


@pytest.mark.parametrize(("given", "said"), OTHERS)
def test_for_what_cannot_be_trained_so_it_is_said_what_can(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        job({"name": "sklearn", "estimator": given} if isinstance(given, str) else given, hansa.Newton())


def test_a_regression_of_text_is_not_suggested(tmp_path: Path) -> None:
    data = hansa.from_arrays(np.arange(24.0).reshape(12, 2), np.resize(["a", "b"], 12), clients=np.repeat(["k", "l"], 6))
    with pytest.raises(InputError, match=r"choose a classification learner$"):
        hansa.run(hansa.Job(data=data, learner=Ridge(), algorithm=hansa.Newton()), directory=tmp_path, quiet=True)


def test_the_estimator_given_is_not_touched() -> None:
    given = LogisticRegression(C=2.0)
    learner = Sklearn(estimator=given).bind(problem.schema("iris"))
    fitted = learner.export(learner.init(0))
    assert not hasattr(given, "coef_")
    assert fitted.C == 2.0 and list(fitted.classes_) == [0, 1, 2]


def test_labels_may_be_text() -> None:
    y = np.array(["benign", "malignant", "benign"])
    assert encode(y, ("benign", "malignant")).tolist() == [0, 1, 0]
    with pytest.raises(InputError, match="label 'unsure' is in no client's training rows"):
        encode(np.array(["unsure"]), ("benign", "malignant"))


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: 0 < sum(y for _, y in rows) < len(rows)
    )
)
def test_concordance_is_the_area_under_the_curve(rows: list[tuple[int, bool]]) -> None:
    score, y = np.array([s for s, _ in rows], dtype=float), np.array([int(y) for _, y in rows])
    concordant, pairs = concordance(score, y)
    assert concordant / pairs == pytest.approx(roc_auc_score(y, score))
