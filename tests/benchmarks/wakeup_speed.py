"""From the grant to the moment the waiter runs on, next to a bare future."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from functools import partial

from admission import AdmissionController
from tests.benchmarks.measure import EventLoopFactory, event_loops, interleaved, lower_quartile, paired_ratio, run
from tests.benchmarks.report import Report

Times = tuple[float, float]
"""Microseconds: of the whole cycle, and of it the part from the grant to the resumption."""

_clock = time.perf_counter_ns


def measure_wakeup(report: Report) -> None:
    """A permit that is waited for, against a future that is waited for."""
    plan = report.plan
    report.begin("wakeup", "one waiter, one grant at a time; medians of a round, lower quartile of the rounds")
    count = plan.scaled(20_000, 1000)
    for loop, factory in event_loops().items():
        times = interleaved(
            {
                "bare future": partial(_run, factory, _futures, count),
                "admission": partial(_run, factory, _permits, count),
            },
            plan.rounds,
        )
        whole = {name: [t[0] for t in found] for name, found in times.items()}
        wake = {name: [t[1] for t in found] for name, found in times.items()}
        rows = [
            ("create a future, set its result, go on", lower_quartile(whole["bare future"]), None),
            ("   of this, from set_result on", lower_quartile(wake["bare future"]), None),
            (
                "acquire, wait in line, release elsewhere, go on",
                lower_quartile(whole["admission"]),
                paired_ratio(whole["admission"], whole["bare future"]),
            ),
            (
                "   of this, from the release (the grant) on",
                lower_quartile(wake["admission"]),
                paired_ratio(wake["admission"], wake["bare future"]),
            ),
        ]
        report.table(loop, ("what", "µs", "÷ bare"), rows)
        ratio = paired_ratio(wake["admission"], whole["bare future"])
        report.at_most(f"wakeup, {loop}: grant to resume ÷ a future's create, set, resume", ratio, 2.0)


def _run(factory: EventLoopFactory, measure: Callable[[int], Coroutine[object, object, Times]], count: int) -> Times:
    return run(factory, measure(count))


async def _futures(count: int) -> Times:
    loop = asyncio.get_running_loop()
    whole, wake = [], []
    box: list[asyncio.Future[None]] = []
    granted_at = 0

    def grant() -> None:
        nonlocal granted_at
        granted_at = _clock()
        box.pop().set_result(None)

    for _ in range(count):
        loop.call_soon(grant)
        begun = _clock()
        future = loop.create_future()
        box.append(future)
        await future
        ended = _clock()
        whole.append(ended - begun)
        wake.append(ended - granted_at)
    return statistics.median(whole) / 1000, statistics.median(wake) / 1000


async def _permits(count: int) -> Times:
    loop = asyncio.get_running_loop()
    controller = AdmissionController(max_concurrency=1)
    whole, wake = [], []
    granted_at = 0
    held = await controller.acquire()

    def grant() -> None:
        nonlocal granted_at
        granted_at = _clock()
        held.release()

    for _ in range(count):
        loop.call_soon(grant)
        begun = _clock()
        held = await controller.acquire(tenant="acme")
        ended = _clock()
        whole.append(ended - begun)
        wake.append(ended - granted_at)
    held.release()
    return statistics.median(whole) / 1000, statistics.median(wake) / 1000
