"""The queue as an application uses it, on a real server; what a worker would do is done by hand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from admission import Priority, PriorityClass
from admission.backends.redis.commit import MOST_OPERATIONS
from admission.backends.redis.site import RedisPool
from admission.errors import (
    BadArguments,
    JobFailed,
    JobNotFound,
    NotRunning,
    PayloadTooLarge,
    QueueFull,
    TaskCancelled,
    Unavailable,
    WaitTimeout,
)
from admission.jobs import Job, JobQueue, JobState, script
from admission.jobs.endings import Pace
from admission.jobs.script import Stats, Taken
from admission.jobs.task import NewJob
from admission.jobs.types import BuryKind
from admission.types import Reason
from tests.jobs.taking import Taker
from tests.redis.servers import valkey

pytestmark = pytest.mark.anyio


def sync_user(user_id: int, full: bool = False) -> dict[str, int]:
    """The task of these tests."""
    return {"user": user_id}


@pytest.fixture
async def jobs(queue_site: RedisPool) -> AsyncIterator[JobQueue]:
    """A queue with one task."""
    queue = JobQueue(queue_site)
    queue.task(sync_user)
    async with queue:
        yield queue


@pytest.fixture
async def taker(queue_site: RedisPool) -> AsyncIterator[Taker]:
    """Who takes its jobs."""
    async with Taker(queue_site) as taking:
        yield taking


async def in_the_end(happened: Any) -> None:
    """Return once *happened()* is true, after some round trips; at most 30 s."""
    async with asyncio.timeout(30):
        while not happened():  # noqa: ASYNC110 - nobody says so.
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------- to enqueue


async def test_an_enqueued_job_is_all_there(jobs: JobQueue, taker: Taker) -> None:
    """Its class, tenant, metadata and arguments; and a worker gets the same."""
    task = jobs.tasks["sync_user"]
    job = await task.enqueue(42, tenant="acme", priority=Priority.HIGH, metadata={"source": "ui"})
    status = await job.status()
    assert (status.id, status.task, status.state) == (job.id, "sync_user", JobState.QUEUED)
    assert (status.priority, status.tenant, status.metadata) == ("high", "acme", {"source": "ui"})
    assert (status.attempts, status.deliveries, status.position) == (0, 0, 1)
    assert (status.started_at, status.ended_at, status.error) == (None, None, None)
    taken = await taker.take_one(1)
    assert (taken.id, taken.tenant) == (job.id, "acme")
    assert json.loads(taken.body) == {"task": "sync_user", "args": {"user_id": 42}, "metadata": {"source": "ui"}}
    assert (await job.status()).state is JobState.RUNNING


async def test_wrong_arguments_store_nothing(jobs: JobQueue) -> None:
    """Not even a count."""
    with pytest.raises(BadArguments):
        await jobs.tasks["sync_user"].enqueue("many")
    stats = await jobs.stats()
    assert (stats.queued, stats.enqueued_total) == (0, 0)


async def test_a_key_has_one_job_at_a_time(jobs: JobQueue, taker: Taker) -> None:
    """Queued or running, it is that one; once it has ended, there may be another."""
    task = jobs.tasks["sync_user"]
    first = await task.enqueue(1, dedup_key="user-1")
    again = await task.enqueue(1, dedup_key="user-1")
    assert (first.duplicate, again.duplicate, again.id) == (False, True, first.id)
    taken = await taker.take_one()
    assert (await task.enqueue(1, dedup_key="user-1")).id == first.id
    await taker.succeed(taken)
    assert not (await task.enqueue(1, dedup_key="user-1")).duplicate


async def test_a_delayed_job_is_no_queued_one(jobs: JobQueue, taker: Taker) -> None:
    """It says when it is due."""
    job = await jobs.tasks["sync_user"].enqueue(1, delay=3600)
    status = await job.status()
    assert status.state is JobState.DELAYED
    assert status.due_at == pytest.approx(status.enqueued_at + 3600, abs=1e-3)
    assert await taker.take() == []


async def test_many_are_enqueued_in_batches_and_each_has_its_handle(jobs: JobQueue, taker: Taker) -> None:
    """More than a call carries, of several tenants."""
    task = jobs.tasks["sync_user"]
    many = [task.with_options(tenant="a").job(0), *(task.job(number) for number in range(1, 1000))]
    enqueued = await jobs.enqueue_many(many)
    assert len({job.id for job in enqueued}) == 1000
    assert (await jobs.stats()).queued == 1000
    commit = jobs.store._commit
    assert commit is not None
    assert commit.statistics.calls < 10
    body = (await jobs.store.ask(script.look(enqueued[0].id))).body  # type: ignore[union-attr]
    assert json.loads(body)["args"] == {"user_id": 0}
    assert await jobs.enqueue_many([]) == []
    (first,) = await taker.take(2, 1)
    assert first.tenant in ("", "a")


async def test_the_next_jobs_are_made_while_the_server_works_on_those_before(jobs: JobQueue) -> None:
    """A generator is not drawn dry before the first call leaves."""
    task = jobs.tasks["sync_user"]
    was_answered = []

    def made() -> Iterator[NewJob]:
        for number in range(2000):
            was_answered.append(jobs.store.reply is not None)
            yield task.job(number)

    assert len(await jobs.enqueue_many(made())) == 2000
    assert (was_answered[0], was_answered[-1]) == (False, True)


async def test_what_making_a_job_raises_is_raised_and_those_before_may_be_taken_in(jobs: JobQueue) -> None:
    """As it was raised, not wrapped; the queue goes on."""
    task = jobs.tasks["sync_user"]
    with pytest.raises(BadArguments, match="'user_id' is 'x'"):
        await jobs.enqueue_many(task.job("x" if number == 1500 else number) for number in range(2000))
    assert (await jobs.stats()).queued <= 1500


async def test_one_tenants_jobs_keep_their_order(jobs: JobQueue, taker: Taker) -> None:
    """First in, first out."""
    task = jobs.tasks["sync_user"]
    await jobs.enqueue_many([task.job(number) for number in range(100)])
    taken = await taker.take(2, 100)
    assert [json.loads(each.body)["args"]["user_id"] for each in taken] == list(range(100))


async def test_jobs_of_many_calls_keep_their_order(jobs: JobQueue, taker: Taker) -> None:
    """A last call with one job, read at once, does not overtake the one before, of which the server read a part."""
    task = jobs.tasks["sync_user"]
    many = MOST_OPERATIONS + 1
    await jobs.enqueue_many(task.job(number) for number in range(many))
    taken: list[Taken] = []
    while len(taken) < many:
        taken += await taker.take(2, many - len(taken))
    assert [json.loads(each.body)["args"]["user_id"] for each in taken] == list(range(many))


async def test_a_tenants_charge_follows_cost_and_weight(queue_site: RedisPool, taker: Taker) -> None:
    """A tenant of weight 3 gets three jobs for one of the other's."""
    classes = [PriorityClass(name="only", weights={"big": 3.0})]
    async with JobQueue(queue_site, classes=classes) as jobs:
        task = jobs.task(sync_user)
        for tenant in ("big", "small"):
            await jobs.enqueue_many([task.with_options(tenant=tenant).job(n) for n in range(9)])
        taken = await taker.take(0, 12)
    assert sum(job.tenant == "big" for job in taken) == 9


