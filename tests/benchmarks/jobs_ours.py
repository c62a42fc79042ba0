"""Our own queue of jobs, with everything on: leases, retries, timeouts, tenants, counters, a pool that limits it."""

from __future__ import annotations

import asyncio

from admission import Retry
from admission.backends.redis import RedisPool
from admission.jobs import JobQueue
from admission.jobs.worker import Worker
from tests.benchmarks.jobs_worker import Tally, now

TENANTS = 10

BATCH = 10_000
"""Jobs of one call of `enqueue_many`."""

PLACES = 500
"""Jobs the worker may have at once, and slots of its pool."""


MOST_LOOKS = 10_000
"""At whether the server has heard of the last job's end, a millisecond apart."""


class Ours:
    """admission.jobs: nothing is kept of a job that is done, as with the peers."""

    result_ttl = 0.0

    def __init__(self, url: str) -> None:
        self._jobs = JobQueue(
            RedisPool(url, namespace="bench"), pool="jobs", max_queue_size=0, result_ttl=self.result_ttl
        )
        self._tally: Tally | None = None

        @self._jobs.task(retry=Retry.exponential(max_attempts=5), timeout=60)
        async def noop() -> None:
            assert self._tally is not None
            self._tally.count()

        self._prepared = [noop.with_options(tenant=f"tenant-{number}") for number in range(TENANTS)]

    async def open(self) -> None:
        """Connect."""
        await self._jobs.stats()

    async def enqueue(self, count: int) -> None:
        """In batches, as many of each tenant; making the jobs is a part of it."""
        for first in range(0, count, BATCH):
            batch = range(first, min(first + BATCH, count))
            await self._jobs.enqueue_many(self._prepared[number % TENANTS].job() for number in batch)

    async def close(self) -> None:
        """Disconnect."""
        await self._jobs.aclose()

    async def work(self, tally: Tally) -> None:
        """One worker. Its time ends when the server has heard of the last job's end, not before."""
        self._tally = tally
        worker = Worker(self._jobs, workers=PLACES)
        async with worker, self._jobs:
            await tally.all_done()
            for _ in range(MOST_LOOKS):
                if (await self._jobs.stats()).succeeded_total == tally.expected:
                    break
                await asyncio.sleep(0.001)
            tally.ended = now()
            if worker.status().succeeded != tally.expected:
                raise RuntimeError(f"{tally.expected:,} jobs, but {worker.status()}")


class OursKept(Ours):
    """The same with every result kept for an hour, which is our default."""

    result_ttl = 3600.0
