"""A module that is a perceptron is trained as one: the module's own results, and nothing but a perceptron is taken for one."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # only where PyTorch is
from torch.nn import functional as F  # noqa: E402

from hansa.core.blocks import Client, LoadedBlock, Table  # noqa: E402
from hansa.core.contracts import Schema  # noqa: E402
from hansa.core.local import SGD, Adam, Local, Plan  # noqa: E402
from hansa.learners.torch import TorchLearner  # noqa: E402

IMAGES = Schema((), (6, 5), "float32", (0, 1, 2), 80)


class Written(nn.Module):
    """Layers in the order of use, not of definition, with functions between them."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.middle = nn.Linear(8, 3), nn.Linear(30, 12), nn.Linear(12, 8)

    def forward(self, x):
        x = x.view(x.size(0), -1)
        return self.last(F.relu(self.middle(torch.relu(self.first(x)))))


class Twice(Written):
    def forward(self, x):
        return super().forward(x) + super().forward(x)


class Residual(Written):
    def forward(self, x):
        first = torch.relu(self.first(x.flatten(1)))
        return self.last(torch.relu(self.middle(first + x.flatten(1)[:, :12])))


class Branching(Written):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 400), nn.ReLU(), nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 3))


def softmax():
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 3))


def tanh():
    return nn.Sequential(nn.Flatten(1), nn.Sequential(nn.Linear(30, 16), nn.Tanh()), nn.Identity(), nn.Linear(16, 3))


def hooked():
    module = softmax()
    module[1].register_forward_hook(lambda layer, x, y: 2 * y)
    return module


def block(sizes=(17, 40, 9)):
    rng = np.random.default_rng(4)
    tables = tuple(Table(rng.random((n, 6, 5), dtype=np.float32), rng.integers(0, 3, n)) for n in sizes)
    clients = tuple(Client(f"client-{k}", dict) for k in range(len(sizes)))
    return LoadedBlock(0, clients, tables, np.asarray(sizes, dtype=np.float64), seed=7, round=2)


@pytest.mark.parametrize("module", [Written, wide, softmax, tanh])
@pytest.mark.parametrize(
    ("local", "more"),
    [
        (Local(2, 8, 0.1), {}),
        (Local(1, 0, 0.1, SGD(momentum=0.9)), {}),
        (Local(2, 16, 0.1, Adam(epsilon=1e-3), clip=1.0), {"proximal": 0.5}),
    ],
    ids=["plain", "momentum", "all"],
)
def test_a_perceptron_gives_what_the_module_gives(module, local, more):
    data, torch_only = block(), TorchLearner(module, batch="one_by_one").bind(IMAGES)
    params, plan = torch_only.init(1), Plan(local, 0.1, **more)
    learner = TorchLearner(module).bind(IMAGES)
    ours, theirs = learner.train(params, data, plan), torch_only.train(params, data, plan)
    assert learner.model.perceptron is not None and not hasattr(torch_only.model, "perceptron")
    assert list(ours.params) == list(theirs.params)
    for name, value in theirs.params.items():
        assert ours.params[name].shape == value.shape and ours.params[name].dtype == value.dtype
        np.testing.assert_allclose(ours.params[name], value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.metrics["loss"][0], theirs.metrics["loss"][0], rtol=1e-4)
    assert ours.steps.tolist() == theirs.steps.tolist()


def test_drift_is_the_modules_own():
    data, torch_only = block(), TorchLearner(Written, batch="one_by_one").bind(IMAGES)
    params = torch_only.init(1)
    rng = np.random.default_rng(0)
    for per_client in (False, True):
        lead = (len(data),) if per_client else ()
        drift = {name: rng.standard_normal((*lead, *value.shape)).astype(np.float32) for name, value in params.items()}
        plan = Plan(Local(1, 8, 0.1), 0.1, drift=drift, drift_per_client=per_client)
        ours, theirs = TorchLearner(Written).bind(IMAGES).train(params, data, plan), torch_only.train(params, data, plan)
        for name, value in theirs.params.items():
            np.testing.assert_allclose(ours.params[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        Twice,
        Residual,
        Branching,
        hooked,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 3, bias=False)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU()),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.GELU(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Conv1d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*clients are trained one after another")
def test_nothing_else_is_taken_for_one(module):
    learner = TorchLearner(module).bind(IMAGES)
    learner.train(learner.init(1), block(), Plan(Local(1, 10, 0.1), 0.1))
    assert learner.model.perceptron is None


@pytest.mark.parametrize("options", [{"loss": F.cross_entropy}, {"l2": 0.1}, {"batch": "stacked"}])
def test_who_asks_for_something_else_gets_pytorch(options):
    learner = TorchLearner(softmax, **options).bind(IMAGES)
    if "loss" in options:
        learner = TorchLearner(softmax, batch="one_by_one", **options).bind(IMAGES)
    learner.train(learner.init(1), block(), Plan(Local(1, 10, 0.1), 0.1))
    assert not hasattr(learner.model, "perceptron")
