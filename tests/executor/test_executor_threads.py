"""Tasks in threads and processes: they cannot be stopped, so their slots stay taken until they end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import uvloop
from gates import Gate, at_rest, eventually, settle
from process_tasks import die_once, square

from admission.errors import Rejected, TaskCancelled, TaskTimeout
from admission.executor import QueuedExecutor, TaskStatus
from admission.policy.retry import Retry

pytestmark = pytest.mark.anyio


class ThreadGate:
    """A plain function that blocks its thread until it is let go."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.running = 0
        self.most = 0
        self.started = 0

    def __call__(self, value: object = None) -> object:
        with self._lock:
            self.started += 1
            self.running += 1
            self.most = max(self.most, self.running)
        assert self._open.wait(20)
        with self._lock:
            self.running -= 1
        return value

    def open(self) -> None:
        """Let everyone go on."""
        self._open.set()


@pytest.fixture
def block():
    """A blocking task, opened at the end in any case."""
    gate = ThreadGate()
    yield gate
    gate.open()


async def test_the_slot_stays_taken_until_the_thread_ends(block: ThreadGate):
    """Its caller timed out; six more such callers do not make more than two threads run."""
    executor = QueuedExecutor(executor=block, max_workers=2, max_wait=0.05)
    async with executor.lifespan():
        handles = [await executor.submit(number, timeout=0.01) for number in range(2)]
        for handle in handles:
            with pytest.raises(TaskTimeout):
                await handle
        for number in range(6):
            with pytest.raises(TimeoutError):
                await executor.execute(number, timeout=0.01)
        assert block.started == block.most == 2
        assert executor.controller.snapshot().in_flight == 2
        assert executor.get_status().threads_busy == 2
        assert not executor.is_healthy
        assert [worker.is_healthy for worker in executor.get_worker_health()] == [False, False]
        block.open()
        await eventually(lambda: at_rest(executor))
        assert executor.is_healthy
        assert await executor.execute("on") == "on"


async def test_a_cancelled_callers_thread_keeps_its_slot_too(block: ThreadGate):
    """The handle is done at once; the slot is not."""
    executor = QueuedExecutor(executor=block, max_workers=1)
    async with executor.lifespan():
        handle = await executor.submit(1)
        await eventually(lambda: block.running == 1)
        assert handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle
        assert handle.status is TaskStatus.CANCELLED
        assert executor.controller.snapshot().in_flight == 1
        block.open()
        await eventually(lambda: at_rest(executor))
        assert executor.get_status().cancelled == 1


async def test_a_timed_out_thread_is_not_retried(block: ThreadGate):
    """It still runs: a second one beside it would be a second run, not a retry."""
    executor = QueuedExecutor(executor=block, max_workers=2, retry=Retry.fixed(0))
    async with executor.lifespan():
        handle = await executor.submit(1, timeout=0.01)
        with pytest.raises(TaskTimeout):
            await handle
        assert (handle.attempts, block.started) == (1, 1)
        block.open()


async def test_on_timeout_is_called_while_the_thread_still_runs(block: ThreadGate):
    """With the submitter's context variables, though the thread is still inside its context."""
    late = []
    executor = QueuedExecutor(executor=block, max_workers=1)
    async with executor.lifespan():
        with pytest.raises(TaskTimeout):
            await executor.execute(1, timeout=0.01, on_timeout=lambda: late.append(True))
        assert late == [True]
        assert executor.get_status().callback_errors == 0
        block.open()


async def test_a_failed_thread_is_retried():
    """Like any other task."""
    tried = []

    def flaky():
        tried.append(threading.get_ident())
        if len(tried) < 3:
            raise OSError("flaky")
        return "done"

    executor = QueuedExecutor(retry=Retry.fixed(0))
    async with executor.lifespan():
        assert await executor.execute(flaky) == "done"
        assert threading.get_ident() not in tried


async def test_tasks_that_find_no_thread_wait_for_one(block: ThreadGate):
    """Two slots, one thread: the second task holds its slot and waits; it is counted."""
    executor = QueuedExecutor(executor=block, max_workers=2, thread_pool_size=1)
    async with executor.lifespan():
        first, second = await executor.submit_many([1, 2])
        await eventually(lambda: executor.get_status().thread_pool_exhausted == 1)
        assert executor.get_status().thread_pool_utilisation >= 1
        block.open()
        assert (await first, await second) == (1, 2)
    assert block.most == 1


