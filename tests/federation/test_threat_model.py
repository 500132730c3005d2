"""The claims of docs/federation.md: every test that it names exists, and here are those that no other file holds."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hansa
from hansa.core.blocks import Table
from hansa.core.errors import InputError
from hansa.core.updates import Total
from hansa.core.worker import WorkCall
from hansa.data import recipes
from hansa.data.facts import facts_of
from hansa.federated.foreign import check_code, check_run
from hansa.federated.playable import name_of
from hansa.federated.server import Server
from hansa.federation.agreed import Agreed
from hansa.federation.client import _asked
from hansa.federation.engine import FederationEngine
from hansa.federation.policy import Ask, Policy
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.served import Served
from hansa.job import from_text
from tests.federation.parties import NAMES, job, joined, served, threads

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "federation.md").read_text("utf-8")
Lived = tuple[Path, list[tuple[str, Any]]]
CLAIMED = sorted(set(re.findall(r"`(?:tests/federation/)?(test_\w+\.py)::(test_\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "test"), CLAIMED, ids=[test for _, test in CLAIMED])
def test_a_claim_has_its_test(file: str, test: str) -> None:
    assert re.search(rf"^def {test}\(", (HERE / file).read_text("utf-8"), re.MULTILINE)


def test_every_row_of_the_threat_model_has_a_test_or_says_that_there_is_none() -> None:
    model = PAGE.partition("## Threat model")[2].partition("## Limits")[0]
    rows = [row for row in model.splitlines() if row.startswith("| ") and not row.startswith("| it can | test")]
    assert len(rows) > 20
    assert all("::test_" in row or "no test" in row for row in rows)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """The homes after a run, and all results that reached the server, with their clients."""
    folder, seen, given = tmp_path_factory.mktemp("lived"), list[tuple[str, Any]](), job(count=1)
    result = FederationEngine._result

    def noted(self: Any, task: Any, *others: Any) -> Any:
        found = result(self, task, *others)
        seen.append((task.client, found))
        return found

    with (
        pytest.MonkeyPatch.context() as patch,
        Server(served(given), home=folder / "server", listen="127.0.0.1:0", quiet=True) as server,
    ):
        patch.setattr(FederationEngine, "_result", noted)
        with threads(joined(server, given, folder)):
            server.train()
    yield folder, seen


def test_the_server_sees_each_clients_update_by_itself(lived: Lived) -> None:
    """Not a wish, but what is: a claim that this is so must not outlive secure aggregation."""
    trained = [(name, found) for name, found in lived[1] if isinstance(found, Total) and found.values]
    assert {name for name, _ in trained} == set(NAMES)
    assert all(found.clients == 1 for _, found in trained)


def test_no_row_is_in_the_servers_home(lived: Lived) -> None:
    given = job()
    found = recipes.clients(given.data, given.partition, given.split, given.seed)
    table = found[0].load()["train"].x
    rows = np.ascontiguousarray(np.asarray(table, dtype=np.float64)[:20])
    contents = [path.read_bytes() for path in lived[0].joinpath("server").rglob("*") if path.is_file()]
    assert len(contents) > 5
    for row in rows:
        forms = [row[:3].tobytes(), row[:3].astype(np.float32).tobytes(), ", ".join(map(repr, row[:3].tolist())).encode()]
        assert not any(form in content for form in forms for content in contents)


def test_homes_are_for_their_owner_and_keys_are_not_encrypted(lived: Lived) -> None:
    for home in (lived[0] / "server", lived[0] / NAMES[0]):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        keys = [path for path in home.rglob("*.pem") if b"PRIVATE KEY" in path.read_bytes()]
        assert keys
        for key in keys:
            assert stat.S_IMODE(key.stat().st_mode) == 0o600
            assert b"ENCRYPTED" not in key.read_bytes()


def test_the_description_tells_extremes_and_rare_categories() -> None:
    x = pd.DataFrame({"age": [31.5, 44.25, 97.75] * 20, "town": ["Lübeck"] * 59 + ["Visby"]})
    told = facts_of({"train": Table(x, np.array([0, 1, 1] * 20))})["columns"]
    assert (told["age"]["min"], told["age"]["max"]) == (31.5, 97.75)
    assert told["town"]["values"] == {"Lübeck": 59, "Visby": 1}


def test_the_servers_word_is_taken_for_the_population(tmp_path: Path) -> None:
    """What `min_clients` looks at is a number in the task, and nothing that the client could check."""
    call = WorkCall(hansa.FedAvg(local=hansa.Local(epochs=1)), {}, None, 0, 1)
    task = pb.Task(run="run", call=pb.Blob(digest="0" * 64), population=1_000_000)
    desk: Any = SimpleNamespace(served=Served(tmp_path))
    seat: Any = SimpleNamespace(
        ask=Ask("run", "job", "describe", columns=()), agreed=Agreed(call.algorithm, (), False, False, {"train": 1})
    )
    ask = _asked(desk, seat, task, call)
    assert ask.kind == "train" and Policy(min_clients=1000).refuse(ask) is None


CODE = """
data.name = "elsewhere"
algorithm.name = "fedavg"
algorithm.local.epochs = 1
[learner]
name = "torch"
module = "os:system"
options = { command = "touch was-here" }
loss = "cross_entropy"
"""


def test_no_server_decides_what_a_client_imports() -> None:
    given = from_text(CODE)
    for policy in (Policy(), Policy(learners=("torch",))):
        with pytest.raises(InputError, match="os:system"):
            check_code(given, policy)
    check_code(given, Policy(learners=("torch", "os:system")))
    check_code(job(), Policy(learners=("mlp",)))


def test_no_administrator_decides_what_a_server_imports() -> None:
    with pytest.raises(InputError, match="os:system"):
        name_of(CODE, own=False)
    assert name_of(CODE, own=True) == "torch-fedavg"


@pytest.mark.parametrize("name", ["", "../runs", "a/b", "/etc/passwd", ".hidden", "a\x00b", "x" * 200])
def test_a_runs_name_leads_nowhere(name: str) -> None:
    with pytest.raises(InputError, match="none that a server gives"):
        check_run(name)
    check_run("2026-01-02-030405-1a2b3c4d")


def test_without_tls_a_server_stays_on_its_own_machine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="listens on this machine alone"):
        Server(home=tmp_path, listen="0.0.0.0:0", insecure=True)
