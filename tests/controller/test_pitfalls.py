"""Mistakes that were seen elsewhere, one test each; the numbers are those of the list they come from."""

from __future__ import annotations

import ast
import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trio.testing

import admission
from admission import (
    AdmissionController,
    NotRunning,
    Outcome,
    PriorityClass,
    Sample,
    WaitTimeout,
    WindowedLimit,
    current_ticket,
)
from admission.events import Event

pytestmark = pytest.mark.anyio


@pytest.fixture
def controller() -> Iterator[AdmissionController]:
    """A pool of one slot; no permit may be lost in it."""
    made = AdmissionController(max_concurrency=1, max_wait=None)
    yield made
    assert (made.in_flight, made.queued) == (0, 0)


async def test_1_a_waiter_woken_and_cancelled_in_the_same_instant_strands_nobody(
    controller: AdmissionController,
) -> None:
    """Fifty generations of three waiters, the first of whom is cancelled as it is granted."""
    served = 0

    async def waits(scope: anyio.CancelScope) -> None:
        nonlocal served
        with scope:
            async with controller.admit():
                await anyio.lowlevel.checkpoint()
                served += 1

    for _ in range(50):
        held = await controller.acquire()
        async with anyio.create_task_group() as tasks:
            scopes = [anyio.CancelScope() for _ in range(3)]
            for scope in scopes:
                tasks.start_soon(waits, scope)
            await anyio.wait_all_tasks_blocked()
            held.release()
            scopes[0].cancel()
    assert served == 100


async def test_2_nobody_slips_in_between_release_and_resumption(controller: AdmissionController) -> None:
    """Never more than one in the room, however they come and go."""
    inside = most = 0

    async def visit() -> None:
        nonlocal inside, most
        for _ in range(20):
            async with controller.admit():
                inside += 1
                most = max(most, inside)
                await anyio.lowlevel.checkpoint()
                inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(visit)
    assert most == 1


async def test_3_an_abandoned_thread_keeps_its_slot_until_it_ends(controller: AdmissionController) -> None:
    """Whoever awaited it is gone; the thread is not, and the limit is about threads."""
    may_end = threading.Event()
    started = anyio.Event()
    ended = anyio.Event()
    permit = await controller.acquire()

    def work() -> None:
        anyio.from_thread.run_sync(started.set)
        may_end.wait(30)
        permit.release()
        anyio.from_thread.run_sync(ended.set)

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                await anyio.to_thread.run_sync(work, abandon_on_cancel=True)

        tasks.start_soon(call)
        await started.wait()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert controller.in_flight == 1
        may_end.set()
        async with controller.admit():
            assert permit.released


def test_4_a_permit_is_released_though_cancellation_strikes_twice() -> None:
    """Releasing awaits nothing, so no second native `cancel()`, which pierces every shield, can get in between."""

    async def main() -> None:
        controller = AdmissionController(max_concurrency=1)
        entered = asyncio.Event()

        async def work() -> None:
            async with controller.admit():
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert controller.in_flight == 0

    asyncio.run(main())


def test_5_and_6_no_condition_and_no_wait_for_is_used() -> None:
    """`Condition.notify` was lost, and `wait_for` swallowed cancellation, on Pythons that are still supported."""
    root = Path(admission.__file__).parent
    for path in (*root.glob("*.py"), *root.glob("asgi/*.py"), *root.glob("executor/*.py"), *root.glob("backends/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                assert (owner, node.attr) not in {
                    ("asyncio", "wait_for"),
                    ("asyncio", "Condition"),
                    ("anyio", "Condition"),
                }


async def test_7_an_observer_that_fails_corrupts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """State first; hooks after it, isolated, counted and logged."""

    class Failing:
        def observe(self, event: Event) -> None:
            raise RuntimeError("metrics are down")

    controller = AdmissionController(max_concurrency=1, observers=[Failing()])
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:

        async def waits() -> None:
            async with controller.admit():
                pass

        tasks.start_soon(waits)
        await anyio.wait_all_tasks_blocked()
        held.release()
    assert controller.in_flight == 0
    assert controller.observer_errors >= 5
    assert "metrics are down" in caplog.text


async def test_7_a_limit_that_fails_to_learn_strands_nobody() -> None:
    """The error is the releaser's to see; the slot is free, and whoever is next has it."""

    class Failing:
        slots = 1

        def observe(self, sample: Sample) -> None:
            raise RuntimeError("no idea")

    controller = AdmissionController(max_concurrency=Failing(), max_wait=None)
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:

        async def waits() -> None:
            permit = await controller.acquire()
            with pytest.raises(RuntimeError, match="no idea"):
                permit.release()

        tasks.start_soon(waits)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="no idea"):
            held.release()
    assert await controller.drain()


