"""Who of the tenants of a queue gets how many of the starts; counted in starts, not in seconds.

A worker with three places and a pool of three slots stand for three workers. The order of starts is what the script
gives out, so nothing here depends on the machine. Run with `-s` to see the numbers.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest

from admission import Priority, PriorityClass
from admission.jobs import Job, JobQueue, JobState
from admission.jobs.run import current_job
from admission.types import DEFAULT_CLASSES
from tests.jobs.worker_process import WorkerProcess, queue_of
from tests.jobs.workshop import Shop, shop, until
from tests.redis.conftest import PoolKeys

__all__ = ["shop"]

pytestmark = pytest.mark.anyio

PLACES = 3

PATIENCE = 60.0

BACKLOG = {"elephant": 10_000, "mouse": 100, "flea": 1}


class Starts:
    """Whose jobs were started, in order. Jobs that never wait, of one task."""

    def __init__(self, queue: JobQueue) -> None:
        self.whose: list[str] = []
        self._queue = queue

        @queue.task(name="note")
        async def note() -> None:
            job = current_job()
            assert job is not None
            self.whose.append(f"{job.priority}/{job.tenant}" if job.tenant == "" else job.tenant)

        self.note = note

    async def enqueue(self, tenant: str, count: int, **options: object) -> list[Job]:
        """So many jobs of one tenant."""
        new = self.note.with_options(tenant=tenant, **options).job()  # type: ignore[typeddict-item]
        return await self._queue.enqueue_many([new] * count)

    def last_of(self, tenant: str) -> int:
        """After how many starts of anyone its last one came."""
        return len(self.whose) - self.whose[::-1].index(tenant)


def due(backlog: Mapping[str, int]) -> dict[str, int]:
    """After how many starts each tenant is through, if all present ones always take turns.

    With n present, whoever needs the k-th round is through k·n starts after the last one left: for 10,000 / 100 / 1,
    the flea within the first 3 starts, the mouse 2·99 later, at 201. Each alone with a third of the capacity would be
    through after 3 and 300: work that others leave undone only makes that sooner.
    """
    through, starts, rounds = {}, 0, 0
    left = dict(backlog)
    for tenant in sorted(backlog, key=lambda tenant: backlog[tenant]):
        starts += len(left) * (backlog[tenant] - rounds)
        rounds = backlog[tenant]
        through[tenant] = starts
        del left[tenant]
    return through


def as_due(found: Mapping[str, int], backlog: Mapping[str, int], tenants: Iterable[str]) -> None:
    """Each of *tenants* was through when it was due, ±10 % or one round, and within a third of the capacity."""
    expected = due(backlog)
    for tenant in tenants:
        third = PLACES * backlog[tenant]
        print(f"\n  {tenant}: through after {found[tenant]} starts, due {expected[tenant]}, with a third alone {third}")
        assert found[tenant] == pytest.approx(expected[tenant], rel=0.1, abs=PLACES)
        assert found[tenant] <= third * 1.1 + PLACES


async def finished(jobs: Sequence[Job]) -> None:
    """Until they have all ended."""
    await jobs[-1].result(PATIENCE)


def in_order_of_class(order: Sequence[str], classes: Sequence[str]) -> None:
    """Nothing was started while as many jobs of higher classes waited as there are places.

    The last few of a class and the first of the next are asked for together, and either may be granted first.
    """
    for index, name in enumerate(order):
        higher = [later for later in order[index:] if classes.index(later) < classes.index(name)]
        assert len(higher) < PLACES, f"{name} at {index}, before {higher}"


# ---------------------------------------------------------------------- in one process


async def test_small_tenants_finish_as_if_alone_with_a_third(shop: Shop) -> None:
    """10,000, 100 and one job: the elephant came first, and costs the others no more than its turn."""
    starts = Starts(shop.queue)
    jobs = {tenant: await starts.enqueue(tenant, count) for tenant, count in BACKLOG.items()}
    async with shop.worker(workers=PLACES):
        await finished(jobs["mouse"])
        await finished(jobs["flea"])
    await shop.queue.purge(state=JobState.QUEUED)
    as_due({name: starts.last_of(name) for name in BACKLOG}, BACKLOG, ("mouse", "flea"))


async def test_with_three_tenants_there_all_along_each_has_exactly_a_third(shop: Shop) -> None:
    """Two of 100 beside the elephant: through after 300 starts, and 100 of the elephant's."""
    backlog = {"elephant": 10_000, "mouse": 100, "rat": 100}
    starts = Starts(shop.queue)
    jobs = {tenant: await starts.enqueue(tenant, count) for tenant, count in backlog.items()}
    async with shop.worker(workers=PLACES):
        for tenant in ("mouse", "rat"):
            await finished(jobs[tenant])
    await shop.queue.purge(state=JobState.QUEUED)
    for tenant in ("mouse", "rat"):
        assert starts.last_of(tenant) == pytest.approx(300, rel=0.1)
    assert Counter(starts.whose[:300]) == {name: pytest.approx(100, rel=0.1) for name in backlog}


