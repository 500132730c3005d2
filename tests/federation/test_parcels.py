"""A parcel that is read is the tree that was written; whatever else is read is refused, and costs little."""

from __future__ import annotations

import hashlib
import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import InputError
from hansa.federation.parcels import ALIGNMENT, Limits, read, view, write
from tests.trees import trees_with

trees = trees_with(".0")
TREE = {
    "call": "work", "round": 3, "rate": 0.1, "names": ["a", None, True], "pair": (1, float("inf")),
    "params": {"w": np.arange(12.0).reshape(3, 4), "b": np.arange(3, dtype=np.float32), "n": np.int64(7), "e": np.zeros((0, 2))},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where that is possible: tens of thousands of small files are written there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def written(folder: Path, tree: Any) -> Path:
    path = folder / "parcel"
    path.unlink(missing_ok=True)
    write(path, tree)
    return path


def same(first: object, second: object) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    if type(first) is not type(second):
        return False
    if isinstance(first, dict) and isinstance(second, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, np.generic) and isinstance(second, np.generic):
        return first.dtype == second.dtype and first.tobytes() == second.tobytes()
    return repr(first) == repr(second)  # tells -0.0 from 0.0, and nan is nan


def leaves_of(node: Any) -> list[Any]:
    if isinstance(node, dict):
        node = list(node.values())
    return [leaf for item in node for leaf in leaves_of(item)] if isinstance(node, list | tuple) else [node]


@settings(max_examples=40, deadline=None)
@given(tree=trees)
def test_what_is_read_is_what_was_written(folder: Path, tree: Any) -> None:
    path = written(folder, tree)
    assert same(read(path), tree)
    assert same(view(memoryview(b"....." + path.read_bytes())[5:]), tree)  # wherever in memory it lies


@settings(max_examples=20, deadline=None)
@given(tree=trees)
def test_equal_trees_give_equal_bytes_and_the_digest_is_the_files(folder: Path, tree: Any) -> None:
    first = written(folder, tree)
    content = first.read_bytes()
    (folder / "again").unlink(missing_ok=True)
    digest = write(folder / "again", read(first))
    assert (folder / "again").read_bytes() == content and digest == hashlib.sha256(content).hexdigest()


def test_the_layout_of_an_array_in_memory_does_not_matter(tmp_path: Path) -> None:
    w = np.arange(6.0).reshape(2, 3)
    assert write(tmp_path / "a", {"w": w}) == write(tmp_path / "b", {"w": np.asfortranarray(w)})


def test_arrays_are_read_only_views_of_the_file_and_aligned(folder: Path) -> None:
    found = [leaf for leaf in leaves_of(read(written(folder, TREE))) if isinstance(leaf, np.ndarray)]
    assert len(found) == 3
    for array in found:
        assert isinstance(array, np.memmap) or not array.size
        assert not array.flags.writeable and array.flags.c_contiguous
        assert array.ctypes.data % ALIGNMENT == 0 or not array.size


def test_nothing_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "p", {"w": np.zeros(4_000_000)})
    tracemalloc.start()
    try:
        tree = read(tmp_path / "p")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 and tree["w"].nbytes == 32_000_000
    finally:
        tracemalloc.stop()


def test_any_reader_of_safetensors_reads_the_arrays(folder: Path) -> None:
    from safetensors.numpy import load_file

    found = load_file(written(folder, TREE))
    assert np.array_equal(found["/params/w"], TREE["params"]["w"]) and np.array_equal(found["/params/b"], TREE["params"]["b"])  # type: ignore[index]  # TREE holds trees and plain values


def test_the_file_is_for_its_owner_only_and_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "p", TREE)
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write(tmp_path / "p", TREE)


def nested(depth: int) -> Any:
    tree: Any = []
    for _ in range(depth - 1):
        tree = [tree]
    return tree


UNFIT = {
    "object": object(), "set": {1, 2}, "complex": 1j, "text": np.array(["text"]), "bytes": b"bytes", "key": {3: 1},
    "long": 10**5000, "deep": nested(32), "name": {"\udc80": np.ones(1)},
}  # fmt: skip


