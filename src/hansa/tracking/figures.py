"""The report's figures. Each function takes plain values and gives an inline SVG that says in words what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from markupsafe import Markup

from hansa.tracking.labels import count, metric_name, number, split_name
from hansa.tracking.svg import COLOURS, FONT, SERIES, Drawing, shorten, text_width

if TYPE_CHECKING:
    from matplotlib.ticker import MaxNLocator

WIDTH: Final = 400
_MOST_POINTS: Final = 400  # of a line: more than there are pixels
_MOST_BARS: Final = 60  # of a bar chart by round
_MOST_DOTS: Final = 1000  # of a scatter plot, to bound the report's size
_SPLIT: Final = {"test": "s0", "validation": "s1", "train": "s8", "central": "s3"}
_MARKERS: Final = "osD^vPX*"
_HEAT: Final = (0.23, 0.50, 0.78)  # seen on light and dark pages alike; the value is its opacity

Line = tuple[Sequence[float], Sequence[float]]
"""Rounds and values of equal length."""


def curves(key: str, name: str, lines: Mapping[str, Line], unit: str = "") -> Markup:
    """One metric by round, a line for each split, named at its end; with a unit, by virtual time in it instead of rounds."""
    ends = {split: f"{split_name(split)} {number(_last(values))}" for split, (_, values) in lines.items()}
    right = 22 + max(text_width(text) for text in ends.values())
    drawing = Drawing(WIDTH, 230, (46, right, 10, 34))
    drawing.grid("y")
    axes = drawing.axes
    heights = {}
    for split, (rounds, values) in lines.items():
        colour = COLOURS[_SPLIT.get(split, "s2")]
        keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).round().astype(int))
        x, y = np.asarray(rounds, dtype=float)[keep], np.asarray(values, dtype=float)[keep]
        axes.plot(x, y, color=colour, linewidth=2, solid_joinstyle="round", marker="o" if len(keep) < 3 else None, markersize=4)
        finite = np.flatnonzero(np.isfinite(y))
        if len(finite):
            axes.plot(x[finite[-1:]], y[finite[-1:]], "o", color=colour, markersize=5, clip_on=False)
            heights[split] = float(y[finite[-1]])
    first = min(float(rounds[0]) for rounds, _ in lines.values())
    last = max(float(rounds[-1]) for rounds, _ in lines.values())
    axes.set_xlim(first, last if last > first else first + 1)
    axes.margins(y=0.08)
    if unit:
        axes.xaxis.set_major_locator(_locator(6))
    else:
        _whole_ticks(drawing, first, last)
    axes.yaxis.set_major_locator(_locator(5))
    _write_ends(drawing, ends, heights)
    below = f"virtual time, {unit}" if unit else "round"
    axes.set_xlabel(below, fontsize=FONT, color=COLOURS["muted"], labelpad=2)
    return drawing.svg(key, f"{metric_name(name)} by {below}. At the end: {', '.join(ends.values())}.")


def _write_ends(drawing: Drawing, ends: Mapping[str, str], heights: Mapping[str, float]) -> None:
    """Names at the lines' ends, moved apart where they would cover each other."""
    low, high = drawing.axes.get_ylim()
    gap = 14 / (230 - 44) * (high - low)
    placed = -math.inf
    for split in sorted(heights, key=lambda name: heights[name]):
        placed = max(heights[split], placed + gap)
        x = 1 + 9 / (drawing.axes.get_position().width * WIDTH)
        colour = _SPLIT.get(split, "s2")
        drawing.write(x, placed, ends[split], transform=drawing.axes.get_yaxis_transform(), va="center_baseline")
        if placed > heights[split] + gap / 4:  # the name left its line's end: a tie shows where it belongs
            drawing.axes.plot(
                [1 + (x - 1) * 0.2, 1 + (x - 1) * 0.8], [heights[split], placed], color=COLOURS[colour], linewidth=1,
                transform=drawing.axes.get_yaxis_transform(), clip_on=False,
            )  # fmt: skip


