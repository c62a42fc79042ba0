"""Every error of the project.

    AdmissionError
    ├── Rejected              never entered the line
    │   ├── QueueFull         no room in it            (also an asyncio.QueueFull)
    │   └── Closed            the pool is draining, or drained while the caller waited
    ├── Evicted               left the line without a permit: pushed out, shed
    │   └── WaitTimeout       max_wait or the deadline ran out   (also a TimeoutError)
    ├── NotRunning            used before start, or on another event loop than it was started on
    ├── TaskTimeout           an executor's task ran longer than its timeout   (also a TimeoutError)
    └── PermanentError        raised *by a task*: do not retry me

Refusals carry data, not prose to parse: `reason`, `retry_after` and `position`.
"""

from __future__ import annotations

# The class alone is wanted, so that `except asyncio.QueueFull` of existing callers goes on working.
from asyncio import QueueFull as _AsyncioQueueFull

from admission.types import Reason


class AdmissionError(Exception):
    """Base of every error raised here."""


class _Refusal(AdmissionError):
    """What all refusals carry.

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


class Rejected(_Refusal):
    """Refused on arrival; the ticket never entered the line."""


class QueueFull(Rejected, _AsyncioQueueFull):
    """The line is full and nobody in it gives way."""


class Closed(Rejected):
    """The pool is draining: it takes no one in, and whoever waited was sent away."""


class Evicted(_Refusal):
    """The ticket had entered the line and left it without a permit."""


class WaitTimeout(Evicted, TimeoutError):
    """No slot came within `max_wait` or before the deadline."""


class NotRunning(AdmissionError):
    """Used before it was started, after it was closed, or on another event loop."""


class TaskTimeout(AdmissionError, TimeoutError):
    """A task ran longer than its timeout."""


class PermanentError(AdmissionError):
    """Raise this (or a subclass) in a task to end it at once, whatever its retry policy."""