async def test_7_observers_hear_of_as_many_releases_as_grants() -> None:
    """Also when a waiter is cancelled in the instant of its grant: a gauge made of events must not drift."""

    class Counting:
        def __init__(self) -> None:
            self.kinds: list[str] = []

        def observe(self, event: Event) -> None:
            self.kinds.append(type(event).__name__)

    counting = Counting()
    controller = AdmissionController(max_concurrency=1, observers=[counting])
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:

        async def waits() -> None:
            (await controller.acquire()).release()

        tasks.start_soon(waits)
        await anyio.wait_all_tasks_blocked()
        held.release()
        tasks.cancel_scope.cancel()
    assert controller.in_flight == 0
    assert counting.kinds.count("Granted") == counting.kinds.count("Released") == 2
    assert counting.kinds.count("Queued") == 1


def test_8_a_deadline_that_passed_while_the_loop_was_blocked_is_kept() -> None:
    """The timer rings late; the grant looks at the clock itself, and the slot goes to who still wants it."""

    async def main() -> None:
        controller = AdmissionController(max_concurrency=1, max_wait=None)
        held = await controller.acquire()
        async with trio.open_nursery() as nursery:

            async def late() -> None:
                with pytest.raises(WaitTimeout):
                    await controller.acquire(max_wait=0.1)

            async def patient() -> None:
                async with controller.admit() as permit:
                    assert permit.waited == pytest.approx(1.05)

            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(patient)
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(1.05)  # Nothing else ran meanwhile: the loop was blocked.
            held.release()

    clock = trio.testing.MockClock()
    trio.run(main, clock=clock)


async def test_9_a_release_in_a_thread_wakes_the_loop(controller: AdmissionController) -> None:
    """It crosses over by itself."""
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        done = anyio.Event()

        async def waits() -> None:
            async with controller.admit():
                done.set()

        tasks.start_soon(waits)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(held.release)
        await done.wait()


async def test_10_waiting_needs_no_task_that_could_be_collected(controller: AdmissionController) -> None:
    """A pool starts none; who waits is found again after a collection."""
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        done = anyio.Event()

        async def waits() -> None:
            async with controller.admit(max_wait=1000):
                done.set()

        tasks.start_soon(waits)
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        held.release()
        await done.wait()


async def test_11_a_thread_of_the_request_knows_its_ticket(controller: AdmissionController) -> None:
    """The context goes along, and is put back where it was."""
    async with controller.admit(tenant="acme"):
        ticket = await anyio.to_thread.run_sync(current_ticket)
        assert ticket is not None
        assert ticket.tenant == "acme"
    assert current_ticket() is None


def test_11_no_cancel_scope_and_no_task_group_is_held_by_the_hot_path() -> None:
    """Neither survives a `yield` in somebody's generator (PEP 789); `admit` is a class, not a generator."""
    source = (Path(admission.__file__).parent / "controller.py").read_text()
    for word in ("CancelScope", "create_task_group", "fail_after", "move_on_after", "asynccontextmanager"):
        assert word not in source


def test_12_a_controller_made_at_import_serves_one_loop_after_the_other() -> None:
    """It belongs to the loop that uses it; asyncio, trio and asyncio again, start rates included."""
    controller = AdmissionController(max_concurrency=1, classes=[PriorityClass(name="only", rate=0.001)])

    async def main() -> None:
        async with controller, controller.admit(max_wait=0):
            assert controller.in_flight == 1

    asyncio.run(main())
    trio.run(main)
    trio.run(main, clock=trio.testing.MockClock())
    asyncio.run(main())


def test_12_a_controller_in_use_on_another_loop_says_so() -> None:
    """Instead of waking tasks of a loop that does not run."""
    controller = AdmissionController(max_concurrency=1)
    permits = []

    async def takes() -> None:
        permits.append(await controller.acquire())

    async def fails() -> None:
        with pytest.raises(NotRunning, match="another event loop"):
            await controller.acquire()

    asyncio.run(takes())
    asyncio.run(fails())
    permits[0].release()
    asyncio.run(takes())
    permits[1].release()
    assert controller.in_flight == 0


def test_12_outside_any_loop_the_error_says_what_to_do() -> None:
    """Threads have `sync()`."""
    with pytest.raises(NotRunning, match=r"sync\(\)"):
        AdmissionController().bind()


def test_12_a_window_of_samples_survives_a_change_of_clock() -> None:
    """Another loop's time may be far before the last one's."""

    class Noting:
        slots = 4
        seen = 0

        def observe(self, sample: Sample) -> None:
            self.seen += 1

    inner = Noting()
    limit = WindowedLimit(inner, window=1.0, least_samples=1)
    for now in (1_000_000.0, 5.0, 6.5):
        limit.observe(Sample(rtt=0.1, in_flight=4, outcome=Outcome.SUCCESS, now=now))
    assert inner.seen == 1