async def test_a_full_queue_rejects(queue_site: RedisPool) -> None:
    """What was taken in stays, and the error says how much."""
    async with JobQueue(queue_site, max_queue_size=3) as jobs:
        task = jobs.task(sync_user)
        with pytest.raises(QueueFull, match="3 of 5 jobs were taken in") as caught:
            await jobs.enqueue_many([task.job(number) for number in range(5)])
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_after is not None
        with pytest.raises(asyncio.QueueFull, match="has 3 jobs, as many as it may"):
            await task.enqueue(6)
        assert (await jobs.stats()).queued == 3


async def test_a_full_queue_blocks_until_there_is_room(queue_site: RedisPool, taker: Taker) -> None:
    """Each waits for its turn."""
    async with JobQueue(queue_site, max_queue_size=2, backpressure_mode="block") as jobs:
        task = jobs.task(sync_user)
        waiting = asyncio.create_task(jobs.enqueue_many([task.job(number) for number in range(3)]))
        commit = jobs.store
        await in_the_end(lambda: commit.reply is not None and sum(commit.reply.ready) == 2)
        assert not waiting.done()
        await taker.take_one()
        async with asyncio.timeout(30):
            assert len(await waiting) == 3
        assert (await jobs.stats()).queued == 2


async def test_blocking_ends_after_max_wait(queue_site: RedisPool) -> None:
    """With none to wait, at once."""
    async with JobQueue(queue_site, max_queue_size=1, backpressure_mode="block", max_wait=0) as jobs:
        task = jobs.task(sync_user)
        await task.enqueue(1)
        with pytest.raises(WaitTimeout, match="had no room within"):
            await task.enqueue(2)


