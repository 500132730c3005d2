"""Puts a transformer together as far as the answers reach: fitted parts, and what is still to be asked of the rows that reach the rest.

Client and server both do this, from the same plain values, and so agree on the question without sending it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from hansa.core.errors import InputError
from hansa.data.preparing.leaves import RULES, settled
from hansa.data.preparing.questions import Known, Question, Sums
from hansa.data.preparing.recipe import join
from hansa.data.preparing.sample import Sample, take

Route = tuple[Callable[[Any], Any], ...]


@dataclass(frozen=True)
class Pending:
    """A part that waits for answers.

    ask:    what is known about it -> the next question, None when nothing is left to ask.
    route:  leads from the raw rows to the rows that reach it.
    x:      a sample of these.
    """

    path: str
    ask: Callable[[Known], Question | None]
    route: Route
    x: Any

    def rows(self, raw: Any) -> Any:
        """The rows that reach the part; where there are none, none of the right type."""
        if not len(raw):
            return self.x[:0]
        for step in self.route:
            raw = applied(step, raw)
        return raw


def applied(step: Callable[[Any], Any], x: Any) -> Any:
    """``step(x)``; what scikit-learn refuses in a client's rows is an InputError."""
    try:
        return step(x)
    except ValueError as error:
        raise InputError(f"preparation: these rows cannot be transformed: {error}") from error


@dataclass(frozen=True)
class Assembled:
    """``fitted`` and the ``sample`` of its output, or None as long as parts are ``pending``."""

    fitted: Any
    sample: Sample
    pending: tuple[Pending, ...] = ()


def assemble(transformer: Any, known: Mapping[str, Known], sample: Sample, path: str = "", route: Route = ()) -> Assembled:
    """Fit the parts of ``transformer`` about which all is ``known``, path -> known. The transformer given is not changed."""
    if isinstance(transformer, str):
        return Assembled(transformer, sample)
    with warnings.catch_warnings():
        # What scikit-learn has to say about the made-up rows it says again about the real ones.
        warnings.simplefilter("ignore")
        try:
            if isinstance(transformer, Pipeline):
                return _pipeline(transformer, known, sample, path, route)
            if isinstance(transformer, ColumnTransformer):
                return _columns(transformer, known, sample, path, route)
            return _leaf(clone(transformer), known.get(path), sample, path, route)
        except ValueError as error:
            if isinstance(error, InputError) and isinstance(transformer, (Pipeline, ColumnTransformer)):
                raise  # a part of it has said which it is
            where = f"preparation, step {path}" if path else "preparation"
            raise InputError(f"{where} ({type(transformer).__name__}): {error}") from error


def _leaf(leaf: Any, known: Known | None, sample: Sample, path: str, route: Route) -> Assembled:
    rule = RULES[type(leaf).__name__]
    if known is None:
        pending = Pending(path, lambda known: rule.ask(leaf, known, sample), route, sample.x)
        if pending.ask({}) is not None:
            return Assembled(None, sample, (pending,))
    rule.finish(leaf, known or {}, sample)
    output = leaf.transform(settled(leaf, sample).x)
    return Assembled(leaf, Sample(output, rule.complete(leaf, sample, output.shape[1])))


def _pipeline(pipeline: Pipeline, known: Mapping[str, Known], sample: Sample, path: str, route: Route) -> Assembled:
    steps = []
    for name, step in pipeline.steps:
        done = assemble("passthrough" if step is None else step, known, sample, join(path, name), route)
        if done.pending:
            return done
        if not isinstance(done.fitted, str):
            route = (*route, done.fitted.transform)
        steps.append((name, step if step is None else done.fitted))
        sample = done.sample
    fitted = clone(pipeline)
    fitted.steps = steps
    return Assembled(fitted, sample)


@dataclass(frozen=True)
class Take:
    """The rows reduced to some columns."""

    positions: np.ndarray

    def __call__(self, x: Any) -> Any:
        return take(x, self.positions)


@dataclass(frozen=True)
class Stored:
    """How many cells the branches of a ColumnTransformer store, sparse ones only where not zero: its output is sparse where that is
    a share below ``sparse_threshold`` of all."""

    branches: tuple[tuple[Take, Any], ...]
    name: str = "density"

    def measure(self, x: Any) -> dict[str, np.ndarray]:
        outputs = []
        for chosen, fitted in self.branches:
            part = chosen(x)
            outputs.append(part if isinstance(fitted, str) or not x.shape[0] else fitted.transform(part))
        stored = sum(part.nnz if sparse.issparse(part) else part.shape[0] * part.shape[1] for part in outputs)
        return {"stored": np.array(float(stored)), "cells": np.array(float(sum(part.shape[0] * part.shape[1] for part in outputs)))}

    def learn(self, known: Known, sums: Sums) -> Known:
        return {**known, "stored": int(sums["stored"]), "cells": int(sums["cells"])}


