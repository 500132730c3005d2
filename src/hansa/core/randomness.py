"""Randomness that depends on (seed, round, client, purpose) and on nothing else.

No stream is shared, so the order in which clients are visited, the number of workers and a restart in the middle change no
draw. Two forms are given: :func:`generator` for a full NumPy generator, and :func:`permutations` for the shuffles of many
clients in one vectorised step (a counter-based generator: SplitMix64, Steele, Lea and Flood, OOPSLA 2014).

None of this is for secrets: keys and noise that protect data come from the operating system.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive(*path: int | str) -> int:
    """A 64-bit key for a path such as ``(seed, "round", 3, "cohort")``; equal paths give equal keys on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in path)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*path: int | str) -> np.random.Generator:
    """A NumPy generator (Philox 4x64) for the path."""
    return np.random.Generator(np.random.Philox(key=derive(*path)))


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return np.asarray(z ^ (z >> np.uint64(31)))


def combine(keys: np.ndarray, key: int) -> np.ndarray:
    """Derive one key per client from the clients' keys (uint64, shape (clients,)) and a key of the round and purpose."""
    with np.errstate(over="ignore"):
        return _mix(_mix(keys ^ np.uint64(key)) + _GOLDEN)


def bits(keys: np.ndarray, count: int) -> np.ndarray:
    """Uniform 64-bit words, uint64 of shape (clients, count); word ``i`` of a client depends on its key and ``i`` alone."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        return _mix(keys[:, None] + steps[None, :])


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """Uniform float64 numbers in [0, 1), shape (clients, count)."""
    return (bits(keys, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutations(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A shuffle of ``range(rows[k])`` for each client k.

    Returns int64 of shape (clients, max(rows)); the first ``rows[k]`` entries of row k are the permutation, the rest point
    past the client's data and must not be used. A client's shuffle does not depend on who else is in the block.
    """
    most = int(rows.max(initial=0))
    words = bits(keys, most)
    words[np.arange(most)[None, :] >= rows[:, None]] = np.uint64(0xFFFFFFFFFFFFFFFF)
    return np.argsort(words, axis=1, kind="stable")
