"""Modules and rows that the members of a gang find by name, in processes of their own."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hansa.core.blocks import Client, Splits, Table
from hansa.core.contracts import Schema

SIZES = (200, 57, 143, 100)
"""Rows of the clients: not even, and no multiple of a batch."""


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # not needed where only the rows of a client arrive

    x, y = load_digits(return_X_y=True)
    return x / 16, y


@cache
def cancer() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def load(x: np.ndarray, y: np.ndarray) -> Splits:
    return {"train": Table(x, y)}


def clients(name: str, sizes: tuple[int, ...] = SIZES) -> tuple[Client, ...]:
    (x, y), ends = {"digits": digits, "cancer": cancer}[name](), np.cumsum((0, *sizes)).tolist()
    return tuple(
        Client(f"client-{k}", load, {"x": x[ends[k] : ends[k + 1]], "y": y[ends[k] : ends[k + 1]]}, rows=size)
        for k, size in enumerate(sizes)
    )


def schema(name: str, sizes: tuple[int, ...] = SIZES) -> Schema:
    shape, classes = ((64,), range(10)) if name == "digits" else ((30,), range(2))
    return Schema(shape=shape, dtype="float64", classes=tuple(classes), rows=sum(sizes))


def perceptron(inputs: int = 64, outputs: int = 10, single: bool = False) -> nn.Module:
    module = nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, outputs))
    return module if single else module.double()


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 10),
    ).double()  # fmt: skip


class Attention(nn.Module):
    """Self-attention whose heads may lie with several members: each sees as many as its part of the projections has."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # (rows, heads, places, head)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / self.head**0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.first, self.second = Attention(width, width // 4), nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.down(torch.nn.functional.gelu(self.up(self.second(x))))


class Embedded(nn.Module):
    """The rows of a picture as a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project, self.place = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x.unflatten(-1, (8, 8))) + self.place


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).mean(1))


TRANSFORMER_PLAN = {
    "*.attention.query": "colwise", "*.attention.key": "colwise", "*.attention.value": "colwise", "*.attention.out": "rowwise",
    "*.up": "colwise", "*.down": "rowwise",
}  # fmt: skip


def transformer(width: int = 16, layers: int = 2) -> nn.Module:
    return nn.Sequential(Embedded(width), *(Layer(width) for _ in range(layers)), Head(width)).double()


class Fatal(nn.Module):
    """Passes its input on; once, in the second member of a gang and in the given forward pass, it kills its process."""

    def __init__(self, mark: str, step: int) -> None:
        super().__init__()
        self.mark, self.step, self.count = Path(mark), step, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += self.training
        alone = not torch.distributed.is_initialized() or torch.distributed.get_rank() != 1
        if not alone and self.count == self.step and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def fatal(mark: str, step: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), Fatal(mark, step), nn.Linear(16, 10)).double()
