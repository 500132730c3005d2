"""The client's say against a server that lies: every call goes the way that a task goes at a client."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tomllib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest

import hansa
from hansa.core.contracts import Message, Schema
from hansa.core.worker import EvaluateCall, ScoreCall, WorkCall
from hansa.data.builtin import SKLEARN, BuiltIn
from hansa.data.describe import Describe
from hansa.data.preparation import FitPreparation
from hansa.federated.client import Client, Mine
from hansa.federated.consent import misspelt
from hansa.federated.opened import LABELS, label_of
from hansa.federated.server import Server
from hansa.federation import calls, parcels
from hansa.federation import client as living
from hansa.federation.audit import Audit
from hansa.federation.policy import Policy
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.served import Served
from hansa.options import build
from tests.federation.parties import working

PAGE = (Path(__file__).parent.parent.parent / "docs" / "federation.md").read_text("utf-8")
ROWS = 200

JOB = """
name = "heart"
data.name = "elsewhere"
split.test = 0.1
split.stratify = false
learner.name = "sklearn"
learner.estimator = "LogisticRegression"
rounds.count = 9
[algorithm]
name = "fedavg"
local.epochs = 1
local.batch_size = 0
local.learning_rate = 1e-6
[[transforms]]
name = "clip"
norm = 1e12
"""
SCHEMA = Schema(("age", "chol", "pulse"), (3,), "float64", (0, 1), ROWS)
FEDAVG = build("algorithm", {"name": "fedavg", "local": {"epochs": 1, "batch_size": 0, "learning_rate": 1e-6}})
CLIP = build("transform", {"name": "clip", "norm": 1e12})
START = {"coef": np.zeros((1, 3)), "intercept": np.zeros(1)}


def frame(rows: int = ROWS, **columns: Any) -> pd.DataFrame:
    draw = np.random.default_rng(3)
    x = {"age": draw.normal(size=rows), "chol": draw.normal(size=rows), "pulse": draw.normal(size=rows)}
    return pd.DataFrame({**x, "outcome": draw.integers(0, 2, rows), **columns})


class Liar:
    """A client, and in a server's place who sends what it likes: job and call reach the client as they would, and so it answers."""

    def __init__(self, folder: Path, policy: Policy, data: Any = None) -> None:
        self.blobs, self.home = folder / "blobs", folder / "home"
        self.blobs.mkdir()
        if data is None:
            frame().to_csv(folder / "rows.csv", index=False)
            data = {"data": {"name": "file", "path": str(folder / "rows.csv"), "label": "outcome"}}
        self.client = Client("127.0.0.1:1", data=data, home=self.home, name="hospital", policy=policy)
        self.start()

    def start(self) -> None:
        """The client's process begins anew: all it knows is what lies in its home."""
        self._seats: OrderedDict[str, living.Seat] = OrderedDict()
        self._served = Served(self.client.home.folder("state"))

    def send(self, call: Any, text: str = JOB, run: str = "run-1") -> dict[str, Any]:
        """What the client answers: the tree of its result, or the fields of a report without one."""
        digest = parcels.write(self.blobs / "call", calls.encode_call(call))
        (self.blobs / "call").rename(self.blobs / digest)
        job = hashlib.sha256(text.encode()).hexdigest()
        (self.blobs / job).write_text(text)
        task = pb.Task(id="t", run=run, population=4, call=pb.Blob(digest=digest), job=pb.Blob(digest=job))
        with Audit.open(self.home / "audit.jsonl") as audit, pytest.MonkeyPatch.context() as patch:
            patch.setattr(living, "_fetched", lambda _desk, blob, *_: self.blobs / blob.digest)
            link: Any = None  # nothing is fetched over it
            desk = living.Desk("hospital", link, self.client.policy, audit, self.blobs, self.client._open, self._served)
            outcome = living._outcome(desk, self._seats, task, self.blobs, lambda _: None)
        return outcome if isinstance(outcome, dict) else dict(parcels.read(outcome))

    def audited(self, what: str) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in (self.home / "audit.jsonl").read_text().splitlines()]
        return [entry["details"] for entry in entries if entry["action"] == what]


def refused(answer: dict[str, Any]) -> str:
    assert "refusal" in answer, answer
    return str(answer["refusal"].rule)


def trains(algorithm: Any = FEDAVG, **changes: Any) -> WorkCall:
    message = Message(START, {"rate": 1.0})
    return replace(WorkCall(algorithm, message, SCHEMA, 0, 1, transforms=(CLIP,)), **changes)


