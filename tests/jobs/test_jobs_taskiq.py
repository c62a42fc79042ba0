"""taskiq's own receivers run tasks that its own `kiq` enqueued, by this queue's rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Annotated, Any

import pytest
from taskiq import Context, InMemoryBroker, SimpleRetryMiddleware, TaskiqDepends, TaskiqMiddleware
from taskiq.acks import AcknowledgeType
from taskiq.exceptions import SendTaskError
from taskiq.message import TaskiqMessage
from taskiq.receiver import Receiver

from admission import AdmissionController, PermanentError, Priority, Retry, current_ticket
from admission.errors import NotRunning, PayloadTooLarge, QueueFull
from admission.jobs import BuryKind, JobQueue, JobState, script
from admission.jobs.taskiq import AdmissionBroker
from tests.jobs.taking import Taker
from tests.jobs.workshop import Gate, Shop, shop, until

__all__ = ["shop"]

pytestmark = pytest.mark.anyio


class TaskiqWorker:
    """A receiver, as `taskiq worker` has it."""

    def __init__(self, broker: AdmissionBroker, **options: Any) -> None:
        self.broker = broker
        broker.is_worker_process = True
        self.receiver = Receiver(broker, **{"max_async_tasks": 10, **options})
        self._finish = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> TaskiqWorker:
        self._listening = asyncio.create_task(self.receiver.listen(self._finish))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish.set()
        assert self._listening is not None
        await self._listening
        await self.broker.shutdown()


@pytest.fixture
async def broker(shop: Shop) -> AsyncIterator[AdmissionBroker]:
    """A broker on the queue of the shop, with results in this process."""
    broker = AdmissionBroker(shop.queue).with_result_backend(InMemoryBroker().result_backend)
    yield broker
    await broker.shutdown()


async def settled(shop: Shop) -> None:
    """Until nothing is queued, delayed or running."""
    async with asyncio.timeout(30):
        while True:
            stats = await shop.queue.stats()
            if not stats.queued + stats.delayed + stats.running:
                return
            await asyncio.sleep(0.002)


async def only_letter(shop: Shop) -> tuple[BuryKind, str]:
    """Kind and error of the one dead letter."""
    (letter,) = await shop.letters(1)
    return letter.kind, letter.error


async def test_tasks_run_in_a_receiver_with_a_permit_each(shop: Shop, broker: AdmissionBroker) -> None:
    """Async and plain functions; the result goes to taskiq's own result backend."""
    permits = []

    @broker.task
    async def double(number: int) -> int:
        permits.append(current_ticket())
        return 2 * number

    @broker.task
    def triple(number: int) -> int:
        permits.append(current_ticket())
        return 3 * number

    first, second = await double.kiq(1), await triple.kiq(2)
    async with TaskiqWorker(broker):
        assert (await first.wait_result(0.005, 30)).return_value == 2
        assert (await second.wait_result(0.005, 30)).return_value == 6
        await settled(shop)
        await until(lambda: broker.controller.snapshot().in_flight == 0)
    assert all(permits)
    assert (await shop.queue.stats()).succeeded_total == 2


async def test_jobs_stay_in_the_queue_until_the_receiver_has_a_place(shop: Shop, broker: AdmissionBroker) -> None:
    """No more is taken than taskiq runs at once, so nothing waits with a slot; a place that is free is filled."""
    gate = Gate()

    @broker.task
    async def wait(number: int) -> None:
        await gate.pass_through(number)

    for number in range(5):
        await wait.kiq(number)
    async with TaskiqWorker(broker, max_async_tasks=2):
        await until(lambda: gate.reached == [0, 1])
        stats = await shop.queue.stats()
        assert (stats.running, stats.queued) == (2, 3)
        assert broker.controller.snapshot().in_flight == 2
        gate.open()
        await settled(shop)
    assert sorted(map(str, gate.reached)) == ["0", "1", "2", "3", "4"]


async def test_online_requests_of_a_higher_class_go_first(shop: Shop, broker: AdmissionBroker) -> None:
    """While the pool is full a job is not even delivered, and a request that comes later takes the slot before it."""
    ran = asyncio.Event()

    @broker.task(priority="low")
    async def background() -> None:
        ran.set()

    online = await shop.controller(1)
    held = await online.acquire(priority=Priority.HIGH)
    await background.kiq()
    async with TaskiqWorker(broker):
        await until(lambda: broker.controller.waiting == 1)
        later = asyncio.create_task(online.acquire(priority=Priority.HIGH))
        await until(lambda: online.waiting == 1)
        held.release()
        permit = await later
        assert (await shop.queue.stats()).queued == 1
        permit.release()
        await settled(shop)
    assert ran.is_set()


