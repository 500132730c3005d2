"""Data sets that are at hand by name: shipped with Hansa, with scikit-learn, or fetched once from OpenML."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from hansa.data.images import OPENML, images
from hansa.data.sources import Rows, remembered

HOME = "HANSA_DATA_HOME"
"""The environment variable that names the folder of fetched data sets."""

SKLEARN = ("iris", "digits", "breast_cancer", "wine", "diabetes")


@dataclass(frozen=True)
class BuiltIn:
    """A data set by its name.

    ``heart_disease`` has four natural clients (hospitals) and missing values; the label is disease or none. The sets of
    scikit-learn are data frames under their own feature names, ``digits`` an array (1797, 64) in [0, 1]; they have no natural
    clients. ``mnist_784`` and ``fashion_mnist`` are float32 arrays (60000, 28, 28) in [0, 1] with a central test set of 10,000
    images, read from ``<name>.npz`` (arrays ``x``, ``y``) in the folder ``$HANSA_DATA_HOME`` or ``~/.cache/hansa``, where they are
    put when they are fetched for the first time; an unpacked copy of the images in ``~/.cache/hansa/unpacked`` is what processes map.
    """

    name: Literal[
        "heart_disease", "iris", "digits", "breast_cancer", "wine", "diabetes", "mnist_784", "fashion_mnist"
    ]  # fmt: skip

    def read(self) -> Rows:
        """All rows. Raises InputError when a set of images is neither in the data home nor can be fetched."""
        if self.name == "heart_disease":
            return remembered(self, _heart_disease)
        if self.name in OPENML:
            # Every client's load asks, so it must cost nothing where the images are there: no path is made.
            return remembered((self, os.environ.get(HOME)), lambda: images(self.name, data_home() / f"{self.name}.npz"))
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
