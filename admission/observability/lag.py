"""How late the event loop runs what is due: the one number that says "something blocks this process".

A timer is set every `interval` seconds; how much later than asked it fires is the lag. A blocked loop cannot
admit anyone, and lets queue timeouts fire late, so look here first when waits are long and slots are free.
The sampler costs one callback per interval and never touches a request.
"""

from __future__ import annotations

import asyncio
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

from admission.types import HistogramSnapshot, within

LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. Below a millisecond is the timer's own jitter."""


class _Timer(Protocol):
    def cancel(self) -> None: ...


class LoopLag:
    """A sampler of one event loop's lag, on asyncio, uvloop or trio.

    `start()` may be called again at any time: it does nothing while the sampler runs on this loop, and moves
    it here when it ran on another one. It is *not* thread-safe.

    Args:
        interval: Seconds between samples.

    Raises:
        ValueError: *interval* is outside 0.01 … 60.
    """

    def __init__(self, *, interval: float = 0.25) -> None:
        within("interval", interval, 0.01, 60)
        self.interval = interval
        self.last = 0.0
        """Seconds of the latest sample."""
        self._counts = [0] * (len(LAG_BOUNDS) + 1)
        self._sum = 0.0
        self._loop: object | None = None
        self._timer: _Timer | None = None

    def start(self) -> None:
        """Sample the running event loop from now on.

        Raises:
            RuntimeError: No event loop is running here.
        """
        if on_trio():
            self._start_on_trio()
            return
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self.stop()
            self._loop = loop
            self._wait_on_asyncio(loop)

    def stop(self) -> None:
        """Take no more samples; what was seen is kept."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None

    def snapshot(self) -> HistogramSnapshot:
        """The lags seen so far, in seconds."""
        return HistogramSnapshot(bounds=LAG_BOUNDS, counts=tuple(self._counts), sum=self._sum)

    def _saw(self, lag: float) -> None:
        # uvloop's timers may fire a third of a millisecond early: that is no lag, and no negative one.
        self.last = max(0.0, lag)
        self._sum += self.last
        self._counts[bisect_left(LAG_BOUNDS, self.last)] += 1

    def _wait_on_asyncio(self, loop: asyncio.AbstractEventLoop) -> None:
        due = time.monotonic() + self.interval

        def fired() -> None:
            self._saw(time.monotonic() - due)
            self._wait_on_asyncio(loop)

        self._timer = loop.call_later(self.interval, fired)

    def _start_on_trio(self) -> None:
        import trio

        token = trio.lowlevel.current_trio_token()
        if self._loop is token:
            return
        self.stop()
        self._loop, self._timer = token, (scope := trio.CancelScope())

        async def sample() -> None:
            with scope:
                while True:
                    due = trio.current_time() + self.interval
                    await trio.sleep_until(due)
                    self._saw(trio.current_time() - due)

        # A system task: it ends with the run and keeps nobody's nursery open.
        trio.lowlevel.spawn_system_task(sample, name="admission loop lag")


def on_trio() -> bool:
    """Whether the code that asks is run by trio."""
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    in_trio: Callable[[], bool] = trio.lowlevel.in_trio_run
    return in_trio()
