"""Many clients: what a run costs depends on the cohort and not on the population, and does not grow with the rounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa
from hansa import opening, training
from hansa.core.blocks import Client
from hansa.core.store import DiskStore
from hansa.data import Fixed, Lognormal, Population, Synthetic

MIB = 2**20

FLAT = """
import json, sys
from pathlib import Path
import psutil
import hansa
from hansa import opening, training
from hansa.core.store import DiskStore
from hansa.data import Fixed, Synthetic

job = hansa.Job(
    data=Synthetic(clients=400, features=20, rows=Fixed(count=20)),
    learner=hansa.MLP(hidden=(8,)),
    algorithm=hansa.Scaffold(local=hansa.Local(batch_size=10)),
    rounds=hansa.Rounds(count=200, clients=20),
    evaluation=hansa.Evaluation(every=10, clients=50),
)
setting = opening.open_setting(job, opening.clients_of(job), DiskStore(Path(sys.argv[1])))
memory = {}
for state, record in training.train(setting, training.prepare(setting)):
    memory[record["round"]] = psutil.Process().memory_info().rss
setting.engine.stop()
print(json.dumps(memory))
"""

MILLION = """
import json, sys
from pathlib import Path
import hansa
from hansa import opening, training
from hansa.core.store import DiskStore
from hansa.data import Lognormal, Synthetic
from hansa.tracking.progress import peak_memory

