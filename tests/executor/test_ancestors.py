"""Every capability of three ancestors that is not durable, as it is written here.

One test for each row of the tables: A, a QoS scheduler; D, a priority job queue; E, the request queue of an LLM server.
The page "coming from …" of the documentation shows the same lines.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import anyio
import anyio.lowlevel
import pytest
from gates import Gate, settle

from admission import (
    AdmissionController,
    AdmissionError,
    BackpressureMode,
    PermanentError,
    Priority,
    PriorityClass,
    QueuedExecutor,
    QueueFull,
    Retry,
    TaskTimeout,
    current_ticket,
    default_executor,
)
from admission.errors import Closed, TaskCancelled

pytestmark = pytest.mark.anyio


async def fetch(url: str, *, pages: int = 1) -> str:
    """A user's request."""
    await anyio.lowlevel.checkpoint()
    return f"{url}: {pages}"


async def sync_catalogue() -> str:
    """Background work."""
    return "synced"


# ---------------------------------------------------------------------- A: QoS scheduler


async def test_a_priorities_and_order(gate: Gate):
    """`Priority.HIGH/LOW`, score (rank, created_at): classes, first come first served inside a tenant."""
    executor = QueuedExecutor(max_workers=1)
    order = []

    async def note(name):
        order.append(name)

    async with executor.lifespan():
        await executor.submit(gate)
        await executor.submit(note, "low 1", priority=Priority.LOW)
        await executor.submit(note, "low 2", priority=Priority.LOW)
        await executor.submit(note, "high", priority=Priority.HIGH)
        gate.open()
    assert order == ["high", "low 1", "low 2"]


async def test_a_start_and_stop():
    """`QoSScheduler.start/stop`, `auto_start`: the lifespan; without one it starts by itself."""
    executor = QueuedExecutor()
    async with executor.lifespan(drain_timeout=10):
        assert executor.is_running
    assert not executor.is_running

    lazy = QueuedExecutor()
    assert await lazy.execute(sync_catalogue) == "synced"
    await lazy.drain(timeout=10)


async def test_a_submit_user_request_and_background_task():
    """`submit_user_request(fn, …)`, `submit_background_task(fn, …)`, with a scheduler or the global one."""
    executor = QueuedExecutor()
    async with executor.lifespan():
        user = await executor.submit(fetch, "/users", priority=Priority.HIGH)
        background = await executor.submit(sync_catalogue, priority=Priority.LOW)
        assert (await user, await background) == ("/users: 1", "synced")

    handle = await default_executor().submit(fetch, "/users", priority=Priority.HIGH)
    assert await handle == "/users: 1"
    await default_executor().drain()


async def test_a_task_builder():
    """`TaskBuilder(fn, prio).with_args/with_timeout/with_retries/with_resource_weight/with_metadata/on_success`."""
    seen = []
    executor = QueuedExecutor()
    async with executor.lifespan():
        task = (
            executor.task(fetch)
            .with_args("/users", pages=3)
            .with_options(priority="high", timeout=5, retry=Retry.fixed(1, max_attempts=3), cost=2)
            .with_options(metadata={"source": "cron"}, on_success=seen.append)
        )
        handle = await task.submit()
        assert await handle == "/users: 3"
        assert handle.metadata == {"source": "cron"}
    assert seen == ["/users: 3"]


async def test_a_shares(gate: Gate):
    """`high_priority_resource_ratio=0.8`, `max_high_priority_tasks`: a guaranteed share, a ceiling."""
    classes = [PriorityClass(name="high", ceiling=0.8), PriorityClass(name="low", guaranteed=0.2, max_delay=30)]
    executor = QueuedExecutor(max_workers=10, max_queue_size=0, classes=classes)
    starts = []

    async def note(name):
        starts.append(name)
        await anyio.lowlevel.checkpoint()

    async with executor.lifespan():
        held = [await executor.submit(gate, priority="high") for _ in range(10)]
        await settle(lambda: gate.running == 8)  # Two of ten slots are kept free of the high class.
        executor.controller.pause()
        gate.open()
        for handle in held[:8]:
            await handle
        for name in ("high", "low"):
            for _ in range(100):
                await executor.submit(note, name, priority=name)
        executor.controller.resume()
        await settle(lambda: len(starts) >= 100)
    assert 15 <= Counter(starts[:100])["low"] <= 25


