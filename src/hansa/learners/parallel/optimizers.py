"""PyTorch's own optimisers by name: those that treat every number by itself, and so do the same however the numbers are split."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hansa.core.errors import InputError, did_you_mean
from hansa.core.synchrony import Synchrony

ELEMENTWISE = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


def refuse_optimizer(options: Synchrony) -> None:
    """InputError for a name that is none of these, and for arguments that the optimiser does not take."""
    if options.optimizer not in ELEMENTWISE:
        raise InputError(
            f"algorithm.optimizer = {options.optimizer!r} is not one of torch.optim that can be used here"
            f"{did_you_mean(options.optimizer, ELEMENTWISE)}"
        )
    known = set(inspect.signature(getattr(torch.optim, options.optimizer)).parameters) - {"params", "lr", "foreach"}
    odd = sorted(set(options.arguments) - known)
    if odd:
        rate = "; the rate is algorithm.learning_rate" if odd[0] == "lr" else did_you_mean(odd[0], known)
        raise InputError(f"algorithm.arguments: torch.optim.{options.optimizer} takes no {odd[0]!r}{rate}")


def optimizer_of(options: Synchrony, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the params that this member holds. InputError for arguments out of range."""
    own = [p for p in params if p.requires_grad]
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in options.arguments.items()}
    if len({isinstance(p, DTensor) for p in own}) > 1:
        arguments["foreach"] = False  # which cannot take params that are split and params that are whole together
    try:
        made: torch.optim.Optimizer = getattr(torch.optim, options.optimizer)(own, lr=options.learning_rate, **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"algorithm.arguments = {dict(options.arguments)}: torch.optim.{options.optimizer}: {error}") from error
    return made
