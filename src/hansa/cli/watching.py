"""A run of a server as it goes on: a live table on a terminal, a line for every event elsewhere.

What clients say of refusals and failures is others' text: it is shown without anything that a terminal would obey.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hansa.cli.printable import printable
from hansa.core.errors import HansaError
from hansa.tracking import labels

if TYPE_CHECKING:
    from rich.table import Table

    from hansa.federated.admin import Event

LOOK = 1.0
"""Seconds between two looks at the members."""

MOST_CLIENTS, MOST_SAYINGS, MOST_TEXT = 30, 5, 120

_UNTOLD = ("bytes_down", "bytes_up", "metrics")


@dataclass(frozen=True)
class Picture:
    """What is known of a run. clients: who takes part, as far as that is settled. sayings: the newest refusals and failures."""

    run: str
    stage: str = "waiting"
    round: int = 0
    since: float = 0.0
    clients: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    sayings: tuple[str, ...] = ()
    message: str = ""


def after(picture: Picture, event: Event) -> Picture:
    """The picture with one more event."""
    told, client = event.content, printable(str(event.content.get("client", "")))
    if event.kind == "round":
        numbers = {name: value for name, value in told.items() if "/" in name and not name.startswith("time/")}
        shown = picture.metrics | {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}
        return replace(picture, stage="training", round=int(told["round"]), since=event.time, metrics=shown)
    if event.kind in ("waiting", "began"):
        return replace(picture, stage="waiting" if event.kind == "waiting" else "began", clients=tuple(told["clients"]))
    if client:
        which = "refusals" if event.kind == "refused" else "failures"
        counts = getattr(picture, which)
        said = (
            f"{client} {event.kind} ({printable(str(told.get('rule', told.get('kind', ''))))}): {printable(str(told['message']))}"
        )
        both = (*picture.sayings, said)[-MOST_SAYINGS:]
        return replace(picture, sayings=both, **{which: counts | {client: counts.get(client, 0) + 1}})
    return replace(picture, stage=event.kind, message=printable(str(told.get("message", ""))))


def table(picture: Picture, members: Sequence[Any], now: float) -> Table:
    """The picture as a table; members: as the server lists them, ``asked`` telling since when one has not answered."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title=Text(f"run {picture.run}  {_stage(picture, now)}"), title_justify="left", expand=False)
    for name in ("client", "last heard", "does", "refusals", "failures"):
        found.add_column(name, justify="left" if name in ("client", "does") else "right")
    known = {member.name: member for member in members}
    for name in picture.clients[:MOST_CLIENTS]:
        member, counts = known.get(name), (picture.refusals.get(name, 0), picture.failures.get(name, 0))
        heard, does = (_heard(member, now), _does(member, now)) if member is not None else ("", "")
        found.add_row(Text(name), heard, does, *(str(count or "") for count in counts))
    metrics = "  ".join(f"{name} {labels.number(value)}" for name, value in sorted(picture.metrics.items()))
    more = len(picture.clients) - MOST_CLIENTS
    lines = [*([f"and {more} more clients"] if more > 0 else []), *([metrics] if metrics else []), *picture.sayings]
    found.caption = Text("\n".join(_short(line) for line in lines))
    found.caption_justify = "left"
    return found


def _stage(picture: Picture, now: float) -> str:
    if picture.stage == "training":
        return f"round {picture.round} is over, {labels.duration(max(0.0, now - picture.since))} ago"
    if picture.stage == "began":
        return "its clients tell of their data"
    if picture.stage == "waiting":
        return f"waits for clients, {len(picture.clients)} are there"
    return f"{picture.stage}{': ' if picture.message else ''}{_short(picture.message)}"


def _heard(member: Any, now: float) -> str:
    return f"{labels.duration(max(0.0, now - member.seen))} ago" if member.seen else "never"


def _does(member: Any, now: float) -> str:
    if member.revoked:
        return "is shut out"
    return f"works, for {labels.duration(max(0.0, now - member.asked))}" if member.asked else "waits"


def line(event: Event) -> str:
    """An event as one line."""
    shown = {name: value for name, value in event.content.items() if not name.startswith("time/") and name not in _UNTOLD}
    parts = [f"{name} {_value(value)}" for name, value in shown.items()]
    return f"{time.strftime('%H:%M:%S', time.localtime(event.time))}  {event.kind:<9} {'  '.join(parts)}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + " ..."


def live(run: str, events: Iterable[Event], members: Callable[[], Sequence[Any]]) -> None:
    """Show a run on a terminal until its events end. members: asked now and then from another thread."""
    from rich.live import Live

    picture, known, over = Picture(run), list[Any](), threading.Event()
    with Live(table(picture, known, time.time()), refresh_per_second=4) as screen:

        def look() -> None:
            nonlocal known
            while not over.is_set():
                try:
                    known = list(members())
                except HansaError:
                    over.wait(LOOK)  # who reads the events waits for the server as well; the ages on the screen grow
                screen.update(table(picture, known, time.time()))
                over.wait(LOOK)

        looking = threading.Thread(target=look, name="members", daemon=True)
        looking.start()
        try:
            for event in events:
                picture = after(picture, event)
                screen.update(table(picture, known, time.time()))
        finally:
            over.set()
            looking.join(LOOK)
