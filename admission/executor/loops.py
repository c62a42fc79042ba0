"""What an executor needs of its event loop beyond what `admission.waker` gives a controller.

Tasks that live long and that nobody awaits, and a sleep of the cheapest kind: on asyncio a bare future, because each
awaited handle costs one. anyio has both, but scoped: its task groups and cancel scopes cost 7 to 11 µs each, more than
a whole no-op task may.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Protocol

from admission.errors import NotRunning
from admission.waker import AsyncioLoop, Timer, TrioLoop, TrioWaker, running_loop

Sleep = Awaitable[None]
"""Await it once; it returns after `WorkLoop.rouse`, and may be cancelled."""

Work = Callable[[], Coroutine[object, object, None]]


class Task(Protocol):
    """A task of the loop."""

    def cancel(self) -> object:
        """Raise the loop's cancellation inside it."""


class WorkLoop(Protocol):
    """The event loop an executor was started on."""

    scoped: bool
    """How a running coroutine is interrupted: by a cancel scope around it (trio) or by its task (asyncio)."""

    def now(self) -> float:
        """Monotonic seconds."""

    def is_current(self) -> bool:
        """Whether the caller runs on this very loop."""

    def is_over(self) -> bool:
        """Whether this loop has ended for good."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* at these monotonic seconds, or a little earlier or later."""

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """Call *callback* on the loop, from any thread; nothing happens when the loop is over."""

    def sleep(self) -> Sleep:
        """A new one, for one task."""

    def rouse(self, sleep: Sleep) -> None:
        """Let the one who awaits *sleep*, now or later, go on. Twice is once."""

    def spawn(self, work: Work, name: str) -> Task:
        """Run *work* in a task of its own, in an empty context. The loop holds on to it."""

    async def checkpoint(self) -> None:
        """Let everyone else run once."""


def work_loop() -> WorkLoop:
    """The loop the caller runs on. Raises NotRunning outside asyncio and trio."""
    loop = running_loop()
    if isinstance(loop, TrioLoop):
        return TrioWorkLoop()
    return AsyncioWorkLoop(asyncio.get_running_loop())


class AsyncioWorkLoop(AsyncioLoop):
    """asyncio and uvloop."""

    __slots__ = ("_tasks", "sleep")

    scoped = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.sleep: Callable[[], asyncio.Future[None]] = loop.create_future
        # The loop itself holds tasks weakly: one that nobody else holds may be collected while it waits.
        self._tasks: set[asyncio.Task[None]] = set()

    def is_over(self) -> bool:
        """Whether the loop was closed."""
        return self._loop.is_closed()

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """`call_soon_threadsafe`, but for a closed loop."""
        if not self._loop.is_closed():
            try:
                self.call_soon_threadsafe(callback)
            except NotRunning:
                return  # It was closed just now.

    def rouse(self, sleep: Sleep) -> None:
        """Resolve the future, unless it is resolved or cancelled."""
        assert isinstance(sleep, asyncio.Future)
        if not sleep.done():
            sleep.set_result(None)

    def spawn(self, work: Work, name: str) -> Task:
        """Start a task; an empty context, so that no worker carries the ticket of whoever made it necessary."""
        task = self._loop.create_task(work(), name=name, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def checkpoint(self) -> None:
        """One turn of the loop."""
        await asyncio.sleep(0)


class TrioWorkLoop(TrioLoop):
    """trio. Its tasks are system tasks, which end when the main task does."""

    __slots__ = ()

    scoped = True

    def is_over(self) -> bool:
        """Whether `trio.run` has returned."""
        try:
            self.call_soon_threadsafe(_nothing)
        except NotRunning:
            return True
        return False

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """`call_soon_threadsafe`, but for a run that is over."""
        try:
            self.call_soon_threadsafe(callback)
        except NotRunning:
            return  # Nobody is left who could be told.

    def sleep(self) -> Sleep:
        """For whichever task awaits it."""
        return _TrioSleep()

    def rouse(self, sleep: Sleep) -> None:
        """Reschedule the sleeper."""
        assert isinstance(sleep, _TrioSleep)
        sleep.wake()

    def spawn(self, work: Work, name: str) -> Task:
        """Start a system task."""
        import trio

        scope = trio.CancelScope()

        async def scoped() -> None:
            with scope:
                await work()

        trio.lowlevel.spawn_system_task(scoped, name=name)
        return scope

    async def checkpoint(self) -> None:
        """One turn of the loop."""
        import trio

        await trio.lowlevel.checkpoint()


class _TrioSleep(TrioWaker):
    __slots__ = ()

    def __await__(self) -> Generator[object, None, None]:
        return self.wait().__await__()


def _nothing() -> None:
    """What `is_over` asks trio to run: that it may ask is the answer."""
