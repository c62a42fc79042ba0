"""Tasks that wait until a test lets them go, and ways to wait for what a task does."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.lowlevel

from admission.executor import QueuedExecutor


class Gate:
    """A task that waits until it is let go, and counts how many run at once."""

    def __init__(self) -> None:
        self._open = anyio.Event()
        self.running = 0
        self.most = 0
        self.started: list[object] = []

    async def __call__(self, name: object = None) -> object:
        self.started.append(name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._open.wait()
        finally:
            self.running -= 1
        return name

    def open(self) -> None:
        """Let everyone go on, now and later."""
        self._open.set()


async def settle(until: Callable[[], bool]) -> None:
    """Let the loop turn until *until* holds; fail if it never does."""
    for _ in range(500):
        if until():
            return
        await anyio.lowlevel.checkpoint()
    raise AssertionError("it never came to hold")


async def eventually(until: Callable[[], bool]) -> None:
    """As `settle`, for what other threads have to do first."""
    with anyio.fail_after(10):
        while not until():
            await anyio.lowlevel.checkpoint()


def at_rest(executor: QueuedExecutor) -> bool:
    """Whether no slot is held and nobody waits."""
    snapshot = executor.controller.snapshot()
    return snapshot.in_flight == 0 and snapshot.queued == 0 and snapshot.lobby == 0
