"""The workers of an executor together: who is called, hired and sent home.

The pool decides *which* task runs; the crew only runs it. So it has no line of its own: it grows when a granted task
finds nobody free, and shrinks when workers stood idle for a while. It is never larger than the pool's limit, but for
nested tasks and those of exempt classes.

A worker that ends a task gives its slot back, the pool grants the next task during that very call, and the worker
finds it in `ready`: under load a worker never sleeps between two tasks, and nobody is woken for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Any

from admission.executor.assignment import Assignment
from admission.executor.loops import WorkLoop
from admission.executor.status import Tally, WorkerHealth
from admission.executor.worker import Worker


class Crew:
    """The workers of one executor on one event loop.

    Args:
        least: Workers kept however little there is to do.
        idle_after: Seconds; workers that nobody needed for that long leave.
    """

    def __init__(self, loop: WorkLoop, tally: Tally, *, name: str, least: int, idle_after: float) -> None:
        self.loop = loop
        self.tally = tally
        self.ready: deque[Assignment[Any]] = deque()
        """Tasks that hold a permit and wait for a worker."""
        self.seeking = 0
        """Workers awake between two tasks. Invariant: len(ready) <= seeking, or somebody was called."""
        self._name = name
        self._least = least
        self._idle_after = idle_after
        self._resting: list[Worker] = []
        self._least_resting = 0
        """The fewest that rested at once since the last look: nobody needed that many."""
        self._workers: dict[int, Worker] = {}
        self._lent: Worker | None = None
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
        return sum(worker.busy for worker in self._workers.values())

    def health(self) -> list[WorkerHealth]:
        """One record per worker."""
        now = self.loop.now()
        return [worker.health(now) for _, worker in sorted(self._workers.items())]

    # ------------------------------------------------------------------ work

    def push(self, assignment: Assignment[Any]) -> None:
        """Let a worker begin it; it holds its permit."""
        self.ready.append(assignment)
        if len(self.ready) > self.seeking:
            self._call_one()

    def lend(self) -> Worker | None:
        """A resting worker, to run the first step of a task under its name; None when there is none to be had.

        asyncio only: trio's current task cannot be told. It goes back with `take_back`.
        """
        # One at a time: tasks that submit tasks must not pile up on the stack.
        if self._lent is not None or not self._resting or self.loop.scoped:
            return None
        self._lent = worker = self._resting.pop()
        if len(self._resting) < self._least_resting:
            self._least_resting = len(self._resting)
        return worker

    def take_back(self, worker: Worker) -> None:
        """The first step is over: *worker* rests again, or gets up for the steps that were handed to it."""
        self._lent = None
        if worker.handed is not None:
            self._rouse(worker, seeks=False)
        elif worker.leaving or (worker.task is not None and worker.task.cancelling()):
            self._rouse(worker, seeks=True)  # It leaves; what cancelled it was meant for the task it had lent its name.
        else:
            self._resting.append(worker)

    def rest(self, worker: Worker) -> None:
        """*worker* is about to sleep until it is called."""
        self.seeking -= 1
        self._resting.append(worker)

    def close(self) -> None:
        """Let every worker leave once it has nothing to do."""
        self._closed = True
        for worker in self._workers.values():
            worker.leaving = True
        while self._resting:
            self._rouse(self._resting.pop(), seeks=True)

    # ------------------------------------------------------------------ hands

    def _call_one(self) -> None:
        if self._resting:
            self._rouse(self._next_one(), seeks=True)
        else:
            self._hire()

    def _next_one(self) -> Worker:
        """Who is called next: the one that rests for the shortest time, for the others may not be needed at all."""
        worker = self._resting.pop()
        if len(self._resting) < self._least_resting:
            self._least_resting = len(self._resting)
        return worker

    def _rouse(self, worker: Worker, *, seeks: bool) -> None:
        sleep, worker.sleep = worker.sleep, None
        self.seeking += seeks
        if sleep is not None:
            self.loop.rouse(sleep)

    def _hire(self) -> None:
        number = 1
        while number in self._workers:
            number += 1
        worker = Worker(f"{self._name}-{number}", self)
        worker.leaving = self._closed
        self._workers[number] = worker
        self.seeking += 1
        self.loop.spawn(partial(self._employ, worker, number), f"admission worker {worker.name}")
        if not self._looking and len(self._workers) > self._least:
            self._look_again()

    async def _employ(self, worker: Worker, number: int) -> None:
        if not self.loop.scoped:
            worker.task = asyncio.current_task()
        try:
            await worker.live()
        finally:
            del self._workers[number]
            if worker in self._resting:
                self._resting.remove(worker)
            else:
                self.seeking -= 1
            if len(self.ready) > self.seeking and not self.loop.scoped and not self.loop.is_over():
                # A stray cancellation hit this one. (On trio only the end of the run does that.) If it is the loop
                # that ends, the callback never runs.
                self.loop.call_at(self.loop.now(), self._replace)

    def _replace(self) -> None:
        if len(self.ready) > self.seeking:
            self._call_one()

    def _look_again(self) -> None:
        self._looking = True
        self._least_resting = len(self._resting)
        self.loop.call_at(self.loop.now() + self._idle_after, self._shrink)

    def _shrink(self) -> None:
        """Send home who was not needed since the last look, longest rested first."""
        self._looking = False
        unneeded = max(0, min(self._least_resting, len(self._resting), len(self._workers) - self._least))
        leavers, self._resting = self._resting[:unneeded], self._resting[unneeded:]
        for worker in leavers:
            worker.leaving = True
            self._rouse(worker, seeks=True)
        if len(self._workers) - unneeded > self._least and not self._closed:
            self._look_again()
