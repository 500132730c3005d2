"""The Spark jobs that carry errands: on the RDD path, where there is a context, and on the DataFrame path, which Spark Connect has too.

A round is one job. Each of its tasks does the errands of one part of the cohort, and the answers are collected. Spark tries a task
again when its worker is lost, and gives up the whole job, with what all others have done, when that happens too often. So a task
that comes to a try too many does nothing and says so: the answers of the others are kept, and its own errands can be tried one by
one.
"""

from __future__ import annotations

import gc
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

from hansa.core.errors import RunFailed
from hansa.engines.remote import SETUP, Errand, Sender
from hansa.engines.shards import WHOLE
from hansa.engines.spark_homes import at_home, settled
from hansa.engines.spark_session import PATIENCE, Cluster, said, tolerant

PULSE = 0.5
"""Seconds between two looks at whether tasks run, once patience is over."""

IDLE = 5.0
"""Seconds of looks without a running task after which no worker is expected any more."""

CLOSURE = 2**18
"""Bytes up to which data is sent with every task; what is larger is sent once to every machine."""

GROUPS = 64
"""Broadcasts at most in which the recipes are sent, so that a worker need not read all to have one."""

Part: TypeAlias = Sequence[Errand]
Answers: TypeAlias = "list[tuple[int, bytes | None]]"
"""(block, answer) of each errand, None where its task had no try left."""


class Jobs(Protocol):
    """What either path offers to the engine."""

    def run(self, call: bytes, parts: Sequence[Part], parcels: Mapping[int, bytes], tries: int) -> Answers:
        """Do errands, each part in one task, which is tried so often at most; ``parcels`` are what workers have said they lack."""
        ...

    def together(self, members: int, task: Callable[[int], None]) -> None:
        """Run ``task(rank)`` in tasks that begin together."""
        ...

    def close(self) -> None:
        """Take back what was sent."""
        ...


class ContextJobs:
    """The RDD path. The numbers of the parts are cached where their tasks ran: Spark prefers those executors from then on, so that
    data stays where it was loaded, and takes others when they are lost."""

    def __init__(self, cluster: Cluster, sender: Sender) -> None:
        self._context, self._most, self._transfer = cluster.context, cluster.tries(), sender.transfer
        self._parcels = _broadcast(self._context, sender.all_parcels())
        self._numbers: dict[int, Any] = {}

    def run(self, call: bytes, parts: Sequence[Part], parcels: Mapping[int, bytes], tries: int) -> Answers:
        sent: list[Any] = []

        def ship(data: bytes) -> Any:
            if len(data) <= CLOSURE:
                return data
            sent.append(self._context.broadcast(data))
            return sent[-1]

        try:
            with self._transfer:
                packed, shared = [ship(pickle.dumps(part, protocol=5)) for part in parts], ship(call)
            work = partial(_do_part, packed, shared, self._parcels, _enough(tries, self._most))
            answers: Answers = self._cached(len(parts)).mapPartitionsWithIndex(work).collect()
        finally:
            for broadcast in sent:
                broadcast.destroy()
        return answers

    def together(self, members: int, task: Callable[[int], None]) -> None:
        ranks = self._context.parallelize(list(range(members)), members)
        ranks.barrier().mapPartitionsWithIndex(partial(_be_member, task)).collect()

    def close(self) -> None:
        for numbers in self._numbers.values():
            numbers.unpersist()
        for broadcast in self._parcels.broadcasts:
            broadcast.destroy()

    def _cached(self, parts: int) -> Any:
        if parts not in self._numbers:
            self._numbers[parts] = self._context.parallelize(list(range(parts)), parts).cache()
        return self._numbers[parts]


class FrameJobs:
    """The DataFrame path: errands travel in the function, and so do the recipes while they are small; else those that a worker says
    it lacks."""

    def __init__(self, cluster: Cluster, sender: Sender) -> None:
        self._session, self._most, self._transfer = cluster.frames(), cluster.tries(), sender.transfer
        setup = sender.parcels([SETUP])
        self._always = setup if len(setup[SETUP]) <= 2 * WHOLE else {}

    def run(self, call: bytes, parts: Sequence[Part], parcels: Mapping[int, bytes], tries: int) -> Answers:
        with self._transfer:
            packed = [pickle.dumps(part, protocol=5) for part in parts]
        work = partial(_do_batches, packed, call, {**self._always, **parcels}, _enough(tries, self._most))
        table = self._map(work, len(parts), barrier=False)
        with self._transfer:
            return list(zip(table["number"].to_pylist(), table["answer"].to_pylist(), strict=True))

    def together(self, members: int, task: Callable[[int], None]) -> None:
        self._map(partial(_be_members, task), members, barrier=True)

    def close(self) -> None:
        """Nothing was sent but with the jobs."""

    def _map(self, work: Callable[..., Any], parts: int, barrier: bool) -> Any:
        with tolerant():
            frame = self._session.range(0, parts, 1, parts)
            return frame.mapInArrow(work, "number long, answer binary", barrier).toArrow()


