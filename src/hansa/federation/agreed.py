"""What a job's text leads to, and whether a call is that: a server that shows one job and plays another is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa.core.worker import ScoreCall, WorkCall
from hansa.federation.calls import RemoteCall, kind_of, tag_of


@dataclass(frozen=True)
class Agreed:
    """What the text of a job says, and what this client's rows are by it.

    prepares:   whether there is a preparation to fit.
    by_columns: whether clients hold columns of the same rows; then the scores of single rows are told.
    rows:       split -> rows at this client.
    """

    algorithm: Any
    transforms: tuple[Any, ...]
    prepares: bool
    by_columns: bool
    rows: Mapping[str, int]

    def rows_of(self, call: RemoteCall) -> int | None:
        """Rows of the split that a call uses, the fewest of all splits where it uses all; None for a split that there is not."""
        return min(self.rows.values()) if kind_of(call) == "describe" else self.rows.get(call.split)


def strange(agreed: Agreed, call: RemoteCall) -> str:
    """Why a call is none that the job's text leads to: the rest of a sentence that begins with the job. Empty for one that is."""
    return _strange_work(agreed, call) if isinstance(call, WorkCall) else _strange_judging(agreed, call)


def _strange_work(agreed: Agreed, call: WorkCall) -> str:
    tag = tag_of(call)
    if call.split != "train":
        return f"asks for work on the rows of {call.split!r}, and a job's work is on those of training"
    if tag == "train":
        own, asked = agreed.algorithm, call.algorithm
        if asked.name != own.name:  # type: ignore[attr-defined]  # what came as a call was built by its name
            return f"asks for the algorithm {asked.name!r}, and its text names {own.name!r}"  # type: ignore[attr-defined]  # as above
        if asked != own:
            return f"asks for the algorithm {own.name!r} with other options than those of its text"
    elif tag != "describe" and not agreed.prepares:
        return "asks to fit a preparation, and its text names none"
    elif tag == "prepare_parts" and not agreed.by_columns:
        return "asks for a preparation of columns that are split over the clients, and by its text their rows are"
    if call.transforms != (agreed.transforms if tag == "train" else ()):
        return "asks for other transforms than those of its text"
    return ""


def _strange_judging(agreed: Agreed, call: RemoteCall) -> str:
    if isinstance(call, ScoreCall) and not agreed.by_columns:
        return "asks for the scores of single rows, which only columns that are split over the clients need"
    if call.split == "train" or call.split not in agreed.rows:
        return f"asks to judge a model on the rows of {call.split!r}, and its text keeps none back by that name"
    return ""
