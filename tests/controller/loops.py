"""Event loops with virtual time: what waits an hour is over at once."""

from __future__ import annotations

import asyncio
import selectors

import pytest
import trio.testing


class Jump(selectors.DefaultSelector):
    """Instead of sleeping until the next timer, move the clock there."""

    loop: AutojumpLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Files that are ready now."""
        if timeout is None:
            raise RuntimeError("every task sleeps and no timer is set: nobody will ever wake")
        self.loop.clock += timeout
        return super().select(0)


class AutojumpLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop; `clock` is the time, in seconds."""

    def __init__(self) -> None:
        self.clock = 1000.0
        selector = Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """The virtual time."""
        return self.clock


def virtual_backends() -> list[object]:
    """Parameters for a module's own `anyio_backend`: make them anew for each test."""
    return [pytest.param("asyncio", id="asyncio"), pytest.param("trio", id="trio")]


def virtual_backend(name: str) -> tuple[str, dict[str, object]]:
    """What the fixture of that name returns."""
    if name == "trio":
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": AutojumpLoop}