async def test_a_server_without_memory_refuses_before_it_acknowledges() -> None:
    """Nothing of the job is there; what has ended can still be said."""
    with valkey(maxmemory="3mb") as server:
        async with JobQueue(server.url) as jobs:

            @jobs.task
            def store(text: str) -> None: ...

            job = await store.enqueue("small")
            server.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(Unavailable, match="has no memory left"):
                await store.enqueue("more")
            with pytest.raises(Unavailable, match="has no memory left"):
                await jobs.enqueue_many([store.job("more")] * 300)
            with pytest.raises(Unavailable, match="maxmemory"):
                await jobs.push("text", "more")
            server.ask("CONFIG", "SET", "maxmemory", "0")
            stats = await jobs.stats()
            assert (stats.queued, stats.enqueued_total) == (1, 1)
            assert (await job.status()).state is JobState.QUEUED


# ---------------------------------------------------------------------- results


async def test_a_result_is_awaited_and_comes_back_as_json(jobs: JobQueue, taker: Taker) -> None:
    """Any number may wait, and whoever asks later hears the same."""
    job = await jobs.tasks["sync_user"].enqueue(42)
    waiting = [asyncio.create_task(job.result(60)) for _ in range(3)]
    await in_the_end(lambda: job.id in jobs.endings._waiting)
    await taker.succeed(await taker.take_one(), '{"user":42}')
    assert await asyncio.gather(*waiting) == [{"user": 42}] * 3
    assert await jobs.job(job.id).result() == {"user": 42}
    assert jobs.endings._waiting == {}
    assert (await job.status()).state is JobState.DONE


async def test_a_lost_message_delays_a_result_and_no_more(jobs: JobQueue, taker: Taker) -> None:
    """Who waits looks again from time to time."""
    job = await jobs.tasks["sync_user"].enqueue(42)
    jobs.store.on_told = None
    waiting = asyncio.create_task(job.result())
    await in_the_end(lambda: job.id in jobs.endings._waiting)
    await taker.succeed(await taker.take_one(), "1")
    async with asyncio.timeout(30):
        assert await waiting == 1


async def test_no_result_in_time_is_a_timeout(jobs: JobQueue) -> None:
    """The job stays where it is."""
    job = await jobs.tasks["sync_user"].enqueue(42)
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s"):
        await job.result(timeout=0.01)
    assert (await job.status()).state is JobState.QUEUED


async def test_a_failed_job_raises_what_is_known_of_its_error(jobs: JobQueue, taker: Taker) -> None:
    """As data: no exception is made from a message."""
    job = await jobs.tasks["sync_user"].enqueue(42)
    await taker.bury(await taker.take_one(), BuryKind.TIMEOUT)
    with pytest.raises(JobFailed, match=r"failed \(timeout\) after 1 attempts: ValueError: no") as caught:
        await job.result(10)
    assert (caught.value.kind, caught.value.error, caught.value.attempts) == ("timeout", "ValueError: no", 1)
    assert caught.value.traceback == "Traceback: here"
    assert (await job.status()).error == "ValueError: no"


