"""Pipelines: an ``nn.Sequential`` is cut into stages, and a batch runs through them in micro-batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hansa.core.errors import InputError
from hansa.core.synchrony import Synchrony
from hansa.learners.parallel.place import Place


def cut(module: nn.Module, stages: int, begins: Sequence[str]) -> list[nn.Sequential]:
    """The stages of a module; every layer keeps its name.

    begins: children with which the second and later stages begin; where it is empty the stages' params are as even as can be.

    InputError for a module that is no ``nn.Sequential`` or has fewer children, for other names, and for params that two stages share.
    """
    if not isinstance(module, nn.Sequential):
        raise InputError(
            f"parallel: pipeline {stages}, and {type(module).__name__} is no nn.Sequential, whose order of layers would be known; "
            "write the module as one (its children may be any modules)"
        )
    children = list(module.named_children())
    if len(children) < stages:
        raise InputError(
            f"parallel: pipeline {stages}, and the nn.Sequential has {len(children)} children; write pipeline = {len(children)}"
        )
    names = [name for name, _ in children]
    if begins:
        places = [names.index(name) if name in names else -1 for name in begins]
        if len(begins) != stages - 1 or sorted({0, *places}) != [0, *places]:
            raise InputError(
                f"algorithm.stages = {list(begins)}: with pipeline {stages} these must be {stages - 1} children of the module after its "
                f"first, in their order ({', '.join(names)})"
            )
    else:
        places = _even([sum(p.numel() for p in child.parameters()) for _, child in children], stages)
    cuts = [0, *places, len(children)]
    parts = [nn.Sequential(OrderedDict(children[a:b])) for a, b in pairwise(cuts)]
    seen: set[int] = set()
    for stage, part in enumerate(parts):
        own = {id(p) for p in part.parameters()}
        if not any(p.requires_grad for p in part.parameters()):
            children_of = ", ".join(name for name, _ in part.named_children())
            raise InputError(
                f"parallel: stage {stage} of pipeline {stages} would have nothing to train (children {children_of}); write a smaller "
                "pipeline, or other algorithm.stages"
            )
        if own & seen:
            raise InputError(
                "parallel: two stages of the pipeline would share a param; write algorithm.stages so that its layers are in one"
            )
        seen |= own
    return parts


def _even(sizes: Sequence[int], stages: int) -> list[int]:
    """Where stages after the first begin, so that the sum of the squares of their sizes is least; every stage has a child."""
    ends = [0, *accumulate(sizes)]
    best: dict[int, tuple[int, list[int]]] = {end: (ends[end] ** 2, []) for end in range(1, len(sizes) + 1)}
    for _ in range(1, stages):
        best = {
            end: min(
                (cost + (ends[end] - ends[begin]) ** 2, [*begins, begin]) for begin, (cost, begins) in best.items() if begin < end
            )
            for end in range(min(best) + 1, len(sizes) + 1)
        }
    return best[len(sizes)][1]


def microbatches_of(options: Synchrony, stages: int) -> int:
    """Into how many micro-batches a batch is cut. InputError for fewer than 1F1B needs to have all stages at work."""
    count = options.microbatches or stages
    if options.schedule == "1f1b" and count < stages:
        raise InputError(
            f'algorithm.microbatches = {count}: with schedule = "1f1b" and {stages} stages there must be at least {stages} (or write '
            'schedule = "gpipe")'
        )
    return count


class Pipe:
    """A member's stage with the schedule that it follows.

    loss: (output, places in the batch) -> what is differentiated.
    """

    def __init__(
        self, submodule: nn.Module, place: Place, device: torch.device, name: str, microbatches: int, loss: Callable[..., Tensor]
    ):
        self._submodule, self._place, self._device = submodule, place, device
        self._name, self._microbatches, self._loss = name, microbatches, loss
        self._size = 0

    def step(self, x: Tensor) -> Tensor:
        """Forward and backward of a batch. x: features (rows, ...), used by the first stage alone. Returns what was differentiated,
        summed over micro-batches; zero in all stages but the last."""
        if len(x) != self._size:  # shapes between stages are agreed on once for a schedule
            from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

            kind: Any = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[self._name]
            stage = PipelineStage(
                self._submodule, self._place.stage, self._place.layout.pipeline, self._device, group=self._place.group("pipeline")
            )
            self._schedule = kind(stage, self._microbatches, loss_fn=self._loss, scale_grads=False)
            self._size = len(x)
        target = torch.arange(len(x), device=self._device) if self._place.last else None
        inputs = (x,) if self._place.stage == 0 else ()
        losses: list[Tensor] = []
        self._schedule.step(*inputs, target=target, losses=losses, return_outputs=False)
        return torch.stack(losses).detach().double().sum() if losses else torch.zeros((), dtype=torch.float64, device=self._device)
