"""A gang on a Dask cluster: one task on each of so many workers, which meet at a hub in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hansa.core.contracts import Collectives
from hansa.core.errors import InputError
from hansa.engines.dask_cluster import Cluster
from hansa.engines.remote_gang import Hub, join, pack_function

R = TypeVar("R")


def run_gang(cluster: Cluster, function: Callable[[Collectives], R], members: int) -> list[R]:
    """All results in rank order, or RunFailed with the first member's error.

    Raises InputError at once when the cluster has fewer workers than members, and when ``function`` cannot be sent.
    """
    packed, client = pack_function("dask", function), cluster.client
    workers = sorted(cluster.awaited(members))
    if len(workers) < members:
        raise InputError(
            f"engine dask: a gang of {members} needs {members} workers at the same time and the cluster has {len(workers)}; "
            + (f"write engine.workers = {members}" if cluster.local is not None else "start more with `dask worker`")
        )
    workers = workers[:members]
    with Hub(members, _own_host(client)) as hub:
        # Pinned hard: two members in one queue would wait for each other. A pin to a worker that is gone is found by the hub.
        tasks = [
            client.submit(join, hub.address, hub.authkey, rank, members, packed, workers=[worker], pure=False)
            for rank, worker in enumerate(workers)
        ]
        try:
            return hub.results(lambda: _trouble(cluster, tasks, workers))
        finally:
            if client.status == "running":
                client.cancel(tasks)


def _trouble(cluster: Cluster, tasks: Sequence[Any], workers: Sequence[str]) -> str | None:
    for rank, task in enumerate(tasks):
        if task.status == "error":
            error = task.exception()
            return f"member {rank} could not be started ({type(error).__name__}: {error})"
        if task.status in ("cancelled", "lost"):
            return f"member {rank} was cancelled; the scheduler was lost, or was told to drop it"
    gone = [worker for worker in workers if worker not in cluster.workers()]
    return f"worker {gone[0]} has left the cluster" if gone else None


def _own_host(client: Any) -> str:
    """This machine, by the address under which it is seen from the cluster."""
    from distributed.comm.addressing import get_address_host
    from distributed.utils import get_ip

    return str(get_ip(get_address_host(client.scheduler.address)))
