"""Flower's simulation at its best setting on two cores: two actors of one CPU each (Message API, FedAvg strategy)."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks import models
from benchmarks.workloads import RATE, WORKLOADS, Clock, data, shards

HELD: dict[str, Any] = {}


def rows_of(client: int, workload: str) -> tuple[torch.Tensor, torch.Tensor]:
    if not HELD:  # once per actor
        torch.set_num_threads(1)
        x, y, _, _ = data()
        HELD.update(x=torch.from_numpy(x), y=torch.from_numpy(y), shards=torch.from_numpy(shards(WORKLOADS[workload])))
        HELD["module"] = models.make(WORKLOADS[workload].model)
    rows = HELD["shards"][client]
    return HELD["x"][rows], HELD["y"][rows]


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    w = WORKLOADS[str(message.content["config"]["workload"])]
    x, y = rows_of(int(context.node_config["partition-id"]), w.name)
    module = HELD["module"]
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    models.train(module, x, y, w.batch, RATE)
    content = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(x)})}
    return Message(content=RecordDict(content), reply_to=message)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    w, clock = WORKLOADS[given.workload], Clock()
    server, held = ServerApp(), {}

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        torch.manual_seed(0)
        strategy = FedAvg(fraction_train=w.cohort / w.clients, fraction_evaluate=0.0, min_available_nodes=w.clients)

        def after(round: int, arrays: ArrayRecord) -> MetricRecord:
            if round:
                clock.mark()
            held["arrays"] = arrays
            return MetricRecord()

        initial = ArrayRecord(models.make(w.model).state_dict())
        strategy.start(
            grid=grid,
            initial_arrays=initial,
            num_rounds=w.rounds + 1,
            train_config=ConfigRecord({"workload": w.name}),
            evaluate_fn=after,
        )

    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": given.processes, "include_dashboard": False},
    }
    run_simulation(server, app, w.clients, backend_config=resources)
    module = models.make(w.model)
    module.load_state_dict(held["arrays"].to_torch_state_dict())
    _, _, x, y = data()
    clock.report(models.accuracy(module, x, y), finished=time.time())


if __name__ == "__main__":
    # Actors must find the client by its module's name: from __main__ it travels by value and reads the data again at every message.
    from benchmarks.contenders import flower

    flower.main()
