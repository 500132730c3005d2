"""Server optimisers against algorithm 2 of Reddi et al. 2021, written out for one number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.algorithms.server_optimizers import SGD, AdaGrad, Adam, Momentum, RMSprop, Yogi

deltas = st.lists(st.floats(-10, 10).filter(lambda d: abs(d) > 1e-6), min_size=1, max_size=6)


def play(optimizer: Any, steps: list[float]) -> float:
    params = {"x": np.array([1.0])}
    state = optimizer.init(params)
    for delta in steps:
        params, state = optimizer.step(params, {"x": np.array([delta])}, state)
    return float(params["x"][0])


def reference(method: str, steps: list[float], eta: float, beta1: float, beta2: float, tau: float) -> float:
    x, m, v = 1.0, 0.0, tau**2
    for delta in steps:
        m = beta1 * m + (1 - beta1) * delta
        if method == "adagrad":
            v = v + delta**2
        elif method == "yogi":
            v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        else:
            v = beta2 * v + (1 - beta2) * delta**2
        x = x + eta * m / (np.sqrt(v) + tau)
    return x


CASES = {
    "adagrad": (AdaGrad(learning_rate=0.3, tau=0.01), (0.3, 0.0, 0.0, 0.01)),
    "adam": (Adam(learning_rate=0.2, beta1=0.8, beta2=0.95, tau=0.01), (0.2, 0.8, 0.95, 0.01)),
    "rmsprop": (RMSprop(learning_rate=0.2, beta2=0.95, tau=0.01), (0.2, 0.0, 0.95, 0.01)),
    "yogi": (Yogi(learning_rate=0.2, beta1=0.8, beta2=0.95, tau=0.01), (0.2, 0.8, 0.95, 0.01)),
}


@pytest.mark.parametrize("method", CASES)
@given(steps=deltas)
def test_adaptive_methods_are_those_of_the_paper(method: str, steps: list[float]) -> None:
    optimizer, constants = CASES[method]
    assert play(optimizer, steps) == pytest.approx(reference(method, steps, *constants), rel=1e-12)


@given(steps=deltas)
def test_sgd_with_rate_one_adds_the_mean_change(steps: list[float]) -> None:
    assert play(SGD(), steps) == pytest.approx(1.0 + sum(steps), rel=1e-9, abs=1e-9)


@given(steps=deltas)
def test_momentum_without_memory_is_sgd(steps: list[float]) -> None:
    assert play(Momentum(learning_rate=0.5, beta1=0.0), steps) == play(SGD(learning_rate=0.5), steps)


def test_momentum_remembers() -> None:
    assert play(Momentum(learning_rate=1.0, beta1=0.5), [1.0, 1.0, 1.0]) == 1.0 + 1.0 + 1.5 + 1.75


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "optimizer", [SGD(), Momentum(), *(optimizer for optimizer, _ in CASES.values())], ids=lambda one: one.name
)
def test_params_and_moments_keep_their_type(optimizer: Any, dtype: str) -> None:
    params = {"x": np.ones((2, 3), dtype), "scale": np.ones((), dtype)}
    state = optimizer.init(params)
    for _ in range(3):
        delta = {name: np.full_like(value, 0.1) for name, value in params.items()}
        params, state = optimizer.step(params, delta, state)
        assert {value.dtype for kept in (params, *state.values()) for value in kept.values()} == {np.dtype(dtype)}
