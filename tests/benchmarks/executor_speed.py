"""Tasks a second: 64 callers that submit a coroutine that does nothing, and wait for its result."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import Any

from admission import Priority
from admission.executor import QueuedExecutor
from admission.policy.retry import Retry
from tests.benchmarks.builds import OURS, twins
from tests.benchmarks.measure import EventLoopFactory, event_loops, interleaved, paired_ratio, run, upper_quartile
from tests.benchmarks.report import Report

CALLERS = 64

EVERYTHING = ", timeout, retry, callbacks, context"
PEERS = ("aiometer", "pulq")
"""Those the claim is about; bulkman, which is a circuit breaker first, is only shown beside them."""

trace: ContextVar[str] = ContextVar("trace", default="")

Measure = Callable[[int], Coroutine[Any, Any, float]]


async def nothing(task: object) -> object:
    """The task."""
    return task


async def waits(task: object) -> object:
    """The task that lets everyone else run once."""
    await asyncio.sleep(0)
    return task


async def traced(task: object) -> object:
    """The task that finds the submitter's context."""
    return trace.get()


def measure_executor(report: Report) -> None:
    """`submit` + `await`, plain and with everything on, next to other packages, on each event loop."""
    plan = report.plan
    report.begin("executor", f"no-op coroutines, {CALLERS} callers; per second of CPU time, upper quartile")
    count = plan.scaled(40_000, 64 * 20)
    others: dict[str, tuple[Measure, int]] = {"a task each: create_task, await": (_tasks, count)}
    for name, measure in (("aiometer", _aiometer), ("pulq", _pulq), ("bulkman", _bulkman)):
        try:
            with warnings.catch_warnings(action="ignore"):  # What a peer uses is its own affair.
                importlib.import_module(name)
        except ImportError as error:
            report.missing(name, f"cannot be imported here ({error})")
        else:
            others[name] = (measure, max(CALLERS, count // 8))
    with twins(plan.compiled) as by_name:
        for loop, factory in event_loops().items():
            contenders: dict[str, Callable[[], float]] = {
                f"{name}{way}": partial(twin.call, ours_per_second, loop, way, count)
                for name, twin in by_name.items()
                for way in WAYS
            }
            contenders |= {name: partial(_rate, factory, measure, n) for name, (measure, n) in others.items()}
            rates = interleaved(contenders, plan.rounds)
            rows = [(name, upper_quartile(found), paired_ratio(found, rates[OURS])) for name, found in rates.items()]
            report.table(loop, ("contender", "tasks/s", "÷ admission"), rows)
            plain, full = rates[OURS], rates[OURS + EVERYTHING]
            report.at_least(f"executor, {loop}: submit + await", upper_quartile(plain), 200_000, "/s")
            report.at_least(f"executor, {loop}: the same with everything on", upper_quartile(full), 100_000, "/s")
            for peer in PEERS:
                if peer in rates:
                    report.at_least(f"executor, {loop}: ÷ {peer}", paired_ratio(plain, rates[peer]), 3.0)


def tasks_per_second(count: int) -> float:
    """A task each, on asyncio: what the machine gives without any executor."""
    return _rate(asyncio.new_event_loop, _tasks, count)


def ours_per_second(loop: str, way: str, count: int) -> float:
    """Tasks a second through an executor of ours, on the event loop of that name."""
    return _rate(event_loops()[loop], WAYS[way], count)


def _rate(factory: EventLoopFactory, measure: Measure, count: int) -> float:
    return run(factory, measure(count))


async def _call(count: int, once: Callable[[], Awaitable[object]]) -> float:
    """*once* per second of CPU time, called by all callers *count* times in all."""

    async def caller() -> None:
        for _ in range(count // CALLERS):
            await once()

    begun = time.process_time_ns()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return count // CALLERS * CALLERS / (time.process_time_ns() - begun) * 1e9


# ---------------------------------------------------------------------- ours


async def _submit(count: int, *, workers: int, task: Callable[[object], Awaitable[object]] = nothing) -> float:
    executor = QueuedExecutor(executor=task, max_workers=workers, max_queue_size=0)

    async def once() -> None:
        await (await executor.submit(1))

    async with executor.lifespan():
        return await _call(count, once)


async def _submit_with_everything(count: int, *, workers: int) -> float:
    executor = QueuedExecutor(executor=traced, max_workers=workers, max_queue_size=0)
    retry = Retry.exponential(max_attempts=3)
    succeeded = 0

    def on_success(_: object) -> None:
        nonlocal succeeded
        succeeded += 1

    def on_failure(_: BaseException) -> None:
        raise AssertionError("nothing fails here")

    def on_timeout() -> None:
        raise AssertionError("nothing takes that long")

    async def once() -> None:
        handle = await executor.submit(
            1,
            priority=Priority.HIGH,
            tenant="acme",
            timeout=60,
            retry=retry,
            on_success=on_success,
            on_failure=on_failure,
            on_timeout=on_timeout,
        )
        assert await handle == "request-1"

    trace.set("request-1")
    async with executor.lifespan():
        rate = await _call(count, once)
    assert succeeded == count // CALLERS * CALLERS
    return rate


async def _execute(count: int) -> float:
    executor = QueuedExecutor(executor=nothing, max_workers=CALLERS, max_queue_size=0)

    async def once() -> None:
        await executor.execute(1)

    async with executor.lifespan():
        return await _call(count, once)


# ---------------------------------------------------------------------- the others


async def _tasks(count: int) -> float:
    """No executor at all."""

    async def once() -> None:
        await asyncio.create_task(nothing(1))

    return await _call(count, once)


async def _aiometer(count: int) -> float:
    """Its fastest form: one call for all, which throws the results away."""
    import aiometer

    begun = time.process_time_ns()
    await aiometer.run_on_each(nothing, range(count), max_at_once=CALLERS)
    return count / (time.process_time_ns() - begun) * 1e9


async def _pulq(count: int) -> float:
    """Scheduled by all callers, pulled by one worker that never rests; results come back to nobody."""
    from pulq import InMemoryTaskRepository, LocalTransport, PullQueue, Task, Worker, WorkerConfig

    queue = PullQueue(InMemoryTaskRepository())
    wanted = count // CALLERS * CALLERS
    done = 0
    all_done = asyncio.Event()

    async def handle(task: Task) -> dict[str, Any]:
        nonlocal done
        done += 1
        if done == wanted:
            all_done.set()
        return {}

    async def caller() -> None:
        for _ in range(count // CALLERS):
            await queue.schedule(Task(priority="high", handler_name="nothing", payload={}))

    worker = Worker(LocalTransport(queue), "worker", handle, config=WorkerConfig(no_work_delay_seconds=0.0001))
    begun = time.process_time_ns()
    running = asyncio.create_task(worker.run())
    await asyncio.gather(*(caller() for _ in range(CALLERS)), all_done.wait())
    rate = wanted / (time.process_time_ns() - begun) * 1e9
    running.cancel()
    return rate


async def _bulkman(count: int) -> float:
    from bulkman import Bulkhead, BulkheadConfig

    logging.getLogger("bulkman").setLevel(logging.WARNING)
    bulkhead = Bulkhead(BulkheadConfig(name="benchmark", max_concurrent_calls=CALLERS, max_queue_size=CALLERS))

    async def once() -> None:
        await bulkhead.execute(nothing, 1)

    rate = await _call(count, once)
    await bulkhead.shutdown()
    return rate


WAYS: dict[str, Measure] = {
    "": partial(_submit, workers=CALLERS),
    EVERYTHING: partial(_submit_with_everything, workers=CALLERS),
    ", execute()": _execute,
    ", 8 workers": partial(_submit, workers=8),
    ", 8 workers, tasks that wait once": partial(_submit, workers=8, task=waits),
}
"""Ways to use the executor: what is said of them behind the build's name. Only the last makes tasks wait in line: one
that does nothing is over before the next comes."""
