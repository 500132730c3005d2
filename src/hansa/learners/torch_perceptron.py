"""Modules that are perceptrons, trained by the products that this project has for them (:mod:`hansa.learners.mlp_training`).

A step of a small network costs PyTorch more to call than to compute, and a step of a large one costs its memory traffic; the perceptron's
own training avoids both. What it computes is what the module would compute, up to rounding. A module is recognised by its trace
(``torch.fx``): linear layers with one kind of activation between them and nothing else, whatever its Python looks like.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from hansa.core.blocks import LoadedBlock, Table
from hansa.core.local import Plan, Trained
from hansa.core.params import Params
from hansa.learners.mlp_network import Activation, Network
from hansa.learners.mlp_training import LARGE, is_plain, train
from hansa.learners.torch_model import Model

_ACTIVATIONS: dict[Any, Activation] = {
    nn.ReLU: "relu", F.relu: "relu", torch.relu: "relu", "relu": "relu",
    nn.Tanh: "tanh", torch.tanh: "tanh", "tanh": "tanh",
}  # fmt: skip
_SHAPES = (nn.Flatten, torch.flatten, "flatten", "view", "reshape", nn.Identity)


@dataclass(frozen=True)
class Perceptron:
    """A module's network, and the names of its linear layers from the features to the outputs."""

    network: Network
    layers: tuple[str, ...]

    def takes(self, plan: Plan) -> bool:
        """Whether it is faster than PyTorch's own: a large network is where a step does nothing but move along the gradient."""
        return self.network.parameters < LARGE or is_plain(plan)

    def train(self, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
        """Train every client of the block from the same params, all under the module's own names and shapes."""
        drift = plan.drift and self._to_network(plan.drift)
        rows = tuple(Table(table.x.reshape(len(table), -1), table.y) for table in block.tables)
        trained = train(self.network, self._to_network(params), replace(block, tables=rows), replace(plan, drift=drift), 0.0)
        return replace(trained, params={name: self._from_network(name, trained.params) for name in params})

    def _to_network(self, params: Params) -> Params:
        moved = {}
        for k, layer in enumerate(self.layers):
            moved[f"layer{k}.weight"] = np.ascontiguousarray(np.swapaxes(params[f"{layer}.weight"], -1, -2))
            moved[f"layer{k}.bias"] = params[f"{layer}.bias"]
        return moved

    def _from_network(self, name: str, params: Params) -> np.ndarray:
        layer, _, kind = name.rpartition(".")
        value = params[f"layer{self.layers.index(layer)}.{kind}"]
        return np.ascontiguousarray(np.swapaxes(value, -1, -2) if kind == "weight" else value)


def perceptron_of(model: Model, x: np.ndarray) -> Perceptron | None:
    """The perceptron that a module is, tried on a few rows ``x``; None for a module that is none."""
    module = model.module.train()
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in module.modules()):
        return None
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception:  # noqa: BLE001  # whatever the user's code does with a value that is not there, it is no chain of layers
        return None
    steps = _steps(module, graph)
    layers = tuple(name for name, kind in steps if kind == "linear")
    activations = [kind for _, kind in steps if kind != "linear"]
    alternating = [kind == "linear" for _, kind in steps] == [place % 2 == 0 for place in range(len(steps))]
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if not layers or not alternating or len(activations) != len(layers) - 1 or len(set(activations)) > 1:
        return None
    if names != set(model.weights) or len(names) != 2 * len(layers) or model.others:
        return None
    shapes = [tuple(model.weights[f"{layer}.weight"].shape) for layer in layers]  # (out, in)
    widths = (shapes[0][1], *(shape[0] for shape in shapes))
    found = Perceptron(Network(widths, activations[0] if activations else "relu", "classification"), layers)
    return found if _agrees(found, model, x[:3]) else None


def _steps(module: nn.Module, graph: fx.Graph) -> list[tuple[str, Any]]:
    """The chain of layers, (name, "linear" or the activation); empty for anything else. What only reshapes is left out."""
    steps: list[tuple[str, Any]] = []
    last: fx.Node | None = None
    for node in graph.nodes:
        what: Any = node.target
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            what = type(layer)
            if what is nn.Linear and layer.bias is not None:
                what = "linear"
        if node.op == "placeholder":
            if last is not None:
                return []
        elif (node.op == "call_method" and what == "size") or what in (getattr, operator.getitem):
            continue  # for a view, whose outcome is tried on rows
        elif node.op == "output":
            return steps if node.args[0] is last else []
        elif not node.args or node.args[0] is not last:
            return []
        elif what == "linear":
            steps.append((str(node.target), "linear"))
        elif _known(what, _ACTIVATIONS):
            steps.append((node.name, _ACTIVATIONS[what]))
        elif not _known(what, _SHAPES):
            return []
        last = node
    return []


def _known(what: str | type | Callable[..., Any], among: Any) -> bool:
    return any(what is one or (isinstance(what, str) and what == one) for one in among)


def _agrees(found: Perceptron, model: Model, x: np.ndarray) -> bool:
    """Whether the network gives what the module gives for a few rows."""
    rows = np.asarray(x).reshape(len(x), -1)
    if not len(x) or rows.shape[1] != found.network.widths[0]:
        return False
    with torch.no_grad():
        expected = model.module(model.rows(x)).numpy()
    mine = found.network.forward(found._to_network(model.params()), rows)[-1]
    return expected.shape == mine.shape and np.allclose(mine, expected, rtol=1e-3, atol=1e-5 * (1 + np.abs(expected).max()))
