"""Data sets that are at hand by name: shipped with Hansa, with scikit-learn, or fetched once from OpenML."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from hansa.core.blocks import Table
from hansa.core.errors import InputError
from hansa.data.sources import Pixels, Rows, remembered

HOME = "HANSA_DATA_HOME"
"""The environment variable that names the folder of fetched data sets."""

SKLEARN = ("iris", "digits", "breast_cancer", "wine", "diabetes")
IMAGES = {"mnist_784": "mnist_784", "fashion_mnist": "Fashion-MNIST"}
"""Sets of 70,000 images of 28 x 28 pixels, with their names at OpenML (version 1 of each)."""

CENTRAL = 10_000
"""The last rows of a set of images are its central test set, as its authors split it."""


@dataclass(frozen=True)
class BuiltIn:
    """A data set by its name.

    ``heart_disease`` has four natural clients (hospitals) and missing values; the label is disease or none. The sets of
    scikit-learn are data frames under their own feature names, ``digits`` an array (1797, 64) in [0, 1]; they have no natural
    clients. ``mnist_784`` and ``fashion_mnist`` are float32 arrays (60000, 28, 28) in [0, 1] with a central test set of 10,000
    images, read from ``<name>.npz`` (arrays ``x``, ``y``) in the folder ``$HANSA_DATA_HOME`` or ``~/.cache/hansa``, where they are
    put when they are fetched for the first time.
    """

    name: Literal[
        "heart_disease", "iris", "digits", "breast_cancer", "wine", "diabetes", "mnist_784", "fashion_mnist"
    ]  # fmt: skip

    def read(self) -> Rows:
        """All rows. Raises InputError when a set of images is neither in the data home nor can be fetched."""
        if self.name == "heart_disease":
            return remembered(self, _heart_disease)
        if self.name in IMAGES:
            # Every client's load asks, so it must cost nothing where the images are there: no path is made.
            return remembered((self, os.environ.get(HOME)), lambda: _images(self.name, data_home() / f"{self.name}.npz"))
        return remembered(self, lambda: _sklearn(self.name))


def data_home() -> Path:
    """The folder of fetched data sets: ``$HANSA_DATA_HOME``, or ``~/.cache/hansa``."""
    return Path(os.environ.get(HOME) or "~/.cache/hansa").expanduser()


def _heart_disease() -> Rows:
    import pandas as pd

    from hansa.data.tables import client_ids, plain_frame

    frame = pd.read_csv(Path(__file__).parent / "vendored" / "heart_disease.csv")
    return Rows(
        x=plain_frame(frame.drop(columns=["id", "dataset", "num"])),
        y=(frame["num"] > 0).to_numpy(dtype=np.int64),
        client=client_ids(frame["dataset"], "column 'dataset'"),
        test=None,
        task="classification",
    )


def _sklearn(name: str) -> Rows:
    if name == "digits":
        # Read from scikit-learn's file: importing scikit-learn takes longer than a first round.
        installed = find_spec("sklearn")
        assert installed is not None and installed.origin is not None
        digits = np.loadtxt(Path(installed.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
        return Rows(digits[:, :-1] / 16.0, digits[:, -1].astype(np.int64), None, None, "classification")
    from sklearn import datasets

    from hansa.data.tables import plain_frame

    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    x, y = plain_frame(bunch.data), bunch.target.to_numpy()
    if name == "diabetes":
        return Rows(x, y.astype(np.float64), None, None, "regression")
    return Rows(x, y.astype(np.int64), None, None, "classification")


def _images(name: str, path: Path) -> Rows:
    if not path.exists():
        _fetch(name, path)
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (KeyError, OSError, ValueError) as error:
        raise InputError(f"{path}: is no file with the arrays x and y ({error}); delete it to fetch it again") from error
    if len(x) != len(y) or len(x) <= CENTRAL:
        raise InputError(
            f"{path}: has {len(x):,} images and {len(y):,} labels, 70,000 of each belong there; delete it to fetch it again"
        )
    x, y = x.reshape(-1, 28, 28), y.astype(np.int64)
    return Rows(Pixels(x[:-CENTRAL]), y[:-CENTRAL], None, Table(Pixels(x[-CENTRAL:]), y[-CENTRAL:]), "classification")


def _fetch(name: str, path: Path) -> None:
    from sklearn.datasets import fetch_openml

    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces that it tries again; that it failed in the end is said below
            bunch = fetch_openml(IMAGES[name], version=1, data_home=folder, as_frame=False, n_retries=1, parser="auto")
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
