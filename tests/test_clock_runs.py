"""Jobs with a virtual clock: the same bits where it takes nobody away, and the same clients whoever does the work."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hansa
from hansa.core import accounting
from hansa.core.devices import Constant, Devices
from hansa.core.traces import Trace
from hansa.job import from_text, is_plain, load, to_table
from hansa.tracking.folder import RunFolder
from hansa.tracking.sections import times_to, virtual_time, watched
from tests.conformance.problem import same_bits

PHONES = Path(__file__).parent.parent / "examples" / "phones.toml"

JOB = """
name = "clocked"
[data]
name = "digits"
[partition]
name = "iid"
clients = 30
[learner]
name = "mlp"
hidden = [8]
[algorithm]
name = "scaffold"
[algorithm.local]
epochs = 2
[rounds]
count = 5
clients = 8
quorum = 0.25
block = 3
"""

CLOCK = """
[clock]
over_select = 1.5
deadline = 12.0
dropout = 0.1
speed = { name = "uniform", low = 5.0, high = 40.0 }
latency = { name = "constant", value = 0.5 }
availability = { name = "diurnal", period = 40.0, most = 0.9, least = 0.2 }
"""


def played(text: str, path: Path, *overrides: str, **options: Any) -> hansa.Run:
    return hansa.run(from_text(text, overrides), directory=path, quiet=True, **options)


def untimed(run: hansa.Run) -> list[dict[str, Any]]:
    return [accounting.untimed(record) for record in run.history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> hansa.Run:
    return played(JOB + CLOCK, tmp_path_factory.mktemp("whole"))


def test_a_clock_that_takes_nobody_away_changes_no_bit(tmp_path: Path) -> None:
    plain, clocked = played(JOB, tmp_path), played(JOB, tmp_path, "clock=devices")
    assert same_bits(plain.params, clocked.params)
    for before, after in zip(untimed(plain), untimed(clocked), strict=True):
        assert {name: after[name] for name in before} == before
        assert (after["invited"], after["dropped"], after["late"]) == (8, 0, 0)
    assert "clock/elapsed" not in plain.history[0] and "clock" not in RunFolder.open(plain.directory).load_state()


def test_records_add_up(whole: hansa.Run) -> None:
    elapsed = 0.0
    for record in whole.history:
        elapsed += record["clock/seconds"]
        assert record["clock/elapsed"] == elapsed
        assert record["clients"] + record["dropped"] + record["late"] == record["invited"] <= 12
        assert 2 <= record["clients"] <= 8
        assert 0 < record["clock/seconds"] <= 12.0
        assert record["bytes_down"] % record["invited"] == 0 and record["bytes_up"] % record["clients"] == 0
    assert any(record["dropped"] for record in whole.history) and any(record["late"] for record in whole.history)
    assert (
        len({record["bytes_down"] // record["invited"] for record in whole.history}) == 1
    )  # every invited client is sent the same
    assert whole.ended == f"played all 5 rounds and {round(elapsed)} s of virtual time"


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_every_engine_plays_with_the_same_clients(whole: hansa.Run, tmp_path: Path, engine: str) -> None:
    other = played(JOB + CLOCK, tmp_path, f"engine.name={engine}", *(["engine.workers=2"] if engine == "processes" else []))
    assert same_bits(other.params, whole.params) and untimed(other) == untimed(whole)


@pytest.mark.parametrize("after", [1, 4])
def test_resume_equals_uninterrupted_in_virtual_time_too(whole: hansa.Run, tmp_path: Path, after: int) -> None:
    seen: list[str] = []

    def interrupt(stage: str) -> None:
        seen.append(stage)
        if seen.count("saved") == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        played(JOB + CLOCK, tmp_path, observe=interrupt)
    (folder,) = tmp_path.iterdir()
    resumed = hansa.resume(folder, quiet=True)
    assert same_bits(resumed.params, whole.params) and untimed(resumed) == untimed(whole)
    assert RunFolder.open(folder).load_state()["clock"] == RunFolder.open(whole.directory).load_state()["clock"]


def rows(sites: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.standard_normal((20 * sites, 3))
    return x, (x[:, 0] > 0).astype(int), np.array([f"site-{k % sites:02d}" for k in range(20 * sites)])


def sites(clock: Any, algorithm: Any = None, order: np.ndarray | None = None, **rounds: Any) -> hansa.Job:
    x, y, owner = (values if order is None else values[order] for values in rows())
    return hansa.Job(
        data=hansa.from_arrays(x, y, clients=owner), learner=LogisticRegression(), algorithm=algorithm or hansa.FedAvg(),
        split=hansa.Split(test=0.0), rounds=hansa.Rounds(**{"count": 3, "clients": 6, "quorum": 0.2, "block": 2, **rounds}), clock=clock,
    )  # fmt: skip


def test_the_order_of_the_clients_changes_nothing(tmp_path: Path) -> None:
    owner = rows()[2]
    clock = Devices(over_select=1.5, deadline=5.0, dropout=0.1)
    mixed = np.concatenate([np.flatnonzero(owner == f"site-{k:02d}") for k in (5, 3, 11, 0, 7, 1, 10, 2, 4, 6, 9, 8)])
    first, second = (hansa.run(sites(clock, order=order), directory=tmp_path, quiet=True) for order in (None, mixed))
    assert same_bits(first.params, second.params) and untimed(first) == untimed(second)


@dataclass(frozen=True)
class Seen(hansa.FedAvg):
    """FedAvg that remembers whose work it did, and with which one client fails."""

    name: Literal["seen"] = field(default="seen", kw_only=True)  # type: ignore[assignment]  # each algorithm has its own name
    unlucky: str = ""
    worked: list[str] = field(default_factory=list, init=False, compare=False)

    def work(self, learner: Any, message: Any, block: Any) -> Any:
        ids = [client.id for client in block.clients]
        self.worked.extend(ids)
        if self.unlucky in ids:
            raise OSError("no luck today")
        return super().work(learner, message, block)


def test_work_that_would_be_thrown_away_is_not_done(tmp_path: Path) -> None:
    algorithm = Seen()
    run = hansa.run(sites(Devices(over_select=2.0, dropout=0.2), algorithm), directory=tmp_path, quiet=True)
    assert len(algorithm.worked) == sum(record["clients"] for record in run.history) < sum(r["invited"] for r in run.history)


def test_clients_that_fail_count_against_the_cohort_that_was_wanted(tmp_path: Path) -> None:
    found = Seen()
    clock = Devices(deadline=1.2, speed=Constant(20.0), down=Constant(1e9), up=Constant(1e9), dropout=0.3)
    once = {"count": 1, "block": 1, "clients": 10}
    hansa.run(sites(clock, found, **once), directory=tmp_path, quiet=True)
    used, unlucky = len(found.worked), found.worked[0]
    assert used < 10
    run = hansa.run(sites(clock, Seen(unlucky=unlucky), **once, quorum=(used - 1) / 10), directory=tmp_path, quiet=True)
    assert run.history[0]["clients"] == used - 1 and run.history[0]["failures"][0]["clients"] == [unlucky]
    with pytest.raises(hansa.RunFailed, match="no luck"):
        hansa.run(sites(clock, Seen(unlucky=unlucky), **once, quorum=used / 10), directory=tmp_path, quiet=True)


def test_a_round_with_too_few_reports_fails_and_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(hansa.RunFailed, match=r"^round 1: \d+ of 8 wanted clients reported within the deadline of 2 s") as error:
        played(JOB + CLOCK, tmp_path, "clock.deadline=2", "rounds.quorum=0.9")
    assert all(word in str(error.value) for word in ("clock.deadline", "clock.over_select", "rounds.quorum"))
    (folder,) = tmp_path.iterdir()
    assert RunFolder.open(folder).status()["status"] == "failed" and (folder / "report.html").exists()


def test_seconds_follow_rows_passes_and_the_bytes_of_the_round_before(tmp_path: Path) -> None:
    clock = Devices(speed=Constant(10.0), down=Constant(100.0), up=Constant(50.0), latency=Constant(0.25))
    scaffold = hansa.Scaffold(local=hansa.Local(epochs=3, batch_size=8))
    run = hansa.run(sites(clock, scaffold), directory=tmp_path, quiet=True)
    params = sum(value.nbytes for value in run.params.values())
    down, up = (run.history[0][way] / 6 for way in ("bytes_down", "bytes_up"))
    assert up == down == 2 * params  # SCAFFOLD moves control variates, too
    fixed = 0.25 + 20 * 3 / 10
    expected = [fixed + params / 100 + params / 50, *[fixed + down / 100 + up / 50] * 2]
    assert [record["clock/seconds"] for record in run.history] == pytest.approx(expected)
    once = hansa.run(sites(clock, hansa.GradientDescent()), directory=tmp_path, quiet=True)  # it has no local passes: one
    assert once.history[0]["clock/seconds"] == pytest.approx(0.25 + 20 / 10 + params / 100 + params / 50)


def test_a_trace_is_followed_and_must_stay_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "sites.csv"
    lines = [f"site-{k:02d},{k + 1},1e6,1e6,{0 if k < 7 else 1000},1e5" for k in range(12)]
    path.write_text("\n".join(["client,speed,down,up,start,end", *lines]))
    job = sites(Trace(path=str(path)), Seen())
    run = hansa.run(job, directory=tmp_path / "runs", quiet=True)
    assert set(job.algorithm.worked) <= {f"site-{k:02d}" for k in range(7)}
    assert same_bits(hansa.resume(run.directory, job, quiet=True).params, run.params)
    path.write_text(path.read_text().replace("1e6", "2e6"))
    with pytest.raises(hansa.InputError, match="the file has changed since the run began"):
        hansa.resume(run.directory, job, quiet=True)
    path.write_text("client,speed,down,up\nsite-00,1,1,1\n")
    with pytest.raises(hansa.InputError, match=r"no row of client 'site-01'.*add one$"):
        hansa.run(job, directory=tmp_path / "runs", quiet=True)


def test_ways_to_learn_alone_have_no_clock(tmp_path: Path) -> None:
    """Pooled rows are no client of the trace, and a client alone waits for nobody."""
    path = tmp_path / "sites.csv"
    path.write_text("\n".join(["client,speed,down,up", *(f"site-{k:02d},10,1e6,1e6" for k in range(12))]))
    job = replace(sites(Trace(path=str(path), deadline=1e6)), split=hansa.Split(test=0.3))
    assert [row.name for row in hansa.compare(job, repeats=1).rows][1] == "all rows pooled"


BAD = {
    "name": ("clock=phones", "clock.name = 'phones': there is no such clock (allowed: devices, trace)"),
    "close": ("clock.name=device", "(did you mean 'devices'?)"),
    "not a table": ("clock=3", "clock = 3: must be a table"),
    "option": ("clock.over_selekt=2", "clock: unknown key 'over_selekt' (did you mean 'over_select'?)"),
    "factor": ("clock.over_select=0.9", "clock.over_select = 0.9: input should be greater than or equal to 1"),
    "deadline": ("clock.deadline=-1", "clock.deadline = -1"),
    "distribution": ("clock.speed.name=normal", "clock.speed.name = 'normal': there is no such choice"),
    "value": ('clock.speed={name="constant", value=0}', "clock.speed.value = 0: input should be greater than 0"),
    "incomplete": ('clock.up={name="uniform", low=1}', "clock.up: high is missing"),
    "availability": ('clock.availability={name="probability", value=1.2}', "clock.availability.value = 1.2"),
    "no path": ("clock=trace", "clock: path is missing"),
}


@pytest.mark.parametrize(("override", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_clock_is_refused_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(hansa.InputError) as error:
        from_text(JOB, (override,))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_job_with_a_clock_survives_being_written() -> None:
    for job in (load(PHONES), from_text(JOB, ("clock.name=trace", "clock.path=a.csv", "clock.period=3600"))):
        assert is_plain(job) and "clock" in to_table(job)
    assert "clock" not in to_table(from_text(JOB))


def record(round: int, accuracy: float, **more: Any) -> dict[str, Any]:
    told = {"round": round, "test/accuracy": accuracy, "test/loss": 1 / round, "bytes_up": 10, "bytes_down": 20}
    return {**told, "clock/elapsed": 7.0 * round, "clock/seconds": 7.0, **more}


def test_time_to_accuracy_is_when_a_share_of_the_best_was_first_reached() -> None:
    records = [record(k + 1, value) for k, value in enumerate((0.1, math.nan, 0.91, 0.5, 0.94, 0.96, 1.0, 0.99))]
    rows = times_to(records, "test/accuracy")
    assert [(row["share"], row["value"], row["round"], row["seconds"]) for row in rows] == [
        (0.9, 0.91, 3, 21.0), (0.95, 0.96, 6, 42.0), (0.99, 1.0, 7, 49.0),
    ]  # fmt: skip
    assert [(row["bytes_up"], row["bytes_down"]) for row in rows] == [(30, 60), (60, 120), (70, 140)]
    assert [row["round"] for row in times_to(records, "test/loss")] == [8, 8, 8]
    assert [row["round"] for row in times_to(records, "test/loss", (0.5, 0.3))] == [4, 3]
    assert times_to([record(1, 0.0), record(2, -1.0)], "test/accuracy") == [] == times_to([], "test/accuracy")


def test_the_watched_metric_is_the_one_that_the_job_chooses_by() -> None:
    records = [record(1, 0.5), record(2, 0.6, **{"validation/loss": 0.3, "validation/accuracy": 0.4})]
    assert watched(records, {"watch": "loss", "best": True}) == "validation/loss"
    assert watched(records, {"watch": "loss", "best": False, "patience": 0}) == "validation/accuracy"
    assert watched(records[:1], {"watch": "loss", "best": True}) == "test/accuracy"


def test_the_report_shows_virtual_time_where_there_is_a_clock(whole: hansa.Run, tmp_path: Path) -> None:
    page = (whole.directory / "report.html").read_text()
    assert "Learning by virtual time: accuracy" in page and "Accuracy by virtual time, seconds. At the end: test" in page
    assert "Virtual time, and bytes moved, until test accuracy came within a share of its best" in page and "99%: " in page
    assert ">Elapsed<" not in page and ">Seconds<" not in page
    plain = played(JOB, tmp_path, "rounds.count=2")
    assert "irtual time" not in (plain.directory / "report.html").read_text()


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0, 3000.0, 40_000.0])
def test_virtual_time_is_shown_in_a_unit_that_fits(scale: float) -> None:
    records = [record(k, 0.1 * k, **{"clock/elapsed": scale * k}) for k in range(1, 9)]
    unit = {0.01: "seconds", 1.0: "seconds", 50.0: "minutes", 3000.0: "hours", 40_000.0: "days"}[scale]
    panels = virtual_time(records, {})
    assert len(panels) == 2 and all(f"virtual time, {unit}" in panel["svg"] for panel in panels)


def test_the_example_learns_although_phones_are_slow_and_leave(tmp_path: Path) -> None:
    run = hansa.run(PHONES, directory=tmp_path, quiet=True)
    assert run.metrics["test/accuracy"] >= 0.9
    assert "min" in run.ended and all(5 <= record["clients"] <= 10 for record in run.history)
