"""The report of a run: one HTML file that opens anywhere, offline, and loads nothing.

Everything comes from the run folder, so the same folder gives the same bytes. What a file does not tell is left out:

description.json  {"task", "features": [...], "classes": [...] or null, "rows", "clients": {id: {"rows": {split: n},
                  "labels": {label: n} or "target": {"mean", "std"}}}}, and where these are a sample "population", the number of all
clients.json      {"split": "test", "metrics": {id: {metric: value, ..., "rows": n}}, "overall": {metric: value}}
sharing.json      {"left_the_clients": [...], "stayed": [...], "guarantees": [{"transform", "guarantee"}]}
comparison.json   {"metrics": [...], "clients": [...], "sentence": "...",
                  "rows": [{"name", "values": {metric: {client or "overall": [mean, standard error]}}}]}
table.json        of a search or of one model per client, see :mod:`hansa.trials` and :mod:`hansa.each`
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hansa.tracking import figures, labels, sections
from hansa.tracking.folder import RunFolder


def write_report(folder: RunFolder) -> Path:
    """Write ``report.html`` into a run folder and give its path. Raises :class:`InputError` where a file is damaged."""
    folder.write_text("report.html", _template().render(contents(folder)))
    return folder.path / "report.html"


@cache
def _template() -> Any:
    """Kept: it takes longer to compile than to fill in, and a search writes many reports."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("hansa.tracking"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {
        "number": labels.number, "count": labels.count, "bytes": labels.in_bytes, "duration": labels.duration, "metric": labels.metric_name,
        "split_name": labels.split_name,
    }  # fmt: skip
    templates.globals |= {"marker": figures.marker, "series": figures.SERIES}
    return templates.get_template("report.html.j2")


def contents(folder: RunFolder) -> dict[str, Any]:
    """What the template shows, section by section; None for a section about which the folder says nothing."""
    records, job = folder.metrics(), folder.job()

    def optional(name: str) -> Any:
        return folder.read_json(name) if folder.has(name) else None

    description, clients = optional("description.json"), optional("clients.json")
    summary = folder.summary()
    return {
        "summary": summary,
        "started": summary.started.replace("T", " ")[:16],
        "error": folder.status()["error"],
        "learner": _called(job.get("learner")),
        "algorithm": _called(job.get("algorithm")),
        "rows": description.get("rows") if description else None,
        "parties": _parties(description, clients),
        "headline": sections.headline(clients, records),
        "comparison": sections.comparison(optional("comparison.json")),
        "curves": sections.curves(records) + sections.virtual_time(records, job),
        "fits": sections.fits(optional("table.json")),
        "timing": sections.timing(records, job, optional("environment.json")),
        "clients": sections.clients(clients, description),
        "data": sections.data(description),
        "sharing": sections.sharing(optional("sharing.json"), records),
        "failures": sections.failures(records),
        "job": folder.job_text().strip(),
        "environment": sections.environment(optional("environment.json")),
    }


def _parties(description: Any, clients: Any) -> int | None:
    if description:
        return int(description.get("population", len(description["clients"])))
    return len(clients["metrics"]) if clients else None


def _called(part: Any) -> str | None:
    name = part.get("name") if isinstance(part, Mapping) else part
    return str(name).replace("_", " ") if name else None
