"""What of a server's words a client does not even look up: code by name, and names that lead out of its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hansa.core.errors import InputError
from hansa.federation.policy import Policy
from hansa.job import Job
from hansa.options import describe

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CODE = ("module", "model")
"""Options of learners that name a Python function, which is imported and called."""


def check_run(run: str) -> None:
    """InputError for a run whose name could not be that of a file here."""
    if not _RUN.fullmatch(run):
        raise InputError("the run's name is none that a server gives (letters, digits, dots and dashes, at most 128)")


def check_code(job: Job, policy: Policy) -> None:
    """InputError for a learner that names code which the policy does not name too: no server decides what is imported here."""
    for code in named_code(describe(job.learner)):
        if code not in (policy.learners or ()):
            raise InputError(
                f"the learner names the code {code!r}, and a client runs code by name only where its policy.toml lists it; "
                f"add {code!r} to learners there, beside the learner's own name"
            )


def named_code(learner: Any) -> Iterator[str]:
    """The functions that a learner's options name, those of learners within it included."""
    if isinstance(learner, dict):
        for key, value in learner.items():
            if key in _CODE and isinstance(value, str):
                yield value
            else:
                yield from named_code(value)
    elif isinstance(learner, (list, tuple)):
        for value in learner:
            yield from named_code(value)
