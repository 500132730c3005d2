"""The PyTorch learner against plain PyTorch, on real data."""

import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.metrics import roc_auc_score

from hansa.algorithms.fedavg import FedAvg
from hansa.algorithms.gradient_descent import GradientDescent
from hansa.core.blocks import Client, LoadedBlock, Table, blocks_of
from hansa.core.contracts import Learner, Schema
from hansa.core.errors import InputError
from hansa.core.local import SGD, Adam, Local, Plan, schedule
from hansa.core.loop import Terms, evaluate, play_round
from hansa.core.metrics import values
from hansa.core.store import MemoryStore
from hansa.core.worker import EvaluateCall
from hansa.engines.inline import InlineEngine
from hansa.learners.torch import TorchLearner

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional

X, Y = load_digits(return_X_y=True)
ORDER = np.random.default_rng(0).permutation(len(X))
X, Y = (X[ORDER] / 16).astype(np.float32), Y[ORDER]
DIGITS = Schema(shape=(64,), dtype="float32", classes=tuple(range(10)), rows=len(X))


def mlp(hidden=16):
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def cnn(channels=4):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, channels, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9 * channels, 10)
    )


def batch_norm():
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


def dropout():
    return nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


class Tied(nn.Module):
    """Two layers that share one weight, a frozen scale, and a stored and an unstored buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.register_buffer("shift", torch.full((64,), 0.1))
        self.register_buffer("mask", torch.ones(64, dtype=torch.bool))
        self.register_buffer("ones", torch.ones(64), persistent=False)

    def forward(self, x):
        hidden = torch.relu(self.first(x) * self.scale + self.shift) * self.ones
        return self.head(torch.relu(self.second(hidden * self.mask)))


class Viewing(nn.Module):
    """A view of what a convolution gives, which there is with channels first alone."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 4, 3), nn.Linear(36, 10)

    def forward(self, x):
        return self.head(F.max_pool2d(self.layer(x.view(-1, 1, 8, 8)), 2).view(len(x), -1))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.layer = nn.Linear(64, 1), nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x) if self.gate(x).sum() > 0 else -self.layer(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.cell(x.reshape(-1, 8, 8))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.layer(x.reshape(-1, 8, 8)).mean(1))


class Coupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x - x.mean(0))


def block(sizes, round=1, x=X, y=Y, start=0):
    edges = start + np.concatenate([[0], np.cumsum(sizes)])
    tables = tuple(Table(x[a:b], y[a:b]) for a, b in pairwise(edges))
    clients = tuple(Client(f"client-{k}", dict) for k in range(len(sizes)))
    return LoadedBlock(0, clients, tables, np.asarray(sizes, dtype=np.float64), seed=7, round=round)


def learner(module=mlp, schema=DIGITS, **options):
    return TorchLearner(module, **options).bind(schema)


def plain_loop(trained, params, data, k, plan, make_optimizer, extra=lambda module: 0.0, loss=F.cross_entropy):
    """The loop that anybody would write: the module, an optimiser of torch.optim, the same mini-batches."""
    module = trained.export(params).train()
    optimizer = make_optimizer([p for p in module.parameters() if p.requires_grad])
    table = data.tables[k]
    for rows in schedule(data, plan.local).batches(k):
        optimizer.zero_grad()
        (loss(module(torch.from_numpy(table.x[rows])), torch.from_numpy(table.y[rows])) + extra(module)).backward()
        if plan.local.clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), plan.local.clip)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def assert_close(first, second, tolerance=1e-5):
    for name in second:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=tolerance, err_msg=name)


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def of_client(trained, k):
    return {name: value[k] for name, value in trained.params.items()}


BOTH = pytest.mark.parametrize("batch", ["stacked", "one_by_one"])
ALL = pytest.mark.parametrize("batch", ["stacked", "one_by_one", "auto"])


