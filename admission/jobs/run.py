"""Runs what was taken: one `Run` for each delivery, from its arrival to its report.

    arrived ──▶ read ──▶ a hand (async) | a thread ──▶ ended | broke | outran ──▶ done | retry | bury | back
                  └──▶ bury: unknown task, arguments that do not fit

A report is said once. The place and the permit are free when the function has really ended, which for a thread may be
long after its timeout was reported.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextvars import Context, ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, cast

from pydantic_core import from_json

from admission.errors import (
    AdmissionError,
    BadArguments,
    PermanentError,
    TaskCancelled,
    Unavailable,
)
from admission.executor.stepping import Steps, first_step
from admission.jobs import script
from admission.jobs.failure import Killed, Outran, Starved, describe, failure_of
from admission.jobs.hands import Hand, Hands, Suspended
from admission.jobs.script import ID_DIGITS, Answer, Said, Taken
from admission.jobs.status import Tally
from admission.jobs.task import Call, NewJob, Task, json_of, name_in, too_large
from admission.jobs.tender import ClassTender
from admission.jobs.types import BuryKind, JobState
from admission.jobs.webhook import Ending
from admission.line import Entry
from admission.permit import hold, outcome_of
from admission.policy.retry import Retry
from admission.runners import Threads
from admission.types import Outcome, PriorityClass

if TYPE_CHECKING:
    from admission.jobs.store import JobStore

__all__ = ["CurrentJob", "Run", "Runs", "current_job"]

logger = logging.getLogger("admission.jobs")

NO_THREAD = Retry.exponential(max_attempts=13, base=0.05, factor=2.0, max_delay=5.0, jitter=0.5)
"""How a job comes back that found no free thread, twelve times at most: for about 30 s."""

KEEP_AGAIN = Retry.exponential(max_attempts=10_000, base=0.05, factor=2.0, max_delay=5.0, jitter=0.5)
"""How often a result is stored for other tasks while the server does not take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentJob:
    """The job that runs here."""

    id: str
    task: str
    attempt: int
    """The first is 1."""
    delivery: int
    """Of all times a worker got it; the first is 1."""
    tenant: str
    priority: str
    """Name of its class."""
    metadata: Mapping[str, object]


_current: ContextVar[Run | None] = ContextVar("admission_job", default=None)


def current_job() -> CurrentJob | None:
    """The job the present function runs for; None outside of one."""
    run = _current.get()
    return None if run is None else run.picture()


class Listener(Protocol):
    """Whoever wants to hear how attempts ended. What it raises is its own affair: it must not raise."""

    def succeeded(self, job: CurrentJob, seconds: float) -> None:
        """An attempt was a success."""

    def failed(self, job: CurrentJob, error: BaseException, seconds: float, *, final: bool) -> None:
        """An attempt was none. *final*: there is no other."""


class Freed(Protocol):
    """Whoever counts the places."""

    def ended(self) -> None:
        """A place is free; its permit went back to the tender."""


class Verdict(Enum):
    """Why a run was interrupted."""

    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    STOPPED = "stopped"