async def test_places_that_are_known_are_filled_at_once(shop: Shop) -> None:
    """What the receiver has no time to give out stays with nobody: it is handed back when it stops."""
    broker = AdmissionBroker(shop.queue, places=3)
    gate = Gate()

    @broker.task
    async def wait(number: int) -> None:
        await gate.pass_through(number)

    for number in range(5):
        await wait.kiq(number)
    async with TaskiqWorker(broker, max_async_tasks=3):
        await until(lambda: gate.reached == [0, 1, 2])
        assert (await shop.queue.stats()).queued == 2
        gate.open()
        await settled(shop)
    for number in range(5):
        await wait.kiq(number)
    async with TaskiqWorker(broker, max_async_tasks=1):
        await until(lambda: len(gate.reached) >= 6)
    stats = await shop.queue.stats()
    assert (stats.running, stats.queued + stats.succeeded_total) == (0, 10)


# ---------------------------------------------------------------------- labels


async def test_labels_say_class_tenant_delay_and_deduplication(shop: Shop, broker: AdmissionBroker) -> None:
    """Of the task, or of one kick."""

    @broker.task("app.tasks:sync", priority=Priority.LOW, cost=3)
    async def sync(user: int) -> None: ...

    await sync.kicker().with_labels(tenant="acme", dedup_key="user-1").kiq(1)
    await sync.kicker().with_labels(tenant="acme", dedup_key="user-1").kiq(1)
    await sync.kicker().with_labels(priority="high", delay=60).with_task_id("mine").kiq(2)
    (queued,) = await shop.queue.ls(state=JobState.QUEUED)
    assert (queued.task, queued.priority, queued.tenant) == ("app.tasks:sync", "low", "acme")
    (delayed,) = await shop.queue.ls(state=JobState.DELAYED)
    assert (delayed.priority, delayed.metadata) == ("high", {"task_id": "mine"})
    assert delayed.due_at is not None
    assert delayed.due_at == pytest.approx(delayed.enqueued_at + 60, abs=1)
    await shop.queue.purge(state=JobState.QUEUED)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"priority": "royal"}, "priority is 'royal': the classes"),
        ({"priority": 9}, "9 is not a valid Priority"),
        ({"tenant": "x" * 129}, "tenant is .* 129 bytes"),
        ({"delay": "soon"}, "delay is 'soon': it must be a number"),
        ({"delay": -1}, "delay is -1"),
        ({"delay": "nan"}, "delay is nan"),
        ({"cost": float("inf")}, "cost is inf"),
        ({"dedup_key": ""}, "dedup_key is ''"),
        ({"timeout": 0}, "timeout is 0"),
        ({"max_retries": "many"}, "max_retries is 'many'"),
        ({"ack_type": "never"}, "never"),
    ],
)
async def test_a_label_out_of_range_is_refused_by_name(
    shop: Shop, broker: AdmissionBroker, labels: dict[str, Any], said: str
) -> None:
    """Nothing is stored."""

    @broker.task
    async def nothing() -> None: ...

    with pytest.raises(SendTaskError) as raised:
        await nothing.kicker().with_labels(**labels).kiq()
    with pytest.raises(ValueError, match=said):
        raise raised.value.__cause__ or AssertionError
    assert (await shop.queue.stats()).enqueued_total == 0


async def test_the_limits_of_the_queue_hold(shop: Shop) -> None:
    """Of its size, and of what one job weighs."""
    small = AdmissionBroker(shop.another_queue(max_queue_size=1, max_payload_bytes=1000))

    @small.task
    async def nothing(text: str) -> None: ...

    with pytest.raises(SendTaskError) as raised:
        await nothing.kiq("x" * 1000)
    assert isinstance(raised.value.__cause__, PayloadTooLarge)
    await nothing.kiq("x")
    with pytest.raises(SendTaskError) as raised:
        await nothing.kiq("y")
    assert isinstance(raised.value.__cause__, QueueFull)
    await small.shutdown()


# ---------------------------------------------------------------------- ends


