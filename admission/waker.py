"""How a coroutine sleeps until it is woken, and how time calls back, on asyncio (uvloop too) and on trio.

A `Waker` is the smallest thing that can be waited for: a bare future on asyncio, a rescheduled task on trio. A
`Loop` is the clock and the one timer of a controller. Neither starts a task on asyncio; on trio, which has no timers
without one, a timer is a system task.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Protocol, TypeVar

from admission.errors import NotRunning

if TYPE_CHECKING:
    import trio

T = TypeVar("T")


class Waker(Protocol):
    """One coroutine sleeps in `wait` until `wake`."""

    def wake(self) -> None:
        """Let the sleeper go on, now or as soon as it sleeps. Twice is once."""

    def wait(self) -> Awaitable[None]:
        """Sleep until woken. Cancellation comes out of here; whoever was woken in the same instant must look."""


class Timer(Protocol):
    """A call that is due at some time."""

    def cancel(self) -> None:
        """It shall not happen any more."""


class Loop(Protocol):
    """The event loop a controller is bound to."""

    def now(self) -> float:
        """Monotonic seconds."""

    def waker(self) -> Waker:
        """A new one, for the running task."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* at these monotonic seconds, or a little earlier or later."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Call *callback* on the loop, from any thread."""

    def is_current(self) -> bool:
        """Whether the caller runs on this very loop."""

    def is_running(self) -> bool:
        """Whether it runs at all, in whatever thread."""

    def run(self, function: Callable[[], Coroutine[object, object, T]]) -> T:
        """Run *function* on the loop and wait for its result, from another thread."""


class AsyncioWaker:
    """A bare future."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future = loop.create_future()

    def wake(self) -> None:
        """Resolve the future, unless it is resolved or cancelled."""
        future = self._future
        if not future.done():
            future.set_result(None)

    def wait(self) -> Awaitable[None]:
        """The future itself: a coroutine around it would be felt."""
        return self._future


class AsyncioLoop:
    """asyncio, whatever its implementation."""

    __slots__ = ("_loop", "call_at", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # The clock of asyncio's own loops and of uvloop is time.monotonic, which is faster to ask, and on uvloop finer.
        own = getattr(loop.time, "__func__", None) is not asyncio.BaseEventLoop.time
        self.now = loop.time if own and not type(loop).__module__.startswith("uvloop") else time.monotonic
        self.call_at = loop.call_at

    def waker(self) -> Waker:
        """A bare future of this loop."""
        return AsyncioWaker(self._loop)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Hand it to the loop. Raises NotRunning when the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError as error:
            raise NotRunning("the event loop of this controller is closed") from error

    def is_current(self) -> bool:
        """Whether this loop runs in this thread."""
        return asyncio._get_running_loop() is self._loop

    def is_running(self) -> bool:
        """Whether some thread runs it."""
        return self._loop.is_running()

    def run(self, function: Callable[[], Coroutine[object, object, T]]) -> T:
        """Start a task for it; an interrupted thread cancels the task."""
        future = asyncio.run_coroutine_threadsafe(function(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class TrioWaker:
    """A task that is put to sleep and rescheduled."""

    __slots__ = ("_sleeper", "_woken")

    def __init__(self) -> None:
        self._woken = False
        self._sleeper: trio.lowlevel.Task | None = None

    def wake(self) -> None:
        """Reschedule the sleeper."""
        import trio

        self._woken = True
        if self._sleeper is not None:
            sleeper, self._sleeper = self._sleeper, None
            trio.lowlevel.reschedule(sleeper)

    async def wait(self) -> None:
        """Sleep, or let others run once when woken already."""
        import trio

        if self._woken:
            await trio.lowlevel.checkpoint()
            return

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._sleeper = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(give_up)


class TrioTimer:
    """A system task that sleeps."""

    __slots__ = ("_scope",)

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        import trio

        self._scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._run, when, callback, name="admission timer")

    async def _run(self, when: float, callback: Callable[[], None]) -> None:
        import trio

        with self._scope:
            await trio.sleep_until(when)
            callback()

    def cancel(self) -> None:
        """End the task."""
        self._scope.cancel()


class TrioLoop:
    """trio."""

    __slots__ = ("_token", "now")

    def __init__(self) -> None:
        import trio

        self._token = trio.lowlevel.current_trio_token()
        # The clock itself: `trio.current_time` has none to ask once the run is over, when slots are given back too.
        self.now = trio.lowlevel.current_clock().current_time

    def waker(self) -> Waker:
        """For the running task."""
        return TrioWaker()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Start a system task for it."""
        return TrioTimer(when, callback)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Hand it to the run. Raises NotRunning when the run is over."""
        import trio

        try:
            self._token.run_sync_soon(callback)
        except trio.RunFinishedError as error:
            raise NotRunning("the trio run of this controller is over") from error

    def is_current(self) -> bool:
        """Whether this very run, not a later one, goes on in this thread."""
        import trio

        try:
            return trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def is_running(self) -> bool:
        """Whether the run is not over."""
        import trio

        try:
            self._token.run_sync_soon(_nothing, idempotent=True)
        except trio.RunFinishedError:
            return False
        return True

    def run(self, function: Callable[[], Coroutine[object, object, T]]) -> T:
        """Let trio run it on behalf of this thread."""
        import trio

        return trio.from_thread.run(function, trio_token=self._token)


def _nothing() -> None:
    """Does nothing: whether it can be handed over says that the run goes on."""


def running_loop() -> Loop:
    """The loop the caller runs on. Raises NotRunning outside asyncio and trio."""
    loop = asyncio._get_running_loop()
    if loop is not None:
        return AsyncioLoop(loop)
    # trio cannot be running where nobody has imported it; and importing it costs what few need.
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return TrioLoop()
    raise NotRunning("no event loop runs here: call this from a coroutine, or use `with controller.sync()` in threads")
