"""The queue of durable jobs that share a pool's capacity: what an application registers its tasks with."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from pydantic_core import from_json, to_json

from admission.backends.redis.site import RedisPool
from admission.errors import QueueFull, UnknownTask, WaitTimeout
from admission.jobs import failure, script
from admission.jobs.arguments import shortened
from admission.jobs.dead_letters import DeadLetters
from admission.jobs.endings import Endings, Pace
from admission.jobs.job import Job
from admission.jobs.script import ID_DIGITS, Answer, Bounds, Count, Duplicate, Page, Record, Said, Stats
from admission.jobs.store import JobStore
from admission.jobs.sync import SyncJobs
from admission.jobs.task import (
    NO_RETRY,
    TASK_NAME,
    NewJob,
    Task,
    TaskOptions,
    callback_name,
    check_name,
    check_options,
    json_of,
    name_in,
    too_large,
)
from admission.jobs.types import BuryKind, ClassStats, DeadLetter, JobState, JobStats, JobStatus, TenantStats
from admission.jobs.webhook import Webhooks
from admission.policy.retry import Retry
from admission.types import DEFAULT_CLASSES, MAX_CLASSES, BackpressureMode, Priority, PriorityClass, Reason, within

if TYPE_CHECKING:
    from admission.jobs.asgi import Identify, JobsApp

__all__ = ["JobQueue"]

P = ParamSpec("P")
R = TypeVar("R")

LONGEST_TTL = 365 * 86400.0
"""Seconds."""

MOST_PAYLOAD = 256 * 1024 * 1024

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5
"""Seconds between two tries to enter a full queue."""

PAGE = 256
"""Jobs asked for at once in a list."""

IDS_DRAWN = 256
"""Ids made from one piece of chance."""

MOST_ARGUMENTS = 1000
"""Characters of a dead letter's arguments that are shown."""


