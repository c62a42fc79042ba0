"""What `AdmissionController` promises on every backend and every event loop. Nothing here takes time.

`PoolContract` awaits what is to happen, so that it holds for a pool that answers later as well: the tests of the Redis
backend run it there. What can be said at once of a pool in this process stands below it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import anyio
import anyio.abc
import pytest
from anyio.lowlevel import checkpoint

from admission import (
    AdmissionController,
    Closed,
    Evicted,
    FixedLimit,
    Outcome,
    Permit,
    Priority,
    PriorityClass,
    QueueFull,
    Reason,
    Rejected,
    Sample,
    WaitTimeout,
    current_permit,
    current_ticket,
)
from admission.backends.memory import MemoryBackend
from admission.core import Core
from admission.events import Evicted as EvictedEvent
from admission.events import Granted, Queued, Released
from admission.events import Rejected as RejectedEvent
from admission.testing import RecordingObserver
from admission.types import DEFAULT_CLASSES

pytestmark = pytest.mark.anyio

Make = Callable[..., AdmissionController]

PATIENCE = 30.0
"""Seconds after which something that must happen is taken not to. Nothing is timed."""

TURNS = 20
"""Questions a shared pool is asked until its answer must be right: far fewer than would find what heals by itself."""


async def until(happened: Callable[[], object]) -> None:
    """Return once *happened()* is true."""
    with anyio.fail_after(PATIENCE):
        while not happened():  # noqa: ASYNC110 - what happens is told to nobody the test knows.
            await anyio.sleep(0.002)


async def peace(*controllers: AdmissionController) -> None:
    """Return when whatever was asked for before has been done, and whoever was woken by it has run."""
    for controller in controllers:
        await controller.refresh()
    for _ in range(5):
        await checkpoint()


class Crowd:
    """Tasks that acquire, and what became of each, by name."""

    def __init__(self, controller: AdmissionController, tasks: anyio.abc.TaskGroup) -> None:
        self.controller = controller
        self.tasks = tasks
        self.permits: dict[str, Permit] = {}

        self.errors: dict[str, Exception] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def comes(self, name: str, **wishes: object) -> None:
        """Somebody acquires; on return it waits, has a permit, or was refused."""
        self.tasks.start_soon(self._acquire, name, wishes)
        await until(lambda: name in self.scopes)
        await self.are_answered()

    async def are_answered(self) -> None:
        """Return when of nobody it is still unknown whether it must wait."""
        await until(lambda: all(ticket.position for ticket in self.controller.tickets()))
        await peace(self.controller)

    async def ended(self, *names: str) -> None:
        """Return when these have a permit or were refused."""
        await until(lambda: all(name in self.permits or name in self.errors for name in names))

    async def granted(self, *names: str) -> None:
        """Return when these have a permit; nobody else may have got one on the way."""
        await until(lambda: set(names) <= set(self.permits))
        await peace(self.controller)
        assert set(self.permits) == set(names)

    def release(self, *names: str) -> None:
        """Some of them give their slots back."""
        for name in names:
            self.permits[name].release()

    async def _acquire(self, name: str, wishes: dict[str, object]) -> None:
        with anyio.CancelScope() as self.scopes[name]:
            try:
                self.permits[name] = await self.controller.acquire(**wishes)  # type: ignore[arg-type]
            except Exception as error:
                self.errors[name] = error


async def is_empty(controller: AdmissionController) -> None:
    """Nothing runs or waits in the pool, once what was asked for has been done and what follows from that, too."""
    for _ in range(TURNS):
        await peace(controller)
        if (controller.in_flight, controller.queued) == (0, 0):
            return
    assert (controller.in_flight, controller.queued) == (0, 0)


class PoolContract:
    """The promises. A subclass in a module of its own says, by the fixture `make`, where the pool is."""

    @pytest.fixture
    def make(self) -> Make:
        """Makes controllers of one pool, by default of one slot, a line of two, and no end of waiting."""
        raise NotImplementedError

    # ------------------------------------------------------------------ slots

    async def test_a_permit_is_given_at_once_while_slots_are_free(self, make: Make) -> None:
        """And the snapshot counts it."""
        controller = make(max_concurrency=2)
        first, second = await controller.acquire(), await controller.acquire(tenant="acme", priority=Priority.HIGH)
        assert (controller.in_flight, controller.queued) == (2, 0)
        assert (second.position, second.waited, second.tenant, second.priority) == (0, second.waited, "acme", "high")
        first.release()
        second.release()
        await is_empty(controller)
        assert controller.snapshot().of("high").granted_at_once == 1

    async def test_who_waits_is_woken_in_order(self, make: Make) -> None:
        """One release, one grant: nobody else is woken."""
        controller = make()
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("first")
            await crowd.comes("second")
            assert (controller.in_flight, controller.queued, list(crowd.permits)) == (1, 2, [])
            held.release()
            await crowd.granted("first")
            crowd.release("first")
            await crowd.granted("first", "second")
            crowd.release("second")
        await is_empty(controller)

    async def test_admit_releases_however_its_block_ends(self, make: Make) -> None:
        """By its end, by an error, by cancellation."""
        controller = make()
        async with controller.admit() as permit:
            assert controller.in_flight == 1
        assert permit.released
        with pytest.raises(KeyError):
            async with controller.admit():
                raise KeyError
        with anyio.CancelScope() as scope:
            async with controller.admit():
                scope.cancel()
                await checkpoint()
        await is_empty(controller)
        released = controller.snapshot().of("normal").released
        assert released == {Outcome.SUCCESS: 1, Outcome.DROPPED: 0, Outcome.IGNORED: 2}

    async def test_a_permit_is_released_once_however_often_it_is_said(self, make: Make) -> None:
        """A second release frees nobody else's slot."""
        controller = make(max_concurrency=2)
        first, second = await controller.acquire(), await controller.acquire()
        first.release()
        first.release()
        async with first:
            pass
        await peace(controller)
        assert controller.in_flight == 1
        second.release()

    async def test_a_wide_ticket_takes_its_slots_and_is_not_overtaken(self, make: Make) -> None:
        """A head that needs more than is free stops the line; one wider than the limit runs when it is alone."""
        controller = make(max_concurrency=3, max_queue_size=5)
        held = await controller.acquire(slots=2)
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("wide", slots=2)
            await crowd.comes("narrow")
            await crowd.comes("widest", slots=9)
            assert controller.in_flight == 2
            held.release()
            await crowd.granted("wide", "narrow")
            crowd.release("wide")
            await peace(controller)
            assert set(crowd.permits) == {"wide", "narrow"}
            crowd.release("narrow")
            await crowd.granted("wide", "narrow", "widest")
            crowd.release("widest")
        await is_empty(controller)

    # ------------------------------------------------------------------ order

    async def test_the_higher_class_goes_first(self, make: Make) -> None:
        """Whoever came first."""
        controller = make(max_queue_size=4)
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            for name in ("low", "normal", "high", "critical"):
                await crowd.comes(name, priority=name)
            held.release()
            order = ["critical", "high", "normal", "low"]
            for number, name in enumerate(order):
                await crowd.granted(*order[: number + 1])
                crowd.release(name)
        await is_empty(controller)

    async def test_a_guaranteed_share_is_kept_at_limit_one(self, make: Make) -> None:
        """Every fifth start is the lower class's, however many of the higher one wait."""
        classes = (PriorityClass(name="high", guaranteed=0.8), PriorityClass(name="low", guaranteed=0.2))
        controller = make(max_queue_size=0, classes=classes)
        held = await controller.acquire(priority="high")
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            for number in range(12):
                await crowd.comes(f"high {number}", priority="high")
            for number in range(3):
                await crowd.comes(f"low {number}", priority="low")
            held.release()
            for number in range(15):
                await until(lambda: len(crowd.permits) > number)  # noqa: B023
                crowd.release(list(crowd.permits)[number])
            assert sum(name.startswith("low") for name in list(crowd.permits)[:12]) == 2
        await is_empty(controller)

    async def test_a_ceiling_keeps_headroom_for_the_higher_class(self, make: Make) -> None:
        """The lower one waits although slots are free, and is told why; what is wider than its ceiling is refused."""
        classes = (PriorityClass(name="high"), PriorityClass(name="low", ceiling=0.5))
        controller = make(max_concurrency=2, classes=classes)
        held = await controller.acquire(priority="low")
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("low", priority="low")
            status = await controller.look_up(controller.tickets()[0].id)
            assert status is not None
            assert status.held_back_by == "class-ceiling"
            (await controller.acquire(priority="high", max_wait=0)).release()
            with pytest.raises(Rejected) as wide:
                await controller.acquire(priority="low", slots=2)
            assert wide.value.reason is Reason.TOO_WIDE
            assert wide.value.retry_after is None
            held.release()
            await crowd.granted("low")
            crowd.release("low")
        await is_empty(controller)

    async def test_an_overdue_class_goes_before_every_other(self, make: Make) -> None:
        """Aging: with a delay of 0 the oldest waiter is always due."""
        classes = (PriorityClass(name="high"), PriorityClass(name="low", max_delay=0.0))
        controller = make(classes=classes)
        held = await controller.acquire(priority="high")
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("high", priority="high")
            await crowd.comes("low", priority="low")
            held.release()
            await crowd.granted("low")
            crowd.release("low")
            await crowd.granted("low", "high")
            crowd.release("high")
        await is_empty(controller)

    async def test_a_start_rate_lets_in_by_time_alone(self, make: Make) -> None:
        """The bucket is empty after one start; the next one comes without anybody's doing."""
        controller = make(max_concurrency=4, classes=(PriorityClass(name="paced", rate=20.0, burst=1),))
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("first")
            with pytest.raises(Rejected):
                await controller.acquire(max_wait=0)
            for name in ("second", "third"):
                tasks.start_soon(crowd._acquire, name, {})
            await crowd.granted("first", "second", "third")
            crowd.release("first", "second", "third")
        await is_empty(controller)

    async def test_an_exempt_class_is_held_back_by_nothing(self, make: Make) -> None:
        """It is counted all the same."""
        controller = make(classes=(PriorityClass(name="probe", exempt=True), PriorityClass(name="normal")))
        held = await controller.acquire()
        probe = await controller.acquire(priority="probe")
        assert controller.in_flight == 2
        probe.release()
        held.release()
        await is_empty(controller)

    async def test_tenants_take_turns(self, make: Make) -> None:
        """Three of one tenant do not stand before the first of another."""
        controller = make(max_queue_size=9)
        held = await controller.acquire(tenant="third")
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            for number in range(3):
                await crowd.comes(f"flood {number}", tenant="flood")
            await crowd.comes("modest", tenant="modest")
            held.release()
            order = ["flood 0", "modest", "flood 1", "flood 2"]
            for number, name in enumerate(order):
                await crowd.granted(*order[: number + 1])
                crowd.release(name)
        await is_empty(controller)

    async def test_what_work_really_cost_is_settled_at_its_end(self, make: Make) -> None:
        """A tenant that underestimates goes behind the others afterwards."""
        controller = make()
        held = await controller.acquire(tenant="cheat", cost=1)
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("honest", tenant="honest", cost=1)
            held.release(actual_cost=1000)
            await crowd.granted("honest")
            await crowd.comes("cheat", tenant="cheat")
            await crowd.comes("honest again", tenant="honest")
            crowd.release("honest")
            await crowd.granted("honest", "honest again")
            crowd.release("honest again")
            await crowd.granted("honest", "honest again", "cheat")
            crowd.release("cheat")
        await is_empty(controller)

    # ------------------------------------------------------------------ giving up

    async def test_a_cancelled_waiter_gives_its_place_up(self, make: Make) -> None:
        """Nothing of it is left in line."""
        controller = make()
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("leaves")
            crowd.scopes["leaves"].cancel()
            await until(lambda: not controller.tickets())
            await peace(controller)
            assert controller.queued == 0
            assert not crowd.permits
            held.release()
        await is_empty(controller)
        assert controller.snapshot().of("normal").evicted == {Reason.CANCELLED: 1}

    @pytest.mark.parametrize("turns", range(6))
    async def test_who_is_cancelled_on_the_way_in_leaves_nothing_behind(self, make: Make, turns: int) -> None:
        """Before the question left, while it is under way, or when it is answered: the slot is free in the end."""
        controller = make()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            tasks.start_soon(crowd._acquire, "leaves", {})
            await until(lambda: "leaves" in crowd.scopes)
            for _ in range(turns):
                await checkpoint()
            crowd.scopes["leaves"].cancel()
        if "leaves" in crowd.permits:
            crowd.release("leaves")
        (await controller.acquire()).release()
        await is_empty(controller)

    @pytest.mark.parametrize("cancel_first", [True, False])
    async def test_a_waiter_cancelled_in_the_instant_of_its_grant_passes_its_slot_on(
        self, make: Make, cancel_first: bool
    ) -> None:
        """Whichever comes first, in the same turn of the loop: the slot is neither lost nor doubled."""
        controller = make()
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("leaves")
            await crowd.comes("next")
            if cancel_first:
                crowd.scopes["leaves"].cancel()
                held.release()
            else:
                held.release()
                crowd.scopes["leaves"].cancel()
            await until(lambda: crowd.permits)
            if "leaves" in crowd.permits:
                crowd.release("leaves")
            await crowd.ended("next")
            crowd.release("next")
        await is_empty(controller)

    @pytest.mark.parametrize("turns", range(0, 40, 4))
    async def test_whoever_is_cancelled_around_its_grant_passes_its_slot_on(self, make: Make, turns: int) -> None:
        """So many turns of the loop after the release that lets it in, whether it has heard of that or not."""
        controller = make()
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("leaves")
            await crowd.comes("next")
            held.release()
            for _ in range(turns):
                await checkpoint()
            crowd.scopes["leaves"].cancel()
            for _ in range(3):
                await checkpoint()
            if "leaves" in crowd.permits:
                crowd.release("leaves")
            await crowd.ended("next")
            crowd.release("next")
        await is_empty(controller)

    async def test_now_or_never_does_not_wait(self, make: Make) -> None:
        """With `max_wait=0`."""
        controller = make()
        permit = await controller.acquire(max_wait=0)
        with pytest.raises(Rejected) as never:
            await controller.acquire(max_wait=0)
        assert never.value.reason is Reason.BUSY
        permit.release()
        (await controller.acquire(max_wait=0)).release()
        await is_empty(controller)

    async def test_waiting_ends_with_max_wait_and_with_the_deadline(self, make: Make) -> None:
        """`WaitTimeout` is also a `TimeoutError`, and says which of the two it was."""
        controller = make()
        held = await controller.acquire()
        with pytest.raises(WaitTimeout) as waited:
            await controller.acquire(max_wait=0.05)
        with pytest.raises(WaitTimeout) as late:
            await controller.acquire(deadline=controller.now() + 0.05)
        assert isinstance(waited.value, TimeoutError)
        assert (waited.value.reason, late.value.reason) == (Reason.TIMEOUT, Reason.DEADLINE)
        held.release()
        await is_empty(controller)

    async def test_work_whose_deadline_has_passed_is_refused_even_when_a_slot_is_free(self, make: Make) -> None:
        """Nobody wants its answer any more."""
        controller = make()
        for max_wait in (None, 0, 5):
            with pytest.raises(Rejected) as caught:
                await controller.acquire(max_wait=max_wait, deadline=controller.now() - 1)
            assert caught.value.reason is Reason.HOPELESS

    # ------------------------------------------------------------------ refusals

    async def test_a_full_line_refuses_with_data(self, make: Make) -> None:
        """`QueueFull` is also asyncio's, and says why, where and when to come back."""
        controller = make(max_queue_size=1)
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("waits")
            with pytest.raises(QueueFull) as caught:
                await controller.acquire()
            assert isinstance(caught.value, asyncio.QueueFull)
            assert (caught.value.reason, caught.value.position) == (Reason.QUEUE_FULL, 2)
            assert caught.value.retry_after is not None
            assert 1 <= caught.value.retry_after <= 30
            held.release()
            await crowd.granted("waits")
            crowd.release("waits")
        await is_empty(controller)

    async def test_a_tenant_has_only_so_many_waiters(self, make: Make) -> None:
        """The others find room."""
        controller = make(max_queue_size=9, max_queued_per_tenant=1)
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("first", tenant="acme")
            await crowd.comes("second", tenant="acme")
            await crowd.comes("other", tenant="other")
            error = crowd.errors["second"]
            assert isinstance(error, QueueFull)
            assert error.reason is Reason.TENANT_FULL
            held.release()
            await crowd.granted("first")
            crowd.release("first")
            await crowd.granted("first", "other")
            crowd.release("other")
        await is_empty(controller)

    async def test_a_higher_class_pushes_a_lower_one_out_of_a_full_line(self, make: Make) -> None:
        """The one that has to go hears of it."""
        controller = make(max_queue_size=1)
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("low", priority="low")
            await crowd.comes("high", priority=Priority.HIGH)
            await crowd.ended("low")
            error = crowd.errors["low"]
            assert isinstance(error, Evicted)
            assert error.reason is Reason.PRIORITY
            held.release()
            await crowd.granted("high")
            crowd.release("high")
        await is_empty(controller)

    async def test_a_modest_tenant_pushes_the_flooder_out_of_a_full_line(self, make: Make) -> None:
        """Within a class the tenant with more waiters gives way."""
        controller = make(max_queue_size=2)
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("flood 1", tenant="flood")
            await crowd.comes("flood 2", tenant="flood")
            await crowd.comes("modest", tenant="modest")
            await crowd.ended("flood 2")
            error = crowd.errors["flood 2"]
            assert isinstance(error, Evicted)
            assert error.reason is Reason.FAIRNESS
            held.release()
            await crowd.granted("flood 1")
            crowd.release("flood 1")
            await crowd.granted("flood 1", "modest")
            crowd.release("modest")
        await is_empty(controller)

    async def test_in_block_mode_callers_wait_for_room_in_the_line(self, make: Make) -> None:
        """In the order of the line; the lobby has a bound of its own."""
        controller = make(max_queue_size=1, backpressure_mode="block", max_lobby_size=1)
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("line")
            await crowd.comes("lobby")
            with pytest.raises(QueueFull):
                await controller.acquire()
            snapshot = controller.snapshot()
            assert (snapshot.queued, snapshot.lobby) == (1, 1)
            held.release()
            await crowd.granted("line")
            await crowd.comes("second in lobby")
            crowd.release("line")
            await crowd.granted("line", "lobby")
            crowd.release("lobby")
            await crowd.granted("line", "lobby", "second in lobby")
            crowd.release("second in lobby")
        await is_empty(controller)

    @pytest.mark.parametrize(
        ("wish", "named"),
        [
            ({"priority": "urgent"}, "critical, high, normal, low"),
            ({"slots": 0}, "slots is 0"),
            ({"slots": 1.5}, "slots is 1.5"),
            ({"cost": -1}, "cost is -1"),
            ({"cost": math.nan}, "cost is nan"),
            ({"cost": math.inf}, "cost is inf"),
            ({"max_wait": -1}, "max_wait is -1"),
            ({"max_wait": math.nan}, "max_wait is nan"),
            ({"tenant": "x" * 129}, "at most 128"),
        ],
    )
    async def test_a_wish_out_of_range_is_named(self, make: Make, wish: dict[str, object], named: str) -> None:
        """Option, value and range; and nothing has changed."""
        controller = make()
        with pytest.raises(ValueError, match=named):
            await controller.acquire(**wish)  # type: ignore[arg-type]
        await is_empty(controller)

    # ------------------------------------------------------------------ steering

    async def test_resize_wakes_as_many_as_now_fit(self, make: Make) -> None:
        """A lowered limit takes nothing from who runs."""
        controller = make()
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("first")
            await crowd.comes("second")
            controller.resize(3)
            await crowd.granted("first", "second")
            controller.resize(1)
            await until(lambda: controller.limit == 1)
            assert controller.in_flight == 3
            held.release()
            crowd.release("first", "second")
        await is_empty(controller)
        assert controller.limit == 1

    async def test_pause_holds_everyone_and_resume_wakes_them(self, make: Make) -> None:
        """Of one class, or of all; and people can see why they wait."""
        controller = make()
        controller.pause()
        controller.pause("low")
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("normal")
            await crowd.comes("low", priority="low")
            status = await controller.look_up(controller.tickets()[0].id)
            assert status is not None
            assert status.held_back_by == "paused"
            assert controller.snapshot().paused
            controller.resume()
            await crowd.granted("normal")
            crowd.release("normal")
            await peace(controller)
            assert list(crowd.permits) == ["normal"]
            assert controller.snapshot().of("low").paused
            controller.resume("low")
            await crowd.granted("normal", "low")
            crowd.release("low")
        await is_empty(controller)

    async def test_of_pause_and_resume_the_last_word_counts(self, make: Make) -> None:
        """However fast they follow each other."""
        controller = make()
        for _ in range(3):
            controller.pause()
            controller.resume()
            await checkpoint()
        controller.pause()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("waits")
            assert not crowd.permits
            controller.resume()
            controller.pause()
            controller.resume()
            await crowd.granted("waits")
            crowd.release("waits")
        await is_empty(controller)

    async def test_drain_evicts_who_waits_and_waits_for_who_runs(self, make: Make) -> None:
        """Newcomers are refused meanwhile; afterwards it may be opened again."""
        controller = make()
        held = await controller.acquire()
        drained: list[bool] = []
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("waits")

            async def drain() -> None:
                drained.append(await controller.drain())

            tasks.start_soon(drain)
            await crowd.ended("waits")
            error = crowd.errors["waits"]
            assert isinstance(error, Closed)
            assert error.reason is Reason.EVICTED_DRAINING
            with pytest.raises(Closed):
                await controller.acquire()
            assert drained == []
            held.release()
        assert drained == [True]
        controller.reopen()
        (await controller.acquire()).release()
        await is_empty(controller)

    async def test_drain_gives_up_when_its_grace_is_over(self, make: Make) -> None:
        """With a grace of 0 it only asks."""
        controller = make()
        held = await controller.acquire()
        assert await controller.drain(0) is False
        held.release()
        assert await controller.drain(0) is True
        await is_empty(controller)

    # ------------------------------------------------------------------ looking

    async def test_a_ticket_can_be_looked_up_while_it_waits_and_runs(self, make: Make) -> None:
        """And no longer."""
        controller = make()
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("normal")
            await crowd.comes("high", priority="high")
            first, second = controller.tickets()
            assert [first.priority, second.priority] == ["high", "normal"]
            places = [await controller.look_up(id) for id in (held.id, first.id, second.id)]
            assert [place and place.position for place in places] == [0, 1, 2]
            assert [place and place.held_back_by for place in places] == ["nothing", "pool-limit", "higher-class"]
            assert controller.position(second.id) == 2
            held.release()
            await crowd.granted("high")
            crowd.release("high")
            await crowd.granted("high", "normal")
            crowd.release("normal")
        assert controller.position(first.id) is None
        assert controller.position("no such ticket") is None
        assert controller.explain(first.id) is None
        assert await controller.look_up(first.id) is None
        await is_empty(controller)

    async def test_a_wait_is_predicted_once_a_rate_is_known(self, make: Make) -> None:
        """The further behind, the longer; and a newcomer is told when to come back."""
        controller = make(max_queue_size=9)
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            for number in range(6):
                await crowd.comes(f"{number}")
            entry = controller.tickets()[0]
            held.release()
            for number in range(3):
                await crowd.ended(f"{number}")
                crowd.release(f"{number}")
            await crowd.ended("3")
            await peace(controller)
            waits = []
            for ticket in controller.tickets():
                status = await controller.look_up(ticket.id)
                assert status is not None
                waits.append(status.predicted_wait)
            assert controller.position(entry.id) is None
            assert None not in waits
            assert 0 < waits[0] <= waits[1]  # type: ignore[operator]
            newcomer = controller.snapshot().of("normal").predicted_wait
            assert newcomer is not None
            assert newcomer > 0
            for number in range(3, 6):
                await crowd.ended(f"{number}")
                crowd.release(f"{number}")
        await is_empty(controller)

    async def test_the_ticket_is_known_inside_its_block_and_a_nested_one_takes_no_slot(self, make: Make) -> None:
        """At limit 1 a second slot would be a deadlock."""
        controller = make()
        assert current_ticket() is None
        async with controller.admit(tenant="acme") as outer:
            ticket = current_ticket()
            assert ticket is not None
            assert (ticket.tenant, ticket.id) == ("acme", outer.id)
            async with controller.admit() as inner:
                assert inner.nested
                assert controller.in_flight == 1
            assert not outer.released, "the nested one gave back what it does not hold"
            permit = current_permit()
            assert permit is not None
            permit.release(actual_cost=17)
            await is_empty(controller)
        assert current_ticket() is None

    async def test_another_pool_inside_a_permit_takes_its_own_slot(self, make: Make) -> None:
        """Only pools of the same name share."""
        controller, other = make(), AdmissionController(name="other", max_concurrency=1)
        async with controller.admit(), other.admit() as inner:
            assert not inner.nested
            assert (controller.in_flight, other.in_flight) == (1, 1)
            assert current_permit("default") is not None
        assert other.in_flight == 0
        await is_empty(controller)

    # ------------------------------------------------------------------ telling

    async def test_observers_hear_of_everything_once_and_in_order(self, make: Make) -> None:
        """Of each ticket how it came in, what became of it, and its end; of one that left on the way in, that."""
        recording = RecordingObserver()
        controller = make(max_queue_size=2, observers=(recording,))
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("at once", tenant="at once")
            await crowd.comes("waits", tenant="waits")
            await crowd.comes("pushed out", tenant="pushed out", priority="low")
            await crowd.comes("pushes", tenant="pushes", priority="high")
            await crowd.ended("pushed out")
            await crowd.comes("leaves", tenant="leaves", priority="critical")
            await crowd.ended("waits")
            await crowd.comes("refused", tenant="refused")
            await crowd.ended("refused")
            crowd.scopes["leaves"].cancel()
            await until(lambda: len(controller.tickets()) == 1)
            crowd.release("at once")
            await crowd.granted("at once", "pushes")
            crowd.release("pushes")
        await is_empty(controller)
        told = [
            (type(event).__name__, event.ticket.tenant)
            for event in recording.events
            if isinstance(event, Queued | Granted | Released | EvictedEvent | RejectedEvent)
        ]
        assert [kind for kind, tenant in told if tenant == "at once"] == ["Granted", "Released"]
        assert [kind for kind, tenant in told if tenant == "pushes"] == ["Queued", "Granted", "Released"]
        for tenant in ("waits", "pushed out", "leaves"):
            assert [kind for kind, whose in told if whose == tenant] == ["Queued", "Evicted"]
        assert [kind for kind, tenant in told if tenant == "refused"] == ["Rejected"]
        assert [event.reason for event in recording.of(EvictedEvent)] == [
            Reason.PRIORITY,
            Reason.PRIORITY,
            Reason.CANCELLED,
        ]
        assert [event.position for event in recording.of(Queued)] == [1, 2, 1, 1]
        assert told.index(("Released", "at once")) < told.index(("Granted", "pushes"))

    async def test_observers_hear_of_the_lobby(self, make: Make) -> None:
        """Who stood there was queued, whatever became of it."""
        recording = RecordingObserver()
        controller = make(max_queue_size=1, backpressure_mode="block", observers=(recording,))
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(controller, tasks)
            await crowd.comes("runs", tenant="runs")
            await crowd.comes("line", tenant="line")
            await crowd.comes("enters", tenant="enters")
            await crowd.comes("leaves", tenant="leaves")
            crowd.scopes["leaves"].cancel()
            await until(lambda: len(controller.tickets()) == 2)
            for done, names in (("runs", ["line"]), ("line", ["line", "enters"])):
                crowd.release(done)
                await crowd.granted("runs", *names)
            crowd.release("enters")
        await is_empty(controller)
        events = [e for e in recording.events if isinstance(e, Queued | Granted | Released | EvictedEvent)]
        told = {
            tenant: [type(event).__name__ for event in events if event.ticket.tenant == tenant]
            for tenant in ("runs", "line", "enters", "leaves")
        }
        assert told == {
            "runs": ["Granted", "Released"],
            "line": ["Queued", "Granted", "Released"],
            "enters": ["Queued", "Granted", "Released"],
            "leaves": ["Queued", "Evicted"],
        }


