"""`QueuedExecutor`: a bounded line in front of whatever executes tasks, and workers behind it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Literal, ParamSpec, Unpack, overload

from typing_extensions import TypeVar

from admission.controller import AdmissionController
from admission.errors import AdmissionError, Closed, Rejected
from admission.executor import eager
from admission.executor.assignment import Assignment
from admission.executor.dead_letters import DeadLetter, DeadLetters
from admission.executor.desk import Options, Place
from admission.executor.handle import Handle, ResultT, TaskStatus
from admission.executor.lifespan import lifespan_of
from admission.executor.options import Executes, ExecutesAsync, ExecutorOptions, SubmitOptions
from admission.executor.prepared import PreparedTask
from admission.executor.shop import Shop
from admission.executor.status import ExecutorStatus, WorkerHealth
from admission.line import Entry
from admission.permit import controller_of, held_entry
from admission.policy.limit import Limit
from admission.policy.retry import Retry
from admission.runners import InPool, InThread, OnLoop, Pool, Runner, Threads, callable_of, check_task, is_async
from admission.types import UNSET, BackpressureMode, Priority, PriorityClass, Reason, Unset, within

logger = logging.getLogger("admission.executor")

TaskT = TypeVar("TaskT", default=Callable[..., object])
_P = ParamSpec("_P")
_R = TypeVar("_R")

QUICK_TENANT = 32
"""Characters of a tenant's name that are no more than 128 bytes, whatever they are."""

LEAST_THREADS = 32
"""Size of the thread pool when nobody says otherwise and the limit is no larger."""

_names = itertools.count(1)


