"""Takes jobs and runs them, in the room that the shared pool leaves.

        jobs ──▶ Intake: permits (Tender), takes ──▶ Runs: hands, threads ──▶ reports
                     ▲                                     │
                     └───────── places, permits ───────────┘

It is no pool and no queue: how many jobs may run beside the online requests is the pool's decision, which is next the
queue's. It may live in a process of its own (`admission worker`) or in a web app's lifespan, sharing its controller.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from admission.controller import AdmissionController
from admission.errors import NotRunning
from admission.jobs import takers
from admission.jobs.hands import Hands
from admission.jobs.hooks import Hooks
from admission.jobs.intake import Intake
from admission.jobs.run import Runs
from admission.jobs.script import Message, Reply, Tenants
from admission.jobs.status import Tally, WorkerStatus
from admission.jobs.store import JobStore
from admission.runners import Threads
from admission.types import within

if TYPE_CHECKING:
    from admission.jobs.queue import JobQueue

__all__ = ["Worker"]

logger = logging.getLogger("admission.jobs")

LAST_WORD = 2.0
"""Seconds that cancelled jobs have to end, when the grace is over."""

MOST_WORKERS = 10_000
MOST_THREADS = 1_000

EVERYBODY = "*"

NO_HOOKS = Hooks()


class Stop(Protocol):
    """An event, of asyncio or anyio."""

    async def wait(self) -> object:
        """Return once it is set."""


class Worker:
    """Runs the jobs of a queue.

        async with Worker(jobs, workers=100):
            ...

    Leaving the block stops it: it takes no more, what runs has *grace* seconds to end, and what has not ended by then
    is cancelled and handed back to the queue. Runs on asyncio.

    Args:
        jobs: The queue; only its registered tasks run.
        workers: Jobs it may have at once, 1 to 10,000.
        threads: Threads for tasks that are not async, 1 to 1,000.
        tenants: Take only their jobs. None: everybody's.
        steal: Whose jobs to take when *tenants* have none: names, or "*" for everybody's.
        grace: Seconds jobs have to end when it stops.
        controller: The pool whose slots the jobs run in, such as that of a web app in the same process. None: one of
            its own, which joins the queue's pool.
        max_concurrency: Slots of the pool, if this process is the first to name it. None: as *workers*.
        name: In logs and thread names. None: made from the process id.
        hooks: Functions to call; see `Hooks`.

    Raises:
        ValueError: An option is outside its range, or the controller is not of the queue's pool.
    """

    def __init__(
        self,
        jobs: JobQueue,
        *,
        workers: int = 100,
        threads: int = 20,
        tenants: Sequence[str] | None = None,
        steal: Sequence[str] | str = (),
        grace: float = 30.0,
        controller: AdmissionController | None = None,
        max_concurrency: int | None = None,
        name: str | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        within("workers", workers, 1, MOST_WORKERS)
        within("threads", threads, 1, MOST_THREADS)
        within("grace", grace, 0)
        within("max_concurrency", max_concurrency, 1)
        self.jobs = jobs
        self.name = f"worker-{os.getpid()}" if name is None else name
        self._workers = workers
        self._grace = grace
        self._tenants = tenant_names("tenants", tenants)
        self._steal = None if steal == EVERYBODY else tenant_names("steal", steal) or ()
        if controller is not None:
            check_pool(controller, jobs)
        self._shares_controller = controller is not None
        self.controller = controller or AdmissionController(
            backend=replace(jobs.site, joins=True),
            name=jobs.pool,
            classes=jobs.classes,
            max_concurrency=workers if max_concurrency is None else max_concurrency,
            max_queue_size=0,
        )
        self._hooks = NO_HOOKS if hooks is None else hooks
        self._tally = Tally()
        self._threads = Threads(threads, f"job-{self.name}")
        self._store: JobStore | None = None
        self._intake: Intake | None = None
        self._runs: Runs | None = None
        self._taken_before = 0

    def __repr__(self) -> str:
        return f"<Worker {self.name!r} of {self.jobs!r}>"

    # ------------------------------------------------------------------ from start to stop

    async def __aenter__(self) -> Worker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def run(self, stop: Stop) -> None:
        """Take and run jobs until *stop* is set; then stop in order."""
        async with self:
            await stop.wait()

    async def start(self) -> None:
        """Take and run jobs from now on. Where the server cannot be reached, as soon as it can.

        Raises:
            NotRunning: It runs already; or this is no asyncio loop, or not that of the controller.
        """
        if self._store is not None:
            raise NotRunning(f"worker {self.name!r} runs already")
        self.controller.bind()
        process = self.controller.process
        jobs = self.jobs
        store = JobStore(jobs.site, jobs.pool, jobs.bounds, process=process)
        hands = Hands(self.name)
        runs = Runs(
            store,
            jobs.tasks,
            jobs.classes,
            hands,
            self._threads,
            self._tally,
            max_deliveries=jobs.bounds.most_deliveries,
            result_ttl=jobs.result_ttl,
            most_result=jobs.max_payload_bytes,
            listener=None if self._hooks is NO_HOOKS else self._hooks,
        )
        intake = Intake(
            store,
            self.controller,
            runs,
            places=self._workers,
            tenants=self._tenants,
            steal=self._steal,
            alone=lambda: takers.is_alone(process),
        )
        runs.intake = intake
        self._store, self._intake, self._runs = store, intake, runs
        takers.come(process)
        store.on_reply = self._replied
        store.on_told = self._told
        store.on_subscribed = intake.messages_lost
        try:
            # The first word of this process to the pool gives it its lease, without which it is given no job.
            await self.controller.refresh()
            store.listen()
        except BaseException:
            await self.stop()
            raise
        intake.open()
        self._hooks.started()
        logger.info("worker %r takes jobs of pool %r", self.name, jobs.pool)

    async def stop(self) -> None:
        """Take no more jobs, let those that run end or hand them back, and leave. Nothing where it does not run."""
        store, intake, runs = self._store, self._intake, self._runs
        if store is None or intake is None or runs is None:
            return
        intake.close()
        try:
            await self._finish(runs)
        finally:
            self._taken_before += intake.taken
            self._store = self._intake = self._runs = None
            await self._leave(store)
        self._hooks.stopped()
        logger.info("worker %r has stopped", self.name)

    async def _finish(self, runs: Runs) -> None:
        """Let what runs end; after the grace, cancel what can be, and hand everything back that has not ended."""
        try:
            try:
                async with asyncio.timeout(self._grace):
                    await runs.ended()
            except TimeoutError:
                runs.stop()
                async with asyncio.timeout(LAST_WORD):
                    await runs.reported()
        except TimeoutError:
            logger.warning("worker %r: %d jobs do not heed their cancellation", self.name, runs.unreported)
        finally:
            # Also when the stop itself is cancelled: what is not said now is only known when the lease has run out.
            runs.give_up()
            runs.hands.dismiss()
            self._threads.close()

    async def _leave(self, store: JobStore) -> None:
        """Say the last reports and goodbye, if the server can be reached."""
        if not await takers.leave(store):
            logger.warning("worker %r: its last reports were not answered; the end of its lease tells", self.name)
        try:
            await store.close()
        finally:
            if not self._shares_controller:
                await self.controller.aclose()

    # ------------------------------------------------------------------ what is heard

    def _replied(self, reply: Reply) -> None:
        if self._runs is not None and self._intake is not None:
            self._runs.clock = reply.now - self._runs.now()
            self._intake.heard(reply)

    def _told(self, message: Message) -> None:
        if message.verb == "wake" and self._intake is not None:
            self._intake.told(message)
        elif message.verb == "cancel" and self._runs is not None:
            self._runs.cancel(message.about)

    # ------------------------------------------------------------------ to look at

    def status(self) -> WorkerStatus:
        """The worker at this instant, frozen."""
        tally, intake = self._tally, self._intake
        tender = None if intake is None else intake.tender
        return WorkerStatus(
            name=self.name,
            is_running=intake is not None and intake.is_open,
            workers=self._workers,
            active=0 if intake is None else intake.occupied,
            permits=0 if tender is None else tender.idle,
            asked=0 if tender is None else tender.asked,
            taken=self._taken_before + (0 if intake is None else intake.taken),
            succeeded=tally.succeeded,
            failed=tally.failed,
            retried=tally.retried,
            timeouts=tally.timeouts,
            buried=tally.buried,
            cancelled=tally.cancelled,
            handed_back=tally.handed_back,
            stale=tally.stale,
            callbacks=tally.callbacks,
            success_rate=tally.success_rate(),
            wait=tally.wait.snapshot(),
            run=tally.run.snapshot(),
            threads=self._threads.size,
            threads_busy=self._threads.busy,
            thread_pool_exhausted=self._threads.found_exhausted,
        )


def tenant_names(option: str, names: Sequence[str] | None) -> Tenants | None:
    """*names* as an operation wants them. Raises ValueError naming the option."""
    if names is None:
        return None
    if isinstance(names, str):
        raise ValueError(f"{option} is {names!r}: it must be a list of tenants")
    for name in names:
        if "\n" in name:
            raise ValueError(f"{option} has {name!r}: a tenant's name has no line breaks")
    return tuple(names)


def check_pool(controller: AdmissionController, jobs: JobQueue) -> None:
    """Raise ValueError unless the controller is of the pool the jobs are kept beside."""
    if not controller.process:
        raise ValueError("controller is of a pool in this process alone: give it the queue's server as its backend")
    if controller.name != jobs.pool:
        raise ValueError(f"controller is of pool {controller.name!r}: the jobs are beside pool {jobs.pool!r}")
    names, ours = [rules.name for rules in controller.classes], [rules.name for rules in jobs.classes]
    if names != ours:
        raise ValueError(f"controller has the classes {', '.join(names)}: the jobs have {', '.join(ours)}")
