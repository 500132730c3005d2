"""Sets of images: fetched once from OpenML, unpacked once, and from then on mapped, so that all processes of a machine share one copy."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from hansa.core.blocks import Table
from hansa.core.errors import InputError
from hansa.core.files import private_folder, replace_file
from hansa.core.pixels import Pixels
from hansa.data.sources import Rows

OPENML = {"mnist_784": "mnist_784", "fashion_mnist": "Fashion-MNIST"}
"""Sets of 70,000 images of 28 x 28 pixels, with their names at OpenML (version 1 of each)."""

CENTRAL = 10_000
"""The last rows of a set of images are its central test set, as its authors split it."""

UNPACKED = "~/.cache/hansa/unpacked"
"""Where the images of an archive are kept as they are in memory, under their own checksum."""

CHUNK = 1 << 20


def images(name: str, path: Path) -> Rows:
    """The set that lies in an archive with the arrays ``x`` and ``y``, which is fetched where it is not there.

    Raises InputError where it can neither be read nor fetched.
    """
    if not path.exists():
        _fetch(name, path)
    try:
        x, y = _arrays(path)
    except (KeyError, OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{path}: is no file with the arrays x and y ({error}); delete it to fetch it again") from error
    if len(x) != len(y) or len(x) <= CENTRAL:
        raise InputError(
            f"{path}: has {len(x):,} images and {len(y):,} labels, 70,000 of each belong there; delete it to fetch it again"
        )
    x, y = x.reshape(-1, 28, 28), y.astype(np.int64)
    return Rows(Pixels(x[:-CENTRAL]), y[:-CENTRAL], None, Table(Pixels(x[-CENTRAL:]), y[-CENTRAL:]), "classification")


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of an archive, ``x`` mapped from an unpacked copy where that can be kept."""
    with np.load(path, allow_pickle=False) as archive, ZipFile(path) as file:
        y, packed = archive["y"], file.getinfo("x.npy")
        try:
            copy = Path(UNPACKED).expanduser() / f"{path.stem}-{packed.CRC:08x}.npy"
            if not copy.exists():
                private_folder(copy.parent)
                with file.open(packed) as content:
                    replace_file(copy, iter(lambda: content.read(CHUNK), b""))
            return np.asarray(np.load(copy, mmap_mode="r", allow_pickle=False)), y
        except (InputError, OSError, RuntimeError, ValueError):  # no home, no place, or a copy that was damaged
            return archive["x"], y  # then every process has them for itself


def _fetch(name: str, path: Path) -> None:
    from sklearn.datasets import fetch_openml

    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces that it tries again; that it failed in the end is said below
            bunch = fetch_openml(OPENML[name], version=1, data_home=folder, as_frame=False, n_retries=1, parser="auto")
    except OSError as error:
        raise InputError(
            f"{path} does not exist, and {name} cannot be fetched from openml.org ({error}); "
            f"set HANSA_DATA_HOME to the folder that holds {path.name}"
        ) from error
    x = bunch.data.astype(np.uint8).reshape(-1, 28, 28)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written beside its place and moved there, so that a run that is killed leaves no half a file.
    handle, half = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, x=x, y=bunch.target.astype(np.uint8))
        os.replace(half, path)
    finally:
        Path(half).unlink(missing_ok=True)
