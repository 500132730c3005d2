"""The models of the workloads as ordinary PyTorch modules, for every contender that uses PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def make(model: str) -> nn.Module:
    """2nn: 199,210 params; softmax: 7,850; cnn (McMahan et al. 2017): 1,663,370."""
    if model == "softmax":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if model == "2nn":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    return nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def train(module: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int, rate: float) -> None:
    """One pass of SGD over shuffled mini-batches: what a careful person writes by hand."""
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, foreach=True)
    loss = nn.CrossEntropyLoss()
    module.train()
    for rows in torch.randperm(len(x)).split(batch):
        optimizer.zero_grad(set_to_none=True)
        loss(module(x[rows]), y[rows]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(module: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    module.eval()
    found = torch.cat([module(part).argmax(1) for part in torch.from_numpy(x).split(2000)])
    return float((found == torch.from_numpy(y)).float().mean())