def judges(params: Any = START, split: str = "test", round: int = 1) -> EvaluateCall:
    return EvaluateCall(params, SCHEMA, 0, round, split)


DESCRIBES = WorkCall(Describe(), Message(), None, 0, 0)
STRANGE: dict[str, tuple[Any, str]] = {
    "another algorithm": (trains(hansa.Newton(), message=Message(START, {"phase": "hessian"})), "'newton'.*'fedavg'"),
    "other options": (trains(replace(FEDAVG, local=replace(FEDAVG.local, epochs=3))), "other options"),
    "no transform": (trains(transforms=()), "other transforms"),
    "another transform": (trains(transforms=(replace(CLIP, norm=2e12),)), "other transforms"),
    "work on test rows": (trains(split="test"), "rows of 'test'"),
    "a description of test rows": (replace(DESCRIBES, split="test"), "rows of 'test'"),
    "a preparation": (WorkCall(FitPreparation({}), Message({}, {"fitted": {}}), None, 0, 0), "text names none"),
    "scores of rows": (ScoreCall(START, SCHEMA, 0, 1, "test"), "scores of single rows"),
    "a judgement on training rows": (judges(split="train"), "rows of 'train'"),
    "a judgement on rows that are not kept back": (judges(split="validation"), "rows of 'validation'"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_call_that_is_not_the_jobs_is_refused_and_audited(tmp_path: Path, what: str) -> None:
    """Whatever the policy: `algorithms` allows what the job's text names, and the call is another."""
    liar, (call, match) = Liar(tmp_path, Policy(algorithms=("fedavg",), max_epochs=1)), STRANGE[what]
    answer = liar.send(call)
    assert refused(answer) == "job" and re.search(match, answer["refusal"].message)
    assert [entry["why"] for entry in liar.audited("refused")] == [answer["refusal"].message]
    assert not liar.audited("works")


def test_the_jobs_own_calls_are_done(tmp_path: Path) -> None:
    liar = Liar(tmp_path, Policy(algorithms=("fedavg",), max_epochs=1, labels=("outcome",), min_rows=20))
    assert all("values" in liar.send(call) for call in (DESCRIBES, trains(), judges()))
    assert len(liar.audited("works")) == 3


def test_the_algorithm_and_its_passes_are_the_calls_own(tmp_path: Path) -> None:
    """Where the job's text itself names what the policy forbids."""
    for rules, rule in ((Policy(algorithms=("newton",)), "algorithms"), (Policy(learners=("mlp",)), "learners")):
        (folder := tmp_path / rule).mkdir()
        assert refused(Liar(folder, rules).send(trains())) == rule


def test_a_run_is_of_one_job_also_after_a_restart(tmp_path: Path) -> None:
    liar = Liar(tmp_path, Policy())
    assert "values" in liar.send(judges())
    for _ in range(2):
        assert refused(liar.send(judges(), JOB.replace("split.test = 0.1", "split.test = 0.2"))) == "job"
        liar.start()
        assert refused(liar.send(judges(), JOB.replace("split.test = 0.1", "split.test = 0.2"))) == "job"
        assert "values" in liar.send(judges())


@pytest.mark.parametrize(("data", "column"), [("breast_cancer", "target"), ("heart_disease", "num")])
def test_the_labels_of_a_built_in_set_have_a_name(tmp_path: Path, data: str, column: str) -> None:
    given = {"data": {"name": data}, "partition": {"name": "iid", "clients": 1}}
    for labels, rule in ((("nothing",), "labels"), ((column,), "")):
        (folder := tmp_path / labels[0]).mkdir()
        answer = Liar(folder, Policy(labels=labels), given).send(DESCRIBES)
        assert refused(answer) == rule if rule else "values" in answer


def test_labels_that_have_no_name_are_refused_where_a_policy_names_some(tmp_path: Path) -> None:
    rows = frame()
    source = hansa.from_arrays(rows[["age", "chol", "pulse"]].to_numpy(), rows["outcome"].to_numpy())
    given = {"data": source, "partition": hansa.IID(clients=1)}
    for labels in ((), ("outcome",), ("",)):
        (folder := tmp_path / f"{labels}").mkdir()
        assert refused(Liar(folder, Policy(labels=labels), Mine(**given)).send(DESCRIBES)) == "labels"
    assert label_of(source, None) is None


def test_the_names_of_labels_are_those_of_where_the_sets_come_from() -> None:
    from sklearn import datasets

    for name in SKLEARN:
        assert getattr(datasets, f"load_{name}")(as_frame=True).target.name == LABELS[name]
    heart = pd.read_csv(Path(hansa.__file__).parent / "data" / "vendored" / "heart_disease.csv", nrows=1)
    assert LABELS["heart_disease"] in heart.columns
    assert set(LABELS) == set(get_args(get_type_hints(BuiltIn)["name"]))


def test_min_rows_holds_for_every_split_that_a_call_uses(tmp_path: Path) -> None:
    """180 rows for training, 20 to judge on: what each asks for is what counts."""
    liar = Liar(tmp_path, Policy(min_rows=21))
    assert [refused(liar.send(call)) for call in (DESCRIBES, judges())] == ["min_rows", "min_rows"]
    assert "values" in liar.send(trains())
    assert [entry["here"] for entry in liar.audited("refused")] == ["there are 20 rows"] * 2


def test_evaluations_are_counted_at_the_client_once_each_also_after_a_restart(tmp_path: Path) -> None:
    liar = Liar(tmp_path, Policy(max_evaluations=3))
    sent = [judges({**START, "intercept": np.array([float(k)])}, round=1) for k in range(4)]
    for call in (*sent[:2], sent[0], *sent[:2]):
        assert "metrics" in liar.send(call)
        liar.start()
    assert "metrics" in liar.send(sent[2])
    liar.start()
    assert refused(liar.send(sent[3])) == "max_evaluations"
    assert "metrics" in liar.send(sent[2])
    assert "metrics" in liar.send(sent[3], run="run-2")  # a run is the server's word


def units() -> list[dict[str, np.ndarray]]:
    """Params under which the loss of one row tells its label, and then each of its values."""
    return [{"coef": np.zeros((1, 3)), "intercept": np.ones(1)}] + [
        {"coef": np.eye(3)[k : k + 1], "intercept": np.zeros(1)} for k in range(3)
    ]


ONE = JOB.replace("split.test = 0.1", "split.test = 0.005")


def losses(liar: Liar, sent: list[dict[str, np.ndarray]], text: str) -> list[float]:
    """The losses that the client tells, before it refuses."""
    found = []
    for params in sent:
        answer = liar.send(judges(params), text)
        if "refusal" in answer:
            break
        found.append(float(answer["metrics"]["loss"][0][0]))
    return found


def test_a_row_that_is_judged_alone_is_read_from_losses_unless_min_rows_forbids_it(tmp_path: Path) -> None:
    (folder := tmp_path / "open").mkdir()
    liar = Liar(folder, Policy())
    first, *others = losses(liar, units(), ONE)
    sign = 1.0 if first < np.log(2) else -1.0
    read = [-sign * np.log(np.expm1(loss)) for loss in others]
    table = frame()
    distances = np.abs(table[["age", "chol", "pulse"]].to_numpy() - read).max(axis=1)
    row = int(distances.argmin())
    assert distances[row] < 1e-9 and table["outcome"][row] == (sign > 0)
    for rules, most in ((Policy(min_rows=2), 0), (Policy(max_evaluations=2), 2), (Policy(evaluation=False), 0)):
        (folder := tmp_path / f"{most}{rules.evaluation}").mkdir()
        assert len(losses(Liar(folder, rules), units(), ONE)) == most


def test_params_made_for_it_single_out_a_row_among_many_and_only_the_number_of_calls_is_bounded(tmp_path: Path) -> None:
    """What `min_rows` does not prevent: two gradients over all rows, whose difference is the oldest person's row and no other."""
    text = JOB.replace("1e-6", "1.0").replace("[algorithm]", "learner.options = { C = 1e15 }\n[algorithm]").replace("0.1", "0.0")
    algorithm = replace(FEDAVG, local=replace(FEDAVG.local, learning_rate=1.0))
    rows = frame()[["age", "chol", "pulse"]].to_numpy()
    oldest, next_to = rows[:, 0].argsort()[[-1, -2]]
    gap = float(rows[oldest, 0] - rows[next_to, 0])
    sent = []
    for edge in (rows[oldest, 0] - gap / 2, rows[oldest, 0] + gap / 2):
        params = {"coef": np.array([[60 / gap, 0.0, 0.0]]), "intercept": np.array([-60 / gap * edge])}
        sent.append(trains(algorithm, message=Message(params, {"rate": 1.0})))
    (folder := tmp_path / "two").mkdir()
    liar = Liar(folder, Policy(min_rows=ROWS, max_rounds=2))
    first, second = (liar.send(call, text)["values"] for call in sent)
    change = {name: np.ravel(first[name] - second[name]) for name in first}
    assert np.allclose(change["delta/coef"] / change["delta/intercept"], rows[oldest], atol=1e-6)
    (folder := tmp_path / "one").mkdir()
    liar = Liar(folder, Policy(max_rounds=1))
    assert "values" in liar.send(sent[0], text)
    assert refused(liar.send(sent[1], text)) == "max_rounds"


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_labels_that_name_rows_stay_at_their_client(tmp_path: Path, share: float) -> None:
    """Whatever call is the first, and however few rows the server's split leaves for training."""
    names = [f"Anna {k} Meyer" for k in range(ROWS)]
    frame(outcome=names).to_csv(tmp_path / "rows.csv", index=False)
    data = {"data": {"name": "file", "path": str(tmp_path / "rows.csv"), "label": "outcome"}}
    liar = Liar(tmp_path, Policy(), data)
    text = JOB.replace("split.test = 0.1", f"split.test = {share}")
    for call in (DESCRIBES, trains(), judges()):
        failure = liar.send(call, text)["failure"]
        assert failure.bad_input and "200 different texts in 200 rows" in failure.message
        assert "Anna" not in str(failure)


def test_a_start_says_which_policy_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def said() -> list[tuple[int, str]]:
        caplog.clear()
        client = Client("127.0.0.1:1", data={"data": {"name": "iris"}}, home=tmp_path, name="hospital")
        client.stop.set()
        with caplog.at_level(logging.INFO, "hansa.federation.client"):
            client.run()
        return [(record.levelno, record.getMessage()) for record in caplog.records if ": policy: " in record.getMessage()]

    (tmp_path / "Policy.toml").write_text("max_rounds = 1")
    (tmp_path / "notes.txt").write_text("")
    (nothing, none), (like, other) = said()
    assert nothing == like == logging.WARNING
    assert "everything is allowed" in none and str(tmp_path / "Policy.toml") in other
    (tmp_path / "policy.toml").write_text("max_rounds = 1")
    assert said() == [(logging.INFO, f"hospital: policy: {tmp_path / 'policy.toml'}")]


def test_which_files_look_like_a_policy(tmp_path: Path) -> None:
    alike = {"Policy.toml", "policy.tml", "polciy.toml", "policies.toml", "policy.toml.txt", "policy"}
    for name in {*alike, "policy.toml", "server.toml", "audit.jsonl", "member.pem", "mine.toml", "joining.pem", "lock"}:
        (tmp_path / name).touch()
    assert {path.name for path in misspelt(tmp_path)} == alike


def test_the_policy_of_the_page_lets_a_job_run(tmp_path: Path) -> None:
    """The example as it is printed, and a job of averaging among as many clients as it wants."""
    (example,) = (block for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("contact"))
    allowed = tomllib.loads(example)
    draw, names = np.random.default_rng(5), [f"hospital-{k}" for k in range(allowed["min_clients"])]
    text = f"""
name = "heart-example"
data.name = "elsewhere"
preparation.name = "standard"
learner.name = "sklearn"
algorithm.name = "fedavg"
algorithm.local.epochs = {allowed["max_epochs"]}
rounds.count = 2
rounds.block = 1
engine.name = "federation"
engine.clients = {len(names)}
"""
    (tmp_path / "job.toml").write_text(text)
    with Server(tmp_path / "job.toml", home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        clients = []
        for name in names:
            Client.join(server.address, server.token(name), tmp_path / name)
            rows = allowed["min_rows"] * 5  # one in five is for the test
            columns = {column: draw.normal(size=rows) for column in allowed["columns"]}
            pd.DataFrame({**columns, allowed["labels"][0]: draw.integers(0, 2, rows)}).to_csv(tmp_path / f"{name}.csv", index=False)
            (tmp_path / name / "policy.toml").write_text(example)
            data = {"name": "file", "path": str(tmp_path / f"{name}.csv"), "label": allowed["labels"][0]}
            given = {"data": data, "partition": {"name": "iid", "clients": 1}}
            clients.append(Client(data=given, home=tmp_path / name))
        with working(clients):
            done = server.train()
    assert len(done.history) == 2 and {"train/loss", "test/auc"} <= done.history[-1].keys()