async def test_a_failed_attempt_is_made_again_and_then_is_a_dead_letter(shop: Shop, broker: AdmissionBroker) -> None:
    """By the broker's `retry`; only the last result is kept."""
    broker.retry = Retry.fixed(max_attempts=3, delay=0.001)
    attempts = []

    @broker.task
    async def fail() -> None:
        attempts.append(len(attempts))
        raise ValueError(f"attempt {len(attempts)}")

    task = await fail.kiq()
    async with TaskiqWorker(broker):
        result = await task.wait_result(0.005, 30)
        assert await only_letter(shop) == (BuryKind.FAILED, "ValueError: attempt 3")
    assert result.is_err
    assert str(result.error) == "attempt 3"
    assert attempts == [0, 1, 2]
    assert (await shop.queue.stats()).retried_total == 2


@pytest.mark.parametrize(("labels", "most"), [({"retry_on_error": False}, 1), ({"max_retries": 2}, 2)])
async def test_a_task_may_have_fewer_attempts(
    shop: Shop, broker: AdmissionBroker, labels: dict[str, Any], most: int
) -> None:
    """By taskiq's own labels."""
    broker.retry = Retry.fixed(max_attempts=5, delay=0.001)
    attempts = []

    @broker.task(**labels)
    async def fail() -> None:
        attempts.append(1)
        raise ValueError

    await fail.kiq()
    async with TaskiqWorker(broker):
        assert await only_letter(shop) == (BuryKind.FAILED, "ValueError")
    assert len(attempts) == most


async def test_permanent_errors_and_timeouts_are_told_apart(shop: Shop, broker: AdmissionBroker) -> None:
    """By their kind among the dead letters."""
    broker.retry = Retry.fixed(max_attempts=5, delay=0.001)

    @broker.task
    async def give_up() -> None:
        raise PermanentError("no such user")

    @broker.task
    async def reject(context: Annotated[Context, TaskiqDepends()]) -> None:
        context.reject()

    @broker.task(timeout=0.001, retry_on_error=False)
    async def dawdle() -> None:
        await asyncio.Event().wait()

    for task in (give_up, reject, dawdle):
        await task.kiq()
    async with TaskiqWorker(broker):
        letters = await shop.letters(3)
    kinds = {letter.task.rpartition(":")[2]: letter.kind for letter in letters}
    assert kinds == {"give_up": BuryKind.PERMANENT, "reject": BuryKind.PERMANENT, "dawdle": BuryKind.TIMEOUT}


async def test_retries_and_requeues_of_taskiq_itself_are_new_jobs(shop: Shop, broker: AdmissionBroker) -> None:
    """They are enqueued while the job runs that they follow: its task id and its key do not stand in their way."""
    broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=3))
    attempts: list[str] = []

    @broker.task(retry_on_error=True, dedup_key="the one")
    async def fail_once() -> str:
        attempts.append("fail_once")
        if len(attempts) == 1:
            raise ValueError
        return "well"

    @broker.task
    async def once_more(context: Annotated[Context, TaskiqDepends()]) -> None:
        attempts.append("once more")
        if attempts.count("once more") < 3:
            await context.requeue()

    task = await fail_once.kiq()
    async with TaskiqWorker(broker):
        assert (await task.wait_result(0.005, 30)).return_value == "well"
        await once_more.kiq()
        await settled(shop)
    assert attempts == ["fail_once"] * 2 + ["once more"] * 3
    stats = await shop.queue.stats()
    assert (stats.succeeded_total, stats.dead_total) == (5, 0)


async def test_an_early_ack_keeps_the_permit_until_the_task_has_ended(shop: Shop, broker: AdmissionBroker) -> None:
    """At most once, if that is wanted: the job is over, its slot is not free."""
    gate = Gate()

    @broker.task(ack_type=AcknowledgeType.WHEN_RECEIVED.value)
    async def wait() -> None:
        await gate.pass_through()

    await wait.kiq()
    async with TaskiqWorker(broker):
        await until(lambda: gate.reached)
        await settled(shop)
        assert broker.controller.snapshot().in_flight == 1
        gate.open()
        await until(lambda: broker.controller.snapshot().in_flight == 0)
    assert (await shop.queue.stats()).succeeded_total == 1


async def test_a_task_that_never_acknowledges_has_failed(shop: Shop, broker: AdmissionBroker) -> None:
    """With manual acks: what taskiq has let go of is noticed, and its slot is free again."""
    broker.retry = Retry.fixed(max_attempts=2, delay=0.001)
    runs = []

    @broker.task(ack_type=AcknowledgeType.MANUAL.value)
    async def forget() -> None:
        runs.append(1)

    await forget.kiq()
    async with TaskiqWorker(broker):
        kind, error = await only_letter(shop)
        await until(lambda: broker.controller.snapshot().in_flight == 0)
    assert (kind, len(runs)) == (BuryKind.FAILED, 2)
    assert "without an acknowledgement" in error


