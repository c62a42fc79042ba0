"""What a line of 100,000 costs: time for each ticket, and memory."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
import tracemalloc
from collections import deque
from functools import partial

from admission import AdmissionController, FixedLimit
from admission.controller import Sleeper
from admission.core import Core
from admission.line import Entry
from admission.types import DEFAULT_CLASSES
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
    report.begin("core", f"{SLOTS} slots; every ticket has a deadline; µs of this process's CPU time")
    gc.collect()
    pools = {
        "10 waiting, 10 tenants": Pool(10, 10, (2,)),
        f"{long:,} waiting, 1,000 tenants": Pool(long, 1000, (2,)),
        f"{long:,} waiting, 1 tenant": Pool(long, 1, (2,)),
        f"{long:,} waiting, 1,000 tenants, 4 classes": Pool(long, 1000, (0, 1, 2, 3)),
    }
    small, big = list(pools)[:2]
    count = plan.scaled(20_000, 1000)
    times = interleaved({name: partial(pool.turn_over, count) for name, pool in pools.items()}, plan.rounds)
    positions = interleaved({name: partial(pool.positions, 1000) for name, pool in pools.items()}, plan.rounds)
    rows = [
        (name, lower_quartile(times[name]), paired_ratio(times[name], times[small]), lower_quartile(positions[name]))
        for name in pools
    ]
    report.table("offer + release, and position", ("line", "µs", "÷ 10 waiting", "position µs"), rows)
    report.at_most(f"core: offer + release at {long:,} ÷ at 10 waiting", paired_ratio(times[big], times[small]), 3.0)
    report.at_most(f"core: position at {long:,} waiting", lower_quartile(positions[big]), 10.0, "µs")
    pools.clear()
    gc.collect()

    count = plan.scaled(100_000, 5000)
    memory = asyncio.run(_memory(count))
    report.table("memory", ("what", "bytes"), [("a waiting ticket: entry, place in line, waker, deadline", memory)])
    report.at_most(f"core: memory of a waiting ticket, {count:,} waiting", memory, 1024.0, "bytes")


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
