"""The calls of a round as plain trees, and back: what a server asks of a client.

A call names its algorithm and transforms by the names under which they are installed, with their options; the two stages before training
have names of their own. No code travels, and nothing is imported that is not an installed part of Hansa. What a call says is checked by
the client before it is used.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, get_args

from hansa.core.contracts import Message, Schema
from hansa.core.errors import InputError
from hansa.core.worker import EvaluateCall, ScoreCall, Weighting, WorkCall
from hansa.data.describe import Describe
from hansa.data.preparation import FitPreparation, Preparer
from hansa.data.preparation_parts import FitParts
from hansa.federation.entries import arrays, entry, one_of, only, whole_number
from hansa.federation.told import kind_of_dtype
from hansa.options import build, describe

Kind = Literal["describe", "prepare", "train", "evaluate"]
RemoteCall: TypeAlias = "WorkCall | EvaluateCall | ScoreCall"

SPLITS: Final = ("train", "validation", "test")

_STAGES: Final[dict[str, type]] = {"describe": Describe, "prepare": FitPreparation, "prepare_parts": FitParts}
"""Algorithms that are no part of a job: what happens before training. All that a client needs of them is in the message."""

_JUDGES: Final[dict[str, type[EvaluateCall] | type[ScoreCall]]] = {"evaluate": EvaluateCall, "score": ScoreCall}


def kind_of(call: RemoteCall) -> Kind:
    """Which stage of a job a call belongs to."""
    tag = tag_of(call)
    if tag in _JUDGES:
        return "evaluate"
    return "describe" if tag == "describe" else "prepare" if tag in _STAGES else "train"


def tag_of(call: RemoteCall) -> str:
    """The name of a call in its tree: of a stage before training, of an evaluation, or "train"."""
    rule = call.algorithm if isinstance(call, WorkCall) else call
    return next((tag for tag, kind in {**_STAGES, **_JUDGES}.items() if type(rule) is kind), "train")


def encode_call(call: RemoteCall) -> dict[str, Any]:
    """The call as a tree. Raises InputError for an algorithm or a transform that is not installed, or not said by its options."""
    tag = tag_of(call)
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
    tag = one_of(entry(tree, "call", str), (*_STAGES, *_JUDGES, "train"), "call")
    own = {"params"} if tag in _JUDGES else {"algorithm", "transforms", "weighting", "message"}
    only(tree, {"call", "schema", "seed", "round", "split"} | own, "call")
    schema = None if tree["schema"] is None else _schema(tree["schema"])
    seed, round, split = whole_number(tree, "seed"), whole_number(tree, "round"), one_of(entry(tree, "split", str), SPLITS, "split")
    if (schema is None) != (tag in _STAGES):
        raise InputError(f"call {tag}: it comes {'without' if schema is None else 'with'} a schema; ask the server for its version")
    if tag in _JUDGES:
        assert schema is not None
        return _JUDGES[tag](arrays(tree["params"], "params"), schema, seed, round, split)
    weighting: Weighting = one_of(entry(tree, "weighting", str), get_args(Weighting), "weighting")
    transforms = tuple(_built("transform", plain) for plain in entry(tree, "transforms", list))
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
    only(plain, {"params", "extra", "keeps"}, "message")
    keeps = None if plain["keeps"] is None else arrays(plain["keeps"], "keeps")
    return Message(arrays(plain["params"], "params"), entry(plain, "extra", dict), keeps)


def _schema(plain: Any, whole: bool = True) -> Schema:
    only(plain, {"features", "shape", "dtype", "classes", "rows", "preparation", "prepared", "parts", "places"}, "schema")
    features, shape, classes = entry(plain, "features", list), entry(plain, "shape", list), plain["classes"]
    places, parts = entry(plain, "places", list), entry(plain, "parts", dict)
    if parts and not whole:
        raise InputError("schema: a part of it has parts; ask the server for its version")
    if not all(isinstance(name, str) for name in features) or not all(type(n) is int and 0 <= n < 2**31 for n in shape + places):
        raise InputError("schema: its features or its shape are none; ask the server for its version")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, bool | int | float | str) for c in classes)):
        raise InputError("schema: its classes are neither numbers nor text; ask the server for its version")
    dtype = entry(plain, "dtype", str)
    if kind_of_dtype(dtype) not in tuple("biufO"):
        raise InputError(f"schema: {dtype[:50]!r} is no dtype of features; ask the server for its version")
    prepared = entry(plain, "prepared", bool)
    if prepared != isinstance(plain["preparation"], dict) or (not prepared and plain["preparation"] is not None):
        raise InputError("schema: its preparation is none; ask the server for its version")
    return Schema(
        features=tuple(features), shape=tuple(shape), dtype=dtype, classes=None if classes is None else tuple(classes),
        rows=whole_number(plain, "rows"), preparation=plain["preparation"], preparer=Preparer() if prepared else None,
        parts={client: _schema(part, whole=False) for client, part in parts.items()}, places=tuple(places),
    )  # fmt: skip
