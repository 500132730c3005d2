"""Unfitted transformers as plain JSON values, and back. Nothing but the supported classes of scikit-learn can come out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import sklearn
from sklearn import impute, preprocessing
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from hansa.core.errors import InputError
from hansa.data.preparing.leaves import RULES
from hansa.data.preparing.plain import from_plain, to_plain
from hansa.data.preparing.sample import Sample

# How a computation is run and what it prints is the business of the machine where it runs, and no part of what was agreed.
_LOCAL = {"n_jobs", "verbose", "memory", "copy", "transform_input"}
_PARTS = {"Pipeline": "steps", "ColumnTransformer": "transformers"}
SUPPORTED = (*RULES, *_PARTS)


def leaf_class(name: str) -> type:
    """The scikit-learn class of a supported leaf."""
    return getattr(impute if name == "SimpleImputer" else preprocessing, name)


def join(path: str, name: str) -> str:
    """The path of a part within a transformer, as in ``get_params``."""
    return f"{path}__{name}" if path else name


def check(transformer: Any, path: str = "", in_columns: bool = False) -> None:
    """Raise InputError where a transformer has a part that cannot be fitted from sums; the message names it."""
    where = f"preparation, step {path}" if path else "preparation"
    if isinstance(transformer, str) and (transformer == "passthrough" or (transformer == "drop" and in_columns)):
        return
    if type(transformer) is Pipeline:
        for name, step in transformer.steps:
            check("passthrough" if step is None else step, join(path, name))
    elif type(transformer) is ColumnTransformer:
        for name, part, columns in [*transformer.transformers, ("remainder", transformer.remainder, [])]:
            if isinstance(columns, (str, int)) and not isinstance(columns, bool):
                raise InputError(
                    f"{where}: the branch {name!r} takes the single column {columns!r} as a vector; write [{columns!r}]"
                )
            check(part, join(path, name), in_columns=True)
    elif type(transformer).__name__ not in RULES or type(transformer) is not leaf_class(type(transformer).__name__):
        given = transformer if isinstance(transformer, str) else type(transformer).__name__
        raise InputError(
            f"{where}: {given} cannot be fitted without pooling rows; use {', '.join(SUPPORTED)}, 'passthrough', or 'drop' in a "
            "ColumnTransformer, or apply it to each client's data beforehand"
        )
    elif getattr(transformer, "missing_values", np.nan) is None:
        raise InputError(f"{where}: what is missing is NaN at all clients; write missing_values=numpy.nan instead of None")
    elif callable(getattr(transformer, "strategy", None)):
        raise InputError(f"{where}: a function as strategy cannot be fitted from sums; use 'mean', 'median' or 'most_frequent'")


def to_recipe(transformer: Any, sample: Sample | None, path: str = "") -> Any:
    """The transformer as plain values. ``sample``: of the data that reaches it, to resolve column selectors; None where not known.

    Options at their defaults are left out, so that parties with different versions of scikit-learn understand each other.
    """
    if transformer is None or isinstance(transformer, str):
        return transformer or "passthrough"
    name = type(transformer).__name__
    defaults = {} if name in _PARTS else type(transformer)().get_params(deep=False)
    recipe: dict[str, Any] = {"class": name}
    output = getattr(transformer, "_sklearn_output_config", {}).get("transform", sklearn.get_config()["transform_output"])
    if output != "default":
        recipe["output"] = output
    options = {}
    for option, value in transformer.get_params(deep=False).items():
        if option in _LOCAL or option in ("steps", "transformers", "remainder"):
            continue
        plain = _option(value, join(path, option))
        if option not in defaults or plain != to_plain(defaults[option]):
            options[option] = plain
    if name == "Pipeline":
        reached = [sample, *[None] * len(transformer.steps)]
        steps = zip(transformer.steps, reached, strict=False)
        recipe["parts"] = [[part, to_recipe(step, before, join(path, part))] for (part, step), before in steps]
    elif name == "ColumnTransformer":
        recipe["parts"] = [
            [part, to_recipe(step, None, join(path, part)), _columns(columns, sample, join(path, part))]
            for part, step, columns in transformer.transformers
        ]
        recipe["remainder"] = to_recipe(transformer.remainder, None, join(path, "remainder"))
    return {**recipe, "options": options}


def _columns(columns: Any, sample: Sample | None, path: str) -> Any:
    if callable(columns):
        if sample is None:
            raise InputError(
                f"preparation, step {path}: a column selector works on the raw columns only; write the columns' names here"
            )
        columns = columns(sample.x)
    if isinstance(columns, slice):
        return {"slice": [columns.start, columns.stop, columns.step]}
    return [column.item() if hasattr(column, "item") else column for column in columns]


def _option(value: Any, path: str) -> Any:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": [[key, to_plain(item)] for key, item in value.items()]}
    try:
        return to_plain(value)
    except InputError as error:
        raise InputError(f"preparation, option {path}: {error}") from None


def from_recipe(recipe: Any) -> Any:
    """The unfitted transformer."""
    if isinstance(recipe, str):
        return recipe
    options = {k: dict(v["dict"]) if isinstance(v, dict) and "dict" in v else from_plain(v) for k, v in recipe["options"].items()}
    if recipe["class"] == "Pipeline":
        transformer = Pipeline([(name, from_recipe(step)) for name, step in recipe["parts"]], **options)
    elif recipe["class"] == "ColumnTransformer":
        parts = [
            (name, from_recipe(step), slice(*columns["slice"]) if isinstance(columns, dict) else columns)
            for name, step, columns in recipe["parts"]
        ]
        transformer = ColumnTransformer(parts, remainder=from_recipe(recipe["remainder"]), **options)
    elif recipe["class"] in RULES:
        transformer = leaf_class(recipe["class"])(**options)
    else:
        raise InputError(f"preparation: unknown transformer {recipe['class']!r}; allowed: {', '.join(SUPPORTED)}")
    return transformer.set_output(transform=recipe["output"]) if "output" in recipe else transformer
