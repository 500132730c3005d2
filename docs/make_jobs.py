"""Writes docs/jobs.md from the options themselves, so that it cannot drift: python docs/make_jobs.py

`tests/test_docs.py` fails where the page is not what this gives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hansa.core.devices import Devices
from hansa.core.local import Local
from hansa.core.traces import Trace
from hansa.data.split import Split
from hansa.job import Evaluation, Job, Rounds
from hansa.learners.forest import FORESTS, Forests
from hansa.learners.sklearn import ESTIMATORS
from hansa.options import choices, name_of, option_fields, part_of, registry

PAGE = Path(__file__).parent / "jobs.md"

HEAD = """\
<!-- Written by docs/make_jobs.py from the options themselves. Do not edit. -->
# Jobs

A job says what is to be done. It is a TOML file, or the same as Python objects (`hansa.Job` and its parts, with the same names and
defaults). `hansa new` prints a commented starter job, `hansa schema` the JSON Schema of a job for your editor.

```toml
name = "hospitals"

[data]
name = "heart_disease"

[preparation]
name = "standard"

[learner]
name = "sklearn"
estimator = "LogisticRegression"

[algorithm]
name = "newton"
```

- `[data]`, `[learner]` and `[algorithm]` are needed; everything else has a default.
- Where a table has a `name`, that chooses among the kinds below. A table of which only the name matters may be written as text:
  `partition = "column"`.
- One value can be changed for one run: `hansa run job.toml --set algorithm.mu=0.1`. The value is TOML; a bare word is text.
- A key that does not exist, a value out of range and a combination that cannot work are refused before any data is read, in one
  sentence and with exit code 2.
- Parts made by others ([extending.md](extending.md)) are named in a job like built-in ones; they are not listed here.
"""

TABLES = (
    ("The job itself", "", Job),
    ("[data]: where the rows come from", "data", None),
    ("[partition]: how rows become clients", "partition", None),
    ("[split]: each client's own test and validation rows", "", Split),
    ("[preparation]: missing values, scales, categories", "preparation", None),
    ("[learner]: what is trained", "learner", None),
    ("[algorithm]: how the clients' work becomes one model", "algorithm", None),
    ("[algorithm.local]: how a client trains within a round", "", Local),
    ("[[transforms]]: what happens to updates between client and sum", "transform", None),
    ("[rounds]: how the rounds are played", "", Rounds),
    ("[evaluation]: how the model is judged while it is trained", "", Evaluation),
    ('[clock] with name = "devices": devices that are simulated ([clock.md](clock.md))', "", Devices),
    ('[clock] with name = "trace": devices that were recorded', "", Trace),
    ("[engine]: where the work runs", "engine", None),
)

SHARED = {
    "rows": "data.rows",
    "speed": "clock.speed",
    "down": "clock.speed",
    "up": "clock.speed",
    "latency": "clock.speed",
    "availability": "clock.availability",
    "server": "algorithm.server",
    "optimizer": "algorithm.local.optimizer",
    "schedule": "rounds.schedule",
}
"""Options that are tables with a name of their own, by the path under which their kinds are listed."""


SHORT = {
    "name": "of the run folder",
    "seed": "all randomness is derived from it",
    "rounds": "how the rounds are played",
    "evaluation": "how the model is judged while it is trained",
    "engine": "where the work runs",
    "clients": "so many clients are made",
    "validation": "share of a client's rows that choose the best model and stop early",
    "test": "share of a client's rows that judge the model, and nothing else",
    "local": "how a client trains within a round",
    "server": "what the server does with the clients' mean change",
    "server_rate": "eta_g",
    "mu": "strength of the pull towards the global params",
    "learning_rate": "eta",
    "momentum": "of the last direction, so much is kept",
    "nesterov": "look ahead along the velocity",
    "beta1": "beta_1, decay of the first moment",
    "beta2": "beta_2, decay of the second moment",
    "tau": "tau, the degree of adaptivity",
    "epsilon": "added to the root of the second moment",
    "norm": "largest L2 norm of a client's update",
    "decay": "factor from one round to the next",
    "factor_per_step": "factor at each step",
    "floor": "factor of the last round",
    "every": "rounds between two steps",
    "least": "smallest improvement that counts",
    "optimizer": "of the client's steps",
    "watch": "the metric on the validation rows that chooses the best model and stops early: `loss`, `accuracy`, `auc`, ...",
    "estimator": f"one of {', '.join(f'`{name}`' for name in ESTIMATORS)}; in Python also an estimator object",
}
"""For options that no docstring describes one by one, and for what reads better here."""


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for title, group, single in TABLES:
        parts.append(f"## {title}\n")
        if single is not None:
            parts.append(section(single))
        else:
            parts += [f"### {names}\n\n{section(cls)}" for names, cls in kinds(group)]
        for option, allowed in nested(single, group):
            parts.append(f"### [{SHARED[option]}]\n")
            parts += [f'**`name = "{name_of(cls)}"`** {section(cls)}' for cls in allowed]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def kinds(group: str) -> Iterator[tuple[str, type]]:
    """The classes of a group that Hansa brings, with the names that stand for each."""
    by_class: dict[type, list[str]] = {}
    for name, point in registry(group).items():
        if point.value.startswith("hansa."):
            by_class.setdefault(point.load(), []).append(name)
    for cls, names in by_class.items():
        yield ", ".join(f'`name = "{name}"`' for name in names), cls


def nested(single: type | None, group: str) -> Iterator[tuple[str, list[type]]]:
    """The options of a section whose own kinds are listed below it, each once."""
    seen = set()
    for cls in [single] if single is not None else [cls for _, cls in kinds(group)]:
        hints = get_type_hints(cls, include_extras=True)
        for option in option_fields(cls):
            if option in SHARED and SHARED[option] not in seen and len(choices(hints[option])) > 1:
                seen.add(SHARED[option])
                yield option, choices(hints[option])


def section(cls: type) -> str:
    """What the docstring says first, and a table of the options."""
    hints, told = get_type_hints(cls, include_extras=True), described(cls)
    rows = []
    for option, field in option_fields(cls).items():
        if option == "name" and cls is not Job:
            continue
        rows.append(f"| `{option}` | {kind(option, hints[option])} | {default(field)} | {told[option]} |")
    head = f"{introduction(cls)}\n"
    if not rows:
        return head
    return head + "\n| option | value | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def paragraphs(cls: type) -> list[str]:
    return inspect.cleandoc(cls.__doc__ or "").split("\n\n")


def introduction(cls: type) -> str:
    """The paragraphs that are not about single options, without Sphinx's roles."""
    prose = [" ".join(text.split()) for text in paragraphs(cls) if not set(options_of(text)) & set(option_fields(cls))]
    return marked("\n\n".join(prose))