class JobQueue:
    """Durable jobs, kept in Redis or Valkey beside the pool whose slots they run in.

        jobs = JobQueue("redis://localhost:6379/0")

        @jobs.task(priority=Priority.LOW, retry=Retry.exponential(max_attempts=5), timeout=60)
        async def sync_user(user_id: int, full: bool = False) -> dict: ...

        job = await sync_user.enqueue(42, tenant="acme")

    A job runs at least once: after the death of a worker, or a network that lost its last word, again. It is ordered
    by class, and fairly between the tenants of a class. Connects on first use; one connection per event loop.
    `async with jobs:` closes it in the end.

    Args:
        url: Where it is kept: what `RedisPool` takes, or one. Use the pool's own `RedisPool` where it has one.
        pool: Name of the pool.
        max_queue_size: Jobs queued and delayed at most; 0 is unlimited.
        backpressure_mode: What a full queue does: REJECT raises `QueueFull`, BLOCK waits.
        max_wait: Seconds BLOCK waits at most.
        classes: As in the pool's controllers. None: the four default ones.
        default_priority: Of tasks that say none. None: "normal", or the middle class.
        max_payload_bytes: A job's arguments with its options, a result, or a pushed value: the largest.
        result_ttl: Seconds results, and pushed values, are kept; 0: no result is.
        dead_ttl: Seconds dead letters are kept.
        max_deliveries: After so many processes have died with it, a job goes to the dead letters.
        webhook_secret: What webhooks are signed with, at least 16 bytes. None: there are none.
        webhook_hosts: Whom webhooks may call: hosts, or `*.example.com` for every name below it.
        webhook_insecure: Let webhooks call this machine over plain http, for tests.

    Raises:
        ValueError: An option is outside its range; the message names it, its value and the range.
    """

    def __init__(
        self,
        url: str | RedisPool,
        *,
        pool: str = "default",
        max_queue_size: int = 100_000,
        backpressure_mode: BackpressureMode | str = BackpressureMode.REJECT,
        max_wait: float = 30.0,
        classes: Sequence[PriorityClass] | None = None,
        default_priority: Priority | str | None = None,
        max_payload_bytes: int = 1024 * 1024,
        result_ttl: float = 3600.0,
        dead_ttl: float = 7 * 86400.0,
        max_deliveries: int = 3,
        webhook_secret: str | bytes | None = None,
        webhook_hosts: Sequence[str] = (),
        webhook_insecure: bool = False,
    ) -> None:
        within("max_queue_size", max_queue_size, 0, 2**31)
        within("max_wait", max_wait, 0, 86400)
        within("max_payload_bytes", max_payload_bytes, 1, MOST_PAYLOAD)
        within("result_ttl", result_ttl, 0, LONGEST_TTL)
        within("dead_ttl", dead_ttl, 1, LONGEST_TTL)
        within("max_deliveries", max_deliveries, 1, 1000)
        self.site = url if isinstance(url, RedisPool) else RedisPool(url)
        self.pool = check_name("pool", pool)
        self.classes: tuple[PriorityClass, ...] = tuple(DEFAULT_CLASSES if classes is None else classes)
        self._rank_by_name = {each.name: rank for rank, each in enumerate(self.classes)}
        if not 1 <= len(self.classes) <= MAX_CLASSES or len(self._rank_by_name) < len(self.classes):
            raise ValueError(f"{len(self.classes)} classes: there must be 1 to {MAX_CLASSES} of different names")
        self.mode = BackpressureMode(backpressure_mode)
        self.max_wait = max_wait
        self.max_payload_bytes = max_payload_bytes
        self.result_ttl = result_ttl
        self.bounds = Bounds(max_queue_size=max_queue_size, most_deliveries=max_deliveries, dead_ttl=dead_ttl)
        self.default_rank = self._default_rank(default_priority)
        self._tasks: dict[str, Task[..., Any]] = {}
        self.tasks: Mapping[str, Task[..., Any]] = MappingProxyType(self._tasks)
        """By name: what may run."""
        self.webhooks: Webhooks | None = None
        if webhook_secret is not None:
            self.webhooks = Webhooks(secret=webhook_secret, hosts=webhook_hosts, insecure=webhook_insecure)
            self.webhooks.register(self)
        elif webhook_hosts:
            raise ValueError("webhook_hosts are given without a webhook_secret to sign with")
        self.dead = DeadLetters(self)
        """Jobs that failed for good."""
        self.sync = SyncJobs(self)
        """For callers that block."""
        self.pace = Pace()
        self._places: dict[asyncio.AbstractEventLoop, _Place] = {}

    def __repr__(self) -> str:
        return f"<JobQueue of pool {self.pool!r}, {len(self._tasks)} tasks>"

    # ------------------------------------------------------------------ tasks

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        priority: Priority | str | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        cost: float = 1.0,
        store_as: str | None = None,
        on_success: str | Task[..., Any] | None = None,
        on_failure: str | Task[..., Any] | None = None,
        on_timeout: str | Task[..., Any] | None = None,
        webhook: str | None = None,
        http: bool = False,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(
        self,
        function: Callable[P, R] | None = None,
        /,
        *,
        name: str | None = None,
        priority: Priority | str | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        cost: float = 1.0,
        store_as: str | None = None,
        on_success: str | Task[..., Any] | None = None,
        on_failure: str | Task[..., Any] | None = None,
        on_timeout: str | Task[..., Any] | None = None,
        webhook: str | None = None,
        http: bool = False,
    ) -> Task[P, R] | Callable[[Callable[P, R]], Task[P, R]]:
        """Register a function, async or not: `@jobs.task` or `@jobs.task(…)`. Called, it just runs.

        Args:
            name: What jobs name it by; it must stay the same while there are jobs of it. None: the function's.
            priority: Class of its jobs. None: the queue's default.
            retry: When a failed attempt is made again. None: never.
            timeout: Seconds one attempt may take. None: as long as it likes.
            cost: What fairness charges the tenant for each.
            store_as: Keep the result under this name for other tasks to `pull`.
            on_success, on_failure, on_timeout: Tasks of this queue, or their names, that are enqueued when a job has
                succeeded, failed for good, or failed for good by a timeout.
            webhook: URL that is told when a job has succeeded or failed for good; needs the queue's `webhook_secret`.
            http: Whether clients may enqueue it over HTTP, where `asgi()` names no tasks.

        Raises:
            ValueError: The name is taken, or is none; or an option is outside its range.
            TypeError: A parameter's annotation cannot be checked and written as JSON.
        """
        options = check_options(
            TaskOptions(
                retry=NO_RETRY if retry is None else retry,
                timeout=timeout,
                cost=cost,
                store_as=store_as,
                on_success=callback_name(on_success),
                on_failure=callback_name(on_failure),
                on_timeout=callback_name(on_timeout),
                webhook=webhook,
            )
        )
        self._check_webhook(options)
        rank = self.rank_of(priority)

        def register(function: Callable[P, R]) -> Task[P, R]:
            return self._register(function, name, rank, options, http)

        return register if function is None else register(function)

    def _register(
        self, function: Callable[P, R], name: str | None, rank: int, options: TaskOptions, http: bool
    ) -> Task[P, R]:
        called = getattr(function, "__name__", "") if name is None else name
        if not TASK_NAME.fullmatch(called):
            raise ValueError(
                f"task name {called!r}: 1 to 128 letters, digits, '_', '.' or '-' are allowed; give one with name=…"
            )
        if called in self._tasks:
            raise ValueError(f"there is a task {called!r} already: give another name with name=…")
        task = Task(self, function, name=called, rank=rank, options=options, http=http)
        self._tasks[called] = task
        return task

    def check_callbacks(self, options: TaskOptions) -> None:
        """Raise UnknownTask when a callback is none of the tasks, ValueError when the webhook may not be called."""
        self._check_webhook(options)
        for option in ("on_success", "on_failure", "on_timeout"):
            name = getattr(options, option)
            if name is not None and name not in self._tasks:
                known = ", ".join(sorted(self._tasks))
                raise UnknownTask(f"{option} is {shortened(name)}: the tasks are {known}")

    def _check_webhook(self, options: TaskOptions) -> None:
        if options.webhook is not None:
            if self.webhooks is None:
                raise ValueError(f"webhook is {shortened(options.webhook)}: the queue has no webhook_secret")
            self.webhooks.check(options.webhook)

    def rank_of(self, priority: Priority | str | None) -> int:
        """The rank of a class. Raises ValueError naming the classes there are."""
        if priority is None:
            return self.default_rank
        name = priority.name.lower() if isinstance(priority, Priority) else priority
        rank = self._rank_by_name.get(name)
        # With classes of their own names, the four priorities mean the first four ranks.
        if rank is None and isinstance(priority, Priority) and priority < len(self.classes):
            return int(priority)
        if rank is None:
            known = ", ".join(self._rank_by_name)
            raise ValueError(f"priority is {priority!r}: the classes of pool {self.pool!r} are {known}")
        return rank

    def _default_rank(self, default: Priority | str | None) -> int:
        if default is not None:
            return self.rank_of(default)
        return self._rank_by_name.get("normal", (len(self.classes) - 1) // 2)

    def asgi(
        self,
        *,
        tasks: Iterable[str] | None = None,
        identify: Identify | None = None,
        max_streams: int = 1000,
    ) -> JobsApp:
        """An ASGI app to mount: enqueue, look at, cancel and watch jobs over HTTP. See `JobsApp`.

        Args:
            tasks: Names of the tasks that clients may enqueue. None: those registered with `http=True`.
            identify: Given the ASGI scope, says who asks: an `Identity`, or None for nobody known; may be async.
                None: everybody is the tenant "".
            max_streams: Event streams open at once.

        Raises:
            UnknownTask: One of *tasks* is not registered yet.
            ValueError: *max_streams* is outside 1 to 100,000.
        """
        from admission.jobs.asgi import JobsApp

        return JobsApp(self, tasks=tasks, identify=identify, max_streams=max_streams)

    # ------------------------------------------------------------------ from start to stop

    async def __aenter__(self) -> JobQueue:
        self._place().users += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        place = self._place()
        place.users -= 1
        if place.users <= 0:  # Less, when it was closed inside the block and used again.
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connection of the running event loop. The next use opens another one."""
        place = self._places.pop(asyncio.get_running_loop(), None)
        if place is not None:
            await place.store.close()

    @property
    def store(self) -> JobStore:
        """The way to the server, for the running event loop."""
        return self._place().store

    @property
    def endings(self) -> Endings:
        """Who waits for which job, on the running event loop."""
        return self._place().endings

    def _place(self) -> _Place:
        loop = asyncio.get_running_loop()
        place = self._places.get(loop)
        if place is None:
            for other in [other for other in self._places if other.is_closed()]:
                del self._places[other]
            place = self._places[loop] = _Place(JobStore(self.site, self.pool, self.bounds))
        return place

    def now(self) -> float:
        """Seconds since the epoch: the server's clock as of its latest reply, else this machine's."""
        reply = self.store.reply
        return time.time() if reply is None else reply.now

    # ------------------------------------------------------------------ to enqueue

    async def enqueue(self, job: NewJob) -> Job:
        """Enqueue what `Task.job(…)` or `PreparedJob.job(…)` made; see `Task.enqueue`, which is the usual way.

        Raises:
            QueueFull: The queue has as many jobs as it may (REJECT).
            WaitTimeout: There was no room within `max_wait` (BLOCK).
            Unavailable: The server does not answer, or has no memory left.
        """
        (enqueued,) = await self.enqueue_many((job,))
        return enqueued

    async def enqueue_many(self, jobs: Iterable[NewJob]) -> list[Job]:
        """Enqueue what `Task.job(…)` or `PreparedJob.job(…)` made, in batches of 256.

        The jobs of a batch are queued in this order; two batches are under way at once, and may overtake each other.
        A generator makes the jobs of the next batch while the server works on these.

        When it raises, some of them may have been taken in; a `dedup_key` makes it safe to try again.

        Raises:
            QueueFull, WaitTimeout, Unavailable: As in `enqueue`; the first two say how many were taken in.
        """
        enqueued: list[Job] = []

        def puts() -> Iterator[script.Op]:
            for job, id in zip(jobs, _new_ids(), strict=False):
                enqueued.append(Job(self, id))
                yield script.put_like(job.prepared.how, id, job.body)

        for index, answer in enumerate(await self.put_all(puts())):
            if isinstance(answer, Duplicate):
                enqueued[index] = Job(self, answer.id, duplicate=True)
        return enqueued

    async def put_all(self, ops: Iterable[script.Op]) -> list[Answer]:
        """Have `script.put` done, of whatever body: what is answered to each. Raises as `enqueue_many`."""
        said: list[script.Op] = []

        def remembered() -> Iterator[script.Op]:
            for op in ops:
                said.append(op)
                yield op

        answers = await self.store.ask_all(remembered())
        if Said.FULL in answers:
            await self._make_room_for(said, answers)
        return answers

    async def _make_room_for(self, ops: Sequence[script.Op], answers: list[Answer]) -> None:
        """Try again what found the queue full, until there is room or time is up. Fills *answers* in."""
        pause = FIRST_PAUSE
        started = time.monotonic()
        while refused := [index for index, answer in enumerate(answers) if answer is Said.FULL]:
            taken = f"{len(ops) - len(refused)} of {len(ops)} jobs were taken in" if len(ops) > 1 else ""
            if self.mode is BackpressureMode.REJECT:
                raise self.full(taken)
            waited = time.monotonic() - started
            if waited >= self.max_wait:
                raise WaitTimeout(
                    f"the queue of pool {self.pool!r} had no room within {waited:.3g} s{taken and f': {taken}'}",
                    reason=Reason.TIMEOUT,
                    retry_after=LONGEST_PAUSE * random.uniform(1, 2),
                )
            await self._room_or_later(min(pause * random.uniform(0.5, 1.0), self.max_wait - waited))
            pause = min(2 * pause, LONGEST_PAUSE)
            again = await self.store.ask_all([ops[index] for index in refused])
            for index, answer in zip(refused, again, strict=True):
                answers[index] = answer

    async def _room_or_later(self, seconds: float) -> None:
        """Wait until some reply shows room, or for these seconds."""
        room = self._place().room
        room.clear()
        try:
            async with asyncio.timeout(seconds):
                await room.wait()
        except TimeoutError:
            return

    def full(self, taken: str = "") -> QueueFull:
        """The error of a full queue."""
        return QueueFull(
            f"the queue of pool {self.pool!r} has {self.bounds.max_queue_size:,} jobs, as many as it may"
            f"{taken and f': {taken}'}",
            reason=Reason.QUEUE_FULL,
            retry_after=random.uniform(1.0, 2.0),
        )

    # ------------------------------------------------------------------ questions

    def job(self, id: str) -> Job:
        """A handle of the job of this id, whoever enqueued it. Asks nothing yet.

        Raises:
            ValueError: It is no id: 24 lower hex digits.
        """
        if len(id) != ID_DIGITS or not all(digit in "0123456789abcdef" for digit in id):
            raise ValueError(f"id is {shortened(id)}: it must be {ID_DIGITS} lower hex digits")
        return Job(self, id)

    async def ls(
        self,
        *,
        state: JobState | str = JobState.QUEUED,
        priority: Priority | str | None = None,
        tenant: str | None = None,
        limit: int = 100,
    ) -> list[JobStatus]:
        """The jobs in one state: queued, delayed, running, done or dead; the first *limit*.

        Raises:
            ValueError: There is no such state or class.
            Unavailable: The server does not answer.
        """
        return [self.status_of(record) for record in await self.records(JobState(state), priority, tenant, limit)]

    async def records(
        self, state: JobState, priority: Priority | str | None, tenant: str | None, limit: int | None
    ) -> list[Record]:
        """As `ls`, as the server keeps them. None: all."""
        within("limit", limit, 1)
        if state is JobState.CANCELLED:
            raise ValueError("state is 'cancelled': nothing is kept of cancelled jobs")
        rank = None if priority is None else self.rank_of(priority)
        records: list[Record] = []
        after = ""
        while limit is None or len(records) < limit:
            page = await self.store.ask(script.ls(state, rank, tenant, after, PAGE))
            assert isinstance(page, Page)
            records += page.records
            after = page.next
            if not after:
                break
        return records[:limit]

    async def stats(self) -> JobStats:
        """The numbers of the whole queue. Raises Unavailable."""
        stats = await self.store.ask(script.stats())
        assert isinstance(stats, Stats)
        now = self.now()
        self.pace.saw(stats, now)
        return self._stats(stats, now)

    # ------------------------------------------------------------------ to steer

    async def pause(self, priority: Priority | str | None = None) -> None:
        """Start no more jobs of one class, or of any, in whatever process. Raises Unavailable."""
        await self.store.ask(script.pause(None if priority is None else self.rank_of(priority)))

    async def resume(self, priority: Priority | str | None = None) -> None:
        """Take a pause back. Raises Unavailable."""
        await self.store.ask(script.resume(None if priority is None else self.rank_of(priority)))

    async def purge(
        self, *, state: JobState | str, priority: Priority | str | None = None, tenant: str | None = None
    ) -> int:
        """Throw away the jobs in one state: queued, delayed, done or dead; says how many.

        Raises:
            ValueError: There is no such state or class, or it is the state of running jobs: cancel those.
            Unavailable: The server does not answer. Some may be gone.
        """
        state = JobState(state)
        if state in (JobState.RUNNING, JobState.CANCELLED):
            raise ValueError(f"state is {state.value!r}: it must be queued, delayed, done or dead")
        rank = None if priority is None else self.rank_of(priority)
        purged = 0
        while True:
            answer = await self.store.ask(script.purge(state, rank, tenant))
            assert isinstance(answer, Count)
            purged += answer.count
            if not answer.more:
                return purged

    # ------------------------------------------------------------------ values tasks pass on

    async def push(self, name: str, value: object, *, ttl: float | None = None) -> None:
        """Keep *value*, as JSON, under *name* for other tasks and processes to `pull`.

        Args:
            name: 1 to 128 bytes, no control characters; of this pool.
            ttl: Seconds. None: the queue's `result_ttl`.

        Raises:
            BadArguments: It cannot be written as JSON.
            PayloadTooLarge: It is larger than `max_payload_bytes`.
            Unavailable: The server does not answer, or has no memory left.
        """
        kept = self.result_ttl if ttl is None else ttl
        within("ttl", kept, 0, LONGEST_TTL, above_low=True)
        check_name("name", name)
        text = json_of("value", value)
        if len(text) > self.max_payload_bytes:
            raise too_large(f"the value of {name!r}", len(text), self.max_payload_bytes)
        await self.store.set(name, text, kept)

    async def pull(self, name: str) -> object:
        """The value kept under *name*; None when there is none. Raises Unavailable."""
        text = await self.store.get(check_name("name", name))
        return None if text is None else from_json(text)

    # ------------------------------------------------------------------ from records to what is told

    def class_name(self, rank: int) -> str:
        """Of a class by its rank; another process may have had more classes."""
        return self.classes[rank].name if rank < len(self.classes) else f"class-{rank}"

    def status_of(self, record: Record) -> JobStatus:
        """A job as it is told."""
        body = _body(record.body)
        return JobStatus(
            id=record.id,
            task=name_in(record.body),
            state=record.state,
            priority=self.class_name(record.rank),
            tenant=record.tenant,
            attempts=record.attempt,
            deliveries=record.delivery,
            enqueued_at=record.enqueued,
            due_at=record.due,
            started_at=record.started,
            ended_at=record.ended,
            position=record.position,
            error=failure.read(record.error).error if record.error else None,
            metadata=_mapping(body.get("metadata")),
        )

    def letter_of(self, record: Record) -> DeadLetter:
        """A dead job as it is told."""
        body = _body(record.body)
        error, traceback = failure.read(record.error)
        return DeadLetter(
            id=record.id,
            task=name_in(record.body),
            priority=self.class_name(record.rank),
            tenant=record.tenant,
            kind=record.kind or BuryKind.FAILED,
            error=error,
            traceback=traceback,
            attempts=record.attempt,
            deliveries=record.delivery,
            enqueued_at=record.enqueued,
            died_at=record.ended or 0.0,
            arguments=_arguments(body.get("args")),
            metadata=_mapping(body.get("metadata")),
        )

    def _stats(self, stats: Stats, now: float) -> JobStats:
        counters = stats.counters
        return JobStats(
            queued=sum(each.queued for each in stats.classes),
            delayed=sum(each.delayed for each in stats.classes),
            running=sum(each.running for each in stats.classes),
            dead=stats.dead,
            kept=stats.kept,
            enqueued_total=counters["enqueued"],
            succeeded_total=counters["succeeded"],
            failed_total=counters["failed"],
            retried_total=counters["retried"],
            handed_back_total=counters["handed_back"],
            redelivered_total=counters["redelivered"],
            dead_total=counters["dead"],
            stale_total=counters["stale"],
            workers=stats.workers,
            paused=stats.paused,
            classes=tuple(
                ClassStats(
                    name=self.class_name(rank),
                    queued=each.queued,
                    delayed=each.delayed,
                    running=each.running,
                    paused=each.paused,
                    oldest_age=max(0.0, now - each.oldest) if each.oldest else 0.0,
                )
                for rank, each in enumerate(stats.classes)
                if rank < len(self.classes) or each.queued + each.delayed + each.running
            ),
            tenants=tuple(
                TenantStats(
                    tenant=each.tenant,
                    priority=self.class_name(each.rank),
                    queued=each.queued,
                    running=each.running,
                )
                for each in stats.tenants
            ),
        )


class _Place:
    """What a queue has on one event loop."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.endings = Endings(store)
        self.users = 0
        """Blocks of `async with` that are open."""
        self.room = asyncio.Event()
        """Set when a reply shows that the queue has room."""
        store.on_reply = self._replied

    def _replied(self, reply: script.Reply) -> None:
        if sum(reply.ready) < self.store.bounds.max_queue_size:
            self.room.set()


def _new_ids() -> Iterator[str]:
    """As many as wanted. The first is drawn alone, because most callers want no more."""
    for count in chain((1,), repeat(IDS_DRAWN)):
        digits = os.urandom(count * ID_DIGITS // 2).hex()
        for start in range(0, len(digits), ID_DIGITS):
            yield digits[start : start + ID_DIGITS]


def _body(text: str) -> Mapping[str, object]:
    try:
        return _mapping(from_json(text))
    except ValueError:
        return {}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _arguments(args: object) -> str:
    # Also those that no task may have, such as NaN: that may be why it is dead.
    text = to_json(args, inf_nan_mode="constants").decode()
    return text if len(text) <= MOST_ARGUMENTS else f"{text[: MOST_ARGUMENTS - 1]}…"
