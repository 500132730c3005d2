"""How many clients of a block fit on the device at once: measured by one dry step, halved when it was too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from hansa.core.blocks import LoadedBlock
from hansa.core.local import Plan, Trained

SHARE = 0.8
"""Of the free memory that a stacked group may take; the rest is for fragments and for other processes."""

Train = Callable[[LoadedBlock, Plan], Trained]


def train_in_groups(train: Train, block: LoadedBlock, plan: Plan, device: torch.device) -> Trained:
    """Train the block in groups of consecutive clients that fit into the device's memory.

    On the CPU the whole block is one group. A group that runs out of memory is halved, and so are those after it; one client that
    does not fit alone is the user's to solve, and raises torch.OutOfMemoryError.
    """
    size = len(block) if device.type != "cuda" else min(len(block), clients_that_fit(train, block, plan, device))
    parts: list[Trained] = []
    start = 0
    while start < len(block):
        group = slice(start, start + size)
        try:
            parts.append(train(block.only(group), _for_group(plan, group)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (size + 1) // 2
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        start += size
    return parts[0] if len(parts) == 1 else _joined(parts)


def clients_that_fit(train: Train, block: LoadedBlock, plan: Plan, device: torch.device) -> int:
    """One step of the client with most rows tells what a client takes; what is free tells how many there may be."""
    longest = int(np.argmax(block.rows))
    one = block.only(slice(longest, longest + 1))
    rows = np.arange(min(len(one.tables[0]), plan.local.batch_size or len(one.tables[0])))
    dry = replace(one, tables=(one.tables[0].take(rows),))
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    train(dry, replace(_for_group(plan, slice(longest, longest + 1)), local=replace(plan.local, epochs=1)))
    taken = max(1, torch.cuda.max_memory_allocated(device) - before)
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(SHARE * (free + torch.cuda.memory_reserved(device) - before)) // taken)


def _for_group(plan: Plan, group: slice) -> Plan:
    if plan.drift is None or not plan.drift_per_client:
        return plan
    return replace(plan, drift={name: value[group] for name, value in plan.drift.items()})


def _joined(parts: list[Trained]) -> Trained:
    return Trained(
        params={name: np.concatenate([part.params[name] for part in parts]) for name in parts[0].params},
        steps=np.concatenate([part.steps for part in parts]),
        metrics={
            name: (np.concatenate([p.metrics[name][0] for p in parts]), np.concatenate([p.metrics[name][1] for p in parts]))
            for name in parts[0].metrics
        },
    )
