"""`QueuedExecutor` on a shared pool: the line answers later, and the slots are everybody's."""

from __future__ import annotations

import threading

import anyio
import pytest

from admission import AdmissionController, Closed, Evicted, QueuedExecutor, QueueFull, Reason, Retry
from admission.errors import TaskCancelled
from admission.executor import TaskStatus
from tests.controller.test_contract import Make, is_empty, peace, until
from tests.executor.gates import Gate
from tests.redis.test_backend import make

__all__ = ["make"]

pytestmark = pytest.mark.anyio


def executor_on(controller: AdmissionController, **options: object) -> QueuedExecutor:
    """One that calls its tasks."""
    return QueuedExecutor(controller=controller, **options)  # type: ignore[arg-type]


async def test_executors_of_two_processes_share_the_slots(make: Make) -> None:
    """Never more tasks run than the limit of the pool, whoever has them; each gets its own result."""
    controllers = [make(3, 0) for _ in range(2)]
    running = most = 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return number * number

    executors = [executor_on(controller) for controller in controllers]
    handles = [await executors[number % 2].submit(work, number, tenant=f"{number % 3}") for number in range(40)]
    assert [await handle for handle in handles] == [number * number for number in range(40)]
    assert most <= 3
    for executor in executors:
        assert await executor.drain()
    for controller in controllers:
        await is_empty(controller)


async def test_submit_says_that_the_line_is_full_when_the_pool_has_answered(make: Make) -> None:
    """The line is everybody's; whoever was taken in knows its position when `submit` returns."""
    here, there = make(1, 1), make(1, 1)
    gate = Gate()
    executor, other = executor_on(here), executor_on(there)
    runs = await executor.submit(gate, "runs")
    await until(lambda: gate.running)
    waits = await other.submit(gate, "waits")
    assert (waits.status, waits.position) == (TaskStatus.QUEUED, 1)
    with pytest.raises(QueueFull) as full:
        await executor.submit(gate, "refused")
    assert full.value.retry_after is not None
    gate.open()
    assert (await runs, await waits) == ("runs", "waits")
    assert gate.started == ["runs", "waits"]
    assert executor.get_status().refused == 1
    await is_empty(here)


async def test_in_block_mode_submit_waits_for_room_that_another_process_makes(make: Make) -> None:
    """It returns when its task stands in line, not when it runs."""
    here, there = (make(1, 1, backpressure_mode="block") for _ in range(2))
    first, last = Gate(), Gate()
    executor, other = executor_on(here), executor_on(there)
    await executor.submit(first, "runs")
    await until(lambda: first.running)
    await executor.submit(last, "in line")
    submitted = []
    async with anyio.create_task_group() as tasks:

        async def submit() -> None:
            submitted.append(await other.submit(last, "in lobby"))

        tasks.start_soon(submit)
        await until(lambda: there.snapshot().lobby == 1)
        assert not submitted
        first.open()
        await until(lambda: submitted)
        assert submitted[0].status is TaskStatus.QUEUED
        await until(lambda: last.running == 1)
        last.open()
    assert await submitted[0] == "in lobby"
    assert await executor.drain()
    assert await other.drain()
    await is_empty(here)


async def test_a_cancelled_task_leaves_the_line_and_passes_its_slot_on(make: Make) -> None:
    """Queued or running; the next one may be another process's."""
    here, there = make(1, 5), make(1, 5)
    gate = Gate()
    executor, other = executor_on(here), executor_on(there)
    runs = await executor.submit(gate, "runs")
    await until(lambda: gate.running)
    leaves = await executor.submit(gate, "leaves")
    theirs = await other.submit(gate, "theirs")
    assert leaves.cancel()
    with pytest.raises(TaskCancelled):
        await leaves
    await peace(here, there)
    assert there.queued == 1
    assert runs.cancel()
    with pytest.raises(TaskCancelled):
        await runs
    await until(lambda: gate.started == ["runs", "theirs"])
    gate.open()
    assert await theirs == "theirs"
    await is_empty(here)


@pytest.mark.parametrize("turns", range(0, 12, 2))
async def test_a_submit_that_is_cancelled_leaves_nothing_behind(make: Make, turns: int) -> None:
    """Before the pool was asked, while it is, and when it has answered: a task of nobody holds no slot for long."""
    controller = make(1, 5)
    executor = executor_on(controller)
    gate = Gate()
    gate.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(executor.submit, gate)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert await executor.execute(gate, "after") == "after"
    assert await executor.drain()
    await is_empty(controller)


