"""Jobs: read, checked, written; every mistake gets one sentence before anything runs."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import SVC

import hansa
from hansa import job, opening
from hansa.algorithms import server_optimizers
from hansa.cli.starter import starter_text
from hansa.core.schedules import Cosine
from hansa.job import from_text, load, to_table, to_text
from hansa.options import LEARNER, Part, json_schema, registry

SHORT = """
[data]
name = "iris"
[partition]
name = "iid"
clients = 3
[learner]
name = "sklearn"
estimator = "LogisticRegression"
[algorithm]
name = "fedprox"
mu = 0.5
[algorithm.local]
batch_size = 10
"""


def test_starter_job_is_valid_and_survives_being_written() -> None:
    job = from_text(starter_text())
    assert to_table(from_text(to_text(job))) == to_table(job)


def test_lbfgs_takes_no_clipped_answers() -> None:
    with pytest.raises(hansa.InputError, match="'lbfgs' compares points"):
        from_text(SHORT.partition("[algorithm]")[0].replace("[data]", "algorithm = 'lbfgs'\ntransforms = ['clip']\n[data]", 1))


def test_parts_become_objects() -> None:
    job = from_text(SHORT)
    assert job.algorithm == hansa.FedProx(mu=0.5, local=hansa.Local(batch_size=10))
    assert job.partition == hansa.IID(clients=3)
    assert job.rounds == hansa.Rounds()


def test_values_can_be_set_from_outside() -> None:
    job = from_text(
        SHORT, ("algorithm.mu=0.25", "rounds.count=7", "algorithm.server.name=adam", "name=my job", "evaluation.every=2")
    )
    assert job.algorithm.mu == 0.25 and job.rounds.count == 7 and job.name == "my job" and job.evaluation.every == 2
    assert job.algorithm.server.name == "adam"


BAD = {
    "unknown key": (("rounds.cuont=3",), "rounds: unknown key 'cuont' (did you mean 'count'?)"),
    "unknown table": (("algoritm.mu=3",), "job: unknown key 'algoritm' (did you mean 'algorithm'?)"),
    "unknown algorithm": (("algorithm.name=fedavgg",), "did you mean 'fedavg'?"),
    "a paper's name": (("algorithm.name=fedadam",), "write algorithm.name = 'fedavg' and algorithm.server = 'adam'"),
    "another one": (("algorithm.name=fedsgd",), "write algorithm.name = 'gradient_descent'"),
    "unknown option": (("algorithm.nu=1",), "algorithm: unknown key 'nu'"),
    "nested key": (("algorithm.local.epoch=1",), "algorithm.local: unknown key 'epoch' (did you mean 'epochs'?)"),
    "no rounds": (("rounds.count=0",), "rounds.count = 0: input should be greater than or equal to 1"),
    "learning rate": (("algorithm.local.learning_rate=-0.1",), "algorithm.local.learning_rate = -0.1"),
    "wrong type": (("rounds.count=many",), "rounds.count = 'many'"),
    "not a table": (("rounds=3",), "rounds = 3: must be a table"),
    "unknown estimator": (("learner.estimator=LogisticRegresion",), "did you mean 'LogisticRegression'?"),
    "estimator option": (("learner.options.D=1",), "learner.options.D: LogisticRegression has no such argument"),
    "not an assignment": (("rounds.count",), "write it as key=value"),
    "patience without validation": (("evaluation.patience=3",), "needs validation rows"),
    "server optimiser": (("algorithm.server.name=adm",), "did you mean 'adam'?"),
    "l1": (("learner.options.l1_ratio=0.5",), "is not smooth"),
}


@pytest.mark.parametrize(("overrides", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_job_is_refused_in_one_sentence(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(hansa.InputError) as error:
        from_text(SHORT, overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(hansa.InputError, match="no such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "job.toml").write_text("[data\n")
    with pytest.raises(hansa.InputError, match="not valid TOML"):
        load(tmp_path / "job.toml")
    with pytest.raises(hansa.InputError, match=r"\[learner\] is missing"):
        from_text('[data]\nname = "iris"\n')


def test_a_learner_that_does_not_fit_the_algorithm_or_the_task() -> None:
    data = hansa.from_arrays(np.eye(4), np.array([0, 1, 0, 1]))
    with pytest.raises(hansa.InputError, match="needs a learner that offers hessian"):
        hansa.Job(data=data, learner=hansa.MLP(), algorithm=hansa.Newton())
    with pytest.raises(hansa.InputError, match="SVC"):
        hansa.Job(data=data, learner=SVC(), algorithm=hansa.FedAvg())
    with pytest.raises(hansa.InputError, match="not something that Hansa trains"):
        hansa.Job(data=data, learner=3, algorithm=hansa.FedAvg())
    job = hansa.Job(
        data=data, learner=LinearRegression(), algorithm=hansa.FedAvg(), partition=hansa.IID(clients=1), split=hansa.Split(test=0.0)
    )
    with pytest.raises(hansa.InputError, match="classification"):
        opening.open_setting(job, opening.clients_of(job))


def test_options_made_in_python_are_checked_too() -> None:
    with pytest.raises(hansa.InputError, match=r"^rounds.count = -1"):
        hansa.Job(data=hansa.BuiltIn("iris"), learner=LogisticRegression(), algorithm=hansa.FedAvg(), rounds=hansa.Rounds(count=-1))
    with pytest.raises(hansa.InputError, match=r"^algorithm.local.learning_rate"):
        hansa.Job(
            data=hansa.BuiltIn("iris"), learner=LogisticRegression(), algorithm=hansa.FedAvg(local=hansa.Local(learning_rate=0.0))
        )


def test_schema_lists_every_installed_part() -> None:
    schema = json_schema(hansa.Job)
    text = json.dumps(schema)
    for group in ("data", "learner", "algorithm", "partition", "preparation", "transform", "engine"):
        for name in registry(group):
            assert f'"{name}"' in text
    assert schema["properties"]["rounds"]["properties"]["count"]["minimum"] == 1


PARTS = {
    "learner": ("sklearn", {"name": "sklearn", "estimator": "Ridge", "options": {"alpha": 2}}),
    "algorithm": (
        "fedprox",
        {"name": "fedavg", "server": "yogi", "local": {"optimizer": "adam", "epochs": 2}},
        {"name": "fedavg", "server": {"name": "adam", "tau": 0.1}},
    ),
    "data": ("iris", {"name": "file", "path": "a.csv", "label": "y"}),
    "partition": ("column", {"name": "iid", "clients": 4}),
    "split": ({"validation": 0.1},),
    "preparation": ("standard", {"name": "standard", "scale": False}),
    "transforms": (["clip"], [{"name": "clip", "norm": 2}]),
    "rounds": ({"count": 5, "schedule": "cosine"}, {"count": "5", "schedule": {"name": "step", "every": 3}}),
    "evaluation": ({"every": 3},),
    "clock": ("devices", {"over_select": 1.2}, {"name": "devices", "latency": {"name": "constant", "value": 1}}),
    "engine": ("processes", {"name": "processes", "workers": 2}, "dask://host:8786"),
}


@pytest.mark.parametrize(("name", "given"), [(name, given) for name, several in PARTS.items() for given in several])
def test_a_text_or_a_table_means_in_python_what_it_means_in_a_file(name: str, given: object) -> None:
    table = {"data": "iris", "learner": "sklearn", "algorithm": "fedavg", name: given}
    made = hansa.Job(**table)
    assert made == from_text(tomli_w.dumps(table))
    assert not isinstance(getattr(made, name), (str, dict, list))


def test_a_text_or_a_table_may_stand_for_what_a_part_holds() -> None:
    algorithm = hansa.FedAvg(server="adam", local=hansa.Local(optimizer={"name": "sgd", "momentum": 0.9}))
    made = hansa.Job(data="iris", learner="sklearn", algorithm=algorithm, rounds=hansa.Rounds(count="5", schedule="cosine"))
    assert made.algorithm == hansa.FedAvg(server=server_optimizers.Adam(), local=hansa.Local(optimizer=hansa.SGD(momentum=0.9)))
    assert made.rounds == hansa.Rounds(count=5, schedule=Cosine())


def test_what_fits_is_left_as_it_is() -> None:
    job = from_text(SHORT)
    again = replace(job, seed=1)
    assert all(getattr(again, field.name) is getattr(job, field.name) for field in fields(job) if field.name != "seed")


WRONG = {
    "rounds": ({"rounds": 5}, r"^rounds = 5: .* hansa\.Rounds\(count=5\)"),
    "evaluation": ({"evaluation": 3}, r"^evaluation = 3: .* hansa\.Evaluation\(every=3\)"),
    "split": ({"split": 0.3}, r"^split = 0\.3: .*hansa\.Split\("),
    "clock": ({"clock": 3}, r"^clock = 3: must be a table, or as text its name \(one of devices, trace\)"),
    "a frame": ({"data": pd.DataFrame({"a": [1, 2]})}, r"^data: DataFrame: .* hansa\.from_table\("),
    "arrays": ({"data": (np.eye(3), np.ones(3))}, r"^data: tuple: .* hansa\.from_arrays\("),
    "a path": ({"data": Path("a.csv")}, r"^data = .* hansa\.File\(path='a\.csv'\)"),
    "no such data": ({"data": "irris"}, r"^data\.name = 'irris': .*did you mean 'iris'"),
    "a class": ({"algorithm": hansa.FedAvg}, r"^algorithm: FedAvg is a class, .*write FedAvg\(\.\.\.\)"),
    "a class of scikit-learn": ({"learner": LogisticRegression}, r"^learner: LogisticRegression is a class"),
    "a class of options": ({"rounds": hansa.Rounds}, r"^rounds: Rounds is a class"),
    "an algorithm": ({"algorithm": LogisticRegression()}, r"^algorithm = LogisticRegression\(\): it is no algorithm, .*fedavg"),
    "an engine": ({"engine": 2}, r"^engine = 2: it is no engine, .*processes"),
    "a partition": ({"partition": None}, r"^partition = None: it is no partition, .*iid"),
    "a preparation": ({"preparation": 3}, r"^preparation = 3: it is no preparation, .*standard"),
    "one transform": ({"transforms": "clip"}, r"^transforms = 'clip': must be a list \(write transforms = \["),
    "a table for transforms": ({"transforms": {"name": "clip"}}, r"^transforms = \{'name': 'clip'\}: must be a list"),
    "a transform": ({"transforms": [3]}, r"^transforms\[0\] = 3: it is no transform, .*clip"),
    "the local Adam": (
        {"algorithm": hansa.FedAvg(server=hansa.Adam())},
        r"^algorithm\.server: hansa\.Adam is another Adam .*write hansa\.algorithms\.server_optimizers\.Adam, or .*'adam'",
    ),
    "the server's Adam": (
        {"algorithm": hansa.FedAvg(local=hansa.Local(optimizer=server_optimizers.Adam()))},
        r"^algorithm\.local\.optimizer: hansa\.algorithms\.server_optimizers\.Adam is another Adam .*write hansa\.Adam, or",
    ),
    "no optimiser": ({"algorithm": hansa.FedAvg(server=3)}, r"^algorithm\.server = 3: .*sgd, momentum"),
    "half a client": ({"rounds": hansa.Rounds(clients=2.5)}, r"^rounds\.clients = 2\.5: above 1 it is a number of clients"),
    "half a judge": ({"evaluation": hansa.Evaluation(clients=1.5)}, r"^evaluation\.clients = 1\.5: above 1"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_of_a_wrong_kind_is_refused_when_the_job_is_made(given: dict[str, Any], message: str) -> None:
    parts = {"data": hansa.BuiltIn("iris"), "learner": LogisticRegression(), "algorithm": hansa.FedAvg()}
    with pytest.raises(hansa.InputError, match=message) as error:
        hansa.Job(**parts | given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["transforms='clip'", "transforms={name='clip'}"])
def test_transforms_are_a_list_in_a_file_too(given: str) -> None:
    with pytest.raises(hansa.InputError, match=r"^transforms = .*: must be a list \(write transforms = \["):
        from_text(SHORT, (given,))


def test_an_option_below_a_text_says_what_to_write() -> None:
    with pytest.raises(hansa.InputError, match=r"^--set engine\.workers=2: engine = 'processes' .*write engine\.name=processes"):
        from_text(SHORT, ("engine=processes", "engine.workers=2"))
    job = from_text(SHORT, ("engine.name=processes", "engine.workers=2"))
    assert job.engine == hansa.Processes(workers=2)
    with pytest.raises(hansa.InputError, match=r"^--set seed\.a=2: seed = 3 is a value and has no keys"):
        from_text(SHORT, ("seed=3", "seed.a=2"))


@pytest.mark.parametrize("part", ["rounds", "evaluation"])
def test_more_clients_than_there_are_are_refused(part: str) -> None:
    job = from_text(SHORT, (f"{part}.clients=4",))
    with pytest.raises(hansa.InputError, match=rf"^{part}\.clients = 4: there are only 3 clients"):
        opening.open_setting(job, opening.clients_of(job))
    for clients in ("3", "1", "0.5"):
        job = from_text(SHORT, (f"{part}.clients={clients}",))
        opening.open_setting(job, opening.clients_of(job)).engine.stop()


@pytest.mark.parametrize("part", [job.DATA, LEARNER, job.ALGORITHM, job.PARTITION, job.PREPARATION, job.TRANSFORM, job.ENGINE])
def test_every_installed_part_has_what_a_job_asks_of_a_part(part: Part) -> None:
    for name, point in registry(part.group).items():
        cls = point.load()
        own = {*dir(cls), *(field.name for field in fields(cls))}
        assert any(own.issuperset(kind) for kind in part.kinds), name
