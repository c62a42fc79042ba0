"""Start, drain, event loops, callbacks, dead letters and what is told about it all."""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback

import anyio
import anyio.lowlevel
import pytest
import trio
from gates import Gate, at_rest, eventually, settle

from admission.errors import Closed, NotRunning, PermanentError, QueueFull, TaskTimeout, WaitTimeout
from admission.executor import QueuedExecutor, TaskStatus, handle
from admission.policy.retry import Retry

pytestmark = pytest.mark.anyio


async def one():
    """A task that ends in its first step."""
    return 1


async def two():
    """A task that waits."""
    await anyio.lowlevel.checkpoint()
    return 2


async def fail():
    """A task that fails."""
    raise ValueError("boom")


async def fail_later():
    """A task that fails after a wait."""
    await anyio.lowlevel.checkpoint()
    raise ValueError("boom")


# ---------------------------------------------------------------------- start and end


async def test_a_lifespan_ends_when_queued_and_running_tasks_have(gate: Gate):
    """Nothing that was taken in is lost; nothing more is taken in."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with anyio.create_task_group() as group:

        async def let_go():
            await settle(lambda: not executor.is_running)
            with pytest.raises(Closed):
                await executor.submit("late")
            gate.open()

        async with executor.lifespan():
            handles = await executor.submit_many([1, 2, 3])
            group.start_soon(let_go)
    assert [each.status for each in handles] == [TaskStatus.SUCCEEDED] * 3
    with pytest.raises(Closed):
        await executor.submit("later")
    assert at_rest(executor)


async def test_a_lifespan_left_by_cancellation_still_drains(gate: Gate):
    """Shielded, and bounded by its own time."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    with anyio.CancelScope() as scope:
        async with executor.lifespan(drain_timeout=0.01):
            handle = await executor.submit(1)
            await settle(lambda: gate.running == 1)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert handle.status is TaskStatus.CANCELLED
    assert gate.running == 0
    assert at_rest(executor)


async def test_a_drained_executor_may_start_again():
    """As an app does in one test after the other."""
    executor = QueuedExecutor(executor=None)
    for _ in range(3):
        async with executor.lifespan():
            assert await executor.execute(two) == 2
        assert not executor.is_running


async def test_a_drained_executor_hires_nobody(gate: Gate):
    """Asking it for more is refused before anything starts."""
    executor = QueuedExecutor(executor=gate, min_workers=2)
    async with executor.lifespan():
        assert len(executor.get_worker_health()) == 2
    for _ in range(2):
        with pytest.raises(Closed, match="was drained"):
            await executor.submit(1)
        with pytest.raises(Closed, match="was drained"):
            await executor.submit_many([1])
    assert executor.get_worker_health() == []


async def test_a_drain_waits_for_async_callbacks():
    """They belong to the tasks."""
    seen = []

    async def later(result):
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        seen.append(result)

    executor = QueuedExecutor()
    async with executor.lifespan():
        await executor.submit(one, on_success=later)
    assert seen == [1]


async def test_a_drain_with_nothing_to_do_ends_at_once():
    """Also before the start."""
    executor = QueuedExecutor()
    assert await executor.drain()
    executor.start()
    assert await executor.drain()


@pytest.mark.parametrize("run", [asyncio.run, lambda main: trio.run(lambda: main)])
def test_an_executor_made_at_import_serves_one_loop_after_the_other(run):
    """Bound at first use, free again when its loop is over."""
    executor = QueuedExecutor()

    async def main():
        return await executor.execute(one) + await executor.execute(two)

    assert [run(main()) for _ in range(3)] == [3, 3, 3]


async def test_another_event_loop_is_told_so(gate: Gate):
    """Not a hang, not a broken future."""
    executor = QueuedExecutor(executor=gate)
    async with executor.lifespan():
        await executor.submit(1)

        def elsewhere():
            with pytest.raises(NotRunning, match="works on another event loop"):
                asyncio.run(executor.execute(2))

        await anyio.to_thread.run_sync(elsewhere)
        gate.open()


def test_without_an_event_loop_it_says_so():
    """A coroutine stepped by hand has no loop."""
    executor = QueuedExecutor(executor=two)
    with pytest.raises(NotRunning):
        executor.start()


async def test_threads_submit_through_a_portal(gate: Gate):
    """anyio's way back into the loop."""
    gate.open()
    executor = QueuedExecutor(executor=gate)

    def from_a_thread():
        return anyio.from_thread.run(executor.execute, "x")

    async with executor.lifespan():
        assert await anyio.to_thread.run_sync(from_a_thread) == "x"


