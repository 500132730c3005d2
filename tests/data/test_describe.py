"""The exchange before the first round, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hansa.core.blocks import Block, Table, blocks_of
from hansa.core.contracts import Algorithm
from hansa.core.errors import InputError
from hansa.core.reduction import gather
from hansa.core.store import MemoryStore
from hansa.core.updates import Update
from hansa.core.worker import WorkCall, Worker
from hansa.data import IID, BuiltIn, Column, Describe, Description, Split, check, facts_of
from hansa.data.recipes import clients


def described(source: Any, partition: Any, block: int) -> Mapping[str, Any]:
    """Facts by way of a worker, as in a round."""
    algorithm, recipes = Describe(), clients(source, partition, Split(), 0)
    worker = Worker(None, recipes, MemoryStore())  # type: ignore[arg-type]  # nothing is learnt
    state = algorithm.init({}, {})
    call = WorkCall(algorithm, algorithm.broadcast(state, 0), None, 0, 0)

    def done(block: Block) -> Update:
        update = call(worker, block)
        assert isinstance(update, Update)
        return update

    updates = [done(block) for block in blocks_of(range(len(recipes)), block)]
    facts: Mapping[str, Any] = algorithm.update(state, gather(updates))["facts"]
    return facts


def test_describe_is_an_algorithm_whose_blocks_do_not_matter() -> None:
    assert isinstance(Describe(), Algorithm)
    first = described(BuiltIn("heart_disease"), Column(), 1)
    assert list(first) == ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"]
    assert first == described(BuiltIn("heart_disease"), Column(), 3)


def test_heart_disease_is_described() -> None:
    facts = described(BuiltIn("heart_disease"), Column(), 16)
    found = check(facts, task="classification", needs=frozenset({"two classes"}), prepared=True)
    assert len(found.features) == 13
    assert found.shape == (13,)
    assert found.classes == (0, 1)
    assert found.rows == sum(own["rows"]["train"] for own in facts.values())
    plain = found.plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert sum(sum(own["labels"].values()) for own in plain["clients"].values()) == found.rows
    example = found.example().x
    raw = BuiltIn("heart_disease").read().x
    assert list(example.columns) == list(raw.columns)
    assert (example.dtypes == raw.dtypes).all()
    with pytest.raises(InputError, match=r'client Cleveland: column .* add \[preparation\] name = "standard"'):
        check(facts, task="classification", needs=frozenset({"classes"}), prepared=False)


def test_arrays_and_targets_are_described() -> None:
    found = check(
        described(BuiltIn("digits"), IID(clients=5), 2), task="classification", needs=frozenset({"classes"}), prepared=False
    )
    assert (found.features, found.shape, found.dtype, found.classes) == ((), (64,), "float64", tuple(range(10)))
    assert found.example().x.shape == (1, 64)
    found = check(
        described(BuiltIn("diabetes"), IID(clients=5), 2), task="regression", needs=frozenset({"numbers"}), prepared=False
    )
    assert found.classes is None
    target = found.plain()["clients"]["client-000"]["target"]
    assert set(target) == {"mean", "std", "min", "max"}


X = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [4.0, 3.0, 2.0, 1.0]})
Y = np.array([0, 1, 0, 1])


def told(x: Any = X, y: Any = Y, held_x: Any = None, held_y: Any = None) -> dict[str, Any]:
    splits = {"train": Table(x, y)}
    if held_y is not None:
        splits["test"] = Table(x[: len(held_y)] if held_x is None else held_x, np.asarray(held_y))
    return facts_of(splits)


def checked(facts: dict[str, Any], **options: Any) -> Description:
    given: dict[str, Any] = {"task": "classification", "needs": frozenset({"classes"}), "prepared": False} | options
    return check(facts, **given)


FLOATS = np.array([0.5, 1.5, 2.5, 3.5])
CONSTANT = X.assign(b=3.0)
GAPS = X.assign(b=[1.0, np.nan, 2.0, np.nan])
TEXT = X.assign(b=np.array(["u", "v", "u", "v"], dtype=object))
ARRAY = X.to_numpy()
REGRESSION = {"task": "regression", "needs": frozenset({"numbers"})}
COUNTS = {"task": "regression", "needs": frozenset({"counts"})}

BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "there are no clients"),
    ({"p": told(X[:0], Y[:0])}, {}, "client p: has no training rows"),
    ({"p": told(), "q": told(X[["a"]])}, {}, "client p has a column 'b' and client q has not"),
    ({"p": told(), "q": told(X.assign(c=1.0))}, {}, "client q has a column 'c' and client p has not"),
    ({"p": told(), "q": told(X[["b", "a"]])}, {}, r"clients p and q have their columns in different orders \('a' and 'b'"),
    ({"p": told(), "q": told(TEXT)}, {}, "column 'b': is a number at client p and a category at client q; "),
    ({"p": told(X.assign(b=np.nan)), "q": told(TEXT)}, {}, r"column 'b': is a number at client p .* \(it is empty at p\)"),
    ({"p": told(), "q": told(ARRAY)}, {}, "clients p and q: one has a table, the other an array"),
    ({"p": told(ARRAY), "q": told(ARRAY[:, :1])}, {}, r"is examples of shape \(2,\) at client p and examples of shape \(1,\) at client q"),
    ({"p": told(ARRAY), "q": told(ARRAY.astype(np.float32))}, {}, "is type float64 at client p and type float32 at client q"),
    ({"p": told(X.assign(b=[1.0, np.inf, 2.0, -np.inf]))}, {"prepared": True}, "client p: column 'b' holds 2 infinite values"),
    ({"p": told(ARRAY * np.inf)}, {"prepared": True}, "client p: the array of features holds 8 infinite values"),
    ({"p": told(), "q": told(GAPS)}, {}, r'client q: column \'b\' is empty in 2 of 4 rows; add \[preparation\] name = "standard"'),
    ({"p": told(GAPS.to_numpy())}, {}, "client p: the array of features is empty in 2 of 8 places"),
    ({"p": told(TEXT)}, {}, r"client p: column 'b' holds text \('u', 'v'\) and models need numbers; add \[preparation\]"),
    (
        {"p": told(TEXT.assign(b=["1", "?", "2", "1"])), "q": told(TEXT.assign(b=["3", "1", "-", "?"]))}, {"prepared": True},
        r"column 'b': holds numbers, and '-' in 1 training rows; leave these cells empty",
    ),
    ({"p": told(CONSTANT), "q": told(CONSTANT)}, {}, r"column 'b': is 3.0 in all 8 training rows .* data.drop = \['b'\]"),
    ({"p": told(X.assign(b=np.nan))}, {"prepared": True}, "column 'b': is empty in all 4 training rows"),
    (
        {"p": told(TEXT.assign(b="u", c=2.0, d=np.nan))}, {"prepared": True},
        r"^columns 'b', 'c', 'd': are 'u', 2.0, empty in all 4 training rows .* data.drop = \['b', 'c', 'd'\]$",
    ),
    ({"p": told(TEXT.assign(b="u"))}, {"prepared": True}, "column 'b': is 'u' in all 4 training rows"),
    ({"p": told(), "q": told(y=np.zeros(4, int))}, {}, "client q: all of its 4 training rows have the label 0; leave the client out"),
    ({"p": told(), "q": told(held_y=[0, 7])}, {}, "client q: label 7 occurs in its test rows and in no client's training rows"),
    ({"p": told(y=np.zeros(4, int))}, {}, "every training row of all clients has the label 0; at least two classes"),
    ({"p": told(y=np.arange(4))}, {"needs": frozenset({"two classes"})}, r"has 4 classes \(0, 1, 2, 3\), and the learner separates two"),
    ({"p": told(), "q": told(y=np.array(list("abab")))}, {}, "labels are numbers at client p and text at client q"),
    ({"p": told(y=FLOATS)}, {}, "client p: has labels of type float64; classes are whole numbers or text"),
    ({"p": told(y=None)}, {}, "client p: has no labels, and the learner needs them"),
    ({"p": told(y=FLOATS)}, {"task": "regression"}, "the learner does not fit the task: it predicts classes"),
    ({"p": told()}, {"needs": frozenset({"numbers"})}, "the learner does not fit the task: it predicts numbers"),
    ({"p": told(y=np.array(list("abab")))}, REGRESSION, "client p: has text for labels, a regression needs numbers"),
    ({"p": told(y=np.array([0.5, np.nan, np.inf, 1.0]))}, REGRESSION, "client p: 2 of its targets are missing or infinite"),
    ({"p": told(y=-FLOATS)}, COUNTS, "client p: has a target of -3.5, and the learner models counts"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "options", "sentence"), BAD)
def test_what_cannot_work_is_said_in_one_sentence(facts: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        checked(facts, **options)
    assert "\n" not in str(caught.value)


def test_what_is_allowed_passes() -> None:
    assert checked({"p": told(CONSTANT)}, constant="allow").classes == (0, 1)
    assert checked({"p": told(CONSTANT), "q": told()}).rows == 8  # constant at one client only
    assert checked({"p": told(), "q": told(y=np.zeros(4, int))}, single_class="allow").classes == (0, 1)
    assert checked({"p": told(TEXT), "q": told(TEXT)}, prepared=True).shape == (2,)
    assert checked({"p": told(ARRAY * 0)}).classes == (0, 1)  # a pixel may be black in every picture
    assert checked({"p": told(y=np.array(list("baba")))}).classes == ("a", "b")
    assert checked({"p": told(held_y=[0]), "q": told(y=np.array([7, 0, 7, 0]), held_y=[1])}).classes == (0, 1, 7)
    marked = TEXT.assign(b=np.array(["u", np.nan, "u", np.nan], dtype=object))
    assert checked({"p": told(marked)}, prepared=True).features == ("a", "b")


def test_clients_are_described_in_canonical_order() -> None:
    first, second = told(), told(y=np.array([0, 0, 1, 1]))
    assert checked({"p": first, "q": second}) == checked({"q": second, "p": first})
    assert list(checked({"q": second, "p": first}).facts) == ["p", "q"]
