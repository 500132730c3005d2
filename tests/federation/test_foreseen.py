"""`hansa check` says before what a run will meet: the same rules, at the same numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner

import hansa
from hansa.cli.main import main
from hansa.core.errors import InputError
from hansa.federated.client import Mine
from hansa.federated.foreseen import foresee
from hansa.federated.playable import playable
from hansa.federated.server import Server
from hansa.federation.policy import Policy
from tests.federation.parties import NAMES, job, joined, mine, served, threads

GIVEN = job(
    3,
    algorithm=hansa.FedAvg(local=hansa.Local(epochs=2, batch_size=16, learning_rate=0.1)),
    split=hansa.Split(test=0.2, validation=0.3),
    evaluation=hansa.Evaluation(every=2),
)
JUST = Policy(max_rounds=3, max_epochs=2, max_evaluations=4, min_clients=4, min_rows=29)
"""What the job asks, and not a round, row or judgement more: it judges after rounds 2 and 3, on two splits."""

TIGHTER = {
    "nothing": {},
    "max_rounds": {"max_rounds": 2},
    "max_epochs": {"max_epochs": 1},
    "max_evaluations": {"max_evaluations": 3},
    "min_clients": {"min_clients": 5},
    "min_rows": {"min_rows": 30},
    "evaluation": {"evaluation": False},
}


@pytest.mark.parametrize("rule", TIGHTER)
def test_a_run_is_refused_by_the_rule_that_was_foreseen_and_by_no_other(rule: str, tmp_path: Path) -> None:
    policy, path = replace(JUST, **TIGHTER[rule]), tmp_path / "job.toml"
    path.write_text(playable(served(GIVEN)))
    told = foresee(path, Mine.of(mine(GIVEN, NAMES[0])), policy, NAMES[0])
    assert {refused.rule for one in told.asked for refused in one.refused} == {rule} - {"nothing"}
    with Server(served(GIVEN), home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        homes = joined(server, GIVEN, tmp_path)
        with threads(homes, {NAMES[0]: policy}):
            if rule == "nothing":
                assert len(server.train().history) == 3
            else:
                with pytest.raises(InputError, match=rf"client-000 refuses \({rule}\)"):
                    server.train()


def test_the_verb_shows_the_rows_and_each_rule_once(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(playable(served(GIVEN)))
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(mine(GIVEN, NAMES[1])))
    (tmp_path / "policy.toml").write_text('max_rounds = 2\nmax_evaluations = 9\ncontact = "dpo@example.org"')
    words = [str(tmp_path / "job.toml"), "--data", str(tmp_path / "mine.toml"), "--policy", str(tmp_path / "policy.toml")]
    shown = CliRunner().invoke(main, ["check", *words])
    assert shown.exit_code == 3 and shown.output.count("dpo@example.org") == 1
    assert "train 3 rounds of 2 epochs" in shown.output and "refused: max_rounds" in shown.output
    (tmp_path / "policy.toml").write_text("")
    told: Any = json.loads(CliRunner().invoke(main, ["check", *words, "--json"], catch_exceptions=False).output)
    assert told["refused"] is False and set(told["rows"]) == {"train", "validation", "test"}
