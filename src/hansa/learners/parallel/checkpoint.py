"""Checkpoints by torch.distributed.checkpoint: every member writes what it holds, and members of any layout read what they need."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

KEPT = 2
"""A run that ends between a checkpoint and the state of its round goes on from the checkpoint before."""

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True, strict=False)


def path_of(home: str, round: int) -> Path:
    return Path(home) / f"round-{round:06d}"


def exists(home: str, round: int) -> bool:
    """Whether it is complete: what it holds is written last."""
    return (path_of(home, round) / ".metadata").is_file()


def save(home: str, round: int, module: nn.Module, optimizer: torch.optim.Optimizer, replica: int | None) -> None:
    """Write the checkpoint of a round, and remove those that are not needed any more. All members call it.

    replica: where replicas train apart, the one whose optimiser this is; the params they start a round from are elsewhere.
    """
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    if first:
        shutil.rmtree(path_of(home, round), ignore_errors=True)
        Path(home).mkdir(parents=True, exist_ok=True, mode=0o700)
    _meet()
    with _alone_is_meant():
        checkpoint.save(
            _tree(module, optimizer, replica), checkpoint_id=path_of(home, round), no_dist=not distributed.is_initialized()
        )
    if first:
        for old in sorted(Path(home).glob("round-*"))[:-KEPT]:
            shutil.rmtree(old)


def load(home: str, round: int, module: nn.Module, optimizer: torch.optim.Optimizer, replica: int | None) -> None:
    """Read the checkpoint of a round, whatever layout wrote it, into a module and an optimiser of this layout."""
    tree = _tree(module, optimizer, replica)
    with _alone_is_meant():
        checkpoint.load(tree, checkpoint_id=path_of(home, round), no_dist=not distributed.is_initialized())
    if replica is None:
        set_state_dict(module, optimizer, model_state_dict=tree["model"], optim_state_dict=tree["optimizer"], options=_FLAT)
    else:
        model, _ = get_state_dict(module, optimizer, options=_FLAT)
        set_state_dict(module, optimizer, model_state_dict=model, optim_state_dict=tree[_own(replica)], options=_FLAT)


def _tree(module: nn.Module, optimizer: torch.optim.Optimizer, replica: int | None) -> dict[str, Any]:
    model, state = get_state_dict(module, optimizer, options=_FLAT)
    return {"model": model, "optimizer": state} if replica is None else {_own(replica): state}


def _own(replica: int) -> str:
    return f"replica-{replica}"


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    """Without PyTorch's warning that a process without a group saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _meet() -> None:
    if distributed.is_initialized():
        distributed.barrier()
