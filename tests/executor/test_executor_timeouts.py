"""A task's timeout, and interrupts of every kind, on a worker that many tasks share."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest
from gates import Gate, at_rest

from admission.errors import TaskCancelled, TaskTimeout
from admission.executor import QueuedExecutor, TaskStatus

pytestmark = pytest.mark.anyio


async def two():
    """A task that waits once."""
    await anyio.lowlevel.checkpoint()
    return 2


async def test_a_task_that_runs_too_long_is_cancelled(gate: Gate):
    """Its caller gets TaskTimeout, a TimeoutError; its slot is free and its worker goes on."""
    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        handle = await executor.submit(gate, timeout=0.01)
        with pytest.raises(TaskTimeout, match=r"longer than its timeout of 0\.01 s") as caught:
            await handle
        assert isinstance(caught.value, TimeoutError)
        assert handle.status is TaskStatus.TIMED_OUT
        assert gate.running == 0
        assert await executor.execute(two, timeout=5) == 2
        status = executor.get_status()
        assert (status.timed_out, status.completed, status.workers) == (1, 1, 1)
    assert at_rest(executor)


async def test_the_executors_timeout_is_the_default(gate: Gate):
    """And `timeout=None` switches it off for one task."""
    executor = QueuedExecutor(executor=gate, timeout=0.01)
    async with executor.lifespan():
        patient = await executor.submit(1, timeout=None)
        with pytest.raises(TaskTimeout):
            await executor.execute(2)
        gate.open()
        assert await patient == 1


async def test_time_in_line_is_not_run_time(gate: Gate):
    """The timeout counts from the start."""
    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        first = await executor.submit(gate, timeout=0.05)
        second = await executor.submit(two, timeout=0.05)
        with pytest.raises(TaskTimeout):
            await first
        assert await second == 2


async def test_a_task_may_clean_up_when_its_time_is_over():
    """What it awaits in `finally` still works, and the caller hears of the timeout after that."""
    executor = QueuedExecutor(max_workers=1)
    cleaned = []

    async def tidy():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                cleaned.append(True)

    async with executor.lifespan():
        with pytest.raises(TaskTimeout):
            await executor.execute(tidy, timeout=0.01)
        assert cleaned == [True]


async def test_an_error_raised_on_the_way_out_is_the_tasks():
    """As with `asyncio.timeout` and trio's scopes: only a cancellation becomes a timeout."""
    executor = QueuedExecutor(max_workers=1)

    async def slips():
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("slipped")

    async with executor.lifespan():
        with pytest.raises(KeyError, match="slipped"):
            await executor.execute(slips, timeout=0.01)
        assert await executor.execute(two) == 2


async def test_scopes_and_task_groups_inside_a_task_work_as_ever(gate: Gate):
    """They are opened in the task's first step, and closed in later ones, on the same event loop task."""
    executor = QueuedExecutor(max_workers=2)

    async def own_timeout():
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep_forever()
        return scope.cancelled_caught

    async def failing_child():
        async def fail():
            await anyio.lowlevel.checkpoint()
            raise ValueError("child")

        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await anyio.sleep_forever()

    async def children():
        results = []

        async def child(number):
            await anyio.lowlevel.checkpoint()
            results.append(number)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(child, number)
        return sorted(results)

    async with executor.lifespan():
        await executor.execute(two)  # A worker rests: the first step of the next ones happens inside submit.
        for _ in range(3):
            assert await executor.execute(own_timeout) is True
            with pytest.raises(ExceptionGroup) as caught:
                await executor.execute(failing_child)
            assert isinstance(caught.value.exceptions[0], ValueError)
            assert await executor.execute(children) == [0, 1, 2]
        assert await executor.execute(two) == 2
        assert executor.get_status().workers == 1