async def test_a_middleware_that_raises_costs_the_attempt_and_no_slot(shop: Shop, broker: AdmissionBroker) -> None:
    """The receiver then ends without a word."""

    class Broken(TaskiqMiddleware):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            raise RuntimeError("broken")

    broker.add_middlewares(Broken())

    @broker.task
    async def never() -> None:
        raise AssertionError

    await never.kiq()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)  # taskiq leaves its callback's error to the loop.
    async with TaskiqWorker(broker):
        kind, _ = await only_letter(shop)
        await until(lambda: broker.controller.snapshot().in_flight == 0)
    assert kind is BuryKind.FAILED


async def test_what_runs_when_the_broker_shuts_down_is_delivered_again(shop: Shop, broker: AdmissionBroker) -> None:
    """At once, and as if it had not been here."""
    gate = Gate()

    @broker.task("wait")
    async def wait() -> None:
        await gate.pass_through()

    await wait.kiq()
    async with TaskiqWorker(broker, wait_tasks_timeout=0.001):
        await until(lambda: gate.reached)
    (queued,) = await shop.queue.ls(state=JobState.QUEUED)
    assert queued.attempts == 0
    other = AdmissionBroker(shop.another_queue())
    other.register_task(wait.original_func, task_name="wait")
    gate.open()
    async with TaskiqWorker(other):
        await settled(shop)
    assert len(gate.reached) == 2


# ---------------------------------------------------------------------- what taskiq must not see


MESSAGE = {"task_id": "1", "task_name": "good", "labels": {}, "args": [], "kwargs": {}}


def sent(message: object, task: str = "good") -> str:
    """The body of a job."""
    return json.dumps({"task": task, "args": {"message": json.dumps(message)}})


HOSTILE = {
    "not JSON": ("}{", BuryKind.BAD_ARGUMENTS),
    "a job of ours": ('{"task":"good","args":{}}', BuryKind.BAD_ARGUMENTS),
    "deep": ("[" * 100_000, BuryKind.BAD_ARGUMENTS),
    "a message not JSON": ('{"task":"good","args":{"message":"}{"}}', BuryKind.BAD_ARGUMENTS),
    "a deep message": (json.dumps({"task": "good", "args": {"message": "[" * 100_000}}), BuryKind.BAD_ARGUMENTS),
    "no base64": ('{"task":"good","args":{"base64":"*"}}', BuryKind.BAD_ARGUMENTS),
    "a pickle": (
        '{"task":"good","args":{"base64":"gASVHQAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu"}}',
        BuryKind.BAD_ARGUMENTS,
    ),
    "another task inside": (sent(MESSAGE, task="other"), BuryKind.BAD_ARGUMENTS),
    "labels of another type": (
        sent({**MESSAGE, "labels": {"a": "x"}, "labels_types": {"a": 2}}),
        BuryKind.BAD_ARGUMENTS,
    ),
    "a label type there is not": (
        sent({**MESSAGE, "labels": {"a": "x"}, "labels_types": {"a": 99}}),
        BuryKind.BAD_ARGUMENTS,
    ),
    "an ack type there is not": (sent({**MESSAGE, "labels": {"ack_type": "x"}}), BuryKind.BAD_ARGUMENTS),
    "a timeout that is none": (sent({**MESSAGE, "labels": {"timeout": "x"}}), BuryKind.BAD_ARGUMENTS),
    "an unknown task": (sent({**MESSAGE, "task_name": "os.system"}, task="os.system"), BuryKind.UNKNOWN_TASK),
}


async def test_what_the_receiver_cannot_run_goes_to_the_dead_letters(shop: Shop, broker: AdmissionBroker) -> None:
    """It never sees it, and runs the good ones before and after."""
    runs = []

    @broker.task("good")
    async def good() -> None:
        runs.append(1)

    await good.kiq()
    ids = {f"{number:024x}": name for number, name in enumerate(HOSTILE)}
    rank = shop.queue.default_rank
    await shop.queue.put_all([script.put(id, rank, "", 1000, 0, "", "", HOSTILE[name][0]) for id, name in ids.items()])
    await good.kiq()
    async with TaskiqWorker(broker, max_async_tasks=1):
        letters = await shop.letters(len(HOSTILE))
        await settled(shop)
    assert {ids[letter.id]: letter.kind for letter in letters} == {name: kind for name, (_, kind) in HOSTILE.items()}
    assert len(runs) == 2