@pytest.mark.parametrize("leaf", UNFIT.values(), ids=UNFIT.keys())
def test_what_cannot_travel_is_refused_and_no_file_is_left(tmp_path: Path, leaf: Any) -> None:
    with pytest.raises(InputError):
        write(tmp_path / "p", {"x": leaf})
    assert not list(tmp_path.iterdir())


def test_limits_are_kept(folder: Path) -> None:
    path = written(folder, {"x": nested(9), "y": [np.zeros(1)] * 50})
    read(path, Limits(depth=10, entries=1000))
    for limits in (Limits(depth=9), Limits(entries=10), Limits(size=path.stat().st_size - 1), Limits(header=100)):
        with pytest.raises(InputError):
            read(path, limits)


def forged(folder: Path, header: Any, data: bytes = b"", pad: bool = True) -> Path:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    body += b" " * (-(8 + len(body)) % 64 if pad else 0)
    (folder / "forged").write_bytes(len(body).to_bytes(8, "little") + body + data)
    return folder / "forged"


def parcel(tree: Any, **tensors: Any) -> dict[str, Any]:
    return {"__metadata__": {"hansa": "parcel 1", "tree": json.dumps(tree)}, **tensors}


def tensor(start: int, stop: int, *shape: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


W, BOTH = {"dict": {"w": {"array": "w"}}}, {"dict": {"w": {"array": "w"}, "v": {"array": "v"}}}
FORGED = {
    "an honest one, for comparison": (parcel(W, w=tensor(0, 64, 64)), bytes(64)),
    "overlap": (parcel(BOTH, w=tensor(0, 64, 64), v=tensor(0, 64, 64)), bytes(64)),
    "gap": (parcel(BOTH, w=tensor(0, 1, 1), v=tensor(64, 65, 1)), bytes(65)),
    "padding that is not zero": (parcel(BOTH, w=tensor(0, 1, 1), **{".1": tensor(1, 64, 63)}, v=tensor(64, 65, 1)), b"\1" * 65),
    "padding where none is needed": (parcel(W, **{".0": tensor(0, 64, 64)}, w=tensor(64, 128, 64)), bytes(128)),
    "beyond the file": (parcel(W, w=tensor(0, 128, 128)), bytes(64)),
    "bytes at the end": (parcel(W, w=tensor(0, 64, 64)), bytes(65)),
    "a size that is not the shape's": (parcel(W, w=tensor(0, 64, 8, dtype="F32")), bytes(64)),
    "a huge dimension": (parcel(W, w=tensor(0, 0, 0, 2**60)), b""),
    "a product that wraps": (parcel(W, w=tensor(0, 0, 2**32, 2**32)), b""),
    "a negative dimension": (parcel(W, w=tensor(0, 64, -64)), bytes(64)),
    "a dimension that is true": (parcel(W, w=tensor(0, 1, True)), bytes(1)),
    "a dimension that is no number": (parcel(W, w=tensor(0, 64, 64.0)), bytes(64)),  # type: ignore[arg-type]  # the type is the fault
    "many dimensions": (parcel(W, w=tensor(0, 1, *[1] * 70)), bytes(1)),
    "an unknown dtype": (parcel(W, w=tensor(0, 64, 64, dtype="O")), bytes(64)),
    "a dtype that is no text": (parcel(W, w={**tensor(0, 64, 64), "dtype": ["U8"]}), bytes(64)),
    "more about a tensor": (parcel(W, w={**tensor(0, 64, 64), "x": 1}), bytes(64)),
    "a tensor that is none": (parcel(W, w=7), bytes(64)),
    "a truth value of two": (parcel(W, w=tensor(0, 1, 1, dtype="BOOL")), b"\2"),
    "an array that the tree does not name": (parcel({"dict": {}}, w=tensor(0, 64, 64)), bytes(64)),
    "an array named twice": (parcel([{"array": "w"}, {"array": "w"}], w=tensor(0, 64, 64)), bytes(64)),
    "an array that is not there": (parcel(W), b""),
    "a scalar that is an array": (parcel({"dict": {"w": {"scalar": "w"}}}, w=tensor(0, 64, 64)), bytes(64)),
    "a float that is none": (parcel({"dict": {"x": {"float": "1e5"}}}), b""),
    "an unknown tag": (parcel({"dict": {"x": {"python": "os.system"}}}), b""),
    "no tree": ({"__metadata__": {"hansa": "parcel 1"}}, b""),
    "a tree that is a number": (parcel(7), b""),
    "another format": ({"__metadata__": {"hansa": "1", "tree": "{}"}}, b""),
    "metadata that is a list": ({"__metadata__": []}, b""),
    "a list": ([], b""),
    "not JSON": (b"{" * 100, b""),
    "not UTF-8": (b"\xff" * 100, b""),
    "deep": (b"[" * 1_000_000, b""),
    "not a number": (b'{"__metadata__": NaN}', b""),
    "a key twice": (b'{"__metadata__": 1, "__metadata__": 2}', b""),
    "a long number": (b'{"__metadata__": ' + b"9" * 10_000 + b"}", b""),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_forged_parcels_are_refused(folder: Path, what: str) -> None:
    path = forged(folder, *FORGED[what])
    if what.startswith("an honest one"):
        assert read(path)["w"].shape == (64,)
        return
    with pytest.raises(InputError, match="parcel"):
        read(path)
    with pytest.raises(InputError, match="parcel"):
        view(path.read_bytes())


def test_a_header_out_of_place_and_a_missing_file_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="format"):
        read(forged(folder, parcel({"dict": {}}), pad=False))
    with pytest.raises(InputError, match="cannot be read"):
        read(folder / "nowhere")


def peak_of(path: Path) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_header_that_promises_much_costs_little(folder: Path) -> None:
    path = folder / "promise"
    for length in (2**63, 2**40, 2**24):
        path.write_bytes(length.to_bytes(8, "little") + b"{}" * 100)
        assert peak_of(path) < 100_000
    assert peak_of(forged(folder, parcel(W, w=tensor(0, 2**47, 2**47)), bytes(64))) < 100_000
    assert peak_of(forged(folder, b"[" + b"[]," * 200_000 + b"[]]")) < 50_000_000


SOME = st.sampled_from([
    TREE, {}, {"w": np.ones(200)}, [np.zeros((2, 0), np.int8), {"x": [1, 2.5, "text"]}],
    {"facts": [{"rows": {"train": 12}, "columns": {"age": {"min": 1.0, "few": [0.0, 1.0]}}}]},
])  # fmt: skip
TOKENS = [
    b"0",
    b"1",
    b"64",
    b"-1",
    b"9999999999999999999999",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b":",
    b"null",
    b"NaN",
    b"\\",
    b"\xff",
]


def damaged(content: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(rng.integers(1, 4)):
        first, last = sorted(int(place) for place in rng.integers(len(content) + 1, size=2))
        token = TOKENS[rng.integers(len(TOKENS))]
        match rng.integers(6):
            case 0:
                del content[first:]
            case 1:
                del content[first:last]
            case 2:
                content[first : first + 1] = bytes([rng.integers(256)])
            case 3:
                content[first : first + len(token)] = token
            case 4:
                content[first:first] = token
            case _:
                content[first:first] = content[first:last]
    return content


@settings(max_examples=400, deadline=None)
@given(tree=SOME, seed=st.integers(0, 2**32), noise=st.binary(max_size=200))
def test_ten_thousand_damaged_parcels_are_refused_or_are_still_parcels(folder: Path, tree: Any, seed: int, noise: bytes) -> None:
    whole, rng, path = written(folder, tree).read_bytes(), np.random.default_rng(seed), folder / "damaged"
    start = 8 + int.from_bytes(whole[:8], "little")
    header, data = whole[8:start].rstrip(), whole[start:]
    path.write_bytes(noise)
    for refuses in (read, lambda path: view(path.read_bytes())):
        with pytest.raises(InputError):
            refuses(path)
    for number in range(25):
        if number % 3:  # in the header's text, with everything around it in order
            path = forged(folder, bytes(damaged(bytearray(header), rng)), data)
        else:
            path.write_bytes(damaged(bytearray(whole), rng))
        try:
            found = read(path)
        except InputError:
            continue
        assert sum(leaf.nbytes for leaf in leaves_of(found) if isinstance(leaf, np.ndarray)) <= path.stat().st_size