async def test_workers_carry_nobodys_ticket():
    """They are hired inside somebody's request, and must not run others' tasks under its ticket."""
    executor = QueuedExecutor(max_workers=1, min_workers=1)
    async with executor.lifespan():
        await executor.submit_many([two] * 5)
        assert await executor.execute(two) == 2
        health = executor.get_worker_health()
        assert [worker.total_processed for worker in health] == [6]


# ---------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("task", [one, two])
@pytest.mark.parametrize("is_async", [False, True])
async def test_on_success_gets_the_result(task, is_async):
    """Plain or async."""
    seen = []

    async def later(result):
        await anyio.lowlevel.checkpoint()
        seen.append(result)

    executor = QueuedExecutor()
    async with executor.lifespan():
        result = await executor.execute(task, on_success=later if is_async else seen.append)
        await settle(lambda: seen == [result])


async def test_on_failure_gets_the_final_error():
    """Once, after the last attempt."""
    seen = []
    executor = QueuedExecutor()
    async with executor.lifespan():
        with pytest.raises(ValueError, match="boom"):
            await executor.execute(fail, retry=Retry.fixed(0), on_failure=seen.append)
    assert [str(error) for error in seen] == ["boom"]


async def test_on_timeout_hears_of_both_kinds_of_timeout(gate: Gate):
    """Ran too long, waited too long; without it `on_failure` hears of them."""
    late, failed = [], []
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        with pytest.raises(TaskTimeout):
            await executor.execute(1, timeout=0.01, on_timeout=lambda: late.append("run"), on_failure=failed.append)
        await executor.submit(2)
        with pytest.raises(WaitTimeout):
            await executor.execute(3, max_wait=0.01, on_timeout=lambda: late.append("wait"))
        with pytest.raises(WaitTimeout):
            await executor.execute(4, max_wait=0.01, on_failure=failed.append)
        gate.open()
    assert late == ["run", "wait"]
    assert [type(error) for error in failed] == [WaitTimeout]


async def test_callbacks_hear_nothing_of_a_cancelled_task(gate: Gate):
    """Whoever cancelled it knows."""
    seen = []
    executor = QueuedExecutor(executor=gate)
    async with executor.lifespan():
        handle = await executor.submit(
            1, on_success=seen.append, on_failure=seen.append, on_timeout=lambda: seen.append(0)
        )
        handle.cancel()
    assert seen == []


async def test_a_failing_callback_changes_nothing(caplog):
    """It is logged and counted; result, slot and worker are untouched."""

    def bad(result):
        raise KeyError("callback")

    async def bad_later(result):
        await anyio.lowlevel.checkpoint()
        raise KeyError("callback")

    executor = QueuedExecutor(max_workers=1)
    with caplog.at_level(logging.ERROR, "admission.executor"):
        async with executor.lifespan():
            for task in (one, two):
                for callback in (bad, bad_later):
                    assert await executor.execute(task, on_success=callback) in (1, 2)
            await eventually(lambda: executor.get_status().callback_errors == 4)
            assert executor.get_status().success_rate == 1.0
    assert len([record for record in caplog.records if "callback" in record.message]) == 4
    assert at_rest(executor)


# ---------------------------------------------------------------------- errors nobody retrieves


@pytest.fixture
def _outspoken(monkeypatch):
    """No line has been written within the last second."""
    monkeypatch.setattr(handle._Unretrieved, "_quiet_until", 0.0)
    monkeypatch.setattr(handle._Unretrieved, "_left_out", 0)


async def test_an_error_that_nobody_retrieves_is_logged(caplog, _outspoken):
    """When its handle goes, without a look of the garbage collector; a burst of them makes one line."""
    executor = QueuedExecutor()
    gc.disable()
    try:
        with caplog.at_level(logging.ERROR, "admission.executor"):
            async with executor.lifespan():
                for task in (fail, fail_later) * 5:
                    await executor.submit(task)
                await settle(lambda: executor.get_status().failed == 10)
                executor.dead_letters.purge()
                await settle(lambda: caplog.records)
    finally:
        gc.enable()
    (record,) = caplog.records
    assert "failed and nobody retrieved its error: ValueError('boom')" in record.message


@pytest.mark.parametrize("task", [fail, fail_later])
async def test_the_traceback_of_an_error_begins_in_the_task(task):
    """Those who stepped it are of no interest, and would keep its handle."""
    told = []
    executor = QueuedExecutor()
    async with executor.lifespan():
        await executor.submit(task, on_failure=told.append)
    (error,) = told
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == [task.__name__]


