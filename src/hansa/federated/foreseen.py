"""What a job will ask of a client, and what the client's policy says to it: told from the job's text, before anybody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hansa import job as jobs
from hansa.data.facts import refuse_names
from hansa.federated.client import Mine
from hansa.federated.foreign import check_code
from hansa.federated.opened import ask_of
from hansa.federated.playable import options_of
from hansa.federation.policy import Ask, Policy, Refused
from hansa.job import Job


@dataclass(frozen=True)
class Foreseen:
    """One kind of thing that a run asks for, at its most.

    asks:    in words.
    refused: by every rule that forbids it; empty where it is allowed.
    """

    asks: str
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class Outlook:
    """A job at a client.

    ask:  what is known of it at the client: its learner, columns, label.
    rows: of each split that the job makes of this client's rows.
    """

    ask: Ask
    rows: Mapping[str, int]
    asked: tuple[Foreseen, ...]

    @property
    def refused(self) -> bool:
        return any(one.refused for one in self.asked)


def foresee(path: Path, mine: Mine, policy: Policy, name: str) -> Outlook:
    """What the job of a file will ask of the client ``name``. Which metrics there are is known after the work only, and not judged here.

    Raises InputError for a job, or rows, with which the client could not take part.
    """
    job = jobs.load(path)
    check_code(job, policy)
    splits = mine.recipe(name, job.split, job.seed).load()
    refuse_names(splits, name)
    ask, rows = ask_of(job, "", mine.data, splits), {split: len(table) for split, table in splits.items()}
    asked = tuple(Foreseen(words, policy.refusals(one)) for words, one in _asks(job, ask, rows))
    return Outlook(ask, rows, asked)


def _asks(job: Job, ask: Ask, rows: Mapping[str, int]) -> Iterator[tuple[str, Ask]]:
    yield "describe the data", ask
    known = replace(ask, clients=options_of(job).clients)
    rounds, judged = job.rounds.count, [split for split in rows if split != "train"]
    if job.preparation is not None:
        yield "fit the preparation", replace(known, kind="prepare", rows=rows["train"], round=0)
    epochs = getattr(getattr(job.algorithm, "local", None), "epochs", None)
    passes = "" if epochs is None else f" of {epochs} epoch{'' if epochs == 1 else 's'}"
    words = f"train {rounds} round{'' if rounds == 1 else 's'}{passes}"
    yield words, replace(known, kind="train", rows=rows["train"], round=rounds - 1, epochs=epochs)
    times = -(-rounds // job.evaluation.every) + job.evaluation.best
    for split in judged:
        one = replace(known, kind="evaluate", rows=rows[split], round=rounds - 1, evaluations=times * len(judged))
        yield f"judge {times} model{'' if times == 1 else 's'} on its {split} rows", one
