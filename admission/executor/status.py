"""What an executor tells about itself: counters and frozen pictures of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RATE_WINDOW = 10
"""Seconds over which tasks per second are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHealth:
    """One worker at one instant."""

    name: str
    is_healthy: bool
    """False while it waits for a function that outran its timeout or was cancelled, and cannot be stopped."""
    total_processed: int
    """Attempts that ended here, well or not."""
    total_errors: int
    """How many of them raised."""
    current_task: str | None
    """Id of the task it runs; None when it is idle."""
    since: float
    """Monotonic seconds at which that began."""
    duration: float
    """Seconds since then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStatus:
    """An executor at one instant. Totals count from its creation."""

    name: str
    is_healthy: bool
    is_running: bool
    """It was started and takes tasks."""
    workers: int
    active_workers: int
    """Workers that run a task."""
    max_workers: int
    """The pool's limit now. Nested tasks and those of exempt classes run beside it."""
    total_queued: int
    queued: Mapping[str, int]
    """In line, by class."""
    lobby: int
    """Callers that wait for room in the line (BLOCK mode)."""
    retrying: int
    """Tasks between two attempts."""
    submitted: int
    started: int
    """Attempts, retries included."""
    completed: int
    failed: int
    timed_out: int
    """Tasks that outran their timeout."""
    cancelled: int
    refused: int
    """Tasks that left the line, or were kept out of it, without a permit."""
    retried: int
    average_wait: float
    """Seconds in line before an attempt; 0.0 before the first."""
    average_run_time: float
    """Seconds an attempt ran; 0.0 before the first ended."""
    success_rate: float
    """completed ÷ (completed + failed + timed out); 1.0 before the first."""
    tasks_per_second: float
    """Attempts started, over the last ten seconds."""
    dead_letters: int
    callback_errors: int
    threads_busy: int
    thread_pool_size: int
    thread_pool_exhausted: int
    """How often a task found no free thread."""

    @property
    def average_wait_time_ms(self) -> float:
        """`average_wait` in milliseconds, as the oldest dashboards want it."""
        return self.average_wait * 1000

    @property
    def thread_pool_utilisation(self) -> float:
        """Busy threads ÷ threads there may be."""
        return self.threads_busy / self.thread_pool_size


class Tally:
    """The counters of one executor: plain integers, read when somebody looks."""

    __slots__ = (
        "_first_start",
        "_seconds",
        "callback_errors",
        "cancelled",
        "completed",
        "failed",
        "in_second",
        "processed",
        "refused",
        "retried",
        "retrying",
        "run_seconds",
        "second_ends",
        "started",
        "submitted",
        "timed_out",
        "wait_seconds",
    )

    def __init__(self) -> None:
        self.submitted = self.started = self.processed = 0
        self.completed = self.failed = self.timed_out = self.cancelled = self.refused = 0
        self.retried = self.retrying = self.callback_errors = 0
        self.wait_seconds = self.run_seconds = 0.0
        self.in_second = 0
        """Starts since the second that `second_ends` closes began."""
        self.second_ends = 0.0
        self._seconds = [0] * RATE_WINDOW
        """Starts in each of the last full seconds."""
        self._first_start: float | None = None

    def start(self, now: float) -> None:
        """Count a start at *now*."""
        self.started += 1
        if now >= self.second_ends:
            self._turn(now)
        self.in_second += 1

    def rate(self, now: float) -> float:
        """Starts per second, averaged over the last full seconds and the one that runs."""
        if self._first_start is None:
            return 0.0
        if now >= self.second_ends:
            self._turn(now)
        window = RATE_WINDOW + 1 - (self.second_ends - now)
        elapsed = max(1.0, min(window, now - self._first_start))
        return (sum(self._seconds) + self.in_second) / elapsed

    def success_rate(self) -> float:
        """completed ÷ all that ended by themselves; 1.0 before the first."""
        ended = self.completed + self.failed + self.timed_out
        return self.completed / ended if ended else 1.0

    def _turn(self, now: float) -> None:
        if self._first_start is None:
            self._first_start = self.second_ends = now
        passed = int(now - self.second_ends) + 1
        self._seconds = [*self._seconds, self.in_second, *[0] * min(passed - 1, RATE_WINDOW)][-RATE_WINDOW:]
        self.in_second = 0
        self.second_ends += passed