async def test_a_timeout_reaches_into_the_tasks_own_task_group():
    """Its children end with it."""
    executor = QueuedExecutor(max_workers=1)
    ended = []

    async def child():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def parent():
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            group.start_soon(child)

    async with executor.lifespan():
        await executor.execute(two)
        with pytest.raises(TaskTimeout):
            await executor.execute(parent, timeout=0.01)
        assert ended == [True, True]
        assert await executor.execute(two) == 2


async def test_a_task_that_swallows_its_cancellation_has_its_result():
    """It chose to go on; the worker is not confused by what was left over."""
    executor = QueuedExecutor(max_workers=1)

    async def stubborn():
        try:
            await anyio.sleep_forever()
        except BaseException:
            return "still here"

    async with executor.lifespan():
        handle = await executor.submit(stubborn, timeout=0.01)
        assert await handle == "still here"
        for _ in range(5):
            assert await executor.execute(two) == 2


class TestOnAsyncio:
    """What only asyncio can do to a task."""

    @pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
    def anyio_backend(self, request):
        """No trio here."""
        return "asyncio", {"use_uvloop": request.param}

    async def test_asyncio_timeout_and_task_group_in_the_first_step(self):
        """They note `current_task()` on entry: it has to be the one that runs the later steps."""
        executor = QueuedExecutor(max_workers=1)

        async def own_timeout():
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()

        async def own_group():
            async with asyncio.TaskGroup() as group:
                child = group.create_task(two())
            return child.result()

        async def whole():
            before = asyncio.current_task()
            await asyncio.sleep(0)
            return before is asyncio.current_task()

        async with executor.lifespan():
            await executor.execute(two)
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await executor.execute(own_timeout)
                assert await executor.execute(own_group) == 2
                assert await executor.execute(whole)
            submitter = asyncio.current_task()
            assert await executor.execute(two) == 2
            assert asyncio.current_task() is submitter

    async def test_a_task_that_cancels_the_current_task_harms_nobody_else(self):
        """The cancellation it leaves behind must not hit the next task of the same worker."""
        executor = QueuedExecutor(max_workers=1)

        async def poison_now():
            asyncio.current_task().cancel()
            return "gone"

        async def poison_late():
            await asyncio.sleep(0)
            asyncio.current_task().cancel()
            return "gone"

        async with executor.lifespan():
            await executor.execute(two)
            for poison in (poison_now, poison_late, poison_now, poison_late):
                assert await executor.execute(poison) == "gone"
                results = [await executor.execute(two) for _ in range(3)]
                assert results == [2, 2, 2]
            handles = await executor.submit_many([poison_late, two, two, poison_late, two])
            assert [await handle for handle in handles] == ["gone", 2, 2, "gone", 2]
        assert at_rest(executor)

    async def test_a_task_that_awaits_a_cancelled_future_is_cancelled_alone(self):
        """A CancelledError that nobody asked for is the task's own affair."""
        executor = QueuedExecutor(max_workers=1)

        async def unlucky(late):
            if late:
                await asyncio.sleep(0)
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        async with executor.lifespan():
            await executor.execute(two)
            for late in (False, True):
                with pytest.raises(TaskCancelled, match="cancelled itself"):
                    await executor.execute(unlucky, late)
                assert await executor.execute(two) == 2

    async def test_a_handle_cancelled_from_its_own_first_step_ends_the_task(self, gate: Gate):
        """The interrupt reaches a worker that has not yet woken for the task."""
        executor = QueuedExecutor(max_workers=1)
        seen = []

        async def first_step():
            asyncio.get_running_loop().call_soon(lambda: seen.append(handle.cancel()))
            await asyncio.get_running_loop().create_future()

        async with executor.lifespan():
            await executor.execute(two)
            handle = await executor.submit(first_step)
            with pytest.raises(TaskCancelled):
                await handle
            assert seen == [True]
            assert await executor.execute(two) == 2
            handle = await executor.submit(gate)
            handle.cancel()  # Before its worker has run at all.
            with pytest.raises(TaskCancelled):
                await handle
            assert await executor.execute(two) == 2
        assert at_rest(executor)
