"""What `AdmissionController` promises on every backend and every event loop. Nothing here takes time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import anyio
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
    current_permit,
    current_ticket,
)
from admission.backends.base import Backend
from admission.backends.memory import MemoryBackend
from admission.core import Core
from admission.types import DEFAULT_CLASSES

pytestmark = pytest.mark.anyio

Make = Callable[..., AdmissionController]


def memory(max_concurrency: int, max_queue_size: int) -> Backend:
    return MemoryBackend(
        Core(limit=FixedLimit(max_concurrency), classes=DEFAULT_CLASSES, max_queue_size=max_queue_size)
    )


@pytest.fixture(params=[pytest.param(memory, id="memory")])
def pool(request: pytest.FixtureRequest) -> Make:
    """A pool of one slot and a line of two, on each backend."""
    backend = request.param

    def make(max_concurrency: int = 1, max_queue_size: int = 2) -> AdmissionController:
        return AdmissionController(backend=backend(max_concurrency, max_queue_size), max_wait=None)

    return make


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
        await anyio.wait_all_tasks_blocked()

    async def _acquire(self, name: str, wishes: dict[str, object]) -> None:
        with anyio.CancelScope() as self.scopes[name]:
            try:
                self.permits[name] = await self.controller.acquire(**wishes)  # type: ignore[arg-type]
            except Exception as error:
                self.errors[name] = error


# ---------------------------------------------------------------------- slots


async def test_a_permit_is_given_at_once_while_slots_are_free(pool: Make) -> None:
    """And the snapshot counts it."""
    controller = pool(2)
    first, second = await controller.acquire(), await controller.acquire(tenant="acme", priority=Priority.HIGH)
    assert (controller.in_flight, controller.queued) == (2, 0)
    assert (second.position, second.waited, second.tenant, second.priority) == (0, 0.0, "acme", "high")
    first.release()
    second.release()
    assert controller.in_flight == 0
    assert controller.snapshot().of("high").granted_at_once == 1


async def test_who_waits_is_woken_in_order(pool: Make) -> None:
    """One release, one grant: nobody else is woken."""
    controller = pool()
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("first")
        await crowd.comes("second")
        assert (controller.in_flight, controller.queued, list(crowd.permits)) == (1, 2, [])
        held.release()
        await anyio.wait_all_tasks_blocked()
        assert list(crowd.permits) == ["first"]
        crowd.permits["first"].release()
        await anyio.wait_all_tasks_blocked()
        assert list(crowd.permits) == ["first", "second"]
        crowd.permits["second"].release()
    assert controller.in_flight == 0


async def test_a_slot_that_is_passed_on_is_never_free_in_between(pool: Make) -> None:
    """Held at the grant, not at the resumption: a newcomer in that very turn finds no slot."""
    controller = pool()
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("waiter")
        held.release()
        with pytest.raises(Rejected):
            controller.acquire_nowait()
        await anyio.wait_all_tasks_blocked()
        crowd.permits["waiter"].release()


async def test_admit_releases_however_its_block_ends(pool: Make) -> None:
    """By its end, by an error, by cancellation."""
    controller = pool()
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
    assert controller.in_flight == 0
    released = controller.snapshot().of("normal").released
    assert released == {Outcome.SUCCESS: 1, Outcome.DROPPED: 0, Outcome.IGNORED: 2}


async def test_a_permit_is_released_once_however_often_it_is_said(pool: Make) -> None:
    """A second release frees nobody else's slot."""
    controller = pool(2)
    first, second = await controller.acquire(), await controller.acquire()
    first.release()
    first.release()
    async with first:
        pass
    assert controller.in_flight == 1
    second.release()


# ---------------------------------------------------------------------- giving up


async def test_a_cancelled_waiter_gives_its_place_up(pool: Make) -> None:
    """Nothing of it is left in line."""
    controller = pool()
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("leaves")
        crowd.scopes["leaves"].cancel()
        await anyio.wait_all_tasks_blocked()
        assert controller.queued == 0
        assert not crowd.permits
        held.release()
    assert controller.in_flight == 0
    assert controller.snapshot().of("normal").evicted == {Reason.CANCELLED: 1}


async def test_a_waiter_cancelled_in_the_instant_of_its_grant_passes_its_slot_on(pool: Make) -> None:
    """Whichever comes first, in the same turn of the loop: the slot is neither lost nor doubled."""
    for cancel_first in (True, False):
        controller = pool()
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
            await anyio.wait_all_tasks_blocked()
            for permit in crowd.permits.values():
                permit.release()
            await anyio.wait_all_tasks_blocked()
            assert "next" in crowd.permits
            crowd.permits["next"].release()
        assert (controller.in_flight, controller.queued) == (0, 0)


async def test_now_or_never_does_not_wait(pool: Make) -> None:
    """`acquire_nowait` and `max_wait=0`."""
    controller = pool()
    permit = controller.acquire_nowait()
    with pytest.raises(Rejected) as now:
        controller.acquire_nowait()
    with pytest.raises(Rejected) as never:
        await controller.acquire(max_wait=0)
    assert now.value.reason is never.value.reason is Reason.BUSY
    permit.release()
    (await controller.acquire(max_wait=0)).release()


async def test_work_whose_deadline_has_passed_is_refused_even_when_a_slot_is_free(pool: Make) -> None:
    """Nobody wants its answer any more."""
    controller = pool()
    for max_wait in (None, 0, 5):
        with pytest.raises(Rejected) as caught:
            await controller.acquire(max_wait=max_wait, deadline=controller.now() - 1)
        assert caught.value.reason is Reason.HOPELESS


