"""What runs in a rank: it does errands and takes part in gangs, until its driver says good-bye or is gone."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import AuthenticationError
from queue import SimpleQueue
from typing import Any, NoReturn

from hansa.core.errors import InputError, RunFailed
from hansa.core.params import Array
from hansa.engines.pickling import cloudpickle
from hansa.engines.remote import do
from hansa.engines.remote_gang import GREETING
from hansa.engines.wire import Wire

ORPHANED = 1
"""Exit code of a rank whose driver is gone."""

LONG = timedelta(days=30)
"""How long a member waits for the others in a collective: they may compute, and the loss of one is noticed at once."""

OPERATIONS = ("barrier", "all_gather", "all_reduce", "broadcast", "end")


def dial(address: tuple[str, int], key: bytes, rank: int) -> Wire:
    """Come to the driver as a rank. OSError or EOFError where there is none that holds the key."""
    wire = Wire(socket.create_connection(address, GREETING), GREETING)
    try:
        wire.prove(key, "member")
    except AuthenticationError as error:
        wire.close()
        raise ConnectionRefusedError(str(error)) from error
    except BaseException:
        wire.close()
        raise
    wire.socket.settimeout(None)  # between two rounds may lie hours
    wire.send(rank)
    return wire


def main() -> NoReturn:
    """The life of a rank that the driver has started."""
    host, port, key, rank = json.loads(sys.stdin.read())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    wire = None
    while wire is None:
        try:
            wire = dial((host, port), bytes.fromhex(key), rank)
        except ConnectionRefusedError:
            sys.exit(ORPHANED)
        except (OSError, EOFError):  # the driver is busy with what came back from other ranks
            continue
    serve(wire, lambda: os._exit(ORPHANED))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # without the interpreter's farewells, which take long where a framework was imported


def serve(wire: Wire, orphaned: Callable[[], None] = lambda: None) -> bool:
    """Do what the driver says; True when it has said good-bye, False when it is gone.

    orphaned: called in another thread as soon as the driver is gone, whatever this one is doing.
    """
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read, args=(wire, inbox, orphaned), daemon=True).start()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    grouped = False
    while (message := inbox.get()) is not None:
        kind, *content = message
        if kind == "errand":
            wire.send_bytes(pickle.dumps(do(*content), protocol=5))
        elif kind == "gang":
            grouped = _take_part(wire, *content)
        elif grouped:
            _leave_group()
            grouped = False
        if kind == "bye":
            break
        del message, content  # the next one may be as large
    wire.close()
    return message is not None


def _read(wire: Wire, inbox: SimpleQueue[Any], orphaned: Callable[[], None]) -> None:
    while True:
        message = wire.receive()
        inbox.put(message)
        if message is None:
            orphaned()
        if message is None or message[0] == "bye":
            return


# A gang


class _Broken(BaseException):
    """A collective failed because others are gone. Not an Exception, so that a function that catches those lets it pass."""


class GroupCollectives:
    """Collectives of the default group. All members first tell each other which one they have come to, and how much they bring."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def _agree(self, operation: str, root: int = 0, bytes: int = 0) -> list[int]:
        """The bytes that each member brings. RunFailed in all members where they have not come to the same collective."""
        import torch

        all = [torch.empty(3, dtype=torch.int64) for _ in range(self.size)]
        with _whole() as distributed:
            distributed.all_gather(all, torch.tensor([OPERATIONS.index(operation), root, bytes]))
        told = [one.tolist() for one in all]
        if len({(kind, root) for kind, root, _ in told}) > 1:
            raise RunFailed(_disagreement([OPERATIONS[kind] for kind, _, _ in told]))
        return [bytes for _, _, bytes in told]

    def _gathered(self, operation: str, value: Any) -> list[memoryview]:
        """What every member brings, pickled."""
        import torch

        mine = pickle.dumps(value, protocol=5)
        sizes = self._agree(operation, bytes=len(mine))
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        all = [torch.empty_like(padded) for _ in sizes]
        with _whole() as distributed:
            distributed.all_gather(all, padded)
        return [one.numpy().data[:size] for one, size in zip(all, sizes, strict=True)]

    def all_gather(self, value: Any) -> list[Any]:
        return [pickle.loads(part) for part in self._gathered("all_gather", value)]  # noqa: S301  # from members of the same gang

    def all_reduce(self, value: Array) -> Array:
        # Not the group's own sum, whose order and so whose last bits depend on how many members there are.
        parts = iter(self._gathered("all_reduce", value))
        total = pickle.loads(next(parts))  # noqa: S301  # as above
        for part in parts:
            total = total + pickle.loads(part)  # noqa: S301  # as above
        return total

    def broadcast(self, value: Any, root: int = 0) -> Any:
        import torch

        mine = pickle.dumps(value, protocol=5) if self.rank == root else b""
        size = self._agree("broadcast", root, len(mine))[root]
        data = torch.frombuffer(bytearray(mine or size), dtype=torch.uint8)
        with _whole() as distributed:
            distributed.broadcast(data, root)
        return pickle.loads(data.numpy().data)  # noqa: S301  # as above

    def barrier(self) -> None:
        self._agree("barrier")

    def end(self) -> None:
        """The function has returned; it must have so in all members."""
        self._agree("end")