class TestPoolInMemory(PoolContract):
    """All of it in this process, on asyncio, uvloop and trio."""

    @pytest.fixture
    def make(self) -> Make:
        """Each call makes a pool of its own."""

        def make(max_concurrency: int = 1, max_queue_size: int = 2, **options: object) -> AdmissionController:
            return AdmissionController(
                max_concurrency=max_concurrency,
                max_queue_size=max_queue_size,
                max_wait=None,
                **options,  # type: ignore[arg-type]
            )

        return make


# ---------------------------------------------------------------------- what can be said at once


async def test_a_pool_may_be_given_as_a_backend() -> None:
    """Its limit and line are then the backend's."""
    core = Core(limit=FixedLimit(1), classes=DEFAULT_CLASSES, max_queue_size=2)
    controller = AdmissionController(backend=MemoryBackend(core), max_wait=None)
    async with controller.admit():
        assert (controller.in_flight, controller.limit) == (1, 1)


async def test_a_slot_that_is_passed_on_is_never_free_in_between() -> None:
    """Held at the grant, not at the resumption: a newcomer in that very turn finds no slot."""
    controller = AdmissionController(max_concurrency=1, max_wait=None)
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("waiter")
        held.release()
        with pytest.raises(Rejected):
            controller.acquire_nowait()
        await crowd.granted("waiter")
        crowd.release("waiter")


