"""Options: frozen dataclasses that are read from plain tables, validated by pydantic, and written back.

A part of a job is a frozen dataclass whose ``name`` tells it apart from its kin. Built-in and third-party classes are found in the same
way: through the entry points ``hansa.data``, ``hansa.learner``, ``hansa.algorithm``, ``hansa.partition``, ``hansa.preparation``,
``hansa.transform`` and ``hansa.engine``, whose names are the values of ``name``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from operator import is_
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hansa.core.contracts import UnboundLearner
from hansa.core.errors import InputError, did_you_mean, refuse_class

GROUPS = ("data", "learner", "algorithm", "partition", "preparation", "transform", "engine")


@dataclass(frozen=True)
class Part:
    """Marks a field, in its ``Annotated`` type, that takes whatever is installed in a group, or an object of anybody's own.

    kinds:    what such an object has: all attributes of one of these.
    instead:  what to write in the place of something else, in a few words; empty where there is nothing to say.
    """

    group: str
    kinds: tuple[tuple[str, ...], ...]
    instead: Callable[[Any], str] = lambda given: ""


LEARNER = Part("learner", (("bind", "needs", "can"),))

CONTRACTS: Mapping[Any, Part] = {UnboundLearner: LEARNER}
"""Contracts that a field may name as its type: it then takes whatever is installed in that group."""


_FEDOPT = {"fedadagrad": "adagrad", "fedadam": "adam", "fedavgm": "momentum", "fedyogi": "yogi"}
ELSEWHERE: Mapping[tuple[str, str], str] = {
    **{("algorithm", name): f"algorithm.name = 'fedavg' and algorithm.server = {server!r}" for name, server in _FEDOPT.items()},
    ("algorithm", "fedsgd"): "algorithm.name = 'gradient_descent'",
}
"""Names of papers for what has another name in a job: what to write."""


@cache
def registry(group: str) -> dict[str, EntryPoint]:
    """name -> entry point of everything installed in a group."""
    return {point.name: point for point in sorted(entry_points(group=f"hansa.{group}"), key=lambda point: point.name)}


@cache
def find(group: str, name: str) -> type:
    """The class of a group with that name; InputError with a did-you-mean."""
    points = registry(group)
    if name not in points:
        instead = ELSEWHERE.get((group, name))
        hint = did_you_mean(name, points) if instead is None else f" (write {instead})"
        raise InputError(f"{group}.name = {name!r}: there is no such {group}{hint}")
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
    rules = _rules(what)
    for key, option in options.items():
        if key not in given and option.default is MISSING and option.default_factory is MISSING:
            raise InputError(f"{path}: {key} is missing (write {path}.{key} = ...)")
    return what(**{key: _fitting(rules[key], value, f"{path}.{key}") for key, value in given.items()})


@cache
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


def field_value(cls: type, name: str, given: Any) -> Any:
    """What is given for a field of an options class, as the object that it stands for. InputError where it does not fit."""
    return _fitting(_rules(cls)[name], given, name)


@cache
def part_of(hint: Any) -> Part | None:
    """What a field with this type takes, where that is a part of its own."""
    if get_origin(hint) is Annotated:
        return next((mark for mark in get_args(hint)[1:] if isinstance(mark, Part)), None)
    return CONTRACTS.get(hint)


@dataclass(frozen=True)
class _Rule:
    """What a field takes: a part, a list of parts (``items``), one of several options classes, or else what its type says."""

    hint: Any
    option: Field[Any]
    part: Part | None
    items: Part | None
    allowed: tuple[type, ...]


@cache
def _rules(cls: Any) -> dict[str, _Rule]:
    hints = _hints(cls)
    return {
        name: _Rule(
            hints[name], option, part_of(hints[name]), part_of(get_args(hints[name])[0]) if get_origin(hints[name]) is tuple else None,
            tuple(choices(hints[name])),
        )
        for name, option in option_fields(cls).items()
    }  # fmt: skip


def _fitting(rule: _Rule, value: Any, path: str) -> Any:
    """The value as a field wants it, and the value itself where it is that already: a text or a table becomes the object that it stands
    for. InputError in one sentence where it does not fit."""
    if value is None and rule.option.default is None:
        return None
    if rule.part is not None:
        return _part(rule.part, value, path)
    if rule.allowed:
        return _choice(rule, value, path)
    if rule.items is not None:
        return _parts(rule.items, value, path)
    if _is_options(value):
        return checked(value, path)
    found = validated(rule.hint, value, path)
    same = found is value or (type(found) is type(value) and describe(found) == describe(value))
    return value if same else found


def _parts(part: Part, value: Any, path: str) -> Any:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise InputError(f"{_given(path, value)}: must be a list (write {path} = [...], even around a single one)")
    found = tuple(_part(part, item, f"{path}[{place}]") for place, item in enumerate(value))
    return value if isinstance(value, tuple) and all(map(is_, found, value)) else found


def _is_options(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _part(part: Part, value: Any, path: str) -> Any:
    if isinstance(value, (str, Mapping)):
        return build(part.group, value, path)
    refuse_class(value, path)
    value = checked(value, path) if _is_options(value) else value
    if any(all(_has(value, name) for name in kind) for kind in part.kinds):
        return value
    lacking = next(name for name in part.kinds[0] if not _has(value, name))
    instead = part.instead(value) or f"a name or a table of: {', '.join(registry(part.group))}; or an object that has it"
    raise InputError(f"{_given(path, value)}: it is no {part.group}, for it has no {lacking!r} (write {instead})")


def _has(value: Any, name: str) -> bool:
    return hasattr(type(value), name) or hasattr(value, name)  # a property of the class need not be worked out


def _choice(rule: _Rule, value: Any, path: str) -> Any:
    """One of several options classes, or the only one."""
    allowed, option = rule.allowed, rule.option
    if isinstance(value, allowed):
        return checked(value, path)
    refuse_class(value, path)
    if isinstance(value, str) and len(allowed) > 1:
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise InputError(_misplaced(allowed, value, path))
    if len(allowed) == 1:
        return build(allowed[0], value, path)
    by_name = {name_of(cls): cls for cls in allowed}
    default = option.default_factory() if option.default_factory is not MISSING else option.default
    name = value.get("name", getattr(default, "name", option.metadata.get("kind")))
    if name is None:
        raise InputError(f"{path}: which one? (write name = one of {', '.join(by_name)})")
    if name not in by_name:
        kind = "choice" if "." in path else path
        raise InputError(f"{path}.name = {name!r}: there is no such {kind}{did_you_mean(str(name), by_name)}")
    return build(by_name[name], value, path)


def _misplaced(allowed: tuple[type, ...], value: Any, path: str) -> str:
    """What to say of something that is none of the options classes, nor a table."""
    if _is_options(value):
        kind = type(value)
        for cls in allowed:
            if cls.__name__ == kind.__name__:
                return (
                    f"{path}: {_public(kind)} is another {kind.__name__} than the one that belongs here (write {_public(cls)}, or "
                    f"its name as text, {name_of(cls)!r})"
                )
        return f"{path}: {kind.__name__} does not belong here{did_you_mean('', [cls.__name__ for cls in allowed])}"
    if len(allowed) > 1:
        return f"{_given(path, value)}: must be a table, or as text its name (one of {', '.join(map(name_of, allowed))})"
    (cls,) = allowed
    example = f"{_public(cls)}(...)"
    for name, rule in _rules(cls).items():
        with suppress(InputError):
            _fitting(rule, value, path)
            example = f"{_public(cls)}({name}={value!r})"
            break
    return f"{_given(path, value)}: must be a table (write [{path}] and its keys below; in Python for example {example})"


def _public(cls: type) -> str:
    """A class as a user's program names it."""
    import hansa

    found = cls.__name__ in hansa.__all__ and getattr(hansa, cls.__name__) is cls
    return f"hansa.{cls.__name__}" if found else f"{cls.__module__}.{cls.__name__}"


