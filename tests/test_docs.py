"""The words stay true: pages that are generated are up to date, links lead somewhere, and the code in the pages runs."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import hansa
from hansa.job import from_text
from hansa.options import option_fields, registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text("utf-8")) if kind == language]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("make_jobs", DOCS / "make_jobs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_on_jobs_is_what_the_options_say() -> None:
    assert (DOCS / "jobs.md").read_text("utf-8") == generator().page(), "write: python docs/make_jobs.py"


def test_the_page_on_jobs_names_every_option_of_every_part() -> None:
    page = (DOCS / "jobs.md").read_text("utf-8")
    for group in ("data", "learner", "algorithm", "partition", "preparation", "transform", "engine"):
        for name, point in registry(group).items():
            if point.value.startswith("hansa."):
                assert f'name = "{name}"' in page
                assert all(f"| `{option}` |" in page for option in option_fields(point.load()) if option != "name")


def links(page: Path) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text("utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if not link.startswith(("https://", "http://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_jobs_in_pages_are_valid(page: Path) -> None:
    for text in code(page, "toml"):
        table = tomllib.loads(text)
        if {"data", "learner", "algorithm"} <= table.keys() and table["algorithm"]["name"] in registry("algorithm"):
            from_text(text)


def runnable() -> Iterator[Any]:
    """What differs from code on another page in its comments alone, as a translation does, is there once."""
    seen = set()
    for page in PAGES:
        for place, text in enumerate(code(page, "python")):
            if any(f"hansa.{verb}(" in text for verb in ("run", "compare", "search", "fit_each")):
                same = ast.dump(ast.parse(text))
                if same not in seen:
                    yield pytest.param(text, id=f"{page.relative_to(ROOT)}-{place}")
                seen.add(same)


@pytest.mark.parametrize("text", list(runnable()))
def test_python_in_pages_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "torch" in text:
        pytest.importorskip("torch", reason="the code needs hansa[torch]")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text((ROOT / "examples" / "newton.toml").read_text("utf-8"))
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, "page", "exec"), {"__name__": "page"})


# The package in docs/extending.md


@pytest.fixture(scope="module")
def lubeck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, as an installer would leave it in a folder of packages."""
    folder = tmp_path_factory.mktemp("site")
    for text in [*code(DOCS / "extending.md", "python"), *code(DOCS / "extending.md", "toml")]:
        path = folder / text.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "\n".join(f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in points.items()) for group, points in groups)
    )
    return folder


def with_lubeck(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_parts_of_others_are_used_like_built_in_ones(lubeck: Path) -> None:
    done = with_lubeck(lubeck, "-m", "hansa.cli.main", "run", "job.toml", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rounds"] == 60
    assert 0.8 < told["metrics"]["test/below"] < 0.98  # nine in ten targets stay below the 0.9 quantile
    again = with_lubeck(lubeck, "-m", "hansa.cli.main", "resume", told["run"], "--json")
    assert json.loads(again.stdout)["metrics"] == told["metrics"]


def test_parts_of_others_are_checked_like_built_in_ones(lubeck: Path) -> None:
    typo = with_lubeck(lubeck, "-m", "hansa.cli.main", "run", "job.toml", "--set", "learner.quantil=0.5")
    assert typo.returncode == 2
    assert typo.stderr == "hansa: learner: unknown key 'quantil' (did you mean 'quantile'?)\n"
    wide = with_lubeck(lubeck, "-m", "hansa.cli.main", "run", "job.toml", "--set", "learner.quantile=1.0")
    assert wide.returncode == 2 and "less than 1" in wide.stderr
    schema = json.loads(with_lubeck(lubeck, "-m", "hansa.cli.main", "schema").stdout)
    named = [one["properties"]["name"]["const"] for one in schema["properties"]["algorithm"]["oneOf"]]
    assert "fednova" in named


def test_the_algorithm_of_others_is_fedavg_where_all_clients_take_as_many_steps(lubeck: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fednova", lubeck / "lubeck" / "fednova.py")
    assert spec is not None and spec.loader is not None
    fednova = importlib.util.module_from_spec(spec)
    sys.modules["fednova"] = fednova  # dataclasses look their module up
    spec.loader.exec_module(fednova)
    local = hansa.Local(batch_size=0, epochs=3, learning_rate=0.1)  # every client takes three steps

    def params(algorithm: Any) -> dict[str, np.ndarray]:
        job = hansa.Job(
            data=hansa.BuiltIn("diabetes"),
            learner=Ridge(),
            algorithm=algorithm,
            partition=hansa.IID(clients=5),
            preparation=hansa.Standard(),
            rounds=hansa.Rounds(count=5),
        )
        return dict(hansa.run(job, directory=tmp_path, quiet=True).params)

    averaged, normalised = params(hansa.FedAvg(local=local)), params(fednova.FedNova(local=local))
    for name, value in averaged.items():
        np.testing.assert_allclose(normalised[name], value, rtol=1e-10)