@BOTH
def test_one_full_batch_step_of_one_client_is_gradient_descent(batch):
    one, data = learner(batch=batch), block([200])
    params = one.init(0)
    trained = one.train(params, data, Plan(Local(epochs=1, batch_size=0), rate=0.3))
    gradient = one.gradient(params, data).values
    for name, w in params.items():
        np.testing.assert_allclose(trained.params[name][0], w - 0.3 * gradient[f"gradient/{name}"][0], atol=1e-6)
    reference = plain_loop(one, params, data, 0, Plan(Local(batch_size=0), 0.3), lambda p: torch.optim.SGD(p, 0.3))
    assert_close(of_client(trained, 0), reference, 1e-6)
    assert trained.steps.tolist() == [1]


@ALL
@pytest.mark.parametrize("module", [mlp, cnn])
@pytest.mark.parametrize(
    ("local", "optimizer"),
    [
        (SGD(), lambda p: torch.optim.SGD(p, 0.05)),
        (SGD(momentum=0.9), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
        (SGD(momentum=0.9, nesterov=True), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True)),
        (Adam(epsilon=1e-3), lambda p: torch.optim.Adam(p, 0.05, eps=1e-3)),
    ],
    ids=["sgd", "momentum", "nesterov", "adam"],
)
def test_training_is_the_plain_loop_with_torch_optim(batch, module, local, optimizer):
    one, data = learner(module, batch=batch), block([37, 64, 5])
    params, plan = one.init(1), Plan(Local(epochs=2, batch_size=16, optimizer=local), rate=0.05)
    trained = one.train(params, data, plan)
    assert trained.steps.tolist() == [6, 8, 2]
    for k in range(3):
        assert_close(of_client(trained, k), plain_loop(one, params, data, k, plan, optimizer))


@BOTH
def test_penalty_clip_drift_and_proximal_are_the_modified_objective(batch):
    one, data = learner(batch=batch, l2=0.1), block([40, 23])
    params, random = one.init(2), np.random.default_rng(0)
    drift = {name: random.normal(size=(2, *w.shape)).astype(np.float32) for name, w in params.items()}
    anchor = {name: torch.from_numpy(w) for name, w in params.items()}
    plan = Plan(Local(epochs=2, batch_size=16), rate=0.1, proximal=0.7, drift=drift, drift_per_client=True)
    trained = one.train(params, data, plan)
    for k in range(2):

        def extra(module, k=k):
            w = dict(module.named_parameters())
            return sum(
                0.05 * p.square().sum() + (p * torch.from_numpy(drift[n][k])).sum() + 0.35 * (p - anchor[n]).square().sum()
                for n, p in w.items()
            )

        assert_close(of_client(trained, k), plain_loop(one, params, data, k, plan, lambda p: torch.optim.SGD(p, 0.1), extra))
    shared = {name: d[1] for name, d in drift.items()}
    assert_close(
        of_client(one.train(params, data, replace(plan, drift=shared, drift_per_client=False)), 1), of_client(trained, 1), 1e-6
    )
    clipped = Plan(Local(epochs=2, batch_size=16, clip=0.5), rate=0.1)
    plain = learner(batch=batch)
    trained = plain.train(params, data, clipped)
    for k in range(2):
        assert_close(of_client(trained, k), plain_loop(plain, params, data, k, clipped, lambda p: torch.optim.SGD(p, 0.1)))


@settings(max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([0, 1, 7, 16]), st.integers(1, 2))
def test_a_clients_result_does_not_depend_on_its_block(sizes, batch_size, epochs):
    data, plan = block(sizes), Plan(Local(epochs, batch_size, clip=1.0), rate=0.1, proximal=0.1)
    stacked, single = learner(batch="stacked"), learner(batch="one_by_one")
    params = single.init(0)
    together, exact = stacked.train(params, data, plan), single.train(params, data, plan)
    for k in range(len(sizes)):
        alone = single.train(params, data.only(k), plan)
        assert_same(of_client(alone, 0), of_client(exact, k))
        assert_close(of_client(together, k), of_client(alone, 0))
        for side in (0, 1):
            assert alone.metrics["loss"][side][0] == exact.metrics["loss"][side][k]
            np.testing.assert_allclose(together.metrics["loss"][side][k], exact.metrics["loss"][side][k], rtol=1e-5)
    assert together.metrics["loss"][1].tolist() == [epochs * n for n in sizes]


