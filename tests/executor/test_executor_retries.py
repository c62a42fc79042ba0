"""Retries: when a failed task comes back, and that it holds no slot meanwhile."""

from __future__ import annotations

import anyio
import pytest
from gates import Gate, at_rest, settle

from admission.errors import Closed, PermanentError, QueueFull, TaskCancelled, TaskTimeout
from admission.executor import QueuedExecutor, TaskStatus
from admission.policy.retry import Retry

pytestmark = pytest.mark.anyio

NOW = Retry.fixed(0, max_attempts=3)


class Flaky:
    """A task that fails so many times, then succeeds; it notes when it was tried."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or OSError("flaky")
        self.tried: list[float] = []

    async def __call__(self) -> str:
        self.tried.append(anyio.current_time())
        if len(self.tried) <= self.failures:
            raise self.error
        return "done"


async def test_a_failed_task_is_tried_again():
    """Until it succeeds; attempts are counted."""
    executor = QueuedExecutor()
    async with executor.lifespan():
        flaky = Flaky(2)
        handle = await executor.submit(flaky, retry=NOW)
        assert await handle == "done"
        assert handle.attempts == 3
        status = executor.get_status()
        assert (status.retried, status.completed, status.failed, status.started) == (2, 1, 0, 3)
    assert at_rest(executor)


async def test_the_last_error_is_raised_when_attempts_run_out():
    """The third failure of three."""
    executor = QueuedExecutor(retry=NOW)
    async with executor.lifespan():
        flaky = Flaky(9)
        handle = await executor.submit(flaky)
        with pytest.raises(OSError, match="flaky"):
            await handle
        assert len(flaky.tried) == handle.attempts == 3
        once = Flaky(9)
        with pytest.raises(OSError, match="flaky"):
            await executor.execute(once, retry=Retry.none())
        assert len(once.tried) == 1


@pytest.mark.parametrize("error", [PermanentError("no such model"), KeyError("not listed")])
async def test_errors_that_no_retry_can_heal_end_the_task(error):
    """PermanentError, and whatever `retry_on` leaves out."""
    executor = QueuedExecutor()
    async with executor.lifespan():
        flaky = Flaky(9, error)
        with pytest.raises(type(error)):
            await executor.execute(flaky, retry=Retry.fixed(0, retry_on=[OSError, PermanentError]))
        assert len(flaky.tried) == 1


async def test_a_retry_enters_the_line_again_behind_nobody_it_should_not(gate: Gate):
    """The slot is free while the task waits for its retry: another one runs."""
    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        flaky = Flaky(1)
        handle = await executor.submit(flaky, retry=Retry.fixed(0.01))
        await settle(lambda: handle.status is TaskStatus.RETRYING)
        assert executor.controller.snapshot().in_flight == 0
        assert executor.get_status().retrying == 1
        other = await executor.submit(gate, "other")
        await settle(lambda: gate.running == 1)
        await _until(lambda: handle.status is TaskStatus.QUEUED)
        gate.open()
        assert await other == "other"
        assert await handle == "done"
        assert executor.get_status().retrying == 0


async def test_timeouts_are_retried_too(gate: Gate):
    """TaskTimeout is an error like others; each attempt has the whole timeout."""
    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        handle = await executor.submit(gate, timeout=0.01, retry=NOW)
        with pytest.raises(TaskTimeout):
            await handle
        assert len(gate.started) == handle.attempts == 3


async def test_a_task_cancelled_between_attempts_is_not_tried_again():
    """It waits for nothing any more."""
    executor = QueuedExecutor()
    async with executor.lifespan():
        flaky = Flaky(1)
        handle = await executor.submit(flaky, retry=Retry.fixed(60))
        await settle(lambda: handle.status is TaskStatus.RETRYING)
        assert handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle
        assert executor.get_status().retrying == 0
    assert len(flaky.tried) == 1


async def test_a_task_cancelled_while_running_is_not_retried_whatever_it_raises():
    """An error on its way out is kept as the cause."""
    executor = QueuedExecutor()

    async def slips():
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("slipped")

    async with executor.lifespan():
        handle = await executor.submit(slips, retry=NOW)
        await settle(lambda: handle.status is TaskStatus.RUNNING)
        handle.cancel()
        with pytest.raises(TaskCancelled) as caught:
            await handle
        assert isinstance(caught.value.__cause__, OSError)
        assert handle.attempts == 1


async def test_a_retry_that_finds_the_line_full_counts_as_an_attempt(gate: Gate):
    """Asking a full line for ever would be a retry storm; the task's own error stays the answer."""
    executor = QueuedExecutor(max_workers=1, max_queue_size=1)
    async with executor.lifespan():
        flaky = Flaky(9)
        handle = await executor.submit(flaky, retry=Retry.custom([0, 0, 0]))
        await settle(lambda: handle.status is TaskStatus.RETRYING)
        await executor.submit(gate)
        await executor.submit(gate)
        with pytest.raises(OSError, match="flaky") as caught:
            await handle
        assert handle.attempts == 4
        assert len(flaky.tried) == 1
        assert "attempt 2 was not taken into the line" in caught.value.__notes__[0]
        with pytest.raises(QueueFull):
            await executor.submit(gate)
        gate.open()


async def test_a_retry_of_a_drained_pool_ends_the_task():
    """Closed, at once: there will be no place for it."""
    executor = QueuedExecutor()
    async with executor.lifespan():
        handle = await executor.submit(Flaky(9), retry=Retry.fixed(0.001))
        await settle(lambda: handle.status is TaskStatus.RETRYING)
        executor.controller.start_draining()
        with pytest.raises(Closed):
            await handle


