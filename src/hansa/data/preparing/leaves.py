"""One rule for each supported transformer: what it still has to ask, and the fitted scikit-learn object from the answers.

A leaf is always fitted by its own ``fit``, on a few made-up rows of the right type, so that every attribute is there that its version
of scikit-learn expects; only the statistics are then put in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from hansa.core.errors import InputError
from hansa.data.preparing.order import order_question, order_values
from hansa.data.preparing.questions import Counts, Known, Moments, Presence, Question, Spread
from hansa.data.preparing.sample import Sample, columns_of, like, numbers, uniques


@dataclass(frozen=True)
class Rule:
    """ask: the next question, or None. finish: fit the leaf in place. complete: which output columns take only known values."""

    ask: Callable[[Any, Known, Sample], Question | None]
    finish: Callable[[Any, Known, Sample], None]
    complete: Callable[[Any, Sample, int], np.ndarray] = lambda leaf, sample, width: sample.complete


def _zeros(sample: Sample, rows: int = 2) -> Any:
    return like(sample.x, np.zeros((sample.x.shape[1], rows)))


def _present(known: Known) -> np.ndarray:
    return np.array(known["present"])


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


# StandardScaler ---------------------------------------------------------------------------------------------------------------


def _ask_standard(leaf: Any, known: Known, sample: Sample) -> Question | None:
    numbers(sample.x)
    if "sum" not in known:
        return Moments()
    if leaf.with_std and "squares" not in known:
        return Spread(tuple(np.nan_to_num(_ratio(np.array(known["sum"]), _present(known))).tolist()))
    return None


def _finish_standard(leaf: Any, known: Known, sample: Sample) -> None:
    leaf.fit(_zeros(sample))
    count = _present(known)
    mean = _ratio(np.array(known["sum"]), count)
    seen = count.astype(np.asarray(leaf.n_samples_seen_).dtype)
    leaf.n_samples_seen_ = seen[0] if (seen == seen[0]).all() else seen
    if leaf.with_std:
        shift, squares = np.array(known["shift"]), np.array(known["squares"])
        var = np.maximum(_ratio(squares - _ratio(shift, count) * shift, count), 0.0)
        mean = mean + _ratio(shift, count)
        # scikit-learn's bound on the rounding error of a constant column's variance; such a column is centred and not scaled.
        eps = np.finfo(np.float64).eps
        constant = var <= count * eps * var + (count * mean * eps) ** 2
        leaf.var_, leaf.scale_ = var, np.where(constant, 1.0, np.sqrt(var))
    if leaf.mean_ is not None:
        leaf.mean_ = mean


# MinMaxScaler, MaxAbsScaler, RobustScaler -------------------------------------------------------------------------------------


def _ask_order(ranks: Callable[[Any, np.ndarray], np.ndarray]) -> Callable[[Any, Known, Sample], Question | None]:
    def ask(leaf: Any, known: Known, sample: Sample) -> Question | None:
        numbers(sample.x)
        if "present" not in known:
            return Presence()
        count = _present(known)
        wanted = ranks(leaf, count)
        return order_question(known, np.where(count[:, None] > 0, wanted, -1)) if wanted.shape[1] else None

    return ask


def _ends(leaf: Any, count: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(count), count - 1], axis=1)


def _finish_min_max(leaf: Any, known: Known, sample: Sample) -> None:
    ends = order_values(known)
    leaf.fit(like(sample.x, np.nan_to_num(ends)))
    _seen(leaf, known, ("data_min_", "data_max_", "data_range_", "scale_", "min_"))


def _finish_max_abs(leaf: Any, known: Known, sample: Sample) -> None:
    leaf.fit(like(sample.x, np.nan_to_num(np.abs(order_values(known)))))
    _seen(leaf, known, ("max_abs_", "scale_"))


def _seen(leaf: Any, known: Known, statistics: tuple[str, ...]) -> None:
    leaf.n_samples_seen_ = known["rows"]
    for name in statistics:
        getattr(leaf, name)[_present(known) == 0] = np.nan


def _middle(count: np.ndarray) -> np.ndarray:
    return np.stack([(count - 1) // 2, count // 2], axis=1)


def _mean_of_two(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    # Equal values are not added, so that the largest doubles do not overflow.
    with np.errstate(over="ignore"):
        return np.where(low == high, low, (low + high) / 2)


def _quantile_ranks(leaf: Any, count: np.ndarray) -> np.ndarray:
    ranks = [_middle(count)] if leaf.with_centering else []
    if leaf.with_scaling:
        for percent in leaf.quantile_range:
            below = np.floor(np.maximum(count - 1, 0) * (percent / 100)).astype(int)
            ranks.append(np.stack([below, np.minimum(below + 1, np.maximum(count - 1, 0))], axis=1))
    return np.concatenate(ranks, axis=1) if ranks else np.zeros((len(count), 0), dtype=int)


def _finish_robust(leaf: Any, known: Known, sample: Sample) -> None:
    leaf.fit(_zeros(sample))
    if not (leaf.with_centering or leaf.with_scaling):
        return
    values = order_values(known)
    if leaf.with_centering:
        leaf.center_ = _mean_of_two(values[:, 0], values[:, 1]).astype(leaf.center_.dtype)
    if leaf.with_scaling:
        ends = []
        below = values[:, -4:]  # two neighbours for each of the two quantiles
        for percent, a, b in zip(leaf.quantile_range, below.T[::2], below.T[1::2], strict=True):
            place = np.maximum(_present(known) - 1, 0) * (percent / 100)
            part = place - np.floor(place)
            # NumPy's linear interpolation, which starts from the nearer end.
            ends.append(np.where(part >= 0.5, b - (b - a) * (1 - part), a + (b - a) * part))
        scale = ends[1] - ends[0]
        scale[scale < 10 * np.finfo(np.float64).eps] = 1.0
        if leaf.unit_variance:
            scale = scale / (stats.norm.ppf(leaf.quantile_range[1] / 100.0) - stats.norm.ppf(leaf.quantile_range[0] / 100.0))
        leaf.scale_ = scale.astype(leaf.scale_.dtype)


# SimpleImputer ----------------------------------------------------------------------------------------------------------------


def _ask_imputer(leaf: Any, known: Known, sample: Sample) -> Question | None:
    marker = leaf.missing_values
    if leaf.strategy == "constant":
        return Presence(marker) if "present" not in known else None
    if leaf.strategy == "most_frequent":
        return Counts(_candidates(_with_marker(leaf, sample))) if "counts" not in known else None
    numbers(sample.x)
    if leaf.strategy == "mean":
        return Moments(marker) if "sum" not in known else None
    if "present" not in known:
        return Presence(marker)
    count = _present(known)
    return order_question(known, np.where(count[:, None] > 0, _middle(count), -1), marker)


def _candidates(sample: Sample) -> tuple[np.ndarray, ...]:
    return tuple(uniques(sample, column) for column in range(sample.x.shape[1]))


def _with_marker(leaf: Any, sample: Sample) -> Sample:
    """The sample with its last row missing in the imputer's own way, where that is not NaN."""
    marker = leaf.missing_values
    if marker != marker:
        return sample
    columns = columns_of(sample.x)
    return Sample(
        like(sample.x, [np.append(column[:-1], np.array([marker], dtype=column.dtype)) for column in columns]), sample.complete
    )


