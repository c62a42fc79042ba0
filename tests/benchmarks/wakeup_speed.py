"""From the grant to the moment the waiter runs on, next to a bare future."""

from __future__ import annotations

import asyncio
import statistics
import time
from functools import partial

from admission import AdmissionController
from admission.controller import Sleeper
from admission.line import Entry
from tests.benchmarks.builds import OURS, twins
from tests.benchmarks.measure import event_loops, interleaved, lower_quartile, paired_ratio, run
from tests.benchmarks.report import Report

Times = tuple[float, float, float]
"""Microseconds: of the whole cycle, of it the part from the release (or `set_result`) on, and of that the part from the
grant on: from the pool's telling the waiter to the waiter's going on."""

_clock = time.perf_counter_ns


def measure_wakeup(report: Report) -> None:
    """A permit that is waited for, against a future that is waited for."""
    plan = report.plan
    report.begin("wakeup", "one waiter, one grant at a time; medians of a round, lower quartile of the rounds")
    count = plan.scaled(20_000, 1000)
    with twins(plan.compiled) as by_name:
        for loop in event_loops():
            times = interleaved(
                {"bare future": partial(by_name[OURS].call, wake_up, loop, "future", count)}
                | {name: partial(twin.call, wake_up, loop, "permit", count) for name, twin in by_name.items()},
                plan.rounds,
            )
            whole = {name: [t[0] for t in found] for name, found in times.items()}
            wake = {name: [t[1] for t in found] for name, found in times.items()}
            resume = {name: [t[2] for t in found] for name, found in times.items()}
            rows: list[tuple[str, float, float | None]] = [
                ("create a future, set its result, go on", lower_quartile(whole["bare future"]), None),
                ("   of this, from set_result on", lower_quartile(wake["bare future"]), None),
            ]
            for name in by_name:
                for what, found, base in (
                    (f"{name}: acquire, wait in line, release elsewhere, go on", whole, whole),
                    ("   of this, from the release on", wake, wake),
                    ("   of this, from the grant on", resume, wake),
                ):
                    rows.append((what, lower_quartile(found[name]), paired_ratio(found[name], base["bare future"])))
            report.table(loop, ("what", "µs", "÷ bare"), rows)
            ratio = paired_ratio(resume[OURS], whole["bare future"])
            report.at_most(f"wakeup, {loop}: grant to resume ÷ a future's create, set, resume", ratio, 2.0)


def wake_up(loop: str, what: str, count: int) -> Times:
    """The times of a future or of a permit, on the event loop of that name."""
    return run(event_loops()[loop], _permits(count) if what == "permit" else _futures(count))


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
    woken = statistics.median(wake) / 1000
    return statistics.median(whole) / 1000, woken, woken


class Stamped(Sleeper):
    """A sleeper that notes when it was told."""

    granted_at = 0

    def decided(self, entry: Entry) -> None:
        self.granted_at = _clock()
        super().decided(entry)


async def _permits(count: int) -> Times:
    loop = asyncio.get_running_loop()
    controller = AdmissionController(max_concurrency=1)
    rank = controller.default_rank
    whole, wake, resume = [], [], []
    released_at = 0
    held = await controller.acquire()

    def release() -> None:
        nonlocal released_at
        released_at = _clock()
        held.release()

    for _ in range(count):
        loop.call_soon(release)
        begun = _clock()
        # What `acquire` does, with a waiter that notes the time.
        sleeper = Stamped(controller.bind().waker())
        entry = controller.enqueue(sleeper, rank, "acme")
        await sleeper.waker.wait()
        held = controller.permit(entry)
        ended = _clock()
        whole.append(ended - begun)
        wake.append(ended - released_at)
        resume.append(ended - sleeper.granted_at)
    held.release()
    return tuple(statistics.median(times) / 1000 for times in (whole, wake, resume))  # type: ignore[return-value]