async def test_an_unknown_job_is_not_found(jobs: JobQueue) -> None:
    """By none of the questions; and what is no id is no question."""
    job = jobs.job("0" * 24)
    for question in (job.status(), job.position(), job.estimated_wait(), job.result()):
        with pytest.raises(JobNotFound, match="there is no job 0000"):
            await question
    assert not await job.cancel()
    for bad in ("", "x" * 24, "A" * 24, "0" * 23):
        with pytest.raises(ValueError, match="24 lower hex digits"):
            jobs.job(bad)


async def test_a_queued_job_is_cancelled_at_once(jobs: JobQueue, taker: Taker) -> None:
    """Its key is free, whoever waits is told, and nobody runs it."""
    task = jobs.tasks["sync_user"]
    job = await task.enqueue(1, dedup_key="k")
    waiting = asyncio.create_task(job.result())
    await in_the_end(lambda: job.id in jobs.endings._waiting)
    assert await job.cancel()
    with pytest.raises(TaskCancelled):
        await waiting
    with pytest.raises(JobNotFound):
        await jobs.job(job.id).result()
    assert await taker.take() == []
    assert not (await task.enqueue(1, dedup_key="k")).duplicate
    assert not await job.cancel()


async def test_a_running_job_is_told_to_stop(jobs: JobQueue, taker: Taker) -> None:
    """By its id, to the process that runs it."""
    told: asyncio.Queue[script.Message] = asyncio.Queue()
    subscribed = asyncio.Event()
    taker.store.on_told, taker.store.on_subscribed = told.put_nowait, subscribed.set
    taker.store.listen()
    async with asyncio.timeout(30):
        await subscribed.wait()
        job = await jobs.tasks["sync_user"].enqueue(1)
        await taker.take_one()
        assert await job.cancel()
        assert await told.get() == ("cancel", job.id)


# ---------------------------------------------------------------------- questions


async def test_a_position_counts_those_before_of_the_same_tenant(jobs: JobQueue) -> None:
    """Tenants take turns, so each has a line of its own."""
    task = jobs.tasks["sync_user"]
    mine = [await task.enqueue(number, tenant="me") for number in range(3)]
    other = await task.enqueue(4, tenant="other")
    assert [await job.position() for job in (*mine, other)] == [1, 2, 3, 1]


async def test_a_wait_is_estimated_from_the_pace_seen_lately(jobs: JobQueue, taker: Taker) -> None:
    """Those of higher classes and the others' turns are before it. Before anything was seen, there is none."""
    task = jobs.tasks["sync_user"]
    await jobs.enqueue_many([task.with_options(priority="high").job(number) for number in range(30)])
    await jobs.enqueue_many([task.with_options(tenant="other").job(number) for number in range(100)])
    first, second = await task.enqueue(1, tenant="me"), await task.enqueue(2, tenant="me")
    assert await first.estimated_wait() is None
    pace = jobs.pace = Pace()
    pace.saw(seen(0), jobs.now() - 10)
    running, *rest = await taker.take(1, 21)
    for job in rest:
        await taker.succeed(job)
    estimate = await first.estimated_wait()
    assert pace.rate == pytest.approx(2, rel=0.5)
    assert estimate == pytest.approx((9 + 2) / pace.rate)
    assert await second.estimated_wait() == pytest.approx((9 + 4) / pace.rate, rel=0.5)
    assert await jobs.job(running.id).estimated_wait() == 0.0


def seen(ended: int) -> Stats:
    """Numbers of a queue that has ended so many jobs."""
    counters = {"succeeded": ended, "dead": 0}
    return Stats(paused=False, dead=0, kept=0, workers=0, counters=counters, classes=(), tenants=())


