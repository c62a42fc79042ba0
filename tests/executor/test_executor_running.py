"""What may execute tasks, and how results and errors come back."""

from __future__ import annotations

import functools
import threading

import anyio
import anyio.lowlevel
import pytest
from gates import Gate, at_rest, settle

from admission.errors import TaskCancelled
from admission.executor import QueuedExecutor, TaskStatus, default_executor

pytestmark = pytest.mark.anyio


class AsyncModel:
    """An object with an async `execute`."""

    async def execute(self, task: str) -> str:
        await anyio.lowlevel.checkpoint()
        return task.upper()


class SyncModel:
    """An object with a plain `execute`."""

    def execute(self, task: str) -> tuple[str, bool]:
        return task.upper(), threading.current_thread() is threading.main_thread()


async def shout(task: str) -> str:
    """A coroutine function."""
    return task.upper()


async def shout_late(task: str) -> str:
    """A coroutine function that waits."""
    await anyio.lowlevel.checkpoint()
    return task.upper()


def shout_in_thread(task: str) -> str:
    """A plain function."""
    return task.upper()


class AsyncCallable:
    """An object that is called, and is async."""

    async def __call__(self, task: str) -> str:
        return task.upper()


@pytest.mark.parametrize(
    "kind",
    [
        AsyncModel(),
        shout,
        shout_late,
        shout_in_thread,
        AsyncCallable(),
        functools.partial(shout),
        lambda task: shout(task),
        lambda task: shout_late(task),
        lambda task: task.upper(),
    ],
    ids=["object", "async", "async-waits", "sync", "callable", "partial", "lambda", "lambda-waits", "sync-lambda"],
)
async def test_whatever_executes_gives_its_result(kind):
    """One executor, any kind of callee."""
    executor = QueuedExecutor(executor=kind)
    async with executor.lifespan():
        handle = await executor.submit("hi")
        assert await handle == "HI"
        assert await executor.execute("you") == "YOU"
        assert (handle.status, handle.done(), handle.attempts) == (TaskStatus.SUCCEEDED, True, 1)
    assert at_rest(executor)


async def test_a_sync_executor_runs_off_the_loop():
    """A model that blocks must not block the event loop."""
    executor = QueuedExecutor(executor=SyncModel())
    async with executor.lifespan():
        assert await executor.execute("hi") == ("HI", False)


async def test_without_an_executor_the_task_is_called_itself():
    """`submit(fn, …)`, as in `asyncio.to_thread`."""
    executor = QueuedExecutor()
    async with executor.lifespan():
        assert await executor.execute(shout, "a") == "A"
        assert await executor.execute(shout_late, "b") == "B"
        assert await executor.execute(shout_in_thread, "c") == "C"
        assert await executor.execute(lambda: 7) == 7


async def test_further_arguments_reach_whatever_executes():
    """`submit(task, …)` passes them on."""

    async def add(task, more):
        return task + more

    executor = QueuedExecutor(executor=add)
    async with executor.lifespan():
        assert await executor.execute(1, 2) == 3


@pytest.mark.parametrize("first", [shout, shout_late, shout_in_thread])
async def test_an_error_is_raised_at_await_and_the_worker_lives_on(first):
    """The submitter gets the very exception; the next task runs."""

    executor = QueuedExecutor(max_workers=1)
    error = KeyError("lost")

    async def lose():
        raise error

    async def lose_late():
        await anyio.lowlevel.checkpoint()
        raise error

    def lose_in_thread():
        raise error

    async with executor.lifespan():
        for failing in (lose, lose_late, lose_in_thread):
            handle = await executor.submit(failing)
            with pytest.raises(KeyError) as caught:
                await handle
            assert caught.value is error
            assert handle.status is TaskStatus.FAILED
            assert await executor.execute(first, "on") == "ON"
        assert len(executor.get_worker_health()) == 1
    assert at_rest(executor)


async def test_many_may_await_one_handle(gate: Gate):
    """Each gets the result, and whoever comes late gets it at once."""
    executor = QueuedExecutor()
    results = []

    async def watch(handle):
        results.append(await handle)

    async with executor.lifespan(), anyio.create_task_group() as group:
        handle = await executor.submit(gate, "x")
        for _ in range(3):
            group.start_soon(watch, handle)
        await settle(lambda: gate.running == 1)
        gate.open()
    assert results == ["x"] * 3
    assert await handle == "x"


async def test_no_more_than_max_workers_run_at_once(gate: Gate):
    """Twenty tasks, three slots."""
    executor = QueuedExecutor(max_workers=3)
    async with executor.lifespan():
        handles = await executor.submit_many([gate] * 20)
        await settle(lambda: gate.running == 3)
        assert executor.get_status().total_queued == 17
        gate.open()
        for handle in handles:
            await handle
    assert gate.most == 3


async def test_classes_run_in_order_of_rank(gate: Gate):
    """While one runs, the others line up; the highest class goes first."""
    executor = QueuedExecutor(max_workers=1)
    order = []

    async def note(name):
        order.append(name)

    async with executor.lifespan():
        await executor.submit(gate)
        for priority in ("low", "normal", "high", "critical"):
            await executor.submit(note, priority, priority=priority)
        gate.open()
    assert order == ["critical", "high", "normal", "low"]


async def test_tenants_of_a_class_take_turns(gate: Gate):
    """A flood of one tenant does not hold up another's single task."""
    executor = QueuedExecutor(max_workers=1)
    order = []

    async def note(name):
        order.append(name)

    async with executor.lifespan():
        await executor.submit(gate)
        for number in range(5):
            await executor.submit(note, f"flood{number}", tenant="flood")
        await executor.submit(note, "single", tenant="other")
        gate.open()
    assert order.index("single") <= 1


