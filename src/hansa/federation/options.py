"""How a federation's rounds are played: the table ``[engine]`` of a job that a server plays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from hansa.core.contracts import Engine
from hansa.core.errors import InputError


@dataclass(frozen=True)
class Federation:
    """Organisations that train together over the network. `hansa server JOB.toml` plays such a job.

    clients:   a run begins when so many clients ask for tasks within ``liveness``; all that are there then take part in it.
    enough:    share of a cohort whose results close a round before the others have answered. With `rounds.clients` above what is
               needed this is over-selection; below 1.0 it needs a `rounds.quorum` that is not larger.
    deadline:  seconds after which a round closes with what it has; 0 for none. Before the first round, when clients describe their
               data, all are waited for.
    liveness:  seconds without a byte from a client after which it is lost for the round. A client that comes back in time goes on.
    """

    name: Literal["federation"] = field(default="federation", kw_only=True)
    clients: Annotated[int, Ge(1)] = 1
    enough: Annotated[float, Interval(gt=0, le=1)] = 1.0
    deadline: Annotated[float, Ge(0)] = 0.0
    liveness: Annotated[float, Gt(0)] = 300.0

    def build(self) -> Engine:
        raise InputError(
            "engine.name = 'federation': the rounds of a federation are played by its server; write `hansa server JOB.toml --home DIR`, "
            "or `hansa simulate-federation JOB.toml` to try it on this machine"
        )
