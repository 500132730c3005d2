"""A trained perceptron as the scikit-learn estimator that predicts the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hansa.core.contracts import Schema
from hansa.core.params import Params

if TYPE_CHECKING:
    from hansa.learners.mlp import MLP


def to_sklearn(options: MLP, schema: Schema, params: Params) -> Any:
    """A fitted estimator that predicts without Hansa.

    scikit-learn gives two classes one output, of which the logistic function is the second one's probability: the same probabilities
    as the softmax of two outputs, whose difference that output is.
    """
    layers = len(params) // 2
    weights = [np.array(params[f"layer{k}.weight"]) for k in range(layers)]
    biases = [np.array(params[f"layer{k}.bias"]) for k in range(layers)]
    classes = None if schema.classes is None else np.asarray(schema.classes)
    if classes is not None and len(classes) == 2:
        weights[-1] = weights[-1][:, 1:] - weights[-1][:, :1]
        biases[-1] = biases[-1][1:] - biases[-1][:1]
    fitted = _linear(options, schema, weights[0], biases[0]) if layers == 1 else _perceptron(options, classes, weights, biases)
    fitted.n_features_in_ = weights[0].shape[0]
    if classes is not None:
        fitted.classes_ = classes
    if len(schema.features) == fitted.n_features_in_ and schema.preparer is None:
        fitted.feature_names_in_ = np.asarray(schema.features, dtype=object)
    return fitted


def _linear(options: MLP, schema: Schema, weight: np.ndarray, bias: np.ndarray) -> Any:
    from sklearn.linear_model import LinearRegression, LogisticRegression

    if options.task == "regression":
        fitted = LinearRegression()
        fitted.coef_, fitted.intercept_ = weight[:, 0], bias[0]
        return fitted
    # scikit-learn weighs the penalty against the sum of losses: C = 1 / (l2 n).
    fitted = LogisticRegression(C=1 / (options.l2 * max(schema.rows, 1)) if options.l2 else np.inf)
    fitted.coef_, fitted.intercept_ = np.ascontiguousarray(weight.T), bias
    fitted.n_iter_ = np.array([0])
    return fitted


def _perceptron(options: MLP, classes: np.ndarray | None, weights: list[np.ndarray], biases: list[np.ndarray]) -> Any:
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.preprocessing import LabelBinarizer

    kind = MLPRegressor if classes is None else MLPClassifier
    fitted = kind(hidden_layer_sizes=options.hidden, activation=options.activation, alpha=options.l2)
    fitted.coefs_, fitted.intercepts_ = weights, biases
    fitted.n_layers_, fitted.n_outputs_ = len(weights) + 1, weights[-1].shape[1]
    fitted.out_activation_ = "identity" if classes is None else "softmax" if len(classes) > 2 else "logistic"
    fitted.n_iter_ = fitted.t_ = 0
    if classes is not None:
        fitted._label_binarizer = LabelBinarizer().fit(classes)
    return fitted
