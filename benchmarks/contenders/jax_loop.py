"""FedAvg written by hand in JAX: the whole round is one compiled function, a scan over clients of a scan over steps."""

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

    @jax.jit
    def play(params: list, x: jax.Array, y: jax.Array, batches: jax.Array) -> list:
        """One round; batches (clients, steps, batch) are row numbers."""

        def step(p: list, rows: jax.Array) -> tuple[list, None]:
            return jax.tree.map(lambda a, g: a - RATE * g, p, gradient(p, x[rows], y[rows])), None

        def client(total: list, steps: jax.Array) -> tuple[list, None]:
            return jax.tree.map(jnp.add, total, jax.lax.scan(step, params, steps)[0]), None

        total, _ = jax.lax.scan(client, jax.tree.map(jnp.zeros_like, params), batches)
        return jax.tree.map(lambda t: t / len(batches), total)

    params = models.init(w.model)
    for number in range(w.rounds + 1):
        members = cohort(w, number)
        if w.synthetic:
            parts = [drawn(int(client)) for client in members]
            features, labels = (jnp.asarray(np.concatenate(side)) for side in zip(*parts, strict=True))
        rows = random.permuted(owned if w.synthetic else owned[members], axis=1)
        params = jax.block_until_ready(play(params, features, labels, rows.reshape(w.cohort, -1, w.batch)))
        clock.mark()
    clock.report(models.accuracy(params, test_x, test_y))


if __name__ == "__main__":
    main()
