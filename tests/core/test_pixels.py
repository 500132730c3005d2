"""Pixels: whatever is taken of them, and whatever is learned from them, is that of the same images as floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.algorithms.fedavg import FedAvg
from hansa.algorithms.gradient_descent import GradientDescent
from hansa.core.blocks import Client, Table, blocks_of
from hansa.core.contracts import Schema
from hansa.core.local import Local
from hansa.core.loop import Terms, evaluate, play_round
from hansa.core.metrics import values
from hansa.core.pixels import Pixels, as_array, take_each
from hansa.core.store import MemoryStore
from hansa.core.worker import EvaluateCall
from hansa.engines.inline import InlineEngine
from hansa.learners.jax import JaxLearner
from hansa.learners.mlp import MLP
from hansa.learners.sklearn import Sklearn
from tests.conformance.problem import same_bits

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 3), dtype=np.uint8)
FLOATS = IMAGES / np.float32(255)
SCHEMA = Schema(shape=(4, 3), dtype="float32", classes=(0, 1, 2), rows=40)


@given(st.lists(st.integers(0, 39), max_size=9), st.booleans())
def test_rows_taken_are_those_of_the_floats(rows: list[int], given_room: bool) -> None:
    chosen, pixels = np.array(rows, dtype=np.int64), Pixels(IMAGES)
    room = np.empty((len(rows), 4, 3), np.float32) if given_room else None
    taken = pixels.take(chosen, axis=0, out=room, mode="clip")
    assert taken is room or not given_room
    for ours in (taken, np.asarray(pixels[chosen]), np.asarray(Table(pixels).take(chosen).x)):
        assert ours.dtype == np.float32 and np.array_equal(ours, FLOATS[chosen])


@pytest.mark.parametrize("arrays", [[Pixels(IMAGES[:9]), Pixels(IMAGES[9:])], [FLOATS[:9], FLOATS[9:]]], ids=["pixels", "floats"])
def test_rows_of_several_arrays_are_those_of_each(arrays: list[Any]) -> None:
    rows, out = np.array([[8, 0, 0], [30, 1, 4]]), np.empty((2, 3, 4, 3), np.float32)
    take_each(arrays, rows, out)
    assert np.array_equal(out, [FLOATS[[8, 0, 0]], FLOATS[[39, 10, 13]]])


def test_they_look_like_the_floats_and_take_a_quarter() -> None:
    pixels = Pixels(IMAGES)
    assert (pixels.shape, pixels.ndim, len(pixels), pixels.dtype) == (FLOATS.shape, 3, 40, FLOATS.dtype)
    assert 4 * pixels.nbytes == FLOATS.nbytes
    assert np.array_equal(pixels.reshape(40, -1), FLOATS.reshape(40, -1))
    assert np.array_equal(pixels[3:9], FLOATS[3:9]) and np.array_equal(np.concatenate([pixels[:2], pixels[2:]]), FLOATS)
    assert as_array(pixels) is pixels and pixels.astype("float32") is pixels
    assert pixels.astype(np.float64).dtype == np.float64 and np.array_equal(pixels.astype(np.float64), FLOATS.astype(np.float64))


def loader(pixels: bool, first: int) -> dict[str, Table]:
    x: Any = Pixels(IMAGES) if pixels else FLOATS
    rows = np.arange(first, first + 10)
    return {"train": Table(x, np.arange(40) % 3).take(rows)}


def of_torch(convolution: bool, **options: object) -> Any:
    from hansa.learners.torch import TorchLearner

    nn = pytest.importorskip("torch").nn
    layers = [nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(12, 3)]
    return TorchLearner(nn.Sequential(*(layers if convolution else [nn.Flatten(), layers[-1]])), **options)


def of_jax() -> Any:
    pytest.importorskip("jax")
    return JaxLearner(model="hansa.learners.jax_models:perceptron", options={"widths": (5, 3)})


LEARNERS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: MLP(hidden=(5,)),
    "mlp in float64": lambda: MLP(hidden=(), dtype="float64"),
    "sklearn": Sklearn,
    "torch, a perceptron": lambda: of_torch(convolution=False),
    "torch, stacked": lambda: of_torch(convolution=True, batch="stacked"),
    "torch, one by one": lambda: of_torch(convolution=True, batch="one_by_one"),
    "jax": of_jax,
}


@pytest.mark.parametrize("name", LEARNERS)
def test_what_is_learned_from_them_has_the_bits_of_the_floats(name: str) -> None:
    learner, learned = LEARNERS[name](), []
    bound, algorithm = learner.bind(SCHEMA), FedAvg(local=Local(epochs=2, batch_size=4, learning_rate=0.1))
    if "train" not in learner.can:
        algorithm = GradientDescent()
    for pixels in (True, False):
        clients = [Client(f"c{first}", loader, {"pixels": pixels, "first": first}, rows=10) for first in (0, 10, 20, 30)]
        engine, blocks = InlineEngine(), blocks_of(range(4), 2)
        engine.start(learner, clients, MemoryStore())
        state = algorithm.init(bound.init(0), bound.kinds())
        state = play_round(
            state, algorithm=algorithm, engine=engine, blocks=blocks, schema=SCHEMA, round=1, rate=1.0, terms=Terms(0, 4)
        ).state
        _, judged = evaluate(engine, EvaluateCall(state["params"], SCHEMA, 0, 1, "train"), blocks)
        engine.stop()
        learned.append((state["params"], values(judged)))
    (ours, measured), (expected, by_floats) = learned
    assert same_bits(ours, expected) and measured == by_floats
