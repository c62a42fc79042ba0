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

from admission import AdmissionController, AdmissionError, Closed, PriorityClass, Reason, Sample
from admission.backends.redis import RedisPool
from admission.backends.redis.commit import MOST_OPERATIONS
from admission.errors import NotRunning
from admission.policy.limit import Limit
from admission.portal import SyncController
from admission.testing import RecordingObserver
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


# ---------------------------------------------------------------------- several processes


async def test_a_look_sees_what_was_said_before_it(make: Make) -> None:
    """Though it is short, and the server has read only a part of the offers when it is all there."""
    controller = make(max_concurrency=1, max_queue_size=0)

    async def runs(tenant: str) -> None:
        async with controller.admit(tenant=tenant):
            await anyio.sleep_forever()

    for calls in (2, 1):  # With two under way, both connections are made.
        async with anyio.create_task_group() as group:
            for number in range(calls * MOST_OPERATIONS):
                group.start_soon(runs, f"{number:0120}")
            for _ in range(3):
                await checkpoint()  # The offers leave.
            await controller.refresh()
            assert controller.in_flight == 1
            group.cancel_scope.cancel()
        await peace(controller)


async def test_processes_share_one_limit_and_one_line(make: Make) -> None:
    """Whoever came first goes first, wherever it came in; a slot freed by one is another's."""
    here, there = make(max_queue_size=5), make(max_queue_size=5)
    held = await here.acquire()
    async with anyio.create_task_group() as tasks:
        crowd, others = Crowd(here, tasks), Crowd(there, tasks)
        await others.comes("first")
        await crowd.comes("second")
        await others.comes("third")
        await peace(here, there)
        assert [(c.in_flight, c.queued) for c in (here, there)] == [(1, 3), (1, 3)]
        held.release()
        await others.granted("first")
        others.release("first")
        await crowd.granted("second")
        crowd.release("second")
        await others.granted("first", "third")
        others.release("third")
    await is_empty(here)
    await is_empty(there)


async def test_positions_count_everybodys_tickets(make: Make) -> None:
    """Of this process and of the others, by class; and each process lists its own."""
    here, there = make(max_queue_size=5), make(max_queue_size=5)
    held = await here.acquire()
    async with anyio.create_task_group() as tasks:
        crowd, others = Crowd(here, tasks), Crowd(there, tasks)
        await others.comes("theirs")
        await crowd.comes("ours")
        await others.comes("high", priority="high")
        (ours,) = here.tickets()
        place = await here.look_up(ours.id)
        assert place is not None
        assert (place.position, place.held_back_by) == (3, "line-order")
        assert [ticket.priority for ticket in there.tickets()] == ["high", "normal"]
        held.release()
        for who, name in ((others, "high"), (others, "theirs"), (crowd, "ours")):
            await who.ended(name)
            who.release(name)
    await is_empty(here)


async def test_push_out_reaches_the_other_process(make: Make) -> None:
    """By class and by fairness: who is pushed out hears of it where it waits."""
    here, there = make(max_queue_size=2), make(max_queue_size=2)
    held = await here.acquire()
    async with anyio.create_task_group() as tasks:
        crowd, others = Crowd(here, tasks), Crowd(there, tasks)
        await others.comes("low", priority="low")
        await others.comes("flood", tenant="flood")
        await crowd.comes("high", priority="high")
        await others.ended("low")
        await others.comes("flood again", tenant="flood")
        await others.ended("flood again")
        held.release()
        await crowd.granted("high")
        crowd.release("high")
        await others.granted("flood")
        others.release("flood")
    reasons = {name: error.reason for name, error in others.errors.items()}  # type: ignore[attr-defined]
    assert reasons == {"low": Reason.PRIORITY, "flood again": Reason.QUEUE_FULL}
    await is_empty(here)


async def test_the_lobby_moves_up_across_processes(make: Make) -> None:
    """Room that one process makes is taken by whoever waits for it in another."""
    here, there = (make(max_queue_size=1, backpressure_mode="block") for _ in range(2))
    held = await here.acquire()
    async with anyio.create_task_group() as tasks:
        crowd, others = Crowd(here, tasks), Crowd(there, tasks)
        await crowd.comes("line")
        await others.comes("lobby")
        assert there.snapshot().lobby == 1
        crowd.scopes["line"].cancel()
        await peace(here, there)
        await until(lambda: there.snapshot().lobby == 0)
        held.release()
        await others.granted("lobby")
        others.release("lobby")
    await is_empty(here)


