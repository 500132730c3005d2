"""The files of deploy/ ask for what there is: verbs, options, and a job that a server plays."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from hansa.cli.federation import verbs
from hansa.federated.client import Mine
from hansa.federated.playable import playable

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
OPTIONS = {verb.name: {name for option in verb.params for name in option.opts} for verb in verbs}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
PROCESSES = {name: service for name, service in COMPOSE["services"].items() if name != "database"}


@pytest.mark.parametrize("name", PROCESSES)
def test_compose_calls_a_verb_with_options_that_it_has(name: str) -> None:
    verb, *rest = PROCESSES[name]["command"]
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= OPTIONS[verb]
    assert PROCESSES[name]["read_only"] and PROCESSES[name]["cap_drop"] == ["ALL"]


def test_what_compose_mounts_is_there_and_plays_together(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = [
        Path(volume.partition(":")[0]) for service in PROCESSES.values() for volume in service["volumes"] if volume[0] == "."
    ]
    assert len(mounted) == 3 and all((DEPLOY / path).is_file() for path in mounted)
    assert "elsewhere" in playable(DEPLOY / "compose" / "job.toml")
    for name in ("client-000", "client-001"):
        assert (
            Mine.of(DEPLOY / "compose" / f"{name}.toml").client
            == name
            == tomllib.loads((DEPLOY / "compose" / f"{name}.toml").read_text("utf-8"))["client"]
        )


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("systemd/*.service")), ids=lambda path: path.stem)
def test_units_call_a_verb_with_options_that_it_has(path: Path) -> None:
    text = path.read_text("utf-8")
    found: Any = re.search(r"^ExecStart=\S+/hansa (\w+) (.*)$", text, re.MULTILINE)
    assert set(re.findall(r"--[a-z-]+", found[2])) <= OPTIONS[found[1]]
    settings = (path.parent / f"{found[1]}.env").read_text("utf-8")
    assert set(re.findall(r"\$\{?(HANSA_\w+)", found[2])) == set(re.findall(r"^(HANSA_\w+)=", settings, re.MULTILINE))
    for hardened in ("DynamicUser=yes", "ProtectSystem=strict", "NoNewPrivileges=yes", "CapabilityBoundingSet=\n"):
        assert hardened in text


def test_the_chart_gives_options_that_there_are() -> None:
    text = (DEPLOY / "helm" / "hansa" / "templates" / "process.yaml").read_text("utf-8")
    assert set(re.findall(r"^ +- (--[a-z-]+)", text, re.MULTILINE)) <= OPTIONS["server"] | OPTIONS["client"]
