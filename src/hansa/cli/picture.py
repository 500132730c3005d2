"""The report's figures of the data as one SVG file that stands alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hansa.core.errors import InputError

PALETTE = (
    "--card: #ffffff; --ink: #1b2026; --muted: #5d6670; --line: #e3e0d9; --s0: #20588f; --s1: #d18a1c; --s2: #2b8c7c; --s3: #94488a; "
    "--s4: #c1553c; --s5: #6b7d2a; --s6: #5aa0d2; --s7: #8a6d54; --s8: #8c929b; --s9: #3f4380;"
)
"""A file has no page around it to take its colours from: the report's, on white."""

MARGIN, LINE = 16.0, 22.0


def write_picture(described: dict[str, Any], path: Path) -> None:
    """Draw what the report shows of the clients' data into an SVG file. InputError where it cannot be written.

    described: as :meth:`hansa.data.describe.Description.plain` gives it.
    """
    from hansa.tracking.sections import data

    if path.suffix.lower() != ".svg":
        raise InputError(f"--picture {path}: only SVG is drawn (write {path.with_suffix('.svg')})")
    shown: Any = data(described)
    try:
        path.write_text(_joined(shown["figures"], shown["legend"]), "utf-8")
    except OSError as error:
        raise InputError(f"--picture {path}: cannot be written ({error.strerror}); name a file in a folder that exists") from None


def _joined(figures: list[tuple[str, Any]], legend: list[str]) -> str:
    """The figures below each other, each under its caption, and the legend of the first."""
    from markupsafe import escape

    parts, y, widest = [], MARGIN, 0.0
    for place, (caption, svg) in enumerate(figures):
        width, height = (float(number) for number in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', str(svg))[0])
        parts.append(f'<text x="{MARGIN}" y="{y + 13}" font-size="13" font-weight="600" fill="var(--ink)">{escape(caption)}</text>')
        y += LINE
        if legend and place == 0:
            parts.append(_legend(legend, y))
            y += LINE
        body = str(svg).replace("<svg ", f'<svg x="{MARGIN}" y="{y}" width="{width}" height="{height}" ', 1)
        parts.append(body)
        y, widest = y + height + MARGIN, max(widest, width)
    size = f"{widest + 2 * MARGIN:g} {y:g}"
    width_, height_ = size.split()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{width_}" height="{height_}" '
        f'font-family="system-ui, sans-serif" style="{PALETTE}"><rect width="100%" height="100%" fill="var(--card)"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _legend(legend: list[str], y: float) -> str:
    from markupsafe import escape

    from hansa.tracking.svg import text_width

    parts, x = [], MARGIN
    for place, label in enumerate(legend):
        parts.append(f'<rect x="{x:g}" y="{y}" width="11" height="11" rx="2" fill="var(--s{place})"/>')
        parts.append(f'<text x="{x + 16:g}" y="{y + 10}" font-size="11" fill="var(--ink)">{escape(label)}</text>')
        x += 34 + text_width(label)
    return "".join(parts)
