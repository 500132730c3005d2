"""FedAvg written by hand in PyTorch: a loop over clients, in one process or in a pool of forked ones."""

from __future__ import annotations

import argparse
import copy
import multiprocessing
from typing import Any

import torch

from benchmarks import models
from benchmarks.workloads import RATE, WORKLOADS, Clock, Workload, cohort, data, drawn, shards, unseen

SHARED: dict[str, Any] = {}


def work(task: tuple[dict[str, torch.Tensor], list[int]]) -> dict[str, torch.Tensor]:
    """Train some clients from the global weights; return the sum of their weights."""
    weights, clients = task
    torch.set_num_threads(1)
    w: Workload = SHARED["workload"]
    module, total = SHARED["module"], None
    for client in clients:
        module.load_state_dict(weights)
        if w.synthetic:
            x, y = map(torch.from_numpy, drawn(client))
        else:
            rows = SHARED["shards"][client]
            x, y = SHARED["x"][rows], SHARED["y"][rows]
        models.train(module, x, y, w.batch, RATE)
        state = module.state_dict()
        total = {n: v.clone() for n, v in state.items()} if total is None else {n: total[n].add_(v) for n, v in state.items()}
    assert total is not None
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    w, clock = WORKLOADS[given.workload], Clock()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = models.make(w.model)
    SHARED.update(workload=w, module=copy.deepcopy(module))
    if w.synthetic:
        test_x, test_y = unseen(w)
    else:
        x, y, test_x, test_y = data()
        SHARED.update(x=torch.from_numpy(x), y=torch.from_numpy(y), shards=torch.from_numpy(shards(w)))
    torch.multiprocessing.set_sharing_strategy("file_system")
    pool = multiprocessing.get_context("fork").Pool(given.processes) if given.processes > 1 else None
    for number in range(w.rounds + 1):
        members, weights = cohort(w, number).tolist(), module.state_dict()
        parts = [(weights, members[k :: given.processes]) for k in range(given.processes)]
        totals = pool.map(work, parts) if pool else [work(parts[0])]
        module.load_state_dict({n: sum(t[n] for t in totals) / len(members) for n in weights})
        clock.mark()
    clock.report(models.accuracy(module, test_x, test_y))


if __name__ == "__main__":
    main()
