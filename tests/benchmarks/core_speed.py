"""What a line of 100,000 costs: time for each ticket, and memory."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
import tracemalloc
from collections import deque
from functools import cache, partial

from admission import AdmissionController, FixedLimit
from admission.controller import Sleeper
from admission.core import Core
from admission.line import Entry
from admission.types import DEFAULT_CLASSES
from tests.benchmarks.builds import OURS, twins
from tests.benchmarks.measure import interleaved, lower_quartile, paired_ratio
from tests.benchmarks.report import Report

SLOTS = 8
MAX_WAIT = 600.0
"""Every ticket has a deadline, as it has by default."""


class Pool:
    """A core whose line stays as long as it is: whenever one ticket ends, another one comes."""

    def __init__(self, waiting: int, tenants: int, ranks: tuple[int, ...]) -> None:
        self.core = Core(limit=FixedLimit(SLOTS), classes=DEFAULT_CLASSES)
        self.tenants = [f"tenant-{number}" for number in range(tenants)]
        self.ranks = ranks
        self.now = 0.0
        self.arrivals = 0
        self.running = deque(self.arrive() for _ in range(SLOTS))
        for _ in range(waiting):
            self.arrive()

    def arrive(self) -> Entry:
        """One more ticket."""
        number = self.arrivals
        self.arrivals = number + 1
        rank = self.ranks[number % len(self.ranks)]
        tenant = self.tenants[number * 7919 % len(self.tenants)]
        return self.core.offer(self.now, rank, tenant, expires=self.now + MAX_WAIT)[0]

    def turn_over(self, count: int) -> float:
        """Microseconds for one release, with the grant it sets off, and one offer."""
        core, running = self.core, self.running
        begun = time.process_time_ns()
        for _ in range(count):
            self.now += 0.0001
            running.extend(core.release(self.now, running.popleft()).granted)
            self.arrive()
        return (time.process_time_ns() - begun) / count / 1000

    def positions(self, count: int) -> float:
        """Microseconds for one question after a waiter's position."""
        position = self.core.position
        asked = random.Random(1).choices(list(self.core.line.entries()), k=count)
        begun = time.process_time_ns()
        for entry in asked:
            position(entry)
        return (time.process_time_ns() - begun) / count / 1000


def measure_core(report: Report) -> None:
    """The pure core at 10 and at 100,000 waiting, and the memory of a waiter of the controller."""
    plan = report.plan
    long = plan.scaled(100_000, 10_000)
    report.begin("core", f"{SLOTS} slots; every ticket has a deadline; µs of its process's CPU time")
    lines = {
        "10 waiting, 10 tenants": (10, 10, 1),
        f"{long:,} waiting, 1,000 tenants": (long, 1000, 1),
        f"{long:,} waiting, 1 tenant": (long, 1, 1),
        f"{long:,} waiting, 1,000 tenants, 4 classes": (long, 1000, 4),
    }
    small, big = list(lines)[:2]
    count = plan.scaled(20_000, 1000)
    with twins(plan.compiled) as by_name:
        of = {(name, line): (twin, shape) for name, twin in by_name.items() for line, shape in lines.items()}
        times = interleaved(
            {key: partial(twin.call, turn_over, *shape, count) for key, (twin, shape) in of.items()}, plan.rounds
        )
        asked = interleaved(
            {key: partial(twin.call, positions, *shape, 1000) for key, (twin, shape) in of.items()}, plan.rounds
        )
        for name in by_name:
            rows = []
            for line in lines:
                found = times[name, line]
                ratio = paired_ratio(found, times[name, small])
                rows.append((line, lower_quartile(found), ratio, lower_quartile(asked[name, line])))
            columns = ("line", "µs", "÷ 10 waiting", "position µs")
            report.table(f"{name}: offer + release, and position", columns, rows)
        ratio = paired_ratio(times[OURS, big], times[OURS, small])
        report.at_most(f"core: offer + release at {long:,} ÷ at 10 waiting", ratio, 3.0)
        report.at_most(f"core: position at {long:,} waiting", lower_quartile(asked[OURS, big]), 10.0, "µs")

    waiters = plan.scaled(100_000, 5000)
    with twins(plan.compiled) as by_name:  # New ones, with nothing in their memory yet.
        memory = {name: twin.call(bytes_of_a_waiter, waiters) for name, twin in by_name.items()}
    what = "a waiting ticket: entry, place in line, waker, deadline"
    report.table(f"memory of {what}", ("build", "bytes"), list(memory.items()))
    report.at_most(f"core: memory of a waiting ticket, {waiters:,} waiting", memory[OURS], 1024.0, "bytes")


@cache
def _pool(waiting: int, tenants: int, classes: int) -> Pool:
    return Pool(waiting, tenants, (0, 1, 2, 3) if classes == 4 else (2,))


def turn_over(waiting: int, tenants: int, classes: int, count: int) -> float:
    """Microseconds for a release and an offer in a line like that, which stays as long as it is."""
    return _pool(waiting, tenants, classes).turn_over(count)


def positions(waiting: int, tenants: int, classes: int, count: int) -> float:
    """Microseconds for one question after a position in that line."""
    return _pool(waiting, tenants, classes).positions(count)


def bytes_of_a_waiter(count: int) -> float:
    """Bytes for each of *count* waiters."""
    return asyncio.run(_memory(count))


async def _memory(count: int) -> float:
    """Bytes for each of *count* waiters of 1,000 tenants."""
    controller = AdmissionController(max_concurrency=1, max_queue_size=0)
    held = await controller.acquire()
    loop = controller.bind()
    tenants = [f"tenant-{number}" for number in range(1000)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    entries = [
        controller.enqueue(Sleeper(loop.waker()), number % 4, tenants[number * 7919 % 1000]) for number in range(count)
    ]
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert statistics.mean(entry.position > 0 for entry in entries) == 1
    for entry in entries:
        controller.withdraw(entry)
    held.release()
    return used / count
