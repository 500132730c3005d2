"""The calls of a round as plain trees, and back: what a server asks of a client, and what the client answers.

A call names its algorithm and transforms by the names under which they are installed, with their options; the two stages before training
have names of their own. No code travels, and nothing is imported that is not an installed part of Hansa. What a call says is checked by
the client before it is used, and what a result says by the server, against what the call lets it expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from hansa.core.contracts import Message, Schema
from hansa.core.errors import InputError
from hansa.core.params import size_in_bytes
from hansa.core.reduction import SLICE, release
from hansa.core.updates import Total, Update
from hansa.core.worker import EvaluateCall, ScoreCall, Weighting, WorkCall
from hansa.data.describe import Describe
from hansa.data.preparation import FitPreparation, Preparer, measure
from hansa.data.preparation_parts import FitParts
from hansa.data.preparing.layout import Layout
from hansa.data.preparing.plain import from_plain
from hansa.data.preparing.sample import sample_of
from hansa.federation.told import check_facts, kind_of_dtype
from hansa.options import build, describe

Kind = Literal["describe", "prepare", "train", "evaluate"]
RemoteCall: TypeAlias = "WorkCall | EvaluateCall | ScoreCall"

SPLITS: Final = ("train", "validation", "test")
METRICS: Final = 64
"""Metrics of one result at most."""

LARGEST: Final = 2**30
"""Bytes of a result whose names and shapes do not follow from its call, unless four times the model are more."""

_FLOATS: Final = ("float64", "float32", "float16")


_STAGES: Final[dict[str, type]] = {"describe": Describe, "prepare": FitPreparation, "prepare_parts": FitParts}
"""Algorithms that are no part of a job: what happens before training. All that a client needs of them is in the message."""

_JUDGES: Final[dict[str, type[EvaluateCall] | type[ScoreCall]]] = {"evaluate": EvaluateCall, "score": ScoreCall}


def kind_of(call: RemoteCall) -> Kind:
    """Which stage of a job a call belongs to."""
    tag = _tag(call)
    if tag in _JUDGES:
        return "evaluate"
    return "describe" if tag == "describe" else "prepare" if tag in _STAGES else "train"


def _tag(call: RemoteCall) -> str:
    rule = call.algorithm if isinstance(call, WorkCall) else call
    return next((tag for tag, kind in {**_STAGES, **_JUDGES}.items() if type(rule) is kind), "train")


def encode_call(call: RemoteCall) -> dict[str, Any]:
    """The call as a tree. Raises InputError for an algorithm or a transform that is not installed, or not said by its options."""
    tag = _tag(call)
    common = {"call": tag, "schema": _plain_schema(call.schema), "seed": call.seed, "round": call.round, "split": call.split}
    if not isinstance(call, WorkCall):
        return {**common, "params": call.params}
    return {
        **common,
        "algorithm": _options("algorithm", call.algorithm) if tag == "train" else None,
        "transforms": [_options("transform", transform) for transform in call.transforms],
        "weighting": call.weighting,
        "message": {"params": call.message.params, "extra": call.message.extra, "keeps": call.message.keeps},
    }


def _options(group: str, part: Any) -> dict[str, Any]:
    plain: dict[str, Any] = describe(part)
    try:
        same = build(group, plain) == part
    except InputError as error:
        raise InputError(f"{group} {type(part).__name__}: it cannot be sent to another organisation: {error}") from None
    if not same:
        raise InputError(
            f"{group} {type(part).__name__}: it is more than its options say, and only they are sent to another organisation "
            f"(register its class under hansa.{group}, with plain values for options)"
        )
    return plain


def _plain_schema(schema: Schema | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    if schema.preparer not in (None, Preparer()):
        raise InputError(f"the preparer {type(schema.preparer).__name__} cannot be sent to another organisation; use a preparation")
    return {
        "features": list(schema.features), "shape": list(schema.shape), "dtype": schema.dtype,
        "classes": None if schema.classes is None else list(schema.classes), "rows": schema.rows,
        "preparation": schema.preparation, "prepared": schema.preparer is not None,
        "parts": {client: _plain_schema(part) for client, part in schema.parts.items()}, "places": list(schema.places),
    }  # fmt: skip


def decode_call(tree: Any) -> RemoteCall:
    """The call of a tree, which does the same work to the last bit. Raises InputError for a tree that is none, and for an algorithm or
    a transform that is not installed here."""
    tag = _one(_entry(tree, "call", str), (*_STAGES, *_JUDGES, "train"), "call")
    own = {"params"} if tag in _JUDGES else {"algorithm", "transforms", "weighting", "message"}
    _only(tree, {"call", "schema", "seed", "round", "split"} | own, "call")
    schema = None if tree["schema"] is None else _schema(tree["schema"])
    seed, round, split = _whole(tree, "seed"), _whole(tree, "round"), _one(_entry(tree, "split", str), SPLITS, "split")
    if (schema is None) != (tag in _STAGES):
        raise InputError(f"call {tag}: it comes {'without' if schema is None else 'with'} a schema; ask the server for its version")
    if tag in _JUDGES:
        assert schema is not None
        return _JUDGES[tag](_params(tree["params"], "params"), schema, seed, round, split)
    weighting: Weighting = _one(_entry(tree, "weighting", str), get_args(Weighting), "weighting")
    transforms = tuple(_built("transform", plain) for plain in _entry(tree, "transforms", list))
    return WorkCall(
        _algorithm(tag, tree["algorithm"]), _message(tree["message"]), schema, seed, round, weighting, transforms, split
    )


def _algorithm(tag: str, plain: Any) -> Any:
    if tag == "train":
        algorithm = _built("algorithm", plain)
        if algorithm.collective not in ("sum", "gather"):
            raise InputError(f"algorithm {algorithm.name}: its clients are a gang, which organisations do not form; choose another")
        return algorithm
    if plain is not None:
        raise InputError(f"call {tag}: it names an algorithm; ask the server for its version")
    return {"describe": Describe(), "prepare": FitPreparation({}), "prepare_parts": FitParts({}, {})}[tag]


def _built(group: str, plain: Any) -> Any:
    if not isinstance(plain, dict):
        raise InputError(f"{group}: its options are not a table; ask the server for its version")
    try:
        return build(group, plain)
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # values of kinds that no reader of a job gives
        raise InputError(f"{group}: its options cannot be read ({type(error).__name__}: {error})") from None


def _message(plain: Any) -> Message:
    _only(plain, {"params", "extra", "keeps"}, "message")
    keeps = None if plain["keeps"] is None else _params(plain["keeps"], "keeps")
    return Message(_params(plain["params"], "params"), _entry(plain, "extra", dict), keeps)


def _schema(plain: Any, whole: bool = True) -> Schema:
    _only(plain, {"features", "shape", "dtype", "classes", "rows", "preparation", "prepared", "parts", "places"}, "schema")
    features, shape, classes = _entry(plain, "features", list), _entry(plain, "shape", list), plain["classes"]
    places, parts = _entry(plain, "places", list), _entry(plain, "parts", dict)
    if parts and not whole:
        raise InputError("schema: a part of it has parts; ask the server for its version")
    if not all(isinstance(name, str) for name in features) or not all(type(n) is int and 0 <= n < 2**31 for n in shape + places):
        raise InputError("schema: its features or its shape are none; ask the server for its version")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, bool | int | float | str) for c in classes)):
        raise InputError("schema: its classes are neither numbers nor text; ask the server for its version")
    dtype = _entry(plain, "dtype", str)
    if kind_of_dtype(dtype) not in tuple("biufO"):
        raise InputError(f"schema: {dtype[:50]!r} is no dtype of features; ask the server for its version")
    prepared = _entry(plain, "prepared", bool)
    if prepared != isinstance(plain["preparation"], dict) or (not prepared and plain["preparation"] is not None):
        raise InputError("schema: its preparation is none; ask the server for its version")
    return Schema(
        features=tuple(features), shape=tuple(shape), dtype=dtype, classes=None if classes is None else tuple(classes),
        rows=_whole(plain, "rows"), preparation=plain["preparation"], preparer=Preparer() if prepared else None,
        parts={client: _schema(part, whole=False) for client, part in parts.items()}, places=tuple(places),
    )  # fmt: skip


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
    tag = _tag(call)
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


def decode_result(tree: Any, expected: Expected, clients: int = 1, taken: bool = False) -> Update | Total:
    """The result of a tree that one client sent. An :class:`Update` names no client: whoever received it knows whose it is.

    clients: more than one for a sum of so many that a relay sent.
    taken:   it was accepted before, and so its values are known to be finite.

    Raises InputError for a result that is not as expected, or holds what is not finite.
    """
    total = expected.collective == "sum"
    _only(tree, {"collective", "values", "weight", "metrics"} | ({"clients"} if total else set()), "result")
    made = _entry(tree, "collective", str)
    if made != expected.collective:
        raise InputError(f"result: it is made for {made[:50]!r}, the call for {expected.collective!r}")
    values = _checked_values(_entry(tree, "values", dict), expected, taken)
    metrics = _metrics(_entry(tree, "metrics", dict), () if total else (1,))
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
    _only(values, {name}, "result")
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


def _only(tree: Any, names: set[str], what: str) -> None:
    if not isinstance(tree, dict) or tree.keys() != names:
        raise InputError(f"{what}: it is not a table of {', '.join(sorted(names))}; use the same version of hansa at both ends")


def _entry(tree: Any, name: str, kind: type) -> Any:
    if not isinstance(tree, dict) or type(tree.get(name)) is not kind:
        raise InputError(f"{name}: it is no {kind.__name__}; use the same version of hansa at both ends")
    return tree[name]


def _whole(tree: Any, name: str) -> int:
    number: int = _entry(tree, name, int)
    if number < 0:
        raise InputError(f"{name}: {number} is negative; use the same version of hansa at both ends")
    return number


def _one(value: str, allowed: tuple[str, ...], what: str) -> Any:
    if value not in allowed:
        raise InputError(f"{what}: {value[:50]!r} is none of {', '.join(allowed)}; use the same version of hansa at both ends")
    return value


def _params(tree: Any, what: str) -> dict[str, Any]:
    # A counter that was rounded is a NumPy number.
    if not isinstance(tree, dict) or not all(isinstance(value, np.ndarray | np.generic) for value in tree.values()):
        raise InputError(f"{what}: they are not named arrays; use the same version of hansa at both ends")
    return tree
