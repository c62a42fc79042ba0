"""Read these first: what `admission` promises, one promise a test."""

from __future__ import annotations

import anyio
import pytest

from admission import AdmissionController, Closed, Permit, Priority, PriorityClass, QueueFull, WaitTimeout
from tests.controller.loops import virtual_backend, virtual_backends

pytestmark = pytest.mark.anyio


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Time is virtual here: waiting an hour takes no time."""
    return virtual_backend(request.param)


async def visit(controller: AdmissionController, order: list[str], name: str, **wishes: object) -> None:
    """A request: it waits for its permit, works for a second and notes its name."""
    async with controller.admit(**wishes):  # type: ignore[arg-type]
        await anyio.sleep(1)
        order.append(name)


async def test_no_more_run_than_the_limit_allows_and_the_rest_waits_in_line() -> None:
    """`max_concurrency` slots; whoever finds none waits its turn, first come, first served."""
    order: list[str] = []
    async with AdmissionController(max_concurrency=2) as controller, anyio.create_task_group() as tasks:
        began = controller.now()
        for name in "abcde":
            tasks.start_soon(visit, controller, order, name)
            await anyio.wait_all_tasks_blocked()
        assert (controller.in_flight, controller.queued) == (2, 3)
    assert (set(order[:2]), set(order[2:4]), order[4]) == ({"a", "b"}, {"c", "d"}, "e")
    assert controller.now() - began == pytest.approx(3)


async def test_the_more_important_goes_first() -> None:
    """Four classes without any configuration: critical, high, normal and low."""
    order: list[str] = []
    async with AdmissionController(max_concurrency=1) as controller, anyio.create_task_group() as tasks:
        for name, priority in (("first", None), ("low", "low"), ("normal", None), ("critical", Priority.CRITICAL)):
            tasks.start_soon(lambda n, p: visit(controller, order, n, priority=p), name, priority)
            await anyio.wait_all_tasks_blocked()
    assert order == ["first", "critical", "normal", "low"]


async def test_low_priority_is_never_starved() -> None:
    """A guaranteed share of the starts, and a longest delay, bend the ranks."""
    classes = [PriorityClass(name="high"), PriorityClass(name="low", max_delay=5)]
    order: list[str] = []
    controller = AdmissionController(max_concurrency=1, classes=classes)
    async with controller, anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(lambda n: visit(controller, order, n, priority="high"), f"high {number}")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(lambda: visit(controller, order, "low", priority="low"))
    assert order.index("low") == 5


async def test_tenants_share_fairly_whatever_they_send() -> None:
    """A hundred requests of one tenant do not delay the one of another by more than a turn."""
    order: list[str] = []
    async with AdmissionController(max_concurrency=1) as controller, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(lambda: visit(controller, order, "flood", tenant="flood"))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(lambda: visit(controller, order, "modest", tenant="modest"))
    assert order.index("modest") <= 2


async def test_a_full_line_says_no_at_once_and_when_to_come_back() -> None:
    """A bounded line is what keeps a server alive under overload."""
    async with AdmissionController(max_concurrency=1, max_queue_size=1) as controller:
        async with anyio.create_task_group() as tasks:
            for name in "ab":
                tasks.start_soon(visit, controller, [], name)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(QueueFull) as refused:
                await controller.acquire()
        assert refused.value.retry_after is not None
        assert 1 <= refused.value.retry_after <= 30


async def test_a_full_line_may_also_let_callers_wait_for_room() -> None:
    """Mode BLOCK: back pressure instead of refusals."""
    order: list[str] = []
    controller = AdmissionController(max_concurrency=1, max_queue_size=1, backpressure_mode="block")
    async with controller, anyio.create_task_group() as tasks:
        for name in "abcd":
            tasks.start_soon(visit, controller, order, name)
            await anyio.wait_all_tasks_blocked()
        assert (controller.snapshot().queued, controller.snapshot().lobby) == (1, 2)
    assert order == ["a", "b", "c", "d"]


async def test_nobody_waits_longer_than_it_said() -> None:
    """`max_wait` of the call, of the class or of the pool."""
    async with AdmissionController(max_concurrency=1) as controller:
        permit: Permit = await controller.acquire()
        began = controller.now()
        with pytest.raises(WaitTimeout):
            await controller.acquire(max_wait=2.5)
        assert controller.now() - began == pytest.approx(2.5)
        permit.release()


async def test_cancelling_a_waiter_costs_nobody_anything() -> None:
    """Its place is given up; a slot that was granted in that very instant goes to the next."""
    order: list[str] = []
    async with AdmissionController(max_concurrency=1) as controller:
        permit = await controller.acquire()
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as doomed:
            doomed.start_soon(visit, controller, order, "cancelled")
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(visit, controller, order, "next")
            await anyio.wait_all_tasks_blocked()
            permit.release()
            doomed.cancel_scope.cancel()
    assert order == ["next"]


async def test_work_ends_its_own_way_and_the_slot_is_free_again() -> None:
    """A result, an error or cancellation: nothing keeps a slot but work that runs."""
    async with AdmissionController(max_concurrency=1) as controller:
        with pytest.raises(ZeroDivisionError):
            async with controller.admit():
                raise ZeroDivisionError
        with anyio.move_on_after(1):
            async with controller.admit():
                await anyio.sleep(1000)
        assert controller.in_flight == 0


async def test_leaving_the_controller_waits_for_running_work_and_sends_waiters_home() -> None:
    """The end of a server is orderly."""
    order: list[str] = []
    async with anyio.create_task_group() as tasks:
        async with AdmissionController(max_concurrency=1) as controller:
            tasks.start_soon(visit, controller, order, "runs")
            await anyio.wait_all_tasks_blocked()

            async def waits() -> None:
                with pytest.raises(Closed):
                    await controller.acquire()
                order.append("sent home")

            tasks.start_soon(waits)
            await anyio.wait_all_tasks_blocked()
        assert (order, controller.in_flight) == (["sent home", "runs"], 0)


async def test_everyone_can_see_where_they_stand() -> None:
    """A position, a predicted wait, and the rule that holds the ticket back."""
    async with AdmissionController(max_concurrency=1) as controller, anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(visit, controller, [], name)
            await anyio.wait_all_tasks_blocked()
        first, second = controller.tickets()
        assert (controller.position(first.id), controller.position(second.id)) == (1, 2)
        await anyio.sleep(1.5)
        status = controller.explain(second.id)
        assert status is not None
        assert (status.position, status.held_back_by) == (1, "pool-limit")
        assert status.predicted_wait == pytest.approx(1.0, abs=0.5)
