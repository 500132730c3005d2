"""Google's FedJAX: its federated_averaging on the jit backend."""

from __future__ import annotations

import argparse

import jax

# ruff: noqa: E402  # the line below must come before the imports that need it
# FedJAX 0.0.17 uses a name that JAX has since removed; without it nothing of FedJAX runs on a JAX of today.
jax.tree_map = jax.tree_util.tree_map

import fedjax
import haiku as hk
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg

from benchmarks.workloads import RATE, WORKLOADS, Clock, data, shards


def network(model: str) -> hk.Transformed:
    def apply(x: jnp.ndarray) -> jnp.ndarray:
        if model == "softmax":
            return hk.Linear(10)(x)
        if model == "2nn":
            return hk.Sequential([hk.Linear(200), jax.nn.relu, hk.Linear(200), jax.nn.relu, hk.Linear(10)])(x)
        x = x.reshape(-1, 28, 28, 1)
        for width in (32, 64):
            x = hk.MaxPool((2, 2, 1), (2, 2, 1), "SAME")(jax.nn.relu(hk.Conv2D(width, 5)(x)))
        return hk.Linear(10)(jax.nn.relu(hk.Linear(512)(hk.Flatten()(x))))

    return hk.without_apply_rng(hk.transform(apply))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True)
    given = parser.parse_args()
    w, clock = WORKLOADS[given.workload], Clock()
    x, y, test_x, test_y = data()
    clients = {f"{k:04d}".encode(): {"x": x[rows], "y": y[rows]} for k, rows in enumerate(shards(w))}
    sampler = fedjax.client_samplers.UniformGetClientSampler(fedjax.InMemoryFederatedData(clients), w.cohort, seed=0)
    net = network(w.model)

    def loss(params, batch, rng):  # type: ignore[no-untyped-def]  # fedjax has no types
        logits = jax.nn.log_softmax(net.apply(params, batch["x"]))
        return -jnp.mean(jnp.take_along_axis(logits, batch["y"][:, None], axis=1))

    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(RATE),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=w.batch, num_epochs=1),
    )
    state = algorithm.init(net.init(jax.random.PRNGKey(0), x[:1]))
    for number in range(w.rounds + 1):
        sampler.set_round_num(number)
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        clock.mark()
    found = np.concatenate([np.asarray(net.apply(state.params, part)).argmax(1) for part in np.array_split(test_x, 5)])
    clock.report(float((found == test_y).mean()))


if __name__ == "__main__":
    main()
