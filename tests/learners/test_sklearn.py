"""scikit-learn estimators as learners: what is minimised is theirs, and what comes back is theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge, SGDClassifier, SGDRegressor
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

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