async def test_a_task_that_waits_for_a_thread_can_be_cancelled_altogether(block: ThreadGate):
    """It has not begun, so nothing is left to wait for."""
    executor = QueuedExecutor(executor=block, max_workers=2, thread_pool_size=1)
    async with executor.lifespan():
        _, second = await executor.submit_many([1, 2])
        await eventually(lambda: executor.get_status().threads_busy == 2)
        second.cancel()
        await eventually(lambda: executor.controller.snapshot().in_flight == 1)
        block.open()
    assert block.started == 1


async def test_tasks_that_find_no_thread_may_come_back_later(block: ThreadGate, gate: Gate):
    """The slot goes to others meanwhile."""
    executor = QueuedExecutor(max_workers=2, thread_pool_size=1, on_thread_pool_exhausted="retry-later")
    async with executor.lifespan():
        first = await executor.submit(block, 1)
        await eventually(lambda: block.running == 1)
        second = await executor.submit(block, 2)
        await settle(lambda: second.status is TaskStatus.RETRYING)
        assert second.attempts == 0
        assert executor.controller.snapshot().in_flight == 1
        gate.open()
        assert await executor.execute(gate, 3) == 3
        block.open()
        assert (await first, await second) == (1, 2)
        assert second.attempts == 1


async def test_a_task_that_never_finds_a_thread_fails_in_the_end(block: ThreadGate, monkeypatch):
    """After about 30 s of coming back; it is a dead letter then."""
    monkeypatch.setattr("admission.executor.assignment.THREAD_BACKOFF", Retry.custom([0, 0]))
    executor = QueuedExecutor(executor=block, max_workers=2, thread_pool_size=1, on_thread_pool_exhausted="retry-later")
    async with executor.lifespan():
        await executor.submit(1)
        await eventually(lambda: block.running == 1)
        with pytest.raises(Rejected, match="no thread was free, 3 times"):
            await executor.execute(2)
        assert [letter.error_type for letter in executor.dead_letters.list()] == ["Rejected"]
        block.open()


async def test_a_ready_made_pool_is_used_and_left_alone():
    """It is somebody else's: the executor does not shut it down."""
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        executor = QueuedExecutor(executor=lambda _: threading.current_thread().name, pool=pool)
        async with executor.lifespan():
            assert (await executor.execute(1)).startswith("mine")
        assert pool.submit(int).result() == 0


async def test_a_pool_runs_no_coroutines():
    """They belong on the event loop."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(TypeError, match="is async: a pool runs plain functions"):
        QueuedExecutor(executor=Gate(), pool=pool)


def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


class TestInProcesses:
    """Starting one takes a second, so these run on two event loops only."""

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request):
        """uvloop differs in nothing that matters here."""
        return request.param

    # Cleaning up after a killed worker, CPython 3.12 may trip over its own resource tracker, which is no word about us.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_a_broken_pool_is_made_anew(self, tmp_path):
        """A killed worker process breaks the pool: tasks with a retry policy run again, others get BrokenExecutor."""
        executor = QueuedExecutor(pool=_processes)
        async with executor.lifespan():
            marker = str(tmp_path / "killed")
            with pytest.raises(BrokenExecutor):
                await executor.execute(die_once, marker)
            assert await executor.execute(die_once, marker) == "survived"
            marker = str(tmp_path / "killed again")
            handle = await executor.submit(die_once, marker, retry=Retry.fixed(0, retry_on=[BrokenExecutor]))
            assert await handle == "survived"
            assert handle.attempts == 2
            number, pid = await executor.execute(square, 7)
            assert (number, pid != os.getpid()) == (49, True)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_end_of_the_loop_leaves_the_slot_to_the_thread(block: ThreadGate, run):
    """Nobody drained: the task is cancelled with the loop, and its slot is free when its thread ends, not before."""
    executor = QueuedExecutor(executor=block, max_workers=1)
    handles = []

    async def main():
        handles.append(await executor.submit(1))
        await eventually(lambda: block.running == 1)

    run(main())
    assert handles[0].status is TaskStatus.CANCELLED
    assert executor.controller.in_flight == 1
    block.open()
    deadline = time.monotonic() + 10
    while executor.controller.in_flight and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    assert executor.controller.in_flight == 0
