"""A broker for taskiq: its tasks and workers, with this queue's order, fairness, shared capacity and at-least-once.

    task.kiq(…) ─▶ kick ─▶ queue ─▶ Intake: a permit, then a job ─▶ listen ─▶ taskiq's receiver
                                          ▲                                      │ middleware: how it ended
                                          └───────────── place, permit ◀───────── ack: one report

taskiq's receiver says nothing about a message it cannot read or has no task for, and its `ack` does not say how a task
ended. So a message is read here before it is given out, and a middleware notes the outcome, which the ack reports.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict
from taskiq import AckableMessage, AsyncBroker, BrokerMessage, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.acks import parse_acknowledge_type
from taskiq.exceptions import NoResultError, TaskRejectedError

from admission.backends.redis.site import RedisPool
from admission.controller import AdmissionController
from admission.errors import NotRunning, PermanentError
from admission.jobs import script, takers
from admission.jobs.failure import Killed, describe, failure_of
from admission.jobs.intake import Intake
from admission.jobs.queue import JobQueue
from admission.jobs.script import ID_DIGITS, Answer, Message, Reply, Said, Taken
from admission.jobs.store import JobStore
from admission.jobs.task import LONGEST_DELAY, MOST_COST, NO_RETRY, check_name, too_large
from admission.jobs.tender import ClassTender
from admission.jobs.types import BuryKind
from admission.jobs.worker import EVERYBODY, MOST_WORKERS, check_pool, tenant_names
from admission.line import Entry
from admission.permit import hold, outcome_of
from admission.policy.fairness import Flow
from admission.policy.retry import Retry
from admission.types import Outcome, Priority, within

__all__ = ["AdmissionBroker"]

logger = logging.getLogger("admission.jobs")

LABEL = "admission_delivery"
"""Tells the middleware which delivery a message is."""


class AdmissionBroker(AsyncBroker):
    """Tasks of taskiq in this queue, run by taskiq's workers in the room that online requests leave.

        broker = AdmissionBroker(JobQueue("redis://localhost:6379/0", pool="gpu"))

        @broker.task(priority="low", timeout=60)
        async def embed(document: int) -> None: ...

        await embed.kicker().with_labels(tenant="acme").kiq(42)

    and `taskiq worker module:broker`. A worker takes a job only when it has a free place for it, and only with a permit
    of the pool; what it keeps when it dies is delivered again.

    Labels of a task, or of one kick: `priority` (name of a class), `tenant`, `delay` (seconds), `cost`, `dedup_key`;
    of taskiq's own, `timeout`, `ack_type`, `max_retries` (here: attempts, where *retry* makes more of them) and
    `retry_on_error` (False: one attempt).

    The pool's queue is for taskiq's workers then: an `admission worker` would take its jobs, and not know their tasks.

    Args:
        jobs: The queue, or where it is kept, for pool "default". Its limits hold; tasks registered in it do not.
        retry: When a failed attempt is made again. None: never. Use it in place of taskiq's retry middlewares.
        tenants: Take only their jobs. None: everybody's.
        steal: Whose jobs to take when *tenants* have none: names, or "*" for everybody's.
        controller: The pool whose slots the jobs run in, such as that of a web app in the same process. None: one of
            its own, which joins the queue's pool.
        max_concurrency: Slots of the pool, if this process is the first to name it.
        places: Jobs to take before the receiver has shown to run so many at once, 1 to 10,000; short jobs run faster if
            this is the `--max-async-tasks` of its workers. More would wait with a slot in hand.

    Raises:
        ValueError: An option is outside its range, or the controller is not of the queue's pool.
    """

    def __init__(
        self,
        jobs: JobQueue | RedisPool | str,
        *,
        retry: Retry | None = None,
        tenants: Sequence[str] | None = None,
        steal: Sequence[str] | str = (),
        controller: AdmissionController | None = None,
        max_concurrency: int = 100,
        places: int = 1,
    ) -> None:
        super().__init__()
        within("places", places, 1, MOST_WORKERS)
        within("max_concurrency", max_concurrency, 1)
        self.jobs = jobs if isinstance(jobs, JobQueue) else JobQueue(jobs)
        self.retry = NO_RETRY if retry is None else retry
        self.places = places
        self.tenants = tenant_names("tenants", tenants)
        self.steal = None if steal == EVERYBODY else tenant_names("steal", steal) or ()
        if controller is not None:
            check_pool(controller, self.jobs)
        self._shares_controller = controller is not None
        self.controller = controller or AdmissionController(
            backend=replace(self.jobs.site, joins=True),
            name=self.jobs.pool,
            classes=self.jobs.classes,
            max_concurrency=max_concurrency,
            max_queue_size=0,
        )
        self._deliveries: _Deliveries | None = None
        self.add_middlewares(_Outcomes(self))

    # ------------------------------------------------------------------ to enqueue

    async def kick(self, message: BrokerMessage) -> None:
        """Enqueue a message; see the labels above. When this returns, the server has it.

        taskiq raises its own `SendTaskError` from any of these.

        Raises:
            ValueError: A label is outside its range.
            PayloadTooLarge: The message is larger than the queue's `max_payload_bytes`.
            QueueFull, WaitTimeout, Unavailable: As in `Task.enqueue`.
        """
        body = _Body.of(message).model_dump_json(exclude_none=True)
        size, most = len(body.encode()), self.jobs.max_payload_bytes
        if size > most:
            raise too_large(f"a message of task {message.task_name!r}", size, most)
        wishes = _wishes(message.labels, self.jobs)
        # A retry or requeue by taskiq's own means is the same job going on, which must not find itself in the queue.
        goes_on = self._deliveries is not None and self._deliveries.has_task(message.task_id)
        op = script.put(
            secrets.token_hex(ID_DIGITS // 2),
            wishes.rank,
            wishes.tenant,
            wishes.charge,
            wishes.delay_us,
            "" if goes_on else wishes.dedup_key,
            "",
            body,
        )
        await self.jobs.put_all([op])

    # ------------------------------------------------------------------ to run

    async def listen(self) -> AsyncGenerator[bytes | AckableMessage, None]:
        """Deliver messages, each with its permit; no more are taken than the receiver has places for.

        Raises:
            NotRunning: Somebody listens already.
        """
        if self._deliveries is None:
            self._deliveries = _Deliveries(self)
            await self._deliveries.start()
        deliveries = self._deliveries
        deliveries.open()
        try:
            while True:
                yield await deliveries.next()
        finally:
            deliveries.close()

    def delivery_of(self, message: TaskiqMessage) -> _Delivery | None:
        """What is known of the delivery of a message; None if it is not one of this process."""
        return None if self._deliveries is None else self._deliveries.of(message)

    async def shutdown(self) -> None:
        """Hand back what was not acknowledged, and close the connections."""
        await super().shutdown()
        deliveries, self._deliveries = self._deliveries, None
        try:
            if deliveries is not None:
                await deliveries.leave()
        finally:
            if deliveries is not None and not self._shares_controller:
                await self.controller.aclose()
            await self.jobs.aclose()


class _Deliveries:
    """What this process has taken, as an `Arrivals` of the intake. Belongs to the running loop."""

    def __init__(self, broker: AdmissionBroker) -> None:
        broker.controller.bind()
        jobs = broker.jobs
        self.broker = broker
        self.loop = asyncio.get_running_loop()
        self.store = JobStore(jobs.site, jobs.pool, jobs.bounds, process=broker.controller.process)
        self._intake = Intake(
            self.store,
            broker.controller,
            self,
            places=0,
            tenants=broker.tenants,
            steal=broker.steal,
            alone=lambda: takers.is_alone(self.store.process),
        )
        self._here: dict[str, _Delivery] = {}
        """By the name that the label gives them; from arrival until their place is free."""
        self._arrived: deque[_Delivery] = deque()
        """Not given out yet."""
        self._news: asyncio.Future[None] | None = None
        """Set while the receiver waits for a message."""
        self._clock = 0.0
        """What the server's clock is ahead of the loop's, in seconds."""

    # ------------------------------------------------------------------ from start to stop

    async def start(self) -> None:
        self.store.on_reply = self._replied
        self.store.on_told = self._told
        self.store.on_subscribed = self._intake.messages_lost
        # The first word of this process to the pool gives it its lease, without which it is given no job.
        await self.broker.controller.refresh()
        self.store.listen()
        takers.come(self.store.process)

    def open(self) -> None:
        if self._intake.is_open:
            raise NotRunning(f"somebody listens to the broker of pool {self.store.pool!r} already")
        self._intake.places = self.broker.places
        self._intake.open()

    def close(self) -> None:
        """Take no more, and hand back what was not given out. What was may still be acknowledged."""
        self._intake.close()
        while self._arrived:
            self._arrived.popleft().hand_back()

    @property
    def is_open(self) -> bool:
        return self._intake.is_open

    async def leave(self) -> None:
        """Hand back what was not acknowledged."""
        self.close()
        for delivery in list(self._here.values()):
            delivery.hand_back()
        if not await takers.leave(self.store):
            logger.warning("pool %r: the last reports were not answered; the end of the lease tells", self.store.pool)
        await self.store.close()

    # ------------------------------------------------------------------ what is heard

    def _replied(self, reply: Reply) -> None:
        self._clock = reply.now - self.loop.time()
        self._intake.heard(reply)

    def _told(self, message: Message) -> None:
        if message.verb == "wake":  # taskiq has no way to cancel what runs.
            self._intake.told(message)

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        return self.loop.time() + self._clock

    # ------------------------------------------------------------------ in and out

    async def next(self) -> AckableMessage:
        """The next message, once there is a permit for it."""
        out = len(self._here) - len(self._arrived)
        if self._intake.places <= out:
            # It asks with so many in hand, so it has a place more. What it has shown to have, nothing waits for.
            self._intake.places = out + 1
            self._intake.look_soon()
        while not self._arrived:
            self._news = self.loop.create_future()
            await self._news
        return self._arrived.popleft().message()

    def arrived(self, taken: Taken, entry: Entry, line: ClassTender) -> None:
        """See `Arrivals`. What cannot be run goes to the dead letters before taskiq sees it."""
        try:
            if taken.lost >= self.broker.jobs.bounds.most_deliveries:
                raise _Refused(BuryKind.KILLED, "its processes died") from Killed(taken.lost)
            message = self._read(taken.body)
        except _Refused as refused:
            logger.warning("job %s goes to the dead letters: %s", taken.id, refused)
            error = describe(failure_of(refused.__cause__ or refused))
            self._refuse(script.bury(taken.id, taken.delivery, refused.kind, error), entry, line)
            return
        delivery = _Delivery(self, taken, entry, line, message)
        self._here[delivery.name] = delivery
        self._arrived.append(delivery)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _refuse(self, report: script.Op, entry: Entry, line: ClassTender) -> None:
        self.report(report)
        line.end(entry, Outcome.IGNORED, 0.0)
        self._intake.ended()

    def _read(self, body: str) -> TaskiqMessage:
        """The message, as the receiver will read it: it says nothing about one that it cannot."""
        try:
            stored = _Body.model_validate_json(body)
            message = self.broker.formatter.loads(stored.sent())
            if message.task_name != stored.task:
                raise ValueError(f"its message is of task {message.task_name!r}, and it is of {stored.task!r}")
            as_received = message.model_copy(deep=True)
            as_received.parse_labels()
            _check_labels(as_received.labels)
        except Exception as error:  # Whatever a formatter or serializer raises.
            raise _Refused(BuryKind.BAD_ARGUMENTS, f"it cannot be read: {error!r:.200}") from error
        if self.broker.find_task(message.task_name) is None:
            raise _Refused(BuryKind.UNKNOWN_TASK, f"no task {message.task_name!r:.200} is registered here")
        return message

    def has(self, id: str, delivery: int) -> bool:
        """See `Arrivals`."""
        return _name(id, delivery) in self._here

    def has_task(self, task_id: str) -> bool:
        """Whether a message of that task id is here."""
        return any(delivery.task_id == task_id for delivery in self._here.values())

    def of(self, message: TaskiqMessage) -> _Delivery | None:
        """The delivery a message is of."""
        return self._here.get(str(message.labels.get(LABEL)))

    def report(self, op: script.Op) -> None:
        """Say what became of a job; it is said until it is heard."""
        self.store.send(op, _heard)

    def freed(self, delivery: _Delivery) -> None:
        """A place is free; its permit went back to the tender."""
        del self._here[delivery.name]
        self._intake.ended()


class _Delivery:
    """One delivery of a job, from its arrival until it has both run and been reported."""

    def __init__(
        self, deliveries: _Deliveries, taken: Taken, entry: Entry, line: ClassTender, message: TaskiqMessage
    ) -> None:
        self.name = _name(taken.id, taken.delivery)
        self.task_id = message.task_id
        self._deliveries = deliveries
        self._taken = taken
        self._entry = entry
        self._line = line
        self._message = message
        self._since = deliveries.loop.time()
        self._ended = self._reported = False
        self._report = script.done(taken.id, taken.delivery, "null", 0)
        """Results are kept in taskiq's own result backend, not here."""
        self._outcome = Outcome.SUCCESS

    def message(self) -> AckableMessage:
        """What the receiver is given."""
        self._message.labels[LABEL] = self.name
        data = self._deliveries.broker.formatter.dumps(self._message).message
        return AckableMessage(data=data, ack=self.acknowledge)

    def begin(self) -> None:
        """Its function is about to be called, in the present context and task, which are of this message alone."""
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(self._let_go)
        self._since = self._deliveries.loop.time()
        hold(self._entry)

    def fail(self, error: BaseException, labels: Mapping[str, object]) -> bool:
        """Its function raised. Whether there is another attempt."""
        taken = self._taken
        self._outcome = outcome_of(error)
        if isinstance(error, asyncio.CancelledError) and not self._deliveries.is_open:  # The worker stops.
            self._report = script.back(taken.id, taken.delivery, 0, counted=False)
            return True
        text = describe(failure_of(error))
        if isinstance(error, PermanentError | TaskRejectedError):
            self._report = script.bury(taken.id, taken.delivery, BuryKind.PERMANENT, text)
            return False
        delay = self._delay(error, labels)
        if delay is not None:
            self._report = script.retry(taken.id, taken.delivery, round(delay * 1e6), text)
            return True
        timed_out = isinstance(error, TimeoutError) and "timeout" in labels
        kind = BuryKind.TIMEOUT if timed_out else BuryKind.FAILED
        self._report = script.bury(taken.id, taken.delivery, kind, text)
        return False

    def _delay(self, error: BaseException, labels: Mapping[str, object]) -> float | None:
        attempt = self._taken.attempt
        if attempt >= _most_attempts(labels):
            return None
        elapsed = max(0.0, self._deliveries.now() - self._taken.first_started)
        return self._deliveries.broker.retry.next_delay(error, attempt=attempt, elapsed=elapsed, random=random.random())

    def end(self) -> None:
        """Its function has ended, and everybody was told."""
        self._ended = True
        self._free_if_over()

    def acknowledge(self) -> None:
        """Report it: as a success, unless a failure was noted before."""
        if not self._reported:
            self._reported = True
            self._deliveries.report(self._report)
        self._free_if_over()  # Not so where taskiq acknowledges before it runs.

    def _let_go(self, task: asyncio.Task[object]) -> None:
        """The receiver is done with it: without an ack where a middleware raised, or a task did not give one."""
        self._ended = True
        if not self._reported and self._report[0] == "done":
            self.fail(_Dropped("it ended without an acknowledgement"), self._message.labels)
        self.acknowledge()

    def hand_back(self) -> None:
        """It shall run elsewhere, as if it had never been here."""
        self._ended = True
        self._outcome = Outcome.IGNORED
        self._report = script.back(self._taken.id, self._taken.delivery, 0, counted=False)
        self.acknowledge()

    def _free_if_over(self) -> None:
        if self._ended and self._reported and self._deliveries.has(self._taken.id, self._taken.delivery):
            ran = self._deliveries.loop.time() - self._since
            self._line.end(self._entry, self._outcome, ran)
            self._deliveries.freed(self)


