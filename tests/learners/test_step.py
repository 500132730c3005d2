"""A module or a function behind a preparation: the model that comes back is a pipeline of scikit-learn that predicts."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import is_classifier, is_regressor
from sklearn.datasets import load_iris
from sklearn.pipeline import Pipeline

import hansa
from hansa.opening import clients_of, open_setting

torch = pytest.importorskip("torch")
X, CLASSES = load_iris(return_X_y=True)
LABELS = np.array(["versicolor", "setosa", "virginica"])[CLASSES]
JAX = "hansa.learners.jax_models:perceptron"


def linear(outputs: int) -> Any:
    return torch.nn.Sequential(torch.nn.Linear(4, outputs))


GIVEN: dict[str, tuple[Any, np.ndarray]] = {
    "torch": (lambda: linear(3), LABELS),
    "torch, one logit": (lambda: hansa.TorchLearner(module=linear(1), loss="binary_cross_entropy"), LABELS == "setosa"),
    "torch, numbers": (lambda: hansa.TorchLearner(module=linear(1), loss="poisson_nll"), X[:, 0]),
    "jax": (lambda: hansa.JaxLearner(model=JAX, options={"widths": [3]}), LABELS),
    "jax, numbers": (lambda: hansa.JaxLearner(model=JAX, options={"widths": [1]}, loss="mse"), X[:, 0]),
}


def job(learner: Any, y: np.ndarray, preparation: Any) -> hansa.Job:
    y = np.where(y, "yes", "no") if y.dtype == bool else y
    return hansa.Job(
        data=hansa.from_arrays(
            X, y, clients=np.resize(["a", "b", "c"], len(y)), task="regression" if y.dtype.kind == "f" else None
        ),
        learner=learner,
        algorithm=hansa.FedAvg(local=hansa.Local(learning_rate=0.01)),
        preparation=preparation,
        split=hansa.Split(test=0.0),
        rounds=hansa.Rounds(count=2),
    )


@pytest.mark.parametrize("which", GIVEN)
def test_the_pipeline_predicts_what_the_learner_does(which: str, tmp_path: Path) -> None:
    make, y = GIVEN[which]
    asked = job(make(), y, hansa.Standard())
    run = hansa.run(asked, directory=tmp_path, quiet=True)
    model = run.model
    assert isinstance(model, Pipeline)
    setting = open_setting(asked, clients_of(asked))
    learner = asked.learner.bind(setting.schema)
    setting.engine.stop()
    prepared = model[:-1].transform(X)
    assert np.array_equal(model.predict(X), learner.predict(run.params, prepared))
    numbers = "numbers" in which
    assert is_regressor(model) == numbers and is_classifier(model) != numbers
    assert hasattr(model, "predict_proba") != numbers
    if not numbers:
        known = np.asarray(setting.schema.classes)
        assert np.array_equal(model.classes_, known)
        chances = model.predict_proba(X)
        assert chances.shape == (len(X), len(known))
        np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-6)
        assert np.array_equal(known[chances.argmax(axis=1)], model.predict(X))
    assert model._repr_html_() and repr(model)
    with pytest.raises(hansa.InputError, match="trained by Hansa"):
        model.fit(X, y)


def test_the_pipeline_of_a_module_is_kept_and_read_back(tmp_path: Path) -> None:
    model = hansa.run(job(linear(3), LABELS, hansa.Standard()), directory=tmp_path, quiet=True).model
    assert isinstance(model[-1].module, torch.nn.Sequential)
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    for again in (pickle.loads(pickle.dumps(model)), joblib.load(file)):  # noqa: S301  # our own
        assert np.array_equal(again.predict_proba(X), model.predict_proba(X))


def test_predicting_leaves_the_module_in_the_mode_in_which_it_is(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.9), torch.nn.Linear(8, 3))
    model = hansa.run(job(module, LABELS, hansa.Standard()), directory=tmp_path, quiet=True).model
    before = model.predict_proba(X)
    model[-1].module.train()
    assert np.array_equal(model.predict_proba(X), before)
    assert model[-1].module.training


def test_a_loss_of_ones_own_says_nothing_of_probabilities(tmp_path: Path) -> None:
    learner = hansa.TorchLearner(
        module=linear(3), loss=lambda output, target: torch.nn.functional.multi_margin_loss(output, target)
    )
    model = hansa.run(job(learner, LABELS, hansa.Standard()), directory=tmp_path, quiet=True).model
    assert set(model.predict(X)) <= set(LABELS)
    assert not hasattr(model, "predict_proba")
    pickle.dumps(model)


def test_without_a_preparation_the_model_is_the_module(tmp_path: Path) -> None:
    model = hansa.run(job(linear(3), LABELS, None), directory=tmp_path, quiet=True).model
    assert type(model) is torch.nn.Sequential
