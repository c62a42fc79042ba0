"""When waiters have to stop waiting: a heap by time, from which those who stopped earlier are cleaned out.

Most waiters leave before their time, and removing them from a heap would take O(n). They are marked instead, and
when half of the heap is marked, it is rebuilt: O(log n) amortised, and a starved class full of leavers keeps no
memory.
"""

from __future__ import annotations

import heapq
import math

from admission.line import Entry

_SLACK = 64
"""Marked entries a heap may have besides as many as unmarked ones."""


class Deadlines:
    """The deadlines of waiting entries; `Entry.timed` says whether one of them is the entry's."""

    __slots__ = ("_heap", "_marked")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._marked = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, entry: Entry) -> None:
        """Watch an entry that waits, if it has a deadline."""
        if entry.expires != math.inf:
            heapq.heappush(self._heap, (entry.expires, entry.number, entry))
            entry.timed = True

    def forget(self, entry: Entry) -> None:
        """The entry has stopped waiting; only for one that is `timed`."""
        entry.timed = False
        self._marked += 1
        if self._marked * 2 > len(self._heap) + _SLACK:
            self._heap = [item for item in self._heap if item[2].timed]
            heapq.heapify(self._heap)
            self._marked = 0

    def next(self) -> float:
        """Monotonic seconds of the earliest deadline; inf without one."""
        self._drop_marked()
        return self._heap[0][0] if self._heap else math.inf

    def pop_passed(self, now: float) -> Entry | None:
        """An entry whose deadline has passed, which is not watched any more; None when there is none."""
        self._drop_marked()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, entry = heapq.heappop(self._heap)
        entry.timed = False
        return entry

    def _drop_marked(self) -> None:
        heap = self._heap
        while heap and not heap[0][2].timed:
            heapq.heappop(heap)
            self._marked -= 1