def _columns(composite: ColumnTransformer, known: Mapping[str, Known], sample: Sample, path: str, route: Route) -> Assembled:
    parts = {name: part for name, part, _ in composite.transformers} | {"remainder": composite.remainder}
    pending: list[Pending] = []
    branches: dict[str, tuple[Take, Assembled]] = {}
    for name, positions in _branch_positions(composite, sample).items():
        if len(positions) and not (isinstance(parts[name], str) and parts[name] == "drop"):
            chosen = Take(positions)
            done = assemble(parts[name], known, sample.take(positions), join(path, name), (*route, chosen))
            branches[name] = (chosen, done)
            pending.extend(done.pending)
    if pending:
        return Assembled(None, sample, tuple(pending))
    density = {"stored": 0, "cells": 1} if _surely_sparse(composite, branches) else known.get(path, {})
    if composite.sparse_threshold and any(sparse.issparse(done.sample.x) for _, done in branches.values()) and not density:
        question = Stored(tuple((chosen, done.fitted) for chosen, done in branches.values()))
        return Assembled(None, sample, (Pending(path, lambda known: None if known else question, route, sample.x),))
    return _joined(composite, branches, sample, density)


def _surely_sparse(composite: ColumnTransformer, branches: Mapping[str, tuple[Take, Assembled]]) -> bool:
    """Whether the output is sparse whatever the rows are: one zero is enough, and a one-hot branch that is wider than its input, in
    which a row has at most one entry for each input column, has one in every row."""
    return composite.sparse_threshold >= 1 and any(
        sparse.issparse(done.sample.x) and done.sample.x.shape[1] > len(chosen.positions) for chosen, done in branches.values()
    )


def _branch_positions(composite: ColumnTransformer, sample: Sample) -> dict[str, np.ndarray]:
    """The input columns of each branch, as scikit-learn itself resolves them: by passing through a row that holds the positions."""
    row = np.arange(sample.x.shape[1])[None]
    if hasattr(sample.x, "columns"):
        row = type(sample.x)(row, columns=sample.x.columns)
    parts = [(name, "passthrough", chosen(sample.x) if callable(chosen) else chosen) for name, _, chosen in composite.transformers]
    rest = "drop" if isinstance(composite.remainder, str) and composite.remainder == "drop" else "passthrough"
    probe = ColumnTransformer(parts, remainder=rest).set_output(transform="default")
    positions = np.asarray(probe.fit_transform(row))[0].astype(int)
    return {name: positions[span] for name, span in probe.output_indices_.items()}


class _Ready(BaseEstimator):
    """Stands in for a branch that is fitted already while scikit-learn fits the composite around it."""

    def __init__(self, fitted: Any, output: Any) -> None:
        self.fitted, self.output = fitted, output

    def __sklearn_clone__(self) -> _Ready:
        return self

    def fit(self, x: Any, y: Any = None) -> _Ready:
        return self

    def transform(self, x: Any) -> Any:
        return self.output

    def get_feature_names_out(self, names: Any = None) -> Any:
        return self.fitted.get_feature_names_out(names)

    def set_output(self, *, transform: Any = None) -> _Ready:
        return self


def _joined(
    composite: ColumnTransformer, branches: Mapping[str, tuple[Take, Assembled]], sample: Sample, density: Known
) -> Assembled:
    def stand_in(name: str, part: Any) -> Any:
        if isinstance(part, str) or name not in branches:
            return part
        return _Ready(branches[name][1].fitted, branches[name][1].sample.x)

    fitted = clone(composite)
    original = {"transformers": fitted.transformers, "remainder": fitted.remainder, "n_jobs": fitted.n_jobs}
    fitted.transformers = [(name, stand_in(name, part), chosen) for name, part, chosen in fitted.transformers]
    fitted.remainder, fitted.n_jobs = stand_in("remainder", fitted.remainder), None
    fitted.fit(sample.x)
    if density:
        fitted.sparse_output_ = density["stored"] / density["cells"] < composite.sparse_threshold
    output = fitted.transform(sample.x)
    fitted.transformers_ = [
        (name, part.fitted if isinstance(part, _Ready) else part, chosen) for name, part, chosen in fitted.transformers_
    ]
    for name, value in original.items():
        setattr(fitted, name, value)
    # The composite also keeps what it was given as remainder; the stand-in must not live on in what is exported.
    fitted._remainder = (fitted._remainder[0], fitted.remainder, *fitted._remainder[2:])
    complete = np.ones(output.shape[1], dtype=bool)
    for name, (_, done) in branches.items():
        complete[fitted.output_indices_[name]] = done.sample.complete
    return Assembled(fitted, Sample(output, complete))