async def test_who_comes_late_has_no_credit_and_no_debt(shop: Shop) -> None:
    """Its share begins when it comes: it does not make up for when it was away, and is not behind what stood there."""
    starts = Starts(shop.queue)
    await starts.enqueue("early", 300)
    async with shop.worker(workers=PLACES):
        await until(lambda: len(starts.whose) >= 30)
        await shop.queue.pause()
        await settled(shop.queue)
        before = len(starts.whose)
        late = await starts.enqueue("late", 50)
        await shop.queue.resume()
        await finished(late)
    await shop.queue.purge(state=JobState.QUEUED)
    assert starts.last_of("late") - before == pytest.approx(100, rel=0.1)
    assert Counter(starts.whose[before : before + 100])["late"] == pytest.approx(50, rel=0.1)


async def test_tenants_are_served_by_weight_and_cost(shop: Shop) -> None:
    """Weight 3 starts three times as many as weight 1; at five times the cost, a fifth."""
    classes = [replace(rules, weights={"gold": 3.0}) if rules.name == "normal" else rules for rules in DEFAULT_CLASSES]
    queue = shop.another_queue(classes=classes)
    starts = Starts(queue)
    for tenant, cost in (("gold", 1.0), ("basic", 1.0), ("long", 5.0)):
        await starts.enqueue(tenant, 400, cost=cost)
    async with shop.worker(queue, workers=PLACES):
        await until(lambda: len(starts.whose) >= 420)
    await queue.purge(state=JobState.QUEUED)
    # Of 21 starts, 15 are gold's, 5 basic's and 1 is long's, which costs five.
    counted = Counter(starts.whose[:420])
    assert counted == {
        "gold": pytest.approx(300, rel=0.1),
        "basic": pytest.approx(100, rel=0.1),
        "long": pytest.approx(20, rel=0.1),
    }
    await queue.aclose()


async def test_a_critical_class_goes_before_everything(shop: Shop) -> None:
    """Whatever came first, and however many tenants wait below."""
    starts = Starts(shop.queue)
    last = []
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL):
        for tenant in ("a", "b"):
            last += await starts.enqueue(tenant, 20, priority=priority)
    order: list[str] = []

    @shop.queue.task(name="class")
    async def class_of() -> None:
        job = current_job()
        assert job is not None
        order.append(job.priority)

    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL):
        last += await shop.queue.enqueue_many([class_of.with_options(priority=priority).job()] * 20)
    async with shop.worker(workers=PLACES):
        for job in last:
            await job.result(PATIENCE)
    in_order_of_class(order, ["critical", "high", "normal", "low"])


