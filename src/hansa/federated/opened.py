"""What a client knows of a job before any of its tasks: for its policy, and to hold the calls against."""

from __future__ import annotations

from typing import Any

from hansa.core.blocks import Splits
from hansa.data.builtin import SKLEARN, BuiltIn
from hansa.federation.agreed import Agreed
from hansa.federation.policy import Ask
from hansa.job import Job

LABELS = {"heart_disease": "num", "mnist_784": "class", "fashion_mnist": "class", **dict.fromkeys(SKLEARN, "target")}
"""What the column of the labels is called where the built-in sets come from."""


def label_of(source: Any, y: Any) -> str | None:
    """The column of a source's labels ``y``: None where there are none, empty where its name is not known."""
    if y is None:
        return None
    name = LABELS.get(source.name) if isinstance(source, BuiltIn) else getattr(source, "label", None)
    return name if isinstance(name, str) else ""


def ask_of(job: Job, run: str, source: Any, splits: Splits) -> Ask:
    """What is asked before any task, of a client with these rows of a source."""
    table = splits["train"]
    return Ask(
        run=run, job=job.name, kind="describe", learner=getattr(job.learner, "name", type(job.learner).__name__),
        algorithm=job.algorithm.name, columns=tuple(str(name) for name in getattr(table.x, "columns", ())),
        label=label_of(source, table.y), rows=min(map(len, splits.values())),
        secure_aggregation=any(getattr(transform, "name", "") == "secure_aggregation" for transform in job.transforms),
    )  # fmt: skip


def agreed_of(job: Job, splits: Splits) -> Agreed:
    """What the job's text leads to at a client with these rows."""
    return Agreed(
        job.algorithm, tuple(job.transforms), job.preparation is not None, "parts" in job.algorithm.needs,
        {name: len(table) for name, table in splits.items()},
    )  # fmt: skip
