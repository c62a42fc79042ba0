"""A process that takes jobs, one call at a time, without a worker."""

from __future__ import annotations

import time

from admission.backends.redis.site import RedisPool
from admission.jobs import script
from admission.jobs.failure import Failure, describe
from admission.jobs.script import Bounds, Said, Taken, Took
from admission.jobs.store import JobStore
from admission.jobs.types import BuryKind

LEASE = 600.0
"""Seconds."""


class Taker:
    """Takes the jobs of one pool and says how they ended; its lease lasts longer than any test.

    async with Taker(site) as taker: ...
    """

    def __init__(self, site: RedisPool, pool: str = "default") -> None:
        self.store = JobStore(site, pool, Bounds())
        self._leases = self.store.script.value_key("").replace("j:kv:", "lease")

    async def __aenter__(self) -> Taker:
        ends = round((time.time() + LEASE) * 1e6)
        try:
            await self.store._command("ZADD", self._leases, ends, self.store.process)
        except BaseException:
            await self.store.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()

    async def die(self) -> None:
        """From now on it has no lease."""
        await self.store._command("ZREM", self._leases, self.store.process)

    async def take(self, rank: int = 2, count: int = 1) -> list[Taken]:
        """Jobs of one class, in their order."""
        took = await self.store.ask(script.take(rank, count, None))
        assert isinstance(took, Took), took
        return list(took.jobs)

    async def take_one(self, rank: int = 2) -> Taken:
        """The next job of one class."""
        (job,) = await self.take(rank)
        return job

    async def succeed(self, job: Taken, result: str = "null", ttl: float = 60.0) -> None:
        """It is done, with this result as JSON text."""
        assert await self.store.ask(script.done(job.id, job.delivery, result, round(ttl * 1e6))) is Said.DONE

    async def bury(self, job: Taken, kind: BuryKind = BuryKind.FAILED, error: str = "ValueError: no") -> None:
        """It failed for good."""
        text = describe(Failure(error, "Traceback: here"))
        assert await self.store.ask(script.bury(job.id, job.delivery, kind, text)) is Said.DONE
