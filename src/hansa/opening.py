"""A job is opened: its engine starts, its clients describe their data, and it is known how they fit together. No files, no terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from hansa.core.blocks import Block, Client, Table, blocks_of
from hansa.core.contracts import Algorithm, Engine, Learner, Schema
from hansa.core.errors import InputError
from hansa.core.fleet import Fleet
from hansa.core.loop import Observer, Steps, Terms, play, round_steps, unobserved
from hansa.core.sampling import cohort_size, sample
from hansa.core.store import MemoryStore
from hansa.data import recipes
from hansa.data.arrangement import Arrangement, ByRows, arrangement_of
from hansa.data.describe import Describe, Description
from hansa.data.elsewhere import Elsewhere
from hansa.data.rules import Facts
from hansa.data.sources import Holders
from hansa.job import Job, model_apart


@dataclass(frozen=True)
class Setting:
    """A job whose engine runs and whose clients have described their data.

    home: folder in which a gang keeps its checkpoints; empty where there is no run folder.
    """

    job: Job
    engine: Engine
    clients: Sequence[Client]
    description: Description
    schema: Schema
    transformer: Any
    fit: Algorithm | None
    central: Table | None
    terms: Terms
    arrangement: Arrangement = field(default_factory=ByRows)
    observe: Observer = unobserved
    fleet: Fleet | None = None
    home: str = ""

    @property
    def all_blocks(self) -> list[Block]:
        return blocks_of(range(len(self.clients)), self.job.rounds.block)

    @cached_property
    def judges(self) -> list[int]:
        """Positions of the clients on whose rows models are judged, ascending: the same ones at every evaluation."""
        size = cohort_size(len(self.clients), self.job.evaluation.clients)
        return [int(position) for position in sample(len(self.clients), size, self.job.seed, "evaluation")]

    def bound(self, preparation: Any = None) -> tuple[Schema, Learner]:
        """The schema with the fitted preparation, and the learner that knows it."""
        schema = self.schema if self.fit is None else self.arrangement.prepared(self.schema, preparation)
        return schema, self.job.learner.bind(schema)


def launch(job: Job) -> str:
    """Where a launcher has started this program several times, only one goes on from here: the others work for it, and end with it.

    Returns what identifies the launch over its restarts, empty for none. InputError where the job's engine is none that is launched.
    """
    serve, times = getattr(job.engine, "serve", None), os.environ.get("WORLD_SIZE", "1")
    if serve is None and "TORCHELASTIC_RUN_ID" in os.environ and times != "1":
        raise InputError(
            f"engine.name = {job.engine.name!r}: torchrun has started this program {times} times, and each would train the whole model "
            "(write engine.name = 'torchrun', or start it without torchrun)"
        )
    return "" if serve is None else str(serve())


def clients_of(job: Job) -> Sequence[Client]:
    """The recipes of a job's clients, in canonical order, sorted by id; each is made when it is asked for."""
    return recipes.clients(job.data, job.partition, job.split, job.seed)


def open_setting(
    job: Job, clients: Sequence[Client], store: Any = None, observe: Observer = unobserved, lenient: bool = False, home: str = ""
) -> Setting:
    """Start the engine and let the clients describe their data. InputError for data that cannot work.

    Of many clients a sample describes them, unless a preparation has to visit all of them anyway.

    ``lenient`` accepts what one client alone may have, but all together may not: constant columns, a single class. It leaves the
    clock out: nobody waits for a client that is alone, and numbers of clients are not asked for. ``home`` is as in :class:`Setting`.
    """
    engine = job.engine.build()
    engine.start(job.learner, clients, MemoryStore() if store is None else store)
    try:
        return replace(play(engine, setting_steps(job, clients, engine, observe, lenient)), home=home)
    except BaseException:
        engine.stop()  # whoever asked for the setting will never get hold of it
        raise


def _check_enough(job: Job, population: int) -> None:
    for option, asked in job.asked.items():
        if asked > max(1, population):
            raise InputError(
                f"{option} = {asked:g}: there are only {population:,} clients (write {population} or fewer, or a share of at most 1)"
            )


def setting_steps(
    job: Job, clients: Sequence[Client], engine: Engine, observe: Observer = unobserved, lenient: bool = False,
    facts: Facts | None = None,
) -> Steps[Setting]:  # fmt: skip
    """As :func:`open_setting`, for an engine that has been started; with what the clients told of their data if they already did."""
    job = replace(job, clock=None) if lenient else job
    if not lenient and not isinstance(job.data, Elsewhere):  # a job for clients elsewhere is written before it is known who comes
        _check_enough(job, len(clients))
    fleet = None if job.clock is None else job.clock.open(client.id for client in clients)
    terms = Terms(job.seed, len(clients), job.rounds.weighting, job.rounds.quorum, job.transforms)
    arrangement = arrangement_of(job.partition, clients)
    everybody = job.preparation is not None or isinstance(job.data, Elsewhere)  # whose rows no index tells
    some = range(len(clients)) if everybody else arrangement.asked(len(clients), job.seed)
    if facts is None:
        told = yield from round_steps(
            {"params": {}}, algorithm=Describe(), blocks=blocks_of(some, job.rounds.block), schema=None, round=0, rate=1.0,
            terms=Terms(job.seed, len(clients)), observe=observe,
        )  # fmt: skip
        facts = told.state["facts"]
    holders = isinstance(job.data, Holders)
    natural = getattr(job.partition, "name", "") == "column" and not holders
    description = arrangement.describe(
        facts,
        task=recipes.task_of(job.data),
        needs=job.learner.needs,
        prepared=job.preparation is not None,
        constant="allow" if lenient else "refuse",
        single_class="refuse" if natural and not lenient else "allow",
        everyone=recipes.everyone(clients) if holders or len(some) < len(clients) else None,
    )
    schema = arrangement.schema(description)
    transformer, _ = model_apart(job.preparation)
    transformer, fit = (None, None) if transformer is None else arrangement.preparation(transformer, description)
    return Setting(
        job, engine, clients, description, schema, transformer, fit, recipes.central(job.data), terms, arrangement, observe, fleet
    )  # fmt: skip
