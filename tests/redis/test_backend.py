"""A pool in Redis keeps the promises of `AdmissionController`, and what only a shared pool can promise.

Two or three controllers in one process stand for as many processes; `test_backend_processes.py` has real ones.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import anyio
import pytest
from anyio.lowlevel import checkpoint

from admission import AdmissionController, AdmissionError, Closed, FixedLimit, PriorityClass, Sample
from admission.backends.redis import RedisPool
from admission.errors import NotRunning
from admission.policy.limit import Limit
from tests.controller.test_contract import Crowd, Make, PoolContract, is_empty, peace, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def make(any_redis_url: str, namespace: str) -> AsyncIterator[Make]:
    """Makes controllers of one pool on each kind of server; afterwards they leave it, and nothing of them is left."""
    made: list[AdmissionController] = []

    def make(max_concurrency: int | Limit = 1, max_queue_size: int = 2, **options: object) -> AdmissionController:
        controller = AdmissionController(
            backend=RedisPool(any_redis_url, namespace=namespace, lease=15.0, timeout=5.0),
            max_concurrency=max_concurrency,
            max_queue_size=max_queue_size,
            max_wait=None,
            **options,  # type: ignore[arg-type]
        )
        made.append(controller)
        return controller

    yield make
    for controller in made:
        await controller.aclose()
    nothing_goes_on()


def nothing_goes_on() -> None:
    """No task and no thread of a shared pool is left."""
    for _ in range(3):
        tasks = [task for task in asyncio.all_tasks() if "admission" in repr(task.get_coro())]
    assert not tasks
    assert not [thread for thread in threading.enumerate() if thread.name == "admission-lease"]


class TestPoolInRedis(PoolContract):
    """All that holds in memory, on asyncio and uvloop, on Valkey and Debian's Redis."""

    @pytest.fixture
    def make(self, make: Make) -> Make:
        """The module's."""
        return make
