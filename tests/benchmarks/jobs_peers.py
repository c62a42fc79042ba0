"""Other job queues on Redis, each with the fastest settings its documentation has for jobs that do nothing.

That is: uvloop, no results kept, no log lines, and as many jobs at once, or as many read at once, as made it fastest
here. Enqueueing has many callers at a time, or a call for many jobs where there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ClassVar

from tests.benchmarks.jobs_worker import PATIENCE, Tally

CALLERS = 32
"""Callers that enqueue at the same time. Each has a connection: more of them were no faster with any peer."""

NAME = "noop"


async def _by_callers(enqueue: Callable[[], Awaitable[object]], count: int) -> None:
    """Enqueue *count* jobs, by many callers, one after the other each."""
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            await enqueue()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class Arq:
    """arq: polls a sorted set. Its default is 10 jobs at once and two polls a second."""

    def __init__(self, url: str) -> None:
        from arq.connections import RedisSettings, create_pool
        from arq.worker import Worker, func

        self._create_pool, self._worker, self._func = create_pool, Worker, func
        self._settings = RedisSettings.from_dsn(url)
        self._pool: Any = None

    async def open(self) -> None:
        self._pool = await self._create_pool(self._settings)
        await asyncio.gather(*(self._pool.ping() for _ in range(CALLERS)))

    async def enqueue(self, count: int) -> None:
        await _by_callers(lambda: self._pool.enqueue_job(NAME), count)

    async def close(self) -> None:
        await self._pool.aclose()

    async def work(self, tally: Tally) -> None:
        async def noop(context: object) -> None:
            tally.count()

        worker: Any = self._worker(
            functions=[self._func(noop, name=NAME, keep_result=0)],
            redis_settings=self._settings,
            handle_signals=False,
            log_results=False,
            poll_delay=0.0,
        )
        running = asyncio.create_task(worker.async_run())
        await tally.all_done()
        await asyncio.gather(*worker.tasks.values())  # The last results are still on their way.
        await _cancelled(running)
        await worker.close()


class Saq:
    """saq: each of the jobs that may run at once has a connection that blocks on a list."""

    def __init__(self, url: str) -> None:
        from saq.queue.redis import RedisQueue
        from saq.worker import Worker

        self._worker = Worker
        self._queue: Any = RedisQueue.from_url(url, max_concurrent_ops=CALLERS)

    async def open(self) -> None:
        await asyncio.gather(*(self._queue.redis.ping() for _ in range(CALLERS)))

    async def enqueue(self, count: int) -> None:
        # A negative ttl: nothing is kept of a job that is done.
        await _by_callers(lambda: self._queue.enqueue(NAME, ttl=-1), count)

    async def close(self) -> None:
        await self._queue.disconnect()

    async def work(self, tally: Tally) -> None:
        async def noop(context: object) -> None:
            tally.count()

        class Unsignalled(self._worker):  # type: ignore[name-defined, misc]
            SIGNALS: ClassVar[list[int]] = []

        worker: Any = Unsignalled(self._queue, [(NAME, noop)], concurrency=10)
        running = asyncio.create_task(worker.start())
        await tally.all_done()
        await worker.stop()
        await running
        await self._queue.disconnect()


class Taskiq:
    """taskiq with taskiq-redis: reads portions of a stream, and acknowledges each job by a call."""

    broker = "RedisStreamBroker"
    options: ClassVar[dict[str, object]] = {"consumer_id": "0", "xread_count": 500}

    def __init__(self, url: str) -> None:
        import taskiq_redis
        from taskiq.api import run_receiver_task

        self._receive = run_receiver_task
        self._broker: Any = getattr(taskiq_redis, self.broker)(url, max_connection_pool_size=200, **self.options)
        self._tally: Tally | None = None

        async def noop() -> None:
            assert self._tally is not None
            self._tally.count()

        self._task: Any = self._broker.register_task(noop, task_name=NAME)

    async def open(self) -> None:
        await self._broker.startup()

    async def enqueue(self, count: int) -> None:
        await _by_callers(self._task.kiq, count)

    async def close(self) -> None:
        await self._broker.shutdown()

    async def work(self, tally: Tally) -> None:
        self._tally = tally
        await self._broker.startup()
        running = asyncio.create_task(
            self._receive(self._broker, validate_params=False, max_async_tasks=100, max_prefetch=500)
        )
        await tally.all_done()
        await _cancelled(running)
        await self._broker.shutdown()


class TaskiqList(Taskiq):
    """The same over a list: a job is taken with one BRPOP, and not acknowledged."""

    broker = "ListQueueBroker"
    options: ClassVar[dict[str, object]] = {}


class Streaq:
    """streaq: a stream, read in portions, and enqueueing in batches.

    It has its default of 16 jobs at once: with more it was hardly faster, and sometimes left jobs lying.
    """

    def __init__(self, url: str) -> None:
        from streaq import Worker

        self._worker: Any = Worker(redis_url=url, handle_signals=False, concurrency=16)
        self._tally: Tally | None = None

        async def noop() -> None:
            assert self._tally is not None
            self._tally.count()

        self._task: Any = self._worker.task(name=NAME, ttl=0, silent=True)(noop)
        self._open: Any = None

    async def open(self) -> None:
        self._open = self._worker.__asynccontextmanager__()
        await self._open.__aenter__()

    async def enqueue(self, count: int) -> None:
        batch = 1000
        for first in range(0, count, batch):
            await self._worker.enqueue_many([self._task.enqueue() for _ in range(min(batch, count - first))])

    async def close(self) -> None:
        await self._open.__aexit__(None, None, None)

    async def work(self, tally: Tally) -> None:
        self._tally = tally
        running = asyncio.create_task(self._worker.run_async())
        await tally.all_done()
        await _cancelled(running)


class Dramatiq:
    """dramatiq: blocking threads, and one event loop for the functions that are async."""

    def __init__(self, url: str) -> None:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker
        from dramatiq.middleware.asyncio import AsyncIO

        self._worker = dramatiq.Worker
        # Its default has a dozen middlewares: this one is all that async functions need.
        self._broker: Any = RedisBroker(url=url, middleware=[AsyncIO()])
        self._tally: Tally | None = None

        async def noop() -> None:
            assert self._tally is not None
            self._tally.count()

        self._actor: Any = dramatiq.actor(noop, actor_name=NAME, broker=self._broker)

    async def open(self) -> None:
        self._broker.client.ping()

    async def enqueue(self, count: int) -> None:
        for _ in range(count):
            self._actor.send()

    async def close(self) -> None:
        self._broker.close()

    async def work(self, tally: Tally) -> None:
        self._tally = tally
        worker: Any = self._worker(self._broker, worker_threads=32, worker_timeout=100)
        worker.start()
        await tally.all_done()
        await asyncio.to_thread(worker.stop, timeout=int(PATIENCE * 1000))
        self._broker.close()
