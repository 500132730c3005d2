"""A call that travelled does the same work to the last bit, and one that is none is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

import hansa
from hansa.algorithms.fedavg import FedAvg, FedProx
from hansa.algorithms.fedmedian import FedMedian
from hansa.algorithms.gradient_descent import GradientDescent
from hansa.algorithms.newton import Newton
from hansa.algorithms.scaffold import Scaffold
from hansa.core.contracts import Message, Schema
from hansa.core.errors import InputError
from hansa.core.local import Local
from hansa.core.loop import Exchange, Harvest
from hansa.core.store import MemoryStore
from hansa.core.updates import Failure, Total, Update
from hansa.core.worker import EvaluateCall, WorkCall, Worker, attempt
from hansa.data.describe import Describe
from hansa.federation import parcels
from hansa.federation.calls import decode_call, encode_call, kind_of
from hansa.federation.expectations import Expected, expected
from hansa.federation.results import decode_result, encode_result
from hansa.judging import judge_steps
from hansa.learners.kmeans import KMeans
from hansa.learners.mlp import MLP
from hansa.learners.pca import PCA
from hansa.opening import clients_of, setting_steps
from hansa.options import build, registry
from hansa.privacy.clip import Clip
from hansa.training import prepare_steps, train_steps
from tests.trees import same_bits

LOCAL = Local(epochs=2, batch_size=16, learning_rate=0.05)
ALGORITHMS: dict[str, Any] = {
    "fedavg": FedAvg(local=LOCAL),
    "fedprox": FedProx(local=LOCAL, mu=0.1),
    "fedmedian": FedMedian(local=LOCAL),
    "gradient_descent": GradientDescent(),
    "newton": Newton(),
    "scaffold": Scaffold(local=LOCAL),
}
LEARNERS: dict[str, Callable[[], Any]] = {
    "trees": lambda: RandomForestClassifier(n_estimators=6, max_depth=3),
    "clusters": lambda: KMeans(clusters=3),
    "moments": lambda: PCA(components=2),
}
"""What an algorithm that needs it is given; all others, a logistic regression."""


def played() -> list[str]:
    """The installed algorithms whose rounds organisations can play."""
    made = {name: build("algorithm", name) for name in registry("algorithm")}
    return [name for name, algorithm in made.items() if algorithm.collective != "gang"]


class Wire:
    """Answers exchanges as a federation does: every call and every result goes through a file. Also without it, to compare."""

    def __init__(self, job: Any, folder: Path | None) -> None:
        self.job, self.folder, self.names, self.seen = job, folder, count(), list[tuple[Any, Expected, Any]]()
        self.worker = Worker(job.learner, clients_of(job), MemoryStore())

    def through_a_file(self, tree: Any) -> Any:
        assert self.folder is not None
        path = self.folder / str(next(self.names))
        parcels.write(path, tree)
        return parcels.read(path)

    def answer(self, exchange: Exchange) -> Any:
        call: Any = exchange.call
        if self.folder is not None:
            call = decode_call(self.through_a_file(encode_call(call)))
            assert kind_of(call) == kind_of(exchange.call)
        harvest = Harvest(exchange)
        for block in exchange.blocks:
            result = attempt(call, self.worker, block)
            if self.folder is not None and not isinstance(result, Failure):
                tree = self.through_a_file(encode_result(result))
                self.seen.append((exchange.call, expected(call), tree))
                clients = tuple(self.worker.clients[member].id for member in block.members)
                decoded = decode_result(tree, expected(call))
                result = replace(decoded, clients=clients) if isinstance(decoded, Update) else decoded
            harvest.add(block.number, result)
        return harvest.answer()

    def play(self, steps: Any) -> Any:
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(self.answer(wanted))
        except StopIteration as end:
            return end.value

    def whole_run(self) -> tuple[Any, list[dict[str, Any]]]:
        records: list[dict[str, Any]] = []
        setting = self.play(setting_steps(self.job, self.worker.clients, None))  # type: ignore[arg-type]  # no engine: this class plays the steps
        state = self.play(train_steps(setting, self.play(prepare_steps(setting)), records.append))
        schema, learner = setting.bound(state["preparation"])
        records.append(self.play(judge_steps(setting, schema, learner, state["algorithm"]["params"], 0)))
        timeless = [
            {name: value for name, value in r.items() if name != "seconds" and not name.startswith("time/")} for r in records
        ]
        return state, timeless


def job(algorithm: Any, learner: Any = None, **more: Any) -> Any:
    parts = {"data": "heart_disease", "partition": "column", "preparation": "standard", **more}
    built = {name: build(name, parts.pop(name)) for name in ("data", "partition", "preparation") if parts[name] is not None}
    given = {"split": hansa.Split(test=0.2, validation=0.2), "rounds": hansa.Rounds(count=3, block=1), "seed": 7}
    estimator = LogisticRegression() if learner is None else learner
    return hansa.Job(
        learner=estimator, algorithm=algorithm, **{**given, **built, **{k: v for k, v in parts.items() if v is not None}}
    )


def law(given: Any, tmp_path: Path) -> Wire:
    wire = Wire(given, tmp_path)
    through, plain = wire.whole_run(), Wire(given, None).whole_run()
    assert same_bits(through[0], plain[0]) and through[1] == plain[1]
    return wire


@pytest.mark.parametrize("name", played())
def test_a_run_over_the_wire_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    algorithm = ALGORITHMS.get(name) or build("algorithm", name)
    learner = next((make() for need, make in LEARNERS.items() if need in algorithm.needs), None)
    columns = "parts" in algorithm.needs
    more = {"partition": {"name": "features", "parts": 3}, "data": "breast_cancer"} if columns else {}
    wire = law(job(algorithm, learner, transforms=(Clip(norm=3.0),) if name == "fedavg" else (), **more), tmp_path)
    assert {kind_of(call) for call, _, _ in wire.seen} == {"describe", "prepare", "train", "evaluate"}
    declared = [
        hope.values is not None or hope.facts for call, hope, _ in wire.seen if kind_of(call) != "train" or name in ALGORITHMS
    ]
    assert all(declared) or columns


def test_labels_that_are_text_and_numbers_that_are_targets_travel(tmp_path: Path) -> None:
    law(job(Newton(), LinearRegression(), data="diabetes", partition={"name": "iid", "clients": 3}), tmp_path)


def test_a_torch_module_and_an_mlp_train_from_what_came_over_the_wire(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    (tmp_path / "mlp").mkdir()
    law(job(ALGORITHMS["fedavg"], MLP(hidden=(8,))), tmp_path / "mlp")
    net = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    (tmp_path / "torch").mkdir()
    law(job(ALGORITHMS["scaffold"], net), tmp_path / "torch")


def test_equal_calls_have_equal_digests(tmp_path: Path) -> None:
    calls = [
        WorkCall(ALGORITHMS["newton"], Message({"w": np.ones(3)}, {"rate": 0.1}), Schema(("a",), (1,)), 3, 1) for _ in range(2)
    ]
    assert parcels.write(tmp_path / "a", encode_call(calls[0])) == parcels.write(tmp_path / "b", encode_call(calls[1]))


@dataclass(frozen=True)
class Own(FedAvg):
    """An algorithm that is not installed."""

    name: Literal["own"] = field(default="own", kw_only=True)  # type: ignore[assignment]  # each algorithm has its own name


@dataclass(frozen=True)
class Disguised(FedAvg):
    """An algorithm that has the name of another one."""


@pytest.mark.parametrize(("algorithm", "why"), [(Own(), "no such algorithm"), (Disguised(), "more than its options say")])
def test_only_installed_algorithms_travel(algorithm: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        encode_call(WorkCall(algorithm, Message(), Schema(), 0, 1))


SCHEMA = Schema(("a", "b"), (2,), "float64", (0, 1), 10)
CALL = WorkCall(FedAvg(local=LOCAL), Message({"w": np.ones(2), "n": np.ones(1, np.int64)}, {"rate": 1.0}), SCHEMA, 5, 2)


def call_tree(change: Callable[[Any], Any]) -> Any:
    tree = encode_call(CALL)
    change(tree)
    return tree


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "another kind": lambda t: t.update(call="import"),
    "a kind that is no text": lambda t: t.update(call=["train"]),
    "an algorithm that is not installed": lambda t: t.update(algorithm={"name": "os.system"}),
    "an algorithm of another group": lambda t: t.update(algorithm={"name": "clip"}),
    "a name that is a list": lambda t: t.update(algorithm={"name": []}),
    "a nested name that is a list": lambda t: t["algorithm"].update(server={"name": []}),
    "an option that is an array": lambda t: t["algorithm"].update(local=np.ones(3)),
    "an option out of range": lambda t: t["algorithm"]["local"].update(epochs=-1),
    "a strange option": lambda t: t["algorithm"].update(code="1"),
    "a transform that is none": lambda t: t.update(transforms=[7]),
    "a negative round": lambda t: t.update(round=-1),
    "a round that is true": lambda t: t.update(round=True),
    "a strange split": lambda t: t.update(split="everything"),
    "a strange weighting": lambda t: t.update(weighting="mine"),
    "no schema": lambda t: t.update(schema=None),
    "a strange dtype": lambda t: t["schema"].update(dtype="V8"),
    "a dtype that is none": lambda t: t["schema"].update(dtype="x" * 1000),
    "classes that are arrays": lambda t: t["schema"].update(classes=[np.ones(2)]),
    "a preparation that is text": lambda t: t["schema"].update(preparation="x", prepared=True),
    "a preparation that is not said": lambda t: t["schema"].update(preparation={}),
    "params that are numbers": lambda t: t["message"].update(params={"w": 1.0}),
    "something more": lambda t: t.update(pickle="x"),
    "something less": lambda t: t.pop("seed"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_CALLS)
def test_a_call_that_is_none_is_refused(what: str) -> None:
    decode_call(encode_call(CALL))
    with pytest.raises(InputError):
        decode_call(call_tree(BAD_CALLS[what]))


class Seen(list[tuple[Any, Expected, Any]]):
    """The exchanges of a run. Short to print."""

    def __repr__(self) -> str:
        return f"{len(self)} results"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    wire = Wire(job(ALGORITHMS["newton"], rounds=hansa.Rounds(count=1, block=1)), tmp_path_factory.mktemp("seen"))
    wire.whole_run()
    return Seen(wire.seen)


FACTS: list[Callable[[Any], Any]] = [
    lambda f: f.update(layout="picture"),
    lambda f: f.update(more=1),
    lambda f: f.pop("labels"),
    lambda f: f["rows"].update(train=-1),
    lambda f: f["rows"].update(train=True),
    lambda f: f["rows"].pop("train"),
    lambda f: f["rows"].update(secret=1),
    lambda f: f["columns"].update(age=7),
    lambda f: f["columns"]["age"].update(kind="category"),
    lambda f: f["columns"]["age"].update(mean=float("nan")),
    lambda f: f["columns"]["age"].update(mean="much"),
    lambda f: f["columns"]["age"].update(few=[0.0] * 21),
    lambda f: f["columns"]["age"].update(missing=None),
    lambda f: f["labels"].update(dtype="object"),
    lambda f: f["labels"].update(counts={"train": [[[], 1]]}),
    lambda f: f["labels"].update(counts={"train": [[0, 1, 2]]}),
    lambda f: f["labels"].update(counts=[]),
]


@pytest.mark.parametrize("change", FACTS)
def test_facts_that_are_none_are_refused(seen: list[Any], change: Callable[[Any], Any]) -> None:
    _, hope, tree = next(entry for entry in seen if isinstance(getattr(entry[0], "algorithm", None), Describe))
    decode_result(tree, hope)
    changed = deepcopy(tree)
    change(changed["values"]["facts"][0])
    with pytest.raises(InputError, match="facts"):
        decode_result(changed, hope)


JUNK = [
    None,
    True,
    -1,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    [],
    {},
    [[]],
    {"a": 1},
    np.ones(2),
    np.float64(1.0),
    np.array([np.nan]),
    (),
]


def damage(node: Any, rng: np.random.Generator) -> Any:
    """The tree with one place changed."""
    if isinstance(node, dict | list) and node and rng.random() < 0.85:
        copy: Any = dict(node) if isinstance(node, dict) else list(node)
        places: list[Any] = list(copy) if isinstance(copy, dict) else list(range(len(copy)))
        place = places[rng.integers(len(places))]
        if rng.random() < 0.1:
            del copy[place]
        elif rng.random() < 0.1 and isinstance(copy, dict):
            copy[str(rng.integers(3))] = JUNK[rng.integers(len(JUNK))]
        else:
            copy[place] = damage(copy[place], rng)
        return copy
    return JUNK[rng.integers(len(JUNK))]


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_damaged_calls_and_results_are_refused_or_are_still_calls_and_results(seen: list[Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        call, hope, tree = seen[rng.integers(len(seen))]
        with suppress(InputError):
            assert isinstance(decode_result(damage(tree, rng), hope), Update | Total)
        with suppress(InputError):
            assert isinstance(decode_call(damage(encode_call(call), rng)), WorkCall | EvaluateCall)