def time_parts(key: str, parts: Mapping[str, Sequence[float]]) -> Markup:
    """Seconds of each part of a round's time, stacked, by round: ``parts`` has ``round`` and equally long lists by the parts' names."""
    rounds = np.asarray(parts["round"])
    names = [name for name in parts if name != "round"]
    groups = np.array_split(
        np.arange(len(rounds)), min(len(rounds), _MOST_BARS)
    )  # means of neighbours, where there are more than pixels
    x = np.array([rounds[group].mean() for group in groups])
    heights = np.array([[np.asarray(parts[name])[group].mean() for group in groups] for name in names])
    scale, unit = (1e3, "ms") if heights.sum(axis=0).max() < 1 else (1.0, "s")
    drawing = Drawing(WIDTH, 200, (46, 16, 10, 34))
    axes = drawing.axes
    drawing.grid("y")
    width = 0.86 * (float(np.diff(x).min()) if len(x) > 1 else 1.0)
    bottom = np.zeros(len(x))
    for place, row in enumerate(heights * scale):
        axes.bar(x, row, width, bottom=bottom, color=COLOURS[SERIES[place]], linewidth=0)
        bottom += row
    axes.set_xlim(x[0] - width, x[-1] + width)
    axes.xaxis.set_major_locator(_locator(6, integer=True))
    axes.yaxis.set_major_locator(_locator(4))
    axes.set_xlabel("round", fontsize=FONT, color=COLOURS["muted"], labelpad=2)
    axes.set_ylabel(unit, fontsize=FONT, color=COLOURS["muted"], labelpad=2)
    said = ", ".join(f"{name} {number(float(np.mean(parts[name])) * scale)} {unit}" for name in names)
    return drawing.svg(key, f"Time of a round by what it went into. In the mean: {said}.")


def times(key: str, label: str, names: Sequence[str], values: Sequence[float], told: Sequence[str], unit: str) -> Markup:
    """When each of a few things was reached, in virtual time, and what is told of it at the right."""
    left, right = (16 + max(text_width(text) for text in texts) for texts in (names, told))
    drawing = Drawing(WIDTH, 26 * len(names) + 46, (left, right, 10, 34))
    axes = drawing.axes
    drawing.grid("x")
    drawing.name_rows(list(names))
    axes.hlines(range(len(names)), 0, values, color=COLOURS["s0"], linewidth=2, alpha=0.5)
    axes.plot(values, range(len(names)), "o", color=COLOURS["s0"], markersize=6, clip_on=False)
    for row, text in enumerate(told):
        drawing.write(1.03, row, text, transform=axes.get_yaxis_transform(), va="center_baseline")
    axes.set_xlim(0, max(*values, 1e-9))
    axes.xaxis.set_major_locator(_locator(4))
    axes.set_xlabel(f"virtual time, {unit}", fontsize=FONT, color=COLOURS["muted"], labelpad=2)
    said = "; ".join(f"{name} {text}" for name, text in zip(names, told, strict=True))
    return drawing.svg(key, f"{label}: {said}.")


def client_dots(
    key: str, metric: str, names: Sequence[str], values: Sequence[float], rows: Sequence[float], overall: float | None
) -> Markup:
    """A metric of each client, best at the top as given; a dot's area is the client's number of rows."""
    left = 16 + max(text_width(shorten(name)) for name in names)
    drawing = Drawing(WIDTH, 26 * len(names) + 46, (left, 54, 16, 30))
    axes = drawing.axes
    drawing.grid("x")
    drawing.name_rows(list(names))
    size = np.asarray(rows, dtype=float)
    area = 28 + 150 * size / max(float(np.nanmax(size, initial=1.0)), 1.0)
    if overall is not None and math.isfinite(overall):
        axes.axvline(overall, color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
        drawing.write(
            overall, 1.0, f"all {number(overall)}", colour="muted", transform=axes.get_xaxis_transform(), ha="center", va="bottom"
        )
    axes.scatter(values, range(len(names)), s=np.nan_to_num(area, nan=28.0), color=COLOURS["s0"], linewidths=0, clip_on=False)
    for row, value in enumerate(values):
        drawing.write(1.02, row, number(value), transform=axes.get_yaxis_transform(), va="center_baseline")
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(_locator(5))
    said = "; ".join(f"{name} {number(value)}" for name, value in zip(names, values, strict=True))
    return drawing.svg(key, f"{metric_name(metric)} of each client: {said}.")


def histogram(key: str, label: str, values: Sequence[float], overall: float | None = None) -> Markup:
    """How many clients have which value; for many clients."""
    kept = np.asarray([value for value in values if math.isfinite(value)])
    drawing = Drawing(WIDTH, 200, (46, 16, 16, 36))
    axes = drawing.axes
    drawing.grid("y")
    wide = _log_rows(drawing, kept)
    low, high = (kept.min(), kept.max()) if len(kept) else (0.0, 1.0)
    bins = np.geomspace(low, high, 25) if wide else np.linspace(low, high if high > low else low + 1, 25)
    axes.hist(kept, bins=bins.tolist(), color=COLOURS["s0"], rwidth=0.9)
    if overall is not None and math.isfinite(overall):
        axes.axvline(overall, color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (4, 3)))
        drawing.write(
            overall, 1.0, f"all {number(overall)}", colour="muted", transform=axes.get_xaxis_transform(), ha="center", va="bottom"
        )
    axes.yaxis.set_major_locator(_locator(4, integer=True))
    axes.set_xlabel(drawing.token(label), fontsize=FONT, color=COLOURS["muted"], labelpad=3)
    quarter, half, three = np.quantile(kept, [0.25, 0.5, 0.75]) if len(kept) else (math.nan,) * 3
    middle = f"median {number(half)}, middle half {number(quarter)} to {number(three)}"
    return drawing.svg(key, f"Number of clients by {label}, {len(kept)} clients: {middle}.")


