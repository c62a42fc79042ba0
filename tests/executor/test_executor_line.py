"""A full line, waiting in it, and leaving it."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from gates import Gate, at_rest, eventually, settle

from admission.errors import Closed, Evicted, QueueFull, TaskCancelled, WaitTimeout
from admission.executor import QueuedExecutor, TaskStatus
from admission.types import BackpressureMode, Reason

pytestmark = pytest.mark.anyio


async def test_reject_mode_raises_out_of_submit(gate: Gate):
    """The line holds one; the third task is refused, and the error is an asyncio.QueueFull too."""
    executor = QueuedExecutor(executor=gate, max_workers=1, max_queue_size=1)
    async with executor.lifespan():
        await executor.submit(1)
        await executor.submit(2)
        with pytest.raises(QueueFull) as caught:
            await executor.submit(3)
        assert isinstance(caught.value, asyncio.QueueFull)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_after is not None
        assert executor.get_status().refused == 1
        gate.open()
    assert gate.started == [1, 2]


async def test_block_mode_waits_for_room_in_the_line(gate: Gate):
    """`submit` returns when the task has its place, not when it runs."""
    executor = QueuedExecutor(executor=gate, max_workers=1, max_queue_size=1, backpressure_mode=BackpressureMode.BLOCK)
    handles = []

    async def submit_third():
        handles.append(await executor.submit(3))

    async with executor.lifespan():
        first = await executor.submit(1)
        await executor.submit(2)
        async with anyio.create_task_group() as group:
            group.start_soon(submit_third)
            await settle(lambda: executor.get_status().lobby == 1)
            assert handles == []
            await settle(lambda: gate.running == 1)
            first.cancel()
            await settle(lambda: len(handles) == 1)
            assert handles[0].status is TaskStatus.QUEUED
            gate.open()
        assert await handles[0] == 3


async def test_cancelled_in_the_lobby_it_leaves_nothing_behind(gate: Gate):
    """The caller of `submit` goes away while it waits for room."""
    executor = QueuedExecutor(executor=gate, max_workers=1, max_queue_size=1, backpressure_mode="block")
    async with executor.lifespan():
        await executor.submit(1)
        await executor.submit(2)
        async with anyio.create_task_group() as group:
            group.start_soon(executor.submit, 3)
            await settle(lambda: executor.get_status().lobby == 1)
            group.cancel_scope.cancel()
        assert executor.get_status().lobby == 0
        gate.open()
    assert gate.started == [1, 2]
    assert at_rest(executor)


async def test_a_wait_in_the_lobby_ends_with_max_wait(gate: Gate):
    """The refusal comes out of `submit`, for there is no handle yet."""
    executor = QueuedExecutor(executor=gate, max_workers=1, max_queue_size=1, backpressure_mode="block")
    async with executor.lifespan():
        await executor.submit(1)
        await executor.submit(2)
        with pytest.raises(WaitTimeout):
            await executor.submit(3, max_wait=0.01)
        gate.open()


async def test_a_wait_in_line_ends_with_max_wait(gate: Gate):
    """The handle raises WaitTimeout, a TimeoutError, and the task never starts."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        await executor.submit(1)
        handle = await executor.submit(2, max_wait=0.01)
        with pytest.raises(WaitTimeout) as caught:
            await handle
        assert isinstance(caught.value, TimeoutError)
        assert handle.status is TaskStatus.REFUSED
        gate.open()
    assert gate.started == [1]


