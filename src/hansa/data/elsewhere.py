"""Rows that are at the clients of a federation: whoever plays the rounds never sees one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from hansa.data.sources import Rows, Task


@dataclass(frozen=True)
class Elsewhere:
    """What a server's job has for data: the clients bring the rows, each from its own ``--data``.

    task: what the labels are; clients whose labels are of the other kind are refused.
    """

    name: Literal["elsewhere"] = field(default="elsewhere", kw_only=True)
    task: Task = "classification"

    def read(self) -> Rows:
        """No rows."""
        return Rows(np.zeros((0, 0)), None, None, None, self.task)