def options_of(text: str) -> dict[str, str]:
    """Option -> meaning, of a paragraph such as ``path:   a file`` with indented lines that go on."""
    found = re.findall(r"^(\w+(?:, \w+)*):\s+(.*(?:\n +.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for names, meaning in found for name in names.split(", ")}


def described(cls: type) -> dict[str, str]:
    """Option -> what the docstrings of the class and of those that it is derived from say."""
    found = dict(SHORT)
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            for text in paragraphs(base):
                found |= {name: marked(meaning).replace("|", "\\|").rstrip(".") for name, meaning in options_of(text).items()}
    estimators = f"one of {', '.join(f'`{name}`' for name in FORESTS)}; in Python also a forest object"
    return found | {name: SHORT[name] for name in ("estimator", "watch")} | ({"estimator": estimators} if cls is Forests else {})


def marked(text: str) -> str:
    text = re.sub(r":(?:class|mod|func|meth):`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def kind(option: str, hint: Any) -> str:
    """A type hint in words."""
    if option in SHARED and len(choices(hint)) > 1:
        return f"table, see `[{SHARED[option]}]`"
    if choices(hint):
        return "table, see below"
    if part_of(hint):
        return "table or text"
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):
        return " ".join([kind(option, arguments[0]), " and ".join(limits(hint.__metadata__))])
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(kind(option, one) for one in arguments if one is not NoneType))
    if origin is tuple:
        return f"list of {plural(kind(option, arguments[0]))}"
    if origin is not None and issubclass(origin, Mapping):
        return "table"
    return {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}.get(hint, "table or text")


def plural(words: str) -> str:
    return {"text": "texts", "table or text": "tables"}.get(words, words.replace("number", "numbers"))


def limits(metadata: tuple[Any, ...]) -> Iterator[str]:
    for limit in metadata:
        for sign, bound in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt")):
            if getattr(limit, bound, None) is not None:
                yield f"{sign} {getattr(limit, bound)}"


def default(field: Any) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "needed"
    value = field.default if field.default is not MISSING else field.default_factory()
    if value is None or value == "":
        return "none"
    if is_dataclass(value):
        own = {name: getattr(value, name) for name in option_fields(type(value))}
        named = own.pop("name", None)
        if named is None:
            return "its defaults"
        rate = f", learning_rate = {own['learning_rate']}" if "learning_rate" in own else ""
        return f'`name = "{named}"{rate}`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Mapping):
        return "`{}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
