"""Waits that end by time alone, in virtual time on asyncio and trio."""

from __future__ import annotations

import anyio
import pytest

from admission import AdmissionController, Evicted, PriorityClass, Reason, Rejected, WaitTimeout
from tests.controller.loops import virtual_backend, virtual_backends

pytestmark = pytest.mark.anyio


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


async def test_waiting_ends_with_max_wait() -> None:
    """Each at its own time, though the pool sets one timer only."""
    controller = AdmissionController(max_concurrency=1)
    held = await controller.acquire()
    began = controller.now()
    ended: list[float] = []

    async def impatient(seconds: float) -> None:
        with pytest.raises(WaitTimeout) as caught:
            await controller.acquire(max_wait=seconds)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.reason is Reason.TIMEOUT
        ended.append(controller.now() - began)

    async with anyio.create_task_group() as tasks:
        for seconds in (30.0, 10.0, 20.0):
            tasks.start_soon(impatient, seconds)
    assert ended == pytest.approx([10, 20, 30])
    assert controller.queued == 0
    held.release()


async def test_waiting_ends_with_the_callers_deadline() -> None:
    """Whichever comes first."""
    controller = AdmissionController(max_concurrency=1, max_wait=60)
    held = await controller.acquire()
    with pytest.raises(WaitTimeout) as caught:
        await controller.acquire(deadline=controller.now() + 5)
    assert caught.value.reason is Reason.DEADLINE
    held.release()


async def test_the_patience_of_the_class_is_the_default() -> None:
    """The call's own goes before it; None waits for ever."""
    classes = [PriorityClass(name="quick", max_wait=1), PriorityClass(name="slow")]
    controller = AdmissionController(max_concurrency=1, max_wait=7, classes=classes, default_priority="slow")
    held = await controller.acquire()
    for wishes, seconds in (({"priority": "quick"}, 1), ({}, 7), ({"max_wait": 3}, 3)):
        began = controller.now()
        with pytest.raises(WaitTimeout):
            await controller.acquire(**wishes)
        assert controller.now() - began == pytest.approx(seconds)
    with anyio.move_on_after(100_000) as scope:
        await controller.acquire(max_wait=None)
    assert scope.cancelled_caught
    held.release()


async def test_a_waiter_that_times_out_lets_go_whom_it_held_up() -> None:
    """A wide head stops the pump only as long as it waits."""
    controller = AdmissionController(max_concurrency=2)
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:

        async def wide() -> None:
            with pytest.raises(WaitTimeout):
                await controller.acquire(slots=2, max_wait=5)

        tasks.start_soon(wide)
        await anyio.wait_all_tasks_blocked()
        began = controller.now()
        permit = await controller.acquire()
        assert controller.now() - began == pytest.approx(5)
        permit.release()
    held.release()


async def test_a_start_rate_lets_go_by_itself() -> None:
    """Nobody has to be released for the next token."""
    classes = [PriorityClass(name="slow", rate=2.0, burst=1)]
    controller = AdmissionController(classes=classes)
    began = controller.now()
    for _ in range(5):
        (await controller.acquire()).release()
    assert controller.now() - began == pytest.approx(2.0)


async def test_a_standing_line_is_shed() -> None:
    """CoDel works without anyone being released."""
    classes = [PriorityClass(name="only", codel_target=0.5, codel_interval=5)]
    controller = AdmissionController(max_concurrency=1, classes=classes, max_wait=None)
    held = await controller.acquire()
    began = controller.now()
    with pytest.raises(Evicted) as caught:
        await controller.acquire()
    assert caught.value.reason is Reason.CODEL
    assert controller.now() - began == pytest.approx(5)
    held.release()


async def test_the_hopeless_hear_so_at_once() -> None:
    """`refuse_hopeless`: when the predicted wait is longer than the caller can wait."""
    controller = AdmissionController(max_concurrency=1, refuse_hopeless=True, max_wait=None)

    async def work() -> None:
        async with controller.admit():
            await anyio.sleep(10)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(work)
        await anyio.sleep(35)
        began = controller.now()
        with pytest.raises(Rejected) as caught:
            await controller.acquire(max_wait=2)
        assert caught.value.reason is Reason.HOPELESS
        assert controller.now() == began


async def test_drain_waits_no_longer_than_its_grace() -> None:
    """And says whether all work ended."""
    controller = AdmissionController()
    held = await controller.acquire()
    began = controller.now()
    assert await controller.drain(10) is False
    assert controller.now() - began == pytest.approx(10)
    held.release()
    assert await controller.drain(10) is True
