"""The three ways in which a run ends badly. Each message says what was given, why it cannot work and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class HansaError(Exception):
    """Base of all errors that are meant for the user to read."""


class InputError(HansaError, ValueError):
    """What was given cannot work: a job, an option, a file, a client's data. Raised before any training."""


class RunFailed(HansaError, RuntimeError):
    """The run could not go on: too few clients gave a result, or a client raised."""


class Diverged(RunFailed):
    """The loss or an update is not finite any more."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or the list of what is allowed where nothing is close."""
    names = sorted(allowed)
    close = get_close_matches(given, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f" (allowed: {', '.join(names) or 'nothing'})"


def refuse_class(given: object, path: str) -> None:
    """InputError for a class in the place of an object of it."""
    if isinstance(given, type):
        raise InputError(f"{path}: {given.__name__} is a class, not an object of it (write {given.__name__}(...))")


def missing_extra(package: str, extra: str) -> InputError:
    """The error for an optional framework that is not installed."""
    return InputError(f"{package} is not installed; write: pip install 'hansa[{extra}]'")