def scatter(key: str, metric: str, rows: Sequence[float], values: Sequence[float]) -> Markup:
    """A metric of each client against its number of rows; at most 1,000 clients, evenly by size."""
    order = np.argsort(rows, kind="stable")
    order = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _MOST_DOTS)).astype(int))]
    x, y = np.asarray(rows, dtype=float)[order], np.asarray(values, dtype=float)[order]
    drawing = Drawing(WIDTH, 200, (46, 16, 16, 36))
    drawing.grid("y")
    drawing.axes.scatter(x, y, s=14, color=COLOURS["s0"], alpha=0.45, linewidths=0)
    drawing.axes.yaxis.set_major_locator(_locator(4))
    if not _log_rows(drawing, x):
        drawing.axes.xaxis.set_major_locator(_locator(5, integer=True))
    drawing.axes.set_xlabel("rows of the client", fontsize=FONT, color=COLOURS["muted"], labelpad=3)
    return drawing.svg(key, f"{metric_name(metric)} of {len(x)} clients against their number of rows.")


def label_bars(key: str, names: Sequence[str], classes: Sequence[str], counts: np.ndarray) -> Markup:
    """Rows of each client, split by label: counts is (clients, classes)."""
    left = 16 + max(text_width(shorten(name)) for name in names)
    totals = counts.sum(axis=1)
    drawing = Drawing(WIDTH, 26 * len(names) + 30, (left, 58, 4, 24))
    drawing.grid("x")
    drawing.name_rows(list(names))
    start = np.zeros(len(names))
    for position in range(len(classes)):
        drawing.axes.barh(range(len(names)), counts[:, position], left=start, height=0.62, color=COLOURS[SERIES[position]])
        start = start + counts[:, position]
    for row, total in enumerate(totals):
        drawing.write(1.02, row, count(total), transform=drawing.axes.get_yaxis_transform(), va="center_baseline")
    drawing.axes.set_xlim(0, max(float(totals.max()), 1.0))
    drawing.axes.xaxis.set_major_locator(_locator(5, integer=True))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{int(n)} of {label}" for label, n in zip(classes, row, strict=True))
        for name, row in zip(names, counts, strict=True)
    )
    return drawing.svg(key, f"Rows of each client by label. {said}.")


