"""Durable jobs that share the capacity of online requests."""

from admission.jobs.job import Job
from admission.jobs.queue import JobQueue
from admission.jobs.task import NewJob, PreparedJob, Task
from admission.jobs.types import BuryKind, ClassStats, DeadLetter, JobState, JobStats, JobStatus, TenantStats

__all__ = [
    "BuryKind",
    "ClassStats",
    "DeadLetter",
    "Job",
    "JobQueue",
    "JobState",
    "JobStats",
    "JobStatus",
    "NewJob",
    "PreparedJob",
    "Task",
    "TenantStats",
]
