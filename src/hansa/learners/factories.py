"""Models of the user's own, by the name of the function that makes them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hansa.core.errors import InputError, did_you_mean
from hansa.core.randomness import derive


def factory_named(path: str, option: str) -> Callable[..., Any]:
    """What ``"package.module:name"`` or ``"path/to/file.py:name"`` names. InputError, about that option, when there is no such thing."""
    place, _, name = path.rpartition(":")
    if not place or not name:
        raise InputError(f"{option} = {path!r} names no factory; write 'package.module:factory' or 'path/to/file.py:factory'")
    if place.endswith(".py"):
        source = _imported_file(Path(place), option)
    else:
        try:
            source = importlib.import_module(place)
        except ImportError as error:
            raise InputError(f"{option} = {path!r}: {place} cannot be imported: {error}") from error
    if not hasattr(source, name):
        public = [other for other in vars(source) if not other.startswith("_")]
        raise InputError(f"{option} = {path!r}: {place} has no {name!r}{did_you_mean(name, public)}")
    factory: Callable[..., Any] = getattr(source, name)
    return factory


def _imported_file(path: Path, option: str) -> Any:
    """The file as a module, imported once for each state of the file and registered, so that its classes can be pickled."""
    if not path.is_file():
        raise InputError(f"{option}: there is no file {str(path)!r} in {Path.cwd()}; write its path from there, or in full")
    name = f"{path.stem}_{derive(str(path.resolve()), path.stat().st_mtime_ns):016x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # for a .py file there always is one
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def named(model: Any) -> str:
    """What a model or a factory is called in a message."""
    return model if isinstance(model, str) else getattr(model, "__qualname__", type(model).__name__)


def refuse_arguments(factory: Callable[..., Any], options: Mapping[str, Any], what: str) -> None:
    """InputError for options that are not the arguments of the factory."""
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise InputError(f"learner.options = {dict(options)} do not fit {what}{inspect.signature(factory)}: {error}") from error
