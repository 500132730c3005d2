"""Arrays that come and go round after round are given the memory that the last ones had."""

from __future__ import annotations

import ctypes
import sys

_TRIM, _OWN = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""

OWN = 2**25
"""Bytes from which an array has memory of its own, which is the system's again with the array; the most that the C library takes."""

LEFT = 2**28
"""Bytes that may be free and not given back."""


def keep_memory() -> None:
    """Have the C library keep what was freed for the next array, in this process, from now on.

    By itself it gives back to the system what a block's work has freed, and Dask has its workers give back all above 128 KiB; each round
    then gets the same memory again page by page, and every page filled with zeros, which takes longer than the arithmetic. Nothing is
    done where the C library is not glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_OWN, OWN)
            mallopt(_TRIM, LEFT)