@pytest.mark.parametrize("batch", ["auto", "stacked", "one_by_one"])
def test_two_runs_give_the_same_bits(batch):
    data, plan = block([30, 20, 10, 40, 50, 60, 5]), Plan(Local(2, 8), 0.1)
    first, second = learner(cnn, batch=batch), learner(cnn, batch=batch)
    assert_same(first.init(3), second.init(3))
    assert_same(first.train(first.init(3), data, plan).params, second.train(second.init(3), data, plan).params)


def test_a_client_without_rows_stays_where_it_was():
    data = block([20, 0, 30])
    for batch in ("stacked", "one_by_one"):
        one = learner(batch=batch)
        params = one.init(0)
        trained = one.train(params, data, Plan(Local(batch_size=8), 0.1))
        assert_same(of_client(trained, 1), params)
        assert trained.metrics["loss"][1].tolist() == [20, 0, 30]
    update = one.gradient(params, data)
    assert not any(value[1].any() for value in update.values.values())
    assert one.evaluate(params, data)["accuracy"][1].tolist() == [20, 0, 30]


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_gradient_and_losses_are_those_of_the_objective(penalty):
    one, data = learner(l2=penalty), block([60, 1500], start=100)
    params, other = one.init(0), one.init(1)
    update = one.gradient(params, data)
    assert list(update.values) == [f"gradient/{name}" for name in params]
    for k, table in enumerate(data.tables):
        module = one.export(params)
        loss = F.cross_entropy(module(torch.from_numpy(table.x)), torch.from_numpy(table.y))
        objective = loss + 0.5 * penalty * sum(p.square().sum() for p in module.parameters())
        objective.backward()
        loss, objective = loss.item(), objective.item()
        for name, p in module.named_parameters():
            np.testing.assert_allclose(update.values[f"gradient/{name}"][k], p.grad.numpy(), atol=1e-6)
        np.testing.assert_allclose(update.metrics["loss"][0][k] / len(table), loss, rtol=1e-5)
        np.testing.assert_allclose(one.losses([other, params], data).values["losses"][k, 1], objective, rtol=1e-5)


def test_large_tables_in_chunks_are_the_table(monkeypatch):
    one, data = learner(l2=0.1), block([1000, 77])
    params = one.init(0)
    whole, measured, predicted = one.gradient(params, data), one.evaluate(params, data), one.predict(params, X)
    monkeypatch.setattr("hansa.learners.torch_bound.ROWS_AT_ONCE", 64)
    chunked = one.gradient(params, data)
    assert_close(chunked.values, whole.values, 1e-6)
    np.testing.assert_allclose(one.evaluate(params, data)["loss"], measured["loss"], rtol=1e-6)
    np.testing.assert_array_equal(one.predict(params, X), predicted)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        ("mse", F.mse_loss),
        ("l1", F.l1_loss),
        ("huber", F.huber_loss),
        ("poisson_nll", F.poisson_nll_loss),
        (lambda output, target: (output[:, 0] - target) ** 4, lambda output, target: ((output - target) ** 4).mean()),
        (lambda output, target: F.mse_loss(output[:, 0], target), F.mse_loss),
    ],
    ids=["mse", "l1", "huber", "poisson_nll", "own", "own mean"],
)
def test_regression_losses_are_torchs(loss, reference):
    x, y = load_diabetes(return_X_y=True)
    one = TorchLearner(nn.Linear, {"in_features": 10, "out_features": 1}, loss=loss, batch="one_by_one").bind(
        Schema(shape=(10,), dtype="float64")
    )
    table = one.arrays(Table(10 * x, y / 100))
    assert table.x.dtype == table.y.dtype == np.float32
    data, plan = block([50, 31], x=table.x, y=table.y), Plan(Local(1, 8), 0.01)
    params = one.init(0)
    trained = one.train(params, data, plan)
    for k in range(2):
        expected = plain_loop(
            one, params, data, k, plan, lambda p: torch.optim.SGD(p, 0.01), loss=lambda o, t: reference(o[:, 0], t)
        )
        assert_close(of_client(trained, k), expected)
    total = values({name: (s.sum(), c.sum()) for name, (s, c) in one.evaluate(params, data).items()})
    output = one.export(params)(torch.from_numpy(table.x[:81]))[:, 0].detach()
    np.testing.assert_allclose(total["loss"], float(reference(output, torch.from_numpy(table.y[:81]))), rtol=1e-5)
    rate = output.exp() if loss == "poisson_nll" else output
    np.testing.assert_allclose(one.predict(params, table.x[:81]), rate.numpy(), rtol=1e-6)
    if isinstance(loss, str):
        assert one.needs == {"numbers"}
        np.testing.assert_allclose(total["mae"], np.abs(rate.numpy() - table.y[:81]).mean(), rtol=1e-5)
        np.testing.assert_allclose(total["mse"], np.square(rate.numpy() - table.y[:81]).mean(), rtol=1e-5)


