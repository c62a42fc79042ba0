"""A sorted list that knows the rank of every item, in O(log n).

Items live in sorted blocks of at most `2 * BLOCK`; a Fenwick tree over the block sizes answers "how many stand before".
Up to one block's length it is a plain list under `bisect`, which is what a short line needs, and is why this is not a
general library's list: those cost three times as much there. The tree is built on the first question after blocks
were split or joined, and kept up to date in between.

Source of the tree: Fenwick, "A New Data Structure for Cumulative Frequency Tables", 1994.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])

BLOCK = 512


class RankedList(Generic[T]):
    """Tuples in ascending order, no two of them equal."""

    __slots__ = ("_blocks", "_lows", "_tree", "count")

    def __init__(self) -> None:
        self.count = 0
        self._blocks: list[list[T]] = [[]]
        # No item of block i is below lows[i]; none of an earlier block is as high. lows[0] is never looked at.
        self._lows: list[T | None] = [None]
        self._tree: list[int] | None = None

    def __iter__(self) -> Iterator[T]:
        for block in self._blocks:
            yield from block

    def first(self) -> T:
        """The least item. Raises IndexError when there is none."""
        return self._blocks[0][0]

    def last(self) -> T:
        """The greatest item. Raises IndexError when there is none."""
        return self._blocks[-1][-1]

    def add(self, item: T) -> None:
        """Put *item* in its place."""
        self.count += 1
        blocks = self._blocks
        index = 0 if len(blocks) == 1 else self._block_of(item)
        block = blocks[index]
        insort(block, item)
        if self._tree is not None:
            self._count_in(index, 1)
        if len(block) > 2 * BLOCK:
            upper = block[BLOCK:]
            del block[BLOCK:]
            blocks.insert(index + 1, upper)
            self._lows.insert(index + 1, upper[0])
            self._tree = None

    def remove(self, item: T) -> None:
        """Take *item* out. Raises KeyError when it is not there."""
        blocks = self._blocks
        index = 0 if len(blocks) == 1 else self._block_of(item)
        block = blocks[index]
        place = bisect_left(block, item)
        if place == len(block) or block[place] != item:
            raise KeyError(item)
        del block[place]
        self.count -= 1
        if len(blocks) > 1:
            if self._tree is not None:
                self._count_in(index, -1)
            if len(block) < BLOCK // 4:
                self._join(index)

    def rank(self, item: tuple[Any, ...]) -> int:
        """How many items are below *item*, which need not be there itself."""
        blocks = self._blocks
        if len(blocks) == 1:
            return bisect_left(blocks[0], item)
        index = self._block_of(item)
        return self._before(index) + bisect_left(blocks[index], item)

    def _block_of(self, item: tuple[Any, ...]) -> int:
        return bisect_right(self._lows, item, 1) - 1  # type: ignore[type-var]  # lows[0], the only None, is left out

    def _join(self, index: int) -> None:
        """A block has become short: merge it with a neighbour if the two are no more than one block."""
        left = index - 1 if index else 0
        blocks = self._blocks
        if blocks[left] and blocks[left + 1] and len(blocks[left]) + len(blocks[left + 1]) > BLOCK:
            return
        blocks[left] += blocks[left + 1]
        del blocks[left + 1], self._lows[left + 1]
        self._tree = None

    def _before(self, index: int) -> int:
        """Items in the blocks before this one."""
        tree = self._tree
        if tree is None:
            tree = self._tree = self._build()
        total = 0
        while index:
            total += tree[index]
            index &= index - 1
        return total

    def _count_in(self, index: int, step: int) -> None:
        tree = self._tree
        assert tree is not None
        index += 1
        while index < len(tree):
            tree[index] += step
            index += index & -index

    def _build(self) -> list[int]:
        tree = [0, *map(len, self._blocks)]
        for index in range(1, len(tree)):
            above = index + (index & -index)
            if above < len(tree):
                tree[above] += tree[index]
        return tree
