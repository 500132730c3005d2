"""What a client answers to a call, as a plain tree, and back: the server checks it against what the call lets it expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, Final

import numpy as np

from hansa.core.errors import InputError
from hansa.core.reduction import SLICE, release
from hansa.core.updates import Total, Update
from hansa.federation.entries import entry, only
from hansa.federation.expectations import Expected, Value
from hansa.federation.told import check_facts

METRICS: Final = 64
"""Metrics of one result at most."""


def encode_result(result: Update | Total) -> dict[str, Any]:
    """What a client answers, as a tree: without its id, which its certificate says, and without what it keeps for itself."""
    if isinstance(result, Update) and result.state:
        raise InputError("a client's own state stays with the client; keep it in the store before the result is sent")
    metrics = {name: list(pair) for name, pair in result.metrics.items()}
    if isinstance(result, Total):
        return {
            "collective": "sum",
            "values": result.values,
            "weight": result.weight,
            "clients": result.clients,
            "metrics": metrics,
        }
    return {"collective": "gather", "values": result.values, "weight": result.weight, "metrics": metrics}


def decode_result(tree: Any, expected: Expected, clients: int = 1, taken: bool = False) -> Update | Total:
    """The result of a tree that one client sent. An :class:`Update` names no client: whoever received it knows whose it is.

    clients: more than one for a sum of so many that a relay sent.
    taken:   it was accepted before, and so its values are known to be finite.

    Raises InputError for a result that is not as expected, or holds what is not finite.
    """
    total = expected.collective == "sum"
    only(tree, {"collective", "values", "weight", "metrics"} | ({"clients"} if total else set()), "result")
    made = entry(tree, "collective", str)
    if made != expected.collective:
        raise InputError(f"result: it is made for {made[:50]!r}, the call for {expected.collective!r}")
    values = _checked_values(entry(tree, "values", dict), expected, taken)
    metrics = _metrics(entry(tree, "metrics", dict), () if total else (1,))
    weight = tree["weight"]
    if total:
        if type(tree["clients"]) is not int or tree["clients"] != clients:
            whose = "each sends its own" if clients == 1 else f"the sum of {clients} is wanted"
            raise InputError(f"result: it is of {str(tree['clients'])[:50]} clients; {whose}")
        _refuse_weight(weight, isinstance(weight, float), expected, clients)
        return Total(values, weight, clients, metrics)
    fits = isinstance(weight, np.ndarray) and weight.shape == (1,) and weight.dtype == np.float64
    _refuse_weight(weight[0] if fits else weight, fits, expected)
    return Update(values, np.array(weight), metrics)


def _refuse_weight(weight: Any, fits: bool, expected: Expected, clients: int = 1) -> None:
    if not fits or not isfinite(weight) or weight < 0:
        raise InputError("result: its weight is not a finite number of at least zero")
    if expected.weight is not None and weight != clients * expected.weight:
        raise InputError(f"result: its weight is {float(weight):g}, and every client counts for {expected.weight:g} here")


def _checked_values(values: dict[str, Any], expected: Expected, taken: bool) -> dict[str, Any]:
    if not (expected.facts or expected.nested):
        _refuse_values(values, expected, taken)
        return values
    name = "facts" if expected.facts else "answers"
    only(values, {name}, "result")
    told = values[name]
    if not isinstance(told, list) or len(told) != 1 or not isinstance(told[0], dict):
        raise InputError(f"result: its {name} are not those of one client")
    if expected.facts:
        check_facts(told[0])
    else:
        _refuse_values(told[0], replace(expected, collective="sum"), taken)
    return values


def _refuse_values(values: dict[str, Any], expected: Expected, taken: bool) -> None:
    _refuse_names(values, expected.values)
    size = 0
    for name, value in values.items():
        if expected.values is None and expected.collective == "gather" and isinstance(value, list):
            if len(value) != 1 or not isinstance(value[0], np.ndarray):
                raise InputError(f"result: {name[:200]!r} is not one client's array")
            value = value[0][None]
        if not isinstance(value, np.ndarray | np.generic) or (expected.collective == "gather" and np.shape(value)[:1] != (1,)):
            raise InputError(f"result: {name[:200]!r} is not one client's array")
        told = None if expected.values is None else expected.values[name]
        if told is None or None in told.shape:
            size += value.nbytes
        if size > expected.size:
            raise InputError(f"result: its values are more than {expected.size:,} bytes")
        _refuse_value(name, value, expected, taken)


def _refuse_names(values: Mapping[str, Any], wanted: Mapping[str, Value] | None) -> None:
    if wanted is None:
        return
    strange = [name for name in values if name not in wanted]
    lacking = [name for name, value in wanted.items() if name not in values and not value.optional]
    if strange or lacking or (wanted and not values):
        what = (
            f"has {strange[0][:200]!r}, which the call does not ask for" if strange else f"lacks {(lacking or list(wanted))[0]!r}"
        )
        raise InputError(f"result: it {what}; use the same version of hansa at server and client")
    # What belongs to the model has its order, which flattening follows.
    model = [name for name in wanted if "/" in name and name in values]
    if [name for name in values if "/" in name] != model:
        raise InputError("result: its values are in another order than those of the model")


def _refuse_value(name: str, value: Any, expected: Expected, taken: bool) -> None:
    shape = value.shape[1:] if expected.collective == "gather" else value.shape
    wanted = None if expected.values is None else expected.values[name]
    if wanted is not None and not wanted.fits(shape, value.dtype):
        lengths = ", ".join("any" if length is None else str(length) for length in wanted.shape)
        raise InputError(
            f"result: {name[:200]!r} is {value.dtype} of shape {shape}, and {' or '.join(wanted.dtypes)} of shape ({lengths}) was asked for"
        )
    if value.dtype.kind not in "biuf":
        raise InputError(f"result: {name[:200]!r} is {value.dtype}, which is no number")
    if not taken and value.dtype.kind == "f" and not _finite(value):
        raise InputError(f"result: {name[:200]!r} is not finite")


def _finite(value: Any) -> bool:
    flat, finite = value.reshape(-1), True
    for start in range(0, flat.size, SLICE):
        finite = finite and bool(np.isfinite(flat[start : start + SLICE]).all())
        release(flat[start : start + SLICE])  # it is read when it is summed, and takes no memory until then
    return finite


def _metrics(plain: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    if len(plain) > METRICS:
        raise InputError(f"result: it has {len(plain)} metrics; at most {METRICS} are taken")
    result = {}
    for name, pair in plain.items():
        whole = isinstance(pair, list) and len(pair) == 2 and all(_is_number(side, shape) for side in pair)
        if not whole or len(name) > 200:
            raise InputError(f"result: the metric {name[:200]!r} is not a sum and a count of float64, or they are not finite")
        if (pair[1] < 0).any():
            raise InputError(f"result: the metric {name[:200]!r} counts less than nothing")
        result[name] = (np.array(pair[0]), np.array(pair[1])) if shape else (pair[0], pair[1])
    return result


def _is_number(side: Any, shape: tuple[int, ...]) -> bool:
    kind = np.ndarray if shape else np.float64
    return isinstance(side, kind) and side.dtype == np.float64 and side.shape == shape and bool(np.isfinite(side).all())
