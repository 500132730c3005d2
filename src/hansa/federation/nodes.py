"""Which parts of a sum somebody who has only some of its blocks can add without changing a bit of it.

The sum of an exchange is a fixed pairwise tree over block numbers (:class:`hansa.core.reduction.Tree`). Whoever has all blocks below a
node of that tree can add them as the tree does, and pass one total on in their place. Blocks whose neighbours are elsewhere are passed
on as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hansa.core.reduction import Tree
from hansa.core.updates import Total


def nodes(blocks: Collection[int], total: int) -> list[range]:
    """The fewest nodes of the tree over ``total`` blocks that hold these blocks and no other: runs of numbers, ascending."""
    found, ordered = list[range](), sorted(set(blocks))
    ends = dict[int, int]()  # of the run of consecutive numbers that a block is in
    for block in reversed(ordered):
        ends[block] = ends.get(block + 1, block + 1)
    for block in ordered:
        if found and block < found[-1].stop:
            continue
        size = 1
        while block % (2 * size) == 0 and size < total - block and min(block + 2 * size, total) <= ends[block]:
            size *= 2
        found.append(range(block, min(block + size, total)))
    return found


def is_node(blocks: Collection[int], total: int) -> bool:
    """Whether these blocks, each of them once, are all that is below one node."""
    known = len(set(blocks)) == len(blocks) and all(0 <= block < total for block in blocks)
    return known and len(nodes(blocks, total)) == 1


def summed(totals: Sequence[Total | None]) -> Total:
    """The sum of all blocks below a node, in their order; None for a block whose value is in the sum of an earlier one.

    Raises ValueError or KeyError for totals that cannot be added.
    """
    tree = Tree(len(totals))
    for number, total in enumerate(totals):
        tree.add(number, total)
    whole = tree.result()
    if whole is None:
        raise ValueError("there is no total in the node")
    return whole