def test_two_classes_by_one_logit_or_two_outputs():
    x, y = load_breast_cancer(return_X_y=True)
    labels = np.array(["malignant", "benign"])[y]
    x = (x - x.mean(0)) / x.std(0)
    schema = Schema(shape=(30,), dtype="float64", classes=("benign", "malignant"))
    for outputs, loss in ((1, "binary_cross_entropy"), (2, "cross_entropy")):
        one = TorchLearner(nn.Linear, {"in_features": 30, "out_features": outputs}, loss=loss, metrics=("accuracy", "auc")).bind(
            schema
        )
        table = one.arrays(Table(x, labels))
        data, params = block([300], x=table.x, y=table.y), one.init(0)
        params = of_client(one.train(params, data, Plan(Local(3, 16), 0.1)), 0)
        measured = one.evaluate(params, data)
        predicted = one.predict(params, x[:300])
        np.testing.assert_allclose(measured["accuracy"][0] / measured["accuracy"][1], np.mean(predicted == labels[:300]))
        assert np.mean(predicted == labels[:300]) > 0.95
        output = one.export(params)(torch.from_numpy(table.x[:300])).detach().double().numpy()
        score = output[:, 0] if outputs == 1 else output[:, 1] - output[:, 0]
        np.testing.assert_allclose(measured["auc"][0] / measured["auc"][1], roc_auc_score(table.y[:300], score))
        assert measured["auc"][1] == np.sum(table.y[:300] == 0) * np.sum(table.y[:300] == 1)


def test_sequences_of_tokens():
    def module():
        return nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 10), nn.Unflatten(1, (5, 2)))

    tokens, answers = np.arange(60, dtype=np.int32).reshape(20, 3) % 5, np.arange(40).reshape(20, 2) % 5
    one = TorchLearner(module).bind(Schema(shape=(3,), dtype="int32", classes=tuple(range(5))))
    table = one.arrays(Table(tokens, answers))
    assert table.x.dtype == np.int64
    data, params = block([12, 8], x=table.x, y=table.y), one.init(0)
    plan = Plan(Local(1, 4), 0.1)
    stacked = replace(one.options, batch="stacked").bind(one.schema).train(params, data, plan)
    for k in range(2):
        assert_close(of_client(stacked, k), plain_loop(one, params, data, k, plan, lambda p: torch.optim.SGD(p, 0.1)))
    assert one.evaluate(params, data)["accuracy"][1].tolist() == [24, 16]
    assert one.predict(params, tokens).shape == (20, 2)


