"""The user's pair of functions: how it is found, and its tree of params as a flat dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hansa.core.errors import InputError
from hansa.core.params import Params
from hansa.learners.factories import factory_named, named, refuse_arguments

_MADE: dict[tuple[Any, str], Any] = {}
"""What factories made, so that a model that is bound again is the same one, whose loops are compiled already."""


@dataclass(frozen=True)
class Model:
    """A model whose params have names. Equal models share their compiled loops.

    init:   (key, x) -> tree of params.
    apply:  (tree of params, x) -> outputs.
    names:  of the params, in the tree's own order: the path to each, joined by dots.
    tree:   how they are nested.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    names: tuple[str, ...]
    tree: Any

    def nested(self, params: Mapping[str, Any]) -> Any:
        """The params as the user's own tree."""
        return jax.tree_util.tree_unflatten(self.tree, [params[name] for name in self.names])

    def outputs(self, params: Mapping[str, Any], x: Any) -> Any:
        return self.apply(self.nested(params), x)

    def flat(self, tree: Any) -> Params:
        """The params of a tree by name, as NumPy arrays of their own."""
        return {name: np.array(leaf) for name, leaf in zip(self.names, jax.tree_util.tree_leaves(tree), strict=True)}


def functions_of(model: Any, options: Mapping[str, Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions (init, apply) of what a user gives for a model. InputError for anything else."""
    found = _pair(model)
    if found is None:
        factory, what = factory_named(model, "learner.model") if isinstance(model, str) else model, named(model)
        if not callable(factory):
            raise InputError(
                f"learner.model = {what} is a {type(factory).__name__}; it must be a pair of functions (init, apply), an object with "
                "these methods, or a function that makes one of them"
            )
        refuse_arguments(factory, options, what)
        key = (factory, repr(sorted(options.items())))
        if key not in _MADE:
            _MADE[key] = factory(**options)
        found = _pair(_MADE[key])
        if found is None:
            made = type(_MADE[key]).__name__
            raise InputError(f"learner.model = {what} made a {made}; it must make a pair of functions (init, apply)")
    elif options:
        raise InputError(
            f"learner.options = {dict(options)} are a factory's arguments; the model given is ready-made: leave them out"
        )
    return found


def _pair(model: Any) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    if isinstance(model, tuple | list) and len(model) == 2 and all(map(callable, model)):
        return model[0], model[1]
    if not isinstance(model, type) and callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None)):
        return model.init, model.apply
    return None


def modelled(functions: tuple[Callable[..., Any], Callable[..., Any]], what: str, x: Any) -> tuple[Model, tuple[int, ...]]:
    """The model with its names, and the shape of its outputs for ``x``, found without computing anything.

    InputError where the functions cannot take such rows, or make what cannot be trained.
    """
    init, apply = functions
    tree = _shapes(what, x, init, jax.random.key(0), x)
    if isinstance(tree, Mapping) and "params" in tree and len(tree) > 1:
        others = ", ".join(sorted(set(map(str, tree)) - {"params"}))
        raise InputError(f"{what} keeps {others} beside its params, which change while it is applied; use layers that keep nothing")
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = tuple(".".join(map(_step, path)) for path, _ in paths)
    if all(name.startswith("params.") for name in names):  # of flax
        names = tuple(name.removeprefix("params.") for name in names)
    whole = [name for name, (_, leaf) in zip(names, paths, strict=True) if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    if whole or not names or len(set(names)) < len(names):
        reason = f"{whole[0]!r} is not of a floating type" if whole else "it makes none, or two of the same name"
        raise InputError(f"{what}: its params cannot be trained: {reason}")
    outputs = _shapes(what, x, apply, tree, x)
    if not hasattr(outputs, "shape"):
        raise InputError(f"{what} gives a {type(outputs).__name__} of outputs; it must give one array")
    return Model(init, apply, names, structure), tuple(outputs.shape)


def _shapes(what: str, x: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever the user's functions raise is the reason
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{what} cannot take rows of shape {x.shape[1:]} and type {x.dtype}: {reason}") from error


def _step(key: Any) -> str:
    """One step of a path into a tree: a key, an index or an attribute."""
    return str(next(getattr(key, kind) for kind in ("key", "idx", "name") if hasattr(key, kind)))
