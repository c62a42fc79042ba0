"""What a task inherits from whoever submitted it: context variables, ticket, class, tenant, and the slot."""

from __future__ import annotations

from contextvars import ContextVar

import anyio
import anyio.lowlevel
import pytest
from gates import Gate, at_rest, settle

from admission.controller import AdmissionController
from admission.errors import Closed
from admission.executor import QueuedExecutor
from admission.permit import current_permit, current_ticket
from admission.policy.retry import Retry
from admission.types import PriorityClass

pytestmark = pytest.mark.anyio

trace: ContextVar[str] = ContextVar("trace", default="none")


async def read():
    """The trace as a coroutine sees it, before and after it waited."""
    before = trace.get()
    await anyio.lowlevel.checkpoint()
    return before, trace.get()


def read_in_thread():
    """The trace as a thread sees it."""
    return trace.get(), trace.get()


async def ticket():
    """The ticket it runs under."""
    await anyio.lowlevel.checkpoint()
    return current_ticket()


@pytest.mark.parametrize("task", [read, read_in_thread])
async def test_context_variables_reach_the_task_as_they_were_at_submit(task, gate: Gate):
    """However long it waited in line, and whatever its worker ran before."""
    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        await executor.submit(gate)
        trace.set("first")
        first = await executor.submit(task)
        trace.set("second")
        second = await executor.submit(task)
        gate.open()
        assert await first == ("first", "first")
        assert await second == ("second", "second")
        trace.set("none")


async def test_what_a_task_sets_stays_inside_it():
    """Neither the submitter nor the next task sees it."""

    async def taint(late):
        if late:
            await anyio.lowlevel.checkpoint()
        trace.set("tainted")
        return trace.get()

    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        await executor.execute(read)
        for late in (False, True):
            assert await executor.execute(taint, late) == "tainted"
            assert trace.get() == "none"
            assert await executor.execute(read) == ("none", "none")


async def test_a_retry_starts_from_the_submitters_context():
    """Not from what the failed attempt left."""
    seen = []

    async def fail_once():
        seen.append(trace.get())
        trace.set("from the first attempt")
        if len(seen) == 1:
            raise OSError("again")

    executor = QueuedExecutor()
    async with executor.lifespan():
        await executor.execute(fail_once, retry=Retry.fixed(0))
        seen.clear()
        await executor.execute(fail_once, retry=Retry.fixed(0))
    assert seen == ["none", "none"]


async def test_a_task_knows_its_ticket():
    """Class, tenant, pool; also in its first step, and in a thread."""

    async def first_step():
        return current_ticket()

    executor = QueuedExecutor(name="models")
    async with executor.lifespan():
        for task in (ticket, first_step, current_ticket, ticket, first_step):
            found = await executor.execute(task, priority="high", tenant="acme")
            assert (found.pool, found.priority, found.tenant) == ("models", "high", "acme")
        assert current_ticket() is None


async def test_a_task_may_settle_its_own_account():
    """`current_permit().release(actual_cost=…)` gives the slot back early, and it is given back once."""

    async def settles():
        current_permit().release(actual_cost=17)
        await anyio.lowlevel.checkpoint()
        return "settled"

    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        for _ in range(3):
            assert await executor.execute(settles) == "settled"
    assert at_rest(executor)


async def test_inside_a_request_class_and_tenant_are_inherited():
    """From a ticket of another pool; what `submit` says goes first."""
    front = AdmissionController(name="front", max_concurrency=1)
    executor = QueuedExecutor(name="models")
    async with executor.lifespan():
        async with front.admit(priority="high", tenant="acme"):
            found = await executor.execute(ticket)
            assert (found.pool, found.priority, found.tenant) == ("models", "high", "acme")
            found = await executor.execute(ticket, priority="low", tenant="bolt")
            assert (found.priority, found.tenant) == ("low", "bolt")
            (many,) = await executor.submit_many([ticket])
            assert (await many).tenant == "acme"
        assert (await executor.execute(ticket)).tenant == ""


async def test_a_class_the_pool_does_not_have_is_not_inherited():
    """The default class is then as good as any."""
    front = AdmissionController(name="front", classes=[PriorityClass(name="gold")])
    executor = QueuedExecutor()
    async with executor.lifespan(), front.admit(priority="gold", tenant="acme"):
        found = await executor.execute(ticket)
        assert (found.priority, found.tenant) == ("normal", "acme")


async def test_a_request_of_the_same_pool_takes_no_second_slot():
    """One slot, held by the request: its task runs at once on it, or both would wait for ever."""
    pool = AdmissionController(name="one", max_concurrency=1)
    executor = QueuedExecutor(controller=pool)
    async with executor.lifespan():
        async with pool.admit(tenant="acme", priority="high") as permit:
            found = await executor.execute(ticket)
            assert (found.id, found.tenant) == (permit.id, "acme")
            assert pool.snapshot().in_flight == 1
            handle = await executor.submit(read)
            assert handle.id.startswith("nested-")
            await handle
        assert at_rest(executor)


async def test_a_task_may_submit_tasks_to_its_own_full_executor():
    """Each on the slot of the one that waits for it, three deep."""
    executor = QueuedExecutor(max_workers=1)

    async def deep(level):
        if level == 0:
            return [current_ticket().tenant]
        return [level, *await executor.execute(deep, level - 1)]

    async with executor.lifespan():
        for _ in range(3):
            assert await executor.execute(deep, 3, tenant="acme") == [3, 2, 1, "acme"]
        assert executor.controller.snapshot().of("normal").granted == 3
    assert at_rest(executor)


async def test_a_task_that_outlives_its_request_no_longer_counts_as_inside(gate: Gate):
    """What it submits then takes a slot of its own."""
    pool = AdmissionController(name="one", max_concurrency=1)
    executor = QueuedExecutor(controller=pool)

    async def outlive():
        await gate()
        return await executor.submit(ticket)

    async with executor.lifespan():
        async with pool.admit() as permit:
            handle = await executor.submit(outlive)
            await settle(lambda: gate.running == 1)
        gate.open()
        late = await handle
        assert (await late).id != permit.id


async def test_nested_tasks_are_taken_in_during_a_drain(gate: Gate):
    """Running work could not end otherwise; newcomers are refused."""
    executor = QueuedExecutor(max_workers=1)
    refused = []

    async def parent():
        await gate()
        return await executor.execute(read)

    async def newcomer():
        await settle(lambda: not executor.is_running)
        try:
            await executor.submit(read)
        except Closed as closed:
            refused.append(closed.reason)
        gate.open()

    async with anyio.create_task_group() as group, executor.lifespan():
        handle = await executor.submit(parent)
        await settle(lambda: gate.running == 1)
        group.start_soon(newcomer)
    assert await handle == ("none", "none")
    assert refused == ["rejected-draining"]


async def test_options_of_the_pool_are_not_given_beside_a_controller():
    """They would have no effect."""
    pool = AdmissionController(name="shared")
    with pytest.raises(ValueError, match="max_workers, max_wait cannot be given together with controller"):
        QueuedExecutor(controller=pool, max_workers=3, max_wait=5)
    assert QueuedExecutor(controller=pool).name == "shared"


async def test_executors_without_a_name_are_pools_of_their_own():
    """A task of one is not inside the other."""
    one, other = QueuedExecutor(max_workers=1), QueuedExecutor(max_workers=1)
    assert one.name != other.name

    async def across():
        return (await other.execute(ticket)).pool

    async with one.lifespan(), other.lifespan():
        assert await one.execute(across) == other.name
        assert other.controller.snapshot().of("normal").granted == 1
