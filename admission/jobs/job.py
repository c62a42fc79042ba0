"""What whoever enqueued a job holds on to. Only its id: another process makes one with `jobs.job(id)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import from_json

from admission.errors import JobFailed, JobNotFound, TaskCancelled
from admission.jobs import failure, script
from admission.jobs.script import Record, Said, Stats
from admission.jobs.types import JobState, JobStatus

if TYPE_CHECKING:
    from admission.jobs.queue import JobQueue

__all__ = ["Job", "estimated_wait"]


class Job:
    """One job, wherever it is.

    Attributes:
        id: 24 hex digits.
        duplicate: Whether it was there already, under the same `dedup_key`.
    """

    __slots__ = ("_cancelled", "_jobs", "duplicate", "id")

    def __init__(self, jobs: JobQueue, id: str, *, duplicate: bool = False) -> None:
        self._jobs = jobs
        self.id = id
        self.duplicate = duplicate
        self._cancelled = False

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    async def status(self) -> JobStatus:
        """Where it is now.

        Raises:
            JobNotFound: There is no such job: it was cancelled, or what was kept of it has expired.
            Unavailable: The server does not answer.
        """
        return self._jobs.status_of(await self._look())

    async def position(self) -> int:
        """1 + the queued jobs of its class and tenant before it; 0 unless it is queued. Raises as `status`."""
        return (await self._look()).position

    async def estimated_wait(self) -> float | None:
        """Seconds until it starts, at the pace at which jobs ended lately; 0.0 when it is not in line.

        None while no pace is known: it is seen by looking twice, at least a tenth of a second apart.

        Raises:
            JobNotFound, Unavailable: As in `status`.
        """
        answers = await self._jobs.store.ask_all((script.stats(), script.look(self.id)))
        stats, record = answers
        assert isinstance(stats, Stats)
        self._jobs.pace.saw(stats, self._jobs.now())
        if not isinstance(record, Record):
            raise self._gone()
        return estimated_wait(self._jobs, stats, record)

    async def result(self, timeout: float | None = None) -> object:
        """What the function returned, as JSON gives it back. Waits for the end of the job.

        Args:
            timeout: Seconds; None: as long as it takes.

        Raises:
            TimeoutError: It has not ended within *timeout*.
            JobFailed: It failed for good.
            TaskCancelled: It was cancelled by this handle.
            JobNotFound: There is no such job (any more), or its result was not kept.
            Unavailable: The server does not answer.
        """
        record = await self._jobs.endings.ended(self.id, timeout)
        if record is None:
            raise self._gone()
        if record.state is JobState.DONE:
            return from_json(record.result) if record.result else None
        if record.state is JobState.CANCELLED:
            raise TaskCancelled(f"job {self.id} was cancelled")
        error, traceback = failure.read(record.error)
        kind = record.kind.value if record.kind is not None else ""
        raise JobFailed(
            f"job {self.id} failed ({kind}) after {record.attempt} attempts: {error}",
            kind=kind,
            error=error,
            traceback=traceback,
            attempts=record.attempt,
        )

    async def cancel(self) -> bool:
        """End it; False when it had ended already, or is unknown.

        Queued or delayed, it is gone when this returns. Running, its worker is told: a coroutine is cancelled where it
        waits, a function in a thread cannot be stopped.

        Raises:
            Unavailable: The server does not answer.
        """
        answer = await self._jobs.store.ask(script.cancel(self.id))
        self._cancelled = self._cancelled or answer in (Said.DONE, Said.RUNNING)
        return answer in (Said.DONE, Said.RUNNING)

    async def _look(self) -> Record:
        record = await self._jobs.store.ask(script.look(self.id))
        if not isinstance(record, Record):
            raise self._gone()
        return record

    def _gone(self) -> TaskCancelled | JobNotFound:
        if self._cancelled:
            return TaskCancelled(f"job {self.id} was cancelled")
        return JobNotFound(
            f"there is no job {self.id}: it was cancelled, or what was kept of it has expired, or it never was"
        )


def estimated_wait(jobs: JobQueue, stats: Stats, record: Record) -> float | None:
    """Seconds until a job starts; 0.0 when it is not in line, None while no pace is known. *stats* may be a bit old."""
    pace = jobs.pace.rate
    if record.state not in (JobState.QUEUED, JobState.DELAYED):
        return 0.0
    if pace is None:
        return None
    delay = 0.0 if record.due is None else max(0.0, record.due - jobs.now())
    return delay + _ahead(stats, record) / pace


def _ahead(stats: Stats, record: Record) -> int:
    """Jobs that start before it, itself included: those of higher classes, and in fair turns those of its own."""
    if record.state is JobState.DELAYED:
        return sum(each.queued for each in stats.classes[: record.rank + 1]) + 1
    higher = sum(each.queued for each in stats.classes[: record.rank])
    queued = stats.classes[record.rank].queued if record.rank < len(stats.classes) else record.position
    others = [each for each in stats.tenants if each.rank == record.rank and each.tenant != record.tenant]
    turns = record.position + sum(min(each.queued, record.position) for each in others)
    return higher + max(1, min(turns, queued))
