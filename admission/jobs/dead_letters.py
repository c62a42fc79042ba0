"""Jobs that failed for good, kept for a person to look at, run again or throw away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from admission.errors import JobNotFound
from admission.jobs import script
from admission.jobs.script import Record, Said
from admission.jobs.types import DeadLetter, JobState
from admission.types import Priority

if TYPE_CHECKING:
    from admission.jobs.queue import JobQueue

__all__ = ["DeadLetters"]


class DeadLetters:
    """Those of one queue: `jobs.dead`. They are kept for its `dead_ttl`."""

    def __init__(self, jobs: JobQueue) -> None:
        self._jobs = jobs

    async def list(
        self, *, limit: int = 100, priority: Priority | str | None = None, tenant: str | None = None
    ) -> list[DeadLetter]:
        """The oldest *limit* of them, of one class or tenant, or of all.

        Raises:
            Unavailable: The server does not answer.
        """
        records = await self._jobs.records(JobState.DEAD, priority, tenant, limit)
        return [self._jobs.letter_of(record) for record in records]

    async def show(self, id: str) -> DeadLetter:
        """One of them.

        Raises:
            JobNotFound: There is none of that id.
            Unavailable: The server does not answer.
        """
        record = await self._jobs.store.ask(script.look(id))
        if not isinstance(record, Record) or record.state is not JobState.DEAD:
            raise _none(id)
        return self._jobs.letter_of(record)

    async def requeue(
        self, id: str | None = None, *, priority: Priority | str | None = None, tenant: str | None = None
    ) -> int:
        """Queue one again as if it were new, or all that match; says how many.

        Raises:
            JobNotFound: There is none of that id.
            QueueFull: The queue has as many jobs as it may; what was queued before stays so.
            Unavailable: The server does not answer.
        """
        if id is not None:
            ids = [id]
        else:
            records = await self._jobs.records(JobState.DEAD, priority, tenant, None)
            ids = [record.id for record in records]
        answers = await self._jobs.store.ask_all([script.requeue(each) for each in ids])
        if id is not None and answers[0] is Said.UNKNOWN:
            raise _none(id)
        queued = sum(answer is Said.DONE for answer in answers)
        if Said.FULL in answers:
            raise self._jobs.full(f"{queued} of {len(ids)} dead letters were queued again")
        return queued

    async def purge(
        self, id: str | None = None, *, priority: Priority | str | None = None, tenant: str | None = None
    ) -> int:
        """Forget one, or all that match; says how many.

        Raises:
            JobNotFound: There is none of that id.
            Unavailable: The server does not answer.
        """
        if id is None:
            return await self._jobs.purge(state=JobState.DEAD, priority=priority, tenant=tenant)
        await self.show(id)  # `drop` would take a kept result as well.
        if await self._jobs.store.ask(script.drop(id)) is Said.UNKNOWN:
            raise _none(id)
        return 1


def _none(id: str) -> JobNotFound:
    return JobNotFound(f"there is no dead letter {id}")