class _Outcomes(TaskiqMiddleware):
    """Notes how a task ended, for the ack. The first of all: it hears of an end after every other middleware."""

    def __init__(self, broker: AdmissionBroker) -> None:
        super().__init__()
        self._admission = broker

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        delivery = self._admission.delivery_of(message)
        if delivery is not None:
            delivery.begin()
        return message

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[object], exception: BaseException) -> None:
        delivery = self._admission.delivery_of(message)
        # Without a result means without a failure: another middleware has it tried again, or the task wanted none.
        if delivery is None or isinstance(result.error, NoResultError):
            return
        if delivery.fail(exception, message.labels):
            result.error = NoResultError()

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[object]) -> None:
        delivery = self._admission.delivery_of(message)
        if delivery is not None:
            delivery.end()


class _Dropped(Exception):
    """A message that was run, and not acknowledged."""


class _Refused(Exception):
    """A job that is not given to taskiq."""

    def __init__(self, kind: BuryKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    message: str | None = None
    base64: str | None = None
    """Where a serializer does not write text."""


class _Body(BaseModel):
    """The body of a job: a message of taskiq's, as it was sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    args: _Sent
    metadata: dict[str, str] = {}

    @classmethod
    def of(cls, message: BrokerMessage) -> _Body:
        try:
            sent = _Sent(message=message.message.decode())
        except UnicodeDecodeError:
            sent = _Sent(base64=b64encode(message.message).decode())
        return cls(task=message.task_name, args=sent, metadata={"task_id": message.task_id})

    def sent(self) -> bytes:
        """The message as it was sent. Raises ValueError."""
        if self.args.message is not None:
            return self.args.message.encode()
        return b64decode(self.args.base64 or "", validate=True)


class _Wishes(NamedTuple):
    """What the labels of a message ask for."""

    rank: int
    tenant: str
    charge: int
    delay_us: int
    dedup_key: str


def _wishes(labels: Mapping[str, object], jobs: JobQueue) -> _Wishes:
    """Raises ValueError naming the label."""
    _check_labels(labels)
    tenant = check_name("tenant", str(labels.get("tenant", "")), empty=True)
    rank = jobs.rank_of(_priority(labels.get("priority")))
    delay, cost = _number(labels, "delay", 0.0), _number(labels, "cost", 1.0)
    within("delay", delay, 0, LONGEST_DELAY)
    within("cost", cost, 0, MOST_COST)
    weight = jobs.classes[rank].weights.get(tenant, 1.0)
    dedup_key = labels.get("dedup_key")
    return _Wishes(
        rank=rank,
        tenant=tenant,
        charge=Flow(tenant, weight).charge(cost),
        delay_us=round(delay * 1e6),
        dedup_key="" if dedup_key is None else check_name("dedup_key", str(dedup_key)),
    )


def _check_labels(labels: Mapping[str, object]) -> None:
    """Those by which the receiver, or a retry, would go wrong. Raises ValueError naming the label."""
    if labels.get("ack_type") is not None:
        parse_acknowledge_type(labels["ack_type"])
    if labels.get("timeout") is not None:
        within("timeout", _number(labels, "timeout", 0.0), 0, above_low=True)
    _most_attempts(labels)


def _most_attempts(labels: Mapping[str, object]) -> float:
    if str(labels.get("retry_on_error")).lower() == "false":
        return 1
    return _number(labels, "max_retries", float("inf"))


def _priority(label: object) -> Priority | str | None:
    """Labels travel as text, so a `Priority` comes as its number."""
    text = None if label is None else str(label)
    return Priority(int(text)) if text is not None and text.isdecimal() and len(text) == 1 else text


def _number(labels: Mapping[str, object], label: str, otherwise: float) -> float:
    value = labels.get(label)
    if value is None:
        return otherwise
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"{label} is {value!r:.80}: it must be a number") from None


def _name(id: str, delivery: int) -> str:
    return f"{id}:{delivery}"


def _heard(answer: Answer) -> None:
    if answer is Said.STALE:
        logger.warning("a report was refused: its job had been delivered again meanwhile")
