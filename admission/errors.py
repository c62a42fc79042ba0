"""Every error of the project.

    AdmissionError
    ├── Refusal
    │   ├── Rejected          never entered the line
    │   │   ├── QueueFull     no room in it            (also an asyncio.QueueFull)
    │   │   └── Closed        the pool is draining, or drained while the caller waited
    │   └── Evicted           left the line without a permit: pushed out, shed
    │       └── WaitTimeout   max_wait or the deadline ran out   (also a TimeoutError)
    ├── NotRunning            used before start, or on another event loop than it was started on
    ├── TaskTimeout           an executor's task ran longer than its timeout   (also a TimeoutError)
    ├── TaskCancelled         a task or job was ended by its handle, or by the end of its event loop
    ├── PermanentError        raised *by a task*: do not retry me
    ├── Unavailable           the server that keeps the jobs cannot be reached, or has no memory left
    ├── BadArguments          what a job is given does not fit its function     (also a ValueError)
    ├── PayloadTooLarge       a job, result or value is larger than it may be   (also a ValueError)
    ├── UnknownTask           no task of that name is registered                (also a LookupError)
    ├── JobNotFound           there is no such job (any more)                   (also a LookupError)
    └── JobFailed             a job failed for good: it is among the dead letters

Refusals carry data, not prose to parse: `reason`, `retry_after` and `position`.
"""

from __future__ import annotations

# The class alone is wanted, so that `except asyncio.QueueFull` of existing callers goes on working.
from asyncio import QueueFull as _AsyncioQueueFull
from collections.abc import Mapping

from admission.types import Reason


class AdmissionError(Exception):
    """Base of every error raised here."""


class Refusal(AdmissionError):
    """Base of all refusals: what they carry.

    Attributes:
        reason: Why, with few possible values: good for metrics.
        retry_after: Seconds after which it is worth coming back, jittered; None when unknown or useless.
        position: Place in line the ticket had, or would have had; None when that means nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Reason,
        retry_after: float | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after
        self.position = position


class Rejected(Refusal):
    """Refused on arrival; the ticket never entered the line."""


class QueueFull(Rejected, _AsyncioQueueFull):
    """The line is full and nobody in it gives way."""


class Closed(Rejected):
    """The pool is draining: it takes no one in, and whoever waited was sent away."""


class Evicted(Refusal):
    """The ticket had entered the line and left it without a permit."""


class WaitTimeout(Evicted, TimeoutError):
    """No slot came within `max_wait` or before the deadline."""


class NotRunning(AdmissionError):
    """Used before it was started, after it was closed, or on another event loop."""


class TaskTimeout(AdmissionError, TimeoutError):
    """A task ran longer than its timeout."""


class TaskCancelled(AdmissionError):
    """A task was ended before it had a result: `handle.cancel()`, a drain that ran out of time, the loop's end.

    Of a job: `job.cancel()`.

    No `CancelledError`: whoever awaits the task is not being cancelled.
    """


class PermanentError(AdmissionError):
    """Raise this (or a subclass) in a task to end it at once, whatever its retry policy."""


class Unavailable(AdmissionError):
    """What was asked was not acknowledged: the server cannot be reached, does not answer, or has no memory left.

    A job that was being enqueued may have been taken in all the same, if its answer was lost.
    """


class BadArguments(AdmissionError, ValueError):
    """What a job is given does not fit its function. Nothing was stored.

    Attributes:
        task: Name of the task.
        argument: Name of the argument; empty when the call as a whole does not fit.
    """

    def __init__(self, message: str, *, task: str, argument: str = "") -> None:
        super().__init__(message)
        self.task = task
        self.argument = argument


class PayloadTooLarge(AdmissionError, ValueError):
    """A job, a result or a value is larger than it may be. Nothing was sent.

    Attributes:
        size, limit: Bytes.
    """

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class UnknownTask(AdmissionError, LookupError):
    """No task of that name is registered with this queue."""


class JobNotFound(AdmissionError, LookupError):
    """There is no such job: there never was, or what was kept of it has expired."""


class JobFailed(AdmissionError):
    """A job failed for good.

    Attributes:
        kind: Why, with few possible values: those of `BuryKind`.
        error: Its last error, in one line.
        traceback: Where it was raised; empty where there is none.
        attempts: Starts in all.
    """

    def __init__(self, message: str, *, kind: str, error: str, traceback: str, attempts: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.error = error
        self.traceback = traceback
        self.attempts = attempts


def refusal(
    reason: Reason,
    *,
    pool: str,
    priority: str,
    slots: int,
    waited: float,
    retry_after: float,
    position: int | None,
) -> Refusal:
    """The exception for a ticket that was refused.

    Args:
        pool, priority, slots, waited: What its message tells: pool and class by name, seconds in line.
        retry_after: Seconds; left out where coming back is no use.
    """
    kind, text = _REFUSALS[reason]
    return kind(
        text.format(pool=pool, priority=priority, slots=slots, waited=waited),
        reason=reason,
        retry_after=None if reason in _NO_RETURN else retry_after,
        position=position,
    )


_REFUSALS: Mapping[Reason, tuple[type[Refusal], str]] = {
    Reason.QUEUE_FULL: (QueueFull, "the line of pool {pool!r} is full for class {priority!r}"),
    Reason.TENANT_FULL: (QueueFull, "the tenant has as many waiters in pool {pool!r} as it may"),
    Reason.BUSY: (Rejected, "pool {pool!r} has no free slot for class {priority!r} at this instant"),
    Reason.HOPELESS: (Rejected, "pool {pool!r} cannot serve class {priority!r} before the caller has to give up"),
    Reason.TOO_WIDE: (Rejected, "{slots} slots are more than class {priority!r} of pool {pool!r} may ever hold"),
    Reason.DRAINING: (Closed, "pool {pool!r} is draining"),
    Reason.UNAVAILABLE: (Rejected, "pool {pool!r} cannot be reached, and lets nobody in meanwhile"),
    Reason.EVICTED_DRAINING: (Closed, "pool {pool!r} is draining; the ticket had waited {waited:.3g} s"),
    Reason.TIMEOUT: (WaitTimeout, "no slot of pool {pool!r} came within {waited:.3g} s"),
    Reason.DEADLINE: (WaitTimeout, "the deadline passed after {waited:.3g} s in line of pool {pool!r}"),
    Reason.PRIORITY: (Evicted, "a higher class needed the place in the full line of pool {pool!r}"),
    Reason.FAIRNESS: (Evicted, "a tenant with fewer waiters needed the place in the full line of pool {pool!r}"),
    Reason.CODEL: (
        Evicted,
        "the line of class {priority!r} in pool {pool!r} stands; shed after {waited:.3g} s",
    ),
    Reason.CANCELLED: (Evicted, "the ticket was withdrawn after {waited:.3g} s in line of pool {pool!r}"),
    Reason.DISCONNECT: (Evicted, "the client left after {waited:.3g} s in line of pool {pool!r}"),
}

_NO_RETURN = frozenset({Reason.TOO_WIDE, Reason.CANCELLED, Reason.DISCONNECT})
"""Refusals after which coming back is no use."""
