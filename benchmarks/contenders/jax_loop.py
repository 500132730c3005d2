"""FedAvg written by hand in JAX: the whole round is one compiled function, a scan over clients of a scan over steps.

For the CNN only the step is compiled: XLA computes convolutions several times slower on a CPU inside a loop that it compiles itself.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import jax_models as models
from benchmarks.workloads import RATE, WORKLOADS, Clock, cohort, data, drawn, shards, unseen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True)
    given = parser.parse_args()
    w, clock = WORKLOADS[given.workload], Clock()
    gradient, random = jax.grad(models.loss), np.random.default_rng(0)
    if w.synthetic:
        test_x, test_y = unseen(w)
        owned = np.arange(w.cohort * w.rows).reshape(w.cohort, w.rows)
    else:
        x, y, test_x, test_y = data()
        features, labels, owned = jnp.asarray(x), jnp.asarray(y.astype(np.int32)), shards(w)

    def step(p: list, features: jax.Array, labels: jax.Array, rows: jax.Array) -> list:
        return jax.tree.map(lambda a, g: a - RATE * g, p, gradient(p, features[rows], labels[rows]))

    @jax.jit
    def play(params: list, features: jax.Array, labels: jax.Array, batches: jax.Array) -> list:
        """One round; batches (clients, steps, batch) are row numbers."""

        def move(p: list, rows: jax.Array) -> tuple[list, None]:
            return step(p, features, labels, rows), None

        def client(total: list, steps: jax.Array) -> tuple[list, None]:
            return jax.tree.map(jnp.add, total, jax.lax.scan(move, params, steps)[0]), None

        total, _ = jax.lax.scan(client, jax.tree.map(jnp.zeros_like, params), batches)
        return jax.tree.map(lambda t: t / len(batches), total)

    moved = jax.jit(step)

    def play_by_steps(params: list, features: jax.Array, labels: jax.Array, batches: np.ndarray) -> list:
        total = jax.tree.map(jnp.zeros_like, params)
        for steps in batches:
            own = params
            for rows in steps:
                own = moved(own, features, labels, rows)
            total = jax.tree.map(jnp.add, total, own)
        return jax.tree.map(lambda t: t / len(batches), total)

    params, round = models.init(w.model), play_by_steps if w.model == "cnn" else play
    for number in range(w.rounds + 1):
        members = cohort(w, number)
        if w.synthetic:
            parts = [drawn(int(client)) for client in members]
            features, labels = (jnp.asarray(np.concatenate(side)) for side in zip(*parts, strict=True))
        rows = random.permuted(owned if w.synthetic else owned[members], axis=1)
        params = jax.block_until_ready(round(params, features, labels, rows.reshape(w.cohort, -1, w.batch)))
        clock.mark()
    clock.report(models.accuracy(params, test_x, test_y))


if __name__ == "__main__":
    main()