def test_batch_norm_statistics_come_back_and_training_is_the_plain_loop():
    one, data = learner(batch_norm, batch="one_by_one"), block([40, 32])
    kinds = one.kinds()
    assert kinds["1.running_mean"] == kinds["1.running_var"] == "buffer"
    assert kinds["1.num_batches_tracked"] == "counter" and kinds["1.weight"] == "weight"
    params, plan = one.init(0), Plan(Local(2, 8), 0.1)
    trained = one.train(params, data, plan)
    assert trained.params["1.num_batches_tracked"].tolist() == [10, 8]
    assert trained.params["1.num_batches_tracked"].dtype == np.int64
    for k in range(2):
        own = of_client(trained, k)
        assert_close(own, plain_loop(one, params, data, k, plan, lambda p: torch.optim.SGD(p, 0.1)))
        output = one.export(own)(torch.from_numpy(X[:50])).argmax(1).numpy()
        np.testing.assert_array_equal(one.predict(own, X[:50]), output)
    evaluated = one.evaluate(params, data)
    assert_same(one.train(params, data, plan).params, trained.params)
    assert evaluated["loss"][0].tolist() == one.evaluate(params, data)["loss"][0].tolist()


def test_batch_norm_through_federated_averaging_counts_in_whole_numbers():
    run = federated(batch_norm, rounds=2, batch="one_by_one")
    counter = run[0]["1.num_batches_tracked"]
    assert np.issubdtype(counter.dtype, np.integer) and int(counter) == 2 * 10


def test_batch_norm_on_one_row_is_explained():
    one = learner(batch_norm, batch="one_by_one")
    with pytest.raises(InputError, match=r"client client-1: a mini-batch of one row \(of 9, with local.batch_size = 4\)"):
        one.train(one.init(0), block([8, 9]), Plan(Local(1, 4), 0.1))


def test_half_precision_stays_inside():
    one, data = learner(lambda: mlp().bfloat16()), block([20, 12])
    params = one.init(0)
    for batch in ("stacked", "one_by_one"):
        trained = replace(one.options, batch=batch).bind(DIGITS).train(params, data, Plan(Local(1, 8), 0.1))
        assert all(value.dtype == np.float32 for value in trained.params.values())
        assert np.abs(trained.params["0.weight"] - params["0.weight"]).max() > 1e-4
    assert one.export(params)[0].weight.dtype == torch.bfloat16


def test_shared_frozen_and_unstored_tensors():
    one, data = learner(Tied), block([30, 12])
    params = one.init(0)
    assert "second.weight" not in params and "ones" not in params
    assert one.kinds()["scale"] == one.kinds()["shift"] == "buffer" and one.kinds()["mask"] == "counter"
    plan = Plan(Local(2, 8), 0.1)
    for batch in ("stacked", "one_by_one"):
        trained = replace(one.options, batch=batch).bind(DIGITS).train(params, data, plan)
        for k in range(2):
            for frozen in ("scale", "shift", "mask"):
                np.testing.assert_array_equal(trained.params[frozen][k], params[frozen])
            assert_close(of_client(trained, k), {n: v for n, v in plain_loop(
                one, params, data, k, plan, lambda p: torch.optim.SGD(p, 0.1)).items() if n in params})  # fmt: skip
    module = one.export(params)
    assert module.first.weight is module.second.weight and module.mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (batch_norm, r"layer '1' \(BatchNorm1d\) changes its buffers while training"),
        (dropout, r"layer '1' \(Dropout\) draws random numbers"),
        (Branches, r"the module \(Branches\) cannot be batched: .*"),
        (Recurrent, r"layer 'cell' \(LSTM\) uses aten::lstm, which PyTorch cannot batch"),
        (Coupled, r"the rows of a mini-batch influence each other"),
    ],
)
def test_what_cannot_be_stacked_is_said_once_or_refused(module, reason):
    data, plan = block([10, 12, 8, 8, 11, 10]), Plan(Local(1, 4), 0.1)
    one = learner(module)
    params = one.init(0)
    with pytest.warns(UserWarning, match=reason) as caught:
        trained = one.train(params, data, plan)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(one.train(params, data, plan).params, trained.params)
        assert_same(learner(module, batch="one_by_one").train(params, data, plan).params, trained.params)
    with pytest.raises(InputError, match=f'"stacked": {reason}.*; write "auto" or "one_by_one"'):
        learner(module, batch="stacked").train(params, data, plan)