def _is_marker(values: np.ndarray, marker: Any) -> np.ndarray:
    return np.array([value != value if marker != marker else value == marker for value in values.tolist()], dtype=bool)


def _finish_imputer(leaf: Any, known: Known, sample: Sample) -> None:
    marker = leaf.missing_values
    if leaf.strategy == "most_frequent":
        values, present = _most_frequent(leaf, known, sample)
    else:
        present = _present(known)
        values = None
        if leaf.strategy == "mean":
            values = _ratio(np.array(known["sum"]), present)
        elif leaf.strategy == "median":
            values = _mean_of_two(*order_values(known).T)
    empty, gaps = present == 0, present < known["rows"]
    fills = [_any_value(column, marker) for column in columns_of(sample.x)]
    rows = [
        [marker, marker] if none else [fill, marker] if some else [fill, fill]
        for fill, none, some in zip(fills, empty, gaps, strict=True)
    ]
    leaf.fit(like(sample.x, [np.array(row, dtype=object) for row in rows]))
    if values is not None:
        values[empty] = 0 if leaf.keep_empty_features else np.nan
        leaf.statistics_ = values.astype(leaf.statistics_.dtype)


def _any_value(column: np.ndarray, marker: Any) -> Any:
    if column.dtype == object:
        return "" if marker != "" else "a"
    return 0 if marker != 0 else 1


