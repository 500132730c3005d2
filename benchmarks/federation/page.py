"""The page that the benchmark of the federation writes."""

from __future__ import annotations

import os
import platform
import statistics
from importlib.metadata import version
from typing import Any


def page(loads: dict[str, dict[str, Any]], beside: dict[str, dict[str, Any]], rounds: int) -> str:
    """Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "sqlalchemy", "cryptography", "numpy"))
    lines = [
        "# Benchmarks of the federation",
        "",
        "Written by `make bench-federation`; do not edit.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; Python "
        f"{platform.python_version()}, {versions}. Server, clients and network are all on it (loopback), and share its cores. TLS with a "
        "certificate for every client; SQLite with full synchronisation; every result is verified, durable on disk and checked against "
        "the model before it is acknowledged.",
        "",
        "## Load",
        "",
        "Every client is connected all the time and takes part in every round; it fetches the model, and sends an update of the same size "
        "which takes it no training. *Limit*: the same bytes down and up over as many open connections, by gRPC streaming with TLS and "
        f"nothing else. Medians of {rounds - 1} rounds after one that warms up, of both.",
        "",
        "| | parameters | round, s | rounds a minute | of the limit | `Next` p50 / p99, s | upload p50 / p99, s | server CPU a round, s | "
        "server memory, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, told in loads.items():
        seconds, raw, cpu = (statistics.median(told[what]) for what in ("seconds", "raw", "cpu"))
        lines.append(
            f"| {name} | {told['parameters']:,} | {seconds:.2f} | {60 / seconds:.1f} | {raw / seconds:.0%} ({raw:.2f} s) | "
            f"{told['next'][0]:.2f} / {told['next'][1]:.2f} | {told['upload'][0]:.2f} / {told['upload'][1]:.2f} | {cpu:.1f} | "
            f"{told['peak'] / 1e6:,.0f} |"
        )
    lines += [
        "",
        "`Next` is from the question to the task, and so holds the wait for all the other clients of the round before. An upload is from "
        "the first byte of the result to the answer to its report.",
        "",
        "## Beside Flower",
        "",
        "W1's perceptron (199,210 parameters) and rows (600 of Fashion-MNIST a client, E = 1, B = 10), every client in every round, each "
        "in processes of its own on this machine. Flower: SuperLink, SuperNodes and their app processes, without TLS; Hansa: server and "
        f"clients with mutual TLS. Seconds a round, medians of {rounds - 1}.",
        "",
        "| clients | Flower | Hansa | ratio |",
        "|---:|---:|---:|---:|",
    ]
    for nodes, told in beside.items():
        theirs, ours = statistics.median(told["flower"]), statistics.median(told["hansa"])
        lines.append(f"| {nodes} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} |")
    return "\n".join(lines) + "\n"