def _given(path: str, value: Any) -> str:
    """What was given, in one short line: tables and arrays by their kind."""
    shown = repr(value)
    return f"{path}: {type(value).__name__}" if len(shown) > LONGEST or "\n" in shown else f"{path} = {shown}"


LONGEST = 80
"""Characters of a value up to which it is told as it was given."""


def name_of(cls: type) -> str:
    """The value of ``name`` by which a class of options is chosen."""
    return str(next(f.default for f in fields(cls) if f.name == "name"))


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def validated(hint: Any, value: Any, path: str) -> Any:
    """The value as the type hint wants it; InputError in one sentence where it does not fit."""
    if hint is Any:
        return value
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{_given(path, value)}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def checked(options: Any, path: str) -> Any:
    """An options object that was made in Python, valid with all that is nested in it: itself, or with what stands for something else
    replaced by it."""
    changes = replaced(options, path)
    return replace(options, **changes) if changes else options


def replaced(options: Any, path: str = "") -> dict[str, Any]:
    """The fields of an options object whose values stand for others, with these. InputError for a value that does not fit."""
    cls: Any = type(options)
    changes: dict[str, Any] = {}
    for name, rule in _rules(cls).items():
        value = getattr(options, name)
        found = _fitting(rule, value, f"{path}.{name}" if path else name)
        if found is not value:
            changes[name] = found
    return changes


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
        schema = {} if hints[name] is Any or part_of(hints[name]) else _adapter(hints[name]).json_schema(mode="validation")
        definitions.update(schema.pop("$defs", {}))
        if option.default is not MISSING and isinstance(option.default, (bool, int, float, str)):
            schema["default"] = option.default
        if option.default is MISSING and option.default_factory is MISSING:
            required.append(name)
        properties[name] = schema
    doc = (cls.__doc__ or "").split("\n\n")[0].strip()
    return {"type": "object", "description": doc, "properties": properties, "required": required, "additionalProperties": False}