async def test_six_levels_are_served_in_their_order(shop: Shop) -> None:
    """Classes are whatever the queue is given."""
    names = ["p0", "p1", "p2", "p3", "p4", "p5"]
    queue = shop.another_queue(classes=[PriorityClass(name=name) for name in names])
    order: list[str] = []

    @queue.task
    async def class_of() -> None:
        job = current_job()
        assert job is not None
        order.append(job.priority)

    jobs = []
    for name in reversed(names):
        jobs += await queue.enqueue_many([class_of.with_options(priority=name).job()] * 10)
    async with shop.worker(queue, workers=PLACES):
        for job in jobs:
            await job.result(PATIENCE)
    in_order_of_class(order, names)
    await queue.aclose()


# ---------------------------------------------------------------------- assigned tenants


async def test_assigned_tenants_go_first_in_fair_order_and_then_it_steals(shop: Shop) -> None:
    """Two of its own take turns until they have nothing more; then everybody else does."""
    starts = Starts(shop.queue)
    jobs = []
    for tenant, count in (("x", 30), ("y", 30), ("acme", 30), ("globex", 30)):
        jobs += await starts.enqueue(tenant, count)
    async with shop.worker(workers=PLACES, tenants=["acme", "globex"], steal="*"):
        for job in jobs:
            await job.result(PATIENCE)
    assert set(starts.whose[:60]) == {"acme", "globex"}
    for half in (starts.whose[:60], starts.whose[60:]):
        first, second = sorted(set(half))
        for count in range(2, 60, 2):
            assert abs(half[:count].count(first) - half[:count].count(second)) <= PLACES


async def test_it_steals_from_nobody_but_those_it_may(shop: Shop) -> None:
    """The jobs of others stay where they are."""
    starts = Starts(shop.queue)
    await starts.enqueue("others", 5)
    stolen = await starts.enqueue("friend", 5)
    own = await starts.enqueue("acme", 5)
    async with shop.worker(workers=PLACES, tenants=["acme"], steal=["friend"]):
        for job in own + stolen:
            await job.result(PATIENCE)
        # One that comes later is seen too, and the others still are not.
        await (await starts.enqueue("acme", 1))[0].result(PATIENCE)
    assert starts.whose == ["acme"] * 5 + ["friend"] * 5 + ["acme"]
    assert (await shop.queue.stats()).queued == 5


# ---------------------------------------------------------------------- over three processes


async def settled(queue: JobQueue) -> None:
    """Until nothing runs."""
    give_up = time.monotonic() + PATIENCE
    while (await queue.stats()).running:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # One of the processes it starts runs on uvloop.
async def test_small_tenants_finish_as_if_alone_over_three_processes(
    redis_url: str, namespace: str, pool_keys: PoolKeys
) -> None:
    """Three processes share a pool of three slots: the order of deliveries is one, whoever asks.

    It is read from the server, whose clock stamps each delivery.
    """
    pool_keys.may_stay("j:*")
    queue = queue_of(redis_url, namespace)
    await queue.pause()
    jobs: dict[str, list[Job]] = {}
    for tenant, count in BACKLOG.items():
        new = queue.tasks["wait"].with_options(tenant=tenant).job(tenant)
        jobs[tenant] = await queue.enqueue_many([new] * count)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                WorkerProcess(redis_url, namespace, use_uvloop=number == 1, workers=PLACES, max_concurrency=PLACES)
            )
            for number in range(3)
        ]
        for process in processes:
            process.open_gate()
            process.look()
        await until(lambda: all(process.status for process in processes))
        await queue.resume()
        await finished(jobs["mouse"])
        await finished(jobs["flea"])
        await queue.purge(state=JobState.QUEUED)
        await settled(queue)
        for process in processes:
            process.look()
        await until(lambda: all(process.status for process in processes))
        shares = [process.status["succeeded"] for process in processes]
    done = await queue.ls(state=JobState.DONE, limit=20_000)
    await queue.aclose()
    order = [job.tenant for job in sorted(done, key=lambda job: job.started_at or 0)]
    print(f"\n  jobs of each process: {shares}")
    assert min(shares) > 0
    assert sum(shares) >= len(order)  # More, if a slow machine has cost one its lease: then jobs run again.
    as_due({name: len(order) - order[::-1].index(name) for name in BACKLOG}, BACKLOG, ("mouse", "flea"))
