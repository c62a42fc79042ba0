"""Something that goes on beside a request for as long as the request lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def beside(work: Callable[[], Coroutine[Any, Any, None]], block: Callable[[], Awaitable[T]]) -> T:
    """Run *block* in the caller's own task and return what it does; *work* goes on beside it and is cancelled then.

    *work* must not raise. What *block* raises comes out as it was, not as a group of one.

    This runs for every request that waits, between one request's end and the start of the next. On asyncio it is a bare
    task, because a task group with its cancel scopes costs many times as much.
    """
    loop = asyncio._get_running_loop()
    if loop is None:
        return await _in_group(work, block)
    task = loop.create_task(work())
    try:
        return await block()
    finally:
        task.cancel()


async def _in_group(work: Callable[[], Coroutine[Any, Any, None]], block: Callable[[], Awaitable[T]]) -> T:
    results: list[T] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        try:
            results.append(await block())
        except Exception as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return results[0]
