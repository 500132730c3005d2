"""A run that is over, given back by a server process that did not play it to its end, without asking any client once more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hansa import judging, opening
from hansa.core.blocks import Block
from hansa.core.blocks import Client as Recipe
from hansa.core.contracts import Engine, Result
from hansa.core.loop import play
from hansa.core.updates import Update
from hansa.federation import calls
from hansa.federation.blobs import Blobs
from hansa.federation.engine import FederationEngine, Playing
from hansa.federation.state import RunRow
from hansa.job import Job
from hansa.runs import Run
from hansa.tracking.folder import RunFolder
from hansa.tracking.tree import load_tree, save_tree

FACTS = "facts.safetensors"
"""The file in a run's folder with what the clients told of their data: the model is made of it and of the params."""


class DescribedEngine(FederationEngine):
    """The engine of a run, in whose folder it keeps what the clients tell of their data."""

    def __init__(self, playing: Playing, folder: Path) -> None:
        super().__init__(playing)
        self._folder = folder

    def map(self, call: Any, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        if calls.kind_of(call) != "describe":
            yield from super().map(call, blocks)
            return
        told: dict[int, tuple[str, Any]] = {}
        for number, result in super().map(call, blocks):
            if isinstance(result, Update):
                told[number] = result.clients[0], result.values["facts"][0]
            yield number, result
        plain = json.dumps(dict(told[number] for number in sorted(told))).encode()
        save_tree(self._folder / FACTS, {"facts": np.frombuffer(plain, np.uint8)})  # as an array it may be of any size


def kept_run(row: RunRow, job: Job, folder: Path, blobs: Blobs, clients: Sequence[Recipe], engine: Engine) -> Run | None:
    """A finished run as who played it gave it back; None where this server's folder does not hold all of it.

    engine: of the job; nothing is asked of it.
    """
    if row.state is None or not (folder / FACTS).exists() or RunFolder(folder).status()["status"] != "finished":
        return None
    kept, facts = RunFolder(folder), json.loads(load_tree(folder / FACTS)["facts"].tobytes())
    setting = play(engine, opening.setting_steps(job, clients, engine, facts=facts))
    state, told, history = load_tree(blobs.local(row.state)), kept.read_json("clients.json"), kept.metrics()
    best, params = state["best"] if job.evaluation.best else None, judging.chosen_params(job, state)
    judged = _record_of(history, state["round"] if best is None else best["round"])
    return Run(
        job=job, params=params, history=history, export=partial(judging.exported, setting, state["preparation"], params),
        metrics={name: value for name, value in judged.items() if name.partition("/")[0] in ("validation", "test", "central")},
        by_client=told["metrics"], directory=folder, ended=told["ended"], seconds=kept.status()["seconds"],
    )  # fmt: skip


def _record_of(history: Sequence[Mapping[str, Any]], round: int) -> Mapping[str, Any]:
    return next((record for record in history if record["round"] == round), {})