class Runs:
    """What a worker has at the moment, and what all of it shares. Belongs to the running asyncio loop.

    Args:
        tasks: By name; only these run.
        result_ttl: Seconds results are kept.
        most_result: Bytes of a result as JSON.
        listener: Told how attempts ended. None: nobody asks.
    """

    def __init__(
        self,
        store: JobStore,
        tasks: Mapping[str, Task[..., object]],
        classes: tuple[PriorityClass, ...],
        hands: Hands,
        threads: Threads,
        tally: Tally,
        *,
        max_deliveries: int,
        result_ttl: float,
        most_result: int,
        listener: Listener | None = None,
    ) -> None:
        self.store = store
        self.classes = classes
        self.hands = hands
        self.threads = threads
        self.tally = tally
        self.loop = asyncio.get_running_loop()
        self.now = time.monotonic
        """Not the loop's clock, which on uvloop stands still during a turn."""
        self.clock = 0.0
        """What the server's clock is ahead of that, in seconds."""
        self.all: set[Run] = set()
        """Those that have not ended: also those reported whose threads go on."""
        self.intake: Freed
        self._tasks = tasks
        self._max_deliveries = max_deliveries
        self._ttl_us = round(result_ttl * 1e6)
        self._result_ttl = result_ttl
        self._most_result = most_result
        self._listener = listener
        self._keeping: set[asyncio.Task[None]] = set()
        """Results on their way to where other tasks find them."""
        self._changed: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ what comes in

    def arrived(self, taken: Taken, entry: Entry, line: ClassTender) -> None:
        """Run a job under its permit, or say why not."""
        name = name_in(taken.body)
        task = self._tasks.get(name)
        try:
            if task is None:
                raise LookupError(f"no task {name!r} is registered here")
            call = task.open(taken.body)
        except Exception as error:
            # Whatever it is, a job that cannot be read must not be the end of the worker.
            kind = BuryKind.BAD_ARGUMENTS if task is not None else BuryKind.UNKNOWN_TASK
            if not isinstance(error, BadArguments | LookupError):
                logger.exception("job %s cannot be read", taken.id)
            self._bury(taken, kind, error)
            self._unused(entry, line)
            return
        run = Run(self, taken, task, call, entry, line)
        if taken.lost >= self._max_deliveries:
            self._end_failed(run, BuryKind.KILLED, Killed(taken.lost))
            self._unused(entry, line)
            return
        self.all.add(run)
        if task.is_async:
            self.hands.push(run)
        elif not self.threads.exhausted():
            run.start_thread()
        else:
            run.find_no_thread()

    def _unused(self, entry: Entry, line: ClassTender) -> None:
        """Nothing runs under a permit, and what there was to say about its job is said."""
        line.end(entry, Outcome.IGNORED, 0.0)
        self.intake.ended()

    def has(self, id: str, delivery: int) -> bool:
        """Whether that delivery of a job is here."""
        return any(run.taken.id == id and run.taken.delivery == delivery for run in self.all)

    def cancel(self, id: str) -> None:
        """End a job, if it is here and can be: a thread goes on."""
        for run in [run for run in self.all if run.taken.id == id]:
            run.interrupt(Verdict.CANCELLED)

    def stop(self) -> None:
        """Cancel what can be, and hand everything back."""
        for run in list(self.all):
            run.interrupt(Verdict.STOPPED)

    def give_up(self) -> None:
        """Hand back what has not heeded that."""
        for run in list(self.all):
            run.give_up()

    @property
    def unreported(self) -> int:
        """Runs about which nothing was said yet."""
        return sum([not run.is_reported for run in self.all]) + len(self._keeping)

    async def ended(self) -> None:
        """Wait until everything has ended and is reported."""
        while self.all or self._keeping:
            await self._change()

    async def reported(self) -> None:
        """Wait until everything is reported: threads may go on."""
        while self.unreported:
            await self._change()

    def gone(self, run: Run) -> None:
        """A run has ended for good."""
        self.all.discard(run)
        if self._changed is not None:
            self._wake()

    async def _change(self) -> None:
        self._changed = self.loop.create_future()
        await self._changed

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            # Not at once: the report follows.
            self.loop.call_soon(_settle, self._changed)

    # ------------------------------------------------------------------ reports

    def succeeded(self, run: Run, result: object) -> None:
        """An attempt returned."""
        taken = run.taken
        text = "null"
        if result is not None:
            try:
                written = json_of("result", result, run.task.name)
                if len(written) > self._most_result:
                    raise too_large("the result", len(written), self._most_result)
                text = written.decode()
            except Exception as error:
                self._end_failed(run, BuryKind.BAD_RESULT, error)
                return
        if run.call.options.store_as is not None:
            keeping = self.loop.create_task(self._keep(run, text), name=f"admission result of job {taken.id}")
            self._keeping.add(keeping)
            keeping.add_done_callback(self._kept)
            return
        self._done(run, text)

    def _done(self, run: Run, text: str) -> None:
        taken, options = run.taken, run.call.options
        self.tally.succeeded += 1
        if options.on_success is not None:
            self._call_back(run, options.on_success, "success", result=from_json(text))
        if options.webhook is not None:
            self._tell_webhook(run, options.webhook, run.ending(JobState.DONE, result=text))
        self.store.send(script.done(taken.id, taken.delivery, text, self._ttl_us), self._heard)
        if self._listener is not None:
            self._listener.succeeded(run.picture(), run.seconds)

    async def _keep(self, run: Run, text: str) -> None:
        """Store the result for other tasks before the job counts as done: they may be started by that."""
        tries = 0
        name = run.call.options.store_as
        assert name is not None
        while True:
            try:
                await self.store.set(name, text.encode(), self._result_ttl)
                break
            except Unavailable as error:
                tries += 1
                logger.warning("the result of job %s cannot be stored as %r yet: %s", run.taken.id, name, error)
            # Not above: in the compiled build, who waits inside `except` lends its error to whatever runs meanwhile.
            await asyncio.sleep(KEEP_AGAIN.delay_for(min(tries, 20), random.random()) or 0.05)
        self._done(run, text)

    def _kept(self, keeping: asyncio.Task[None]) -> None:
        self._keeping.discard(keeping)
        if not keeping.cancelled() and keeping.exception() is not None:
            logger.error("a result could not be stored", exc_info=keeping.exception())
        self._wake()

    def failed(self, run: Run, error: BaseException) -> None:
        """An attempt raised, or took too long: another one, or the end."""
        taken, options = run.taken, run.call.options
        timed_out = isinstance(error, Outran)
        self.tally.timeouts += timed_out
        if not isinstance(error, PermanentError):
            elapsed = max(0.0, self.now() + self.clock - taken.first_started)
            delay = options.retry.next_delay(error, attempt=taken.attempt, elapsed=elapsed, random=random.random())
            if delay is not None:
                self.tally.failed += 1
                self.tally.retried += 1
                text = describe(failure_of(error))
                self.store.send(script.retry(taken.id, taken.delivery, round(delay * 1e6), text), self._heard)
                if self._listener is not None:
                    self._listener.failed(run.picture(), error, run.seconds, final=False)
                return
            kind = BuryKind.TIMEOUT if timed_out else BuryKind.FAILED
        else:
            kind = BuryKind.PERMANENT
        self._end_failed(run, kind, error)

    def _end_failed(self, run: Run, kind: BuryKind, error: BaseException) -> None:
        options, failure = run.call.options, failure_of(error)
        self.tally.failed += kind is not BuryKind.KILLED  # No attempt of this process.
        callback, outcome = options.on_failure, "failure"
        if kind is BuryKind.TIMEOUT and options.on_timeout is not None:
            callback, outcome = options.on_timeout, "timeout"
        if callback is not None:
            self._call_back(run, callback, outcome, error=failure.error)
        if options.webhook is not None:
            ending = run.ending(JobState.DEAD, kind=kind, error=failure.error)
            self._tell_webhook(run, options.webhook, ending)
        self._bury(run.taken, kind, error)
        if self._listener is not None:
            self._listener.failed(run.picture(), error, run.seconds, final=True)

    def _bury(self, taken: Taken, kind: BuryKind, error: BaseException) -> None:
        self.tally.buried += 1
        self.store.send(script.bury(taken.id, taken.delivery, kind, describe(failure_of(error))), self._heard)

    def cancelled(self, run: Run) -> None:
        """It was told to end."""
        self.tally.cancelled += 1
        taken = run.taken
        error = describe(failure_of(TaskCancelled(f"job {taken.id} was cancelled")))
        # As if it had been cancelled in the queue: nothing is kept of it. In one call, so nobody sees it dead between.
        self.store.send(script.bury(taken.id, taken.delivery, BuryKind.FAILED, error), self._heard)
        self.store.send(script.drop(taken.id))

    def hand_back(self, run: Run) -> None:
        """It shall run elsewhere, as if it had never been here."""
        self.tally.handed_back += 1
        self.store.send(script.back(run.taken.id, run.taken.delivery, 0, counted=False), self._heard)

    def no_thread(self, run: Run) -> None:
        """It shall come back when a thread may be free."""
        taken = run.taken
        delay = NO_THREAD.delay_for(taken.backs + 1, random.random())
        if delay is None:
            error = Starved(f"no thread was free for job {taken.id}, {taken.backs + 1} times")
            self._end_failed(run, BuryKind.NO_THREAD, error)
            return
        self.tally.handed_back += 1
        self.store.send(script.back(taken.id, taken.delivery, round(delay * 1e6), counted=True), self._heard)

    def _heard(self, answer: Answer) -> None:
        if answer is Said.STALE:
            self.tally.stale += 1

    def _call_back(self, run: Run, callback: str, outcome: str, **news: object) -> None:
        """Enqueue a callback."""
        taken = run.taken
        payload = {
            "id": taken.id,
            "task": run.task.name,
            "outcome": outcome,
            **news,
            "metadata": dict(run.call.metadata),
        }
        try:
            task = self._tasks[callback]
            new = task.with_options(tenant=taken.tenant, priority=self.classes[taken.rank].name).job(payload)
        except (KeyError, AdmissionError, ValueError):
            logger.exception("callback %r of job %s cannot be enqueued", callback, taken.id)
            return
        self._put_beside(run, outcome, new)

    def _tell_webhook(self, run: Run, url: str, ending: Ending) -> None:
        """Enqueue the delivery of a webhook."""
        taken, jobs = run.taken, run.task.jobs
        try:
            if jobs.webhooks is None:
                raise LookupError("the queue of this worker has no webhook_secret")
            priority = self.classes[taken.rank].name
            new = jobs.webhooks.notice(jobs, url, ending, priority=priority, tenant=taken.tenant)
        except (LookupError, AdmissionError, ValueError):
            logger.exception("the webhook of job %s cannot be enqueued", taken.id)
            return
        self._put_beside(run, "webhook", new)

    def _put_beside(self, run: Run, why: str, new: NewJob) -> None:
        """Enqueue what follows a job, before its report: if this process dies in between, both are done again.

        Its id is made from the delivery's, so saying it twice makes no second one. It finds room in a full queue, too:
        there are no more of them than jobs that have run.
        """
        taken = run.taken
        digest = hashlib.sha256(f"{taken.id} {taken.delivery} {why}".encode()).hexdigest()[:ID_DIGITS]
        self.store.send(script.follow(new.prepared.how, digest, new.body), self._called_back)

    def _called_back(self, answer: Answer) -> None:
        self.tally.callbacks += 1


