"""Jobs and online requests share the slots of one pool, by its rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from admission import AdmissionController, PriorityClass, QoSAdmission, current_ticket
from admission.jobs import JobState, tender
from admission.jobs.tender import LONG, MOST_ASKED, Appetite, Tender
from admission.types import Outcome
from tests.controller.test_contract import Crowd, is_empty, peace
from tests.jobs.workshop import Gate, Shop, shop, until

__all__ = ["shop"]

pytestmark = pytest.mark.anyio

PATIENCE = 30.0


async def test_no_job_runs_while_online_requests_have_all_slots(shop: Shop) -> None:
    """A pool of one slot: the job waits in the queue, not in the worker, until the permit is back."""
    online = await shop.controller(1)
    held = await online.acquire()

    @shop.queue.task(priority="low")
    async def work() -> str:
        return "ran"

    job = await work.enqueue()
    async with shop.worker() as worker:
        await until(lambda: worker.status().asked == 1)
        await peace(online)
        assert (online.in_flight, online.queued) == (1, 1)
        assert (await job.status()).state is JobState.QUEUED
        assert worker.status().taken == 0
        held.release()
        assert await job.result(PATIENCE) == "ran"


async def test_a_request_of_a_higher_class_goes_before_the_next_job(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permit of a job that was no short one goes back to the pool."""
    monkeypatch.setattr(tender, "SHORT", 0.0)
    online, gate = await shop.controller(1), Gate()
    order: list[str] = []

    @shop.queue.task(priority="low")
    async def work(number: int) -> None:
        order.append(f"job {number}")
        if number == 0:
            await gate.pass_through()

    jobs = [await work.enqueue(number) for number in range(3)]
    async with shop.worker(), anyio.create_task_group() as tasks:
        await until(lambda: gate.reached)
        crowd = Crowd(online, tasks)
        await crowd.comes("request", priority="high")
        gate.open()
        await crowd.granted("request")
        order.append("request")
        assert (await jobs[1].status()).state is JobState.QUEUED
        crowd.release("request")
        for job in jobs:
            await job.result(PATIENCE)
    assert order == ["job 0", "request", "job 1", "job 2"]


async def test_a_request_of_the_same_process_goes_before_the_next_job(shop: Shop) -> None:
    """The worker shares the web app's controller: its waiters are known without asking the server."""
    online, gate = await shop.controller(1), Gate()
    order: list[str] = []

    @shop.queue.task(priority="low")
    async def work(number: int) -> None:
        order.append(f"job {number}")
        if number == 0:
            await gate.pass_through()

    jobs = [await work.enqueue(number) for number in range(2)]
    async with shop.worker(controller=online), anyio.create_task_group() as tasks:
        await until(lambda: gate.reached)
        crowd = Crowd(online, tasks)
        await crowd.comes("request")
        gate.open()
        await crowd.granted("request")
        order.append("request")
        crowd.release("request")
        for job in jobs:
            await job.result(PATIENCE)
    assert order == ["job 0", "request", "job 1"]
    await is_empty(online)


async def test_a_worker_without_jobs_holds_no_capacity(shop: Shop) -> None:
    """Neither a slot nor a place in the line, before the first job and after the last."""
    online = await shop.controller(1)

    @shop.queue.task
    async def work() -> None:
        return None

    async with shop.worker() as worker:
        await is_empty(online)
        await (await work.enqueue()).result(PATIENCE)
        await until(lambda: (worker.status().permits, worker.status().asked) == (0, 0))
        await is_empty(online)
        async with online.admit(max_wait=PATIENCE):
            assert online.in_flight == 1


async def test_a_permit_is_kept_for_the_next_job_while_nobody_waits(shop: Shop) -> None:
    """A hundred jobs one after the other need far fewer grants."""
    online = await shop.controller(1)

    @shop.queue.task
    async def work() -> None:
        return None

    jobs = await shop.queue.enqueue_many([work.job() for _ in range(100)])
    async with shop.worker(controller=online, workers=1) as worker:
        for job in jobs:
            await job.result(PATIENCE)
        assert worker.status().succeeded == 100
    assert online.snapshot().of("normal").granted < 20


