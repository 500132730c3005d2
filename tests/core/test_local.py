"""The shared local step: schedules of mini-batches, optimisers, clipping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.blocks import Client, LoadedBlock, Table
from hansa.core.local import SGD, Adam, Local, clip_, schedule


def block(rows: list[int], round: int = 1) -> LoadedBlock:
    clients = tuple(Client(f"c{k}", dict) for k in range(len(rows)))
    return LoadedBlock(0, clients, tuple(Table(np.zeros((n, 1)), np.zeros(n)) for n in rows), np.ones(len(rows)), 0, round)


@given(st.lists(st.integers(1, 25), min_size=1, max_size=5), st.integers(0, 9), st.integers(1, 3))
def test_every_pass_uses_every_row_once(rows: list[int], batch: int, epochs: int) -> None:
    times = schedule(block(rows), Local(epochs=epochs, batch_size=batch))
    for k, n in enumerate(rows):
        batches = list(times.batches(k))
        assert len(batches) == times.steps[k] == epochs * (-(-n // batch) if batch else 1)
        assert all(len(chosen) <= (batch or n) for chosen in batches)
        per_epoch = len(batches) // epochs
        for epoch in range(epochs):
            used = np.concatenate(batches[epoch * per_epoch : (epoch + 1) * per_epoch])
            assert sorted(used) == list(range(n))


def test_shuffles_differ_by_round_client_and_pass() -> None:
    orders = [schedule(block([20, 20], round), Local(epochs=2, batch_size=5)).order for round in (1, 2)]
    seen = {tuple(order[k, e]) for order in orders for k in range(2) for e in range(2)}
    assert len(seen) == 8


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_that_of_pytorch(momentum: float, nesterov: bool) -> None:
    torch = pytest.importorskip("torch")
    w, gradients = np.array([1.0, -2.0]), np.random.default_rng(0).standard_normal((5, 2))
    theirs = torch.tensor(w.copy(), requires_grad=True)
    optimizer = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, nesterov=nesterov)
    ours, method = {"w": w}, SGD(momentum=momentum, nesterov=nesterov)
    state = method.init(ours)
    for step, g in enumerate(gradients):
        theirs.grad = torch.tensor(g)
        optimizer.step()
        method.step(ours, {"w": g.copy()}, state, 0.1, step + 1)
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), rtol=1e-12)


def test_adam_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    w, gradients = np.array([1.0, -2.0]), np.random.default_rng(0).standard_normal((5, 2))
    theirs = torch.tensor(w.copy(), requires_grad=True)
    optimizer = torch.optim.Adam([theirs], lr=0.1)
    ours, method = {"w": w}, Adam()
    state = method.init(ours)
    for step, g in enumerate(gradients):
        theirs.grad = torch.tensor(g)
        optimizer.step()
        method.step(ours, {"w": g.copy()}, state, 0.1, step + 1)
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), rtol=1e-9)


def test_clip_is_per_client_and_over_all_entries() -> None:
    gradient = {"a": np.array([[3.0, 0.0], [0.3, 0.0]]), "b": np.array([4.0, 0.4])}
    clip_(gradient, 1.0, stacked=True)
    np.testing.assert_allclose(gradient["a"], [[0.6, 0.0], [0.3, 0.0]])
    np.testing.assert_allclose(gradient["b"], [0.8, 0.4])