def _settle(changed: asyncio.Future[None]) -> None:
    if not changed.done():
        changed.set_result(None)


class Run:
    """One delivery of a job."""

    __slots__ = (
        "_begun",
        "_entry",
        "_hand",
        "_line",
        "_reported",
        "_runs",
        "_timer",
        "_verdict",
        "call",
        "seconds",
        "since",
        "taken",
        "task",
    )

    def __init__(
        self, runs: Runs, taken: Taken, task: Task[..., object], call: Call, entry: Entry, line: ClassTender
    ) -> None:
        self.taken = taken
        self.task = task
        self.call = call
        self.since = 0.0
        self.seconds = 0.0
        """How long it ran; 0 while it does."""
        self._runs = runs
        self._entry = entry
        self._line = line
        self._hand: Hand | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._verdict: Verdict | None = None
        self._begun = False
        self._reported = False

    def picture(self) -> CurrentJob:
        """What the function may know about it."""
        taken = self.taken
        return CurrentJob(
            id=taken.id,
            task=self.task.name,
            attempt=taken.attempt,
            delivery=taken.delivery,
            tenant=taken.tenant,
            priority=self._runs.classes[taken.rank].name,
            metadata=self.call.metadata,
        )

    def ending(self, state: JobState, *, result: str = "", kind: BuryKind | None = None, error: str = "") -> Ending:
        """How it ended, for its webhook."""
        return Ending(
            id=self.taken.id,
            task=self.task.name,
            state=state,
            attempts=self.taken.attempt,
            result=result,
            kind=kind,
            error=error,
            metadata=self.call.metadata,
        )

    @property
    def is_reported(self) -> bool:
        """Whether the server was told what became of it."""
        return self._reported

    def give_up(self) -> None:
        """Hand it back, though it goes on here: what it brings is too late."""
        if not self._reported:
            self._reported = True
            self._runs.hand_back(self)

    # ------------------------------------------------------------------ on the loop

    def begin(self, hand: Hand) -> Suspended | None:
        """See `Work.begin`."""
        if self._reported:  # Handed back before a hand came to it.
            return None
        self._start()
        context = Context()
        try:
            coroutine = context.run(self._enter)
            over, outcome = first_step(coroutine, context)
        except GeneratorExit:
            raise
        except BaseException as error:
            self.broke(error)
            return None
        if over:
            self.end(outcome)
            return None
        self._hand = hand
        self._arm()
        if self._verdict is not None:  # It has cancelled itself in its first step.
            hand.interrupt()
        return coroutine, context, outcome

    def _enter(self) -> Steps:
        hold(self._entry)
        _current.set(self)
        call = self.call
        return cast("Steps", self.task.function(*call.args, **call.kwargs))

    def end(self, result: object) -> None:
        """The function returned."""
        self._free(Outcome.SUCCESS)
        if not self._reported:
            self._reported = True
            self._runs.succeeded(self, result)

    def broke(self, error: BaseException) -> None:
        """The function raised, or was cancelled."""
        verdict = self._verdict
        self._free(outcome_of(error))
        if self._reported:
            return
        self._reported = True
        if verdict is Verdict.STOPPED:
            self._runs.hand_back(self)
        elif verdict is Verdict.CANCELLED:
            self._runs.cancelled(self)
        elif verdict is Verdict.TIMEOUT:
            self._runs.failed(self, self._too_long(error))
        elif isinstance(error, asyncio.CancelledError):
            self._runs.failed(self, TaskCancelled(f"job {self.taken.id} cancelled itself"))
        else:
            self._runs.failed(self, error)

    def lost(self) -> None:
        """See `Work.lost`."""
        self._verdict = Verdict.STOPPED
        self.broke(asyncio.CancelledError())

    # ------------------------------------------------------------------ in a thread

    def start_thread(self) -> None:
        """Run the function in a thread; there is one."""
        self._start()
        context = Context()
        context.run(hold, self._entry)
        context.run(_current.set, self)
        future = self._runs.threads.submit(context, self._call_function, ())
        self._arm()
        future.add_done_callback(self._thread_ended)

    def find_no_thread(self) -> None:
        """There is none."""
        self._reported = True
        self._free(Outcome.IGNORED)
        self._runs.no_thread(self)

    def _call_function(self) -> object:
        return self.task.function(*self.call.args, **self.call.kwargs)

    def _thread_ended(self, future: Future[object]) -> None:
        """In that thread."""
        loop = self._runs.loop
        if not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._back_from_thread, future)
            except RuntimeError:
                return  # It was closed just now: nobody is left to hear of it.

    def _back_from_thread(self, future: Future[object]) -> None:
        error = future.exception()
        if error is None:
            self.end(future.result())
        else:
            self.broke(error)

    # ------------------------------------------------------------------ interrupted

    def interrupt(self, verdict: Verdict) -> None:
        """End it: a coroutine where it waits; of a thread, only the report is given now."""
        if self._verdict is not None or self._reported:
            return
        self._verdict = verdict
        if self._hand is not None:
            self._hand.interrupt()
        elif not self._begun:
            self._reported = True
            self._free(Outcome.IGNORED)
            self._say_unrun(verdict)
        elif not self.task.is_async:
            self._interrupt_thread(verdict)

    def _interrupt_thread(self, verdict: Verdict) -> None:
        if verdict is Verdict.CANCELLED:
            self._verdict = None  # It goes on, and what it brings counts.
            return
        self._reported = True
        self.seconds = self._runs.now() - self.since
        if verdict is Verdict.TIMEOUT:
            self._runs.failed(self, self._too_long(None))
        else:
            self._runs.hand_back(self)

    def _say_unrun(self, verdict: Verdict) -> None:
        if verdict is Verdict.CANCELLED:
            self._runs.cancelled(self)
        else:
            self._runs.hand_back(self)

    def _too_long(self, error: BaseException | None) -> Outran:
        outran = Outran(f"job {self.taken.id} ran longer than its timeout of {self.call.options.timeout:g} s")
        outran.__cause__ = error
        return outran

    # ------------------------------------------------------------------ begin and end

    def _start(self) -> None:
        runs, taken = self._runs, self.taken
        self._begun = True
        self.since = runs.now()
        if taken.delivery == 1:
            runs.tally.wait.observe(max(0.0, self.since + runs.clock - taken.enqueued))

    def _arm(self) -> None:
        timeout = self.call.options.timeout
        if timeout is not None:
            self._timer = self._runs.loop.call_later(timeout, self.interrupt, Verdict.TIMEOUT)

    def _free(self, outcome: Outcome) -> None:
        """The function has ended: the place and the permit are free."""
        runs = self._runs
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ran = 0.0
        if self._begun:
            ran = runs.now() - self.since
            if not self._reported:
                self.seconds = ran
            runs.tally.run.observe(ran)
        self._hand = None
        self._line.end(self._entry, outcome, ran)
        runs.intake.ended()
        runs.gone(self)
