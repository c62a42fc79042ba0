"""asyncio's own event loop with a clock that moves only when it is told to."""

from __future__ import annotations

import asyncio
import selectors


class Stuck(AssertionError):
    """Everybody sleeps and nobody is left to wake anyone."""


class NoFiles(selectors.DefaultSelector):
    """A selector under a loop on which nothing but tasks and timers happen: it never blocks and never asks the OS."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """No file is ever ready."""
        if timeout is None or timeout > 0:
            raise Stuck("stuck: every task sleeps")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Tasks, futures, callbacks and timers are asyncio's; `clock` is the time, in seconds."""

    def __init__(self) -> None:
        self.clock = 0.0
        super().__init__(NoFiles())

    def time(self) -> float:
        """The virtual time."""
        return self.clock
