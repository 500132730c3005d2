"""What a call lets its server expect of a client: the names, shapes and dtypes of the values, what it counts for, how large it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final, Literal

import numpy as np

from hansa.core.params import size_in_bytes
from hansa.core.updates import Total, Update
from hansa.core.worker import EvaluateCall, ScoreCall, WorkCall
from hansa.data.preparation import measure
from hansa.data.preparing.layout import Layout
from hansa.data.preparing.plain import from_plain
from hansa.data.preparing.sample import sample_of
from hansa.federation.calls import RemoteCall, tag_of

LARGEST: Final = 2**30
"""Bytes of a result whose names and shapes do not follow from its call, unless four times the model are more."""

_FLOATS: Final = ("float64", "float32", "float16")


@dataclass(frozen=True)
class Value:
    """What one value of a result may be.

    shape:    of one client's; None for a length that does not follow from the call.
    dtypes:   that it may have.
    optional: it may be missing, where only the learner knows.
    """

    shape: tuple[int | None, ...]
    dtypes: tuple[str, ...] = _FLOATS
    optional: bool = False

    def fits(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Whether an array of that shape and dtype is such a value."""
        lengths = len(shape) == len(self.shape) and all(b in (None, a) for a, b in zip(shape, self.shape, strict=True))
        return lengths and dtype.name in self.dtypes


@dataclass(frozen=True)
class Expected:
    """What the result of one client may be.

    values: by name; None where the call does not say, so that only ``size`` limits them.
    weight: what the client counts for; None for any finite number that is not negative.
    size:   bytes of all values whose shapes are not told: those that are told may be as large as the model is.
    facts:  the one value is what a client told of its data.
    nested: the one value is a table of all values.
    """

    collective: Literal["sum", "gather"]
    values: Mapping[str, Value] | None = None
    weight: float | None = None
    size: int = LARGEST
    facts: bool = False
    nested: bool = False

    def like(self, result: Update | Total) -> Expected:
        """The same for further results of the same call: with the names, shapes and dtypes of one that was accepted.

        Results of one exchange are added, so all must be alike, also where their call does not say what they are.
        """
        if self.facts or self.nested:
            return self
        skip = 0 if isinstance(result, Total) else 1
        known = {
            name: Value(np.shape(value)[skip:], (value.dtype.name,))
            for name, value in result.values.items()
            if not isinstance(value, list)
        }
        return replace(self, values=known) if len(known) == len(result.values) else self


def expected(call: RemoteCall, client: str = "") -> Expected:
    """What a call lets its server expect of a client. Which one matters only where the columns are split and are being prepared."""
    tag = tag_of(call)
    if isinstance(call, EvaluateCall):
        return Expected("gather", {})
    if isinstance(call, ScoreCall):
        return Expected("sum", {"scores": Value((None, None)), "labels": Value((None,), ("float64",))}, weight=1.0)
    if tag == "describe":
        return Expected("gather", facts=True)
    if tag == "prepare":
        return Expected("sum", _answers(call.message.extra["fitted"]), weight=1.0)
    if tag == "prepare_parts":
        own = call.message.extra["fitted"].get(client)
        return Expected("gather", None if own is None else _answers(own), nested=True)
    weight = 1.0 if call.weighting == "equal" else None
    size = max(LARGEST, 4 * size_in_bytes(call.message.params))
    if any(getattr(transform, "name", "") != "clip" for transform in call.transforms):
        return Expected(call.algorithm.collective, weight=weight, size=size)
    return Expected(call.algorithm.collective, _values_of(call), weight, size)


def _answers(fitted: Mapping[str, Any]) -> dict[str, Value]:
    """Answers to a preparation's questions; their shapes are those of any rows."""
    sample = sample_of(Layout.from_plain(fitted["layout"]), {key: from_plain(values) for key, values in fitted["candidates"]})
    return {name: Value(answer.shape, ("float64",)) for name, answer in measure(sample.x, fitted).items()}


def _values_of(call: WorkCall) -> dict[str, Value] | None:
    """The values of the algorithms that come with Hansa, as their ``work`` names them; None for another."""
    params, extra, keeps = call.message.params, call.message.extra, call.message.keeps
    rule: Any = call.algorithm
    size = sum(int(prod(value.shape)) for value in params.values())
    match getattr(rule, "name", ""):
        case "fedavg" | "fedprox" | "fedmedian":
            return _like(params, "delta", rule.collective)
        case "scaffold":
            return _like(params, "delta", rule.collective) | _like(keeps or {}, "control", rule.collective)
        case "gradient_descent":
            return {name: replace(value, optional=True) for name, value in _like(params, "gradient", rule.collective).items()}
        case "newton" if "step" in extra:
            return {"losses": Value((None,))}
        case "newton":
            gradient = {f"gradient/{name}": Value(value.shape) for name, value in params.items()}
            return {"objective": Value(()), "hessian": Value((size, size)), **gradient}
        case "lbfgs":
            gradient = {f"gradient/{name}": Value(value.shape, optional=True) for name, value in params.items()}
            curved = ("diagonal", "border") if "curvature" in extra else ()
            told = {f"{of}/{name}": Value(value.shape, optional=True) for of in curved for name, value in params.items()}
            return {"objective": Value(()), **gradient, **told, "infinite": Value(())}
    return None


def _like(params: Mapping[str, Any], prefix: str, collective: str) -> dict[str, Value]:
    return {f"{prefix}/{name}": Value(tuple(value.shape), _dtypes(value.dtype, collective)) for name, value in params.items()}


def _dtypes(dtype: Any, collective: str) -> tuple[str, ...]:
    name = np.dtype(dtype).name
    if name in _FLOATS:
        return (name,)
    # A counter may change by a fraction, and sums of whole numbers are made in float64.
    return ("float64", "float32") if collective == "sum" else (name, "float64", "float32")
