"""Hansa through its public API: `--learner mlp|torch|jax`, engine inline or processes."""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import pairwise

import hansa
from benchmarks.workloads import RATE, WORKLOADS, Clock
from hansa.data import Fixed, Synthetic


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--learner", default="mlp")
    given = parser.parse_args()
    w = WORKLOADS[given.workload]
    learner: object
    if given.learner == "mlp":
        learner = hansa.MLP(hidden=(200, 200) if w.model == "2nn" else ())
    elif given.learner == "jax":
        learner = hansa.JaxLearner(model="benchmarks.jax_models:pair", options={"model": w.model})
    else:
        learner = hansa.TorchLearner(module="benchmarks.models:make", options={"model": w.model})
    job = hansa.Job(
        data=Synthetic(clients=w.clients, features=784, rows=Fixed(count=67), iid=True)
        if w.synthetic
        else hansa.BuiltIn("fashion_mnist"),
        learner=learner,
        algorithm=hansa.FedAvg(local=hansa.Local(epochs=1, batch_size=w.batch, learning_rate=RATE)),
        partition=hansa.Column() if w.synthetic else hansa.IID(clients=w.clients),
        split=hansa.Split(test=0.1 if w.synthetic else 0.0),
        rounds=hansa.Rounds(count=w.rounds + 1, clients=w.cohort, block=w.cohort // 2),
        evaluation=hansa.Evaluation(every=w.rounds + 1, clients=min(200, w.clients)),
        engine=hansa.Inline() if given.processes == 1 else hansa.Processes(workers=given.processes),
    )
    clock, whole = Clock(), []

    def observe(stage: str) -> None:
        if stage in ("evaluate", "save") and len(clock.marks) == len(whole):
            clock.mark()
        if stage == "saved":
            whole.append(time.time())

    with tempfile.TemporaryDirectory() as folder:
        run = hansa.run(job, directory=folder, quiet=True, observe=observe)
    loop = [record["seconds"] for record in run.history[1:-1]]
    saved = [b - a for a, b in pairwise(whole)][:-1]
    clock.marks = [clock.marks[0], *(clock.marks[0] + sum(loop[: k + 1]) for k in range(len(loop)))]
    clock.report(run.metrics["test/accuracy" if w.synthetic else "central/accuracy"], with_saving=sorted(saved)[len(saved) // 2])


if __name__ == "__main__":
    main()
