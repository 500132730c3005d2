"""Calls on their way to worker processes: what is the same in every round is sent to a worker once, and known there by a number."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from itertools import count
from typing import Any

from hansa.core.contracts import Call


@dataclass(frozen=True)
class Standing:
    """What stands for all calls of a kind until another takes its place: the values of the fields that the kind names."""

    kind: type
    number: int
    values: tuple[Any, ...]
    pickled: bytes


@dataclass(frozen=True)
class Rest:
    """A call without what stands for it under a number."""

    kind: type
    number: int
    fields: dict[str, Any]


class Sender:
    """The parent's side: takes calls apart."""

    def __init__(self) -> None:
        self._standing: dict[type, Standing] = {}
        self._numbers = count(1)

    def parted(self, call: Call) -> tuple[Any, Standing | None]:
        """What is sent for each call, and what must have been sent before; a call that names no field goes as it is."""
        kind, names = type(call), getattr(call, "standing", ())
        if not names:
            return call, None
        fields = dict(vars(call))
        values = tuple(fields.pop(name) for name in names)
        standing = self._standing.get(kind)
        # Compared by identity: what is equal may take longer to compare than to send.
        if standing is None or any(value is not other for value, other in zip(values, standing.values, strict=True)):
            standing = Standing(kind, next(self._numbers), values, pickle.dumps(values, protocol=5))
            self._standing[kind] = standing
        return Rest(kind, standing.number, fields), standing


class Receiver:
    """A worker's side: puts calls together."""

    def __init__(self) -> None:
        self._standing: dict[type, tuple[int, tuple[Any, ...]]] = {}

    def whole(self, sent: Any, pickled: bytes | None) -> Any:
        """The call. pickled: what stands for it, where this worker was not sent it before."""
        if not isinstance(sent, Rest):
            return sent
        if pickled is not None:
            values = pickle.loads(pickled)  # noqa: S301  # written by this job's own parent process
            self._standing[sent.kind] = sent.number, values
        number, values = self._standing[sent.kind]
        assert number == sent.number
        call: Any = object.__new__(sent.kind)
        vars(call).update(sent.fields, **dict(zip(call.standing, values, strict=True)))
        return call
