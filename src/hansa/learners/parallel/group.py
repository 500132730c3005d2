"""The process group of a gang's members: the one that the engine has made, or one of their own."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from hansa.core.contracts import Collectives
from hansa.core.errors import InputError

LONG = timedelta(days=30)
"""How long a member waits for the others in a collective: they may compute, and the loss of one is noticed at once."""

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Group:
    """own: made here, and so for here to end; else the engine's, which ends it with the gang."""

    device: torch.device
    own: bool

    def end(self) -> None:
        if self.own and distributed.is_initialized():
            distributed.destroy_process_group()


def come_together(gang: Collectives, wanted: str) -> Group:
    """Make the members a process group: NCCL where each has a GPU of its own, else gloo. One member alone needs none.

    wanted: "auto", "cpu" or "cuda". InputError for "cuda" where members would have to share a GPU, and for members that are threads.
    """
    device = _device(gang, wanted)
    if gang.size == 1 and not distributed.is_initialized():
        return Group(device, own=False)
    if distributed.is_initialized():
        if distributed.get_world_size() != gang.size:
            raise InputError(
                f"this process is in a process group of {distributed.get_world_size()} and the gang has {gang.size} members; call "
                "torch.distributed.destroy_process_group() before the gang"
            )
        return Group(device, own=False)
    hosts = gang.all_gather((socket.gethostname(), _process()))
    if len({process for _, process in hosts}) < gang.size:
        raise InputError(
            "the members of this gang are threads of one process, which cannot be members of a process group; write engine = "
            '"processes" or "torchrun"'
        )
    host = LOOPBACK if len({name for name, _ in hosts}) == 1 else hosts[0][0]
    store = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False) if gang.rank == 0 else None
    port = gang.broadcast(None if store is None else store.port)
    if store is None:
        store = distributed.TCPStore(host, port, is_master=False)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=gang.rank, world_size=gang.size, timeout=LONG)
    return Group(device, own=True)


def _process() -> tuple[str, int]:
    import os

    return socket.gethostname(), os.getpid()


def _device(gang: Collectives, wanted: str) -> torch.device:
    there = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    seen = gang.all_gather((socket.gethostname(), there))
    beside = sum(host == seen[gang.rank][0] for host, _ in seen)
    local = sum(host == seen[gang.rank][0] for host, _ in seen[: gang.rank])
    if all(count >= sum(other == host for other, _ in seen) for host, count in seen):
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    if wanted == "cuda":
        raise InputError(
            f'learner.device = "cuda": {beside} members of the gang are on a machine with {there} CUDA devices, and each needs one of '
            'its own (write "auto" or "cpu", or fewer members)'
        )
    return torch.device("cpu")
