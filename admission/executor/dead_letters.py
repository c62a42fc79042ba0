"""Tasks of this process that failed for good, kept for a person to look at, run again or throw away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic

from admission.executor.handle import Handle, ResultT, TaskStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One task that failed for good.

    The error is kept as text: an exception holds its traceback, which holds every local of every frame.
    """

    id: str
    status: TaskStatus
    """FAILED or TIMED_OUT."""
    error_type: str
    error: str
    attempts: int
    priority: str
    tenant: str
    metadata: Mapping[str, object]
    failed_at: float
    """Monotonic seconds."""


class DeadLetters(Generic[ResultT]):
    """The newest *size* dead letters; older ones make room.

    Refused and cancelled tasks are no dead letters: they did not fail.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._letters: OrderedDict[str, tuple[DeadLetter, Callable[[], Awaitable[Handle[ResultT]]]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._letters)

    def list(self) -> list[DeadLetter]:
        """All of them, oldest first."""
        return [letter for letter, _ in self._letters.values()]

    async def retry(self, id: str) -> Handle[ResultT]:
        """Submit the task again with its options, and forget the letter once it was taken in.

        Raises:
            KeyError: There is no such letter (any more).
            Rejected: The task was not taken in; the letter stays.
        """
        _, submit_again = self._letters[id]
        handle = await submit_again()
        self._letters.pop(id, None)
        return handle

    def purge(self, id: str | None = None) -> int:
        """Forget the letter *id*, or all of them; says how many were forgotten."""
        if id is not None:
            return 0 if self._letters.pop(id, None) is None else 1
        purged = len(self._letters)
        self._letters.clear()
        return purged

    def add(self, letter: DeadLetter, submit_again: Callable[[], Awaitable[Handle[ResultT]]]) -> None:
        """Keep *letter*; called by the executor."""
        if self._size == 0:
            return
        self._letters[letter.id] = (letter, submit_again)
        while len(self._letters) > self._size:
            self._letters.popitem(last=False)
