"""What becomes of jobs when processes are killed or hang, replies are lost, and the server goes away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from admission.errors import JobFailed
from admission.jobs import BuryKind, JobQueue, JobState
from admission.jobs.script import Script
from admission.jobs.worker import Worker
from tests.jobs.worker_process import WorkerProcess, queue_of
from tests.jobs.workshop import Shop, shop, until
from tests.redis.conftest import PoolKeys
from tests.redis.proxy import Proxy

__all__ = ["shop"]

pytestmark = pytest.mark.anyio

PATIENCE = 30.0

Start = Callable[[], WorkerProcess]


@pytest.fixture
def anyio_backend() -> str:
    """The test mostly watches; of the processes every other one runs on uvloop."""
    return "asyncio"


@pytest.fixture
async def queue(redis_url: str, namespace: str, pool_keys: PoolKeys) -> AsyncIterator[JobQueue]:
    """What the processes work on."""
    pool_keys.may_stay("j:*")
    queue = queue_of(redis_url, namespace)
    yield queue
    await queue.aclose()


@pytest.fixture
def start(redis_url: str, namespace: str, queue: JobQueue) -> Iterator[Start]:
    """Starts workers; afterwards they leave."""
    started: list[WorkerProcess] = []
    with ExitStack() as stack:

        def start() -> WorkerProcess:
            process = WorkerProcess(redis_url, namespace, use_uvloop=len(started) % 2 == 1)
            started.append(stack.enter_context(process))
            return process

        yield start


# ---------------------------------------------------------------------- processes


async def test_the_jobs_of_a_killed_worker_run_elsewhere(queue: JobQueue, start: Start) -> None:
    """As soon as its lease has run out; what the others run is left alone."""
    one = start()
    job = await queue.tasks["wait"].enqueue("ours")
    await until(lambda: one.began == [("ours", 1)])
    two = start()
    other = await queue.tasks["wait"].enqueue("another")
    await until(lambda: len(one.began) + len(two.began) == 2)
    one.kill()
    await until(lambda: {name for name, _ in two.began} == {"ours", "another"})
    assert ("ours", 2) in two.began
    two.open_gate()
    assert str(await job.result(PATIENCE)).startswith("ours in")
    assert await other.result(PATIENCE)
    assert (await job.status()).attempts == 1


async def test_a_job_that_kills_three_workers_is_a_dead_letter(queue: JobQueue, start: Start) -> None:
    """It runs nowhere else any more, whom it may concern is told, and the other jobs go on."""
    job = await queue.tasks["die"].enqueue("poison")
    for delivery in (1, 2, 3):
        process = start()
        await until(lambda process=process: not process.is_alive)
        assert process.began == [("poison", delivery)]
    survivor = start()
    survivor.open_gate()
    good = await queue.tasks["wait"].enqueue("good")
    assert await good.result(PATIENCE)
    with pytest.raises(JobFailed, match="killed"):
        await job.result(PATIENCE)
    (letter,) = await queue.dead.list()
    assert (letter.kind, letter.error) == (BuryKind.KILLED, "Killed: the process that ran it died, 3 times")
    await until(lambda: len(survivor.began) == 2)
    names = {name for name, _ in survivor.began}
    assert names == {"good", "die failure: Killed: the process that ran it died, 3 times"}


async def test_the_report_of_a_worker_that_hung_past_its_lease_is_stale(queue: JobQueue, start: Start) -> None:
    """The job ran again meanwhile: that result counts."""
    one = start()
    job = await queue.tasks["wait"].enqueue("job")
    await until(lambda: one.began)
    one.pause()
    two = start()
    await until(lambda: two.began == [("job", 2)])
    two.open_gate()
    result = await job.result(PATIENCE)
    one.go_on()
    one.open_gate()
    await reports(one, stale=1)
    assert await job.result(PATIENCE) == result
    stats = await queue.stats()
    assert (stats.succeeded_total, stats.stale_total, stats.redelivered_total) == (1, 1, 1)
    # It has its lease again, and takes jobs as before.
    two.close()
    again = await queue.tasks["wait"].enqueue("again")
    assert await again.result(PATIENCE)


async def reports(process: WorkerProcess, **wanted: int) -> None:
    """Return once the process says so."""
    async with asyncio.timeout(PATIENCE):
        while not wanted.items() <= process.status.items():
            process.look()
            await until(lambda: process.status)
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------------- the way to the server


@pytest.fixture
async def beside(redis_url: str, namespace: str, shop: Shop) -> AsyncIterator[tuple[Proxy, Worker]]:
    """A worker behind a bad network, on the queue of *shop*."""
    address = urlsplit(redis_url)
    ran: dict[int, int] = {}
    with Proxy(address.port or 6379, server_host=address.hostname or "127.0.0.1") as proxy:
        queue = queue_of(proxy.url, namespace)

        @queue.task
        async def count(number: int) -> int:
            ran[number] = ran.get(number, 0) + 1
            await asyncio.sleep(0)
            return number

        worker = Worker(queue, workers=8, grace=0.0)
        yield proxy, worker
        proxy.lose_none()
        proxy.welcome()
        # Its jobs may have run on permits of this process alone; and who leaves while cut off says no goodbye.
        await until(lambda: worker.controller.snapshot().link.state == "closed")  # type: ignore[union-attr]
        await worker.stop()
        await queue.aclose()


@pytest.mark.parametrize("every", [2, 3, 5])
async def test_no_job_is_lost_with_lost_replies(shop: Shop, beside: tuple[Proxy, Worker], every: int) -> None:
    """Carried out, but never heard of: what was delivered by such a take comes back, and every job ends."""
    proxy, worker = beside

    @shop.queue.task
    async def count(number: int) -> int:
        return number

    jobs = await shop.queue.enqueue_many([count.job(number) for number in range(60)])
    await worker.start()
    proxy.lose_every(every, "EVALSHA")
    await until(lambda: worker.status().succeeded >= 20)
    proxy.lose_none()
    assert [await job.result(PATIENCE) for job in jobs] == list(range(60))
    stats = await shop.queue.stats()
    assert (stats.running, stats.queued, stats.delayed) == (0, 0, 0)


async def test_a_worker_goes_on_after_the_server_was_away(shop: Shop, beside: tuple[Proxy, Worker]) -> None:
    """Meanwhile it takes nothing; the jobs that ended then are reported, and the rest runs."""
    proxy, worker = beside

    @shop.queue.task
    async def count(number: int) -> int:
        return number

    await worker.start()
    first = await count.enqueue(1)
    assert await first.result(PATIENCE) == 1
    proxy.refuse()
    proxy.cut()
    second = await count.enqueue(2)
    await until(lambda: worker.controller.snapshot().link.state == "open")  # type: ignore[union-attr]
    assert (await second.status()).state is JobState.QUEUED
    assert worker.status().permits == 0
    proxy.welcome()
    assert await second.result(PATIENCE) == 2


async def test_a_worker_may_start_before_its_server_can_be_reached(shop: Shop, beside: tuple[Proxy, Worker]) -> None:
    """It takes jobs as soon as it can."""
    proxy, worker = beside

    @shop.queue.task
    async def count(number: int) -> int:
        return number

    proxy.refuse()
    job = await count.enqueue(1)
    await worker.start()
    assert worker.status().is_running
    proxy.welcome()
    assert await job.result(PATIENCE) == 1


async def test_a_lost_channel_wakes_nobody_and_nothing_is_missed(shop: Shop, beside: tuple[Proxy, Worker]) -> None:
    """The connection that carries messages breaks while the worker sleeps: it looks again when it is back."""
    proxy, worker = beside

    @shop.queue.task
    async def count(number: int) -> int:
        return number

    await worker.start()
    await (await count.enqueue(0)).result(PATIENCE)
    for number in range(1, 4):
        await until(lambda: proxy.subscribed >= 2)
        proxy.cut(only_subscribed=True)
        job = await count.enqueue(number)
        assert await job.result(PATIENCE) == number


async def test_a_worker_that_cannot_take_jobs_leaves_their_slots_to_requests(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what concerns jobs fails, as with a user of the server who may not touch their keys."""
    controller = await shop.controller(max_concurrency=1)

    @shop.queue.task
    async def count(number: int) -> int:
        return number

    held = await controller.acquire()
    job = await count.enqueue(1)
    worker = shop.worker(controller=controller)
    await worker.start()
    await until(lambda: controller.waiting)
    with monkeypatch.context() as broken:
        broken.setattr(Script, "sha", "0" * 40)
        broken.setattr(Script, "source", "return redis.error_reply('NOPERM')")
        held.release()
        async with asyncio.timeout(PATIENCE):
            held = await controller.acquire()
    held.release()
    assert await job.result(PATIENCE) == 1