async def test_an_idle_pool_is_used_in_full(shop: Shop) -> None:
    """As many jobs at once as there are slots, though the worker has more places."""
    online, gate = await shop.controller(3), Gate()

    @shop.queue.task
    async def work(number: int) -> None:
        await gate.pass_through(number)

    jobs = await shop.queue.enqueue_many([work.job(number) for number in range(6)])
    async with shop.worker(workers=10) as worker:
        await until(lambda: len(gate.reached) == 3)
        await peace(online)
        assert (online.in_flight, worker.status().active, worker.status().taken) == (3, 3, 3)
        gate.open()
        for job in jobs:
            await job.result(PATIENCE)
    assert gate.reached == list(range(6))


async def test_a_worker_takes_no_more_jobs_than_it_has_places(shop: Shop) -> None:
    """However many slots are free."""
    online, gate = await shop.controller(10), Gate()

    @shop.queue.task
    async def work(number: int) -> None:
        await gate.pass_through(number)

    jobs = await shop.queue.enqueue_many([work.job(number) for number in range(5)])
    async with shop.worker(workers=2) as worker:
        await until(lambda: len(gate.reached) == 2)
        await peace(online)
        assert (worker.status().active, online.in_flight, online.queued) == (2, 2, 0)
        gate.open()
        for job in jobs:
            await job.result(PATIENCE)


async def test_two_workers_share_a_full_pool(shop: Shop) -> None:
    """Each gets its turn: neither keeps the only slot while the other waits for it."""
    await shop.controller(1)
    ran: list[str] = []

    def tasks_of(queue: object, name: str) -> None:
        @queue.task  # type: ignore[attr-defined, untyped-decorator]
        async def work() -> None:
            ran.append(name)
            await asyncio.sleep(0)

    there = shop.another_queue()
    tasks_of(shop.queue, "here")
    tasks_of(there, "there")
    work = shop.queue.tasks["work"]
    jobs = await shop.queue.enqueue_many([work.job() for _ in range(60)])
    async with shop.worker(max_concurrency=1), shop.worker(there):
        for job in jobs:
            await job.result(PATIENCE)
    assert min(ran.count("here"), ran.count("there")) >= 5
    await there.aclose()


async def test_the_ceiling_of_a_class_holds_for_its_jobs(shop: Shop) -> None:
    """Half of the slots stay free of them."""
    classes = (PriorityClass(name="online"), PriorityClass(name="background", ceiling=0.5))
    queue = shop.another_queue(classes=classes)
    online, gate = await shop.controller(4, classes=classes), Gate()

    @queue.task(priority="background")
    async def work() -> None:
        await gate.pass_through()

    jobs = await queue.enqueue_many([work.job() for _ in range(4)])
    async with shop.worker(queue):
        await until(lambda: len(gate.reached) == 2)
        await peace(online)
        assert online.in_flight == 2
        async with online.admit(priority="online"):
            pass
        gate.open()
        for job in jobs:
            await job.result(PATIENCE)
    await queue.aclose()


async def test_a_pool_that_turns_jobs_away_is_asked_again(shop: Shop) -> None:
    """While it drains it takes no one in; afterwards the jobs run."""
    online = await shop.controller(1)

    @shop.queue.task
    async def work() -> str:
        return "ran"

    job = await work.enqueue()
    async with shop.worker(controller=online) as worker:
        online.start_draining()
        job = await work.enqueue()
        await peace(online)
        assert worker.status().asked == 0
        online.reopen()
        assert await job.result(PATIENCE) == "ran"


async def test_a_paused_pool_holds_the_jobs_back(shop: Shop) -> None:
    """The worker waits in its line like everybody else."""
    online = await shop.controller(2)
    online.pause("low")
    await peace(online)

    @shop.queue.task(priority="low")
    async def work() -> str:
        return "ran"

    job = await work.enqueue()
    async with shop.worker() as worker:
        await until(lambda: worker.status().asked == 1)
        await peace(online)
        assert worker.status().taken == 0
        online.resume("low")
        assert await job.result(PATIENCE) == "ran"


