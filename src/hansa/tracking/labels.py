"""How metrics, sizes and times are named and written for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

_NAMES: Final = {
    "auc": "AUC", "mse": "Mean squared error", "mae": "Mean absolute error", "rmse": "Root mean squared error", "r2": "R²",
    "loss": "Loss", "f1": "F1", "gradient_norm": "Gradient norm",
}  # fmt: skip
_LOWER: Final = ("loss", "error", "mse", "mae", "rmse", "brier", "deviance", "perplexity", "norm", "seconds", "bytes", "inertia")


def metric_name(name: str) -> str:
    """``auc`` -> ``AUC``, ``balanced_accuracy`` -> ``Balanced accuracy``."""
    return _NAMES.get(name, name.replace("_", " ").capitalize())


def split_name(name: str) -> str:
    """``train`` -> ``training``; the others are words already."""
    return "training" if name == "train" else name


def lower_is_better(name: str) -> bool:
    """Whether a metric, by its name, is something to bring down: losses, errors, norms."""
    words = name.rpartition("/")[2].lower().replace("-", "_").split("_")
    return any(word in _LOWER for word in words)


def number(value: float | None) -> str:
    """About four significant digits; a dash where there is no value."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 100_000 or size < 0.0005:
        return f"{value:.2e}".replace("-", "−")
    return f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}".replace("-", "−")


def count(value: float) -> str:
    """A whole number with thousands separated."""
    return f"{round(value):,}"


def sampled(description: Mapping[str, Any]) -> str:
    """``a sample of 1,000 of 20,000 clients``, where only some have described their data; empty where all have."""
    if "population" not in description:
        return ""
    return f"a sample of {count(len(description['clients']))} of {count(description['population'])} clients"


def in_bytes(value: float) -> str:
    """``1.2 MB``: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def duration(seconds: float) -> str:
    """``0.8 s``, ``2 min 13 s``, ``3 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.001 else "under 1 ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