def label_map(key: str, names: Sequence[str], classes: Sequence[str], counts: np.ndarray) -> Markup:
    """Share of each label at each client, as shades; clients lie side by side, like beside like. counts is (clients, classes)."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    main = share.argmax(axis=1)
    order = np.lexsort((-share.max(axis=1), main))
    few = len(names) <= 30
    order = np.arange(len(names)) if few else order
    picture = np.zeros((len(classes), len(names), 4))
    picture[..., :3] = _HEAT
    picture[..., 3] = share[order].T
    shown = np.unique(np.linspace(0, len(classes) - 1, min(len(classes), 20)).round().astype(int))
    left = 16 + max(text_width(shorten(classes[i], 14)) for i in shown)
    below = 12 + max(text_width(shorten(name, 14)) for name in names) if few else 30
    drawing = Drawing(WIDTH, float(np.clip(16 * len(classes), 120, 320)) + 8 + below, (left, 10, 8, below))
    axes = drawing.axes
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.set_yticks(shown, [drawing.token(shorten(classes[i], 14)) for i in shown])
    if few:
        axes.set_xticks([])
        for position, name in enumerate(names):
            drawing.write(
                position,
                len(classes) - 0.35,
                shorten(name, 14),
                rotation=90,
                rotation_mode="anchor",
                ha="right",
                va="center_baseline",
            )
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{count(len(names))} clients", fontsize=FONT, color=COLOURS["muted"], labelpad=8)
    return drawing.svg(key, f"Share of each of {len(classes)} labels at each of {len(names)} clients, as shades of one colour.")


def intervals(key: str, label: str, names: Sequence[str], middles: Sequence[float], spreads: Sequence[float]) -> Markup:
    """A dot with a bar to either side for each client: the mean of its target and one standard deviation."""
    left = 16 + max(text_width(shorten(name)) for name in names)
    drawing = Drawing(WIDTH, 26 * len(names) + 40, (left, 54, 6, 34))
    drawing.grid("x")
    drawing.name_rows(list(names))
    rows = range(len(names))
    drawing.axes.hlines(rows, np.subtract(middles, spreads), np.add(middles, spreads), color=COLOURS["s0"], linewidth=2, alpha=0.45)
    drawing.axes.plot(middles, rows, "o", color=COLOURS["s0"], markersize=6)
    for row, middle in enumerate(middles):
        drawing.write(1.02, row, number(middle), transform=drawing.axes.get_yaxis_transform(), va="center_baseline")
    drawing.axes.xaxis.set_major_locator(_locator(5))
    drawing.axes.set_xlabel(label, fontsize=FONT, color=COLOURS["muted"], labelpad=3)
    said = "; ".join(f"{name} {number(middle)}" for name, middle in zip(names, middles, strict=True))
    return drawing.svg(key, f"{label} of each client: {said}.")


def compared(key: str, metric: str, groups: Sequence[str], ways: Sequence[str], values: np.ndarray) -> Markup:
    """Ways to learn, side by side for each client and for all: values is (ways, groups, 2), mean and standard error."""
    left = 16 + max(text_width(shorten(group)) for group in groups)
    step = 11.0
    room = step * len(ways) + 14
    drawing = Drawing(WIDTH, room * len(groups) + 34, (left, 16, 4, 28))
    axes = drawing.axes
    drawing.grid("x")
    drawing.name_rows(list(groups))
    for boundary in range(1, len(groups)):
        axes.axhline(boundary - 0.5, color=COLOURS["line"], linewidth=1)
    for position in range(len(ways)):
        rows = np.arange(len(groups)) + (position - (len(ways) - 1) / 2) * step / room
        means, errors = values[position, :, 0], np.nan_to_num(values[position, :, 1])
        colour = COLOURS[SERIES[position % len(SERIES)]]
        axes.hlines(rows, means - errors, means + errors, color=colour, linewidth=2, alpha=0.5)
        axes.plot(means, rows, _MARKERS[position % len(_MARKERS)], color=colour, markersize=6, markeredgewidth=0, linestyle="none")
    axes.margins(x=0.05)
    axes.xaxis.set_major_locator(_locator(5))
    said = "; ".join(f"{way} {number(float(values[position, -1, 0]))}" for position, way in enumerate(ways))
    return drawing.svg(key, f"{metric_name(metric)} of each way to learn. {groups[-1].capitalize()}: {said}.")


def marker(position: int) -> Markup:
    """The sign of the way at this position in :func:`compared`, for a legend in the text."""
    shapes = (
        '<circle cx="6" cy="6" r="4"/>', '<rect x="2.2" y="2.2" width="7.6" height="7.6"/>', '<path d="M6 1l5 5-5 5-5-5z"/>',
        '<path d="M6 1.6l4.8 8.4H1.2z"/>', '<path d="M6 10.4L1.2 2h9.6z"/>', '<path d="M4 1h4v3h3v4H8v3H4V8H1V4h3z"/>',
        '<path d="M3 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
        '<path d="M6 .8l1.4 3.6 3.9.2-3 2.4 1 3.8L6 8.7l-3.3 2.1 1-3.8-3-2.4 3.9-.2z"/>',
    )  # fmt: skip
    colour = SERIES[position % len(SERIES)]
    return Markup(
        f'<svg class="sign" aria-hidden="true" viewBox="0 0 12 12" style="fill: var(--{colour})">{shapes[position % 8]}</svg>'
    )


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)


def _log_rows(drawing: Drawing, values: np.ndarray) -> bool:
    """Use a logarithmic scale where the values span more than a factor of 30; whether it did."""
    if not len(values) or values.min() <= 0 or values.max() / values.min() <= 30:
        return False
    axis = drawing.axes.xaxis
    drawing.axes.set_xscale("log")
    drawing.axes.tick_params(which="minor", length=0)
    axis.set_major_formatter(lambda value, _: count(value) if value >= 1 else number(value))
    axis.set_minor_formatter(lambda value, _: "")
    return True


def _locator(most: int, integer: bool = False) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=integer, min_n_ticks=2)


def _whole_ticks(drawing: Drawing, first: float, last: float) -> None:
    drawing.axes.xaxis.set_major_locator(_locator(6, integer=True))
    if last == first:
        drawing.axes.set_xticks([first])