@contextmanager
def watched(cluster: Cluster, tag: str, small: bool = False) -> Iterator[None]:
    """A job that no worker takes is cancelled; whatever Spark raises becomes RunFailed in one sentence.

    small: by then the job is over, if any worker took it; for Spark Connect, which does not say whether tasks run.
    """
    over, stalled = threading.Event(), threading.Event()

    def watch() -> None:
        if over.wait(PATIENCE):
            return
        idle = 0
        while not over.wait(PULSE):
            idle = idle + 1 if small or cluster.idle() else 0
            if idle * PULSE > IDLE:
                stalled.set()
                cluster.cancel(tag)
                return

    watcher = threading.Thread(target=watch, name="hansa-spark-watch", daemon=True)
    watcher.start()
    try:
        with cluster.tagged(tag):
            yield
    except Exception as error:
        if stalled.is_set():
            raise RunFailed(
                f"engine spark: no worker has taken a task for {PATIENCE:.0f} seconds; see that the cluster has workers and free cores"
            ) from error
        raise RunFailed(f"engine spark: {_explained(said(error), cluster.tries())}") from error
    finally:
        over.set()
        watcher.join()


def _enough(tries: int, most: int) -> int:
    """The number of tries after which a task does nothing, so that Spark, which allows ``most``, does not give up the job."""
    return min(tries, most - 1) if most > 1 else sys.maxsize


def _explained(why: str, tries: int) -> str:
    if "No module named 'hansa" in why:
        return f"the workers cannot import hansa ({why}); install the same packages there as here"
    if tries == 1:
        return f"a task failed ({why}), and this Spark tries none again; make its master 'local[2,4]' in place of 'local[2]'"
    return f"the job failed ({why})"


# At the worker


def _do_part(
    packed: list[Any], call: Any, parcels: Mapping[int, bytes], tries: int, part: int, rows: Iterable[Any]
) -> Iterator[Any]:
    """The errands of one part; after so many tries, nothing."""
    from pyspark import TaskContext

    for _ in rows:  # what Spark sends must be read, or it will not use this process again
        pass
    errands: Part = pickle.loads(_received(packed[part]))  # noqa: S301  # from this job's own driver
    context = TaskContext.get()
    over = context is not None and context.attemptNumber() >= tries
    if over:
        yield from ((errand.block.number, None) for errand in errands)
        return
    with at_home(errands[0].token, f"{part} of {len(packed)}", _spare_the_collector) as done:
        for errand in errands:
            yield errand.block.number, done(errand, _received(call), parcels)
    settled()
    _spare_the_collector()


_modules = 0


def _spare_the_collector() -> None:
    """Take what was imported out of the garbage collector's sight: Spark lets it look through everything after each task, which
    takes longer than a round where a process holds scikit-learn."""
    global _modules
    if len(sys.modules) != _modules:
        _modules = len(sys.modules)
        gc.unfreeze()
        gc.collect()
        gc.freeze()


def _do_batches(
    packed: list[bytes], call: bytes, parcels: Mapping[int, bytes], tries: int, batches: Iterable[Any]
) -> Iterator[Any]:
    import pyarrow

    parts = [part for batch in batches for part in batch.column(0).to_pylist()]
    for part in parts:
        for number, answer in _do_part(packed, call, parcels, tries, part, ()):
            columns = [pyarrow.array([number], pyarrow.int64()), pyarrow.array([answer], pyarrow.binary())]
            yield pyarrow.RecordBatch.from_arrays(columns, ["number", "answer"])


def _be_member(task: Callable[[int], None], rank: int, rows: Iterable[Any]) -> list[None]:
    for _ in rows:
        pass
    task(rank)
    return []


def _be_members(task: Callable[[int], None], batches: Iterable[Any]) -> Iterator[Any]:
    import pyarrow

    for rank in [rank for batch in batches for rank in batch.column(0).to_pylist()]:
        task(rank)
    columns = [pyarrow.array([], pyarrow.int64()), pyarrow.array([], pyarrow.binary())]
    yield pyarrow.RecordBatch.from_arrays(columns, ["number", "answer"])


def _received(data: Any) -> bytes:
    return data if isinstance(data, bytes) else data.value


# Both


class _Broadcasts(Mapping[int, bytes]):
    """Parcels in broadcasts, of which a worker reads those that it needs, when it needs them."""

    def __init__(self, numbers: list[int], broadcasts: list[Any]) -> None:
        self.numbers, self.broadcasts = numbers, broadcasts

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __getitem__(self, number: int) -> bytes:
        here = self.broadcasts[self.numbers.index(number) * len(self.broadcasts) // len(self.numbers)]
        for other in self.broadcasts:
            if other is not here:
                vars(other).pop("_value", None)  # what was made of it is kept, the bytes need not be
        parcel: bytes = here.value[number]
        return parcel


def _broadcast(context: Any, parcels: Mapping[int, bytes]) -> _Broadcasts:
    numbers = sorted(parcels)
    count = min(GROUPS, len(numbers))
    groups: list[dict[int, bytes]] = [{} for _ in range(count)]
    for place, number in enumerate(numbers):
        groups[place * count // len(numbers)][number] = parcels[number]
    return _Broadcasts(numbers, [context.broadcast(group) for group in groups])
