"""Synchronous stochastic gradient descent: all members of a gang step together, as one process would.

A round is ``steps`` steps of an optimiser w <- Opt(w, g) with

    g = 1/|B| sum_{i in B} grad l_i(w) + l2 w

over a global mini-batch B, which depends on the seed and the number of the step alone. How the model and the batch are split over members
(``parallel``) changes who computes a term and in which order terms are added, and nothing else: data parallel (Li et al. 2020, PyTorch
Distributed), fully sharded (Zhao et al. 2023, PyTorch FSDP), tensor parallel (Shoeybi et al. 2019, Megatron-LM), pipelines (Huang et
al. 2019, GPipe; Narayanan et al. 2019, PipeDream). With one member it is the method of Robbins and Monro 1951.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hansa.core.contracts import Message, State
from hansa.core.params import Kinds, Params
from hansa.core.synchrony import Part, Synchrony


@dataclass(frozen=True)
class Synchronous(Synchrony):
    """One optimiser over the rows of all clients, which are one owner's, by a gang of ``parallel`` members (PyTorch modules)."""

    name: Literal["synchronous"] = field(default="synchronous", kw_only=True)

    collective: Literal["gang"] = field(default="gang", init=False, repr=False)
    needs: frozenset[str] = field(default=frozenset({"gang"}), init=False, repr=False)

    def init(self, params: Params, kinds: Kinds) -> State:
        return {"params": params}

    def broadcast(self, state: State, round: int) -> Message:
        """The params once; after that the members have them, in memory or in their checkpoint."""
        return Message(state["params"] if round == 1 else {})

    def update(self, state: State, parts: Sequence[Part]) -> State:
        whole = {name: value for part in parts for name, value in part.params.items()}
        return {**state, "params": {name: whole[name] for name in state["params"]}}