async def test_a_drain_evicts_only_the_tasks_of_its_executor(make: Make) -> None:
    """The other process's wait on, and get the room."""
    here, there = make(1, 5), make(1, 5)
    gate = Gate()
    executor, other = executor_on(here), executor_on(there)
    runs = await executor.submit(gate, "runs")
    await until(lambda: gate.running)
    waits = await executor.submit(gate, "waits")
    theirs = await other.submit(gate, "theirs")
    assert await executor.drain(0) is False
    with pytest.raises(TaskCancelled):
        await runs
    with pytest.raises(Closed):
        await waits
    with pytest.raises(Closed):
        await executor.submit(gate)
    await until(lambda: gate.started == ["runs", "theirs"])
    gate.open()
    assert await theirs == "theirs"
    assert await other.drain()
    await is_empty(there)


async def test_the_lifespan_waits_for_what_runs(make: Make) -> None:
    """And the pool goes with it when it is entered, too."""
    controller = make(2, 5)
    async with controller, executor_on(controller).lifespan() as executor:
        handles = [await executor.submit(abs, -number) for number in range(5)]
    assert [await handle for handle in handles] == list(range(5))
    assert controller.snapshot().link is None, "it left the pool"


async def test_the_higher_class_of_another_process_goes_first(make: Make) -> None:
    """And one that is pushed out of the full line hears it through its handle."""
    here, there = make(1, 2), make(1, 2)
    gate = Gate()
    executor, other = executor_on(here), executor_on(there)
    await executor.submit(gate, "runs")
    await until(lambda: gate.running)
    low = await executor.submit(gate, "low", priority="low")
    normal = await executor.submit(gate, "normal")
    high = await other.submit(gate, "high", priority="high")
    with pytest.raises(Evicted) as pushed:
        await low
    assert pushed.value.reason is Reason.PRIORITY
    gate.open()
    assert [await handle for handle in (high, normal)] == ["high", "normal"]
    assert gate.started == ["runs", "high", "normal"]
    assert await executor.drain()
    await is_empty(here)


async def test_a_task_that_failed_holds_no_slot_until_its_next_try(make: Make) -> None:
    """It goes back to the line of all."""
    here, there = make(1, 5), make(1, 5)
    executor, other = executor_on(here), executor_on(there)
    tries: list[int] = []

    async def fails_once() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no")
        return "done"

    handle = await executor.submit(fails_once, retry=Retry.fixed(0.05, max_attempts=3))
    assert await other.execute(abs, -1) == 1
    assert await handle == "done"
    assert handle.attempts == 2
    await is_empty(here)


async def test_a_task_within_a_task_rides_on_its_slot(make: Make) -> None:
    """A second slot of a pool of one would be a deadlock."""
    controller = make(1, 5)
    executor = executor_on(controller)

    async def inner() -> int:
        return controller.in_flight

    async def outer() -> int:
        return await executor.execute(inner)

    assert await executor.execute(outer) == 1
    await is_empty(controller)


async def test_functions_run_in_threads_and_keep_their_slot_till_they_end(make: Make) -> None:
    """Also when nobody waits for them any more."""
    here, there = make(1, 5), make(1, 5)
    executor, other = executor_on(here), executor_on(there)
    go_on = threading.Event()
    handle = await executor.submit(go_on.wait, 30)
    await until(lambda: handle.status is TaskStatus.RUNNING)
    theirs = await other.submit(abs, -7)
    handle.cancel()
    with pytest.raises(TaskCancelled):
        await handle
    await peace(here, there)
    assert theirs.status is TaskStatus.QUEUED
    go_on.set()
    assert await theirs == 7
    await is_empty(there)


async def test_of_many_submitted_at_once_those_that_fit_are_taken(make: Make) -> None:
    """The handles of the others say why not."""
    controller = make(1, 2)
    executor = executor_on(controller)
    gate = Gate()
    handles = await executor.submit_many([gate] * 5)
    gate.open()
    ended = []
    for handle in handles:
        try:
            await handle
        except QueueFull:
            ended.append(False)
        else:
            ended.append(True)
    assert ended == [True] * 3 + [False] * 2
    await is_empty(controller)


async def test_what_a_result_cost_is_settled_for_everybody(make: Make) -> None:
    """The tenant goes behind the others in every process."""
    here, there = make(1, 9), make(1, 9)
    first, second, order = Gate(), Gate(), []
    executor = executor_on(here, actual_cost=lambda result: 1000.0)
    other = executor_on(there)
    cheat = await executor.submit(first, tenant="cheat")
    await until(lambda: first.running)
    await other.submit(second, tenant="honest")
    first.open()
    await cheat
    await until(lambda: second.running)
    again = await other.submit(lambda: order.append("cheat"), tenant="cheat")
    for _ in range(3):
        await other.submit(lambda: order.append("honest"), tenant="honest")
    second.open()
    await again
    assert order == ["honest", "honest", "honest", "cheat"]
    assert await other.drain()
    await is_empty(there)