async def test_a_max_delay_and_throttle():
    """`max_low_priority_delay`, `low_priority_throttle_rate`: `max_delay`, `rate`."""
    low = PriorityClass(name="low", max_delay=10, rate=0.1, burst=1)
    executor = QueuedExecutor(classes=[PriorityClass(name="high"), low])
    async with executor.lifespan():
        await executor.execute(sync_catalogue, priority="low")
        second = await executor.submit(sync_catalogue, priority="low")
        assert not second.done()
        assert executor.controller.snapshot().of("low").held_back_by == "start-rate"
        assert await executor.execute(sync_catalogue, priority="high") == "synced"
        second.cancel()


async def test_a_emergency_override(gate: Gate):
    """Stop a class, let it go on, resize; and a class that nobody may hold back."""
    classes = [PriorityClass(name="probe", exempt=True), PriorityClass(name="normal"), PriorityClass(name="low")]
    executor = QueuedExecutor(executor=gate, max_workers=1, classes=classes)
    async with executor.lifespan():
        executor.controller.pause("low")
        low = await executor.submit("low", priority="low")
        await executor.submit("normal")
        await executor.submit("probe", priority="probe")
        await settle(lambda: gate.running == 2)
        executor.controller.resume("low")
        executor.controller.resize(3)  # The probe's slot counts, though nothing may hold it back.
        await settle(lambda: gate.running == 3)
        gate.open()
        assert await low == "low"


async def test_a_configuration():
    """`DispatcherConfig`, `SchedulerConfig`: options of the executor."""
    executor = QueuedExecutor(
        max_workers=8,
        max_queue_size=1000,
        max_wait=30,
        timeout=60,
        retry=Retry.exponential(max_attempts=3, base=0.5, max_delay=30),
        backpressure_mode="reject",
    )
    async with executor.lifespan():
        assert await executor.execute(sync_catalogue) == "synced"


async def test_a_callbacks():
    """Success, failure, timeout; plain or async."""
    heard = []

    async def on_success(result):
        heard.append(result)

    async def fail():
        raise ValueError("boom")

    executor = QueuedExecutor()
    async with executor.lifespan():
        await executor.submit(sync_catalogue, on_success=on_success)
        await executor.submit(fail, on_failure=lambda error: heard.append(str(error)))
        await executor.submit(anyio.sleep_forever, timeout=0.01, on_timeout=lambda: heard.append("late"))
    await settle(lambda: len(heard) == 3)
    assert sorted(heard) == ["boom", "late", "synced"]


async def test_a_status_and_health(gate: Gate):
    """`get_queue_sizes`, `get_scheduler_status` (running, success rate, tasks/s), `is_healthy`."""
    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        await executor.execute(sync_catalogue)
        await executor.submit(gate)
        await executor.submit(gate, priority="low")
        status = executor.get_status()
        assert status.is_running
        assert status.queued["low"] == 1
        assert status.success_rate == 1.0
        assert status.tasks_per_second > 0
        assert executor.is_healthy
        gate.open()


async def test_a_task_status_and_result(gate: Gate):
    """`get_task_status`, `get_task_result`: the handle."""
    executor = QueuedExecutor(executor=gate)
    async with executor.lifespan():
        handle = await executor.submit("x")
        await settle(lambda: handle.status == "running")
        gate.open()
        assert await handle == "x"
        assert handle.status == "succeeded"
        assert handle.id


