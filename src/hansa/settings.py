"""What a search tries: options of a job by their dotted paths, with the values that they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, is_dataclass, replace
from itertools import product
from typing import Any

from hansa.core.errors import InputError, did_you_mean
from hansa.core.randomness import generator
from hansa.job import Job
from hansa.options import describe, field_value, option_fields

Settings = Mapping[str, Any]
"""Values by the dotted paths of options, as `--set` takes them: ``{"algorithm.local.learning_rate": 0.1}``."""


def settings_of(space: Mapping[str, Any], random: int, seed: int) -> tuple[Settings, ...]:
    """All combinations of the values of a space, or so many that are drawn. InputError for a space that has none."""
    if not isinstance(space, Mapping):
        raise InputError(
            f"search: the space is a {type(space).__name__}, and it is one table of option paths with their values, as "
            "{'rounds.count': [10, 20]} (make a search of each where there are several)"
        )
    if not space:
        raise InputError("search: there is nothing to try (give option paths with values, as {'rounds.count': [10, 20]})")
    if random < 0:
        raise InputError(f"search: random = {random} settings cannot be drawn (write 0 to try all, or a positive number)")
    values = {path: _values(path, given, random > 0) for path, given in space.items()}
    lists = {path: given for path, given in values.items() if isinstance(given, list)}
    draw = generator(seed, "search")
    if len(lists) == len(values):
        size = math.prod(len(given) for given in lists.values())
        if not random or random >= size:
            return tuple(dict(zip(lists, some, strict=True)) for some in product(*lists.values()))
        return tuple(_combination(lists, int(number)) for number in sorted(draw.choice(size, size=random, replace=False)))
    return tuple(
        {
            path: _drawn(given, draw) if path not in lists else given[int(draw.integers(len(given)))]
            for path, given in values.items()
        }
        for _ in range(random)
    )


def _values(path: str, given: Any, drawn: bool) -> Any:
    """A list of plain values, or a distribution."""
    if hasattr(given, "rvs"):
        if drawn:
            return given
        raise InputError(f"search {path}: a distribution has no end of values (give random=, the number of settings to draw)")
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise InputError(f"search {path} = {given!r}: give the values to try as a list")
    found = [_plain_value(path, value) for value in given]
    if not found or any(value in found[:place] for place, value in enumerate(found)):
        raise InputError(f"search {path} = {found}: give different values to try, at least one")
    return found


def _plain_value(path: str, value: Any) -> Any:
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(value, Mapping):
        return {str(key): _plain_value(path, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(path, item) for item in value]
    if not isinstance(value, (bool, int, float, str)):
        raise InputError(
            f"search {path}: {type(value).__name__} is no plain value (write a part of the job as a table, as {{'name': 'fedprox'}})"
        )
    return value


def _combination(lists: Mapping[str, list[Any]], number: int) -> Settings:
    """The combination of that number in the order of the whole grid, in which the last path changes fastest."""
    chosen: dict[str, Any] = {}
    for path, given in reversed(list(lists.items())):
        number, place = divmod(number, len(given))
        chosen[path] = given[place]
    return {path: chosen[path] for path in lists}


def _drawn(distribution: Any, draw: Any) -> Any:
    return distribution.rvs(random_state=draw).item()


def with_settings(job: Job, settings: Settings, made: dict[str, Any] | None = None) -> Job:
    """The job with other options, as `--set` would change it. InputError for a path that is not there or may not be searched.

    made: parts of other settings' jobs; what is equal is the same object, so that fits with the same learner share their data.
    """
    tables: dict[str, Any] = {}
    made = {} if made is None else made
    for path, value in settings.items():
        head, *parents = path.split(".")
        if head not in SEARCHED:
            last = path.rpartition("__")[2]  # as scikit-learn names the options of the steps of a pipeline
            near = (
                "" if "." in last or last in Job.__dataclass_fields__ else f"; an option of the estimator is learner.options.{last}"
            )
            raise InputError(
                f"search {path}: only what is trained can be searched, on the same rows for all{did_you_mean(head, SEARCHED)}{near}"
            )
        if not parents:
            tables[head] = value
            continue
        table = tables.setdefault(head, _readable(head, getattr(job, head)))
        *parents, last = parents
        for parent in parents:
            table = table.setdefault(parent, {}) if isinstance(table, dict) else table
        if not isinstance(table, dict):
            above = path.rpartition(".")[0]
            instead = f" (write {above}.name in the place of {above})" if isinstance(table, str) else ""
            raise InputError(f"search {path}: {above} is a value, not a table{instead}")
        table[last] = value
    keys = {head: f"{head} = {table!r}" for head, table in tables.items()}
    for head, table in tables.items():
        if keys[head] not in made:
            made[keys[head]] = field_value(Job, head, table)
    return replace(job, **{head: made[key] for head, key in keys.items()})


SEARCHED = ("learner", "algorithm", "preparation", "transforms", "rounds", "evaluation")
"""Fields of a job whose options can be searched. Data, partition, split and seed say on which rows, and are the same for all."""


def _readable(head: str, part: Any) -> dict[str, Any]:
    """The table of a part of the job, as a file would hold it. InputError where the part is an object that no table can give back."""
    table = _written(part)
    try:
        if isinstance(table, dict) and describe(field_value(Job, head, table)) == describe(part):
            return table
    except InputError as error:
        why = f" ({error})"
    else:
        why = ""
    raise InputError(
        f"search {head}: {type(part).__name__} was given as an object whose options cannot be changed by their paths{why}; "
        f"give the part by name, or whole tables as values of {head!r}"
    )


def _written(part: Any) -> Any:
    """A part as a table of the options that are not at their defaults: another name need not know the others."""
    if not is_dataclass(part) or isinstance(part, type) or hasattr(part, "plain"):
        return describe(part)
    table = {}
    for name, option in option_fields(type(part)).items():
        value, default = getattr(part, name), option.default
        if option.default_factory is not MISSING:
            default = option.default_factory()
        if value is not None and (name == "name" or value != default):
            table[name] = _written(value)
    return table