async def test_a_task_whose_deadline_passed_is_never_started(gate: Gate):
    """It is dropped when its turn comes."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        await executor.submit(1)
        handle = await executor.submit(2, deadline=executor.now() + 0.01)
        with pytest.raises(WaitTimeout) as caught:
            await handle
        assert caught.value.reason is Reason.DEADLINE
        gate.open()
    assert gate.started == [1]


async def test_a_higher_class_pushes_the_worst_waiter_out(gate: Gate):
    """The evicted one hears it at its handle."""
    executor = QueuedExecutor(executor=gate, max_workers=1, max_queue_size=1)
    async with executor.lifespan():
        await executor.submit(1)
        low = await executor.submit(2, priority="low")
        await executor.submit(3, priority="high")
        with pytest.raises(Evicted) as caught:
            await low
        assert caught.value.reason is Reason.PRIORITY
        gate.open()
    assert gate.started == [1, 3]


async def test_submit_many_gives_every_task_a_handle(gate: Gate):
    """Also those that are refused: their handles say so."""
    executor = QueuedExecutor(executor=gate, max_workers=1, max_queue_size=1)
    async with executor.lifespan():
        handles = await executor.submit_many([1, 2, 3, 4], priority="high")
        assert [handle.status for handle in handles[2:]] == [TaskStatus.REFUSED] * 2
        with pytest.raises(QueueFull):
            await handles[3]
        gate.open()
        assert [await handle for handle in handles[:2]] == [1, 2]


async def test_a_handle_tells_its_place_in_line(gate: Gate):
    """0 while it runs, then 1, 2, 3 … and they move up."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        handles = await executor.submit_many([1, 2, 3])
        await settle(lambda: gate.running == 1)
        assert [handle.position for handle in handles] == [0, 1, 2]
        assert [handle.status for handle in handles] == ["running", "queued", "queued"]
        assert handles[0].estimated_wait == 0.0
        handles[1].cancel()
        assert handles[2].position == 1
        assert executor.controller.position(handles[2].id) == 1
        gate.open()
    assert handles[2].position == 0


async def test_a_cancelled_waiter_gives_its_place_up(gate: Gate):
    """It never starts, and awaiting it says so."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        handles = await executor.submit_many([1, 2, 3])
        assert handles[1].cancel()
        assert not handles[1].cancel()
        with pytest.raises(TaskCancelled):
            await handles[1]
        gate.open()
    assert gate.started == [1, 3]
    assert executor.get_status().cancelled == 1


async def test_a_task_cancelled_between_grant_and_start_passes_its_slot_on(gate: Gate):
    """It holds a slot that no worker has picked up yet: the next one gets it."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        first, second = await executor.submit_many([1, 2])
        assert first.status is TaskStatus.QUEUED  # Granted; its worker has not run yet.
        assert executor.controller.snapshot().in_flight == 1
        first.cancel()
        await settle(lambda: gate.started == [2])
        assert second.status is TaskStatus.RUNNING
        gate.open()
    assert at_rest(executor)


async def test_a_cancelled_running_task_stops_where_it_waits(gate: Gate):
    """Its slot is free when it has cleaned up."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        handle = await executor.submit(1)
        await settle(lambda: gate.running == 1)
        assert handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle
        assert handle.status is TaskStatus.CANCELLED
        await settle(lambda: gate.running == 0 and at_rest(executor))


async def test_updates_tell_every_change(gate: Gate):
    """Position and status, from the line to the end."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    seen = []

    async def watch(handle):
        async for update in handle.updates(interval=0.001):
            seen.append((str(update.status), update.position, update.attempts))

    async with executor.lifespan():
        first, second, third = await executor.submit_many([1, 2, 3])
        async with anyio.create_task_group() as group:
            group.start_soon(watch, third)
            await settle(lambda: seen == [("queued", 2, 0)])
            second.cancel()
            await eventually(lambda: len(seen) == 2)
            first.cancel()
            await settle(lambda: len(seen) >= 3)
            gate.open()
    # On trio, which shuffles, a look may fall between the grant and the worker's start.
    told = [update for update in seen if update != ("queued", 0, 0)]
    assert told == [("queued", 2, 0), ("queued", 1, 0), ("running", 0, 1), ("succeeded", 0, 1)]
    assert [update.status async for update in third.updates()] == ["succeeded"]


async def test_a_paused_class_waits_and_a_resumed_one_runs(gate: Gate):
    """Emergency override: the pool's pause is the executor's."""
    gate.open()
    executor = QueuedExecutor(executor=gate, max_workers=2)
    async with executor.lifespan():
        executor.controller.pause("low")
        low = await executor.submit("low", priority="low")
        assert await executor.execute("high", priority="high") == "high"
        assert not low.done()
        executor.controller.resume("low")
        assert await low == "low"


async def test_resize_lets_more_run(gate: Gate):
    """And hires workers for them."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        await executor.submit_many([1, 2, 3])
        await settle(lambda: gate.running == 1)
        executor.controller.resize(3)
        await settle(lambda: gate.running == 3)
        assert executor.get_status().max_workers == 3
        gate.open()


async def test_a_draining_pool_refuses(gate: Gate):
    """A shared controller may be drained by someone else."""
    executor = QueuedExecutor(executor=gate)
    async with executor.lifespan():
        executor.controller.start_draining()
        with pytest.raises(Closed):
            await executor.submit(1)
        assert not executor.is_healthy