def test_a_pace_is_seen_over_a_while_and_starts_over_with_the_counters() -> None:
    """A queue that was flushed counts from 0 again."""
    pace = Pace()
    assert pace.rate is None
    pace.saw(seen(0), 0.0)
    pace.saw(seen(5), 0.01)  # Too soon to say anything.
    assert pace.rate is None
    pace.saw(seen(100), 10.0)
    assert pace.rate == 10.0
    pace.saw(seen(100), 35.0)
    assert pace.rate is None  # Nothing has ended for a while.
    pace.saw(seen(152), 36.0)
    assert pace.rate == 2.0
    pace.saw(seen(3), 37.0)
    assert pace.rate is None


async def test_jobs_are_listed_by_state_class_and_tenant(jobs: JobQueue, taker: Taker) -> None:
    """The first of them, in order; more than a page holds."""
    task = jobs.tasks["sync_user"]
    many = await jobs.enqueue_many([task.with_options(tenant=f"t{number % 3}").job(number) for number in range(300)])
    urgent = await task.enqueue(1, priority="critical")
    late = await task.enqueue(1, delay=60)
    assert len(await jobs.ls(limit=1000)) == 301
    assert len(await jobs.ls(limit=7)) == 7
    assert [status.id for status in await jobs.ls(priority="critical")] == [urgent.id]
    assert [status.id for status in await jobs.ls(state="delayed")] == [late.id]
    assert len(await jobs.ls(tenant="t1", priority="normal", limit=1000)) == 100
    taken = await taker.take_one()
    assert [status.id for status in await jobs.ls(state=JobState.RUNNING)] == [taken.id]
    await taker.succeed(taken)
    assert [status.id for status in await jobs.ls(state="done")] == [taken.id]
    assert {status.id for status in await jobs.ls(limit=1000)} <= {job.id for job in (*many, urgent)}
    for bad in ({"state": "lost"}, {"state": "cancelled"}, {"priority": "urgent"}, {"limit": 0}):
        with pytest.raises(ValueError, match=r"is|lost"):
            await jobs.ls(**bad)  # type: ignore[arg-type]


async def test_numbers_tell_the_whole_queue(jobs: JobQueue, taker: Taker) -> None:
    """By class and tenant."""
    task = jobs.tasks["sync_user"]
    await jobs.enqueue_many([task.with_options(tenant="a").job(number) for number in range(5)])
    await task.enqueue(1, priority=Priority.LOW, delay=60)
    one, other, *_ = await taker.take(2, 3)
    await taker.succeed(one)
    await taker.bury(other)
    stats = await jobs.stats()
    assert (stats.queued, stats.delayed, stats.running, stats.dead, stats.kept) == (2, 1, 1, 1, 1)
    assert (stats.enqueued_total, stats.succeeded_total, stats.failed_total, stats.dead_total) == (6, 1, 1, 1)
    assert (stats.workers, stats.paused) == (1, False)
    assert [each.name for each in stats.classes] == ["critical", "high", "normal", "low"]
    normal = stats.classes[2]
    assert (normal.queued, normal.delayed, normal.running) == (2, 0, 1)
    assert 0 <= normal.oldest_age < 60
    assert [(each.tenant, each.priority, each.queued, each.running) for each in stats.tenants] == [
        ("a", "normal", 2, 1)
    ]


# ---------------------------------------------------------------------- to steer


async def test_nothing_of_a_paused_class_is_delivered(jobs: JobQueue, taker: Taker) -> None:
    """Nor of any, when all is paused; `resume` takes either back."""
    task = jobs.tasks["sync_user"]
    await jobs.enqueue_many([task.job(1), task.with_options(priority="high").job(2)])
    await jobs.pause("normal")
    assert await taker.take(2) == []
    assert (await jobs.stats()).classes[2].paused
    await jobs.pause()
    assert await taker.take(1) == []
    await jobs.resume()
    assert len(await taker.take(1)) == 1
    assert await taker.take(2) == []
    await jobs.resume(Priority.NORMAL)
    assert len(await taker.take(2)) == 1


