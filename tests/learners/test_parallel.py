"""Gangs of PyTorch: every layout trains as one process does, checkpoints fit all of them, and what cannot work is said before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gangs of modules need hansa[torch]")

import hansa  # noqa: E402  # only where PyTorch is
from hansa.algorithms.diloco import DiLoCo  # noqa: E402
from hansa.algorithms.synchronous import Synchronous  # noqa: E402
from hansa.core.blocks import Table  # noqa: E402
from hansa.core.errors import InputError, RunFailed  # noqa: E402
from hansa.core.many import Task, together  # noqa: E402
from hansa.core.params import Params  # noqa: E402
from hansa.core.randomness import generator  # noqa: E402
from hansa.core.synchrony import Assembly, Basis, GangCall, Layout, Synchrony  # noqa: E402
from hansa.engines.inline import InlineEngine  # noqa: E402
from hansa.engines.processes import ProcessesEngine  # noqa: E402
from hansa.learners.parallel.batches import Share  # noqa: E402
from hansa.learners.parallel.pipeline import cut, microbatches_of  # noqa: E402
from hansa.learners.parallel.tensor import plan_of, refuse_uneven  # noqa: E402
from hansa.learners.torch import TorchLearner  # noqa: E402
from hansa.privacy.clip import Clip  # noqa: E402
from tests.learners import parallel_modules as modules  # noqa: E402

SEED = 7
PLAN = modules.TRANSFORMER_PLAN
ADAM = Synchronous(steps=6, batch_size=50, optimizer="AdamW", learning_rate=0.01, arguments={"weight_decay": 0.1})


class Members:
    """Engines by the number of members of a gang, each started once for all tests here."""

    def __init__(self) -> None:
        self._engines: dict[int, Any] = {1: InlineEngine()}

    def __getitem__(self, members: int) -> Any:
        if members not in self._engines:
            self._engines[members] = ProcessesEngine(members)
        return self._engines[members]

    def stop(self) -> None:
        for engine in self._engines.values():
            engine.stop()


@pytest.fixture(scope="module")
def engines() -> Iterator[Members]:
    members = Members()
    yield members
    members.stop()


def begin(learner: TorchLearner, name: str) -> Params:
    return learner.bind(modules.schema(name)).init(1)


def play(
    engine: Any, learner: TorchLearner, algorithm: Any, home: Path, state: Any, *, rounds: int, first: int = 1, name: str = "digits",
    sizes: tuple[int, ...] = modules.SIZES,
) -> tuple[Any, float]:  # fmt: skip
    """Rounds of a gang; returns the state, and the mean loss of the last round."""
    basis = Basis(learner, modules.clients(name, sizes), modules.schema(name, sizes))
    for number in range(first, first + rounds):
        message = algorithm.broadcast(state, number)
        call = GangCall(basis, algorithm, algorithm.parallel, SEED, number, 1.0, str(home), message.params or None)
        parts = Assembly(call).answer(engine)
        state = algorithm.update(state, parts)
    rows = sum(part.loss[1] for part in parts)
    return state, sum(part.loss[0] for part in parts) / rows


def plain(learner: TorchLearner, algorithm: Synchrony, params: Params, steps: int, name: str = "digits") -> tuple[Params, float]:
    """What one process gives, written in plain PyTorch: params, and the mean loss of the last ``algorithm.steps`` steps."""
    bound = learner.bind(modules.schema(name))
    module = bound.fresh(torch.device("cpu")).load(params).train()
    tables = [bound.arrays(client.load()["train"]) for client in modules.clients(name)]
    x, y = (torch.from_numpy(np.concatenate([getattr(table, side) for table in tables])) for side in "xy")
    kind = getattr(torch.optim, algorithm.optimizer)
    optimizer = kind(module.parameters(), lr=algorithm.learning_rate, **algorithm.arguments)
    batch, losses = algorithm.batch_size, []
    for step in range(steps):
        number, place = divmod(step, -(-len(x) // batch))
        rows = generator(SEED, "gang", "pass", number).permutation(len(x))[place * batch : (place + 1) * batch]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x[rows]), y[rows])
        penalty = 0.5 * learner.l2 * sum(p.square().sum() for p in module.parameters())
        (loss + penalty).backward()
        optimizer.step()
        losses.append((loss.item(), len(rows)))
    last = losses[-(algorithm.steps or len(losses)) :]
    mean = sum(loss * rows for loss, rows in last) / sum(rows for _, rows in last)
    return {name: p.detach().numpy().copy() for name, p in module.state_dict().items()}, mean


def assert_near(first: Params, second: Params, within: float = 1e-6) -> None:
    assert list(first) == list(second)
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=within, atol=within, err_msg=name)


LAYOUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "one process": (modules.transformer, {}),
    "data": (modules.transformer, {"parallel": Layout(data=2)}),
    "data, convolutions": (modules.convolutional, {"parallel": Layout(data=2)}),
    "shard": (modules.transformer, {"parallel": Layout(shard=2)}),
    "tensor, by plan": (modules.transformer, {"parallel": Layout(tensor=2), "tensor_plan": PLAN}),
    "tensor, derived": (modules.perceptron, {"parallel": Layout(tensor=2)}),
    "pipeline, 1f1b": (modules.transformer, {"parallel": Layout(pipeline=2), "microbatches": 4}),
    "pipeline, gpipe": (modules.convolutional, {"parallel": Layout(pipeline=2), "schedule": "gpipe", "stages": ("5",)}),
    "data x shard": (modules.perceptron, {"parallel": Layout(data=2, shard=2)}),
    "data x tensor": (modules.transformer, {"parallel": Layout(data=2, tensor=2), "tensor_plan": PLAN}),
    "shard x tensor": (modules.perceptron, {"parallel": Layout(shard=2, tensor=2)}),
    "tensor x pipeline": (modules.transformer, {"parallel": Layout(tensor=2, pipeline=2), "tensor_plan": PLAN}),
    "data x pipeline": (modules.perceptron, {"parallel": Layout(data=2, pipeline=2), "schedule": "gpipe"}),
    "shard x pipeline": (modules.perceptron, {"parallel": Layout(shard=2, pipeline=2)}),
    "pipeline of four": (modules.transformer, {"parallel": Layout(pipeline=4)}),
}


@pytest.mark.parametrize("module, options", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_layout_trains_as_one_process_does(module: Any, options: dict[str, Any], engines: Members, tmp_path: Path) -> None:
    """Params and loss after two rounds that cross a pass over the rows; clients, batches and micro-batches are uneven."""
    learner, algorithm = TorchLearner(module=module, l2=0.01), replace(ADAM, **options)
    params = begin(learner, "digits")
    state, loss = play(engines[algorithm.parallel.members], learner, algorithm, tmp_path, algorithm.init(params, {}), rounds=2)
    expected, mean = plain(learner, algorithm, params, 12)
    assert_near(state["params"], expected)
    assert loss == pytest.approx(mean, rel=1e-6)
    assert not any(np.allclose(params[name], expected[name]) for name in params)


@pytest.mark.parametrize("parallel", [Layout(data=2), Layout(shard=2), Layout(tensor=2), Layout(pipeline=2)], ids=str)
def test_single_precision_agrees_to_a_millionth(parallel: Layout, engines: Members, tmp_path: Path) -> None:
    learner = TorchLearner(module=modules.perceptron, options={"inputs": 30, "outputs": 2, "single": True})
    algorithm = Synchronous(steps=8, batch_size=64, learning_rate=0.05, arguments={"momentum": 0.9}, parallel=parallel)
    params = begin(learner, "cancer")
    state, _ = play(engines[2], learner, algorithm, tmp_path, algorithm.init(params, {}), rounds=1, name="cancer")
    assert state["params"]["0.weight"].dtype == np.float32
    assert_near(state["params"], plain(learner, algorithm, params, 8, "cancer")[0])


MOVES = {
    "data to tensor": (Layout(data=2), Layout(tensor=2)),
    "shard to pipeline": (Layout(shard=2), Layout(pipeline=2)),
    "pipeline to shard": (Layout(pipeline=2), Layout(shard=2)),
    "tensor to one process": (Layout(tensor=2), Layout()),
    "one process to data": (Layout(), Layout(data=2)),
    "tensor and pipeline to data and shard": (Layout(tensor=2, pipeline=2), Layout(data=2, shard=2)),
}


@pytest.mark.parametrize("before, after", MOVES.values(), ids=MOVES.keys())
def test_a_checkpoint_is_resumed_on_another_layout(before: Layout, after: Layout, engines: Members, tmp_path: Path) -> None:
    """The optimiser's moments are in it: without them AdamW would take other steps."""
    learner = TorchLearner(module=modules.perceptron)
    params = begin(learner, "digits")
    first, second = replace(ADAM, parallel=before), replace(ADAM, parallel=after)
    state, _ = play(engines[before.members], learner, first, tmp_path, first.init(params, {}), rounds=2)
    state, _ = play(engines[after.members], learner, second, tmp_path, state, rounds=2, first=3)
    assert_near(state["params"], plain(learner, ADAM, params, 24)[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000003", "round-000004"]  # older ones are not needed


def test_members_keep_what_they_have_built_between_rounds(engines: Members, tmp_path: Path) -> None:
    """A thin call is enough for them; with the last checkpoint gone they could not build anything again."""
    learner, algorithm = TorchLearner(module=modules.perceptron), replace(ADAM, parallel=Layout(data=2))
    params = begin(learner, "digits")
    state, _ = play(engines[2], learner, algorithm, tmp_path, algorithm.init(params, {}), rounds=1)
    for path in (tmp_path / "round-000001").iterdir():
        path.unlink()
    state, _ = play(engines[2], learner, algorithm, tmp_path, state, rounds=1, first=2)
    assert_near(state["params"], plain(learner, algorithm, params, 12)[0])
    for path in (tmp_path / "round-000002").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no checkpoint of round 2; restore it"):
        play(engines[1], learner, replace(algorithm, parallel=Layout()), tmp_path, state, rounds=1, first=3)


def test_rounds_cut_the_steps_and_change_nothing(tmp_path: Path) -> None:
    learner, params = TorchLearner(module=modules.perceptron), begin(TorchLearner(module=modules.perceptron), "digits")
    engine = InlineEngine()
    once, _ = play(engine, learner, replace(ADAM, steps=12), tmp_path / "once", {"params": params}, rounds=1)
    often, _ = play(engine, learner, replace(ADAM, steps=3), tmp_path / "often", {"params": params}, rounds=4)
    engine.stop()
    assert all(np.array_equal(once["params"][name], often["params"][name]) for name in params)


def test_one_layout_gives_the_same_bits_again(engines: Members, tmp_path: Path) -> None:
    learner, algorithm = TorchLearner(module=modules.perceptron), replace(ADAM, parallel=Layout(data=2))
    params = begin(learner, "digits")
    first, second = (play(engines[2], learner, algorithm, tmp_path / name, {"params": params}, rounds=2)[0] for name in "ab")
    assert all(np.array_equal(first["params"][name], second["params"][name]) for name in params)


def test_the_schedule_multiplies_the_rate(tmp_path: Path) -> None:
    engine, learner = InlineEngine(), TorchLearner(module=modules.perceptron)
    params = begin(learner, "digits")
    basis = Basis(learner, modules.clients("digits"), modules.schema("digits"))

    def after(rate: float, factor: float) -> Params:
        algorithm = replace(ADAM, learning_rate=rate)
        call = GangCall(basis, algorithm, Layout(), SEED, 1, factor, str(tmp_path / f"{rate}"), params)
        (part,) = Assembly(call).answer(engine)
        return part.params

    halved = after(0.02, 0.5)
    assert all(np.array_equal(value, after(0.01, 1.0)[name]) for name, value in halved.items())
    engine.stop()


@pytest.mark.parametrize("compression, within", [("fp16", 1e-3), ("bf16", 1e-2), ("powersgd", None)])
def test_compressed_gradients_train(compression: Any, within: float | None, engines: Members, tmp_path: Path) -> None:
    """Half precision stays near the params of whole gradients; PowerSGD, with rank 4, reaches their loss, of 2.3 at first, to 0.05."""
    learner = TorchLearner(module=modules.perceptron)
    algorithm = Synchronous(
        steps=0,
        batch_size=50,
        learning_rate=0.2,
        arguments={"momentum": 0.9},
        parallel=Layout(data=2),
        compression=compression,
        rank=4,
    )
    params = begin(learner, "digits")
    rounds = 1 if within else 12
    state, loss = play(engines[2], learner, algorithm, tmp_path, algorithm.init(params, {}), rounds=rounds)
    expected, mean = plain(learner, replace(algorithm, steps=10), params, 10 * rounds)
    assert any(not np.array_equal(state["params"][name], expected[name]) for name in params)  # it was compressed
    if within:
        assert_near(state["params"], expected, within)
    assert loss == pytest.approx(mean, abs=0.05)


def test_diloco_of_one_inner_step_is_synchronous_descent(engines: Members, tmp_path: Path) -> None:
    """With all rows in a step, outer rate 1 and no momentum, the mean of two replicas' steps is the step along the mean gradient."""
    learner = TorchLearner(module=modules.perceptron)
    params = begin(learner, "digits")
    options: dict[str, Any] = {"steps": 1, "batch_size": 0, "optimizer": "SGD", "learning_rate": 0.3}
    apart = DiLoCo(**options, parallel=Layout(data=2), outer_learning_rate=1.0, outer_momentum=0.0)
    state, loss = play(engines[2], learner, apart, tmp_path / "apart", apart.init(params, {}), rounds=5, sizes=(150, 150))
    together = Synchronous(**options)
    other, mean = play(engines[1], learner, together, tmp_path / "together", together.init(params, {}), rounds=5, sizes=(150, 150))
    assert_near(state["params"], other["params"], 1e-12)
    assert loss == pytest.approx(mean)


def test_diloco_keeps_each_replicas_optimizer_and_resumes_on_another_layout(engines: Members, tmp_path: Path) -> None:
    """Against algorithm 1 written out with plain PyTorch: AdamW of each replica, Nesterov outside."""
    learner = TorchLearner(module=modules.perceptron)
    params = begin(learner, "digits")
    algorithm = DiLoCo(steps=4, batch_size=20, learning_rate=0.01, parallel=Layout(data=2, shard=2))
    state, _ = play(engines[4], learner, algorithm, tmp_path, algorithm.init(params, {}), rounds=2)
    moved = replace(algorithm, parallel=Layout(data=2, tensor=2))
    state, _ = play(engines[4], learner, moved, tmp_path, state, rounds=1, first=3)
    moved = replace(algorithm, parallel=Layout(data=2))
    state, _ = play(engines[2], learner, moved, tmp_path, state, rounds=1, first=4)

    bound = learner.bind(modules.schema("digits"))
    tables = [bound.arrays(client.load()["train"]) for client in modules.clients("digits")]
    halves = [tables[:2], tables[2:]]
    replicas = [bound.fresh(torch.device("cpu")).load(params).train() for _ in halves]
    inner = [torch.optim.AdamW(replica.parameters(), lr=0.01) for replica in replicas]
    outer = [torch.nn.Parameter(p.detach().clone()) for p in replicas[0].parameters()]
    nesterov = torch.optim.SGD(outer, lr=0.7, momentum=0.9, nesterov=True)
    for number in range(4):
        for k, (replica, optimizer, half) in enumerate(zip(replicas, inner, halves, strict=True)):
            with torch.no_grad():
                for p, w in zip(replica.parameters(), outer, strict=True):
                    p.copy_(w)
            x, y = (torch.from_numpy(np.concatenate([getattr(table, side) for table in half])) for side in "xy")
            for step in range(4 * number, 4 * number + 4):
                turn, place = divmod(step, -(-len(x) // 20))
                rows = generator(SEED, "replica", k, "pass", turn).permutation(len(x))[20 * place : 20 * place + 20]
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(replica(x[rows]), y[rows]).backward()
                optimizer.step()
        for w, *each in zip(outer, *(replica.parameters() for replica in replicas), strict=True):
            w.grad = torch.stack([(w - p).detach() for p in each]).mean(0)
        nesterov.step()
    assert_near(state["params"], {name: w.detach().numpy() for name, w in zip(params, outer, strict=True)})


def digits_job(module: Any, algorithm: Any, engine: Any, rounds: int = 4) -> hansa.Job:
    x, y = modules.digits()
    return hansa.Job(
        data=hansa.from_arrays(x[:600], y[:600]),
        partition=hansa.IID(clients=3),
        learner=TorchLearner(module=module) if not isinstance(module, TorchLearner) else module,
        algorithm=algorithm,
        engine=engine,
        rounds=hansa.Rounds(count=rounds),
        evaluation=hansa.Evaluation(every=rounds),
    )


def test_a_run_goes_on_after_a_member_was_killed_and_on_another_layout(tmp_path: Path) -> None:
    """Killed within a step while the other waits for it: the error names the rank, and the last checkpoint holds."""
    algorithm = Synchronous(steps=5, batch_size=40, optimizer="Adam", learning_rate=0.01, parallel=Layout(data=2))
    engine = hansa.Processes(workers=2)

    def job(mark: Path) -> hansa.Job:
        learner = TorchLearner(module=modules.fatal, options={"mark": str(mark), "step": 13})
        return digits_job(learner, algorithm, engine)

    (tmp_path / "whole").touch()
    whole = hansa.run(replace(job(tmp_path / "whole"), engine=hansa.Inline(), algorithm=replace(algorithm, parallel=Layout())),
                      directory=tmp_path / "runs", quiet=True)  # fmt: skip
    assert whole.ended == "played all 4 rounds" and whole.metrics["test/accuracy"] > 0.5
    broken = job(tmp_path / "mark")
    with pytest.raises(RunFailed, match=r"gang member 1 of 2: its process ended before it was done \(killed by signal 9\)"):
        hansa.run(broken, directory=tmp_path / "runs", quiet=True)
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path != whole.directory)
    assert (folder / "checkpoints" / "round-000002" / ".metadata").is_file()
    elsewhere = replace(broken, engine=hansa.Inline(), algorithm=replace(algorithm, parallel=Layout()))
    with pytest.raises(InputError, match="is not the one of the run"):
        hansa.resume(folder, replace(elsewhere, algorithm=replace(elsewhere.algorithm, steps=4)), quiet=True)
    resumed = hansa.resume(folder, elsewhere, quiet=True)
    assert_near(resumed.params, whole.params)
    assert [record["round"] for record in resumed.history] == [1, 2, 3, 4]


# What cannot work


@pytest.mark.parametrize("engine, parallel, message", [
    (hansa.Processes(workers=4), Layout(2, 1, 2, 2),
     r"parallel: tensor 2 x pipeline 2 x data 2 x shard 1 = 8 members, and engine processes has 4 \(write engine.workers = 8"),
    (hansa.Inline(), Layout(shard=2), r'shard 2 = 2 members, and engine inline has 1 \(.*write engine = "processes" or "torchrun"'),
    (hansa.Processes(workers=3), Layout(data=0, tensor=2),
     r"tensor 2 x pipeline 1 x data 1 x shard 1 = 2 members a replica, and the 3 places of engine processes are no multiple"),
    (hansa.Dask(workers=2), Layout(data=0), "data 0 fills the places of an engine and engine dask has no fixed number; write data"),
])  # fmt: skip
def test_a_layout_that_does_not_fit_is_refused_with_every_factor(engine: Any, parallel: Layout, message: str) -> None:
    with pytest.raises(InputError, match=message):
        digits_job(modules.perceptron, Synchronous(parallel=parallel), engine)


def test_no_data_factor_fills_the_engine() -> None:
    assert Layout(data=0, tensor=2).filled("processes", 6) == Layout(data=3, tensor=2)


@pytest.mark.parametrize("changes, message", [
    ({"transforms": (Clip(1.0),)}, "transforms: algorithm 'synchronous' trains in a gang"),
    ({"rounds": hansa.Rounds(clients=0.5)}, "rounds.clients: .* trains in a gang"),
    ({"learner": hansa.MLP()}, "needs a learner that offers gang"),
], ids=["transforms", "cohort", "learner"])  # fmt: skip
def test_what_a_gang_has_no_place_for_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(digits_job(modules.perceptron, Synchronous(), hansa.Inline()), **changes)


def normed() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10)).double()


@pytest.mark.parametrize("module, options, message", [
    (modules.perceptron, {"optimizer": "LBFGS"}, "algorithm.optimizer = 'LBFGS' is not one of torch.optim"),
    (modules.perceptron, {"optimizer": "adam"}, "did you mean 'Adam'"),
    (modules.perceptron, {"arguments": {"lr": 0.1}}, "takes no 'lr'; the rate is algorithm.learning_rate"),
    (modules.perceptron, {"arguments": {"momentum": -1.0}}, "torch.optim.SGD: Invalid momentum"),
    (modules.perceptron, {"compression": "fp16"}, 'compression = "fp16": it is for gradients between whole replicas'),
])  # fmt: skip
def test_options_that_cannot_work_are_refused(module: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    learner, engine = TorchLearner(module=module), InlineEngine()
    with pytest.raises(InputError, match=message):
        play(engine, learner, Synchronous(**options), tmp_path, {"params": begin(learner, "digits")}, rounds=1)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    job = digits_job(modules.perceptron, Synchronous(learning_rate=1e200, batch_size=300), hansa.Inline())
    with pytest.raises(hansa.Diverged, match=r"round \d: the loss is .*; lower algorithm.learning_rate"):
        hansa.run(job, directory=tmp_path, quiet=True)


def test_a_gang_is_not_one_of_many_fits_nor_without_a_folder(tmp_path: Path) -> None:
    learner, engine = TorchLearner(module=modules.perceptron), InlineEngine()
    basis = Basis(learner, modules.clients("digits"), modules.schema("digits"))

    def steps() -> Any:
        yield Assembly(GangCall(basis, ADAM, Layout(), SEED, 1, 1.0, str(tmp_path), begin(learner, "digits")))

    (ended,) = together(engine, [Task("first", steps())])
    assert isinstance(ended.error, InputError) and "task first: its algorithm trains in a gang" in str(ended.error)
    with pytest.raises(InputError, match="a gang keeps its checkpoints in a run folder, and there is none here"):
        hansa.compare(digits_job(modules.perceptron, Synchronous(), hansa.Inline()))


def test_batch_norm_is_refused_where_a_batch_is_cut(engines: Members, tmp_path: Path) -> None:
    learner = TorchLearner(module=normed())
    with pytest.raises(InputError, match=r"layer '1' \(BatchNorm1d\) would take its statistics from a member's part of a batch"):
        play(engines[2], learner, Synchronous(parallel=Layout(data=2)), tmp_path, {"params": begin(learner, "digits")}, rounds=1)
    state, _ = play(engines[1], learner, Synchronous(steps=2), tmp_path, {"params": begin(learner, "digits")}, rounds=1)
    assert state["params"]["1.num_batches_tracked"] == 2


def test_stages_are_cut_where_they_are_even_or_where_they_are_told_to() -> None:
    module = modules.perceptron()
    assert [[name for name, _ in part.named_children()] for part in cut(module, 2, ())] == [["0"], ["1", "2", "3", "4"]]
    assert [[name for name, _ in part.named_children()] for part in cut(module, 3, ())] == [["0"], ["1", "2"], ["3", "4"]]
    assert [[name for name, _ in part.named_children()] for part in cut(module, 3, ("2", "4"))] == [["0", "1"], ["2", "3"], ["4"]]
    for stages, begins, message in [
        (2, ("0",), "these must be 1 children of the module after its first"),
        (2, ("9",), "these must be 1 children"),
        (3, ("1", "2"), "stage 1 of pipeline 3 would have nothing to train"),
        (6, (), "has 5 children; write pipeline = 5"),
    ]:
        with pytest.raises(InputError, match=message):
            cut(module, stages, begins)
    with pytest.raises(InputError, match=r"Layer is no nn\.Sequential"):
        cut(modules.Layer(8), 2, ())
    tied = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="two stages of the pipeline would share a param"):
        cut(tied, 2, ())


def test_one_forward_one_backward_needs_a_microbatch_for_every_stage() -> None:
    assert microbatches_of(Synchronous(), 3) == 3
    assert microbatches_of(Synchronous(microbatches=2, schedule="gpipe"), 3) == 2
    with pytest.raises(InputError, match="there must be at least 3"):
        microbatches_of(Synchronous(microbatches=2), 3)


def test_the_tensor_plan_pairs_layers_or_follows_names() -> None:
    assert plan_of(modules.perceptron(), {}) == {"0": "colwise", "2": "rowwise", "4": "gathered"}
    assert plan_of(modules.convolutional(), {}) == {"5": "colwise", "7": "rowwise"}
    named = plan_of(modules.transformer(), {"*.up": "colwise", "*.down": "rowwise"})
    assert named == {"1.up": "colwise", "2.up": "colwise", "1.down": "rowwise", "2.down": "rowwise"}
    with pytest.raises(InputError, match=r"'\*.upp' is no linear or embedding layer of the module"):
        plan_of(modules.transformer(), {"*.upp": "colwise"})
    with pytest.raises(InputError, match="no plan follows from Layer"):
        plan_of(modules.Layer(8), {})


@pytest.mark.parametrize("ends", [(500,), (200, 500), (10, 10, 500), (250, 300, 400, 500)], ids=str)
@pytest.mark.parametrize("batch_size, multiple", [(64, 1), (64, 4), (0, 1), (7, 2)])
def test_the_parts_of_a_batch_are_the_batch(ends: tuple[int, ...], batch_size: int, multiple: int) -> None:
    """Whatever the shares, a step's rows are the same, each with the weight of the mean; and every row is used once in a pass."""
    table = Table(np.zeros((1, 1)), np.zeros(1))
    begins = (0, *ends[:-1])
    shares = [list(Share(table, ends, k).batches(3, 12, batch_size, multiple, 5)) for k in range(len(ends))]
    alone = list(Share(table, (500,), 0).batches(3, 12, batch_size, 1, 5))
    for step, parts in enumerate(zip(*shares, strict=True)):
        rows = [part.rows[: part.real] + begin for part, begin in zip(parts, begins, strict=True)]
        assert np.array_equal(np.sort(np.concatenate(rows)), np.sort(alone[step].rows[: alone[step].real]))
        assert len({len(part.rows) for part in parts}) == 1 and len(parts[0].rows) % multiple == 0
        for part in parts:
            np.testing.assert_allclose(part.weight[: part.real], len(ends) / alone[step].real)
            assert not part.weight[part.real :].any()
    if batch_size:
        per = -(-500 // batch_size)
        whole = np.concatenate([batch.rows[: batch.real] for batch in Share(table, (500,), 0).batches(per, per, batch_size, 1, 5)])
        assert np.array_equal(np.sort(whole), np.arange(500))


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"0": "colwise"}, "does not divide the 10 outputs of the layer '0', which is cut colwise"),
        ({"0": "rowwise"}, "does not divide the 7 inputs of the layer '0', which is cut rowwise"),
    ],
)
def test_a_cut_into_unequal_parts_is_refused(plan: dict[str, str], told: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(7, 10), torch.nn.Embedding(10, 5))
    refuse_uneven(module, plan, 1)
    refuse_uneven(module, dict.fromkeys(plan, "gathered"), 3)
    with pytest.raises(InputError, match=f"tensor = 3 {told}"):
        refuse_uneven(module, plan, 3)