def _disagreement(operations: list[str]) -> str:
    over = [rank for rank, operation in enumerate(operations) if operation == "end"]
    if over:
        waits = next(rank for rank, operation in enumerate(operations) if operation != "end")
        return (
            f"gang: member {over[0]} has finished and member {waits} waits in {operations[waits]}; "
            "all members must make the same collective calls in the same order"
        )
    calls = ", ".join(f"{rank} {operation}" for rank, operation in enumerate(operations))
    return f"gang: members made different collective calls ({calls}); all must make the same ones in the same order"


@contextmanager
def _whole() -> Iterator[Any]:
    from torch import distributed

    try:
        yield distributed
    except RuntimeError as error:
        raise _Broken(str(error)) from error


def _take_part(wire: Wire, function: bytes, rank: int, size: int, store: tuple[str, int, str], backend: str) -> bool:
    """Be a member of a gang, and tell the driver how it ended before the others can notice. True while the group is to be left: not
    before all members have come to the end."""
    from threadpoolctl import threadpool_limits

    formed, done = False, False
    try:
        _form_group(rank, size, store, backend)
        formed = True
        collectives = GroupCollectives(rank, size)
        with threadpool_limits(1):
            result = pickle.loads(function)(collectives)  # noqa: S301  # from this job's own driver
        told = cloudpickle().dumps(("done", result), protocol=5)
        collectives.end()
        done = True
    except _Broken as error:
        told = pickle.dumps(("broken", str(error)))
    except Exception as error:  # noqa: BLE001  # it becomes the gang's error
        told = pickle.dumps(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
    wire.send_bytes(told)
    if formed and not done:
        _leave_group()  # which closes its connections: others that wait for this member in a collective raise
    return formed and done


def _form_group(rank: int, size: int, store: tuple[str, int, str], backend: str) -> None:
    import torch
    from torch import distributed

    if distributed.is_initialized():
        raise InputError(
            "this process has a process group of its own; call torch.distributed.destroy_process_group() before the gang"
        )
    cuda = backend != "gloo" and torch.cuda.is_available() and distributed.is_nccl_available()
    if backend == "nccl" and not cuda:
        raise InputError("engine.backend = 'nccl': there is no CUDA device here that NCCL can use; write 'gloo' or 'auto'")
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    host, port, prefix = store
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=distributed.PrefixStore(prefix, distributed.TCPStore(host, port, is_master=False)),
        rank=rank,
        world_size=size,
        timeout=LONG,
    )


def _leave_group() -> None:
    from torch import distributed

    distributed.destroy_process_group()
