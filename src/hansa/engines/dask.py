"""The engine of a Dask cluster: one on this machine that lives as long as the engine, or one that runs already.

A block is a task whose argument and result are bytes; clients' data is in no task's result, so Dask never moves or loses any. Tasks
are pinned softly to the worker that holds their clients: a hard pin to a worker that dies waits for ever. So does a soft one where
for a moment there is no worker at all (the scheduler then keeps it until the one it names is back), and such tasks are sent again.
What is large is sent as the result of a task, which Dask makes again after a loss, and not by ``scatter``, whose data is lost.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge

from hansa.core.accounting import Stopwatch
from hansa.core.blocks import Block, Client
from hansa.core.contracts import Call, ClientStore, Collectives, Engine, Result, UnboundLearner
from hansa.core.errors import InputError, RunFailed
from hansa.engines.dask_cluster import Cluster, connect
from hansa.engines.dask_gang import run_gang
from hansa.engines.remote import SETUP, Lacking, Sender, do, owner

R = TypeVar("R")

LARGE = 2**16
"""Bytes above which something that several tasks need is sent as the result of a task: once to each worker, and later."""

TOGETHER = 0.004
"""Seconds that results wait for others to be fetched with; to fetch takes about as long, for one as for many."""

ENDED = ("finished", "error", "cancelled")
"""What a task can be that nothing more is heard of; one whose result is lost with a worker is done again."""

PULSE = 1.0
"""Seconds without news after which the cluster is asked whether it has workers."""

PATIENCE = 60.0
"""Seconds that a cluster may be without any worker; one that died is replaced sooner."""


@dataclass(frozen=True)
class Dask:
    """The workers of a Dask cluster.

    address: of the scheduler of a running cluster, ``dask://host:8786``, which is left running; empty for a cluster on this machine.
    workers: how many a cluster on this machine has; 0 for one per CPU core.
    """

    name: Literal["dask"] = field(default="dask", kw_only=True)
    address: str = ""
    workers: Annotated[int, Ge(0)] = 0

    def build(self) -> Engine:
        """Raises InputError where both a running cluster and a number of workers to start are given."""
        if self.address and self.workers:
            raise InputError(
                f"engine dask: workers = {self.workers} is for a cluster that is started here, and address = {self.address!r} is one "
                "that runs; leave one of the two out"
            )
        return DaskEngine(self.address, self.workers)


class DaskEngine:
    """See :class:`Dask`."""

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self.address, self.workers = address, workers
        self._cluster: Cluster | None = None
        self._sender: Sender | None = None
        self._homes: list[str] = []
        self._told: set[str] = set()
        self._round: _Round | None = None

    @property
    def transfer(self) -> Stopwatch | None:
        """Runs while messages and results are packed, moved and unpacked here."""
        return None if self._sender is None else self._sender.transfer

    def start(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None:
        """Start a cluster, or connect to one. InputError where there is none at the address, where it has no workers or other
        versions than here, and for a learner that cannot be sent; RunFailed when workers cannot be started."""
        self._settle()
        self._sender, self._told = Sender("dask", learner, clients, store), set()
        self._connected()

    def map(self, call: Call, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        """Do the call on every block. A map that was left early is given up when the next one begins.

        Raises RunFailed when the cluster is lost, InputError when its workers cannot read what they are sent.
        """
        assert self._sender is not None, "start the engine first"
        self._settle()
        cluster = self._connected()
        self._homes = seats(self._homes, cluster.workers_lately())
        self._round = current = _Round(cluster, self._sender, call)
        try:
            current.begin(blocks, self._homes, self._told)
            while current.left:
                yield from current.wait()
        finally:
            current.end()

    def gang(self, function: Callable[[Collectives], R], members: int) -> list[R]:
        """Run ``function`` on as many workers, which it holds until it returns; each member has a worker process of its own."""
        self._settle()
        return run_gang(self._connected(), function, members)

    def stop(self) -> None:
        """End the cluster that was started here, or leave the one that ran already. The engine may be started again."""
        self._settle()
        if self._cluster is not None:
            self._cluster.close()
        self._cluster, self._sender, self._homes = None, None, []

    def _connected(self) -> Cluster:
        if self._cluster is None:
            self._cluster = connect(self.address, self.workers)
        return self._cluster

    def _settle(self) -> None:
        if self._round is not None:
            self._round.end()
            self._round = None


def seats(before: Sequence[str], live: set[str]) -> list[str]:
    """The live workers in an order that owners are counted by: whoever was there keeps its place, so that the others keep their
    clients when one worker replaces another."""
    new = sorted(live - set(before))
    kept = [address if address in live else new.pop(0) if new else "" for address in before]
    return [address for address in kept if address] + new


class _Round:
    """One map: the tasks that are under way, and what they share."""

    def __init__(self, cluster: Cluster, sender: Sender, call: Call) -> None:
        self.cluster, self.client, self.sender = cluster, cluster.client, sender
        self.left = 0
        self._news: SimpleQueue[Any] = SimpleQueue()
        self._tasks: dict[Any, tuple[Block, str]] = {}
        self._suspects: list[Block] = []
        self._undone: list[Any] = []
        self._alone: Block | None = None
        self._call = sender.call(call)
        self._shared: dict[int | None, Any] = {}
        self._empty_since: float | None = None
        self._over = False

    def begin(self, blocks: Sequence[Block], homes: Sequence[str], told: set[str]) -> None:
        """Send every block to its home. One message for all blocks of a worker: the scheduler takes a millisecond for each."""
        self.left = len(blocks)
        at: dict[str, list[Block]] = {}
        for block in blocks:
            home = homes[owner(block, len(homes), len(self.sender.clients))] if homes else ""
            at.setdefault(home, []).append(block)
        for home, some in at.items():
            self._submit(some, home, () if home in told else (SETUP,))
            told.add(home)

    def wait(self) -> list[tuple[int, Result]]:
        """Results that have come; none at times."""
        if self._over:
            raise RunFailed("engine dask: this map was given up when the next one began; use its results first")
        news = self._listen()
        done: list[tuple[int, Result]] = []
        with self.sender.transfer:
            fetched = self._fetched(news)
        for task, answer in fetched.items():
            block, home = self._tasks.pop(task)
            result = self._lost(task, block) if answer is None else self.sender.take(answer)
            if isinstance(result, Lacking):
                self.cluster.doubt()
                self._submit([block], home, result.parcels)
            elif result is not None:
                done.append((block.number, result))
        if self._suspects and not self._tasks:
            self._alone = self._suspects.pop()
            self._submit([self._alone], "", ())
        self.left -= len(done)
        return done

    def end(self) -> None:
        """Forget everything, at the cluster too; tasks that run are not interrupted, and nobody hears their results."""
        if self._tasks and self.client.status == "running":
            self.client.cancel(list(self._tasks))
        self._over = True
        self._tasks.clear()
        self._shared.clear()

    def _submit(self, blocks: Sequence[Block], home: str, parcels: Sequence[int]) -> None:
        with self.sender.transfer:
            self._send(blocks, home, parcels)

    def _send(self, blocks: Sequence[Block], home: str, parcels: Sequence[int]) -> None:
        # Bytes, and not the errand: arrays that Dask moves by itself may arrive unaligned, and NumPy computes other digits from those.
        errands = [pickle.dumps(self.sender.errand(block), protocol=5) for block in blocks]
        call = self._given(None, self._call)
        given = {number: self._given(number, data) for number, data in self.sender.parcels(parcels).items()}
        pins = {"workers": [home], "allow_other_workers": True} if home else {}
        tasks = self.client.map(work, errands, [call] * len(blocks), [given] * len(blocks), pure=False, **pins)
        for task, block in zip(tasks, blocks, strict=True):
            self._tasks[task] = block, home
        self._hear(tasks)

    def _hear(self, tasks: Sequence[Any]) -> None:
        for task in tasks:
            task.add_done_callback(self._news.put)

    def _given(self, number: int | None, data: bytes) -> Any:
        """What tasks are given for a parcel, or for the call (None): the bytes, or the task of this round that returns them."""
        import dask

        if len(data) <= LARGE:
            return data
        if number not in self._shared or self._shared[number].status == "error":  # it too is blamed for a worker that dies
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": 2**60}):
                self._shared[number] = self.client.submit(bytes, data, pure=False)
        return self._shared[number]

    def _listen(self) -> list[Any]:
        """Tasks that have ended, at least one; or none where the cluster had to be asked how it is."""
        try:
            news = [self._news.get(timeout=PULSE)]
        except Empty:
            self._look()
            self._hear(self._undone)
            self._undone = []
            return []
        until = time.monotonic() + TOGETHER
        with suppress(Empty):
            while len(news) < len(self._tasks):
                news.append(self._news.get(timeout=max(0.0, until - time.monotonic())))
        # One whose result was lost with its worker is done again, or never: to hear of it at once would leave no time to look.
        self._undone += [task for task in news if task.status not in ENDED]
        return [task for task in news if task in self._tasks and task.status in ENDED]

    def _fetched(self, news: Sequence[Any]) -> dict[Any, bytes | None]:
        """The answers, None for tasks that failed. An answer that is lost with its worker is waited for until it is there again."""
        finished = {place: task for place, task in enumerate(news) if task.status == "finished"}
        if not finished:
            return dict.fromkeys(news)
        gathering = self.client.gather(finished, errors="skip", asynchronous=True)
        pending = asyncio.run_coroutine_threadsafe(gathering, self.client.loop.asyncio_loop)
        while not wait([pending], PULSE).done:
            self._look()
        try:
            answers = pending.result()
        except (OSError, CancelledError) as error:
            raise self.cluster.lost() from error
        return {task: answers.get(place) for place, task in enumerate(news) if task in self._tasks}

    def _look(self) -> None:
        """Nothing waits for ever: send again what no worker will ever be given. RunFailed where there has been no worker for long."""
        workers, now = self.cluster.workers(), time.monotonic()
        if workers:
            self._empty_since = None
            gone = [task for task, (_, home) in self._tasks.items() if home and home not in workers and task.status not in ENDED]
            taken = {key for keys in self.client.processing().values() for key in keys} if gone else set()
            self._send_again([task for task in gone if task.key not in taken])
            return
        self._empty_since = self._empty_since or now
        if now - self._empty_since > PATIENCE:
            raise RunFailed(
                f"engine dask: the cluster at {self.client.scheduler.address} has had no worker for {PATIENCE:.0f} seconds; "
                "start workers with `dask worker`, and see the workers' logs for why they ended"
            )

    def _send_again(self, tasks: Sequence[Any]) -> None:
        if tasks:
            self.client.cancel(list(tasks))
            self._submit([self._tasks.pop(task)[0] for task in tasks], "", ())

    def _lost(self, task: Any, block: Block) -> Result | None:
        """The failure of a block that was alone when its worker died; None for one that is tried again, after all others."""
        from distributed.scheduler import KilledWorker

        self.cluster.doubt()
        if task.status != "error":
            raise self.cluster.lost()
        error = task.exception()
        if not isinstance(error, KilledWorker):
            raise RunFailed(
                f"engine dask: a worker cannot do its task ({type(error).__name__}: {error}); install the same packages there as here"
            ) from error
        if block is self._alone:
            return self.sender.lost(block, f"{error.allowed_failures + 1} workers died of it")
        # Dask blames all tasks that a worker had when it died, and most of them only stood in line behind the one to blame.
        self._suspects.append(block)
        return None


def work(errand: bytes, call: bytes, parcels: Mapping[int, bytes]) -> bytes:
    """The task: see :func:`hansa.engines.remote.do`."""
    return do(pickle.loads(errand), call, parcels)  # noqa: S301  # from this job's own driver