async def _until(condition):
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


class TestInVirtualTime:
    """Waits that matter, on trio's mock clock."""

    @pytest.fixture
    def anyio_backend(self):
        """Time jumps whenever everyone waits."""
        from trio.testing import MockClock

        return "trio", {"clock": MockClock(autojump_threshold=0)}

    async def test_delays_grow_as_the_policy_says(self):
        """1 s, then 2 s, then 4 s."""
        executor = QueuedExecutor()
        async with executor.lifespan():
            flaky = Flaky(3)
            retry = Retry.exponential(max_attempts=4, base=1, factor=2, jitter=0)
            assert await executor.execute(flaky, retry=retry) == "done"
        waits = [later - earlier for earlier, later in zip(flaky.tried, flaky.tried[1:], strict=False)]
        assert waits == pytest.approx([1, 2, 4])

    async def test_jitter_shortens_delays(self, monkeypatch):
        """Half of the wait may go."""
        monkeypatch.setattr("random.random", lambda: 1.0)
        executor = QueuedExecutor()
        async with executor.lifespan():
            flaky = Flaky(1)
            await executor.execute(flaky, retry=Retry.exponential(base=4, jitter=0.5))
        assert flaky.tried[1] - flaky.tried[0] == pytest.approx(2)

    async def test_the_total_timeout_ends_retries_that_would_begin_too_late(self):
        """5 s a wait, 12 s in all: two retries."""
        executor = QueuedExecutor()
        async with executor.lifespan():
            flaky = Flaky(99)
            with pytest.raises(OSError, match="flaky"):
                await executor.execute(flaky, retry=Retry.fixed(5, max_attempts=99, total_timeout=12))
        assert len(flaky.tried) == 3

    async def test_no_retry_begins_after_the_deadline(self):
        """The caller will not be there any more: the error comes at once."""
        executor = QueuedExecutor()
        async with executor.lifespan():
            flaky = Flaky(99)
            begun = executor.now()
            with pytest.raises(OSError, match="flaky"):
                await executor.execute(flaky, retry=Retry.fixed(5, max_attempts=99), deadline=begun + 12)
            assert executor.now() - begun == pytest.approx(10)
        assert len(flaky.tried) == 3

    async def test_a_drain_waits_for_retries_within_its_time(self):
        """They are work that was taken in."""
        executor = QueuedExecutor()
        async with executor.lifespan(drain_timeout=60):
            handle = await executor.submit(Flaky(1), retry=Retry.fixed(20))
        assert await handle == "done"

    async def test_a_drain_that_runs_out_of_time_ends_the_rest(self, gate: Gate):
        """Running tasks are cancelled, the line and those between attempts are sent away."""
        executor = QueuedExecutor(max_workers=2)
        async with executor.lifespan(drain_timeout=60):
            failed = await executor.submit(Flaky(9), retry=Retry.fixed(1000))
            running = await executor.submit(gate, "a")
            await executor.submit(gate, "b")
            waiting = await executor.submit(gate, "c", max_wait=None)
            begun = executor.now()
        assert executor.now() - begun == pytest.approx(60)
        with pytest.raises(TaskCancelled):
            await running
        with pytest.raises(Closed):
            await waiting
        with pytest.raises(TaskCancelled):
            await failed
        assert gate.started == ["a", "b"]
        assert at_rest(executor)

    async def test_idle_workers_leave(self, gate: Gate):
        """Down to min_workers, when nobody needed them for a while."""
        executor = QueuedExecutor(executor=gate, max_workers=5, min_workers=2, worker_idle=30)
        async with executor.lifespan():
            assert executor.get_status().workers == 2
            handles = await executor.submit_many(range(5))
            await settle(lambda: gate.running == 5)
            assert executor.get_status().workers == 5
            gate.open()
            for handle in handles:
                await handle
            await anyio.sleep(31)
            assert executor.get_status().workers == 5  # Needed within the last 30 s.
            await anyio.sleep(30)
            assert executor.get_status().workers == 2
            assert await executor.execute("more") == "more"

    async def test_wait_and_run_time_are_averaged(self):
        """Two tasks of 10 s on one slot: the second waited 10 s."""

        async def slow():
            await anyio.sleep(10)

        executor = QueuedExecutor(executor=None, max_workers=1)
        async with executor.lifespan():
            for handle in await executor.submit_many([slow, slow]):
                await handle
            status = executor.get_status()
            assert status.average_wait == pytest.approx(5)
            assert status.average_wait_time_ms == pytest.approx(5000)
            assert status.average_run_time == pytest.approx(10)
            assert status.tasks_per_second == pytest.approx(0.1, rel=0.2)

    async def test_health_says_what_a_worker_runs_and_since_when(self, gate: Gate):
        """For somebody who looks for a stuck one."""
        executor = QueuedExecutor(executor=gate, max_workers=2)
        async with executor.lifespan():
            handle = await executor.submit("x")
            await settle(lambda: gate.running == 1)
            began = executor.now()
            await anyio.sleep(7)
            (worker,) = executor.get_worker_health()
            assert worker.current_task == handle.id
            assert (worker.since, worker.duration) == (pytest.approx(began), pytest.approx(7))
            assert (worker.is_healthy, worker.total_processed, worker.total_errors) == (True, 0, 0)
            gate.open()
            await handle
            (worker,) = executor.get_worker_health()
            assert (worker.current_task, worker.total_processed) == (None, 1)
