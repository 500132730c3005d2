"""The sum belongs to the job: its order is fixed by client and block numbers, never by arrival."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.reduction import SLICE, SMALL, Tree, add, gather, reduce_block, weighted_sum
from hansa.core.updates import Total, Update


def total(value: float) -> Total:
    return Total({"v": np.array([value])}, weight=1.0, clients=1, metrics={"loss": (np.float64(value), np.float64(1.0))})


def reference(values: list[float | None]) -> float | None:
    """The fixed pairwise tree, level by level."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [next((v for v in p if v is not None), None) if None in p or len(p) == 1 else p[0] + p[1] for p in pairs]  # type: ignore[operator]  # neither is None there
    return values[0]


@given(st.data())
def test_tree_gives_the_same_bits_in_any_order_of_arrival(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=40))
    tree = Tree(len(values))
    for number in data.draw(st.permutations(range(len(values)))):
        value = values[number]
        tree.add(number, None if value is None else total(value))
    result, expected = tree.result(), reference(list(values))
    assert (result is None) == (expected is None)
    if result is not None:
        assert float(result.values["v"][0]) == expected
        assert result.clients == sum(value is not None for value in values)


def in_file(path: Path, values: np.ndarray) -> np.ndarray:
    """Each call a file of its own, mapped and read-only."""
    values.tofile(path)
    return np.memmap(path, dtype=values.dtype, mode="r", shape=values.shape)


@pytest.mark.parametrize("blocks", [1, 2, 7, 40])
@pytest.mark.parametrize("failed", [(), (0, 3, 6)])
def test_totals_in_files_add_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, failed: tuple[int, ...]
) -> None:
    monkeypatch.setattr("hansa.core.reduction.LARGE", 1)
    monkeypatch.setattr("hansa.core.reduction.SLICE", 1000)
    monkeypatch.setattr("hansa.core.reduction.FILES", 16)
    rng, trees = np.random.default_rng(blocks), (Tree(blocks), Tree(blocks), Tree(blocks))
    for number in rng.permutation(blocks):
        if number in failed:
            for tree in trees:
                tree.add(int(number), None)
            continue
        w, b = rng.standard_normal((37, 111)), rng.standard_normal(5).astype(np.float32)
        plain = {"w": w, "b": b, "empty": np.zeros((0, 3)), "scalar": np.float64(rng.standard_normal())}
        mapped = {**plain, "w": in_file(tmp_path / f"w{number}", w), "b": in_file(tmp_path / f"b{number}", b)}
        other = plain if number % 5 == 4 else mapped  # some here, some there
        for tree, values in zip(trees, (plain, mapped, other), strict=True):
            tree.add(int(number), Total(values, float(number), 1, {"loss": (np.float64(number), np.float64(1.0))}))
    expected, *found = (tree.result() for tree in trees)
    for result in found:
        assert (result is None) == (expected is None)
        if result is None or expected is None:
            continue
        assert (result.weight, result.clients, result.metrics) == (expected.weight, expected.clients, expected.metrics)
        assert list(result.values) == list(expected.values)
        for name, value in expected.values.items():
            other = result.values[name]
            assert other.dtype == value.dtype and other.shape == value.shape and other.tobytes() == value.tobytes()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell how much memory a process has")
def test_memory_does_not_grow_with_the_totals_in_files(tmp_path: Path) -> None:
    for number in range(40):
        np.full(1_000_000, float(number)).tofile(tmp_path / str(number))
    done = subprocess.run([sys.executable, "-c", SUMMER, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    more, value = done.stdout.split()
    assert float(value) == sum(range(40)) and int(more) < 40_000_000


SUMMER = """
import sys
from pathlib import Path
import numpy as np
from hansa.core.reduction import Tree
from hansa.core.updates import Total

def most():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

files, tree = sorted(Path(sys.argv[1]).iterdir()), Tree(40)
before = most()
for number, path in enumerate(files):
    tree.add(number, Total({"w": np.memmap(path, dtype=np.float64, mode="r")}, 1.0, 1))
result = tree.result().values["w"]
assert (result == result[0]).all()
print(most() - before, result[0])
"""


def test_tree_keeps_few_totals_when_blocks_arrive_in_order() -> None:
    tree = Tree(1000)
    most = 0
    for number in range(1000):
        tree.add(number, total(1.0))
        most = max(most, len(tree._waiting))
    assert most <= 11
    assert float(tree.result().values["v"][0]) == 1000.0  # type: ignore[union-attr]  # None, and so an error, where nothing was added


@given(st.integers(1, 9), st.sampled_from([np.float32, np.float64]))
def test_weighted_sum_goes_from_the_first_client_to_the_last(clients: int, dtype: type) -> None:
    rng = np.random.default_rng(clients)
    values, weight = rng.standard_normal((clients, 3, 2)).astype(dtype), rng.uniform(1, 100, clients)
    expected = values[0] * float(weight[0])
    for k in range(1, clients):
        expected = expected + values[k] * float(weight[k])
    result = weighted_sum(values, weight)
    assert result.dtype == dtype
    assert np.array_equal(result, expected)


@given(st.integers(1, 200), st.integers(SMALL, 3 * SMALL), st.sampled_from([np.float32, np.float64]))
def test_a_large_entry_does_not_feel_its_neighbours(clients: int, size: int, dtype: type) -> None:
    rng = np.random.default_rng(size)
    values, weight = rng.standard_normal((clients, size)).astype(dtype), rng.uniform(1, 100, clients)
    whole, half = weighted_sum(values, weight), size - SMALL
    assert np.array_equal(whole[half:], weighted_sum(values[:, half:], weight))
    plain = np.add.reduce([values[k] * dtype(weight[k]) for k in range(clients)])
    assert np.allclose(whole, plain, rtol=0, atol=float(np.abs(values).sum(axis=0).max()) * 100 * np.finfo(dtype).eps)


def test_large_entries_are_summed_in_slices_to_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    values, weight = rng.standard_normal((5, 3, SLICE // 2 + 7)).astype(np.float32), rng.uniform(1, 100, 5)
    by_column = np.stack([weighted_sum(np.ascontiguousarray(values[:, row]), weight) for row in range(3)])
    assert values[0].size > SLICE > values[0, 0].size
    assert np.array_equal(weighted_sum(values, weight), by_column)


def test_counters_are_summed_as_float64() -> None:
    assert weighted_sum(np.array([3, 5]), np.array([1.0, 0.5])) == 5.5


def test_torch_tensors_are_summed_alike() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    weight = np.array([1.0, 2.0, 3.0, 4.0])
    assert np.array_equal(weighted_sum(torch.from_numpy(values), weight).numpy(), weighted_sum(values, weight))


def test_mean_and_metrics_of_a_block() -> None:
    update = Update(
        {"delta/w": np.array([[1.0], [3.0]])}, np.array([1.0, 3.0]), {"loss": (np.array([2.0, 4.0]), np.array([1.0, 3.0]))}
    )
    both = add(reduce_block(update), reduce_block(update))
    assert both.clients == 4
    assert float(both.means("delta")["w"][0]) == 2.5
    assert both.metrics["loss"] == (12.0, 8.0)


def test_gather_keeps_single_updates_in_client_order() -> None:
    parts = [Update({"v": np.array([[float(n)]]), "names": [str(n)]}, np.ones(1), clients=(f"c{n}",)) for n in range(3)]
    gathered = gather(parts)
    assert gathered.clients == ("c0", "c1", "c2")
    assert gathered.values["v"].ravel().tolist() == [0.0, 1.0, 2.0]
    assert gathered.values["names"] == ["0", "1", "2"]
