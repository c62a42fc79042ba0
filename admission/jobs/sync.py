"""The queue for callers that block: threads, scripts, synchronous web workers."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from admission.errors import NotRunning
from admission.jobs.job import Job
from admission.jobs.task import NewJob
from admission.jobs.types import JobState, JobStats, JobStatus
from admission.types import Priority

if TYPE_CHECKING:
    from admission.jobs.queue import JobQueue

__all__ = ["SyncJobs"]

T = TypeVar("T")


class SyncJobs:
    """Blocking twins of a queue's methods, safe to call from any thread that runs no event loop: `jobs.sync`.

    Behind them is a thread with an event loop, started at the first call and ended by `close`, or with the process.
    """

    def __init__(self, jobs: JobQueue) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._stack: ExitStack | None = None
        self._portal: BlockingPortal | None = None
        self._process = 0

    def __enter__(self) -> SyncJobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. The next call starts anew."""
        with self._lock:
            portal, stack = self._portal, self._stack
            self._portal = self._stack = None
            atexit.unregister(self.close)
            if portal is None or stack is None or self._process != os.getpid():
                return
            with stack:
                portal.call(self._jobs.aclose)

    def run(self, function: Callable[[], Coroutine[object, object, T]]) -> T:
        """What *function* returns, run on the loop behind. For what has no twin here.

        Raises:
            NotRunning: Called on an event loop, which it would hold up.
        """
        if asyncio._get_running_loop() is not None:
            raise NotRunning("a blocking call would hold up the event loop it was made on; await the async method")
        return self._started().call(function)

    def enqueue(self, job: NewJob) -> Job:
        """As `JobQueue.enqueue`."""

        async def enqueue() -> Job:
            return await self._jobs.enqueue(job)

        return self.run(enqueue)

    def enqueue_many(self, jobs: Sequence[NewJob]) -> list[Job]:
        """As `JobQueue.enqueue_many`."""

        async def enqueue_many() -> list[Job]:
            return await self._jobs.enqueue_many(jobs)

        return self.run(enqueue_many)

    def status(self, job: Job) -> JobStatus:
        """As `Job.status`."""
        return self.run(job.status)

    def result(self, job: Job, timeout: float | None = None) -> object:
        """As `Job.result`."""

        async def result() -> object:
            return await job.result(timeout)

        return self.run(result)

    def cancel(self, job: Job) -> bool:
        """As `Job.cancel`."""
        return self.run(job.cancel)

    def stats(self) -> JobStats:
        """As `JobQueue.stats`."""
        return self.run(self._jobs.stats)

    def ls(
        self,
        *,
        state: JobState | str = JobState.QUEUED,
        priority: Priority | str | None = None,
        tenant: str | None = None,
        limit: int = 100,
    ) -> list[JobStatus]:
        """As `JobQueue.ls`."""

        async def ls() -> list[JobStatus]:
            return await self._jobs.ls(state=state, priority=priority, tenant=tenant, limit=limit)

        return self.run(ls)

    def purge(self, *, state: JobState | str, priority: Priority | str | None = None, tenant: str | None = None) -> int:
        """As `JobQueue.purge`."""

        async def purge() -> int:
            return await self._jobs.purge(state=state, priority=priority, tenant=tenant)

        return self.run(purge)

    def pause(self, priority: Priority | str | None = None) -> None:
        """As `JobQueue.pause`."""

        async def pause() -> None:
            await self._jobs.pause(priority)

        self.run(pause)

    def resume(self, priority: Priority | str | None = None) -> None:
        """As `JobQueue.resume`."""

        async def resume() -> None:
            await self._jobs.resume(priority)

        self.run(resume)

    def push(self, name: str, value: object, *, ttl: float | None = None) -> None:
        """As `JobQueue.push`."""

        async def push() -> None:
            await self._jobs.push(name, value, ttl=ttl)

        self.run(push)

    def pull(self, name: str) -> object:
        """As `JobQueue.pull`."""

        async def pull() -> object:
            return await self._jobs.pull(name)

        return self.run(pull)

    def _started(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None or self._process != os.getpid():  # A fork has no threads of its parent.
                self._process = os.getpid()
                self._stack = ExitStack()
                self._portal = self._stack.enter_context(start_blocking_portal(name="admission-jobs"))
                atexit.register(self.close)
            return self._portal