async def test_a_slot_granted_elsewhere_in_the_instant_of_a_cancellation_is_passed_on(make: Make) -> None:
    """The grant is on its way while its ticket goes: whoever is next gets the slot."""
    here, there = make(max_queue_size=5), make(max_queue_size=5)
    for turns in range(0, 60, 3):
        held = await here.acquire()
        async with anyio.create_task_group() as tasks:
            others = Crowd(there, tasks)
            await others.comes("leaves")
            await others.comes("next")
            held.release()
            for _ in range(turns):
                await checkpoint()
            others.scopes["leaves"].cancel()
            for _ in range(3):
                await checkpoint()
            if "leaves" in others.permits:
                others.release("leaves")
            await others.ended("next")
            others.release("next")
    await is_empty(here)
    await is_empty(there)


async def test_steering_is_obeyed_by_every_process(make: Make) -> None:
    """Resize, pause and resume, whoever says it."""
    here, there = make(max_queue_size=5), make(max_queue_size=5)
    async with anyio.create_task_group() as tasks:
        others = Crowd(there, tasks)
        await others.comes("runs")
        here.resize(3)
        await peace(here, there)
        assert (here.limit, there.limit) == (3, 3)
        await others.comes("runs too")
        here.pause()
        await peace(here)
        await others.comes("waits")
        assert set(others.permits) == {"runs", "runs too"}
        await peace(there)
        assert there.snapshot().paused
        there.resume()
        await others.granted("runs", "runs too", "waits")
        others.release("runs", "runs too", "waits")
    here.resize(1)
    await is_empty(there)
    assert there.limit == 1


async def test_a_drain_concerns_one_process(make: Make) -> None:
    """Its waiters are sent away and its newcomers refused; the others go on, and get the room."""
    here, there = make(max_queue_size=2), make(max_queue_size=2)
    held = await there.acquire()
    async with anyio.create_task_group() as tasks:
        crowd, others = Crowd(here, tasks), Crowd(there, tasks)
        await crowd.comes("ours")
        await others.comes("theirs")
        assert await here.drain() is True
        await crowd.ended("ours")
        assert isinstance(crowd.errors["ours"], Closed)
        with pytest.raises(Closed):
            await here.acquire()
        await others.comes("theirs too")
        assert not others.errors
        held.release()
        await others.granted("theirs")
        others.release("theirs")
        await others.granted("theirs", "theirs too")
        others.release("theirs too")
    await is_empty(there)


async def test_who_leaves_takes_everything_along(make: Make) -> None:
    """Its waiters are refused, its slots are free at once though its work goes on, and it may come back."""
    here, there = make(max_queue_size=5), make(max_queue_size=5)
    ours = await here.acquire()
    async with anyio.create_task_group() as tasks:
        crowd, others = Crowd(here, tasks), Crowd(there, tasks)
        await others.comes("theirs")
        await crowd.comes("waits")
        await here.aclose()
        await crowd.ended("waits")
        assert isinstance(crowd.errors["waits"], Closed)
        await others.granted("theirs")
        assert not ours.released
        await crowd.comes("again")
        ours.release()
        await peace(here, there)
        assert (there.in_flight, there.queued) == (1, 1)
        others.release("theirs")
        await crowd.ended("again")
        crowd.release("again")
    assert {process.slots for process in there.snapshot().processes} <= {0, 1}
    await is_empty(there)


async def test_work_that_outlives_the_goodbye_is_not_told_to_the_pool_again(make: Make) -> None:
    """The process has come back under a new name, to which that slot does not belong."""
    here, there = make(), make()
    ours = await here.acquire()
    await here.aclose()
    (await there.acquire()).release()
    await here.refresh()
    for _ in range(20):
        await here.refresh()
        await anyio.sleep(0.01)
    await peace(there)
    assert there.in_flight == 0
    ours.release()
    await is_empty(there)


async def test_every_start_has_a_name_of_its_own(make: Make) -> None:
    """So nothing that is said to an earlier one is heard by a later one."""
    controller = make()
    names = []
    for _ in range(3):
        (await controller.acquire()).release()
        await controller.refresh()
        names += [process.process for process in controller.snapshot().processes]
        await controller.aclose()
    assert len(set(names)) == len(names) == 3


