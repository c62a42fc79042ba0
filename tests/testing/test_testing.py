"""What `admission.testing` offers works on both event loops, on a real pool."""

from __future__ import annotations

import anyio
import pytest

from admission import AdmissionController
from admission.events import Granted, Queued, Released
from admission.testing import RecordingObserver, ScriptedBackend, leak_checked

pytestmark = pytest.mark.anyio


async def test_a_scripted_backend_runs_until_told() -> None:
    """With one slot the second call begins when the first ends, and not before."""
    model, answers = ScriptedBackend(), []
    async with leak_checked(AdmissionController(max_concurrency=1)) as controller, anyio.create_task_group() as tasks:

        async def request(name: str) -> None:
            async with controller.admit():
                answers.append(await model.execute(name))

        tasks.start_soon(request, "first")
        await model.started(1)
        tasks.start_soon(request, "second")
        await anyio.wait_all_tasks_blocked()
        assert (model.tasks, model.running, controller.queued) == (["first"], 1, 1)
        model.finish("one")
        await model.started(2)
        model.finish("two")
    assert answers == ["one", "two"]


async def test_a_scripted_failure_reaches_the_caller() -> None:
    """`fail` raises what it was given, where the work was awaited."""
    model = ScriptedBackend()
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(LookupError, match="no such prompt"):
                await model.execute()

        tasks.start_soon(call)
        await model.started(1)
        model.fail(LookupError("no such prompt"))


async def test_a_cancelled_call_is_no_longer_running() -> None:
    """Cancellation reaches the work, and the script goes on with the next call."""
    model = ScriptedBackend()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(model.execute)
        await model.started(1)
        tasks.cancel_scope.cancel()
    assert model.running == 0
    with pytest.raises(IndexError):
        model.finish()


async def test_a_recording_keeps_the_course_of_a_ticket() -> None:
    """Events by kind, in order."""
    recording = RecordingObserver()
    async with leak_checked(AdmissionController(max_concurrency=1, observers=[recording])) as controller:
        first = controller.acquire_nowait(tenant="acme")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_and_leave, controller)
            await anyio.wait_all_tasks_blocked()
            first.release()
    waiter = recording.of(Queued)[0].ticket.id
    course = [type(event) for event in recording.events if event.ticket.id == waiter]
    assert course == [Queued, Granted, Released]
    assert len(recording.events) == 5
    assert recording.of(Queued)[0].position == 1
    assert recording.of(Granted)[0].ticket.tenant == "acme"


async def wait_and_leave(controller: AdmissionController) -> None:
    (await controller.acquire()).release()


async def test_a_permit_never_released_fails_the_test() -> None:
    """The check names the class that holds the slot."""
    with pytest.raises(AssertionError, match=r"pool 'leaky' was left with 1 slots in use \(high\)"):
        async with leak_checked(AdmissionController(name="leaky")) as controller:
            await controller.acquire(priority="high")


async def test_the_check_does_not_hide_an_error() -> None:
    """When the block itself fails, that is what the test reports."""

    async def fail_and_leak() -> None:
        async with leak_checked(AdmissionController()) as controller:
            await controller.acquire()
            raise LookupError

    with pytest.raises(LookupError):
        await fail_and_leak()
