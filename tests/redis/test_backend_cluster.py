"""A pool kept in a cluster of three masters: all its keys in one slot, its messages published there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from admission import AdmissionController
from admission.backends.redis import RedisPool
from tests.controller.test_contract import Crowd, Make, is_empty, peace, until
from tests.redis.remote import Remote
from tests.redis.servers import Cluster
from tests.redis.test_backend import nothing_goes_on

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(redis_cluster: Cluster) -> str:
    """What says that it is one."""
    return redis_cluster.url.replace("redis://", "redis+cluster://")


@pytest.fixture
async def make(url: str, namespace: str) -> AsyncIterator[Make]:
    """Makes controllers of one pool in the cluster."""
    made: list[AdmissionController] = []

    def make(max_concurrency: int = 1, lease: float = 15.0, **options: object) -> AdmissionController:
        pool = RedisPool(url, namespace=namespace, lease=lease, timeout=min(5.0, lease / 3))
        controller = AdmissionController(
            backend=pool,
            max_concurrency=max_concurrency,
            max_wait=None,
            **options,  # type: ignore[arg-type]
        )
        made.append(controller)
        return controller

    yield make
    for controller in made:
        await controller.aclose()
    nothing_goes_on()


async def test_processes_wake_each_other_through_the_cluster(make: Make) -> None:
    """Every pool may be in another slot: on whichever node, a release there is a grant here."""
    for name in ("text", "image", "audio", "video"):
        here, there = make(name=name), make(name=name)
        held = await here.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(there, tasks)
            for number in range(5):
                await crowd.comes(f"{number}", tenant=f"{number}")
            held.release()
            for number in range(5):
                await crowd.ended(f"{number}")
                crowd.release(f"{number}")
        await is_empty(here)


async def test_steering_and_looking_work_in_a_cluster(make: Make) -> None:
    """And so does the push-out of another process's waiter."""
    here, there = make(max_queue_size=1), make(max_queue_size=1)
    first = await here.acquire()
    await there.refresh()
    here.resize(2)
    second = await there.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(there, tasks)
        await crowd.comes("low", priority="low")
        high = Crowd(here, tasks)
        await high.comes("high", priority="high")
        await crowd.ended("low")
        assert "low" in crowd.errors
        first.release()
        await high.granted("high")
        high.release("high")
    second.release()
    await peace(here, there)
    assert len(there.snapshot().processes) == 2
    await is_empty(there)


async def test_who_waits_for_a_dead_process_hears_from_whoever_finds_it_dead(
    make: Make, url: str, namespace: str
) -> None:
    """Also when that is the thread that renews another process's lease, and nothing else of the pool is asked."""
    with Remote(url, namespace, lease=1.0, timeout=0.3) as remote:
        remote.comes("held")
        await until(lambda: remote.became.get("held") == "granted")
        waits = make(lease=600.0)
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(waits, tasks)
            await crowd.comes("waits")
            renews = make(lease=1.0)
            await renews.refresh()
            renews._backend._pulse_timer.cancel()  # type: ignore[attr-defined]  # Its thread alone goes on.
            remote.kill()
            await crowd.ended("waits")
            crowd.release("waits")
    await is_empty(waits)
