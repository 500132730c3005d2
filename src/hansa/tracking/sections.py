"""The sections of the report: what the files of a run tell, brought into the order in which a reader asks for it.

Each function gives what one section of the template shows, or None where the files tell nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hansa.tracking import advice, figures, labels, progress

FEW: Final = 30
"""Up to so many clients, each is named in every figure and table; beyond, their distribution and both ends are shown."""
_ENDS: Final = 10
_MOST_BARS: Final = 8  # labels that colours can tell apart
_MOST_FAILURES: Final = 20
_MOST_GROUPS: Final = 12
_MOST_ROWS: Final = 100  # of a table of fits; its file holds all
_SPLITS: Final = ("test", "validation", "central", "train")
_UNITS: Final = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def _primary(names: Sequence[str]) -> str:
    """The metric that a reader asks for first: AUC or accuracy before a loss."""
    return next((name for name in names if not labels.lower_is_better(name)), names[0])


def headline(told: Any, records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """At most four final metrics over all clients, of the split that says most."""
    if told and told.get("overall"):
        return {"split": told["split"], "metrics": _numbers(told["overall"])[:4]}
    for split in _SPLITS:
        last = {k.removeprefix(f"{split}/"): v for k, v in (records[-1] if records else {}).items() if k.startswith(f"{split}/")}
        if last:
            return {"split": split, "metrics": _numbers(last)[:4]}
    return None


def _numbers(metrics: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = [(name, value) for name, value in metrics.items() if name != "rows" and value is not None]
    return sorted(found, key=lambda item: labels.lower_is_better(item[0]))


def curves(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A panel for each metric, losses last, with all splits in which it was measured."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for record in records:
        for name, value in record.items():
            split, slash, metric = name.partition("/")
            if slash and split not in ("clock", "time") and isinstance(value, int | float):
                rounds, values = panels.setdefault(metric, {}).setdefault(split, ([], []))
                rounds.append(record["round"])
                values.append(float(value))
    ordered = sorted(panels, key=labels.lower_is_better)
    return [{"name": name, "svg": figures.curves(f"curve{i}", name, panels[name])} for i, name in enumerate(ordered)]


def virtual_time(records: list[dict[str, Any]], job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For a run with a clock: the watched metric over virtual time, and when it came near to its best."""
    name = watched(records, job.get("evaluation", {}))
    if not name or "clock/elapsed" not in records[-1]:
        return []
    unit, seconds = next((u, s) for u, s in _UNITS if records[-1]["clock/elapsed"] >= 2 * s or s == 1)
    _, _, metric = name.partition("/")
    lines = {
        split: ([r["clock/elapsed"] / seconds for r in shown], [float(r[f"{split}/{metric}"]) for r in shown])
        for split in _SPLITS
        if (shown := [r for r in records if f"{split}/{metric}" in r])
    }
    panels = [{"name": f"learning by virtual time: {metric}", "svg": figures.curves("clock0", metric, lines, unit)}]
    reached = times_to(records, name)
    if reached:
        names = [f"{row['share']:.0%}: {labels.number(row['value'])}" for row in reached]
        told = [f"{labels.duration(row['seconds'])}, {labels.in_bytes(row['bytes_up'] + row['bytes_down'])}" for row in reached]
        title = f"Virtual time, and bytes moved, until {name.replace('/', ' ')} came within a share of its best"
        svg = figures.times("clock1", title, names, [row["seconds"] / seconds for row in reached], told, unit)
        panels.append({"name": title, "svg": svg})
    return panels


def timing(records: list[dict[str, Any]], job: Mapping[str, Any], environment: Any) -> dict[str, Any] | None:
    """Where the rounds' time went, and what would take less."""
    told = advice.shares(records)
    if not told:
        return None
    return {
        "svg": figures.time_parts("time0", told), "parts": advice.means(told),
        "advice": advice.advice(records, job, (environment or {}).get("usable_cores") or 1),
    }  # fmt: skip


def fits(told: Any) -> dict[str, Any] | None:
    """The table of a search, the best settings first, or of one model per client, those that failed first."""
    if not told or not told.get("table"):
        return None
    return _settings(told) if "by" in told else _models(told["table"])


