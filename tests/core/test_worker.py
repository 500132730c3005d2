"""What a worker keeps: so many bytes of clients' data, the last ones used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hansa.core.blocks import Client, Splits, Table
from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.store import MemoryStore
from hansa.core.worker import Worker

LOADED: list[int] = []
SCHEMA = Schema(shape=(5,), classes=(0, 1))


class AsItIs:
    """A learner that takes tables as they are."""

    def bind(self, schema: Schema) -> AsItIs:
        return self

    def arrays(self, table: Table) -> Table:
        return table


def load(place: int, dtype: str = "float64", labels: Any = 0, columns: int = 5) -> Splits:
    LOADED.append(place)
    y = None if labels is None else np.full(20, labels)
    return {"train": Table(np.zeros((20, columns), dtype), y)}


def worker(keep: int, **odd: Any) -> Worker:
    LOADED.clear()
    recipes = [Client(f"client-{place}", load, {"place": place, **odd}) for place in range(5)]
    return Worker(AsItIs(), recipes, MemoryStore(), keep)  # type: ignore[arg-type]  # enough of a learner for its data


def used(worker: Worker, *places: int) -> list[int]:
    LOADED.clear()
    for place in places:
        worker.table(place, "train", SCHEMA)
    return list(LOADED)


SIZE = 20 * 5 * 8 + 20 * 8


def test_the_least_recently_used_are_dropped_when_there_are_too_many_bytes() -> None:
    one = worker(3 * SIZE)
    assert used(one, 0, 1, 2, 0, 1, 2) == [0, 1, 2]
    assert used(one, 0, 3) == [3]  # 1 is the one not used for longest
    assert used(one, 0, 2, 3) == []
    assert used(one, 1) == [1]


def test_a_client_that_is_larger_than_all_that_is_kept_still_works() -> None:
    assert used(worker(SIZE // 2), 0, 0, 1, 0) == [0, 1, 0]


def test_another_schema_drops_what_was_prepared() -> None:
    one = worker(10 * SIZE)
    assert used(one, 0, 1) == [0, 1]
    one.table(0, "train", Schema(shape=(5,), classes=(0, 1, 2)))
    assert used(one, 0, 1) == [0, 1]


@pytest.mark.parametrize(
    ("odd", "schema", "sentence"),
    [
        ({"columns": 4}, SCHEMA, r"client client-2: has examples of shape \(4,\), and the other clients have \(5,\)"),
        ({"dtype": "int16"}, SCHEMA, "client client-2: has features of type int16, and the other clients have float64"),
        ({"labels": None}, SCHEMA, "client client-2: has no labels, and the other clients have"),
        ({"labels": "a"}, SCHEMA, r"client client-2: has labels such as \['a'\], and those of the other clients are \[0, 1\]"),
        ({"labels": "a"}, Schema(shape=(5,)), "client client-2: has targets that are not finite numbers"),
        ({"labels": np.nan}, Schema(shape=(5,)), "client client-2: has targets that are not finite numbers"),
    ],
)
def test_a_table_unlike_the_others_is_refused_by_name(odd: dict[str, Any], schema: Schema, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        worker(SIZE, **odd).table(2, "train", schema)
