"""What the submitter of a task holds on to.

    queued ──▶ running ──▶ succeeded | failed | timed-out
      │  ▲        │
      │  └─ retrying            cancelled, refused: from any of the three on the left

(In BLOCK mode a task may stand in the `lobby` before it is queued; `submit` waits meanwhile.)
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Generic

import anyio
from typing_extensions import TypeVar

from admission.executor.loops import Sleep, WorkLoop

ResultT = TypeVar("ResultT", default=object)

NO_METADATA: Mapping[str, object] = MappingProxyType({})

logger = logging.getLogger("admission.executor")


class TaskStatus(StrEnum):
    """Where a submitted task is."""

    LOBBY = "lobby"
    """Waits for room in the line (BLOCK mode)."""
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    """Failed, holds no slot, and will enter the line again."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    """Ran longer than its timeout."""
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """Left the line without a permit: rejected or evicted."""


LOBBY, QUEUED, RUNNING, RETRYING, SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, REFUSED = TaskStatus
# Bound to names: reading a member off its enum, and hashing it, cost more than what is done with it.

UNDECIDED = (RUNNING, QUEUED, RETRYING, LOBBY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Where a task was when something about it changed."""

    id: str
    status: TaskStatus
    position: int
    """Place in line; 0 when it is not in line."""
    estimated_wait: float | None
    """Seconds until its start; None when unknown."""
    attempts: int


class Handle(ABC, Generic[ResultT]):
    """A submitted task: await it for its result.

    `await handle` returns the result or raises what the task raised; any number of callers may do so, and
    cancelling one of them leaves the task alone (`cancel` ends it, as does cancelling `executor.execute`).
    An error that nobody ever retrieves is logged when the handle goes.

    Not thread-safe: use it on the event loop that submitted.
    """

    __slots__ = ("__weakref__", "_alarm", "_error", "_loop", "_result", "_sleepers", "_status", "_watchers")

    def __init__(self, loop: WorkLoop) -> None:
        self._loop = loop
        self._status = QUEUED
        self._sleepers: list[Sleep] | None = None
        """Who waits for the end."""
        self._watchers: list[Sleep] | None = None
        """Who waits for any change."""
        self._alarm: _Unretrieved | None = None

    _result: ResultT
    """Set once the task succeeded."""
    _error: BaseException | None
    """Set once the task is decided."""

    # --- to look at

    @property
    @abstractmethod
    def id(self) -> str:
        """Names the task in status pages and logs: the id of its first ticket."""

    @property
    def status(self) -> TaskStatus:
        """Where the task is."""
        return self._status

    @property
    @abstractmethod
    def position(self) -> int:
        """Its place in line, 1 being next; 0 when it is not in line."""

    @property
    @abstractmethod
    def estimated_wait(self) -> float | None:
        """Seconds until it starts; None when unknown, 0.0 when it is not in line."""

    @property
    @abstractmethod
    def attempts(self) -> int:
        """How often it was started."""

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, object]:
        """What was given to `submit`."""

    def done(self) -> bool:
        """Whether its fate is decided."""
        return self._status not in UNDECIDED

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self._status}>"

    # --- to act on

    @abstractmethod
    def cancel(self) -> bool:
        """End the task; False when it was done already. Never waits.

        A task in line gives its place up. A running coroutine is cancelled where it waits. A function in a
        thread or process cannot be stopped: its result is thrown away, and its slot stays taken until it ends.
        Awaiting the handle then raises `TaskCancelled`.
        """

    # --- to wait for

    def __await__(self) -> Generator[object, None, ResultT]:
        if self._status is SUCCEEDED:
            return self._result
        if self._status in UNDECIDED:
            sleep = self._loop.sleep()
            if self._sleepers is None:
                self._sleepers = [sleep]
            else:
                self._sleepers.append(sleep)
            yield from sleep.__await__()
        error = self._error
        if error is None:
            return self._result
        if self._alarm is not None:
            self._alarm.silence()
        try:
            raise error
        finally:
            del error, self  # Or the traceback would hold this frame, which holds the error.

    async def updates(self, *, interval: float = 0.25) -> AsyncGenerator[Update, None]:
        """An update at once, one for each change of status, and the last one when the task is decided.

        A changed position is news as well; it is looked at every *interval* seconds.
        """
        last = None
        while True:
            update = Update(
                id=self.id,
                status=self._status,
                position=self.position,
                estimated_wait=self.estimated_wait,
                attempts=self.attempts,
            )
            news = (update.status, update.position, update.attempts)
            if news != last:
                last = news
                yield update
            if update.status not in UNDECIDED:
                return
            if self._status is not update.status:
                continue  # It changed while the caller looked at the update.
            with anyio.move_on_after(interval):
                await self._changed()

    def _changed(self) -> Sleep:
        """A sleep until the next change of status."""
        sleep = self._loop.sleep()
        if self._watchers is None:
            self._watchers = [sleep]
        else:
            self._watchers.append(sleep)
        return sleep

    def _move_to(self, status: TaskStatus) -> None:
        self._status = status
        if self._watchers is not None:
            self._rouse(self._watchers)
            self._watchers = None

    def _decide(self, status: TaskStatus) -> None:
        """The end: `_result` or `_error` is set."""
        self._status = status
        if self._sleepers is not None:
            self._rouse(self._sleepers)
            self._sleepers = None
        if self._watchers is not None:
            self._rouse(self._watchers)
            self._watchers = None

    def _rouse(self, sleepers: list[Sleep]) -> None:
        for sleep in sleepers:
            self._loop.rouse(sleep)

    def _sound_alarm(self, error: BaseException) -> None:
        """Log *error* unless somebody retrieves it."""
        self._alarm = _Unretrieved(self.id, repr(error))


class _Unretrieved:
    """Logs an error that was never retrieved when the handle it hangs on is collected.

    It is made for failures alone, so that handles of tasks that succeed need no finaliser. At most one line a second
    is written, so that a burst of forgotten failures is told, not shouted.
    """

    __slots__ = ("_error", "_task")

    _quiet_until = 0.0
    _left_out = 0

    def __init__(self, task: str, error: str) -> None:
        self._task: str | None = task
        self._error = error

    def silence(self) -> None:
        self._task = None

    def __del__(self) -> None:
        if self._task is None:
            return
        now = time.monotonic()
        if now < _Unretrieved._quiet_until:
            _Unretrieved._left_out += 1
            return
        left_out, _Unretrieved._left_out = _Unretrieved._left_out, 0
        _Unretrieved._quiet_until = now + 1.0
        more = f" (and {left_out} more since the last such line)" if left_out else ""
        logger.error("task %s failed and nobody retrieved its error: %s%s", self._task, self._error, more)