def _settings(told: Mapping[str, Any]) -> dict[str, Any]:
    table, by = told["table"], told["by"]
    down = labels.lower_is_better(by)
    ordered = sorted(table, key=lambda row: _rank(math.nan if row["mean"] is None else row["mean"], down))
    paths = list(table[0]["settings"])
    rows = [
        {
            "texts": [str(row["settings"][path]) for path in paths],
            "numbers": [labels.number(row["mean"]) + (f" ± {labels.number(row['error'])}" if row["error"] else "")],
            "said": row["failure"],
        }
        for row in ordered
    ]
    judged = f"{told['folds']} folds of every client’s training rows" if told["folds"] else "the validation rows"
    return {
        "title": "Settings", "note": f"{len(table)} settings, judged on {judged}; the best first.", "texts": paths,
        "numbers": [labels.metric_name(by)], "rows": rows[:_MOST_ROWS], "more": max(0, len(rows) - _MOST_ROWS),
    }  # fmt: skip


def _models(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for row in table for name in row["metrics"]))
    failed = [row for row in table if row["status"] == "failed"]
    rows = [
        {
            "texts": [row["client"]],
            "numbers": [
                labels.count(row["rows"]),
                labels.count(row["rounds"]),
                *(labels.number(row["metrics"].get(n)) for n in names),
            ],
            "said": row["ended"] if row["status"] == "failed" else "",
        }
        for row in [*failed, *(row for row in table if row["status"] != "failed")]
    ]
    judged = "; metrics of each client’s own test rows" if names else ""
    return {
        "title": "Models", "note": f"{len(table) - len(failed)} models for {len(table)} clients{judged}.", "texts": ["client"],
        "numbers": ["rows", "rounds", *map(labels.metric_name, names)], "rows": rows[:_MOST_ROWS],
        "more": max(0, len(rows) - _MOST_ROWS),
    }  # fmt: skip


def watched(records: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any]) -> str | None:
    """The metric that a run is judged by, such as "test/accuracy": the job's own where it chooses the best model or stops early,
    else the one that says most."""
    chosen = f"validation/{evaluation.get('watch')}"
    if (evaluation.get("best") or evaluation.get("patience")) and any(chosen in record for record in records):
        return chosen
    return progress.watched({name: value for record in records for name, value in record.items()})


def times_to(records: Sequence[Mapping[str, Any]], name: str, shares: Sequence[float] = (0.9, 0.95, 0.99)) -> list[dict[str, Any]]:
    """When a metric was first within each share of its best value, a loss at most best / share and anything else at least
    best * share: share, value, round, virtual seconds, and the bytes moved until then, up and down. Nothing where the best value
    is not above 0, so that there is no share of it."""
    down = labels.lower_is_better(name)
    values = [record[name] for record in records if math.isfinite(record.get(name, math.nan))]
    best = (min if down else max)(values, default=0.0)
    if best <= 0:
        return []
    rows = []
    for share in shares:
        moved = {"bytes_up": 0, "bytes_down": 0}
        for record in records:
            moved = {way: total + record[way] for way, total in moved.items()}
            value = record.get(name, math.nan)
            if value <= best / share if down else value >= best * share:
                rows.append({"share": share, "value": value, "round": record["round"], "seconds": record["clock/elapsed"], **moved})
                break
    return rows


