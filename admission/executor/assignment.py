"""A task on its way through an executor: into the line, to a worker, perhaps back for a retry, to its end.

    enter ──▶ (line) ──▶ decided ──▶ crew.push ──▶ begin ──▶ succeed | fail | stop
      ▲                                                          │
      └──────────────── retry.next_delay, without a slot ◀───────┘

It is the handle the submitter holds *and* the waiter the pool tells: one object per task, because a no-op task may cost
five microseconds in all. The slot is held from the grant to the real end of the attempt. State first, callbacks after.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from admission.errors import AdmissionError, Closed, Rejected, TaskCancelled, TaskTimeout, WaitTimeout
from admission.executor.desk import Desk, Options, Place, Worker
from admission.executor.handle import (
    CANCELLED,
    FAILED,
    LOBBY,
    NO_METADATA,
    QUEUED,
    REFUSED,
    RETRYING,
    RUNNING,
    SUCCEEDED,
    TIMED_OUT,
    UNDECIDED,
    Handle,
    ResultT,
    TaskStatus,
)
from admission.line import ASKED, Entry
from admission.line import LOBBY as IN_LOBBY
from admission.line import RUNNING as GRANTED
from admission.permit import hold, outcome_of
from admission.policy.retry import Retry
from admission.runners import Runner
from admission.types import Outcome, Reason

if TYPE_CHECKING:
    from admission.waker import Timer

THREAD_BACKOFF = Retry.exponential(max_attempts=12, base=0.05, factor=2.0, max_delay=5.0, jitter=0.5)
"""How a task that found no free thread comes back, where the policy is to come back later: for about 30 s."""


WAITING = (QUEUED, LOBBY)


class Assignment(Handle[ResultT]):
    """One submitted task. The submitter sees a `Handle`."""

    __slots__ = (
        "_attempts",
        "_entry",
        "_first_id",
        "_first_start",
        "_future",
        "_last_error",
        "_nested",
        "_thread_tries",
        "_timer",
        "_worker",
        "args",
        "context",
        "desk",
        "interrupted",
        "options",
        "place",
        "runner",
    )

    def __init__(
        self,
        desk: Desk,
        runner: Runner,
        args: tuple[object, ...],
        context: Context,
        place: Place,
        nested: bool,
        options: Options,
    ) -> None:
        super().__init__(desk.loop)
        self.desk = desk
        self.runner = runner
        self.args = args
        self.context = context
        """The submitter's context variables, untouched."""
        self.options = options
        self.interrupted: TaskStatus | None = None
        """TIMED_OUT or CANCELLED, once the running attempt was told to end."""
        self.place = place
        self._nested = nested
        """It runs at once, on the slot of the request or task that submitted it."""
        self._attempts = 0
        self._entry: Entry | None = None
        """Its ticket, granted or not; None for a nested task, which runs on its parent's slot."""
        self._first_id: str | None = None
        self._worker: Worker | None = None
        self._thread_tries = 0

    _first_start: float
    _last_error: BaseException
    _timer: Timer
    _future: Future[object] | None
    """Set while it runs in a thread or another process."""

    # ------------------------------------------------------------------ the handle

    @property
    def id(self) -> str:
        if self._first_id is None:
            entry = self._entry
            self._first_id = f"nested-{id(self):x}" if entry is None else self.desk.controller.id_of(entry)
        return self._first_id

    @property
    def position(self) -> int:
        if self._entry is None or self._status not in WAITING:
            return 0
        return self.desk.controller.position_of(self._entry)

    @property
    def estimated_wait(self) -> float | None:
        if self._entry is None or self._status not in WAITING:
            return 0.0
        return self.desk.controller.predicted_wait_of(self._entry)

    @property
    def attempts(self) -> int:
        return self._attempts

    @property
    def metadata(self) -> Mapping[str, object]:
        return self.options.metadata or NO_METADATA

    @property
    def priority(self) -> str:
        """Name of its class."""
        return self.desk.controller.classes[self.place[0]].name

    @property
    def tenant(self) -> str:
        """Whose task it is."""
        return self.place[1]

    def cancel(self) -> bool:
        if self._status not in UNDECIDED:
            return False
        self._end(CANCELLED, TaskCancelled(f"task {self.id} was cancelled"), Reason.CANCELLED)
        return True

    def evict(self) -> None:
        """End it, whatever it does: the drain's grace is over."""
        if self._status in UNDECIDED:
            if self._status in WAITING:
                error: AdmissionError = Closed(f"task {self.id}: drained", reason=Reason.EVICTED_DRAINING)
                self._end(REFUSED, error, Reason.EVICTED_DRAINING)
            else:
                error = TaskCancelled(f"task {self.id} did not end within the drain's grace")
                if self._status is RETRYING:
                    error.__cause__ = self._last_error
                self._end(CANCELLED, error, Reason.EVICTED_DRAINING)

    def _end(self, status: TaskStatus, error: AdmissionError, reason: Reason) -> None:
        if self._status is RUNNING:
            self.interrupt(CANCELLED, error)
            return
        entry = self._entry
        if self._status is RETRYING:
            self._timer.cancel()
            self.desk.tally.retrying -= 1
        elif entry is not None and entry.state is not GRANTED:
            # Decided before it is withdrawn: whatever the withdrawal sets off finds it gone.
            self._finish(status, error)
            self.desk.controller.withdraw(entry, reason)
            entry.waiter = None
            return
        self._finish(status, error)
        self._give_back(Outcome.IGNORED)  # Granted, but no worker has begun it.

    def interrupt(self, status: TaskStatus, error: AdmissionError) -> None:
        """End the running attempt: a coroutine where it waits, a thread's by no longer caring for its result."""
        if self._future is None:
            if self.interrupted is None:
                self.interrupted = status
            if self._worker is not None:
                self._worker.interrupt()
            return
        self._finish(status, error)
        self._future.cancel()

    # ------------------------------------------------------------------ into the line

    def enter(self) -> None:
        """Ask for a slot. Raises Rejected, and then it is in no line."""
        desk, (rank, tenant, slots, cost) = self.desk, self.place
        desk.open.add(self)
        if self._nested:
            desk.crew.push(self)
            return
        try:
            self._entry = entry = desk.controller.enqueue(
                self, rank, tenant, slots, cost, max_wait=self.options.max_wait, deadline=self.options.deadline
            )
        except BaseException:
            desk.open.discard(self)
            raise
        if entry.state in (IN_LOBBY, ASKED):  # Whoever submits a task wants to know whether it was taken in.
            self._move_to(LOBBY)

    def granted(self, entry: Entry) -> None:
        """It holds the slot of *entry* already: a worker is all it needs."""
        self._entry = entry
        self.desk.open.add(self)
        self.desk.crew.push(self)

    def adopt(self, worker: Worker, entry: Entry, started: float) -> None:
        """Its first attempt began elsewhere, at *started*, on the slot of *entry*."""
        self.desk.open.add(self)
        self._entry = entry
        self._worker = worker
        self._future = None
        self._attempts = 1
        self._first_start = started
        self._status = RUNNING

    @property
    def in_lobby(self) -> bool:
        """Whether it waits for room in the line."""
        return self._status is LOBBY

    async def in_line(self) -> None:
        """Wait until it left the lobby. Cancelled, it leaves altogether. Raises the refusal if it was refused there."""
        try:
            while self._status is LOBBY:
                await self._changed()
        except BaseException:
            self.cancel()
            raise
        if self._status is REFUSED and self._error is not None:
            raise self._error

    def refuse(self, error: Rejected) -> None:
        """It was not taken in, and its handle shall say so."""
        self._finish(REFUSED, error)

    def entered(self, entry: Entry) -> None:
        """From the lobby into the line."""
        if self._status is LOBBY:
            self._move_to(QUEUED)

    def decided(self, entry: Entry) -> None:
        """Granted, or refused while it waited."""
        self._entry = entry
        entry.waiter = None  # The pool may remember an entry for a while, but shall not remember its task.
        desk = self.desk
        if entry.state is GRANTED:
            if self._status is LOBBY:
                self._move_to(QUEUED)
            if self._status is not QUEUED:  # Cancelled in the same instant: the next one's turn.
                self._give_back(Outcome.IGNORED)
                return
            desk.tally.wait_seconds += entry.granted_at - entry.arrival
            desk.crew.push(self)
        elif self._status in WAITING:
            error = desk.controller.refusal(entry)
            if self._attempts:
                error.__cause__ = self._last_error
            self._finish(REFUSED, error)

    # ------------------------------------------------------------------ an attempt

    def begin(self, worker: Worker, now: float) -> Context | None:
        """Start an attempt: the context to run it in, or None when there is nothing to run any more."""
        if self._status is not QUEUED:
            self._give_back(Outcome.IGNORED)
            return None
        options = self.options
        if options.deadline is not None and now >= options.deadline:
            self._give_back(Outcome.IGNORED)
            self._finish(REFUSED, self._too_late())
            return None
        if not self.runner.inline and self.runner.exhausted() and self.desk.threads_later:
            self._come_back_for_a_thread(now)
            return None
        self._worker = worker
        self._future = None
        if self._attempts == 0:
            self._first_start = now
        self._attempts += 1
        self._status = RUNNING
        if self._watchers is not None:
            self._move_to(RUNNING)
        # A retry must not see what the attempt before it did to the context variables.
        context = self.context if options.retry is None else self.context.copy()
        if self._entry is not None:
            context.run(hold, self._entry)
        return context

    def runs_in(self, future: Future[object] | None) -> None:
        """The attempt runs in a thread or another process; None: no longer."""
        self._future = future

    def outran(self) -> None:
        """The attempt took longer than its timeout."""
        if self._status is RUNNING:
            self.interrupt(TIMED_OUT, self.timed_out())

    def timed_out(self) -> TaskTimeout:
        """The error of an attempt that took too long."""
        return TaskTimeout(f"task {self.id} ran longer than its timeout of {self.options.timeout:g} s")

    def succeed(self, result: ResultT) -> None:
        """The attempt returned *result*."""
        desk, entry = self.desk, self._entry
        # A task may have settled its account by itself, with `current_permit().release(actual_cost=…)`.
        if entry is not None and entry.state is GRANTED:
            desk.controller.finish(entry, Outcome.SUCCESS, desk.cost_of(result))
        if self._status is not RUNNING:  # Its caller was told to wait no longer; only the slot was due.
            self._forget()
            return
        desk.tally.completed += 1
        self._result = result
        self._error = None
        self._forget()
        self._decide(SUCCEEDED)
        if self.options.on_success is not None:
            desk.call_back(self.context, self.options.on_success, result)

    def fail(self, error: BaseException) -> None:
        """The attempt raised *error*, or outran its timeout."""
        self._give_back(outcome_of(error))
        if self._status is not RUNNING:
            self._forget()
        elif self.interrupted is CANCELLED:  # It raised something else on its way out.
            cancelled = TaskCancelled(f"task {self.id} was cancelled")
            cancelled.__cause__ = error
            self._finish(CANCELLED, cancelled)
        else:
            self._try_again_or_end(error)

    def stop(self, error: TaskCancelled) -> None:
        """The attempt was cancelled."""
        self._give_back(Outcome.IGNORED)
        if self._status is RUNNING:
            self._finish(CANCELLED, error)
        else:
            self._forget()

    def leave_slot_to(self, future: Future[object]) -> None:
        """The event loop ends before the thread does: the slot is taken until then."""
        _ = self.id
        entry, self._entry = self._entry, None
        if entry is not None:
            release = self.desk.controller.release_from_anywhere
            future.add_done_callback(lambda _: release(entry, Outcome.IGNORED, None, None))

    # ------------------------------------------------------------------ after an attempt

    def _try_again_or_end(self, error: BaseException) -> None:
        self._last_error = error
        now, options = self._loop.now(), self.options
        delay = None
        if options.retry is not None:
            elapsed = now - self._first_start
            delay = options.retry.next_delay(error, attempt=self._attempts, elapsed=elapsed, random=random.random())
        if delay is None or (options.deadline is not None and now + delay >= options.deadline):
            self._end_failed(error)
            return
        self.desk.tally.retried += 1
        self._come_back(now + delay)

    def _come_back(self, when: float) -> None:
        _ = self.id  # It is that of the first ticket, and the next attempt has another.
        self._entry = None
        self.interrupted = None
        self._worker = None
        self.desk.tally.retrying += 1
        self._timer = self._loop.call_at(when, self._again)
        self._move_to(RETRYING)

    def _again(self) -> None:
        if self._status is not RETRYING:
            return
        self.desk.tally.retrying -= 1
        self._move_to(QUEUED)
        try:
            self.enter()
        except Closed as closed:
            self._finish(REFUSED, closed)
        except Rejected as rejected:
            if self._attempts == 0:
                self._finish(REFUSED, rejected)
                return
            # A retry that was turned away counts as an attempt, or a full line would be asked for ever.
            self._attempts += 1
            self._last_error.add_note(f"attempt {self._attempts} was not taken into the line: {rejected}")
            self._try_again_or_end(self._last_error)

    def _come_back_for_a_thread(self, now: float) -> None:
        self._thread_tries += 1
        delay = THREAD_BACKOFF.delay_for(self._thread_tries, random.random())
        self._give_back(Outcome.IGNORED)
        if delay is not None:
            self._come_back(now + delay)
            return
        error = Rejected(f"task {self.id}: no thread was free, {self._thread_tries} times", reason=Reason.BUSY)
        self._end_failed(error)

    def _end_failed(self, error: BaseException) -> None:
        status = TIMED_OUT if isinstance(error, TaskTimeout) else FAILED
        self._finish(status, error)

    def _finish(self, status: TaskStatus, error: BaseException) -> None:
        """The end of every task that did not succeed."""
        tally, options = self.desk.tally, self.options
        self._error = error
        on_end: Callable[[], object] | None = None
        if options.on_failure is not None and status is not CANCELLED:
            on_end = partial(options.on_failure, error)
        if options.on_timeout is not None and isinstance(error, TaskTimeout | WaitTimeout):
            on_end = options.on_timeout
        if status is FAILED or status is TIMED_OUT:
            tally.failed += status is FAILED
            tally.timed_out += status is TIMED_OUT
            self.desk.bury(self, status, error)
            if on_end is None:
                self._sound_alarm(error)
        elif status is CANCELLED:
            tally.cancelled += 1
        else:
            tally.refused += 1
        if self._status is not RUNNING or self._future is None:
            self._forget()  # Else its thread still runs and holds the slot.
        self._decide(status)
        if on_end is not None:
            self.desk.call_back(self.context, on_end)

    def _too_late(self) -> WaitTimeout:
        return WaitTimeout(f"task {self.id}: its deadline passed before it could start", reason=Reason.DEADLINE)

    def _give_back(self, outcome: Outcome) -> None:
        entry = self._entry
        if entry is not None and entry.state is GRANTED:
            self.desk.controller.finish(entry, outcome)

    def _forget(self) -> None:
        """Hold nothing that a kept handle does not need."""
        self.args = ()
        desk = self.desk
        desk.open.discard(self)
        if not desk.open:
            desk.emptied()
