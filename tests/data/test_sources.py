"""Reading once, forgetting the oldest, and staying light."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from hansa.data.sources import KEPT, Rows, remembered


def _rows() -> Rows:
    return Rows(np.zeros((1, 1)), None, None, None, "regression")


def test_a_source_is_built_once_while_it_is_among_the_last_used() -> None:
    first = remembered("first", _rows)
    for number in range(KEPT - 1):
        remembered(("other", number), _rows)
        assert remembered("first", _rows) is first
    for number in range(KEPT):
        remembered(("new", number), _rows)
    assert remembered("first", _rows) is not first


def test_importing_the_column_loads_no_framework_and_every_name_is_found() -> None:
    code = """
import sys, hansa.data
heavy = {"pandas", "sklearn", "torch", "pyarrow", "scipy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
import hansa.data.describe, hansa.data.recipes, hansa.data.builtin, hansa.data.files
heavy = {"pandas", "sklearn", "torch", "pyarrow", "scipy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
for name in hansa.data.__all__:
    assert getattr(hansa.data, name) is not None
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