def clients(clients: Any, description: Any) -> dict[str, Any] | None:
    if not clients or not clients.get("metrics"):
        return None
    told, overall = clients["metrics"], clients.get("overall") or {}
    names = list(dict.fromkeys(name for row in told.values() for name in row if name != "rows"))
    if not names:
        return None
    primary = _primary(names)
    trained = {} if not description else {c: d.get("rows", {}).get("train") for c, d in description["clients"].items()}
    table = [
        {
            "client": client,
            "train": trained.get(client),
            "rows": row.get("rows"),
            "values": [math.nan if row.get(name) is None else float(row[name]) for name in names],
        }
        for client, row in told.items()
    ]
    chosen = names.index(primary)
    down = labels.lower_is_better(primary)
    table.sort(key=lambda row: _rank(row["values"][chosen], down))
    values = [row["values"][chosen] for row in table]
    sizes = [float(row["rows"] or row["train"] or 1) for row in table]
    many = len(table) > FEW
    shown = []
    if many:
        shown.append(
            (
                f"{labels.metric_name(primary)}, number of clients",
                figures.histogram("client0", labels.metric_name(primary), values, overall.get(primary)),
            )
        )
        shown.append((f"{labels.metric_name(primary)} by size of the client", figures.scatter("client1", primary, sizes, values)))
    else:
        for position, name in enumerate([primary, *(n for n in names if n != primary)][:2]):
            drawn = [row["values"][names.index(name)] for row in table]
            svg = figures.client_dots(f"client{position}", name, [row["client"] for row in table], drawn, sizes, overall.get(name))
            shown.append((labels.metric_name(name), svg))
    counted = [row for row in table if math.isfinite(row["values"][chosen])]
    parts = [("Highest" if not down else "Lowest", counted[:_ENDS]), ("Lowest" if not down else "Highest", counted[-_ENDS:])]
    tables = [(f"{which} {primary}", rows) for which, rows in parts] if many else [("", table)]
    return {
        "split": clients["split"], "metrics": names, "primary": primary, "figures": shown, "tables": tables, "many": many,
        "count": len(table), "unmeasured": len(table) - len(counted),
        "overall": [overall.get(name) for name in names] if overall else None,
        "with_train": any(row["train"] is not None for row in table), "with_rows": any(row["rows"] is not None for row in table),
    }  # fmt: skip


def _rank(value: float, down: bool) -> float:
    """Sorts the best first and the unmeasured last."""
    return math.inf if math.isnan(value) else value if down else -value


def data(description: Any) -> dict[str, Any] | None:
    if not description or not description.get("clients"):
        return None
    clients = description["clients"]
    names = list(clients)
    sizes = [float(sum(n or 0 for n in client.get("rows", {}).values())) for client in clients.values()]
    shown: list[tuple[str, Any]] = []
    legend: list[str] = []
    if any(client.get("labels") for client in clients.values()):
        seen = dict.fromkeys(str(c) for c in description.get("classes") or [])
        seen |= dict.fromkeys(label for client in clients.values() for label in client.get("labels") or {})
        classes = list(seen)
        counts = np.array([[(c.get("labels") or {}).get(label, 0) for label in classes] for c in clients.values()], dtype=float)
        if len(names) <= FEW and len(classes) <= _MOST_BARS:
            shown.append(("Training rows by label", figures.label_bars("labels", names, classes, counts)))
            legend = classes
        else:
            shown.append(("Share of each label", figures.label_map("labels", names, classes, counts)))
    elif any(client.get("target") for client in clients.values()):
        told = {name: c["target"] for name, c in clients.items() if c.get("target") and c["target"].get("mean") is not None}
        means = [float(target["mean"]) for target in told.values()]
        if len(told) <= FEW:
            spreads = [float(target.get("std") or 0.0) for target in told.values()]
            label = "Mean of the target, and one standard deviation"
            shown.append(("Target", figures.intervals("target", label, list(told), means, spreads)))
        else:
            shown.append(("Target", figures.histogram("target", "mean of the client's target", means)))
    if len(names) > FEW:
        shown.append(("Sizes of the clients", figures.histogram("sizes", "rows of the client", sizes)))
    sample = labels.sampled(description)
    if sample:
        shown = [(f"{title}, of {sample}", svg) for title, svg in shown]
    splits = list(dict.fromkeys(s for c in clients.values() for s, n in c.get("rows", {}).items() if n))
    counted = list(clients.values())[: 1 if description.get("columns") else None]  # rows that all clients share count once
    return {
        "figures": shown, "legend": legend, "clients": len(names), "sample": sample, "features": len(description.get("features") or []),
        "rows": {split: sum(c.get("rows", {}).get(split) or 0 for c in counted) for split in splits},
        "smallest": min(sizes), "largest": max(sizes), "task": description.get("task"),
        "table": [(name, [client.get("rows", {}).get(split, 0) for split in splits]) for name, client in clients.items()]
        if len(names) <= FEW else [],
    }  # fmt: skip


