"""A member's place in the layout: its coordinates, and the process groups of those that differ from it in one of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hansa.core.synchrony import Layout

AXES = ("pipeline", "data", "shard", "tensor")
"""Slowest first: those who talk most, about parts of one layer, are neighbours."""


@dataclass(frozen=True)
class Place:
    """Where a member stands. mesh: None for one that is alone."""

    layout: Layout
    rank: int
    mesh: DeviceMesh | None

    @cached_property
    def _at(self) -> dict[str, int]:
        at, left = {}, self.rank
        for axis in reversed(AXES):
            left, at[axis] = divmod(left, getattr(self.layout, axis))
        return at

    @property
    def stage(self) -> int:
        return self._at["pipeline"]

    @property
    def replica(self) -> int:
        return self._at["data"]

    @property
    def share(self) -> int:
        """Which part of the rows is this member's."""
        return self._at["data"] * self.layout.shard + self._at["shard"]

    @property
    def last(self) -> bool:
        """It computes losses."""
        return self.stage == self.layout.pipeline - 1

    @property
    def first_of_tensor(self) -> bool:
        """Of those who compute the same numbers, the one that reports them."""
        return self._at["tensor"] == 0

    def leads(self, apart: bool) -> bool:
        """It hands in its stage's params, which all members with the same stage (and replica, where these train apart) have alike."""
        return self.first_of_tensor and self._at["shard"] == 0 and (apart or self.replica == 0)

    def part(self, *axes: str) -> DeviceMesh:
        """The mesh along some axes through this member."""
        assert self.mesh is not None
        return self.mesh[axes[0] if len(axes) == 1 else axes]

    def group(self, axis: str) -> Any:
        return self.part(axis).get_group()


def place_of(layout: Layout, rank: int, device: torch.device) -> Place:
    """The place of a member whose process group stands."""
    if layout.members == 1:
        return Place(layout, rank, None)
    shape = tuple(getattr(layout, axis) for axis in AXES)
    return Place(layout, rank, init_device_mesh(device.type, shape, mesh_dim_names=AXES))
