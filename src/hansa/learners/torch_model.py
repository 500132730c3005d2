"""The user's module: how it is found, what its params are, and the scope in which PyTorch works for Hansa."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from hansa.core.contracts import Schema
from hansa.core.errors import InputError
from hansa.core.params import Kind, Kinds, Params
from hansa.learners.factories import factory_named, named, refuse_arguments

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def scoped(device: torch.device) -> Iterator[None]:
    """PyTorch with one thread, deterministic convolutions and its own random state; all three are given back afterwards.

    One thread a worker: the number of threads changes the order of sums, and so the bits. Threads of one process take turns,
    because these settings and the random state belong to the process.
    """
    cuda = device.type == "cuda"
    with (
        _ONE_AT_A_TIME,
        torch.random.fork_rng(devices=[device] if cuda else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def seed_generators(key: int, device: torch.device) -> None:
    """Seed the generators that ``scoped`` gives back, and no other (``torch.manual_seed`` would seed every device)."""
    torch.default_generator.manual_seed(key >> 1)  # signed 64 bits
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(key >> 1)


def device_named(name: str) -> torch.device:
    """``auto`` is the first CUDA device where there is one. InputError for "cuda" without one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError('learner.device = "cuda": PyTorch sees no CUDA device here; write "auto" or "cpu"')
    return torch.device(name)


def build(module: Any, options: Mapping[str, Any], key: int) -> nn.Module:
    """A fresh module: a copy of one that was given ready-made, or what the factory makes under the random key (in ``scoped``)."""
    if isinstance(module, nn.Module):
        if options:
            raise InputError(
                f"learner.options = {dict(options)} are a factory's arguments; the module given is ready-made: leave them out"
            )
        return copy.deepcopy(module)
    factory, what = factory_named(module, "learner.module") if isinstance(module, str) else module, named(module)
    if not callable(factory):
        raise InputError(
            f"learner.module = {what} is a {type(factory).__name__}; it must be an nn.Module or a function that makes one"
        )
    refuse_arguments(factory, options, what)
    seed_generators(key, torch.device("cpu"))
    made = factory(**options)
    if not isinstance(made, nn.Module):
        raise InputError(f"learner.module = {what} made a {type(made).__name__}; it must make an nn.Module")
    return made


def materialise(module: nn.Module, schema: Schema | None) -> None:
    """Give lazy layers (nn.LazyLinear, ...) their shapes, from one example as the schema says it is."""
    if not any(
        isinstance(value, (UninitializedParameter, UninitializedBuffer)) for value in [*module.parameters(), *module.buffers()]
    ):
        return
    if schema is None or not schema.shape:
        raise InputError(
            "the module has lazy layers, whose shapes come from the data: bind the learner to a schema with a shape first"
        )
    training = module.training
    with torch.no_grad():
        module.eval()(torch.zeros(1, *schema.shape, dtype=torch.int64 if np.dtype(schema.dtype).kind in "iu" else None))
    module.train(training)


def laid_out(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The module, its weights with channels last where it convolves images and takes that. shape: of one row's features.

    PyTorch's max pooling on a CPU is fast so, and slow otherwise. A module that gives something else, or nothing, on two rows
    (``x.view(...)`` wants channels first) stays as it is.
    """
    convolutions = [layer.weight for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    if not convolutions:
        return module
    example = torch.linspace(-1, 1, 2 * math.prod(shape), dtype=convolutions[0].dtype).reshape(2, *shape)
    first, last = (in_layout(copy.deepcopy(module).eval(), f) for f in (torch.contiguous_format, torch.channels_last))
    try:
        outputs = first(example), last(example)
        outputs[1].sum().backward()
    except Exception:  # noqa: BLE001  # whatever a module raises: if it does so with channels first too, that is said where it is tried
        return module
    return in_layout(module, torch.channels_last) if torch.allclose(*outputs, rtol=1e-3, atol=1e-5) else module


def in_layout(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The module itself, with its tensors in that layout."""
    options: dict[str, Any] = {"memory_format": layout}  # which PyTorch's types do not name
    return module.to(**options)


class Model:
    """A private copy of the user's module, into whose own memory params are loaded before each use.

    Tensors that PyTorch allocates are aligned, so that the bits do not depend on where the params lay.

    weights:  parameters that are trained; a shared one is listed once.
    others:   frozen parameters and persistent buffers.
    obstacle: why clients cannot be trained as one batch; None when they can, missing as long as nobody has tried.
    perceptron: the module as a perceptron, None when it is none; missing likewise.
    """

    obstacle: str | None
    perceptron: Any

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.module = module.to(device)
        stored = module.state_dict(keep_vars=True)
        parameters = dict(module.named_parameters())
        self.weights: dict[str, torch.Tensor] = {name: p for name, p in parameters.items() if p.requires_grad}
        self.others = {name: p.detach() for name, p in parameters.items() if not p.requires_grad}
        self.others |= {name: buffer for name, buffer in module.named_buffers() if name in stored}
        if not self.weights:
            raise InputError(f"{type(module).__name__} has no parameters to train (none with requires_grad)")
        # What the module computes in; the features' NumPy type follows it, float32 where NumPy has no such type.
        self.dtype = next((w.dtype for w in self.weights.values() if w.is_floating_point()), torch.float32)

        self.floating = np.dtype(np.float64 if self.dtype == torch.float64 else np.float32)

    @property
    def names(self) -> list[str]:
        return [*self.weights, *self.others]

    def kinds(self) -> Kinds:
        kinds: dict[str, Kind] = dict.fromkeys(self.weights, "weight")
        for name, value in self.others.items():
            kinds[name] = "buffer" if value.is_floating_point() else "counter"
        return kinds

    def params(self) -> Params:
        """What the module holds, as NumPy arrays of its own memory."""
        self._find_buffers()
        return {name: array(value) for name, value in (self.weights | self.others).items()}

    def rows(self, values: np.ndarray) -> torch.Tensor:
        """Features or targets on the model's device, in the type it computes in."""
        moved = tensor(values, self.device)
        return moved.to(self.dtype) if moved.is_floating_point() else moved

    def load(self, params: Params) -> nn.Module:
        """Copy params into the module. InputError when they are another model's."""
        mine = self.weights | self.others
        odd = set(params) ^ set(mine)
        if odd:
            raise InputError(
                f"the params are not those of {type(self.module).__name__}: {sorted(odd)[0]!r} is in only one of the two"
            )
        self._find_buffers()
        with torch.no_grad():
            for name, value in (self.weights | self.others).items():
                given = np.asarray(params[name])
                if given.shape != tuple(value.shape):
                    raise InputError(
                        f"param {name!r} has shape {given.shape}; {type(self.module).__name__} has {tuple(value.shape)}"
                    )
                value.copy_(tensor(given, self.device))
        return self.module

    def _find_buffers(self) -> None:
        # A module may assign a new tensor to a buffer (`self.mean = ...`), so what was found before can be stale.
        buffers = dict(self.module.named_buffers())
        self.others = {name: buffers.get(name, value) for name, value in self.others.items()}


def tensor(values: Any, device: torch.device) -> torch.Tensor:
    """A tensor of an array's values, over its own memory where that can be."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"])).to(device)


def array(values: torch.Tensor) -> np.ndarray:
    """An owned NumPy array of a tensor's values; half precision widens to float32 and booleans to int8, which can be added."""
    wider = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.bool: torch.int8}
    return values.detach().to("cpu", wider.get(values.dtype, values.dtype), copy=True).contiguous().numpy()