class Learnt:
    """A limit that is what the test says."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> None:
        """Remember it."""
        self.samples.append(sample)


async def test_one_process_computes_the_limit_and_all_obey(make: Make) -> None:
    """The eldest; when it leaves, the next eldest does, which has been learning too."""
    limits = [Learnt(4), Learnt(4), Learnt(4)]
    controllers = []
    for limit in limits:
        controllers.append(make(max_concurrency=limit))
        await controllers[-1].refresh()
    for number, (limit, slots) in enumerate(zip(limits, (7, 6, 5), strict=True)):
        limit.slots = slots
        for controller in controllers[number:]:
            await controller.refresh()
            elected = [process for process in controller.snapshot().processes if process.elected]
            assert [process.own for process in elected] == [controller is controllers[number]]
            (await controller.acquire()).release()
            await peace(controller)
        for controller in controllers[number:]:
            await peace(controller)
            assert controller.limit == slots
        await controllers[number].aclose()
    assert [len(limit.samples) for limit in limits] == [1, 2, 3]


async def test_the_newest_rules_hold_for_all(make: Make) -> None:
    """A process that is started with others brings them along, and an elder one goes by them."""
    old = make(max_queue_size=0)
    held = await old.acquire()
    new = make(max_concurrency=2, max_queue_size=1)
    more = await new.acquire()
    await peace(old)
    assert (old.in_flight, old.limit) == (2, 2)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(old, tasks)
        await crowd.comes("waits")
        await crowd.comes("one too many")
        assert list(crowd.errors) == ["one too many"]
        held.release()
        await crowd.granted("waits")
        crowd.release("waits")
    more.release()
    await is_empty(old)


async def test_who_is_started_again_with_the_same_rules_undoes_no_resize(make: Make) -> None:
    """What was steered, or learnt, since the pool began is nobody's rules; other rules bring their own limit."""
    old = make()
    await old.refresh()
    old.resize(3)
    await peace(old)
    await make().refresh()
    await peace(old)
    assert old.limit == 3
    await make(max_concurrency=2).refresh()
    await peace(old)
    assert old.limit == 2


async def test_a_class_only_the_elder_rules_know_is_served_to_its_end(make: Make) -> None:
    """Who waits in it is not stranded by a newcomer's rules."""
    old = make(classes=[PriorityClass(name="a"), PriorityClass(name="b")])
    held = await old.acquire(priority="a")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(old, tasks)
        await crowd.comes("waits", priority="b")
        new = make(classes=[PriorityClass(name="only")])
        await new.refresh()
        await crowd.comes("comes later", priority="b")
        held.release()
        await crowd.ended("waits")
        crowd.release("waits")
        await crowd.ended("comes later")
        crowd.release("comes later")
    await is_empty(new)


async def test_pools_of_other_names_share_nothing(make: Make) -> None:
    """One server and namespace, several pools."""
    text, image = make(name="text"), make(name="image")
    held = await text.acquire()
    (await image.acquire(max_wait=0)).release()
    held.release()
    await is_empty(text)


# ---------------------------------------------------------------------- how it is used


async def test_acquire_nowait_says_what_to_use_instead(make: Make) -> None:
    """A shared pool cannot answer at this instant; nothing was asked of it."""
    controller = make()
    with pytest.raises(AdmissionError, match=r"await acquire\(max_wait=0\)"):
        controller.acquire_nowait()
    assert controller.snapshot().link is None
    async with controller.admit() as permit:
        assert permit.position == 0


async def test_it_can_be_asked_before_there_is_a_loop_of_its_own(any_redis_url: str, namespace: str) -> None:
    """A thread without an event loop asks for a snapshot and steers; what it said holds from the start."""

    def elsewhere() -> AdmissionController:
        pool = RedisPool(any_redis_url, namespace=namespace)
        controller = AdmissionController(backend=pool, max_concurrency=2)
        controller.resize(3)
        controller.pause("low")
        assert controller.snapshot().limit == 2
        return controller

    controller = await anyio.to_thread.run_sync(elsewhere)
    async with controller:
        await peace(controller)
        assert controller.limit == 3
        assert controller.snapshot().of("low").paused


async def test_refreshes_at_the_same_time_are_all_answered(make: Make) -> None:
    """They ask the same, and none of them waits for the others' answer in vain."""
    controller = make()
    async with controller.admit():
        with anyio.fail_after(4):  # Less than the time a call may take, after which each would give up.
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(controller.refresh)


