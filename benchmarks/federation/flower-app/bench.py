"""Flower's side: W1's model and rows, every node in every round, FedAvg with E = 1 and B = 10; marks the end of every round."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


def shared(root: str) -> Any:
    if root not in sys.path:
        sys.path.insert(0, root)
    from benchmarks import models, workloads

    return models, workloads


@client.train()
def train(message: Message, context: Context) -> Message:
    models, workloads = shared(str(message.content["config"]["root"]))
    torch.set_num_threads(1)
    w = workloads.WORKLOADS["W1"]
    x, y, _, _ = workloads.data()
    rows = workloads.shards(w)[int(context.node_config["partition-id"])]
    module = models.make(w.model)
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    models.train(module, torch.from_numpy(x[rows]), torch.from_numpy(y[rows]), w.batch, workloads.RATE)
    content = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(rows)})}
    return Message(content=RecordDict(content), reply_to=message)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    config = context.run_config
    models, _ = shared(str(config["root"]))
    nodes = int(config["nodes"])
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)

    def after(round: int, arrays: ArrayRecord) -> MetricRecord:
        with open(str(config["marks"]), "a") as file:
            file.write(f"{round} {time.time()}\n")
        return MetricRecord()

    torch.manual_seed(0)
    strategy.start(
        grid=grid, initial_arrays=ArrayRecord(models.make("2nn").state_dict()), num_rounds=int(config["rounds"]),
        train_config=ConfigRecord({"root": str(config["root"])}), evaluate_fn=after,
    )  # fmt: skip
