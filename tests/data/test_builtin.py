"""The built-in data sets are what their documentation says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets
from sklearn.datasets import load_digits

from hansa.core.errors import InputError
from hansa.core.pixels import Pixels
from hansa.data import BuiltIn, images

NUMBERS = ["age", "trestbps", "chol", "thalch", "oldpeak", "ca", "fbs", "exang"]
CATEGORIES = ["sex", "cp", "restecg", "slope", "thal"]


def test_heart_disease_has_four_hospitals_with_equal_dtypes() -> None:
    rows = BuiltIn("heart_disease").read()
    ids, counts = np.unique(rows.client, return_counts=True)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
        "Cleveland": 303,
        "Hungary": 294,
        "Switzerland": 123,
        "VA Long Beach": 200,
    }
    assert sorted(rows.x.columns) == sorted(NUMBERS + CATEGORIES)
    assert all(rows.x[name].dtype == np.float64 for name in NUMBERS)
    assert all(rows.x[name].dtype == object for name in CATEGORIES)
    assert set(rows.x["fbs"].dropna()) == {0.0, 1.0}
    for name in CATEGORIES:
        kinds = {type(value) for value in rows.x[name]}
        assert kinds <= {str, float}
        assert rows.x[name][rows.x[name].notna()].map(type).eq(str).all()
    assert rows.y is not None
    assert rows.y.dtype == np.int64
    assert rows.y.sum() == 509  # patients with any narrowing, of 920
    assert rows.task == "classification"
    assert rows.test is None


def test_a_source_is_read_once() -> None:
    assert BuiltIn("heart_disease").read() is BuiltIn("heart_disease").read()


@pytest.mark.parametrize("name", ["iris", "breast_cancer", "wine", "diabetes"])
def test_the_tables_of_scikit_learn_keep_their_values_and_names(name: str) -> None:
    rows = BuiltIn(name).read()  # type: ignore[arg-type]  # one of the names, as text
    bunch = getattr(datasets, f"load_{name}")()
    assert list(rows.x.columns) == list(bunch.feature_names)
    assert np.array_equal(rows.x.to_numpy(), bunch.data)
    assert np.array_equal(rows.y, bunch.target)
    assert rows.task == ("regression" if name == "diabetes" else "classification")
    assert rows.y is not None
    assert rows.y.dtype == (np.float64 if name == "diabetes" else np.int64)
    assert rows.client is None


def test_digits_lie_between_zero_and_one() -> None:
    rows = BuiltIn("digits").read()
    theirs = load_digits()
    assert np.array_equal(rows.x, theirs.data / 16) and np.array_equal(rows.y, theirs.target)
    assert rows.x.shape == (1797, 64)
    assert (rows.x.min(), rows.x.max()) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["mnist_784", "fashion_mnist"])
def test_images_keep_their_last_ten_thousand_for_the_central_test(name: str) -> None:
    path = Path(os.environ.get("HANSA_DATA_HOME", "nowhere")) / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"HANSA_DATA_HOME does not name a folder with {name}.npz")
    rows = BuiltIn(name).read()  # type: ignore[arg-type]  # as above
    with np.load(path, allow_pickle=False) as file:
        x, y = file["x"], file["y"]
    assert rows.x.shape == (60_000, 28, 28)
    assert rows.x.dtype == np.float32
    assert rows.test is not None
    assert np.array_equal(rows.test.y, y[-10_000:])
    assert np.array_equal(rows.y, y[:-10_000])
    assert np.array_equal(np.rint(np.asarray(rows.test.x[:100]) * 255).astype(np.uint8), x[-10_000:-9_900])
    some = np.asarray(rows.x[:99])
    assert (float(some.min()), float(some.max())) == (0.0, 1.0)


def test_images_are_unpacked_once_and_mapped_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "UNPACKED", str(tmp_path / "unpacked"))
    x = np.random.default_rng(0).integers(0, 256, (10_003, 28, 28), np.uint8)
    np.savez_compressed(tmp_path / "mnist_784.npz", x=x, y=np.zeros(len(x), np.uint8))
    for _ in range(2):
        rows = images.images("mnist_784", tmp_path / "mnist_784.npz")
        assert isinstance(rows.x, Pixels) and isinstance(rows.x.bytes.base.base, np.memmap)
        assert np.array_equal(rows.x.bytes, x[:-10_000]) and not rows.x.bytes.flags.writeable
    (copy,) = (tmp_path / "unpacked").iterdir()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600

    np.savez_compressed(tmp_path / "mnist_784.npz", x=x[::-1], y=np.zeros(len(x), np.uint8))
    rows = images.images("mnist_784", tmp_path / "mnist_784.npz")
    assert isinstance(rows.x, Pixels) and np.array_equal(rows.x.bytes, x[::-1][:-10_000])


def test_images_are_read_where_no_copy_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unpacked").write_text("no folder")
    monkeypatch.setattr(images, "UNPACKED", str(tmp_path / "unpacked"))
    x = np.random.default_rng(0).integers(0, 256, (10_003, 28, 28), np.uint8)
    np.savez(tmp_path / "mnist_784.npz", x=x, y=np.zeros(len(x), np.uint8))
    rows = images.images("mnist_784", tmp_path / "mnist_784.npz")
    assert isinstance(rows.x, Pixels) and np.array_equal(rows.x.bytes, x[:-10_000])


def test_images_that_are_nowhere_say_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSA_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens on the discard port: a machine that is offline
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(InputError, match=r"mnist_784.npz does not exist, and mnist_784 cannot be fetched .* set HANSA_DATA_HOME"):
        BuiltIn("mnist_784").read()
    assert not (tmp_path / "home").exists()


def test_a_damaged_file_of_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSA_DATA_HOME", str(tmp_path))
    (tmp_path / "mnist_784.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"mnist_784.npz: is no file with the arrays x and y"):
        BuiltIn("mnist_784").read()
    np.savez(tmp_path / "fashion_mnist.npz", x=np.zeros((3, 28, 28), np.uint8), y=np.zeros(3, np.uint8))
    with pytest.raises(InputError, match="has 3 images and 3 labels"):
        BuiltIn("fashion_mnist").read()