async def test_acquire_nowait_answers_at_this_instant() -> None:
    """With a permit or a refusal."""
    controller = AdmissionController(max_concurrency=1)
    permit = controller.acquire_nowait()
    with pytest.raises(Rejected) as now:
        controller.acquire_nowait()
    assert now.value.reason is Reason.BUSY
    permit.release()


async def test_a_stream_teaches_its_time_to_the_first_byte() -> None:
    """The rest of it is the reader's pace, and says nothing about the server."""

    class Noting:
        slots = 4

        def __init__(self) -> None:
            self.samples: list[Sample] = []

        def observe(self, sample: Sample) -> None:
            self.samples.append(sample)

    limit = Noting()
    controller = AdmissionController(max_concurrency=limit)
    permit = await controller.acquire()
    permit.first_byte()
    first_byte_after = controller.now() - permit.entry.granted_at
    permit.release()
    assert limit.samples[0].rtt <= first_byte_after
    assert limit.samples[0].outcome is Outcome.SUCCESS


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_concurrency", 0),
        ("max_queue_size", -1),
        ("max_wait", -1),
        ("max_lobby_size", -1),
        ("max_queued_per_tenant", 0),
        ("retry_after", 0.5),
        ("backpressure_mode", "drop"),
        ("classes", []),
        ("classes", [PriorityClass(name="a"), PriorityClass(name="a")]),
        ("classes", [PriorityClass(name="a", guaranteed=0.6), PriorityClass(name="b", guaranteed=0.6)]),
        ("name", ""),
    ],
)
async def test_an_option_out_of_range_is_named(option: str, value: object) -> None:
    """At construction, not at the first request."""
    with pytest.raises(ValueError, match=option):
        AdmissionController(**{option: value})  # type: ignore[arg-type]