async def test_a_purge_takes_what_matches(jobs: JobQueue, taker: Taker) -> None:
    """However many calls it needs. What runs is not purged."""
    task = jobs.tasks["sync_user"]
    await jobs.enqueue_many([task.with_options(tenant=f"t{number % 2}").job(number) for number in range(2500)])
    await task.enqueue(1, priority="high")
    await taker.take_one(1)
    assert await jobs.purge(state="queued", tenant="t1") == 1250
    assert await jobs.purge(state=JobState.QUEUED, priority=Priority.HIGH) == 0
    assert await jobs.purge(state="queued") == 1250
    assert (await jobs.stats()).running == 1
    for state in ("running", "cancelled"):
        with pytest.raises(ValueError, match="must be queued, delayed, done or dead"):
            await jobs.purge(state=state)


# ---------------------------------------------------------------------- dead letters


async def test_a_dead_letter_tells_what_happened(jobs: JobQueue, taker: Taker) -> None:
    """Enough to decide what to do with it."""
    task = jobs.tasks["sync_user"]
    job = await task.enqueue(42, tenant="acme", metadata={"source": "ui"})
    await taker.bury(await taker.take_one(), BuryKind.PERMANENT)
    (letter,) = await jobs.dead.list()
    assert letter == await jobs.dead.show(job.id)
    assert (letter.id, letter.task, letter.priority, letter.tenant) == (job.id, "sync_user", "normal", "acme")
    assert (letter.kind, letter.error, letter.traceback) == (BuryKind.PERMANENT, "ValueError: no", "Traceback: here")
    assert (letter.attempts, letter.deliveries) == (1, 1)
    assert letter.arguments == '{"user_id":42}'
    assert letter.metadata == {"source": "ui"}
    assert letter.enqueued_at <= letter.died_at


async def test_dead_letters_are_queued_again_or_forgotten(jobs: JobQueue, taker: Taker) -> None:
    """One by one, or all that match."""
    task = jobs.tasks["sync_user"]
    await jobs.enqueue_many([task.with_options(tenant=f"t{number % 2}").job(number) for number in range(6)])
    for job in await taker.take(2, 6):
        await taker.bury(job)
    letters = await jobs.dead.list(tenant="t0")
    assert len(letters) == 3
    assert len(await jobs.dead.list(limit=2)) == 2
    assert await jobs.dead.requeue(letters[0].id) == 1
    assert await jobs.dead.purge(letters[1].id) == 1
    assert await jobs.dead.requeue(tenant="t1") == 3
    assert await jobs.dead.list(priority="high") == []
    assert await jobs.dead.purge() == 1
    assert await jobs.dead.list() == []
    again = await taker.take(2, 10)
    assert len(again) == 4
    assert {(job.attempt, job.delivery) for job in again} == {(1, 2)} or {job.attempt for job in again} == {1}
    for act in (jobs.dead.show, jobs.dead.requeue, jobs.dead.purge):
        with pytest.raises(JobNotFound, match="there is no dead letter"):
            await act(letters[1].id)


async def test_a_full_queue_takes_no_dead_letters(queue_site: RedisPool, taker: Taker) -> None:
    """The rest stay dead."""
    async with JobQueue(queue_site, max_queue_size=2) as jobs:
        task = jobs.task(sync_user)
        for _ in range(2):
            await jobs.enqueue_many([task.job(1), task.job(2)])
            for job in await taker.take(2, 2):
                await taker.bury(job)
        with pytest.raises(QueueFull, match="2 of 4 dead letters were queued again"):
            await jobs.dead.requeue()
        assert len(await jobs.dead.list()) == 2


# ---------------------------------------------------------------------- values


