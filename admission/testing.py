"""For your own tests: work that ends when the test says so, events written down, and a check that nothing leaked.

    async with leak_checked(AdmissionController(max_concurrency=1)) as controller:
        model = ScriptedBackend()
        executor = QueuedExecutor(executor=model, controller=controller)
        ...
        await model.started(1)          # no sleeps: wait for what happens
        model.finish("hello")

Time: on trio, `trio.testing.MockClock(autojump_threshold=0)` is the clock of the pool as well, so a wait of thirty
seconds passes at once. On asyncio wait for events, as above. Works with anyio's pytest plugin, on both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from admission.controller import AdmissionController
from admission.events import Event
from admission.types import Snapshot

EventT = TypeVar("EventT")


class RecordingObserver:
    """An observer that keeps every event, oldest first."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        """Write *event* down."""
        self.events.append(event)

    def of(self, kind: type[EventT]) -> list[EventT]:
        """The events of one kind: `recording.of(Granted)`."""
        return [event for event in self.events if isinstance(event, kind)]


class _Call:
    """One call of a scripted backend, until the test ends it."""

    def __init__(self, task: object) -> None:
        self.task = task
        self.ended = anyio.Event()
        self.result: object = None
        self.error: Exception | None = None


class ScriptedBackend:
    """A model whose calls run until the test ends them, oldest first.

    Hand it to a `QueuedExecutor`, or await `execute(task)` in an app. It is for one event loop, not for threads.
    """

    def __init__(self) -> None:
        self.tasks: list[object] = []
        """What it was called with, in order."""
        self._running: deque[_Call] = deque()
        self._changed = anyio.Event()

    @property
    def running(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._running)

    async def execute(self, task: object = None) -> object:
        """Run until `finish` or `fail`; cancellation ends it, too."""
        call = _Call(task)
        self.tasks.append(task)
        self._running.append(call)
        self._tell()
        try:
            await call.ended.wait()
        finally:
            if call in self._running:
                self._running.remove(call)
            self._tell()
        if call.error is not None:
            raise call.error
        return call.result

    async def started(self, count: int) -> None:
        """Return once it has been called *count* times in all."""
        while len(self.tasks) < count:
            await self._changed.wait()

    def finish(self, result: object = None) -> None:
        """End the oldest call with *result*. Raises IndexError when none runs."""
        call = self._running.popleft()
        call.result = result
        call.ended.set()

    def fail(self, error: Exception) -> None:
        """End the oldest call with *error*. Raises IndexError when none runs."""
        call = self._running.popleft()
        call.error = error
        call.ended.set()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@asynccontextmanager
async def leak_checked(controller: AdmissionController) -> AsyncIterator[AdmissionController]:
    """The controller; at the end of a block that went well, an error if a slot or a place in line was never given back.

    Raises:
        AssertionError: Something still runs or waits. The message says how much, and in which class.
    """
    yield controller
    left = leftovers(controller.snapshot())
    assert not left, f"pool {controller.name!r} was left with {', '.join(left)}"


def leftovers(snapshot: Snapshot) -> list[str]:
    """What a pool still holds, in words; empty when it is idle."""
    counts = [
        (count, what, found.name)
        for found in snapshot.classes
        for count, what in ((found.in_flight, "slots in use"), (found.queued, "in line"), (found.lobby, "in the lobby"))
    ]
    return [f"{count} {what} ({name})" for count, what, name in counts if count]
