"""Long-lived workers that take tasks which hold a permit, and run them.

The pool decides *which* task runs; a worker only runs it. So the crew has no line of its own: it grows when a granted
task finds nobody free, and shrinks when workers stood idle for a while. It is never larger than the pool's limit, but
for nested tasks and those of exempt classes.

A worker that ends a task releases its permit, the pool grants the next task during that very call, and the worker finds
it in `ready`: under load a worker never sleeps between two tasks, and nobody is woken for it.

A coroutine is stepped *by the worker's task inside the submitter's context* (`Context.run(coroutine.send, …)`), so a
task that never waits costs no task, no cancel scope and no timer. `current_task()` inside it is the worker's task.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import types
from collections import deque
from collections.abc import Awaitable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from admission.errors import TaskCancelled
from admission.executor.assignment import Assignment
from admission.executor.handle import TaskStatus
from admission.executor.loops import Sleep, WorkLoop
from admission.executor.status import Tally, WorkerHealth
from admission.runners import OnLoop

if TYPE_CHECKING:
    import trio

    from admission.waker import Timer

BREATH = 0.005
"""Seconds after which a worker whose tasks never wait lets the rest of the loop run."""


class Worker:
    """One long-lived task of the loop."""

    __slots__ = (
        "assignment",
        "errors",
        "leaving",
        "name",
        "pokes",
        "processed",
        "scope",
        "since",
        "sleep",
        "task",
    )

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.processed = 0
        self.errors = 0
        self.assignment: Assignment[Any] | None = None
        self.since = now
        self.sleep: Sleep | None = None
        """What it sleeps on while idle."""
        self.leaving = False
        self.pokes = 0
        """asyncio: how often `interrupt` cancelled the task; each is taken back with `uncancel`.

        Between two tasks the worker's `cancelling()` is 0: one that was cancelled by anybody else leaves.
        """
        self.task: asyncio.Task[None] | None = None
        self.scope: trio.CancelScope | None = None
        """trio: around the coroutine that runs."""

    def interrupt(self) -> None:
        """Cancel the running coroutine where it waits."""
        if self.scope is not None:
            self.scope.cancel()
        elif self.task is not None:
            self.pokes += 1
            self.task.cancel()

    def health(self, now: float) -> WorkerHealth:
        """This worker at *now*."""
        running = self.assignment
        return WorkerHealth(
            name=self.name,
            is_healthy=running is None or not running.done(),
            total_processed=self.processed,
            total_errors=self.errors,
            current_task=None if running is None else running.id,
            since=self.since,
            duration=now - self.since,
        )


class Crew:
    """The workers of one executor on one event loop.

    Args:
        least: Workers kept however idle it is.
        idle_after: Seconds; workers that nobody needed for that long leave.
    """

    def __init__(self, loop: WorkLoop, tally: Tally, *, name: str, least: int, idle_after: float) -> None:
        self._loop = loop
        self._tally = tally
        self._name = name
        self._least = least
        self._idle_after = idle_after
        self._ready: deque[Assignment[Any]] = deque()
        """Hold a permit, wait for a worker."""
        self._seeking = 0
        """Workers awake between two tasks. Invariant: len(ready) <= seeking, or somebody was called."""
        self._idle: deque[Worker] = deque()
        self._least_idle = 0
        """The fewest idle workers since the last look: nobody needed that many."""
        self._workers: dict[int, Worker] = {}
        self._looking = False
        self._closed = False
        for _ in range(least):
            self._hire()

    # ------------------------------------------------------------------ to look at

    @property
    def size(self) -> int:
        """Workers there are."""
        return len(self._workers)

    @property
    def active(self) -> int:
        """Workers that run a task."""
        return sum(worker.assignment is not None for worker in self._workers.values())

    def health(self) -> list[WorkerHealth]:
        """One record per worker."""
        now = self._loop.now()
        return [worker.health(now) for _, worker in sorted(self._workers.items())]

    # ------------------------------------------------------------------ work and hands

    def push(self, assignment: Assignment[Any]) -> None:
        """Let a worker begin it; it holds its permit."""
        self._ready.append(assignment)
        if len(self._ready) > self._seeking:
            self._call_one()

    def close(self) -> None:
        """Let every worker leave once it has nothing to do."""
        self._closed = True
        for worker in self._workers.values():
            worker.leaving = True
        while self._idle:
            self._rouse(self._idle.pop())

    def _call_one(self) -> None:
        if not self._idle:
            self._hire()
            return
        self._rouse(self._idle.pop())  # The one that slept last: the others may turn out not to be needed.
        if len(self._idle) < self._least_idle:
            self._least_idle = len(self._idle)

    def _rouse(self, worker: Worker) -> None:
        sleep, worker.sleep = worker.sleep, None
        self._seeking += 1
        if sleep is not None:
            self._loop.rouse(sleep)

    def _hire(self) -> None:
        number = 1
        while number in self._workers:
            number += 1
        worker = Worker(f"{self._name}-{number}", self._loop.now())
        worker.leaving = self._closed
        self._workers[number] = worker
        self._seeking += 1
        self._loop.spawn(partial(self._employ, worker, number), f"admission worker {worker.name}")
        if not self._looking and len(self._workers) > self._least:
            self._look_again()

    def _look_again(self) -> None:
        self._looking = True
        self._least_idle = len(self._idle)
        self._loop.call_at(self._loop.now() + self._idle_after, self._shrink)

    def _shrink(self) -> None:
        """Send home who was not needed since the last look."""
        self._looking = False
        unneeded = min(self._least_idle, len(self._idle), len(self._workers) - self._least)
        for _ in range(unneeded):
            worker = self._idle.popleft()
            worker.leaving = True
            self._rouse(worker)
        if len(self._workers) - unneeded > self._least and not self._closed:
            self._look_again()

    # ------------------------------------------------------------------ the life of a worker

    async def _employ(self, worker: Worker, number: int) -> None:
        if not self._loop.scoped:
            worker.task = asyncio.current_task()
        try:
            await self._work(worker)
        finally:
            del self._workers[number]
            if worker.sleep is not None:
                self._idle.remove(worker)
            else:
                self._seeking -= 1
            if len(self._ready) > self._seeking and not self._loop.scoped and not self._loop.is_over():
                # A stray cancellation hit this one. (On trio only the end of the run does that.) If it is the loop
                # that ends, the callback never runs.
                self._loop.call_at(self._loop.now(), self._replace)

    def _replace(self) -> None:
        if len(self._ready) > self._seeking:
            self._call_one()

    async def _work(self, worker: Worker) -> None:
        ready, now, tally, scoped, task = self._ready, self._loop.now, self._tally, self._loop.scoped, worker.task
        ended = now()
        breath = ended + BREATH
        while True:
            while ready:
                assignment = ready.popleft()
                started = ended
                context = assignment.begin(worker, started)
                if context is None:
                    continue
                tally.start(started)
                worker.assignment = assignment
                worker.since = started
                self._seeking -= 1
                error: BaseException | None = None
                result: object = None
                try:
                    runner = assignment.runner
                    if not scoped and isinstance(runner, OnLoop):
                        coroutine = runner.begin(context, assignment.args)
                        try:
                            waits_for = context.run(coroutine.send, None)
                        except StopIteration as returned:
                            result = returned.value
                        else:
                            result = await self._go_on(assignment, coroutine, context, waits_for)
                            breath = now() + BREATH
                    else:
                        result = await self._attempt(worker, assignment, context)
                        breath = now() + BREATH
                except GeneratorExit:  # The loop was closed with this worker in it: nothing can be done any more.
                    raise
                except BaseException as raised:
                    error = raised
                ended = now()
                tally.run_seconds += ended - started
                tally.processed += 1
                worker.processed += 1
                worker.assignment = None
                worker.since = ended
                self._seeking += 1
                if error is None:
                    assignment.succeed(result)
                else:
                    worker.errors += 1
                    self._failed(worker, assignment, error)  # Raises what is meant for the worker itself.
                    error = None
                if task is not None and task.cancelling() and not await self._recovers(worker, task):
                    return
                if ended >= breath:
                    await self._loop.checkpoint()
                    ended = now()
                    breath = ended + BREATH
            if worker.leaving:
                return
            worker.sleep = sleep = self._loop.sleep()
            self._idle.append(worker)
            self._seeking -= 1
            await sleep
            ended = now()
            breath = ended + BREATH

    async def _attempt(self, worker: Worker, assignment: Assignment[Any], context: Context) -> object:
        """One attempt that may wait: in a thread or process, or on trio."""
        begun = assignment.runner.begin(context, assignment.args)
        if isinstance(begun, Coroutine):
            return await self._coroutine(worker, assignment, begun, context)
        result = await self._future(assignment, begun)
        # Not known to be async before it was called: a lambda around a coroutine function, for instance.
        if result is not None and inspect.isawaitable(result):
            if assignment.done():
                return None
            return await self._coroutine(worker, assignment, _as_coroutine(result), context)
        return result

    async def _future(self, assignment: Assignment[Any], future: Future[object]) -> object:
        sleep = self._loop.sleep()
        awake = partial(self._loop.rouse, sleep)
        assignment.runs_in(future)
        future.add_done_callback(lambda _: self._loop.call_from_thread(awake))
        timer = self._timer(assignment)
        try:
            await sleep
        except BaseException:
            assignment.leave_slot_to(future)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            assignment.runs_in(None)
        return future.result()

    async def _coroutine(
        self,
        worker: Worker,
        assignment: Assignment[Any],
        coroutine: Coroutine[object, object, object],
        context: Context,
    ) -> object:
        if not self._loop.scoped:
            try:
                waits_for = context.run(coroutine.send, None)
            except StopIteration as returned:
                return returned.value
            return await self._go_on(assignment, coroutine, context, waits_for)
        return await self._in_scope(worker, assignment, coroutine, context)

    async def _go_on(
        self,
        assignment: Assignment[Any],
        coroutine: Coroutine[object, object, object],
        context: Context,
        waits_for: object,
    ) -> object:
        """asyncio: the rest of a coroutine that has begun to wait."""
        timer = self._timer(assignment)
        try:
            return await _step(coroutine, context, waits_for)
        finally:
            if timer is not None:
                timer.cancel()

    async def _in_scope(
        self,
        worker: Worker,
        assignment: Assignment[Any],
        coroutine: Coroutine[object, object, object],
        context: Context,
    ) -> object:
        """trio: a coroutine inside a cancel scope, which has to be there before it opens scopes of its own."""
        import trio

        timeout = assignment.options.timeout
        deadline = math.inf if timeout is None else self._loop.now() + timeout
        with trio.CancelScope(deadline=deadline) as scope:
            worker.scope = scope
            try:
                try:
                    waits_for = context.run(coroutine.send, None)
                except StopIteration as returned:
                    return returned.value
                return await _step(coroutine, context, waits_for)
            finally:
                worker.scope = None
        raise _Interrupted

    def _timer(self, assignment: Assignment[Any]) -> Timer | None:
        timeout = assignment.options.timeout
        return None if timeout is None else self._loop.call_at(self._loop.now() + timeout, assignment.outran)

    # ------------------------------------------------------------------ how it ended

    def _failed(self, worker: Worker, assignment: Assignment[Any], error: BaseException) -> None:
        """An attempt raised. Raises *error* when it is meant for the worker, because its loop ends."""
        if isinstance(error, _Interrupted):
            self._interrupted(assignment)
        elif isinstance(error, asyncio.CancelledError):
            self._cancelled(worker, assignment, error)
        elif self._loop.scoped and _holds_cancelled(error):
            assignment.stop(TaskCancelled(f"task {assignment.id}: the event loop ended"))
            raise error
        else:
            assignment.fail(error)

    def _interrupted(self, assignment: Assignment[Any]) -> None:
        if assignment.interrupted is TaskStatus.CANCELLED:
            assignment.stop(TaskCancelled(f"task {assignment.id} was cancelled"))
        else:
            assignment.fail(assignment.timed_out())

    def _cancelled(self, worker: Worker, assignment: Assignment[Any], error: asyncio.CancelledError) -> None:
        task, pokes = worker.task, worker.pokes
        assert task is not None
        worker.pokes = 0
        for _ in range(pokes):
            task.uncancel()
        if task.cancelling():
            assignment.stop(TaskCancelled(f"task {assignment.id}: the event loop ended"))
            raise error
        if pokes:
            self._interrupted(assignment)
        else:
            assignment.stop(TaskCancelled(f"task {assignment.id} cancelled itself"))

    async def _recovers(self, worker: Worker, task: asyncio.Task[None]) -> bool:
        """asyncio: take back interrupts that the coroutine swallowed; False when others cancelled this worker too."""
        pokes, worker.pokes = worker.pokes, 0
        for _ in range(pokes):
            task.uncancel()
        if task.cancelling():
            return False
        # An interrupt in the coroutine's very last step is still to be raised, wherever the worker waits next: here.
        with suppress(asyncio.CancelledError):
            await self._loop.checkpoint()
        return not task.cancelling()


class _Interrupted(Exception):
    """trio: the scope around a coroutine was cancelled, or its deadline passed."""


@types.coroutine
def _step(
    coroutine: Coroutine[object, object, object], context: Context, waits_for: object
) -> Generator[object, object, object]:
    """Run a coroutine that waits for *waits_for* to its end, each step of it inside *context*.

    What it yields goes to the event loop as it is, and comes back as it is: the loop sees the worker's task wait.
    """
    send, throw = coroutine.send, coroutine.throw
    while True:
        thrown: BaseException | None = None
        sent = None
        try:
            sent = yield waits_for
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as error:
            thrown = error
        try:
            waits_for = context.run(send, sent) if thrown is None else context.run(throw, thrown)
        except StopIteration as returned:
            return returned.value
        finally:
            thrown = None  # It would otherwise live, with its traceback, as long as the next wait.


async def run_in(context: Context, awaitable: Awaitable[object]) -> object:
    """Await *awaitable* in the present task, each step of it inside *context*."""
    coroutine = _as_coroutine(awaitable)
    try:
        waits_for = context.run(coroutine.send, None)
    except StopIteration as returned:
        return returned.value
    return await _step(coroutine, context, waits_for)


async def _as_coroutine(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _holds_cancelled(error: BaseException) -> bool:
    """Whether trio's cancellation is in it, alone or in a group."""
    import trio

    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