async def test_a_exceptions():
    """QueueFull, TaskTimeout, Dispatcher, Scheduler: one tree."""
    for error in (QueueFull, TaskTimeout, TaskCancelled, Closed, PermanentError):
        assert issubclass(error, AdmissionError)


# ---------------------------------------------------------------------- D: priority job queue


async def test_d_four_levels_and_overtaking(gate: Gate):
    """Critical, high, normal, low; newcomers overtake lower levels, never their own."""
    executor = QueuedExecutor(executor=gate, max_workers=1)
    async with executor.lifespan():
        await executor.submit("first")
        low = await executor.submit("low", priority=Priority.LOW)
        critical = await executor.submit("critical", priority=Priority.CRITICAL)
        critical_too = await executor.submit("critical too", priority=Priority.CRITICAL)
        assert [handle.position for handle in (critical, critical_too, low)] == [1, 2, 3]
        gate.open()
    assert gate.started == ["first", "critical", "critical too", "low"]


async def test_d_configuration():
    """`Config{MaxWorkers, MaxQueueSize, DefaultTimeout, EnableMetrics}`: options; metrics are always on."""
    executor = QueuedExecutor(max_workers=4, max_queue_size=100, timeout=30)
    async with executor.lifespan():
        await executor.execute(sync_catalogue)
        assert executor.controller.snapshot().of("normal").granted == 1


async def test_d_job_fields():
    """`Job{ID, Priority, SubmittedAt, Payload, RetryCount, MaxRetries, Timeout}`: options and handle."""
    tickets = []

    async def handler(payload):
        tickets.append(current_ticket())
        return payload

    executor = QueuedExecutor(executor=handler)
    async with executor.lifespan():
        handle = await executor.submit(
            {"n": 1}, priority="high", timeout=5, retry=Retry.fixed(1, max_attempts=4), metadata={"n": 1}
        )
        assert await handle == {"n": 1}
        (ticket,) = tickets
        assert (ticket.id, ticket.priority, handle.attempts) == (handle.id, "high", 1)
        assert ticket.arrival <= executor.now()


async def test_d_timeout_and_cancellation_reach_the_handler():
    """Its context's `Done()`: the coroutine is cancelled where it waits, and may clean up."""
    ended = []

    async def handler(name):
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(name)

    executor = QueuedExecutor(executor=handler)
    async with executor.lifespan():
        with pytest.raises(TaskTimeout):
            await executor.execute("slow", timeout=0.01)
        handle = await executor.submit("unwanted")
        await settle(lambda: handle.status == "running")
        handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle
    assert ended == ["slow", "unwanted"]


async def test_d_retries_and_permanent_errors():
    """Retries enter the line again after growing waits; permanent errors stop at once."""
    attempts = Counter()

    async def flaky():
        attempts["flaky"] += 1
        if attempts["flaky"] < 3:
            raise OSError("try again")

    async def hopeless():
        attempts["hopeless"] += 1
        raise PermanentError("no such model")

    executor = QueuedExecutor(retry=Retry.exponential(max_attempts=5, base=0.001))
    async with executor.lifespan():
        await executor.execute(flaky)
        with pytest.raises(PermanentError):
            await executor.execute(hopeless)
    assert attempts == {"flaky": 3, "hopeless": 1}


async def test_d_metrics():
    """Enqueued, dequeued, completed, failed, timed out, retried, queue size, active workers, averages."""
    executor = QueuedExecutor()
    async with executor.lifespan():
        await executor.execute(sync_catalogue)
        status = executor.get_status()
    assert (status.submitted, status.started, status.completed) == (1, 1, 1)
    assert (status.failed, status.timed_out, status.retried) == (0, 0, 0)
    assert (status.total_queued, status.active_workers) == (0, 0)
    assert status.average_wait == 0.0
    assert status.average_run_time >= 0.0


