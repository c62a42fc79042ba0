"""What is told about jobs: their state, the dead letters, the numbers of a queue. Frozen data.

Times are seconds since the epoch, by the server's clock: a job outlives the process that asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["BuryKind", "ClassStats", "DeadLetter", "JobState", "JobStats", "JobStatus", "TenantStats"]


class JobState(StrEnum):
    """Where a job is in its life."""

    DELAYED = "delayed"
    """Not due yet: enqueued with a delay, or waiting for its next attempt."""
    QUEUED = "queued"
    """Ready, and in line."""
    RUNNING = "running"
    """A worker has it."""
    DONE = "done"
    """It succeeded; its result is kept for a while."""
    DEAD = "dead"
    """It failed for good, and is among the dead letters."""
    CANCELLED = "cancelled"
    """It was taken out of the queue before it ran, or told to stop."""


class BuryKind(StrEnum):
    """Why a job is among the dead letters."""

    FAILED = "failed"
    """Its last attempt raised an error."""
    TIMEOUT = "timeout"
    """Its last attempt took too long."""
    PERMANENT = "permanent"
    """It raised a `PermanentError`."""
    KILLED = "killed"
    """The processes that ran it died, as often as they may."""
    NO_THREAD = "no-thread"
    """No worker had a free thread for it, as often as it may be handed back."""
    UNKNOWN_TASK = "unknown-task"
    """No task of its name is registered where it was to run."""
    BAD_ARGUMENTS = "bad-arguments"
    """Its arguments do not fit the function any more."""
    BAD_RESULT = "bad-result"
    """It returned what is no JSON, or is too large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """One job, as it stood when it was asked for."""

    id: str
    task: str
    state: JobState
    priority: str
    """Name of its class."""
    tenant: str
    attempts: int
    """Starts so far, the present one included."""
    deliveries: int
    """Times a worker got it, also those that were killed or gave it back."""
    enqueued_at: float
    due_at: float | None = None
    """When a delayed one is ready."""
    started_at: float | None = None
    """When a worker got it last."""
    ended_at: float | None = None
    position: int = 0
    """1 + the jobs of its class and tenant before it; 0 unless it is queued."""
    error: str | None = None
    """Of the last attempt, in one line."""
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A job that failed for good."""

    id: str
    task: str
    priority: str
    tenant: str
    kind: BuryKind
    error: str
    """Its last error, in one line."""
    traceback: str
    """Empty where there is none."""
    attempts: int
    deliveries: int
    enqueued_at: float
    died_at: float
    arguments: str
    """As JSON, shortened."""
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStats:
    """The jobs of one class."""

    name: str
    queued: int
    delayed: int
    running: int
    paused: bool
    oldest_age: float
    """Seconds the longest queued one has been in the queue; 0 without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStats:
    """The jobs of one tenant in one class."""

    tenant: str
    priority: str
    queued: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStats:
    """A whole queue."""

    queued: int
    delayed: int
    running: int
    dead: int
    kept: int
    """Results kept."""
    enqueued_total: int
    succeeded_total: int
    failed_total: int
    """Attempts that ended in an error or a timeout."""
    retried_total: int
    handed_back_total: int
    redelivered_total: int
    """Deliveries after the death of a process."""
    dead_total: int
    stale_total: int
    """Reports of attempts that were refused because the job had been delivered again."""
    workers: int
    """Processes that have jobs, or want some."""
    paused: bool
    classes: tuple[ClassStats, ...]
    tenants: tuple[TenantStats, ...]
    """The busiest, at most 50."""
