"""Drawings for a web page: Matplotlib figures as inline SVG that take the page's colours and fonts.

A drawing uses colours by name (:data:`COLOURS`); in the SVG each is a CSS variable of that name, so that one drawing serves the
light page, the dark page and print. Text from the run (names of clients, labels) never passes through Matplotlib: a token stands
for it, and the escaped text takes the token's place, so no formula, no missing glyph and no markup can come of it.
"""

from __future__ import annotations

import io
import re
import unicodedata
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES: Final = tuple(f"s{number}" for number in range(10))
COLOURS: Final = {
    name: f"#{0x0A0B00 + number:06x}" for number, name in enumerate(("ink", "muted", "line", "card", *SERIES))
}  # fmt: skip
"""Colour name -> the stand-in that is drawn, and that becomes ``var(--name)``."""
FONT: Final = 11.0
_CHARACTER: Final = 0.56  # mean advance of a character of the usual system fonts, in font sizes


def text_width(text: str, size: float = FONT) -> float:
    """About how wide a text is drawn; East Asian characters count for two."""
    return size * _CHARACTER * sum(1.75 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)


def shorten(text: str, most: int = 22) -> str:
    """The text, or its two ends with an ellipsis between them: ids often differ at their ends only."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - most // 2 - 1) :]}"


class Drawing:
    """One set of axes on a canvas of ``width`` x ``height`` CSS pixels, with margins (left, right, top, bottom) in pixels."""

    def __init__(self, width: float, height: float, margins: tuple[float, float, float, float]) -> None:
        from matplotlib.figure import Figure

        left, right, top, bottom = margins
        self.width, self.height = width, height
        self._tokens: list[str] = []
        self._figure = Figure(figsize=(width / 72, height / 72))
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        self.axes: Axes = self._figure.add_axes(box)
        self.axes.patch.set_visible(False)
        self._figure.patch.set_visible(False)
        for side, spine in self.axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(COLOURS["line"])
        self.axes.tick_params(length=0, pad=6, labelsize=FONT, labelcolor=COLOURS["muted"])
        self.axes.set_axisbelow(True)

    def grid(self, axis: Any) -> None:
        self.axes.grid(axis=axis, color=COLOURS["line"], linewidth=1)

    def token(self, text: str) -> str:
        """What to draw in the place of a text that comes from the run."""
        self._tokens.append(text)
        return f"@{len(self._tokens) - 1}@"

    def write(self, x: float, y: float, text: str, *, size: float = FONT, colour: str = "ink", **options: Any) -> None:
        """Any text at data coordinates (or what ``transform`` says)."""
        self.axes.text(x, y, self.token(text), fontsize=size, color=COLOURS[colour], **options)

    def name_rows(self, names: list[str]) -> None:
        """Names at the left of rows 0, 1, ... from the top down."""
        self.axes.set_ylim(len(names) - 0.5, -0.5)
        self.axes.set_yticks(range(len(names)), [self.token(shorten(name)) for name in names])
        for label in self.axes.get_yticklabels():
            label.set_color(COLOURS["ink"])

    def svg(self, key: str, label: str) -> Markup:
        """The drawing as an ``<svg>`` element. ``key`` makes its ids unique on the page; ``label`` says what is to be seen."""
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # a user's own style must not change the report
            matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": key, "path.simplify": True})
            self._figure.savefig(buffer, format="svg", metadata={"Date": None})
        text = buffer.getvalue()
        body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
        body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
        body = re.sub(r' id="(?![mp][0-9a-f]{10}|image)[^"]*"', "", body)  # names of groups, which nothing refers to
        body = re.sub(r'( id="|url\(#|href="#)', rf"\1{key}-", body).replace("xlink:href", "href")
        body = re.sub(r"font-family: [^;]*; |font-weight: [^;]*; | transform=\"rotate\(-0 [^)]*\)\"", "", body)
        body = re.sub(r"font: [^;]*?([\d.]+)px[^;]*", r"font-size: \1px", body)
        # Hundredths of a pixel are enough for coordinates; text between the tags is left as it is.
        body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)
        body = re.sub(r"<g/>|<g>\s*</g>", "", re.sub(r"\n\s*", "\n", body))
        for name, stand_in in COLOURS.items():
            body = body.replace(stand_in, f"var(--{name})")
        body = re.sub(r"@(\d+)@", lambda match: str(escape(self._tokens[int(match[1])])), body)
        return Markup(
            f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'style="max-width: {self.width * 1.25:g}px">{body}</svg>'
        )