async def test_values_are_passed_on_as_json(jobs: JobQueue, queue_site: RedisPool) -> None:
    """Within the pool; none is None."""
    await jobs.push("orders", {"ids": [1, 2], "at": None})
    assert await jobs.pull("orders") == {"ids": [1, 2], "at": None}
    assert await jobs.pull("nothing") is None
    async with JobQueue(queue_site, pool="other") as other:
        assert await other.pull("orders") is None
    await jobs.push("orders", [])
    assert await jobs.pull("orders") == []


async def test_values_expire(jobs: JobQueue) -> None:
    """After the queue's `result_ttl`, or as they were told."""
    link = jobs.store._link
    for ttl, seconds in ((None, 3600.0), (5, 5.0)):
        await jobs.push("orders", 1, ttl=ttl)
        link = jobs.store._link
        assert link is not None
        left = await link.ask("PTTL", jobs.store.script.value_key("orders"))
        assert isinstance(left, int)
        assert seconds - 60 < left / 1000 <= seconds


async def test_values_are_checked(queue_site: RedisPool) -> None:
    """As arguments are."""
    async with JobQueue(queue_site, max_payload_bytes=10) as jobs:
        with pytest.raises(BadArguments, match="value has NaN"):
            await jobs.push("x", float("nan"))
        with pytest.raises(BadArguments, match="value cannot be written as JSON"):
            await jobs.push("x", object())
        with pytest.raises(PayloadTooLarge, match="the value of 'x' has 11 bytes"):
            await jobs.push("x", "123456789")
        for name, ttl, said in (("", 1, "name is ''"), ("a\nb", 1, "control characters"), ("x", 0, "ttl is 0")):
            with pytest.raises(ValueError, match=said):
                await jobs.push(name, 1, ttl=ttl)


# ---------------------------------------------------------------------- loops and threads


async def test_a_queue_is_used_again_after_it_was_closed(jobs: JobQueue) -> None:
    """Blocks may stand inside each other; the last one closes."""
    task = jobs.tasks["sync_user"]
    async with jobs:
        await task.enqueue(1)
    store = jobs.store
    await task.enqueue(2)
    await jobs.aclose()
    await jobs.aclose()
    assert jobs.store is not store
    assert (await jobs.stats()).queued == 2


@pytest.fixture
def blocking(queue_site: RedisPool) -> Iterator[JobQueue]:
    """A queue for callers that block."""
    queue = JobQueue(queue_site)
    queue.task(sync_user)
    with queue.sync:
        yield queue


def test_callers_that_block_have_the_same(blocking: JobQueue) -> None:
    """Behind them is a thread with an event loop, started on first use and after `close` again."""
    task, sync = blocking.tasks["sync_user"], blocking.sync
    job = task.enqueue_sync(42, tenant="acme", dedup_key="k")
    assert isinstance(job, Job)
    assert task.with_options(dedup_key="k").enqueue_sync(42).duplicate
    assert sync.status(job).tenant == "acme"
    assert len(sync.enqueue_many([task.job(1), task.job(2)])) == 2
    assert sync.stats().queued == 3
    assert len(sync.ls(limit=2)) == 2
    sync.close()
    sync.pause("low")
    sync.resume()
    sync.push("x", 1)
    assert sync.pull("x") == 1
    with pytest.raises(TimeoutError):
        sync.result(job, timeout=0.01)
    assert sync.cancel(job)
    assert sync.purge(state="queued") == 2
    with pytest.raises(JobNotFound):
        sync.status(blocking.job("0" * 24))


def test_threads_share_the_loop_behind(blocking: JobQueue) -> None:
    """However many begin at once."""
    task = blocking.tasks["sync_user"]
    threads = [threading.Thread(target=task.enqueue_sync, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert blocking.sync.stats().queued == 8


async def test_a_blocking_call_on_an_event_loop_is_refused(jobs: JobQueue) -> None:
    """It would hold everything up."""
    with pytest.raises(NotRunning, match="would hold up the event loop"):
        jobs.tasks["sync_user"].enqueue_sync(1)
    with pytest.raises(NotRunning):
        jobs.sync.stats()
