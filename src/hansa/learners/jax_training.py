"""Local training as one compiled loop: over the clients of a block, and in it over the steps of each.

Every step takes its rows by number from the rows of the whole block, so nothing is padded client by client; a client's loop ends with its
own last step. Short mini-batches are padded with rows that count nothing. What decides the compiled code (:class:`Form`, and the shapes)
changes rarely: rows, steps and widths are rounded up a little.

Clients of a large model are trained one after another, its weights staying in the cache; those of a small one side by side (``vmap``),
where a step costs more to begin than to compute. Measured on one core of a CPU, 32 clients of 10 steps: 1.2 ms side by side and 2.3 ms one
after another with 400 weights, the same with 10,000, and with 200,000 a quarter longer side by side.

A model with convolutions is the exception on a CPU: inside a compiled loop XLA computes them several times slower than outside of one
(a step of the CNN of McMahan et al. took 191 ms instead of 34 ms with jaxlib 0.10.2). There the step is what is compiled, and the loops
are Python's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hansa.core.blocks import LoadedBlock
from hansa.core.local import SGD, LocalOptimizer, Plan, Trained, schedule
from hansa.core.params import Params
from hansa.learners.jax_losses import losses
from hansa.learners.jax_model import Model
from hansa.learners.mlp_batches import batches

SMALL = 5_000
"""Weights up to which clients are trained side by side on a CPU."""

Tree = dict[str, Any]
Carry = tuple[Tree, Tree, Any]
"""(weights, the optimiser's state, sum of the losses so far) of a client between two steps."""

Loops = Literal["clients side by side", "clients in turn", "no loop"]
"""What is compiled: all clients at once, the loop over clients with the one over steps inside, or a single step."""


@dataclass(frozen=True)
class Form:
    """What a training loop is compiled for."""

    model: Model
    loss: Any
    l2: float
    optimizer: LocalOptimizer
    clip: float
    proximal: float
    drift_per_client: bool
    loops: Loops


def train(model: Model, loss: Any, l2: float, params: Params, block: LoadedBlock, plan: Plan) -> Trained:
    """Train every client of the block from the same params, by the step that :mod:`hansa.core.local` defines."""
    times = schedule(block, plan.local)
    todo = batches(times, np.arange(len(block)))
    clients, steps, width = todo.rows.shape
    starts = np.cumsum(block.rows) - block.rows
    rows = np.zeros((clients, rounded(steps), min(rounded(width), plan.local.batch_size or rounded(width))), np.int32)
    rows[:, :steps, :width] = todo.rows + starts[:, None, None]
    count = np.zeros(rows.shape[:2], np.int32)
    count[:, :steps] = todo.count
    x, y = (padded([getattr(table, side) for table in block.tables]) for side in "xy")
    form = Form(
        model, loss, l2, plan.local.optimizer, plan.local.clip, plan.proximal, plan.drift_per_client, _loops(model, params, x[:1])
    )
    play = _played if form.loops == "no loop" else _compiled(_train)
    stacked, sums = play(form, params, plan.drift, x, y, rows, count, times.steps.astype(np.int32), plan.rate)
    # Copies: what JAX gives must not be written to, and algorithms change params in place.
    moved = {name: np.array(stacked[name]) for name in params}
    seen = (block.rows * times.epochs).astype(np.float64)
    return Trained(moved, times.steps, {"loss": (np.asarray(sums, dtype=np.float64), seen)})


def rounded(size: int) -> int:
    """The size, rounded up to three binary digits after its first: at most an eighth more, and eight sizes for each power of two."""
    unit = 1 << max(0, size.bit_length() - 4)
    return max(1, -(-size // unit) * unit)


def padded(parts: list[np.ndarray]) -> np.ndarray:
    """The parts one behind the other, with zeros up to a rounded number of rows."""
    rows = sum(map(len, parts))
    whole = np.zeros((rounded(rows), *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=whole[:rows])
    return whole


@cache
def compile_options() -> dict[str, Any]:
    """One thread a worker on a CPU, as everywhere in Hansa: workers are what runs in parallel."""
    return {"xla_cpu_multi_thread_eigen": False} if jax.default_backend() == "cpu" else {}


def _loops(model: Model, params: Params, x: np.ndarray) -> Loops:
    if jax.default_backend() != "cpu":
        return "clients side by side"
    if _has_convolutions(model, tuple((name, _form(value)) for name, value in params.items()), _form(x)):
        return "no loop"
    return "clients side by side" if sum(value.size for value in params.values()) <= SMALL else "clients in turn"


def _form(array: np.ndarray) -> tuple[tuple[int, ...], str]:
    return array.shape, str(array.dtype)


@cache
def _has_convolutions(model: Model, params: tuple[tuple[str, Any], ...], x: Any) -> bool:
    """Whether the model convolves rows of such a form; it is traced to find out, once."""
    given = {name: jax.ShapeDtypeStruct(*form) for name, form in params}
    return _convolves(jax.make_jaxpr(model.outputs)(given, jax.ShapeDtypeStruct(*x)).jaxpr)


def _convolves(program: Any) -> bool:
    inner = (getattr(part, "jaxpr", part) for equation in program.eqns for part in jax.tree.leaves(list(equation.params.values())))
    return any(equation.primitive.name == "conv_general_dilated" for equation in program.eqns) or any(
        _convolves(part) for part in inner if hasattr(part, "eqns")
    )


@cache
def _compiled(function: Any) -> Any:
    return jax.jit(function, static_argnums=0, compiler_options=compile_options())


def _played(
    form: Form, params: Tree, drift: Tree | None, x: Any, y: Any, rows: Any, count: Any, steps: Any, rate: Any
) -> tuple[Tree, Any]:
    """As :func:`_train`, with the loops in Python."""
    step, anchor = _compiled(_step), jax.device_put(params)
    x, y, rate = jax.device_put((x, y, rate))
    done: list[Carry] = []
    for client, last in enumerate(steps):
        own = drift and {name: value[client] for name, value in drift.items()} if form.drift_per_client else drift
        own, carry = jax.device_put(own), (anchor, _start(form.optimizer, anchor), jnp.zeros(()))
        for number in range(last):
            carry = step(form, carry, anchor, own, x, y, rows[client, number], count[client, number], rate, number)
        done.append(carry)
    return {name: np.stack([w[name] for w, _, _ in done]) for name in params}, np.array([total for _, _, total in done])


def _train(
    form: Form, params: Tree, drift: Tree | None, x: Any, y: Any, rows: Any, count: Any, steps: Any, rate: Any
) -> tuple[Tree, Any]:
    """(params stacked (clients, ...), each client's sum of losses (clients,))."""
    shared = None if form.drift_per_client else drift

    def one(own: tuple[Any, ...]) -> tuple[Tree, Any]:
        each, mine, real, last = own

        def step(number: Any, carry: Carry) -> Carry:
            return _step(
                form, carry, params, each if form.drift_per_client else shared, x, y, mine[number], real[number], rate, number
            )

        w, _, total = lax.fori_loop(0, last, step, (params, _start(form.optimizer, params), jnp.zeros(())))
        return w, total

    everyone = (drift if form.drift_per_client else None, rows, count, steps)
    return jax.vmap(one)(everyone) if form.loops == "clients side by side" else lax.map(one, everyone)


def _step(
    form: Form, carry: Carry, anchor: Tree, drift: Tree | None, x: Any, y: Any, rows: Any, real: Any, rate: Any, number: Any
) -> Carry:
    """Step ``number``, from 0, of one client, on the first ``real`` of the rows with the given numbers."""
    w, state, total = carry
    g, added = _gradient(form, w, x[rows], y[rows], real)
    d = _direction(form, g, w, anchor, drift)
    w, state = _move(form.optimizer, w, d, state, rate, number + 1)
    return w, state, total + added


def _gradient(form: Form, w: Tree, x: Any, y: Any, real: Any) -> tuple[Tree, Any]:
    """Gradient of the mean loss of the first ``real`` rows, penalty included, clipped; and the sum of their losses."""
    counts = jnp.arange(len(x)) < real

    def total(weights: Tree) -> Any:
        return jnp.where(counts, losses(form.loss, form.model.outputs(weights, x), y), 0.0).sum()

    added, g = jax.value_and_grad(total)(w)
    g = {name: v / jnp.maximum(real, 1).astype(v.dtype) + form.l2 * w[name] for name, v in g.items()}
    if form.clip:
        norm = jnp.sqrt(sum((v * v).sum() for v in g.values()))
        scale = jnp.minimum(1.0, form.clip / (norm + 1e-12))
        g = {name: v * scale for name, v in g.items()}
    return g, added


def _direction(form: Form, g: Tree, w: Tree, anchor: Tree, drift: Mapping[str, Any] | None) -> Tree:
    """``g + drift + proximal * (w - anchor)``, as :func:`hansa.core.local.direction`."""
    if drift is not None:
        g = {name: v + drift[name] for name, v in g.items()}
    if form.proximal:
        g = {name: v + form.proximal * (w[name] - anchor[name]) for name, v in g.items()}
    return g


def _start(optimizer: LocalOptimizer, params: Tree) -> dict[str, Tree]:
    """The optimiser's state before the first step."""
    kept = (("velocity",) if optimizer.momentum else ()) if isinstance(optimizer, SGD) else ("m", "v")
    return {name: jax.tree.map(jnp.zeros_like, params) for name in kept}


def _move(
    optimizer: LocalOptimizer, w: Tree, d: Tree, state: dict[str, Tree], rate: Any, count: Any
) -> tuple[Tree, dict[str, Tree]]:
    """One step of the optimisers of :mod:`hansa.core.local`, which work in place, without changing anything."""
    if isinstance(optimizer, SGD):
        if optimizer.momentum:
            v = jax.tree.map(lambda v, d: optimizer.momentum * v + d, state["velocity"], d)
            d = jax.tree.map(lambda v, d: d + optimizer.momentum * v, v, d) if optimizer.nesterov else v
            state = {"velocity": v}
        return jax.tree.map(lambda w, d: w - (rate * d).astype(w.dtype), w, d), state
    beta1, beta2 = optimizer.beta1, optimizer.beta2
    m = jax.tree.map(lambda m, d: beta1 * m + (1 - beta1) * d, state["m"], d)
    v = jax.tree.map(lambda v, d: beta2 * v + (1 - beta2) * d * d, state["v"], d)

    def moved(w: Any, m: Any, v: Any) -> Any:
        corrected = jnp.sqrt(v / (1 - beta2**count))
        return w - ((rate / (1 - beta1**count)) * m / (corrected + optimizer.epsilon)).astype(w.dtype)

    return jax.tree.map(moved, w, m, v), {"m": m, "v": v}
