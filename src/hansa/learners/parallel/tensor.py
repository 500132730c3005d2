"""Tensor parallel: which layers are cut by columns and which by rows (Shoeybi et al. 2019, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hansa.core.errors import InputError

ELEMENTWISE = (
    nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.Mish, nn.Dropout,
    nn.Identity,
)  # fmt: skip
"""Layers that may stand between two halves of a pair, since they treat every number by itself."""


def plan_of(module: nn.Module, given: Mapping[str, str]) -> dict[str, str]:
    """Layer -> style: what the user gives, with ``*`` for any part of a name, or what follows for an ``nn.Sequential``.

    There linear layers with nothing but activations between them are paired: the first is cut by its outputs, the second by its inputs,
    and one exchange is needed for both. InputError for a plan that names no layer, and where none follows.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Embedding)}
    if given:
        plan: dict[str, str] = {}
        for pattern, style in given.items():
            found = [name for name in layers if fnmatchcase(name, pattern)]
            if not found:
                raise InputError(
                    f"algorithm.tensor_plan: {pattern!r} is no linear or embedding layer of the module (it has "
                    f"{', '.join(layers) or 'none'})"
                )
            plan |= dict.fromkeys(found, style)
        return plan
    plan = _pairs(module) if isinstance(module, nn.Sequential) else {}
    if not plan:
        raise InputError(
            f"parallel: tensor > 1, and no plan follows from {type(module).__name__}, which is no nn.Sequential with linear layers; write "
            'algorithm.tensor_plan = {"layer" = "colwise", ...}'
        )
    return plan


def _pairs(module: nn.Sequential) -> dict[str, str]:
    plan: dict[str, str] = {}
    open_: str | None = None
    for name, layer in module.named_children():
        if isinstance(layer, nn.Linear):
            if open_ is not None:
                plan |= {open_: "colwise", name: "rowwise"}
                open_ = None
            else:
                open_ = name
        elif not isinstance(layer, ELEMENTWISE) and open_ is not None:
            plan[open_], open_ = "gathered", None
    return plan if open_ is None else {**plan, open_: "gathered"}


def refuse_uneven(module: nn.Module, plan: Mapping[str, str], members: int) -> None:
    """InputError for a linear layer of a pair that so many members cannot cut into equal parts: what each has of the first would not
    fit to what it has of the second."""
    for name, layer in module.named_modules():
        style = plan.get(name)
        if style in ("colwise", "rowwise") and isinstance(layer, nn.Linear):
            side, width = ("outputs", layer.out_features) if style == "colwise" else ("inputs", layer.in_features)
            if width % members:
                raise InputError(
                    f"parallel: tensor = {members} does not divide the {width} {side} of the layer {name!r}, which is cut {style} (write "
                    "a factor that does, or leave the layer out of algorithm.tensor_plan)"
                )


def split_layers(module: nn.Module, mesh: DeviceMesh, plan: Mapping[str, str]) -> None:
    """Cut the layers of the plan over the members of the mesh, in place. Layers that this stage does not have are left to others.

    Raises as :func:`refuse_uneven`.
    """
    refuse_uneven(module, plan, mesh.size())
    own = {name for name, _ in module.named_modules()}
    styles: dict[str, Any] = {
        "colwise": ColwiseParallel, "rowwise": RowwiseParallel, "gathered": lambda: ColwiseParallel(output_layouts=Replicate()),
    }  # fmt: skip
    parallelize_module(module, mesh, {name: styles[style]() for name, style in plan.items() if name in own})
