"""Coroutines that run in one task and in another's context.

A coroutine is a generator to its event loop: what it yields says what it waits for. So whoever passes that on unchanged
may run each step where it likes, here inside the submitter's context variables. On asyncio and trio alike.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from typing import TypeVar

Steps = Coroutine[object, object, object]

ErrorT = TypeVar("ErrorT", bound=BaseException)


def first_step(coroutine: Steps, context: Context) -> tuple[bool, object]:
    """Begin a coroutine inside *context*: True and its result when it ended there, False and what it waits for if not.

    Left interpreted in the compiled build, like all of this module: there an exception costs ten times as much.
    """
    try:
        return False, context.run(coroutine.send, None)
    except StopIteration as returned:
        return True, returned.value


@types.coroutine
def go_on(
    coroutine: Steps, context: Context, waits_for: object, thrown: BaseException | None = None
) -> Generator[object, object, object]:
    """Run a coroutine that waits for *waits_for* to its end, each step of it inside *context*.

    Args:
        thrown: Raised inside it at once, in place of the wait.
    """
    while True:
        sent = None
        if thrown is None:
            try:
                sent = yield waits_for
            except GeneratorExit:
                context.run(coroutine.close)
                raise
            except BaseException as error:
                thrown = error
        try:
            waits_for = context.run(coroutine.send, sent) if thrown is None else context.run(coroutine.throw, thrown)
        except StopIteration as returned:
            return returned.value
        finally:
            thrown = None  # It would otherwise live, with its traceback, as long as the next wait.


async def run_in(context: Context, awaitable: Awaitable[object]) -> object:
    """Await *awaitable* in the present task, each step of it inside *context*."""
    coroutine = as_coroutine(awaitable)
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration as returned:
        return returned.value
    return await go_on(coroutine, context, waits_for)


def as_raised(error: ErrorT) -> ErrorT:
    """*error*, which the caller has caught, as a task raised it: the traceback begins where the executor's frames end.

    Those hold the task's handle, and that holds the error: all would wait for the garbage collector, and so would the
    log's line about an error that nobody retrieved. The task's frames remember them as their callers, so they are
    emptied too; the caller's own still runs, and has to let go of the two by itself.
    """
    caught = error.__traceback__
    trace = None if caught is None else caught.tb_next
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("admission.executor."):
        trace.tb_frame.clear()
        trace = trace.tb_next
    return error.with_traceback(trace)


async def as_coroutine(awaitable: Awaitable[object]) -> object:
    """*awaitable* as something that can be stepped."""
    return await awaitable