async def test_a_worker_lives_in_a_web_app_and_shares_its_controller(shop: Shop) -> None:
    """One slot for requests and jobs: a request enqueues a job, which runs when the request has ended."""
    controller = await shop.controller(1)
    inside: list[int] = []

    @shop.queue.task
    async def work(number: int) -> int:
        inside.append(controller.in_flight)
        return 2 * number

    async def enqueue(request: Request) -> PlainTextResponse:
        ticket = current_ticket()
        assert ticket is not None
        job = await work.enqueue(int(request.query_params["number"]), tenant="acme")
        assert (await job.status()).state is JobState.QUEUED
        return PlainTextResponse(job.id)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with shop.worker(controller=controller):
            yield

    app = Starlette(
        routes=[Route("/", enqueue, methods=["POST"])],
        middleware=[Middleware(QoSAdmission, controller=controller)],
        lifespan=lifespan,
    )
    transport = httpx2.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport) as client:
        for number in range(3):
            answer = await client.post("http://localhost/", params={"number": number})
            assert await shop.queue.job(answer.text).result(PATIENCE) == 2 * number
    assert inside == [1, 1, 1]
    await is_empty(controller)


async def test_a_worker_with_nothing_to_do_asks_almost_nothing(shop: Shop) -> None:
    """No busy loop: it sleeps until it is woken, whoever else's jobs lie in the queue."""

    @shop.queue.task
    async def work() -> None:
        return None

    await work.enqueue(tenant="somebody else")
    async with shop.worker(tenants=["acme"]) as worker:
        store = worker._store
        assert store is not None
        assert store._commit is not None
        await until(lambda: worker._intake is not None and worker._intake.sleeps)
        before = store._commit.statistics.operations
        for _ in range(2000):
            await asyncio.sleep(0)
        assert store._commit.statistics.operations <= before + 6
        assert worker.status().taken == 0


async def test_a_workers_own_tickets_are_nobody_elses_for_two_replies_after_their_grant() -> None:
    """The server may have counted them before it granted them; what it counts later is somebody else's."""
    pool = AdmissionController(max_concurrency=1)
    permits = Tender(pool, lambda: None)
    held = await pool.acquire()
    permits.classes[2].ask(1)
    permits.has_asked()
    assert not permits.others_wait(1)
    assert permits.others_wait(2)
    held.release()
    assert permits.asked == 0
    for _ in range(2):
        permits.heard()
        assert not permits.others_wait(1)
    permits.heard()
    assert permits.others_wait(1)
    permits.close()


async def test_a_long_job_gives_back_its_own_permit_alone() -> None:
    """Those of jobs that were short are kept for the next ones."""
    pool = AdmissionController(max_concurrency=2)
    line = Tender(pool, lambda: None).classes[2]
    line.ask(2)
    line.end(line.use(), Outcome.SUCCESS, tender.SHORT / 2)
    line.end(line.use(), Outcome.SUCCESS, tender.SHORT * 2)
    assert pool.in_flight == 1
    line.keep(1)
    assert len(line.idle) == 1
    line.close()
    assert pool.in_flight == 0


async def test_of_tickets_that_wait_for_long_only_the_oldest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs stay away from a pool that has no room for them, and their place in its line is kept by one."""
    monkeypatch.setattr(tender, "LONG", 0.0)
    pool = AdmissionController(max_concurrency=1)
    line = Tender(pool, lambda: None).classes[2]
    held = await pool.acquire()
    line.ask(8)
    asked = line.asked
    await until(lambda: line.asked == 1)
    line.ask(8)
    assert (asked, line.asked, pool.queued) == (8, 1, 1)
    held.release()
    assert len(line.idle) == 1
    line.close()
    await is_empty(pool)


@pytest.mark.parametrize(("max_delay", "long"), [(None, LONG), (800.0, LONG), (4.0, 0.5), (0.0, 0.0)])
def test_no_more_than_one_ticket_is_there_when_it_gets_overdue(max_delay: float | None, long: float) -> None:
    """A wait is a long one well before `max_delay`."""
    appetite = Appetite(max_delay)
    assert appetite.most == MOST_ASKED
    appetite.waits(long - 0.001)
    assert appetite.most == MOST_ASKED
    appetite.waits(long)
    assert appetite.most == 1


def test_appetite_doubles_with_every_ticket_that_is_granted_soon() -> None:
    """Up to its bound; a late one tells of no room."""
    appetite = Appetite(None)
    appetite.waits(LONG)
    appetite.granted(LONG)
    assert appetite.most == 1
    grown = []
    for _ in range(7):
        appetite.granted(LONG / 2)
        grown.append(appetite.most)
    assert grown == [2, 4, 8, 16, 32, 32, 32]
