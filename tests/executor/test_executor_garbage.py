"""A task leaves nothing behind that only the garbage collector could find."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from admission.executor import QueuedExecutor
from tests.collector import Scene, found_by_the_collector

pytestmark = pytest.mark.anyio


async def at_once(divisor: int) -> int:
    """A task that ends in its first step, and may fail."""
    return 1 // divisor


async def later(divisor: int) -> int:
    """One that waits before."""
    await anyio.lowlevel.checkpoint()
    return 1 // divisor


def in_a_thread(divisor: int) -> int:
    """One of a thread."""
    return 1 // divisor


TASKS = (at_once, later, in_a_thread)


async def ends(executor: QueuedExecutor[object]) -> None:
    """With a result."""
    for task in TASKS:
        assert await executor.execute(task, 1) == 1


async def fails(executor: QueuedExecutor[object]) -> None:
    """With an error, for whoever waits for it."""
    for task in TASKS:
        with pytest.raises(ZeroDivisionError):
            await executor.execute(task, 0)


async def fails_unseen(executor: QueuedExecutor[object]) -> None:
    """With an error that a callback is told."""
    told: list[str] = []

    def note(error: BaseException) -> None:
        told.append(str(error))

    for task in TASKS:
        await executor.submit(task, 0, on_failure=note)
    while len(told) < len(TASKS):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("what", [ends, fails, fails_unseen])
async def test_nothing_is_left_for_the_collector_of_a_task_that(what: Scene) -> None:
    """On whichever way it was run."""
    executor: QueuedExecutor[object] = QueuedExecutor()

    async def scene(kept: list[object]) -> None:
        await what(executor)
        executor.dead_letters.purge()

    async with executor.lifespan():
        assert await found_by_the_collector(scene) == []