def test_where_pytorch_would_loop_and_warn_at_every_step_clients_go_one_by_one():
    """Whether attention has a batching rule depends on PyTorch's version and the processor; its own warnings never get through."""
    data, plan = block([10, 12, 8, 8, 11, 10]), Plan(Local(1, 4), 0.1)
    one = learner(Attention)
    params = one.init(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained = one.train(params, data, plan)
    assert [str(warning.message).partition(":")[0] for warning in caught] in ([], ["Attention"])
    assert_close(trained.params, learner(Attention, batch="one_by_one").train(params, data, plan).params)


def test_a_loss_that_is_a_mean_cannot_be_stacked():
    one = learner(loss=F.cross_entropy, batch="stacked")
    with pytest.raises(InputError, match="the loss gives the mean of a mini-batch"):
        one.train(one.init(0), block([9]), Plan(Local(1, 4), 0.1))


def test_auto_stacks_what_can_be_stacked_without_a_word():
    data, plan = block([9, 12, 8, 8, 11, 10]), Plan(Local(1, 4), 0.1)
    params = learner(cnn).init(0)
    assert_same(learner(cnn).train(params, data, plan).params, learner(cnn, batch="stacked").train(params, data, plan).params)
    few = block([9, 12])
    assert_same(learner(cnn).train(params, few, plan).params, learner(cnn, batch="one_by_one").train(params, few, plan).params)


def test_dropout_depends_on_seed_round_and_client_alone():
    one, data, plan = learner(dropout, batch="one_by_one"), block([20, 20]), Plan(Local(1, 4), 0.1)
    params = one.init(0)
    trained = one.train(params, data, plan)
    assert_same(of_client(one.train(params, data.only(1), plan), 0), of_client(trained, 1))
    same_rows = replace(data, tables=(data.tables[0], data.tables[0]))
    full = Plan(Local(1, 0), 0.1)
    masks = one.train(params, same_rows, full).params["0.weight"]
    assert np.abs(masks[0] - masks[1]).max() > 0
    assert np.abs(one.train(params, replace(same_rows, round=2), full).params["0.weight"][0] - masks[0]).max() > 0


def test_nothing_global_changes():
    torch.manual_seed(5)
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    one, data = learner(dropout, batch="one_by_one"), block([20, 20])
    params = one.init(0)
    with torch.no_grad():
        one.train(params, data, Plan(Local(1, 4), 0.1))
        one.gradient(params, data)
        assert not torch.is_grad_enabled()
    one.evaluate(params, data)
    one.predict(params, X)
    one.export(params)
    assert torch.equal(random, torch.get_rng_state()) and threads == torch.get_num_threads()


def test_inputs_are_not_changed_and_may_be_read_only():
    one, data, plan = learner(), block([20, 20]), Plan(Local(1, 4), 0.1)
    params = one.init(0)
    expected = one.train(params, data, plan).params
    locked = {name: w.copy() for name, w in params.items()}
    tables = tuple(Table(t.x.copy(), t.y.copy()) for t in data.tables)
    for value in [*locked.values(), *(t.x for t in tables), *(t.y for t in tables)]:
        value.flags.writeable = False
    assert_same(one.train(locked, replace(data, tables=tables), plan).params, expected)
    assert_same(locked, params)


def test_a_ready_made_module_keeps_its_weights_and_is_left_alone():
    module = mlp()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    one = learner(module)
    assert_same(one.init(0), one.init(1))
    assert_same(one.init(0), {name: value.numpy() for name, value in before.items()})
    one.train(one.init(0), block([20]), Plan(Local(1, 4), 0.5))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    made = learner(mlp, options={"hidden": 8})
    assert made.init(0)["0.weight"].shape == (8, 64)
    assert np.abs(made.init(0)["0.weight"] - made.init(1)["0.weight"]).max() > 0


def test_export_is_an_ordinary_module(tmp_path):
    one = learner(cnn)
    params = one.init(4)
    first, second = one.export(params), one.export(params)
    assert type(first) is nn.Sequential and not first.training
    first[1].weight.data.zero_()
    np.testing.assert_array_equal(one.predict(params, X), second(torch.from_numpy(X)).argmax(1).numpy())
    np.testing.assert_array_equal(second[1].weight.detach().numpy(), params["1.weight"])


@pytest.mark.parametrize(("module", "last"), [(cnn, True), (Viewing, False)])
def test_convolutions_have_channels_last_where_the_module_takes_that_and_compute_the_same(module, last):
    one, plan = learner(module, batch="one_by_one", device="cpu"), Plan(Local(1, 4), 0.5)
    weight = next(w for w in one.model.weights.values() if w.ndim == 4)
    assert (weight.stride(1) == 1) == last
    data, params = block([20]), one.init(1)
    mine = one.train(params, data, plan).params
    plain, times = one.export(params).train(), schedule(data, plan.local)
    x, y = torch.from_numpy(data.tables[0].x), torch.from_numpy(data.tables[0].y)
    optimizer = torch.optim.SGD(plain.parameters(), 0.5)
    for rows in times.batches(0):
        optimizer.zero_grad()
        F.cross_entropy(plain(x[rows]), y[rows]).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        assert value.is_contiguous()
        np.testing.assert_allclose(mine[name][0], value.numpy(), rtol=1e-4, atol=1e-5)


def test_factories_by_name(tmp_path, monkeypatch):
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, hidden=4):\n        super().__init__()\n"
        "        self.body = nn.Sequential(nn.LazyLinear(hidden), nn.ReLU(), nn.Linear(hidden, 10))\n"
        "    def forward(self, x):\n        return self.body(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{file}:Net", "nets:Net"):
        one = learner(name, options={"hidden": 6})
        assert one.init(0)["body.0.weight"].shape == (6, 64)
        copied = pickle.loads(pickle.dumps(one))  # noqa: S301  # of our own making
        assert_same(copied.init(0), one.init(0))
        exported = pickle.loads(pickle.dumps(one.export(one.init(0))))  # noqa: S301  # of our own making
        assert exported(torch.from_numpy(X[:3])).shape == (3, 10)
    monkeypatch.chdir(tmp_path)
    assert_same(learner("nets.py:Net").init(1), learner("nets:Net").init(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": "torch.nn"}, "names no factory"),
        ({"module": "no_such_package:Net"}, "cannot be imported"),
        ({"module": "missing.py:Net"}, "there is no file 'missing.py'"),
        ({"module": "torch.nn:Linaer"}, "did you mean 'Linear'"),
        ({"module": "math:pi"}, "is a float"),
        ({"module": "math:sqrt", "options": {"x": 1}}, "do not fit"),
        ({"module": mlp, "options": {"hiden": 3}}, "do not fit"),
        ({"module": mlp(), "options": {"hidden": 3}}, "ready-made"),
        ({"module": nn.Flatten()}, "no parameters to train"),
        ({"module": mlp, "loss": "cross-entropy"}, "did you mean 'cross_entropy'"),
        ({"module": mlp, "metrics": ("acuracy",)}, "did you mean 'accuracy'"),
        ({"module": nn.Linear(63, 10)}, r"Linear cannot take rows of shape \(64,\) and type float32"),
        ({"module": nn.Linear(64, 9)}, r"outputs of shape \(9,\) per row and the data has 10 classes"),
    ],
)
def test_what_cannot_work_is_said_before_training(options, message):
    with pytest.raises(InputError, match=message):
        learner(**options)