job = hansa.Job(
    data=Synthetic(clients=1_000_000, rows=Lognormal(mean=3.0, deviation=1.0, least=10, most=500)),
    learner=hansa.MLP(hidden=()),
    algorithm=hansa.Scaffold(local=hansa.Local(batch_size=20)),
    rounds=hansa.Rounds(count=3, clients=1000),
    evaluation=hansa.Evaluation(every=3, clients=500),
)
setting = opening.open_setting(job, opening.clients_of(job), DiskStore(Path(sys.argv[1])))
records = [record for _, record in training.train(setting, training.prepare(setting))]
setting.engine.stop()
print(json.dumps({"peak": peak_memory(), "records": records}))
"""


def in_a_fresh_process(program: str, store: Path) -> Any:
    done = subprocess.run([sys.executable, "-c", program, str(store)], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_does_not_rise_over_200_rounds(tmp_path: Path) -> None:
    memory = in_a_fresh_process(FLAT, tmp_path / "clients.sqlite")
    assert memory["200"] - memory["50"] < 4 * MIB


def test_a_million_clients_with_their_own_state_need_less_than_a_gigabyte(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="the peak of a process's memory cannot be told on this system")
    told = in_a_fresh_process(MILLION, tmp_path / "clients.sqlite")
    assert told["peak"] < 1024 * MIB
    assert [record["clients"] for record in told["records"]] == [1000, 1000, 1000]
    assert told["records"][-1]["train/loss"] < told["records"][0]["train/loss"]
    assert "test/accuracy" in told["records"][-1]


@pytest.fixture(autouse=True)
def fewer_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty clients describe their data, so that these tests are quick."""
    monkeypatch.setattr("hansa.data.describe.ASKED", 50)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all clients that are loaded from now on."""
    loads: list[str] = []
    load = Client.load

    def counting(client: Client) -> Any:
        loads.append(client.id)
        return load(client)

    monkeypatch.setattr(Client, "load", counting)
    return loads


def job_of(data: Any, **options: Any) -> hansa.Job:
    given = {
        "learner": hansa.MLP(hidden=()),
        "algorithm": hansa.FedAvg(local=hansa.Local(batch_size=5)),
        "rounds": hansa.Rounds(count=2, clients=12),
        "evaluation": hansa.Evaluation(clients=7),
    }
    return hansa.Job(data=data, **given | options)


IMAGES = (np.random.default_rng(0).random((6000, 4)).astype(np.float32), np.arange(6000) % 3)
MANY: dict[str, tuple[Any, dict[str, Any]]] = {
    "made": (Synthetic(clients=50_000, features=4, rows=Fixed(count=8)), {}),
    "cut": (hansa.from_arrays(*IMAGES), {"partition": hansa.IID(clients=2000)}),
}


@pytest.mark.parametrize(("data", "options"), MANY.values(), ids=MANY.keys())
def test_a_run_loads_the_sample_the_cohorts_and_the_judges_and_nobody_else(
    data: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = counted(monkeypatch)
    job = job_of(data, **options)
    clients = opening.clients_of(job)
    assert not loads
    setting = opening.open_setting(job, clients)
    assert len(set(loads)) == len(setting.description.facts) == 50
    loads.clear()
    records = [record for _, record in training.train(setting, training.prepare(setting))]
    assert len(loads) <= 2 * 12 + 7
    assert len(setting.judges) == 7
    assert [record["clients"] for record in records] == [12, 12]


@pytest.mark.parametrize(("data", "options"), MANY.values(), ids=MANY.keys())
def test_what_is_known_without_asking_is_what_all_clients_would_tell(data: Any, options: dict[str, Any]) -> None:
    job = job_of(data, **options)
    clients = opening.clients_of(job)
    assert isinstance(clients, Population)
    setting = opening.open_setting(job, clients)
    own = [len(clients[k].load()["train"]) for k in range(0, len(clients), 101)]
    assert own == [clients[k].rows for k in range(0, len(clients), 101)]
    assert setting.schema.rows == clients.rows == sum(clients[k].rows for k in range(len(clients)))
    assert setting.schema.classes == clients.classes
    assert setting.description.plain()["population"] == len(clients)


def test_the_judges_are_the_same_at_every_evaluation_and_stand_in_the_run(tmp_path: Path) -> None:
    job = job_of(hansa.from_arrays(*IMAGES), partition=hansa.IID(clients=100))
    run = hansa.run(job, directory=tmp_path, quiet=True)
    setting = opening.open_setting(job, opening.clients_of(job))
    assert list(run.by_client) == [setting.clients[position].id for position in setting.judges]
    tables = [setting.clients[position].load()["test"] for position in setting.judges]
    right = sum(int(np.sum(run.model.predict(table.x) == table.y)) for table in tables)
    assert run.metrics["test/accuracy"] == pytest.approx(right / sum(len(table) for table in tables))


def test_all_clients_judge_by_default(tmp_path: Path) -> None:
    job = job_of(hansa.from_arrays(*IMAGES), partition=hansa.IID(clients=20), evaluation=hansa.Evaluation())
    assert len(hansa.run(job, directory=tmp_path, quiet=True).by_client) == 20


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (np.full((1, 3), 0.5, np.float32), r"has examples of shape \(3,\), and the other clients have \(4,\)"),
        (np.full((1, 4), 1), "has features of type int64, and the other clients have float32"),
        (np.full((1, 4), np.nan, np.float32), "has features that are missing or infinite"),
    ],
)
def test_a_client_that_was_not_asked_is_checked_when_it_works(
    rows: np.ndarray, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = MANY["made"]
    job = job_of(data, rounds=hansa.Rounds(count=1, clients=3), evaluation=hansa.Evaluation(clients=2))
    setting = opening.open_setting(job, opening.clients_of(job))
    table = Synthetic.table

    def odd(source: Synthetic, position: int, seed: int) -> Any:
        made = table(source, position, seed)
        return type(made)(np.repeat(rows, len(made), axis=0), made.y)

    monkeypatch.setattr(Synthetic, "table", odd)
    with pytest.raises(hansa.InputError, match=f"client client-.*: {sentence}"):
        list(training.train(setting, training.prepare(setting)))


def test_checks_say_that_they_saw_a_sample() -> None:
    job = job_of(hansa.from_arrays(IMAGES[0] * np.inf, IMAGES[1]), partition=hansa.IID(clients=2000))
    with pytest.raises(hansa.InputError, match=r"infinite values; .* \(50 of 2,000 clients were asked\)"):
        opening.open_setting(job, opening.clients_of(job))


def test_a_store_of_many_clients_keeps_two_versions_of_each(tmp_path: Path) -> None:
    """A thousand writes a round: the files do not grow with the rounds."""
    store, entry = DiskStore(tmp_path / "clients.sqlite"), 1000
    for number in range(1, 31):
        store.write(number, {f"client-{k}": {"w": np.full(entry // 8, float(number)), "b": np.float32(k)} for k in range(1000)})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 12 * 1000 * entry
    for k in (0, 999):
        read = store.read(f"client-{k}", 30)
        assert read is not None
        assert (read["w"] == 29.0).all()
        assert read["b"] == k


def test_lognormal_sizes_stay_within_their_limits() -> None:
    sizes = Synthetic(clients=20_000, rows=Lognormal(mean=2.0, deviation=1.0, least=5, most=60)).sizes(np.arange(20_000), 1)
    assert (sizes.min(), sizes.max()) == (5, 60)