async def test_what_its_processes_died_of_is_not_given_to_the_receiver(shop: Shop) -> None:
    """It goes to the dead letters, after as many deaths as the queue allows."""
    broker = AdmissionBroker(shop.another_queue(max_deliveries=1))
    runs = []

    @broker.task
    async def poison() -> None:
        runs.append(1)

    await poison.kiq()
    async with Taker(shop.site) as taker:
        await taker.take_one()
        await taker.die()
    async with TaskiqWorker(broker):
        assert await only_letter(shop) == (BuryKind.KILLED, "Killed: the process that ran it died, once")
    assert not runs


async def test_arguments_that_do_not_fit_run_nothing(shop: Shop, broker: AdmissionBroker) -> None:
    """taskiq calls the function with what there is: that is a failed attempt."""
    runs = []

    @broker.task("good")
    async def good(number: int) -> None:
        runs.append(number)

    rank = shop.queue.default_rank
    await shop.queue.put_all([script.put("a" * 24, rank, "", 1000, 0, "", "", sent({**MESSAGE, "kwargs": {"x": 1}}))])
    async with TaskiqWorker(broker):
        kind, error = await only_letter(shop)
    assert (kind, runs) == (BuryKind.FAILED, [])
    assert "unexpected keyword argument 'x'" in error


# ---------------------------------------------------------------------- use


async def test_only_one_listens(shop: Shop, broker: AdmissionBroker) -> None:
    """A second receiver of the same broker would take the first one's places."""
    gate = Gate()

    @broker.task
    async def wait() -> None:
        await gate.pass_through()

    await wait.kiq()
    gate.open()
    async with TaskiqWorker(broker):
        await until(lambda: gate.reached)
        with pytest.raises(NotRunning, match="listens"):
            await anext(broker.listen())


async def test_a_listener_may_stop_and_come_again(shop: Shop, broker: AdmissionBroker) -> None:
    """Without a message lost or left behind."""
    first, second = asyncio.Event(), asyncio.Event()

    @broker.task
    async def note(which: int) -> None:
        (first if which == 1 else second).set()

    for which, event in ((1, first), (2, second)):
        await note.kiq(which)
        finish = asyncio.Event()
        listening = asyncio.create_task(Receiver(broker, max_async_tasks=3, run_startup=False).listen(finish))
        await asyncio.wait_for(event.wait(), 30)
        finish.set()
        await listening
    await settled(shop)


def test_a_broker_needs_no_more_than_an_address() -> None:
    """Nothing is connected before the first kick."""
    broker = AdmissionBroker("redis://127.0.0.1:1/0")
    assert isinstance(broker.jobs, JobQueue)
    assert broker.jobs.pool == "default"


async def test_a_broker_may_share_the_controller_of_a_web_app(shop: Shop) -> None:
    """One process, one lease; the controller is not closed with the broker."""
    online = await shop.controller(1)
    broker = AdmissionBroker(shop.queue, controller=online)
    gate = Gate()

    @broker.task
    async def wait() -> None:
        await gate.pass_through()

    await wait.kiq()
    async with TaskiqWorker(broker):
        await until(lambda: gate.reached)
        assert online.in_flight == 1
        gate.open()
        await settled(shop)
    async with online.admit():
        assert online.in_flight == 1
    with pytest.raises(ValueError, match="pool in this process alone"):
        AdmissionBroker(shop.queue, controller=AdmissionController())


async def test_a_broker_takes_for_its_tenants_and_steals_from_others(shop: Shop) -> None:
    """As a worker does."""
    broker = AdmissionBroker(shop.queue, tenants=["acme"], steal=["friend"])
    ran: list[str] = []

    @broker.task
    async def note(tenant: str) -> None:
        ran.append(tenant)

    for tenant in ("friend", "other", "acme", "friend", "acme"):
        await note.kicker().with_labels(tenant=tenant).kiq(tenant)
    async with TaskiqWorker(broker):
        await until(lambda: len(ran) == 4)
    assert ran == ["acme", "acme", "friend", "friend"]
    assert [job.tenant for job in await shop.queue.ls()] == ["other"]