async def test_d_size_and_shutdown(gate: Gate):
    """`IsEmpty/IsFull/Size`, `Shutdown(ctx)`: snapshot and drain."""
    executor = QueuedExecutor(executor=gate, max_workers=1, max_queue_size=1)
    await executor.submit(1)
    await executor.submit(2)
    snapshot = executor.controller.snapshot()
    assert snapshot.queued == snapshot.max_queue_size == 1
    assert not await executor.drain(timeout=0.01)


async def test_d_thread_safe_entry():
    """From a thread, anyio's portal leads back to the loop."""
    executor = QueuedExecutor()
    async with executor.lifespan():
        result = await anyio.to_thread.run_sync(anyio.from_thread.run, executor.execute, sync_catalogue)
        assert result == "synced"


# ---------------------------------------------------------------------- E: request queue of an LLM server


class Model:
    """What that server wraps: an object with `execute`."""

    async def execute(self, prompt: str) -> str:
        await anyio.lowlevel.checkpoint()
        return prompt[::-1]


async def test_e_request_queue():
    """`RequestQueue` HIGH/NORMAL/LOW, `max_size` (0: unlimited), REJECT / BLOCK, depth by priority, position."""
    classes = [PriorityClass(name=name) for name in ("high", "normal", "low")]
    queue = AdmissionController(max_concurrency=1, max_queue_size=0, classes=classes)
    executor = QueuedExecutor(executor=Model(), controller=queue)
    async with executor.lifespan():
        running = await queue.acquire(priority="high")
        handle = await executor.submit("hello", priority="low")
        assert {each.name: each.queued for each in queue.snapshot().classes} == {"high": 0, "normal": 0, "low": 1}
        assert (handle.position, queue.position(handle.id)) == (1, 1)
        running.release()
        assert await handle == "olleh"


async def test_e_queued_executor():
    """`QueuedExecutor(executor, max_workers, max_queue_size, backpressure_mode)`: the same names."""
    executor = QueuedExecutor(
        executor=Model(), max_workers=4, max_queue_size=100, backpressure_mode=BackpressureMode.BLOCK
    )
    async with executor.lifespan():
        future = await executor.submit("hello", priority=Priority.HIGH, max_wait=5)
        assert await future == "olleh"
        assert await executor.execute("abc", priority=Priority.NORMAL) == "cba"


async def test_e_reject_raises_asyncio_queue_full(gate: Gate):
    """`except asyncio.QueueFull` goes on working."""
    executor = QueuedExecutor(executor=gate, max_workers=1, max_queue_size=1)
    async with executor.lifespan():
        await executor.submit(1)
        await executor.submit(2)
        with pytest.raises(asyncio.QueueFull):
            await executor.submit(3)
        gate.open()


async def test_e_worker_health_and_status(gate: Gate):
    """`is_healthy`, `total_processed`, `total_errors`, current; `active_workers`, `average_wait_time_ms` …"""
    executor = QueuedExecutor(executor=gate, max_workers=2)
    async with executor.lifespan():
        handle = await executor.submit(1)
        await settle(lambda: gate.running == 1)
        (worker,) = executor.get_worker_health()
        assert (worker.is_healthy, worker.total_processed, worker.total_errors) == (True, 0, 0)
        assert worker.current_task == handle.id
        status = executor.get_status()
        assert (status.active_workers, status.max_workers, status.total_queued) == (1, 2, 0)
        assert status.average_wait_time_ms == 0.0
        gate.open()


async def test_e_its_future_list(gate: Gate):
    """Worker scaling, rate limit per priority, dead letters, weighted fair queueing."""
    weighted = PriorityClass(name="normal", rate=1000, weights={"gold": 3.0})
    executor = QueuedExecutor(executor=gate, max_workers=8, min_workers=1, worker_idle=30, classes=[weighted])
    async with executor.lifespan():
        assert executor.get_status().workers == 1
        await executor.submit_many(range(8), tenant="gold")
        await settle(lambda: executor.get_status().workers == 8)
        gate.open()
    assert executor.dead_letters.list() == []
