"""The shortest way through the executor: a coroutine that ends in its first step, inside `submit`.

While a slot is free and nobody waits, the first step of a coroutine happens at once, in the submitter's task but under
the name of a resting worker: the event loop is told that the worker's task runs, so that timeouts and task groups
opened in the first step belong to the task that runs the others. A task that ends there needs no wake-up, no future
and no assignment; one that goes on to wait is handed to the worker whose name it ran under. It is what
`asyncio.eager_task_factory` does from Python 3.12 on, with the pool's slots around it.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from contextvars import Context
from typing import Final, cast

from admission.errors import TaskCancelled
from admission.executor.assignment import Assignment
from admission.executor.crew import Crew
from admission.executor.desk import Desk, Options, Place
from admission.executor.finished import Finished
from admission.executor.handle import Handle, ResultT
from admission.executor.stepping import Steps, as_raised, first_step
from admission.executor.worker import Worker
from admission.line import RUNNING, Entry
from admission.permit import hold
from admission.runners import OnLoop
from admission.types import Outcome

# Bound to names: this runs for every task.
_enter_task: Final = asyncio._enter_task
_leave_task: Final = asyncio._leave_task


def start(
    desk: Desk,
    crew: Crew,
    worker: Worker,
    runner: OnLoop,
    args: tuple[object, ...],
    context: Context,
    place: Place,
    options: Options,
    entry: Entry,
) -> Handle[ResultT]:
    """Run the first step of a task whose *entry* runs already, under the name of *worker*, which is given back."""
    task = worker.task
    assert task is not None
    loop, tally, started = task.get_loop(), desk.tally, entry.granted_at
    worker.ticket = entry
    worker.since = started
    tally.start(started)
    # A retry must not see what this attempt does to the context variables.
    inside = context if options.retry is None else context.copy()
    coroutine: Steps | None = None
    error: BaseException | None = None
    outcome: object = None
    over = False
    submitter = current_task(loop)
    if submitter is not None:
        _leave_task(loop, submitter)
    _enter_task(loop, task)
    try:
        inside.run(hold, entry)
        coroutine = runner.begin(inside, args)
        over, outcome = first_step(coroutine, inside)
    except BaseException as raised:
        error = as_raised(raised)
    finally:
        _leave_task(loop, task)
        if submitter is not None:
            _enter_task(loop, submitter)
    worker.ticket = None
    if over:
        result = cast(ResultT, outcome)
        worker.processed += 1
        tally.processed += 1
        tally.completed += 1
        now = desk.loop.now()
        tally.run_seconds += now - started
        crew.take_back(worker)
        # A task may have settled its account by itself, with `current_permit().release(actual_cost=…)`.
        settles = desk.actual_cost is not None or not desk.controller.finish_at(now, entry)
        if settles and entry.state is RUNNING:
            desk.controller.finish(entry, Outcome.SUCCESS, None if desk.actual_cost is None else desk.cost_of(result))
        if options.on_success is not None:
            desk.call_back(context, options.on_success, result)
        return Finished(desk, entry, options, result)
    assignment: Assignment[ResultT] = Assignment(desk, runner, args, context, place, False, options)
    assignment.adopt(worker, entry, started)
    if error is None and coroutine is not None:
        worker.assignment = assignment
        worker.handed = (assignment, coroutine, inside, outcome)
        crew.take_back(worker)
        return assignment
    worker.ended()
    worker.errors += 1
    crew.take_back(worker)
    try:
        if isinstance(error, asyncio.CancelledError):
            assignment.stop(TaskCancelled(f"task {assignment.id} cancelled itself"))
        elif error is not None:
            assignment.fail(error)
        return assignment
    finally:
        del assignment, error  # See `as_raised`.