async def test_a_retrieved_error_is_not_logged(caplog, _outspoken):
    """Nor one that a callback was told, nor a refusal, which is counted."""
    executor = QueuedExecutor(max_workers=1, max_queue_size=1)
    with caplog.at_level(logging.ERROR, "admission.executor"):
        async with executor.lifespan():
            with pytest.raises(ValueError, match="boom"):
                await executor.execute(fail)
            await executor.submit(fail, on_failure=lambda error: None)
            refused = (await executor.submit_many([two] * 5))[-1]
            assert refused.status is TaskStatus.REFUSED
        del refused
        gc.collect()
    assert caplog.records == []


# ---------------------------------------------------------------------- dead letters


async def test_tasks_that_failed_for_good_become_dead_letters(gate: Gate):
    """Those that were refused or cancelled do not."""
    executor = QueuedExecutor(max_workers=1, max_queue_size=1)
    async with executor.lifespan():
        with pytest.raises(ValueError, match="boom"):
            await executor.execute(fail, retry=Retry.fixed(0), tenant="acme", priority="high", metadata={"n": 1})
        with pytest.raises(TaskTimeout):
            await executor.execute(gate, timeout=0.01)
        running, _ = await executor.submit_many([gate, gate])
        with pytest.raises(QueueFull):
            await executor.submit(gate)
        running.cancel()
        first, second = executor.dead_letters.list()
        assert (first.status, first.error_type, first.error) == (TaskStatus.FAILED, "ValueError", "boom")
        assert (first.attempts, first.priority, first.tenant, first.metadata) == (3, "high", "acme", {"n": 1})
        assert (second.status, second.error_type) == (TaskStatus.TIMED_OUT, "TaskTimeout")
        assert executor.get_status().dead_letters == 2
        gate.open()


async def test_a_dead_letter_may_be_tried_again():
    """With its task, arguments and options; it is gone when it was taken in."""
    fixed = []

    async def needs_a_fix(value):
        if not fixed:
            raise PermanentError("not yet")
        return value

    executor = QueuedExecutor()
    async with executor.lifespan():
        with pytest.raises(PermanentError):
            await executor.execute(needs_a_fix, 7, tenant="acme")
        (letter,) = executor.dead_letters.list()
        again = await executor.dead_letters.retry(letter.id)
        with pytest.raises(PermanentError):
            await again
        (letter,) = executor.dead_letters.list()
        assert letter.tenant == "acme"
        fixed.append(True)
        again = await executor.dead_letters.retry(letter.id)
        assert await again == 7
        assert len(executor.dead_letters) == 0
        with pytest.raises(KeyError):
            await executor.dead_letters.retry(letter.id)


async def test_dead_letters_are_bounded_and_may_be_purged():
    """The oldest make room."""
    executor = QueuedExecutor(max_dead_letters=3)
    none = QueuedExecutor(max_dead_letters=0)
    async with executor.lifespan(), none.lifespan():
        for number in range(5):
            with pytest.raises(ValueError, match="boom"):
                await executor.execute(fail, metadata={"n": number})
        with pytest.raises(ValueError, match="boom"):
            await none.execute(fail)
        assert [letter.metadata["n"] for letter in executor.dead_letters.list()] == [2, 3, 4]
        assert executor.dead_letters.purge(executor.dead_letters.list()[0].id) == 1
        assert executor.dead_letters.purge("unknown") == 0
        assert executor.dead_letters.purge() == 2
        assert len(executor.dead_letters) == len(none.dead_letters) == 0


# ---------------------------------------------------------------------- status


async def test_status_counts_what_happened(gate: Gate):
    """One frozen record of it all."""
    executor = QueuedExecutor(executor=None, max_workers=2, max_queue_size=5)
    async with executor.lifespan():
        for task in (one, two, one):
            await executor.execute(task)
        with pytest.raises(ValueError, match="boom"):
            await executor.execute(fail)
        handles = [await executor.submit(gate, number, priority="low") for number in range(4)]
        await settle(lambda: gate.running == 2)
        status = executor.get_status()
        assert (status.submitted, status.started, status.completed, status.failed) == (8, 6, 3, 1)
        assert (status.workers, status.active_workers, status.max_workers) == (2, 2, 2)
        assert status.total_queued == 2
        assert status.queued == {"critical": 0, "high": 0, "normal": 0, "low": 2}
        assert status.success_rate == 0.75
        assert status.tasks_per_second > 0
        assert (status.is_healthy, status.is_running, status.name) == (True, True, executor.name)
        gate.open()
        for each in handles:
            await each
    assert executor.get_status().completed == 7


async def test_a_task_sees_its_own_worker_busy():
    """Also in its first step, which may run inside `submit`."""
    executor = QueuedExecutor(max_workers=1)

    async def look():
        (worker,) = executor.get_worker_health()
        return executor.get_status().active_workers, worker.current_task

    async with executor.lifespan():
        for _ in range(2):
            handle = await executor.submit(look)
            assert await handle == (1, handle.id)