def _most_frequent(leaf: Any, known: Known, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    winners, present = [], []
    for column, counts in enumerate(known["counts"]):
        candidates = uniques(_with_marker(leaf, sample), column)
        keep = ~_is_marker(candidates, leaf.missing_values)
        candidates, count = candidates[keep], np.array(counts)[keep]
        present.append(int(count.sum()))
        # The first of equals, which are in ascending order: scikit-learn takes the smallest.
        winners.append(candidates.tolist()[int(count.argmax())] if len(count) else np.nan)
    result = np.empty(len(winners), dtype=object)
    result[:] = winners
    return result, np.array(present)


def _complete_imputer(leaf: Any, sample: Sample, width: int) -> np.ndarray:
    statistics = leaf.statistics_
    kept = np.ones(len(statistics), dtype=bool) if leaf.keep_empty_features else statistics == statistics
    indicators = np.ones(width - int(kept.sum()), dtype=bool)
    return np.concatenate([sample.complete[kept], indicators])


# OneHotEncoder, OrdinalEncoder ------------------------------------------------------------------------------------------------


def _ask_encoder(leaf: Any, known: Known, sample: Sample) -> Question | None:
    for option in ("min_frequency", "max_categories"):
        if getattr(leaf, option) is not None:
            raise InputError(
                f"{option}={getattr(leaf, option)} is not supported; leave it out, or give the wanted categories=[...]"
            )
    if "counts" in known:
        return None
    if isinstance(leaf.categories, str):
        return Counts(_candidates(sample))
    if len(leaf.categories) != sample.x.shape[1]:
        raise InputError(f"categories for {len(leaf.categories)} columns given, the encoder has {sample.x.shape[1]} columns")
    return Counts(_given(leaf, sample)) if leaf.handle_unknown == "error" else None


def _given(leaf: Any, sample: Sample) -> tuple[np.ndarray, ...]:
    kinds = [column.dtype for column in columns_of(sample.x)]
    return tuple(np.array(list(values), dtype=kind) for values, kind in zip(leaf.categories, kinds, strict=True))


def _finish_encoder(leaf: Any, known: Known, sample: Sample) -> None:
    if isinstance(leaf.categories, str):
        exist = [values[np.array(counts) > 0] for values, counts in zip(_candidates(sample), known["counts"], strict=True)]
    else:
        exist = list(_given(leaf, sample))
    rows = max(len(values) for values in exist)
    leaf.fit(like(sample.x, [np.concatenate([values, np.repeat(values[:1], rows - len(values))]) for values in exist]))


def settled(leaf: Any, sample: Sample) -> Sample:
    """The sample as the fitted leaf may see it: without values that turned out not to occur, which an encoder might refuse, and with
    the imputer's own sign of a missing value."""
    if hasattr(leaf, "statistics_"):
        return _with_marker(leaf, sample)
    if not hasattr(leaf, "categories_"):
        return sample
    columns = []
    for column, categories in zip(columns_of(sample.x), leaf.categories_, strict=True):
        column = column.copy()
        fitted = set(categories.tolist())
        gap = any(value != value for value in fitted)
        known = [value in fitted or (gap and value != value) for value in column.tolist()]
        column[~np.array(known)] = categories[0]
        columns.append(column)
    return Sample(like(sample.x, columns), sample.complete)


def _all(leaf: Any, sample: Sample, width: int) -> np.ndarray:
    return np.ones(width, dtype=bool)


RULES: dict[str, Rule] = {
    "StandardScaler": Rule(_ask_standard, _finish_standard),
    "MinMaxScaler": Rule(_ask_order(_ends), _finish_min_max),
    "MaxAbsScaler": Rule(_ask_order(_ends), _finish_max_abs),
    "RobustScaler": Rule(_ask_order(_quantile_ranks), _finish_robust),
    "SimpleImputer": Rule(_ask_imputer, _finish_imputer, _complete_imputer),
    "OneHotEncoder": Rule(_ask_encoder, _finish_encoder, _all),
    "OrdinalEncoder": Rule(_ask_encoder, _finish_encoder, _all),
}
