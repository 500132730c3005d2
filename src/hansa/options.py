"""Options: frozen dataclasses that are read from plain tables, validated by pydantic, and written back.

A part of a job is a frozen dataclass whose ``name`` tells it apart from its kin. Built-in and third-party classes are found in the same
way: through the entry points ``hansa.data``, ``hansa.learner``, ``hansa.algorithm``, ``hansa.partition``, ``hansa.preparation``,
``hansa.transform`` and ``hansa.engine``, whose names are the values of ``name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hansa.core.contracts import UnboundLearner
from hansa.core.errors import InputError, did_you_mean

GROUPS = ("data", "learner", "algorithm", "partition", "preparation", "transform", "engine")

CONTRACTS: Mapping[Any, str] = {UnboundLearner: "learner"}
"""Contracts that a field may name as its type: it then takes whatever is installed in that group."""


@cache
def registry(group: str) -> dict[str, EntryPoint]:
    """name -> entry point of everything installed in a group."""
    return {point.name: point for point in sorted(entry_points(group=f"hansa.{group}"), key=lambda point: point.name)}


@cache
def find(group: str, name: str) -> type:
    """The class of a group with that name; InputError with a did-you-mean."""
    points = registry(group)
    if name not in points:
        raise InputError(f"{group}.name = {name!r}: there is no such {group}{did_you_mean(name, points)}")
    found: type = points[name].load()
    return found


def build(what: str | type, given: Any, path: str = "") -> Any:
    """An options object from a plain table: ``what`` is a group of the registry, or the class itself."""
    path = path or (what if isinstance(what, str) else what.__name__.lower())
    if isinstance(given, str) and isinstance(what, str):
        scheme, address, _ = given.partition("://")
        given = {"name": scheme, "address": given} if address else {"name": given}
    if not isinstance(given, Mapping):
        raise InputError(f"{path} = {given!r}: must be a table (write [{path}] and its keys below)")
    if isinstance(what, str):
        if "name" not in given:
            raise InputError(f"{path}: which one? (write name = one of {', '.join(registry(what))})")
        what = find(what, str(given["name"]))
    options = option_fields(what)
    for key in given:
        if key not in options:
            raise InputError(f"{path}: unknown key {key!r}{did_you_mean(key, options)}")
    hints = _hints(what)
    values = {key: _nested(hints[key], value, options[key], f"{path}.{key}") for key, value in given.items()}
    for key, option in options.items():
        if key not in values and option.default is MISSING and option.default_factory is MISSING:
            raise InputError(f"{path}: {key} is missing (write {path}.{key} = ...)")
    return checked(what(**{key: validated(hints[key], value, f"{path}.{key}") for key, value in values.items()}), path)


def option_fields(cls: type) -> dict[str, Field[Any]]:
    """The fields that a user may set."""
    return {f.name: f for f in fields(cls) if f.init and not f.name.startswith("_")}


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def choices(hint: Any) -> list[type]:
    """The dataclasses that a type hint allows."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [member for member in members if isinstance(member, type) and is_dataclass(member)]


def _nested(hint: Any, value: Any, option: Field[Any], path: str) -> Any:
    """A table given for a field that holds another options object becomes that object."""
    if hint in CONTRACTS:
        return value if is_dataclass(value) else build(CONTRACTS[hint], value, path)
    allowed = choices(hint)
    if not allowed or is_dataclass(value):
        return value
    if isinstance(value, str) and len(allowed) > 1:
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise InputError(f"{path} = {value!r}: must be a table (write [{path}] and its keys below)")
    if len(allowed) == 1:
        return build(allowed[0], value, path)
    by_name = {name_of(cls): cls for cls in allowed}
    default = option.default_factory() if option.default_factory is not MISSING else option.default
    name = value.get("name", getattr(default, "name", None))
    if name not in by_name:
        raise InputError(f"{path}.name = {name!r}: there is no such choice{did_you_mean(str(name), by_name)}")
    return build(by_name[name], value, path)


def name_of(cls: type) -> str:
    """The value of ``name`` by which a class of options is chosen."""
    return str(next(f.default for f in fields(cls) if f.name == "name"))


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def validated(hint: Any, value: Any, path: str) -> Any:
    """The value as the type hint wants it; InputError in one sentence where it does not fit."""
    if hint is Any or hint in CONTRACTS or choices(hint):
        return value
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path} = {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def checked(options: Any, path: str) -> Any:
    """Validate an options object that was made in Python, with all that is nested in it; returns it."""
    cls: Any = type(options)
    hints = _hints(cls)
    for name in option_fields(cls):
        value = getattr(options, name)
        if is_dataclass(value) and not isinstance(value, type):
            allowed = choices(hints[name])
            if allowed and not isinstance(value, tuple(allowed)):
                raise InputError(
                    f"{path}.{name}: {type(value).__name__} does not belong here{did_you_mean('', [c.__name__ for c in allowed])}"
                )
            checked(value, f"{path}.{name}")
        else:
            validated(hints[name], value, f"{path}.{name}")
    return options


def describe(options: Any) -> Any:
    """Plain dictionaries, lists and scalars that say what an options object is; None is left out."""
    if is_dataclass(options) and not isinstance(options, type):
        plain = getattr(options, "plain", None)
        if plain is not None:
            return plain()
        items = {name: getattr(options, name) for name in option_fields(type(options))}
        return {name: describe(value) for name, value in items.items() if value is not None}
    if isinstance(options, Mapping):
        return {str(name): describe(value) for name, value in options.items() if value is not None}
    if isinstance(options, (list, tuple, set, frozenset)):
        return [describe(value) for value in options]
    if isinstance(options, (bool, int, float, str)):
        return options
    return f"<{type(options).__module__}.{type(options).__qualname__}>"


def json_schema(job: type) -> dict[str, Any]:
    """JSON Schema of a job as TOML or JSON, with every installed part; for editors."""
    definitions: dict[str, Any] = {}
    root = _object_schema(job, definitions)
    for group in GROUPS:
        field_name = "transforms" if group == "transform" else group
        some = {"oneOf": [_object_schema(point.load(), definitions) for point in registry(group).values()]}
        root["properties"][field_name] = {"type": "array", "items": some} if group == "transform" else some
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Hansa job", **root, "$defs": definitions}


def _object_schema(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, properties, required = _hints(cls), {}, []
    for name, option in option_fields(cls).items():
        allowed = choices(hints[name])
        if allowed:
            properties[name] = (
                {"oneOf": [_object_schema(choice, definitions) for choice in allowed]}
                if len(allowed) > 1
                else _object_schema(allowed[0], definitions)
            )
            continue
        schema = {} if hints[name] is Any or hints[name] in CONTRACTS else _adapter(hints[name]).json_schema(mode="validation")
        definitions.update(schema.pop("$defs", {}))
        if option.default is not MISSING and isinstance(option.default, (bool, int, float, str)):
            schema["default"] = option.default
        if option.default is MISSING and option.default_factory is MISSING:
            required.append(name)
        properties[name] = schema
    doc = (cls.__doc__ or "").split("\n\n")[0].strip()
    return {"type": "object", "description": doc, "properties": properties, "required": required, "additionalProperties": False}