class QueuedExecutor(Generic[TaskT, ResultT]):
    """Runs tasks, at most `max_workers` at once; the others wait in line, by class and fair between tenants.

        executor = QueuedExecutor(executor=model, max_workers=4, max_queue_size=100)
        async with executor.lifespan():
            handle = await executor.submit(prompt, priority=Priority.HIGH, tenant="acme", timeout=60)
            answer = await handle

    What runs a task is *executor*: an object with `execute(task)`, or a callable that takes the task. `async def` runs
    on the event loop, anything else in threads of the executor's own, or in *pool*. Without an *executor* the task
    itself is called: `submit(fetch, url)`.

    Order, line and slots are an `AdmissionController`'s, its own or a shared one. A task keeps its slot until it really
    ends: a function in a thread cannot be stopped, so its slot stays taken after its caller has given up. A task that
    is submitted *inside* a request or task of the same pool inherits class and tenant and runs at once on the slot
    that is held already, on a worker beside the limit: waiting for a second slot would deadlock a full pool.
    Await such tasks before the request ends: one that outlives it runs on without a slot.
    It is *not* a durable queue: what has not run when the process ends is lost.

    It starts on first use; `lifespan()` adds the drain at the end. It belongs to one event loop at a time.

    Args:
        executor: What runs a task. None: the task is called itself.
        max_workers: Tasks running at once, or a `Limit` that learns how many. None: 4.
        min_workers: Workers kept while there is nothing to do. Others leave after *worker_idle* seconds.
        max_queue_size: Tasks in line at most; 0 is unlimited. None: 100.
        backpressure_mode: What a full line does with `submit`: REJECT raises `QueueFull`, BLOCK waits. None: REJECT.
        max_wait: Seconds a task waits in line at most. Unset: 30, or the class's setting; None: for ever.
        classes: The classes, highest rank first. None: critical, high, normal, low.
        controller: A pool to share, with a middleware for instance; `max_workers`, `max_queue_size`,
            `backpressure_mode`, `max_wait` and `classes` are then its own and must not be given.
        name: Of the pool and its workers in metrics and logs. None: "executor", then "executor-2" …
        timeout: Seconds one attempt of a task may run, unless `submit` says otherwise. None: no end.
        retry: What happens to tasks that fail, unless `submit` says otherwise. None: no retry.
        pool: A function that makes a `concurrent.futures` executor to run sync tasks in (it is made anew when it
            breaks), or such an executor. Functions, tasks and results must be picklable if it has processes.
        thread_pool_size: Threads for sync tasks, at least 1. None: 32, or *max_workers* if that is more.
        on_thread_pool_exhausted: "wait": a task that finds no free thread waits for one, on its slot. "retry-later":
            it gives the slot back and returns to the line later; after about 30 s it fails.
        actual_cost: What a result really cost its tenant, such as `lambda reply: reply.usage.total_tokens`.
        worker_idle: Seconds after which unneeded workers leave.
        max_dead_letters: Tasks that failed for good that `dead_letters` keeps; 0 keeps none.

    Raises:
        ValueError: An option is outside its range, or given together with *controller*.
        TypeError: *executor* can execute nothing.
    """

    @overload
    def __init__(
        self: QueuedExecutor[Callable[..., object], object],
        executor: None = None,
        **options: Unpack[ExecutorOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        executor: ExecutesAsync[TaskT, ResultT] | Callable[[TaskT], Awaitable[ResultT]],
        **options: Unpack[ExecutorOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        executor: Executes[TaskT, ResultT] | Callable[[TaskT], ResultT],
        **options: Unpack[ExecutorOptions],
    ) -> None: ...

    def __init__(
        self,
        executor: object = None,
        *,
        max_workers: int | Limit | None = None,
        min_workers: int = 0,
        max_queue_size: int | None = None,
        backpressure_mode: BackpressureMode | str | None = None,
        max_wait: float | Unset | None = UNSET,
        classes: Sequence[PriorityClass] | None = None,
        controller: AdmissionController | None = None,
        name: str | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        pool: Executor | Callable[[], Executor] | None = None,
        thread_pool_size: int | None = None,
        on_thread_pool_exhausted: Literal["wait", "retry-later"] = "wait",
        actual_cost: Callable[..., float] | None = None,
        worker_idle: float = 30.0,
        max_dead_letters: int = 1000,
    ) -> None:
        if isinstance(max_workers, int):
            within("max_workers", max_workers, 1)
        within("min_workers", min_workers, 0)
        within("timeout", timeout, 0, above_low=True)
        within("thread_pool_size", thread_pool_size, 1)
        within("worker_idle", worker_idle, 0, above_low=True)
        within("max_dead_letters", max_dead_letters, 0)
        if on_thread_pool_exhausted not in ("wait", "retry-later"):
            raise ValueError(
                f"on_thread_pool_exhausted is {on_thread_pool_exhausted!r}: it must be 'wait' or 'retry-later'"
            )
        if controller is None:
            controller = AdmissionController(
                max_concurrency=4 if max_workers is None else max_workers,
                max_queue_size=100 if max_queue_size is None else max_queue_size,
                backpressure_mode=BackpressureMode.REJECT if backpressure_mode is None else backpressure_mode,
                max_wait=30.0 if isinstance(max_wait, Unset) else max_wait,
                classes=classes,
                name=_next_name() if name is None else name,
            )
        else:
            _forbid_beside_controller(
                max_workers=max_workers,
                max_queue_size=max_queue_size,
                backpressure_mode=backpressure_mode,
                max_wait=None if isinstance(max_wait, Unset) else max_wait,
                classes=classes,
            )
        self.controller = controller
        """The pool: its `snapshot`, `resize`, `pause` and `resume` are the executor's."""
        self.name = controller.name if name is None else name
        self.dead_letters: DeadLetters[ResultT] = DeadLetters(max_dead_letters)
        """Tasks that failed for good: list, retry, purge."""
        limit = max_workers if isinstance(max_workers, int) else LEAST_THREADS
        self._threads = Threads(max(LEAST_THREADS, limit) if thread_pool_size is None else thread_pool_size, self.name)
        self._pool = None if pool is None else Pool(pool)
        self._shop = Shop(
            controller,
            name=self.name,
            threads=self._threads,
            pool=self._pool,
            least=min_workers,
            idle_after=worker_idle,
            threads_later=on_thread_pool_exhausted == "retry-later",
            actual_cost=actual_cost,
            bury=self._bury,
        )
        self._defaults = Options(timeout=timeout, retry=retry)
        self._runner = None if executor is None else self._runner_for(callable_of(executor))
        self._ranks: dict[Priority | str, int] = {}

    def __repr__(self) -> str:
        return f"<QueuedExecutor {self.name!r}: {self.controller!r}>"

    # ------------------------------------------------------------------ tasks in

    async def submit(
        self,
        task: TaskT,
        /,
        *args: object,
        priority: Priority | str | None = None,
        tenant: str | None = None,
        cost: float | None = None,
        slots: int = 1,
        max_wait: float | Unset | None = UNSET,
        deadline: float | None = None,
        timeout: float | Unset | None = UNSET,
        retry: Retry | None = None,
        metadata: Mapping[str, object] | None = None,
        on_success: Callable[[ResultT], object] | None = None,
        on_failure: Callable[[BaseException], object] | None = None,
        on_timeout: Callable[[], object] | None = None,
    ) -> Handle[ResultT]:
        """Put *task* in line and return its handle: `result = await handle`.

        In BLOCK mode this waits while there is no room in the line; in REJECT mode it never waits. The task sees the
        context variables of the caller as they are now (a copy), and its own ticket as `current_ticket()`. On asyncio a
        coroutine that may start at once does so in here, up to its first wait, as eager tasks do.

        Args:
            args: Further arguments for whatever runs the task.
            priority: Class by `Priority` or by name. None: that of the present request or task, else the default.
            tenant: Whoever shares the class fairly with others. None: that of the present request or task, else "".
            cost: What fairness charges the tenant. None: as *slots*.
            slots: Slots it holds while it runs.
            max_wait: Seconds it waits in line at most, each time it does. Unset: the class's or the executor's setting.
            deadline: Monotonic seconds (`executor.now()`) after which it is not started any more.
            timeout: Seconds one attempt may run, then it is cancelled. A function in a thread or process cannot be:
                its caller gets `TaskTimeout`, and it is not retried, because it still runs.
            retry: What happens when it fails. It holds no slot while it waits for a retry. None: the executor's
                setting; `Retry.none()` switches that off.
            metadata: For people: shown by the handle and in dead letters.
            on_success: Called with the result. Callbacks may be async; one that raises is logged, counted and otherwise
                without effect. They run when the slot is free again.
            on_failure: Called with the final error, be it the task's or a refusal after this returned; not
                when cancelled.
            on_timeout: Called instead of `on_failure` when it ran too long or waited too long.

        Raises:
            QueueFull: The line is full (REJECT mode).
            Rejected: Not taken in for another `reason`.
            WaitTimeout, Evicted: It stood in the lobby (BLOCK mode) and left it without a place in line.
            Closed: The executor or its pool drains.
            NotRunning: No event loop runs here, or the executor works on another one.
            ValueError: An argument is outside its range.
        """
        shop = self._shop
        desk, crew = shop.desk, shop.crew
        if desk is None or crew is None or not desk.loop.is_current():
            desk, crew = shop.opened()
        if (
            timeout is UNSET
            and max_wait is UNSET
            and (deadline is None and retry is None and metadata is None)
            and (on_success is None and on_failure is None and on_timeout is None)
        ):
            options = self._defaults
        else:
            options = self._options(max_wait, deadline, timeout, retry, metadata, on_success, on_failure, on_timeout)
        outer = held_entry()
        if outer is None and not shop.closing:
            rank = self.controller.default_rank if priority is None else self._rank(priority)
            place, nested = (rank, tenant or "", slots, cost), False
        else:
            place, nested = self._place_inside(outer, priority, tenant, slots, cost)
        runner = self._runner
        if runner is None:
            runner = self._runner_for(check_task(task))
        else:
            args = (task, *args)
        desk.tally.submitted += 1
        context = copy_context()
        # The quick way in checks no arguments, so it is for those that need no check.
        quick = slots == 1 and cost is None and deadline is None and not nested and len(place[1]) <= QUICK_TENANT
        controller = self.controller
        entry = controller.start_at(controller.now(), place[0], place[1], 1, 1) if quick else None
        if entry is not None and isinstance(runner, OnLoop):
            worker = crew.lend()
            if worker is not None:
                return eager.start(desk, crew, worker, runner, args, context, place, options, entry)
        assignment: Assignment[ResultT] = Assignment(desk, runner, args, context, place, nested, options)
        if entry is not None:
            assignment.granted(entry)
            return assignment
        try:
            assignment.enter()
        except BaseException as error:
            self._shop.tally.submitted -= 1
            self._shop.tally.refused += isinstance(error, Rejected)
            raise
        if assignment.in_lobby:
            await assignment.in_line()
        return assignment

    async def submit_many(
        self, tasks: Iterable[TaskT], /, **options: Unpack[SubmitOptions[ResultT]]
    ) -> list[Handle[ResultT]]:
        """Submit *tasks* in order, with the same options; one handle for each.

        A refused task does not stop the others: awaiting its handle raises what `submit` would have.
        """
        wishes = self._options(
            options.get("max_wait", UNSET),
            options.get("deadline"),
            options.get("timeout", UNSET),
            options.get("retry"),
            options.get("metadata"),
            options.get("on_success"),
            options.get("on_failure"),
            options.get("on_timeout"),
        )
        desk, _ = self._shop.opened()
        place, nested = self._place_inside(
            held_entry(),
            options.get("priority"),
            options.get("tenant"),
            options.get("slots", 1),
            options.get("cost"),
        )
        handles: list[Handle[ResultT]] = []
        for task in tasks:
            runner, args = self._runner_of(task, ())
            assignment: Assignment[ResultT] = Assignment(desk, runner, args, copy_context(), place, nested, wishes)
            handles.append(assignment)
            try:
                assignment.enter()
            except Rejected as refusal:
                assignment.refuse(refusal)
                continue
            self._shop.tally.submitted += 1
            if assignment.in_lobby:
                with suppress(AdmissionError):
                    await assignment.in_line()
        return handles

    async def execute(self, task: TaskT, /, *args: object, **options: Unpack[SubmitOptions[ResultT]]) -> ResultT:
        """Submit *task* and wait for its result. Arguments and errors as `submit`, and whatever the task raises.

        Cancelling this cancels the task, but does not wait for its end.
        """
        handle = await self.submit(task, *args, **options)
        try:
            return await handle
        except BaseException:
            handle.cancel()  # Does nothing to a task that failed.
            raise
        finally:
            del handle  # Or the traceback would hold this frame, which holds what holds the error.

    @overload
    def task(
        self: QueuedExecutor[Callable[..., object], object], task: Callable[..., Awaitable[_R]], /
    ) -> PreparedTask[_R]: ...

    @overload
    def task(self: QueuedExecutor[Callable[..., object], object], task: Callable[..., _R], /) -> PreparedTask[_R]: ...

    @overload
    def task(self, task: TaskT, /) -> PreparedTask[ResultT]: ...

    def task(self, task: Any, /) -> PreparedTask[Any]:
        """*task* to be given arguments and options step by step: `.with_args(…).with_options(…).submit()`."""
        return PreparedTask(self, task)

    @property
    def calls_tasks(self) -> bool:
        """Whether the task itself is called, because there is no *executor*."""
        return self._runner is None

    # ------------------------------------------------------------------ to look at

    def now(self) -> float:
        """Monotonic seconds, for deadlines."""
        return self.controller.now()

    def takes_tasks_here(self) -> bool:
        """Whether it was not drained, and works on the running event loop or on none yet."""
        return not self._shop.closing and (self._shop.desk is None or self._shop.desk.loop.is_current())

    @property
    def is_running(self) -> bool:
        """Whether it was started and takes tasks."""
        return self._shop.desk is not None and not self._shop.closing

    @property
    def is_healthy(self) -> bool:
        """Whether it takes tasks and no worker is stuck on a function that outran its caller."""
        stuck = self._shop.crew is not None and any(not worker.is_healthy for worker in self._shop.crew.health())
        return not (self._shop.closing or self.controller.draining or stuck)

    def get_worker_health(self) -> list[WorkerHealth]:
        """One record for each worker there is now."""
        return [] if self._shop.crew is None else self._shop.crew.health()

    def get_status(self) -> ExecutorStatus:
        """The executor at this instant, frozen."""
        tally, crew, pool = self._shop.tally, self._shop.crew, self.controller.snapshot()
        return ExecutorStatus(
            name=self.name,
            is_healthy=self.is_healthy,
            is_running=self.is_running,
            workers=0 if crew is None else crew.size,
            active_workers=0 if crew is None else crew.active,
            max_workers=pool.limit,
            total_queued=pool.queued,
            queued={each.name: each.queued for each in pool.classes},
            lobby=pool.lobby,
            retrying=tally.retrying,
            submitted=tally.submitted,
            started=tally.started,
            completed=tally.completed,
            failed=tally.failed,
            timed_out=tally.timed_out,
            cancelled=tally.cancelled,
            refused=tally.refused,
            retried=tally.retried,
            average_wait=tally.wait_seconds / tally.started if tally.started else 0.0,
            average_run_time=tally.run_seconds / tally.processed if tally.processed else 0.0,
            success_rate=tally.success_rate(),
            tasks_per_second=tally.rate(self.controller.now()),
            dead_letters=len(self.dead_letters),
            callback_errors=tally.callback_errors,
            threads_busy=self._threads.busy,
            thread_pool_size=self._threads.size,
            thread_pool_exhausted=self._threads.found_exhausted,
        )

    # ------------------------------------------------------------------ start and end

    def start(self) -> None:
        """Work on the running event loop from now on; `submit` does so by itself.

        Raises:
            NotRunning: No event loop runs here, or it works on another one that has not ended.
        """
        self._shop.closing = False
        self._shop.opened()

    def lifespan(
        self, *, drain_timeout: float | None = 30.0
    ) -> AbstractAsyncContextManager[QueuedExecutor[TaskT, ResultT]]:
        """`async with executor.lifespan():` starts it, and drains it at the end, even when cancelled.

        Args:
            drain_timeout: Seconds that queued and running tasks have to end. None: as long as they take.
        """
        within("drain_timeout", drain_timeout, 0)
        return lifespan_of(self, drain_timeout)

    async def drain(self, timeout: float | None = None) -> bool:
        """Take nothing more in and wait until queued, running and retrying tasks have ended; True when all did.

        Tasks that a running one submits inside its own slot are still taken in. When *timeout* seconds are over,
        the line is evicted (`Closed`) and running tasks are cancelled (`TaskCancelled`). A shared controller goes on.
        """
        within("timeout", timeout, 0)
        return await self._shop.drain(timeout)

    # ------------------------------------------------------------------ inside

    def _place_inside(
        self, outer: Entry | None, priority: Priority | str | None, tenant: str | None, slots: int, cost: float | None
    ) -> tuple[Place, bool]:
        """Where a task stands that is submitted under the ticket *outer*, and whether it runs on that ticket's slot."""
        nested = held_entry(self.controller.name) is not None
        if self._shop.closing and not nested:
            raise Closed(f"executor {self.name!r} is draining", reason=Reason.DRAINING)
        if outer is not None:
            if tenant is None:
                tenant = outer.tenant
            if priority is None:
                name = controller_of(outer).classes[outer.rank].name
                priority = name if any(rules.name == name for rules in self.controller.classes) else None
        rank = self.controller.default_rank if priority is None else self._rank(priority)
        return (rank, tenant or "", slots, cost), nested

    def _options(
        self,
        max_wait: float | Unset | None,
        deadline: float | None,
        timeout: float | Unset | None,
        retry: Retry | None,
        metadata: Mapping[str, object] | None,
        on_success: Callable[[ResultT], object] | None,
        on_failure: Callable[[BaseException], object] | None,
        on_timeout: Callable[[], object] | None,
    ) -> Options:
        usual = self._defaults
        if isinstance(timeout, Unset):
            timeout = usual.timeout
        elif timeout is not None and not timeout > 0:
            within("timeout", timeout, 0, above_low=True)
        if not isinstance(max_wait, Unset):
            within("max_wait", max_wait, 0)
        return Options(
            timeout,
            max_wait,
            deadline,
            usual.retry if retry is None else retry,
            metadata,
            on_success,
            on_failure,
            on_timeout,
        )

    def _rank(self, priority: Priority | str) -> int:
        rank = self._ranks.get(priority)
        if rank is None:
            rank = self._ranks[priority] = self.controller.rank_of(priority)
        return rank

    def _runner_of(self, task: TaskT, args: tuple[object, ...]) -> tuple[Runner, tuple[object, ...]]:
        """What runs *task*, and with which arguments."""
        if self._runner is None:
            return self._runner_for(check_task(task)), args
        return self._runner, (task, *args)

    def _runner_for(self, call: Callable[..., object]) -> Runner:
        if is_async(call):
            if self._pool is not None:
                raise TypeError(f"{call!r} is async: a pool runs plain functions")
            return OnLoop(call)
        if self._pool is not None:
            return InPool(call, self._pool)
        return InThread(call, self._threads)

    def _bury(self, assignment: Assignment[Any], status: TaskStatus, error: BaseException) -> None:
        letter = DeadLetter(
            id=assignment.id,
            status=status,
            error_type=type(error).__name__,
            error=str(error),
            attempts=assignment.attempts,
            priority=assignment.priority,
            tenant=assignment.tenant,
            metadata=assignment.metadata,
            failed_at=self.controller.now(),
        )
        options = replace(assignment.options, deadline=None)
        again = partial(self._submit_again, assignment.runner, assignment.args, assignment.place, options)
        self.dead_letters.add(letter, again)

    async def _submit_again(
        self, runner: Runner, args: tuple[object, ...], place: Place, options: Options
    ) -> Handle[ResultT]:
        desk, _ = self._shop.opened()
        if self._shop.closing:
            raise Closed(f"executor {self.name!r} is draining", reason=Reason.DRAINING)
        assignment: Assignment[ResultT] = Assignment(desk, runner, args, copy_context(), place, False, options)
        assignment.enter()
        self._shop.tally.submitted += 1
        if assignment.in_lobby:
            await assignment.in_line()
        return assignment


def _next_name() -> str:
    number = next(_names)
    return "executor" if number == 1 else f"executor-{number}"


def _forbid_beside_controller(**options: object) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be given together with controller: the pool has its own")
