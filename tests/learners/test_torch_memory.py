"""Blocks that do not fit on the device are trained in smaller groups, to the same result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hansa.core.blocks import LoadedBlock  # noqa: E402  # only where PyTorch is
from hansa.core.local import Local, Plan, Trained  # noqa: E402
from hansa.learners.torch import TorchLearner  # noqa: E402
from hansa.learners.torch_memory import train_in_groups  # noqa: E402
from tests.conformance import problem  # noqa: E402

MEMBERS = (0, 1, 2, 3, 4)


def setting(device: str = "cpu") -> tuple[Any, Any, LoadedBlock, Plan]:
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    bound = TorchLearner(module=module, batch="stacked", device=device).bind(problem.schema("iris"))
    params = bound.init(0)
    drift = {
        name: np.random.default_rng(0).standard_normal((5, *value.shape)).astype(value.dtype) for name, value in params.items()
    }
    return bound, params, problem.loaded(bound, "iris", MEMBERS), Plan(Local(batch_size=8), 0.1, drift=drift, drift_per_client=True)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_running_out_of_memory_halves_the_group_and_changes_nothing(most: int) -> None:
    """The allocator is stood in for by a limit on the clients of a group; the training is real."""
    bound, params, block, plan = setting()
    sizes: list[int] = []

    def limited(group: LoadedBlock, own: Plan) -> Trained:
        sizes.append(len(group))
        if len(group) > most:
            raise torch.OutOfMemoryError("no room")
        return bound.train(params, group, own)

    parted, whole = train_in_groups(limited, block, plan, torch.device("cpu")), bound.train(params, block, plan)
    assert sum(size for size in sizes if size <= most) == len(MEMBERS)
    assert list(parted.steps) == list(whole.steps)
    for name in params:
        np.testing.assert_allclose(parted.params[name], whole.params[name], rtol=1e-5, atol=1e-6)


def test_one_client_that_does_not_fit_is_an_error() -> None:
    _, _, block, plan = setting()

    def never(group: LoadedBlock, own: Plan) -> Trained:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        train_in_groups(never, block, plan, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        bound, params, block, plan = setting(device)
        results.append(bound.train(params, block, plan).params)
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-3, atol=1e-4)
