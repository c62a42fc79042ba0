"""Callbacks of tasks: called when the fate is decided and the slot is free, isolated from both."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial

from admission.executor.loops import WorkLoop
from admission.executor.status import Tally
from admission.executor.stepping import run_in

logger = logging.getLogger("admission.executor")


class Callbacks:
    """Calls plain callbacks at once and async ones in tasks of their own; a failing one is logged and counted."""

    def __init__(self, loop: WorkLoop, tally: Tally, ended: Callable[[], None]) -> None:
        self.pending = 0
        """Async callbacks that have not ended."""
        self._loop = loop
        self._tally = tally
        self._ended = ended

    def call(self, context: Context, callback: Callable[..., object], *args: object) -> None:
        """Call *callback* with the submitter's context variables."""
        # In a copy: a thread that outran its timeout is still inside the context itself.
        context = context.copy()
        try:
            answer = context.run(callback, *args)
        except Exception:
            self._failed(callback)
            return
        if inspect.isawaitable(answer):
            self.pending += 1
            self._loop.spawn(partial(self._await, context, callback, answer), "admission callback")

    async def _await(self, context: Context, callback: Callable[..., object], answer: Awaitable[object]) -> None:
        try:
            await run_in(context, answer)
        except Exception:
            self._failed(callback)
        finally:
            self.pending -= 1
            self._ended()

    def _failed(self, callback: Callable[..., object]) -> None:
        self._tally.callback_errors += 1
        logger.exception("callback %r failed; the task's result stands", callback)