def sharing(sharing: Any, records: list[dict[str, Any]]) -> dict[str, Any] | None:
    moved = {
        way: [record[way] for record in records if isinstance(record.get(way), int | float)] for way in ("bytes_up", "bytes_down")
    }
    if not sharing and not any(moved.values()):
        return None
    traffic = [
        {"name": name, "mean": sum(moved[way]) / len(moved[way]), "total": sum(moved[way])}
        for way, name in (("bytes_up", "From the clients"), ("bytes_down", "To the clients"))
        if moved[way]
    ]
    guarantees = (sharing or {}).get("guarantees", [])
    return {
        "left": (sharing or {}).get("left_the_clients", []),
        "stayed": (sharing or {}).get("stayed", []),
        "guarantees": guarantees,
        "formal": any(g["guarantee"] not in ("none", "heuristic") for g in guarantees),
        "told": sharing is not None,
        "traffic": traffic,
    }


def failures(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What went wrong, the most frequent first: equal errors are one row."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    failed = set()
    for record in records:
        for failure in record.get("failures") or []:
            failed.add(record["round"])
            row = rows.setdefault((failure["kind"], failure["message"]), {"times": 0, "rounds": [], "clients": {}})
            row["times"] += 1
            row["rounds"].append(record["round"])
            row["clients"] |= dict.fromkeys(map(str, failure["clients"]))
    ordered = sorted(rows.items(), key=lambda item: -item[1]["times"])
    return {
        "count": sum(row["times"] for row in rows.values()), "rounds": len(failed), "played": len(records), "kinds": len(rows),
        "shown": [
            {"kind": kind, "message": message, "times": row["times"], "first": row["rounds"][0], "last": row["rounds"][-1],
             "who": ", ".join(list(row["clients"])[:3]), "others": max(0, len(row["clients"]) - 3)}
            for (kind, message), row in ordered[:_MOST_FAILURES]
        ],
    }  # fmt: skip


def comparison(comparison: Any) -> dict[str, Any] | None:
    if not comparison or not comparison.get("rows"):
        return None
    rows, clients = comparison["rows"], list(comparison.get("clients", []))
    panels = []
    for position, metric in enumerate(comparison["metrics"]):
        groups = [*(clients if len(clients) <= _MOST_GROUPS else []), "overall"]
        cells = [[_pair(row["values"].get(metric, {}).get(group)) for group in groups] for row in rows]
        values = np.array(cells, dtype=float)
        better = np.nanmin if labels.lower_is_better(metric) else np.nanmax
        # A difference that the shown digits hide is none: both are best.
        best = [
            [labels.number(mean) == labels.number(float(better(column))) for mean in column]
            if np.isfinite(column).any()
            else [False] * len(rows)
            for column in values[:, :, 0].T
        ]
        titles = ["all clients" if group == "overall" else group for group in groups]
        svg = figures.compared(f"compare{position}", metric, titles, [row["name"] for row in rows], values)
        table = [
            {"name": row["name"], "cells": [(*values[i, j].tolist(), best[j][i]) for j in range(len(groups))]}
            for i, row in enumerate(rows)
        ]
        panels.append({"metric": metric, "svg": svg, "groups": titles, "table": table})
    return {"sentence": comparison.get("sentence"), "ways": [row["name"] for row in rows], "panels": panels}


def _pair(value: Any) -> tuple[float, float]:
    if value is None or value[0] is None:
        return math.nan, math.nan
    return float(value[0]), math.nan if len(value) < 2 or value[1] is None else float(value[1])


def environment(told: Any) -> list[tuple[str, str]]:
    if not told:
        return []
    cores = told.get("cores")
    usable = told.get("usable_cores")
    lines = [
        ("Hansa", told.get("hansa")),
        ("Python", told.get("python")),
        ("Platform", told.get("platform")),
        ("Processor", told.get("processor")),
        ("Cores", f"{usable} of {cores}" if usable and usable != cores else cores),
        ("Memory", labels.in_bytes(told["memory"]) if told.get("memory") else None),
        ("Packages", ", ".join(f"{name} {version}" for name, version in told.get("packages", {}).items())),
        ("BLAS", ", ".join(f"{b['name']} {b['version']} ({b['threads']} threads)" for b in told.get("blas", []))),
        ("Commit", told.get("commit")),
        ("Command", told.get("command")),
    ]
    return [(name, str(value)) for name, value in lines if value]
