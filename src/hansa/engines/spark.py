"""The engine of a Spark cluster, or of a Spark on this machine.

A round is one Spark job with a task for every slot; answers arrive when the job ends. Spark gives a task to any of the Python
processes that wait on a machine; which of them holds the data of a part, they agree on (:mod:`hansa.engines.spark_homes`). Spark ends
processes that had nothing to do for a minute; others load again what these held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge

from hansa.core.accounting import Stopwatch
from hansa.core.blocks import Block, Client
from hansa.core.contracts import Call, ClientStore, Collectives, Engine, Result, UnboundLearner
from hansa.core.errors import InputError
from hansa.engines.remote import Errand, Lacking, Sender
from hansa.engines.remote_gang import Hub, join, pack_function
from hansa.engines.spark_jobs import ContextJobs, FrameJobs, Jobs, watched
from hansa.engines.spark_session import Cluster, open_spark, said

R = TypeVar("R")

TOGETHER = 1
"""Tries of a task with several blocks; after that each of them has a task of its own."""

ALONE = 2
"""Tries of a block in a task of its own."""

FAREWELL = 15.0
"""Seconds that the tasks of a gang that was given up have to end."""


@dataclass(frozen=True)
class Spark:
    """A Spark cluster, or a Spark on this machine.

    address: ``spark://host:7077`` or another master, ``sc://host:15002`` for Spark Connect. Empty for the SparkSession of this
             process, or where it has none for a new one with this machine's cores. A Spark that was started ends with the engine.
    workers: into how many tasks a round is cut, and the cores of a Spark that is started; 0 for as many as there are slots.
    path:    "rdd" is faster and needs a SparkContext, "dataframe" works with Spark Connect too; "auto" takes the first that can be.

    The workers of a Spark that is started run the Python that the environment variable PYSPARK_PYTHON names, by default this one.
    """

    name: Literal["spark"] = field(default="spark", kw_only=True)
    address: str = ""
    workers: Annotated[int, Ge(0)] = 0
    path: Literal["auto", "rdd", "dataframe"] = "auto"

    def build(self) -> Engine:
        return SparkEngine(self.address, self.workers, self.path)


class SparkEngine:
    """See :class:`Spark`."""

    def __init__(self, address: str, workers: int, path: str) -> None:
        self.address, self.workers, self.path = address, workers, path
        self._cluster: Cluster | None = None
        self._sender: Sender | None = None
        self._jobs: Jobs | None = None
        self._slots_seen = 0

    @property
    def transfer(self) -> Stopwatch | None:
        """Runs while messages and results are packed, moved and unpacked here."""
        return None if self._sender is None else self._sender.transfer

    def start(self, learner: UnboundLearner, clients: Sequence[Client], store: ClientStore) -> None:
        """Find or start Spark and send it the recipes.

        Raises InputError for an address or a recipe that cannot work and for what is not installed, RunFailed for a Spark that does
        not answer or has no workers.
        """
        self.stop()
        sender = Sender("spark", learner, clients, store)
        cluster = open_spark(self.address, self.workers)
        try:
            if cluster.context is None and self.path == "rdd":
                raise InputError(
                    "engine.path = 'rdd': Spark Connect has no SparkContext (write path = 'dataframe', or leave it out)"
                )
            cluster.wait_for_slots()
            by_context = cluster.context is not None and self.path != "dataframe"
            self._jobs = ContextJobs(cluster, sender) if by_context else FrameJobs(cluster, sender)
        except BaseException:
            cluster.end()
            raise
        self._cluster, self._sender = cluster, sender

    def map(self, call: Call, blocks: Sequence[Block]) -> Iterator[tuple[int, Result]]:
        """Do the call on every block.

        Raises InputError when it cannot be sent or read, RunFailed when Spark fails or no worker takes the work.
        """
        sender, jobs, cluster = self._sender, self._jobs, self._cluster
        assert sender is not None and jobs is not None and cluster is not None, "start the engine first"
        packed = sender.call(call)
        left = {block.number: sender.errand(block) for block in blocks}
        parts = _cut(list(left.values()), self.workers or max(1, self._slots(cluster)))
        lacking: set[int] = set()
        lost: set[int] = set()
        results: dict[int, Result] = {}
        while left:
            with watched(cluster, sender.token):
                answers = jobs.run(packed, parts, sender.parcels(sorted(lacking)), tries=ALONE if lost else TOGETHER)
            for number, answer in answers:
                if answer is None and number not in lost:
                    lost.add(number)
                    continue
                told = sender.take(answer) if answer is not None else sender.lost(left[number].block, "in all of several tries")
                if isinstance(told, Lacking):
                    lacking.update(told.parcels)
                else:
                    results[number] = told
                    del left[number]
            # A worker that was lost took a whole part with it; which block it was, tasks of their own will show.
            parts = _cut(list(left.values()), len(left) if lost & left.keys() else len(parts))
        yield from results.items()

    def gang(self, function: Callable[[Collectives], R], members: int) -> list[R]:
        """Run ``function`` in the tasks of a barrier stage. It is not tried again, nor would Spark do so where results are collected."""
        jobs, cluster, sender = self._jobs, self._cluster, self._sender
        assert sender is not None and jobs is not None and cluster is not None, "start the engine first"
        slots = self._slots(cluster)
        if members > slots:
            raise InputError(
                f"engine spark: a gang of {members} members needs {members} slots at once, and there are {slots} "
                f"(write engine.workers = {members} for a Spark on this machine, or give the cluster more cores)"
            )
        packed = pack_function("spark", function)
        tag = f"{sender.token}-gang"
        errors: list[Exception] = []

        def run() -> None:
            try:
                with cluster.tagged(tag):
                    jobs.together(members, partial(_join, hub.address, hub.authkey, members, packed))
            except Exception as error:  # noqa: BLE001  # told to whoever waits for the members
                errors.append(error)

        def alive() -> str | None:
            if tasks.is_alive():
                return None
            return f"Spark gave up its tasks ({said(errors[0])})" if errors else "its tasks ended before they were done"

        with Hub(members, cluster.host()) as hub:
            tasks = threading.Thread(target=run, name="hansa-spark-gang", daemon=True)
            tasks.start()
            try:
                return hub.results(alive)
            except BaseException:
                cluster.cancel(tag)
                raise
            finally:
                tasks.join(FAREWELL)

    def stop(self) -> None:
        """End a Spark that this engine started, and take from another what was sent to it. The engine may be started again."""
        cluster, jobs = self._cluster, self._jobs
        self._cluster = self._sender = self._jobs = None
        self._slots_seen = 0
        if jobs is not None:
            jobs.close()
        if cluster is not None:
            cluster.end()

    def _slots(self, cluster: Cluster) -> int:
        """Counted again for every round while executors may come and go; once where that costs a job."""
        if cluster.context is not None:
            return cluster.slots()
        assert self._sender is not None
        if not self._slots_seen:
            with watched(cluster, self._sender.token, small=True):
                self._slots_seen = cluster.slots()
        return self._slots_seen


def _cut(errands: list[Errand], parts: int) -> list[list[Errand]]:
    """Runs of about the same length, so that a client is mostly in the same part, whatever the cohort."""
    parts = min(parts, len(errands))
    return [errands[k * len(errands) // parts : (k + 1) * len(errands) // parts] for k in range(parts)]


def _join(address: tuple[str, int], authkey: bytes, members: int, function: bytes, rank: int) -> None:
    join(address, authkey, rank, members, function)
