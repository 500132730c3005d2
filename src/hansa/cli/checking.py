"""What `hansa check` shows: a job at a client, and what the client's policy says to it."""

from __future__ import annotations

from typing import Any

import click

from hansa.cli import show, tables
from hansa.cli.printable import printable_lines
from hansa.federated.foreseen import Outlook
from hansa.federation.policy import Policy, Refused


def outlook(told: Outlook, policy: Policy, source: str, as_json: bool) -> None:
    """source: where the policy is from; empty for none."""
    if as_json:
        show.as_object(_plain(told, policy, source))
        return
    ask = told.ask
    head = {
        "job": f"{ask.job or 'without a name'}: {ask.learner}, {ask.algorithm}",
        "rows": ", ".join(f"{split} {rows:,}" for split, rows in told.rows.items()),
        "columns": ", ".join(ask.columns or ()) or "none with names: the features are one array",
        "label": "none" if ask.label is None else ask.label or "has no name",
        "policy": source or "none, and everything is allowed",
    }
    _lines(head)
    click.echo()
    _lines({one.asks: _listed(one.refused) or "allowed" for one in told.asked})
    if told.refused:
        click.echo()
        # A rule says the same of several things that are asked: it is shown once.
        said = {
            f"{r.rule}: {r.message}" + (f" ({r.private})" if r.private else ""): None for one in told.asked for r in one.refused
        }
        click.echo("\n".join(printable_lines(sentence) for sentence in said))
    if policy.metrics is not None:
        allowed = ", ".join(policy.metrics) or "none"
        click.echo(f"\nWhich metrics there are is known after the work; a result with others than these stays here: {allowed}")


def _lines(said: dict[str, str]) -> None:
    table = tables.table()
    table.show_header = False
    for name, value in said.items():
        table.add_row(name, printable_lines(value))
    tables.show(table)


def _listed(refused: tuple[Refused, ...]) -> str:
    return f"refused: {', '.join(one.rule for one in refused)}" if refused else ""


def _plain(told: Outlook, policy: Policy, source: str) -> dict[str, Any]:
    return {
        "job": told.ask.job, "learner": told.ask.learner, "algorithm": told.ask.algorithm, "rows": dict(told.rows),
        "columns": list(told.ask.columns or ()), "label": told.ask.label, "policy": source or None,
        "metrics": None if policy.metrics is None else list(policy.metrics), "refused": told.refused,
        "asked": [
            {"asks": one.asks, "refused": [{"rule": r.rule, "message": r.message, "private": r.private} for r in one.refused]}
            for one in told.asked
        ],
    }  # fmt: skip
