"""The page that the benchmark writes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.startup import TARGETS as STARTUP

Results = Mapping[str, Mapping[str, list[dict[str, Any]]]]
WORK = {
    "W1": "100 IID clients of 600 rows, 10 a round, 2NN 784-200-200-10 (199,210 params), E = 1, B = 10, SGD 0.1",
    "W2": "1,000 IID clients of 60 rows, 100 a round, softmax regression (7,850 params), E = 1, B = 20, SGD 0.1",
    "W3": "W1's clients with the CNN of McMahan et al. 2017 (1,663,370 params), B = 10",
    "W4": "W2's model with 1,000,000 synthetic clients of 60 rows, 1,000 a round; a client's rows are drawn when it is loaded, which is "
    "most of the time here; the accuracy is that on rows nobody trained on. Flower and FedJAX hold every client, so they are left out",
}


KINDS = ("Hansa MLP", "Hansa nn.Module", "Hansa JAX")
PEERS = ("Flower", "pfl-research", "FedJAX", "plain PyTorch")
TARGETS = {
    "W1": (("Hansa", "Flower", 5.5), ("Hansa", "pfl-research", 3.0), ("Hansa nn.Module", "Flower", 3.0)),
    "W2": (("Hansa", "Flower", 100.0), ("Hansa", "pfl-research", 10.0)),
    "W3": (("Hansa", PEERS, 1.0),),
}
"""Workload -> whose best, times as fast as the best of whom."""

LIGHT = 1 / 3
"""Of Flower's peak memory, at most."""


def page(
    results: Results, aggregation: dict[str, Any], startup: Mapping[str, float], versions: dict[str, str], machine: str
) -> str:
    """Markdown: a table per workload, the targets, aggregation, start-up, and how it was measured."""
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    parts = [
        "# Benchmarks",
        "Written by `make bench`; do not edit. Fashion-MNIST, the same rows, models, cohort sizes and hyper-parameters for all; the final "
        "accuracy on the 10,000 test rows is the check that the work is the same. Contenders take turns (A B C A B C ...); figures are "
        "medians over the repetitions, with the smallest and the largest one in brackets.",
        f"Machine: {machine}. Versions: {listed}. One BLAS thread a process.",
        "*Round* is training and aggregation without evaluation. *First round* is from the start of the process to the end of its first "
        "round, reading the data included. *Peak memory* is that of all the contender's processes together (proportional set size).",
    ]
    for workload, by_name in results.items():
        repetitions = max(len(runs) for runs in by_name.values())
        said = _table(by_name), *_ratios(by_name), *_targets(workload, by_name)
        parts += [f"## {workload}", f"{WORK[workload]}. {repetitions} repetitions.", *said]
    ours, limit = aggregation["ours"], aggregation["limit"]
    parts += [
        "## Aggregation alone",
        f"The weighted sum of 100 updates of 1,663,370 float32 ({aggregation['bytes'] / 1e6:.0f} MB): {ours * 1e3:.0f} ms, NumPy's plain "
        f"`sum` of the same array {limit * 1e3:.0f} ms: {ours / limit:.2f} times the limit (target: at most 1.5).",
        "## Start-up",
        "From the start of a process, with a warm file cache: "
        + "; ".join(
            f"{kind} {seconds:.2f} s (target: at most {STARTUP[kind]:g} s; {_met(seconds <= STARTUP[kind])})"
            for kind, seconds in startup.items()
        )
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _good(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if "error" not in run]


def _spread(values: list[float], scale: float, digits: int) -> str:
    low, middle, high = (f"{v * scale:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}-{high})"


def _table(by_name: Mapping[str, list[dict[str, Any]]]) -> str:
    rows = ["| | round, ms | first round, s | peak memory, MB | accuracy |", "|---|---:|---:|---:|---:|"]
    for name, runs in by_name.items():
        good = _good(runs)
        if not good:
            rows.append(f"| {name} | failed: {runs[-1]['error'] if runs else 'not run'} | | | |")
            continue
        rows.append(
            f"| {name} | {_spread([r['round'] for r in good], 1e3, 1)} | {_spread([r['first_round'] for r in good], 1, 1)} "
            f"| {_spread([r['peak'] for r in good], 1e-6, 0)} | {statistics.median(r['accuracy'] for r in good):.3f} |"
        )
    return "\n".join(rows)


def _medians(by_name: Mapping[str, list[dict[str, Any]]], figure: str) -> dict[str, float]:
    return {name: statistics.median(r[figure] for r in _good(runs)) for name, runs in by_name.items() if _good(runs)}


def _best(middle: Mapping[str, float], names: str | tuple[str, ...]) -> str | None:
    return min((name for name in middle if name.startswith(names)), key=middle.__getitem__, default=None)


def _targets(workload: str, by_name: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    middle, memory, lines = _medians(by_name, "round"), _medians(by_name, "peak"), []
    for ours, theirs, wanted in TARGETS.get(workload, ()):
        own, other = _best(middle, ours), _best(middle, theirs)
        if own is not None and other is not None:
            ratio = middle[other] / middle[own]
            lines.append(f"Target {wanted:g}: {own} is {ratio:.2f} times as fast as {other}; {_met(ratio >= wanted)}.")
    flower = _best(memory, "Flower")
    for own in (_best(middle, kind) for kind in KINDS) if flower is not None else ():
        if own is not None:
            share = memory[own] / memory[flower]
            lines.append(f"Target: at most a third of Flower's peak memory: {own} takes {share:.2f} of it; {_met(share <= LIGHT)}.")
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _ratios(by_name: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    middle = _medians(by_name, "round")
    saving = [r["with_saving"] for name, runs in by_name.items() if name.startswith("Hansa MLP, inline") for r in _good(runs)]
    lines = []
    for kind in KINDS:
        best = _best(middle, kind)
        if best is None:
            continue
        against = []
        for peer in ("Flower", "pfl-research", "FedJAX", "hand-written JAX", "plain PyTorch"):
            fastest = _best(middle, peer)
            if fastest is not None:
                against.append(f"{middle[fastest] / middle[best]:.1f} times as fast as {fastest}")
        if against:
            lines.append(f"**{best}** is {', '.join(against)}.")
    if saving:
        lines.append(
            f"A whole round of Hansa's `run` also saves the state durably (fsync), so that nothing is lost: with it the inline MLP takes "
            f"{statistics.median(saving) * 1e3:.1f} ms a round."
        )
    return ["\n".join(f"- {line}" for line in lines)] if lines else []
