"""A saved tree is the same tree; a damaged file is refused; a killed writer damages nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from hansa.core.errors import InputError
from hansa.tracking.tree import load_arrays, load_tree, save_arrays, save_tree
from tests.trees import same_bits, trees_with

trees = trees_with("tree")


@settings(max_examples=50, deadline=None)
@given(tree=trees)
def test_what_is_loaded_is_what_was_saved(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "tree.safetensors"
    save_tree(path, tree)
    assert same_bits(load_tree(path), tree)


def test_equal_trees_give_equal_files(tmp_path):
    tree = {"w": np.arange(6.0).reshape(2, 3), "round": 3}
    save_tree(tmp_path / "a", tree)
    save_tree(tmp_path / "b", {"w": np.asfortranarray(tree["w"]), "round": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loaded_arrays_are_aligned_and_may_be_written(tmp_path):
    save_tree(tmp_path / "t", {"flag": np.array([True]), "w": np.arange(3.0), "n": np.arange(3, dtype=np.int32)})
    for array in load_tree(tmp_path / "t").values():
        assert array.flags.aligned and array.flags.writeable


def test_tensors_are_saved_as_arrays(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w = torch.arange(6.0, requires_grad=True).reshape(2, 3).T
    save_tree(tmp_path / "t", {"w": w, "n": torch.tensor(4)})
    loaded = load_tree(tmp_path / "t")
    assert np.array_equal(loaded["w"], w.detach().numpy()) and loaded["n"].shape == () and loaded["n"].dtype == np.int64
    with pytest.raises(InputError, match=r"'/w'.*bfloat16.*float32"):
        save_tree(tmp_path / "t", {"w": torch.ones(2, dtype=torch.bfloat16)})


@pytest.mark.parametrize("leaf", [object(), {1, 2}, 1j, np.array(["text"]), np.ones(2, complex), b"bytes", {3: 1}])
def test_what_cannot_be_saved_is_named_by_its_path_and_the_old_file_stays(tmp_path, leaf):
    save_tree(tmp_path / "t", {"round": 1})
    with pytest.raises(InputError, match="'/server/m"):
        save_tree(tmp_path / "t", {"server": {"m": leaf}})
    assert load_tree(tmp_path / "t") == {"round": 1} and os.listdir(tmp_path) == ["t"]


def test_names_that_the_format_cannot_hold_are_refused(tmp_path):
    with pytest.raises(InputError, match="Unicode"):
        save_tree(tmp_path / "t", {"w\udc80": np.ones(1)})
    with pytest.raises(InputError, match="__metadata__"):
        save_arrays(tmp_path / "t", {"__metadata__": np.ones(1)})
    assert not list(tmp_path.iterdir())


def test_any_reader_of_safetensors_reads_the_arrays(tmp_path):
    from safetensors.numpy import load_file

    params = {"layer.0/weight": np.ones((2, 2), np.float32), "bias": np.arange(3.0)}
    save_arrays(tmp_path / "p", params)
    read = load_file(tmp_path / "p")
    assert read.keys() == params.keys() and all(np.array_equal(read[name], params[name]) for name in params)


def test_every_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "t"
    save_tree(path, {"params": {"w": np.arange(3.0)}, "round": 7, "é": "x"})
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        with pytest.raises(InputError, match="damaged"):
            load_tree(path)


def test_a_cut_missing_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "t"
    with pytest.raises(InputError, match=r"damaged .* missing"):
        load_tree(path)
    save_tree(path, {"w": np.arange(3.0)})
    whole = path.read_bytes()
    for content in [*(whole[:n] for n in range(len(whole))), whole + b"x", b"not a tensor", json.dumps({"a": 1}).encode() * 20]:
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            load_tree(path)
    from safetensors.numpy import save_file

    save_file({"w": np.arange(3.0)}, path)
    with pytest.raises(InputError, match=r"damaged .* did not write it"):
        load_tree(path)
    save_arrays(path, {"w": np.arange(3.0)})
    with pytest.raises(InputError, match="no state of a run"):
        load_tree(path)
    assert list(load_arrays(path)[0]) == ["w"]


def test_the_file_is_for_its_owner_only(tmp_path):
    save_tree(tmp_path / "t", {})
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o600


WRITER = """
import sys, numpy as np
from hansa.tracking.tree import save_tree
for n in range(10**9):
    save_tree(sys.argv[1], {"round": n, "w": np.full(200_000, n)})
"""


def test_a_writer_killed_at_any_time_leaves_a_whole_file(tmp_path):
    path, delays, last = tmp_path / "state.safetensors", np.random.default_rng(0).uniform(0, 0.02, 8), -1
    for delay in delays:
        before = path.stat().st_mtime_ns if path.exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert writer.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        tree = load_tree(path)
        assert (tree["w"] == tree["round"]).all()
        last = max(last, tree["round"])
    assert last >= 0 and {name for name in os.listdir(tmp_path) if not name.endswith(".unfinished")} == {Path(path).name}
