"""Durable jobs that share the capacity of online requests."""

from admission.jobs.hooks import Hooks
from admission.jobs.job import Job
from admission.jobs.queue import JobQueue
from admission.jobs.run import CurrentJob, current_job
from admission.jobs.status import WorkerStatus
from admission.jobs.task import NewJob, PreparedJob, Task
from admission.jobs.types import BuryKind, ClassStats, DeadLetter, JobState, JobStats, JobStatus, TenantStats
from admission.jobs.worker import Worker

__all__ = [
    "BuryKind",
    "ClassStats",
    "CurrentJob",
    "DeadLetter",
    "Hooks",
    "Job",
    "JobQueue",
    "JobState",
    "JobStats",
    "JobStatus",
    "NewJob",
    "PreparedJob",
    "Task",
    "TenantStats",
    "Worker",
    "WorkerStatus",
    "current_job",
]
