"""A trained module or function as the last step of a scikit-learn pipeline, behind the preparation that made its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if

from hansa.core.errors import InputError
from hansa.learners.outputs import prediction

OWN = "a function of one's own"
"""The name of a loss that has none."""


class Step(BaseEstimator):
    """A trained model that predicts as estimators of scikit-learn do.

    module:  the trained model itself: a ``torch.nn.Module``, or a function of JAX.
    outputs: (module, prepared rows as an array) -> what the model gives for them, an array.
    loss:    the name of the loss that it was trained by, which tells what its outputs mean.
    """

    def __init__(self, module: Any, outputs: Callable[[Any, np.ndarray], np.ndarray], loss: str = OWN) -> None:
        self.module = module
        self.outputs = outputs
        self.loss = loss

    def fit(self, x: Any, y: Any = None) -> Step:
        """Raises InputError: it is fitted already, and was so where the rows are."""
        raise InputError(
            "the model was trained by Hansa, and scikit-learn cannot train it (run the job again, or train its module)"
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _given(self, x: Any) -> np.ndarray:
        return self.outputs(self.module, np.asarray(x.toarray() if hasattr(x, "toarray") else x))

    def predict(self, x: Any) -> np.ndarray:
        """Labels where it was trained on classes, else numbers, (rows,); what the model gives where its loss is one's own."""
        classes = getattr(self, "classes_", None)
        return prediction(self._given(x), self.loss, None if classes is None else tuple(classes))


class ClassifierStep(ClassifierMixin, Step):
    """As :class:`Step`, for classes: ``classes_`` are their labels, in the order of the outputs."""

    def __init__(
        self, module: Any, outputs: Callable[[Any, np.ndarray], np.ndarray], loss: str = OWN, classes: tuple[Any, ...] = ()
    ) -> None:
        super().__init__(module, outputs, loss)
        self.classes = classes

    @property
    def classes_(self) -> np.ndarray:
        return np.asarray(self.classes)

    @available_if(lambda self: self.loss in ("cross_entropy", "binary_cross_entropy"))
    def predict_proba(self, x: Any) -> np.ndarray:
        """The probabilities of the classes, (rows, classes); only where the loss says that the outputs are scores of classes."""
        given = self._given(x)
        if self.loss == "cross_entropy":
            return np.asarray(softmax(given, axis=1))
        score = given.reshape(len(given))
        return np.stack([expit(-score), expit(score)], axis=1)


class RegressorStep(RegressorMixin, Step):
    """As :class:`Step`, for numbers."""


def step_of(module: Any, outputs: Callable[[Any, np.ndarray], np.ndarray], loss: Any, classes: tuple[Any, ...] | None) -> Step:
    """The step of a trained model; ``loss`` and ``classes`` as its learner has them."""
    named = loss if isinstance(loss, str) else OWN
    return RegressorStep(module, outputs, named) if classes is None else ClassifierStep(module, outputs, named, classes)