def test_whole_numbers_for_a_layer_of_floats_are_explained():
    with pytest.raises(InputError, match="whole numbers stay whole"):
        learner(schema=replace(DIGITS, dtype="int64"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(InputError, match="sees no CUDA device"):
        learner(device="cuda")


def test_bad_data_and_foreign_params_are_named():
    one = learner()
    with pytest.raises(InputError, match=r"label .*11"):
        one.arrays(Table(X[:2], np.array([3, 11])))
    with pytest.raises(InputError, match="takes numbers only"):
        one.arrays(Table(np.array([["a"] * 64])))
    with pytest.raises(InputError, match="are not those of"):
        one.predict({"w": np.zeros(3)}, X)
    with pytest.raises(InputError, match="has shape"):
        one.predict(learner(mlp, options={"hidden": 3}).init(0), X)
    wide = TorchLearner(nn.Linear(64, 2), loss="mse").bind(Schema(shape=(64,)))
    with pytest.raises(InputError, match=r"gives \(20, 2\) for targets of shape \(20,\)"):
        wide.evaluate(wide.init(0), block([20], y=Y.astype(np.float32)))


def federated(module, rounds, batch="auto", clients=10, rate=0.2, algorithm=None):
    """Rounds of federated averaging over digits; returns the params and the test accuracy."""
    one = TorchLearner(module, batch=batch)
    edges = np.linspace(0, 1500, clients + 1).astype(int)
    data = [Client(f"c{k}", digits_of, {"start": int(a), "stop": int(b)}, int(b - a)) for k, (a, b) in enumerate(pairwise(edges))]
    algorithm = algorithm or FedAvg(local=Local(epochs=1, batch_size=15, learning_rate=rate))
    engine, blocks = InlineEngine(), blocks_of(range(clients), 8)
    bound = one.bind(DIGITS)
    engine.start(one, data, MemoryStore())
    state = algorithm.init(bound.init(0), bound.kinds())
    for round in range(1, rounds + 1):
        state = play_round(
            state, algorithm=algorithm, engine=engine, blocks=blocks, schema=DIGITS, round=round, rate=1.0, terms=Terms(0, clients)
        ).state
    _, total = evaluate(engine, EvaluateCall(state["params"], DIGITS, 0, rounds, "test"), blocks)
    return state["params"], values(total)["accuracy"]


def digits_of(start, stop):
    return {"train": Table(X[start:stop].astype(np.float64), Y[start:stop]), "test": Table(X[1500:], Y[1500:])}


def test_federated_averaging_of_a_module_learns_digits_and_repeats_bit_by_bit():
    params, accuracy = federated(mlp, rounds=15)
    assert accuracy > 0.9
    again, same = federated(mlp, rounds=15)
    assert_same(params, again)
    assert accuracy == same


def test_gradient_descent_over_clients_is_gradient_descent_on_the_pooled_rows():
    params, _ = federated(mlp, rounds=3, algorithm=GradientDescent())
    one = learner()
    pooled = one.init(0)
    for _ in range(3):
        gradient = one.gradient(pooled, block([1500])).values
        pooled = {name: w - 0.1 * gradient[f"gradient/{name}"][0] for name, w in pooled.items()}
    assert_close(params, pooled)


def test_the_learner_keeps_the_contract_and_imports_torch_late():
    one = learner()
    assert one.can == {"gradient", "train", "gang"} and one.needs == {"classes"}
    assert all(hasattr(one, method) for method in vars(Learner) if not method.startswith("_"))
    with pytest.raises(InputError, match="no Hessian"):
        one.hessian(one.init(0), block([5]))
    code = "import sys, hansa.learners.torch as t; t.TorchLearner('a:b'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_torch_is_reported_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "hansa.learners.torch_bound")
    with pytest.raises(InputError, match=r"pip install 'hansa\[torch\]'"):
        TorchLearner("package.module:factory").bind(DIGITS)


@pytest.mark.parametrize(
    ("loss", "classes", "message"),
    [
        ("mse", (0, 1), "the labels are 2 classes, not numbers"),
        ("cross_entropy", None, "the labels are numbers, not classes"),
        ("binary_cross_entropy", (0, 1, 2), "is for two classes, the data has 3"),
    ],
)
def test_labels_and_loss_must_go_together(loss, classes, message):
    with pytest.raises(InputError, match=message):
        learner(nn.Linear(64, 3), replace(DIGITS, classes=classes), loss=loss)
