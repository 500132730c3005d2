"""A gang on Ray: tasks that reserve their CPUs together in a placement group, and meet at a hub in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hansa.core.contracts import Collectives
from hansa.core.errors import InputError, RunFailed
from hansa.engines.ray_cluster import cpus, hear_out, import_ray, nodes_alive, own_host
from hansa.engines.remote_gang import Hub, join, pack_function

R = TypeVar("R")

PATIENCE = 5.0
"""Seconds that reserving the slots may take: other work that holds them is not waited for."""


def run_gang(address: str, function: Callable[[Collectives], R], members: int) -> list[R]:
    """All results in rank order, or RunFailed with the first member's error, or where the slots are there but not free.

    Raises InputError at once when the cluster has fewer CPUs than members, and when ``function`` cannot be sent.
    """
    ray, packed = import_ray(), pack_function("ray", function)
    there = sum(cpus(node) for node in nodes_alive())
    if there < members:
        raise InputError(
            f"engine ray: a gang of {members} needs {members} slots (one CPU each) at the same time and Ray has {there}; "
            f"write engine.workers = {members} where Ray is started by the engine, or add nodes"
        )
    group = ray.util.placement_group([{"CPU": 1}] * members, strategy="SPREAD")
    tasks: list[Any] = []
    try:
        if not group.wait(PATIENCE):
            free = ray.available_resources().get("CPU", 0.0)
            raise RunFailed(
                f"engine ray: a gang of {members} needs {members} slots (one CPU each) at the same time, and of the {there} that Ray "
                f"has {free:g} are free; end what holds them, or ask for fewer members"
            )
        with Hub(members, own_host(address)) as hub:
            # Each in a process of its own that ends with it: what a member sets up in its process, the next gang must not find.
            task = ray.remote(num_cpus=1, max_retries=0, max_calls=1)(join)
            place = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
            tasks = [
                task.options(scheduling_strategy=place(group, placement_group_bundle_index=rank)).remote(
                    hub.address, hub.authkey, rank, members, packed
                )
                for rank in range(members)
            ]
            return hub.results(lambda: _trouble(tasks))
    finally:
        ray.util.remove_placement_group(group)  # and with it whoever still works in it
        hear_out(tasks)


def _trouble(tasks: Sequence[Any]) -> str | None:
    ray = import_ray()
    ended, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
    for task in ended:
        try:
            ray.get(task)
        except ray.exceptions.RayError as error:
            return (
                f"member {list(tasks).index(task)} could not go on ({type(error).__name__}: {' '.join(str(error).split())[:400]})"
            )
    return None
