"""What makes clients' data unfit to learn from together: one function per family of reasons, one sentence per reason.

All of them look at facts alone (:mod:`hansa.data.facts`), and so work the same where the rows cannot be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, prod
from typing import Any, Literal, TypeAlias

from hansa.core.errors import InputError
from hansa.data.sources import Task

Facts: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Client id -> :func:`hansa.data.facts.facts_of`."""

Policy: TypeAlias = Literal["refuse", "allow"]
PREPARE = 'add [preparation] name = "standard"'


def same_columns(facts: Facts) -> None:
    """All clients have the same columns, in the same order, of the same kind, shape and dtype."""
    first, reference = next(iter(facts.items()))
    for client, own in facts.items():
        if own["layout"] != reference["layout"]:
            raise InputError(
                f"clients {first} and {client}: one has a {reference['layout']}, the other an {own['layout']}; give both alike"
            )
        mine, theirs = own["columns"], reference["columns"]
        different = sorted(set(mine) ^ set(theirs))
        if different:
            has, lacks = (client, first) if different[0] in mine else (first, client)
            raise InputError(
                f"client {has} has a column {different[0]!r} and client {lacks} has not; give all clients the same columns"
            )
        if list(mine) != list(theirs):
            a, b = next((a, b) for a, b in zip(theirs, mine, strict=True) if a != b)
            raise InputError(f"clients {first} and {client} have their columns in different orders ({a!r} and {b!r} in one place)")
        for name in mine:
            for fact, word in (("kind", "a"), ("shape", "examples of shape"), ("dtype", "type")):
                here, there = mine[name].get(fact), theirs[name].get(fact)
                if here != there:
                    here, there = (tuple(v) if isinstance(v, list) else v for v in (here, there))
                    empty = [c for c, facts in ((first, theirs), (client, mine)) if _empty(facts[name])]
                    also = f" (it is empty at {empty[0]})" if empty else ""
                    raise InputError(
                        f"column {name!r}: is {word} {there} at client {first} and {word} {here} at client {client}{also}; "
                        "give it the same form at all clients"
                    )


def _empty(column: Mapping[str, Any]) -> bool:
    return column.get("distinct") == 0 or (column["kind"] == "number" and column["min"] is None)


def usable_values(facts: Facts, prepared: bool) -> None:
    """No infinite values; no text and no gaps where no preparation takes care of them."""
    for client, own in facts.items():
        for name, column in own["columns"].items():
            array, rows = own["layout"] == "array", sum(own["rows"].values())
            what = "the array of features" if array else f"column {name!r}"
            if column.get("infinite"):
                raise InputError(
                    f"client {client}: {what} holds {column['infinite']:,} infinite values; "
                    "replace them by numbers, or leave their cells empty"
                )
            if column.get("identifier"):
                raise InputError(
                    f"client {client}: column {name!r} holds {column['distinct']:,} different texts in {own['rows']['train']:,} "
                    f"training rows: it names rows and does not describe them; leave it out, for files with data.drop = [{name!r}], or "
                    "write only numbers into it if it is one of numbers"
                )
            if prepared:
                continue
            if column["kind"] == "category":
                values = ", ".join(repr(value) for value in list(column["values"])[:3]) or "nothing"
                raise InputError(f"client {client}: column {name!r} holds text ({values}) and models need numbers; {PREPARE}")
            if column["missing"]:
                cells = rows * prod(column["shape"]) if array else rows
                raise InputError(
                    f"client {client}: {what} is empty in {column['missing']:,} of {cells:,} {'places' if array else 'rows'}; {PREPARE}"
                )


def no_stray_marks(facts: Facts) -> None:
    """No column of texts is one of numbers, but for a mark such as "?" where there is none."""
    for name, reference in next(iter(facts.values()))["columns"].items():
        if reference["kind"] != "category":
            continue
        told = [own["columns"][name]["values"] for own in facts.values()]
        values = set[str]().union(*told)
        marks = sorted(value for value in values if not any(letter.isalnum() for letter in value))
        if marks and len(marks) < len(values) and all(value in marks or _is_number(value) for value in values):
            count = sum(own.get(marks[0], 0) for own in told)
            raise InputError(
                f"column {name!r}: holds numbers, and {marks[0]!r} in {count:,} training rows; leave these cells empty, so that "
                "the column is one of numbers, or write its numbers as texts (as 'type 1') where they are categories"
            )


def _is_number(value: str) -> bool:
    try:
        return isfinite(float(value))
    except ValueError:
        return False