async def test_execute_cancelled_cancels_the_task(gate: Gate):
    """Its caller left, so nobody needs it."""
    executor = QueuedExecutor(max_workers=1)
    async with executor.lifespan():
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(executor.execute, gate)
                await settle(lambda: gate.running == 1)
                scope.cancel()
        await settle(lambda: gate.running == 0 and at_rest(executor))
        assert executor.get_status().cancelled == 1


async def test_awaiting_a_handle_and_being_cancelled_leaves_the_task_alone(gate: Gate):
    """Others may still want it."""
    executor = QueuedExecutor(max_workers=1)

    async def watch(handle):
        await handle

    async with executor.lifespan():
        handle = await executor.submit(gate, 5)
        async with anyio.create_task_group() as group:
            group.start_soon(watch, handle)
            await settle(lambda: gate.running == 1)
            group.cancel_scope.cancel()
        gate.open()
        assert await handle == 5


async def test_it_starts_by_itself():
    """No lifespan, no start: the first submit does it."""
    executor = QueuedExecutor(executor=shout)
    assert not executor.is_running
    assert await executor.execute("a") == "A"
    assert executor.is_running
    assert await executor.drain(1)


async def test_the_default_executor_is_there_for_everyone():
    """One for the process, made anew for a new event loop."""
    executor = default_executor()
    assert executor is default_executor()
    assert await executor.execute(shout, "a") == "A"
    assert await executor.drain(1)


async def test_prepared_tasks_take_arguments_and_options_step_by_step():
    """The builder some come from; each step leaves the one before as it was."""

    def render(kind, *, pages):
        return f"{kind}: {pages}"

    executor = QueuedExecutor()
    async with executor.lifespan():
        report = executor.task(render).with_options(priority="low", metadata={"by": "me"})
        weekly = report.with_args("weekly", pages=3)
        handle = await weekly.submit()
        assert await handle == "weekly: 3"
        assert handle.metadata == {"by": "me"}
        assert await report.with_args("daily", pages=1).execute() == "daily: 1"


async def test_keyword_arguments_need_an_executor_that_calls_the_task():
    """A wrapped model takes a task, not keywords."""
    with pytest.raises(TypeError, match="keyword arguments need an executor that calls the task itself"):
        QueuedExecutor(executor=shout).task("hi").with_args(loud=True)


async def test_a_coroutine_object_is_refused_with_a_hint():
    """It could run once only, and not be retried."""
    executor = QueuedExecutor()
    with pytest.raises(TypeError, match=r"not coroutine: submit the function itself"):
        await executor.submit(shout("x"))
    with pytest.raises(TypeError, match="a task must be a callable, not int"):
        await executor.submit(7)
    assert await executor.drain(1)


def test_an_executor_that_can_execute_nothing_is_refused():
    """At construction, not at the first task."""
    with pytest.raises(TypeError, match=r"executor is 7: it must be a callable, or an object with execute"):
        QueuedExecutor(executor=7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_workers": 0}, "max_workers is 0: it must be at least 1"),
        ({"min_workers": -1}, "min_workers is -1: it must be at least 0"),
        ({"max_queue_size": -1}, "max_queue_size is -1: it must be at least 0"),
        ({"timeout": 0}, "timeout is 0: it must be above 0"),
        ({"thread_pool_size": 0}, "thread_pool_size is 0: it must be at least 1"),
        ({"on_thread_pool_exhausted": "panic"}, "on_thread_pool_exhausted is 'panic': it must be 'wait' or"),
        ({"worker_idle": 0}, "worker_idle is 0: it must be above 0"),
        ({"max_dead_letters": -1}, "max_dead_letters is -1: it must be at least 0"),
        ({"backpressure_mode": "drop"}, "backpressure_mode is 'drop': it must be 'reject' or 'block'"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_range(options, message):
    """So that its author can mend it."""
    with pytest.raises(ValueError, match=message):
        QueuedExecutor(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": "urgent"}, "priority is 'urgent': the classes of pool"),
        ({"slots": 0}, "slots is 0"),
        ({"cost": -1}, "cost is -1"),
        ({"timeout": 0}, "timeout is 0: it must be above 0"),
        ({"max_wait": -1}, "max_wait is -1"),
        ({"tenant": "x" * 200}, "has 200 bytes: at most 128"),
    ],
)
async def test_a_wrong_option_of_a_task_is_refused(options, message):
    """And leaves nothing behind."""
    executor = QueuedExecutor(executor=shout)
    async with executor.lifespan():
        assert await executor.execute("warm") == "WARM"
        with pytest.raises(ValueError, match=message):
            await executor.submit("x", **options)
        assert executor.get_status().submitted == 1
        assert at_rest(executor)


async def test_the_actual_cost_is_settled_at_release():
    """Fairness charges what the result really cost; a bad answer leaves the estimate."""
    executor = QueuedExecutor(executor=shout, actual_cost=len, max_workers=1)
    async with executor.lifespan():
        await executor.execute("abc", cost=1)
    broken = QueuedExecutor(executor=shout, actual_cost=lambda result: -1)
    async with broken.lifespan():
        assert await broken.execute("abc") == "ABC"
        assert broken.get_status().callback_errors == 1


async def test_a_task_that_cancels_itself_is_cancelled(gate: Gate):
    """`handle.cancel()` from within; the worker recovers."""
    executor = QueuedExecutor(max_workers=1)
    handles = []

    async def suicide():
        await anyio.lowlevel.checkpoint()
        handles[0].cancel()
        await anyio.sleep(60)

    async with executor.lifespan():
        handles.append(await executor.submit(suicide))
        with pytest.raises(TaskCancelled):
            await handles[0]
        assert await executor.execute(shout, "on") == "ON"
