"""An executor from its start to the end of its drain."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import anyio


class Drainable(Protocol):
    """An executor, as its lifespan sees it."""

    def start(self) -> None:
        """Work on the running event loop from now on."""

    async def drain(self, timeout: float | None = None) -> bool:
        """Take nothing more in and wait until all has ended."""


ExecutorT = TypeVar("ExecutorT", bound=Drainable)


@asynccontextmanager
async def lifespan_of(executor: ExecutorT, drain_timeout: float | None) -> AsyncGenerator[ExecutorT]:
    """Start *executor*, and drain it at the end, even when cancelled.

    A function of its own because mypyc compiles no asynchronous generators.
    """
    executor.start()
    try:
        yield executor
    finally:
        with anyio.CancelScope(shield=True):
            await executor.drain(drain_timeout)
