"""One long-lived worker: it takes tasks that hold a permit, and runs them one after the other.

A coroutine is stepped *by the worker's task inside the submitter's context*, so a task that never waits costs no task,
no cancel scope and no timer. To everyone inside it, `current_task()` is the worker's.

(On asyncio the first step may already have happened inside `submit`; see `eager`.)
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from admission.errors import TaskCancelled
from admission.executor.assignment import Assignment
from admission.executor.handle import TaskStatus
from admission.executor.loops import Sleep, WorkLoop
from admission.executor.status import Tally, WorkerHealth
from admission.executor.stepping import Steps, as_coroutine, as_raised, go_on
from admission.line import Entry
from admission.permit import controller_of

if TYPE_CHECKING:
    from collections import deque

    import trio

    from admission.waker import Timer

BREATH = 0.005
"""Seconds after which a worker whose tasks never wait lets the rest of the loop run."""


class Crew(Protocol):
    """The workers together, as one of them sees them."""

    loop: WorkLoop
    tally: Tally
    ready: deque[Assignment[Any]]
    """Tasks that hold a permit and wait for a worker."""
    seeking: int
    """Workers awake between two tasks."""

    def rest(self, worker: Worker) -> None:
        """The worker is about to sleep until it is called."""


Handed = tuple[Assignment[Any], Steps, Context, object]
"""A coroutine that began to wait in its first step, elsewhere: its task, itself, its context, what it waits for."""


class Worker:
    """One worker, busy, resting or seeking."""

    __slots__ = (
        "assignment",
        "crew",
        "errors",
        "handed",
        "leaving",
        "name",
        "pokes",
        "processed",
        "scope",
        "since",
        "sleep",
        "task",
        "ticket",
    )

    def __init__(self, name: str, crew: Crew) -> None:
        self.name = name
        self.crew = crew
        self.processed = 0
        self.errors = 0
        self.assignment: Assignment[Any] | None = None
        """What it runs."""
        self.ticket: Entry | None = None
        """The ticket of what it runs in `eager`, where there may not be an assignment yet."""
        self.since = crew.loop.now()
        self.sleep: Sleep | None = None
        """What it sleeps on while it rests."""
        self.leaving = False
        """It ends as soon as there is nothing to do."""
        self.handed: Handed | None = None
        self.pokes = 0
        """asyncio: how often `interrupt` cancelled the task; each is taken back with `uncancel`.

        Between two tasks the worker's `cancelling()` is 0: one that was cancelled by anybody else leaves.
        """
        self.task: asyncio.Task[None] | None = None
        self.scope: trio.CancelScope | None = None
        """trio: around the coroutine that runs."""

    def health(self, now: float) -> WorkerHealth:
        """This worker at *now*."""
        running = self.assignment
        current = None if running is None else running.id
        if self.ticket is not None:
            current = controller_of(self.ticket).id_of(self.ticket)
        return WorkerHealth(
            name=self.name,
            is_healthy=running is None or not running.done(),
            total_processed=self.processed,
            total_errors=self.errors,
            current_task=current,
            since=self.since,
            duration=now - self.since,
        )

    @property
    def busy(self) -> bool:
        """Whether it runs a task."""
        return self.assignment is not None or self.ticket is not None

    def interrupt(self) -> None:
        """Cancel the running coroutine where it waits."""
        if self.scope is not None:
            self.scope.cancel()
        elif self.task is not None:
            self.pokes += 1
            self.task.cancel()

    # ------------------------------------------------------------------ its life

    async def live(self) -> None:
        """Run tasks until it shall leave, or is cancelled."""
        crew, loop = self.crew, self.crew.loop
        ready = crew.ready
        thrown: BaseException | None = None
        breath = loop.now() + BREATH
        while True:
            if self.handed is not None:
                (assignment, coroutine, context, waits_for), self.handed = self.handed, None
                await self._perform(assignment, self._go_on(assignment, coroutine, context, waits_for, thrown))
                del assignment, coroutine, context, waits_for  # A resting worker holds on to nobody's task.
                if not await self._recovers():
                    return
            while ready:
                assignment = ready.popleft()
                started = loop.now()
                chosen = assignment.begin(self, started)
                if chosen is None:
                    continue
                self.take(assignment, started)
                crew.seeking -= 1
                await self._perform(assignment, self._attempt(assignment, chosen))
                del assignment, chosen
                if not await self._recovers():
                    return
                if self.since >= breath:  # Whether the loop could run meanwhile is not known; it costs little.
                    await loop.checkpoint()
                    breath = loop.now() + BREATH
            if self.leaving:
                return
            thrown = await self._rest()

    async def _rest(self) -> BaseException | None:
        """Sleep until called. A cancellation that was meant for the coroutine handed over meanwhile is returned."""
        self.sleep = sleep = self.crew.loop.sleep()
        self.crew.rest(self)
        try:
            await sleep
        except asyncio.CancelledError as cancelled:
            if self.handed is None:
                raise
            return cancelled
        return None

    def take(self, assignment: Assignment[Any], now: float) -> None:
        """It runs *assignment* from now on."""
        self.assignment = assignment
        self.since = now
        self.crew.tally.start(now)

    async def _perform(self, assignment: Assignment[Any], attempt: Steps) -> None:
        result: object = None
        error: BaseException | None = None
        try:
            result = await attempt
        except GeneratorExit:  # The loop was closed with this worker in it: nothing can be done any more.
            raise
        except BaseException as raised:
            error = as_raised(raised)
        # Counted as seeking before the slot is given back: whoever gets it then finds this worker free.
        self.crew.seeking += 1
        self.ended()
        if error is None:
            assignment.succeed(result)
        else:
            self.errors += 1
            try:
                self._failed(assignment, error)  # Raises what is meant for the worker itself.
            finally:
                del assignment, attempt, error  # See `as_raised`.

    def ended(self) -> None:
        """The attempt is over."""
        now, tally = self.crew.loop.now(), self.crew.tally
        tally.processed += 1
        tally.run_seconds += now - self.since
        self.processed += 1
        self.assignment = None
        self.since = now

    # ------------------------------------------------------------------ an attempt

    async def _attempt(self, assignment: Assignment[Any], context: Context) -> object:
        begun = assignment.runner.begin(context, assignment.args)
        if isinstance(begun, Coroutine):
            return await self._coroutine(assignment, begun, context)
        result = await self._future(assignment, begun)
        # Not known to be async before it was called: a lambda around a coroutine function, for instance.
        if result is None or assignment.done() or not inspect.isawaitable(result):
            return result
        return await self._coroutine(assignment, as_coroutine(result), context)

    async def _future(self, assignment: Assignment[Any], future: Future[object]) -> object:
        """A thread or process runs it."""
        loop = self.crew.loop
        sleep = loop.sleep()
        rouse = partial(loop.rouse, sleep)
        assignment.runs_in(future)
        future.add_done_callback(lambda _: loop.call_from_thread(rouse))
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
        error = future.exception()
        if error is not None:
            raise error  # Here: a frame of `result` would stay in the traceback, and remember this one as its caller.
        return future.result()

    async def _coroutine(self, assignment: Assignment[Any], coroutine: Steps, context: Context) -> object:
        if self.task is None:
            return await self._in_scope(assignment, coroutine, context)
        try:
            waits_for = context.run(coroutine.send, None)
        except StopIteration as returned:
            return returned.value
        return await self._go_on(assignment, coroutine, context, waits_for)

    async def _go_on(
        self,
        assignment: Assignment[Any],
        coroutine: Steps,
        context: Context,
        waits_for: object,
        thrown: BaseException | None = None,
    ) -> object:
        """asyncio: the rest of a coroutine that has begun to wait. Only now can a timeout matter."""
        timer = self._timer(assignment)
        try:
            return await go_on(coroutine, context, waits_for, thrown)
        finally:
            if timer is not None:
                timer.cancel()

    async def _in_scope(self, assignment: Assignment[Any], coroutine: Steps, context: Context) -> object:
        """trio: a coroutine inside a cancel scope, which has to be there before it opens scopes of its own."""
        import trio

        timeout = assignment.options.timeout
        deadline = math.inf if timeout is None else self.crew.loop.now() + timeout
        with trio.CancelScope(deadline=deadline) as scope:
            self.scope = scope
            try:
                try:
                    waits_for = context.run(coroutine.send, None)
                except StopIteration as returned:
                    return returned.value
                return await go_on(coroutine, context, waits_for)
            finally:
                self.scope = None
        raise _Interrupted

    def _timer(self, assignment: Assignment[Any]) -> Timer | None:
        timeout, loop = assignment.options.timeout, self.crew.loop
        return None if timeout is None else loop.call_at(loop.now() + timeout, assignment.outran)

    # ------------------------------------------------------------------ how it ended

    def _failed(self, assignment: Assignment[Any], error: BaseException) -> None:
        """An attempt raised. Raises *error* when it is meant for the worker, because its loop ends."""
        if isinstance(error, _Interrupted):
            self._interrupted(assignment)
        elif isinstance(error, asyncio.CancelledError) and self.task is not None:
            self._cancelled(assignment, self.task, error)
        elif self.task is None and _holds_cancelled(error):
            assignment.stop(TaskCancelled(f"task {assignment.id}: its event loop task was cancelled"))
            raise error
        else:
            assignment.fail(error)

    def _interrupted(self, assignment: Assignment[Any]) -> None:
        if assignment.interrupted is TaskStatus.CANCELLED:
            assignment.stop(TaskCancelled(f"task {assignment.id} was cancelled"))
        else:
            assignment.fail(assignment.timed_out())

    def _cancelled(self, assignment: Assignment[Any], task: asyncio.Task[None], error: asyncio.CancelledError) -> None:
        interrupted = self._take_pokes_back(task)
        if task.cancelling():
            assignment.stop(TaskCancelled(f"task {assignment.id}: its event loop task was cancelled"))
            raise error
        if interrupted:
            self._interrupted(assignment)
        else:
            assignment.stop(TaskCancelled(f"task {assignment.id} cancelled itself"))

    async def _recovers(self) -> bool:
        """asyncio: take back interrupts that the coroutine swallowed; False when others cancelled this worker too."""
        task = self.task
        if task is None or not task.cancelling():
            return True
        self._take_pokes_back(task)
        if task.cancelling():
            return False
        # An interrupt in the coroutine's very last step is still to be raised, wherever the worker waits next: here.
        with suppress(asyncio.CancelledError):
            await self.crew.loop.checkpoint()
        return not task.cancelling()

    def _take_pokes_back(self, task: asyncio.Task[None]) -> bool:
        pokes, self.pokes = self.pokes, 0
        for _ in range(pokes):
            task.uncancel()
        return pokes > 0


class _Interrupted(Exception):
    """trio: the scope around a coroutine was cancelled, or its deadline passed."""


def _holds_cancelled(error: BaseException) -> bool:
    """Whether trio's cancellation is in it, alone or in a group."""
    import trio

    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
