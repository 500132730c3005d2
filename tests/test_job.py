"""Jobs: read, checked, written; every mistake gets one sentence before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import SVC

import hansa
from hansa import opening
from hansa.cli.starter import starter_text
from hansa.job import from_text, load, to_table
from hansa.options import json_schema, registry
from hansa.runs import text_of

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
    assert to_table(from_text(text_of(job))) == to_table(job)


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
    with pytest.raises(hansa.InputError, match=r"job.rounds.count = -1"):
        hansa.Job(data=hansa.BuiltIn("iris"), learner=LogisticRegression(), algorithm=hansa.FedAvg(), rounds=hansa.Rounds(count=-1))
    with pytest.raises(hansa.InputError, match=r"job.algorithm.local.learning_rate"):
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
