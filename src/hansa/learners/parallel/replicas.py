"""What replicas of a model, or of a stage, do to have the same gradient: DDP, FSDP2, or one sum at the end of the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hansa.core.errors import InputError
from hansa.core.synchrony import Synchrony
from hansa.learners.parallel.place import Place


def nothing() -> None:
    """For replicas whose gradients meet in the backward pass, or not at all."""


def joined(module: nn.Module, place: Place, options: Synchrony, device: torch.device) -> tuple[nn.Module, Callable[[], None]]:
    """The module through which a forward pass has to go, and what is to be called after the backward pass.

    Gradients are then the means over all shares of the rows (over those of a replica, where replicas train apart).
    """
    layout, replicated = place.layout, place.layout.data > 1 and not options.apart
    if layout.shard > 1:
        shard(module, place.part("data", "shard") if replicated else place.part("shard"))
        return module, nothing
    if not replicated:
        return module, nothing
    group = place.group("data")
    if layout.tensor > 1 or layout.pipeline > 1:  # DDP takes no layers that are split, and cannot follow a pipeline's micro-batches
        return module, lambda: average([p.grad for p in module.parameters() if p.grad is not None], group)
    wrapped = DistributedDataParallel(module, process_group=group)
    compress(wrapped, options, group)
    return wrapped, nothing


def refuse_compression(options: Synchrony, layout: Any) -> None:
    """InputError for compression where no gradient goes through DDP, whose hooks they are."""
    if options.compression != "none" and (layout.data != layout.members or layout.data == 1 or options.apart):
        raise InputError(
            f'algorithm.compression = "{options.compression}": it is for gradients between whole replicas that meet in every step, and '
            f'with {layout} there are none (write parallel with no factor but data, or compression = "none")'
        )


def compress(wrapped: DistributedDataParallel, options: Synchrony, group: Any) -> None:
    """Register the hook that the user chose."""
    if options.compression == "fp16":
        wrapped.register_comm_hook(group, default_hooks.fp16_compress_hook)
    elif options.compression == "bf16":
        wrapped.register_comm_hook(group, bf16)
    elif options.compression == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            process_group=group, matrix_approximation_rank=options.rank, start_powerSGD_iter=2, min_compression_rate=1
        )
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def bf16(group, bucket):  # without types: DDP compares annotations, and not with those that are text
    """PyTorch's ``bf16_compress_hook``, which DDP takes with NCCL only, for any backend."""
    whole = bucket.buffer()
    sent = whole.to(torch.bfloat16).div_(distributed.get_world_size(group))
    future = distributed.all_reduce(sent, group=group, async_op=True).get_future()
    return future.then(lambda done: whole.copy_(done.value()[0]))


def shard(module: nn.Module, mesh: Any) -> None:
    """Give every member of the mesh a part of every param: gathered layer by layer, as the forward and backward passes come to them."""
    for child in _blocks(module):
        fully_shard(child, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The children of a sequence and the items of lists: what is called as a whole, so that it can be gathered as a whole."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            found += [item for item in child if any(True for _ in item.parameters())]
        elif isinstance(module, nn.Sequential) and any(True for _ in child.parameters()):
            found.append(child)
    return found


def average(gradients: Sequence[Tensor], group: Any) -> None:
    """The mean over the group, in place; in one sum for each type of numbers."""
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    for dtype in dict.fromkeys(g.dtype for g in local):
        same = [g for g in local if g.dtype == dtype]
        flat = torch.cat([g.reshape(-1) for g in same])
        distributed.all_reduce(flat, group=group)
        flat /= distributed.get_world_size(group)
        for g, mean in zip(same, flat.split([g.numel() for g in same]), strict=True):
            g.copy_(mean.view_as(g))