# ---------------------------------------------------------------------- refusals


async def test_a_full_line_refuses_with_data(pool: Make) -> None:
    """`QueueFull` is also asyncio's, and says why, where and when to come back."""
    controller = pool(max_queue_size=1)
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
        await anyio.wait_all_tasks_blocked()
        crowd.permits["waits"].release()


async def test_a_higher_class_pushes_a_lower_one_out_of_a_full_line(pool: Make) -> None:
    """The one that has to go hears of it at once."""
    controller = pool(max_queue_size=1)
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("low", priority="low")
        await crowd.comes("high", priority=Priority.HIGH)
        error = crowd.errors["low"]
        assert isinstance(error, Evicted)
        assert error.reason is Reason.PRIORITY
        held.release()
        await anyio.wait_all_tasks_blocked()
        crowd.permits["high"].release()


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
async def test_a_wish_out_of_range_is_named(pool: Make, wish: dict[str, object], named: str) -> None:
    """Option, value and range; and nothing has changed."""
    controller = pool()
    with pytest.raises(ValueError, match=named):
        await controller.acquire(**wish)  # type: ignore[arg-type]
    assert (controller.in_flight, controller.queued) == (0, 0)


# ---------------------------------------------------------------------- steering


async def test_resize_wakes_as_many_as_now_fit(pool: Make) -> None:
    """A lowered limit takes nothing from who runs."""
    controller = pool()
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("first")
        await crowd.comes("second")
        controller.resize(3)
        await anyio.wait_all_tasks_blocked()
        assert set(crowd.permits) == {"first", "second"}
        controller.resize(1)
        assert controller.in_flight == 3
        for permit in (held, *crowd.permits.values()):
            permit.release()
    assert controller.limit == 1


async def test_pause_holds_everyone_and_resume_wakes_them(pool: Make) -> None:
    """Of one class, or of all; and people can see why they wait."""
    controller = pool()
    controller.pause()
    controller.pause("low")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("normal")
        await crowd.comes("low", priority="low")
        status = controller.explain(controller.tickets()[0].id)
        assert status is not None
        assert status.held_back_by == "paused"
        controller.resume()
        await anyio.wait_all_tasks_blocked()
        crowd.permits["normal"].release()
        await anyio.wait_all_tasks_blocked()
        assert list(crowd.permits) == ["normal"]
        controller.resume("low")
        await anyio.wait_all_tasks_blocked()
        crowd.permits["low"].release()


async def test_drain_evicts_who_waits_and_waits_for_who_runs(pool: Make) -> None:
    """Newcomers are refused meanwhile."""
    controller = pool()
    held = await controller.acquire()
    drained: list[bool] = []
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("waits")

        async def drain() -> None:
            drained.append(await controller.drain())

        tasks.start_soon(drain)
        await anyio.wait_all_tasks_blocked()
        error = crowd.errors["waits"]
        assert isinstance(error, Closed)
        assert error.reason is Reason.EVICTED_DRAINING
        with pytest.raises(Closed):
            await controller.acquire()
        assert drained == []
        held.release()
    assert drained == [True]


async def test_drain_gives_up_when_its_grace_is_over(pool: Make) -> None:
    """With a grace of 0 it only asks."""
    controller = pool()
    held = await controller.acquire()
    assert await controller.drain(0) is False
    held.release()
    assert await controller.drain(0) is True


# ---------------------------------------------------------------------- looking


async def test_a_ticket_can_be_looked_up_while_it_waits_and_runs(pool: Make) -> None:
    """And no longer."""
    controller = pool()
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("normal")
        await crowd.comes("high", priority="high")
        first, second = controller.tickets()
        assert [first.priority, second.priority] == ["high", "normal"]
        assert (controller.position(held.id), controller.position(first.id), controller.position(second.id)) == (
            0,
            1,
            2,
        )
        for _ in range(2):
            for permit in [held, *crowd.permits.values()]:
                permit.release()
            await anyio.wait_all_tasks_blocked()
        crowd.permits["normal"].release()
    assert controller.position(first.id) is None
    assert controller.position("no such ticket") is None
    assert controller.explain(first.id) is None


async def test_the_ticket_is_known_inside_its_block_and_a_nested_one_takes_no_slot(pool: Make) -> None:
    """At limit 1 a second slot would be a deadlock."""
    controller = pool()
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
        assert controller.in_flight == 0
    assert current_ticket() is None


async def test_another_pool_inside_a_permit_takes_its_own_slot(pool: Make) -> None:
    """Only pools of the same name share."""
    controller, other = pool(), AdmissionController(name="other", max_concurrency=1)
    async with controller.admit(), other.admit() as inner:
        assert not inner.nested
        assert (controller.in_flight, other.in_flight) == (1, 1)
        assert current_permit("default") is not None
    assert other.in_flight == 0


async def test_what_work_really_cost_is_settled_at_its_end(pool: Make) -> None:
    """A tenant that underestimates goes behind the others afterwards."""
    controller = pool()
    held = await controller.acquire(tenant="cheat", cost=1)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("honest", tenant="honest", cost=1)
        held.release(actual_cost=1000)
        await anyio.wait_all_tasks_blocked()
        await crowd.comes("cheat", tenant="cheat")
        await crowd.comes("honest again", tenant="honest")
        crowd.permits["honest"].release()
        await anyio.wait_all_tasks_blocked()
        assert list(crowd.permits) == ["honest", "honest again"]
        crowd.permits["honest again"].release()
        await anyio.wait_all_tasks_blocked()
        crowd.permits["cheat"].release()


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