def no_constants(facts: Facts) -> None:
    """Every column of a table has at least two values over all clients."""
    first = next(iter(facts.values()))
    if first["layout"] == "array":
        return
    found: dict[str, str] = {}
    for name, reference in first["columns"].items():
        columns = [own["columns"][name] for own in facts.values()]
        if reference["kind"] == "number":
            values = {bound for column in columns for bound in (column["min"], column["max"]) if bound is not None}
        else:
            values = {value for column in columns for value in column["values"]}
            if values and any(column["missing"] for column in columns):
                continue  # a value that is there or missing does tell rows apart
        if len(values) <= 1:
            found[name] = f"{values.pop()!r}" if values else "empty"
    if found:
        rows, names = sum(own["rows"]["train"] for own in facts.values()), ", ".join(map(repr, found))
        (which, it) = (f"column {names}: is", "it") if len(found) == 1 else (f"columns {names}: are", "them")
        raise InputError(
            f"{which} {', '.join(found.values())} in all {rows:,} training rows of all clients, so nothing can be learnt from {it}; "
            f"leave {it} out, for files with data.drop = [{names}]"
        )


def labels(
    facts: Facts, task: Task, needs: frozenset[str], single_class: Policy, known: tuple[Any, ...] = ()
) -> tuple[Any, ...] | None:
    """The labels fit the task and the learner. Returns the classes in ascending order, None for a regression.

    known: classes that count as trained even if no client with facts has them: there may be others.
    """
    wants_classes = bool(needs & {"classes", "two classes"})
    wants_numbers = bool(needs & {"numbers", "counts"})
    if task == "regression" and wants_classes:
        raise InputError(
            "the learner does not fit the task: it predicts classes, and the data is a regression; choose a regression learner, or set "
            'data.task = "classification"'
        )
    if task == "classification" and wants_numbers:
        raise InputError(
            "the learner does not fit the task: it predicts numbers, and the data has classes; choose a classification learner"
            + ("" if _text(facts) else ', or set data.task = "regression"')
        )
    for client, own in facts.items():
        if own["labels"] is None and (wants_classes or wants_numbers):
            raise InputError(f"client {client}: has no labels, and the learner needs them; name their column in data.label")
    if any(own["labels"] is None for own in facts.values()):
        return None
    if task == "regression":
        _targets(facts, needs)
        return None
    return _classes(facts, needs, single_class, known)


def _text(facts: Facts) -> bool:
    """Whether labels are text, which no regression can predict."""
    return any(own["labels"] is not None and own["labels"]["dtype"] == "str" for own in facts.values())


def _no_flag(label: Any) -> Any:
    return int(label) if isinstance(label, bool) else label


def _targets(facts: Facts, needs: frozenset[str]) -> None:
    for client, own in facts.items():
        labels = own["labels"]
        if labels["dtype"] == "str":
            raise InputError(f'client {client}: has text for labels, a regression needs numbers; set data.task = "classification"')
        broken = labels["missing"] + labels["infinite"]
        if broken:
            raise InputError(
                f"client {client}: {broken:,} of its targets are missing or infinite; correct them or delete their rows"
            )
        if "counts" in needs and labels["min"] < 0:
            raise InputError(
                f"client {client}: has a target of {labels['min']:g}, and the learner models counts, which are never negative; "
                "choose another regression learner"
            )


def _classes(facts: Facts, needs: frozenset[str], single_class: Policy, known: tuple[Any, ...]) -> tuple[Any, ...]:
    kinds: dict[str, str] = {}
    for client, own in facts.items():
        if "counts" not in own["labels"]:
            raise InputError(f"client {client}: has labels of type {own['labels']['dtype']}; classes are whole numbers or text")
        kinds.setdefault("text" if own["labels"]["dtype"] == "str" else "numbers", client)
    if len(kinds) > 1:
        raise InputError(
            f"labels are numbers at client {kinds['numbers']} and text at client {kinds['text']}; write them the same way at all clients"
        )
    # True is equal to 1, also in a set: classes are true and false where all clients' labels are, and numbers where one has numbers.
    as_class = bool if all(own["labels"]["dtype"] == "bool" for own in facts.values()) else _no_flag
    trained = {as_class(label) for own in facts.values() for label, _ in own["labels"]["counts"]["train"]}
    trained |= {as_class(label) for label in known}
    for client, own in facts.items():
        for split, counts in own["labels"]["counts"].items():
            unknown = [label for label, _ in counts if label not in trained]
            if unknown:
                raise InputError(
                    f"client {client}: label {unknown[0]!r} occurs in its {split} rows and in no client's training rows; "
                    "leave its rows out, or lower the held-out fractions in split"
                )
    classes = tuple(sorted(trained))
    if len(classes) < 2:
        raise InputError(f"data: every training row of all clients has the label {classes[0]!r}; at least two classes are needed")
    if "two classes" in needs and len(classes) > 2:
        shown = ", ".join(repr(label) for label in classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise InputError(
            f"data: has {len(classes)} classes ({shown}), and the learner separates two; "
            "set data.positive to the one to tell from the others, or choose another learner"
        )
    if single_class == "refuse":
        for client, own in facts.items():
            counts = own["labels"]["counts"]["train"]
            if len(counts) == 1:
                raise InputError(
                    f"client {client}: all of its {counts[0][1]:,} training rows have the label {counts[0][0]!r}; "
                    "leave the client out, or choose another partition"
                )
    return classes
