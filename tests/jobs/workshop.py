"""A queue on a real server, with the workers and controllers of one test; afterwards they are gone.

`Gate` is a task to hold on to: it says when it has begun, and ends when it is let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from admission import AdmissionController
from admission.backends.redis import RedisPool
from admission.jobs import DeadLetter, JobQueue
from admission.jobs.worker import Worker
from tests.controller.test_contract import until
from tests.redis.conftest import PoolKeys

__all__ = ["Gate", "Shop", "shop", "until"]


class Shop:
    """What a test has on one server.

    Attributes:
        queue: Register tasks here.
    """

    def __init__(self, url: str, namespace: str) -> None:
        self.site = RedisPool(url, namespace=namespace, lease=15.0, timeout=5.0)
        self.queue = self.another_queue()
        self._workers: list[Worker] = []
        self._controllers: list[AdmissionController] = []

    def another_queue(self, **options: Any) -> JobQueue:
        """The same jobs, as another process sees them."""
        return JobQueue(self.site, **options)

    async def controller(self, max_concurrency: int = 1, **options: Any) -> AdmissionController:
        """Of a web app on the pool of the jobs; the pool has its rules from now on."""
        controller = AdmissionController(
            backend=self.site, max_concurrency=max_concurrency, max_wait=None, max_queue_size=100, **options
        )
        self._controllers.append(controller)
        await controller.refresh()
        return controller

    def worker(self, queue: JobQueue | None = None, **options: Any) -> Worker:
        """One that is not started yet."""
        worker = Worker(queue or self.queue, **{"workers": 10, "threads": 2, "grace": 30.0, **options})
        self._workers.append(worker)
        return worker

    async def letters(self, count: int) -> list[DeadLetter]:
        """The dead letters, once there are so many."""

        async def enough() -> bool:
            return (await self.queue.stats()).dead >= count

        async with asyncio.timeout(30):
            while not await enough():  # noqa: ASYNC110 - nobody is told of a dead letter.
                await asyncio.sleep(0.002)
        return await self.queue.dead.list()

    async def close(self) -> None:
        """Everybody goes."""
        for worker in self._workers:
            await worker.stop()
        for controller in self._controllers:
            await controller.aclose()
        await self.queue.aclose()


@pytest.fixture
async def shop(redis_url: str, namespace: str, pool_keys: PoolKeys) -> AsyncIterator[Shop]:
    """A queue without jobs, and nobody who works on it."""
    pool_keys.may_stay("j:st", "j:job", "j:body", "j:res", "j:ready", "j:ring", "j:debt", "j:tag", "j:delayed")
    pool_keys.may_stay("j:dead", "j:done", "j:kv:*")
    shop = Shop(redis_url, namespace)
    yield shop
    await shop.close()


class Gate:
    """A point that jobs reach, and pass when they are let."""

    def __init__(self) -> None:
        self.reached: list[object] = []
        self._opened = asyncio.Event()

    async def pass_through(self, name: object = None) -> object:
        """Say that one is here, and wait."""
        self.reached.append(name)
        await self._opened.wait()
        return name

    def open(self) -> None:
        """Let everyone pass, now and later."""
        self._opened.set()