def test_it_may_be_used_on_one_event_loop_after_the_other(any_redis_url: str, namespace: str) -> None:
    """After `aclose` nothing of the first loop is left; and a permit may come back when its loop is over."""
    controller = AdmissionController(
        backend=RedisPool(any_redis_url, namespace=namespace), max_concurrency=1, max_wait=None
    )

    async def use() -> None:
        async with controller.admit():
            await controller.refresh()
            assert controller.in_flight == 1
        await controller.aclose()
        nothing_goes_on()

    for _ in range(3):
        asyncio.run(use())

    async def hold() -> object:
        permit = await controller.acquire()
        await controller.aclose()
        return permit

    permit = asyncio.run(hold())
    permit.release()  # type: ignore[attr-defined]
    asyncio.run(use())


def test_threads_use_it_through_sync(any_redis_url: str, namespace: str) -> None:
    """With a loop of its own for the length of the block, after which it has left the pool."""
    controller = AdmissionController(
        backend=RedisPool(any_redis_url, namespace=namespace), max_concurrency=1, max_wait=None
    )
    for _ in range(2):
        with controller.sync() as pool:
            order: list[int] = []

            def work(number: int) -> None:
                with pool.admit(tenant=f"{number}"):
                    order.append(number)  # noqa: B023

            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert sorted(order) == list(range(8))
            with pytest.raises(NotRunning, match="blocking"):
                pool._run(lambda: _nested(pool))
        assert not [thread for thread in threading.enumerate() if thread.name == "admission-lease"]


async def _nested(pool: SyncController) -> None:
    pool.acquire()


async def test_threads_use_the_pool_of_a_running_loop(make: Make) -> None:
    """Calls cross over, and so do releases."""
    controller = make(max_queue_size=9)

    def work() -> None:
        with controller.sync() as pool, pool.admit():
            assert controller.in_flight == 1

    (await controller.acquire()).release()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(anyio.to_thread.run_sync, work)
    await is_empty(controller)


def test_on_trio_it_says_that_it_needs_asyncio(any_redis_url: str, namespace: str) -> None:
    """Each time, not only the first."""
    import trio

    async def use() -> None:
        controller = AdmissionController(backend=RedisPool(any_redis_url, namespace=namespace))
        for _ in range(2):
            with pytest.raises(NotRunning, match="needs asyncio"):
                await controller.acquire()
            with pytest.raises(NotRunning, match="needs asyncio"):
                async with controller:
                    raise AssertionError

    trio.run(use)


async def test_a_release_from_another_thread_frees_the_slot(make: Make) -> None:
    """Without `sync()`, from wherever the work ended."""
    controller = make()
    permit = await controller.acquire()
    await anyio.to_thread.run_sync(permit.release)
    (await controller.acquire()).release()
    await is_empty(controller)


@pytest.mark.parametrize("in_flight", [1, 20])
async def test_many_come_and_go_and_every_slot_comes_back(make: Make, in_flight: int) -> None:
    """Three processes, hundreds of requests, some of which give up: never more than the limit runs."""
    controllers = [make(max_concurrency=5, max_queue_size=0) for _ in range(3)]
    running = most = done = 0

    async def work(controller: AdmissionController, number: int) -> None:
        nonlocal running, most, done
        with anyio.move_on_after(0.0 if number % 7 == 3 else 30.0):
            async with controller.admit(tenant=f"{number % 4}", priority="high" if number % 2 else "low"):
                running += 1
                most = max(most, running)
                try:
                    await checkpoint()
                finally:
                    running -= 1
                    done += 1

    async def client(number: int) -> None:
        for turn in range(6):
            await work(controllers[(number + turn) % 3], number + turn)

    async with anyio.create_task_group() as tasks:
        for number in range(3 * in_flight):
            tasks.start_soon(client, number)
    assert most <= 5
    assert done > 3 * in_flight
    for controller in controllers:
        await is_empty(controller)


@pytest.mark.parametrize("turns", range(8))
async def test_observers_hear_once_of_who_left_on_the_way_in(make: Make, turns: int) -> None:
    """Evicted if there was no answer yet, else what the answer was and then its end; never both."""
    recording = RecordingObserver()
    controller = make(observers=(recording,))
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        tasks.start_soon(crowd._acquire, "leaves", {})
        await until(lambda: "leaves" in crowd.scopes)
        for _ in range(turns):
            await checkpoint()
        crowd.scopes["leaves"].cancel()
    for permit in crowd.permits.values():
        permit.release()
    await is_empty(controller)
    assert [type(event).__name__ for event in recording.events] in (["Evicted"], ["Granted", "Released"])
