"""Tables for people: they fit a terminal, leave no blanks at line ends, and round by size."""

from __future__ import annotations

import math

import pytest

from hansa.cli import show, tables
from hansa.comparison import OVERALL, Comparison, Row

HOSPITALS = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
WAYS = ("each client alone", "all rows pooled", "federated averaging", "exact federated Newton")


def comparison(mean: float, error: float, repeats: int = 10) -> Comparison:
    values = {metric: dict.fromkeys((*HOSPITALS, OVERALL), (mean, error)) for metric in ("auc", "accuracy")}
    return Comparison(HOSPITALS, ("auc", "accuracy"), tuple(Row(name, values) for name in WAYS), repeats, "All is well.")


def shown(of: Comparison, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show.comparison_table(of, "title")
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("mean", "error"), [(0.908, 0.009), (-0.5, 0.25), (123.4, 5.6), (45678.0, 123.0), (math.nan, math.nan)])
def test_the_table_of_four_hospitals_fits_in_100_columns(mean: float, error: float, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(comparison(mean, error), capsys)
    assert len(lines) == 1 + 1 + 2 * (1 + len(WAYS)) + 1
    assert max(map(len, lines)) <= 100
    assert lines == [line.rstrip() for line in lines]


def test_one_split_has_no_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(shown(comparison(0.9, math.nan, repeats=1), capsys))
    assert "0.900" in text and "±" not in text and "standard error" not in text


@pytest.mark.parametrize(
    ("mean", "error", "cell"),
    [
        (0.12345, 0.01, "0.123 ±0.010"), (12.345, 1.0, "12.3 ±1.0"), (3012.3, 55.2, "3,012 ±55"), (0.5, math.nan, "0.500"),
        (math.nan, math.nan, "-"),
    ],
)  # fmt: skip
def test_a_cell_rounds_mean_and_error_alike(mean: float, error: float, cell: str) -> None:
    assert tables.with_error(mean, error) == cell


def test_json_has_no_nan() -> None:
    assert show.plain({"a": (math.nan, 1.0), 2: {"b": math.inf}}) == {"a": [None, 1.0], "2": {"b": None}}
