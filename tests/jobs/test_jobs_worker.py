"""A worker takes jobs, runs them and says what became of them, on a real server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from admission import PermanentError, Priority, Retry, current_ticket
from admission.errors import JobFailed, NotRunning, QueueFull, TaskCancelled
from admission.jobs import BuryKind, JobQueue, JobState, intake, run, script
from admission.jobs.hooks import Hooks
from admission.jobs.run import current_job
from tests.jobs.taking import Taker
from tests.jobs.workshop import Gate, Shop, shop, until

__all__ = ["shop"]

pytestmark = pytest.mark.anyio

PATIENCE = 30.0


# ---------------------------------------------------------------------- running


async def test_async_and_plain_functions_run_and_their_results_are_kept(shop: Shop) -> None:
    """A coroutine on the loop, a function in a thread of the worker's own."""
    threads: list[str] = []

    @shop.queue.task
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    @shop.queue.task
    def triple(number: int) -> int:
        threads.append(threading.current_thread().name)
        return 3 * number

    jobs = [await double.enqueue(1), await triple.enqueue(2)]
    async with shop.worker(name="w1"):
        assert [await job.result(PATIENCE) for job in jobs] == [2, 6]
    assert threads[0].startswith("admission-job-w1")


async def test_a_job_that_never_waits_needs_no_task_of_its_own(shop: Shop) -> None:
    """Hundreds of them end in the first step, in the same task."""
    tasks = set()

    @shop.queue.task
    async def look_around() -> None:
        tasks.add(asyncio.current_task())

    jobs = await shop.queue.enqueue_many([look_around.job() for _ in range(300)])
    async with shop.worker() as worker:
        for job in jobs:
            assert await job.result(PATIENCE) is None
    assert len(tasks) == 1
    assert worker.status().succeeded == 300


async def test_a_timeout_opened_in_the_first_step_belongs_to_the_task_of_the_others(shop: Shop) -> None:
    """What runs in the first step is inside a real task: `asyncio.timeout` and task groups work."""

    @shop.queue.task
    async def careful() -> str:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            inner = group.create_task(asyncio.sleep(0, "inner"))
        return await inner

    @shop.queue.task
    async def impatient() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            return "gave up"
        return "never"

    jobs = [await careful.enqueue(), await impatient.enqueue(), await careful.enqueue()]
    async with shop.worker():
        assert [await job.result(PATIENCE) for job in jobs] == ["inner", "gave up", "inner"]


async def test_a_job_knows_who_it_is_and_under_which_ticket_it_runs(shop: Shop) -> None:
    """On the loop and in a thread; outside, there is no job."""
    seen: list[Any] = []

    def note() -> None:
        seen.append((current_job(), current_ticket()))

    @shop.queue.task(priority=Priority.LOW)
    async def on_loop() -> None:
        note()

    @shop.queue.task(priority=Priority.HIGH)
    def in_thread() -> None:
        note()

    first = await on_loop.enqueue(tenant="acme", metadata={"order": 7})
    async with shop.worker():
        await first.result(PATIENCE)
        second = await in_thread.enqueue()
        await second.result(PATIENCE)
    (job, ticket), (other, other_ticket) = seen
    assert (job.id, job.task, job.attempt, job.delivery) == (first.id, "on_loop", 1, 1)
    assert (job.tenant, job.priority, job.metadata) == ("acme", "low", {"order": 7})
    assert (ticket.priority, ticket.tenant) == ("low", "jobs")
    assert (other.id, other.priority, other_ticket.priority) == (second.id, "high", "high")
    assert current_job() is None


async def test_a_job_takes_no_second_slot_of_its_pool(shop: Shop) -> None:
    """A pool of one slot: what the job acquires there is inside its own permit."""
    controller = await shop.controller(1)

    @shop.queue.task
    async def nested() -> int:
        async with controller.admit():
            return controller.in_flight

    job = await nested.enqueue()
    async with shop.worker(controller=controller):
        assert await job.result(PATIENCE) == 1


async def test_delayed_jobs_run_when_they_are_due(shop: Shop) -> None:
    """The worker sleeps until then, and is woken by its own timer."""

    @shop.queue.task
    async def later() -> float:
        return 1.0

    async with shop.worker():
        job = await later.enqueue(delay=0.2)
        assert (await job.status()).state is JobState.DELAYED
        assert await job.result(PATIENCE) == 1.0


async def test_a_job_that_is_enqueued_while_the_worker_sleeps_wakes_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one: each finds the worker asleep, and it does not look by itself."""
    monkeypatch.setattr(intake, "POLL", 3600.0)

    @shop.queue.task
    async def echo(number: int) -> int:
        return number

    async with shop.worker():
        for number in range(5):
            job = await echo.enqueue(number)
            assert await job.result(PATIENCE) == number


async def test_a_worker_without_a_free_place_is_not_woken_in_anothers_stead(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that sleeps runs the job, whatever its class, though the busy one came first."""
    monkeypatch.setattr(intake, "POLL", 3600.0)
    gate = Gate()

    @shop.queue.task
    async def hold() -> None:
        await gate.pass_through()

    @shop.queue.task
    async def echo(number: int) -> int:
        return number

    held = await hold.enqueue()
    async with shop.worker(workers=1, max_concurrency=10):
        await until(lambda: gate.reached)
        async with shop.worker(workers=1):
            for number, priority in enumerate(("low", "normal", "critical", "high")):
                job = await echo.with_options(priority=priority).enqueue(number)
                assert await job.result(PATIENCE) == number
            gate.open()
            await held.result(PATIENCE)


async def test_critical_jobs_go_before_everything(shop: Shop) -> None:
    """One place: after the job that runs, the highest class; among equals, the order in which they came."""
    gate = Gate()
    order: list[str] = []

    @shop.queue.task(priority=Priority.LOW)
    async def first() -> None:
        await gate.pass_through()

    @shop.queue.task
    async def note(name: str) -> None:
        order.append(name)

    blocker = await first.enqueue()
    async with shop.worker(workers=1):
        await until(lambda: gate.reached)
        jobs = [await note.with_options(priority=p).enqueue(p) for p in ("low", "normal", "high", "critical")]
        gate.open()
        for job in [blocker, *jobs]:
            await job.result(PATIENCE)
    assert order == ["critical", "high", "normal", "low"]


# ---------------------------------------------------------------------- failing


async def test_a_failed_job_is_tried_again_as_its_policy_says(shop: Shop) -> None:
    """The third attempt succeeds; each knows its number."""
    attempts: list[int] = []

    @shop.queue.task(retry=Retry.fixed(0.0, max_attempts=3))
    async def flaky() -> str:
        job = current_job()
        assert job is not None
        attempts.append(job.attempt)
        if job.attempt < 3:
            raise ConnectionError("not yet")
        return "at last"

    job = await flaky.enqueue()
    async with shop.worker() as worker:
        assert await job.result(PATIENCE) == "at last"
    assert attempts == [1, 2, 3]
    status = worker.status()
    assert (status.succeeded, status.failed, status.retried, status.buried) == (1, 2, 2, 0)
    assert status.success_rate == pytest.approx(1 / 3)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_the_last_failure_is_a_dead_letter_with_its_traceback(shop: Shop, in_thread: bool) -> None:
    """Of a coroutine and of a function."""

    def fail(number: int) -> None:
        raise ValueError(f"{number} is odd")

    async def fail_on_loop(number: int) -> None:
        fail(number)

    function = fail if in_thread else fail_on_loop
    task: Any = shop.queue.task(retry=Retry.fixed(0.0, max_attempts=2), name="fail")(function)
    job = await task.enqueue(3)
    async with shop.worker():
        with pytest.raises(JobFailed, match="3 is odd"):
            await job.result(PATIENCE)
    (letter,) = await shop.letters(1)
    assert (letter.kind, letter.error, letter.attempts) == (BuryKind.FAILED, "ValueError: 3 is odd", 2)
    assert "def fail" in letter.traceback or "raise ValueError" in letter.traceback


async def test_a_permanent_error_ends_a_job_at_once(shop: Shop) -> None:
    """Whatever the policy."""

    @shop.queue.task(retry=Retry.fixed(0.0, max_attempts=10))
    async def hopeless() -> None:
        raise PermanentError("no such user")

    await hopeless.enqueue()
    async with shop.worker():
        (letter,) = await shop.letters(1)
    assert (letter.kind, letter.attempts) == (BuryKind.PERMANENT, 1)


async def test_a_retry_that_would_exceed_the_total_time_is_not_made(shop: Shop) -> None:
    """The first failure is the last: an hour's wait does not fit into a minute."""

    @shop.queue.task(retry=Retry.fixed(3600.0, max_attempts=10, total_timeout=60.0))
    async def slow_to_come_back() -> None:
        raise OSError("down")

    await slow_to_come_back.enqueue()
    async with shop.worker():
        (letter,) = await shop.letters(1)
    assert (letter.kind, letter.attempts) == (BuryKind.FAILED, 1)


async def test_an_async_job_is_cancelled_at_its_timeout(shop: Shop) -> None:
    """Where it waits; every attempt has the whole timeout."""
    cancelled: list[int] = []

    @shop.queue.task(timeout=0.05, retry=Retry.fixed(0.0, max_attempts=2))
    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    await endless.enqueue()
    async with shop.worker() as worker:
        (letter,) = await shop.letters(1)
    assert (letter.kind, letter.attempts, len(cancelled)) == (BuryKind.TIMEOUT, 2, 2)
    assert "longer than its timeout of 0.05 s" in letter.error
    assert worker.status().timeouts == 2


async def test_an_error_of_the_name_timeout_is_a_failure_like_others(shop: Shop) -> None:
    """The function's own `TimeoutError` says nothing about the job's time."""

    @shop.queue.task(timeout=60)
    async def asks_somebody() -> None:
        raise TimeoutError("the other side")

    await asks_somebody.enqueue()
    async with shop.worker() as worker:
        (letter,) = await shop.letters(1)
    assert letter.kind is BuryKind.FAILED
    assert worker.status().timeouts == 0


async def test_a_thread_that_outruns_its_timeout_keeps_place_and_permit_until_it_ends(shop: Shop) -> None:
    """The report goes out at once; capacity is free when it really is."""
    begun, go = threading.Event(), threading.Event()
    controller = await shop.controller(1)

    @shop.queue.task(timeout=0.05)
    def stubborn() -> None:
        begun.set()
        go.wait(PATIENCE)

    @shop.queue.task
    async def quick() -> str:
        return "ran"

    await stubborn.enqueue()
    async with shop.worker(controller=controller, workers=1) as worker:
        (letter,) = await shop.letters(1)
        assert letter.kind is BuryKind.TIMEOUT
        after = await quick.enqueue()
        await controller.refresh()
        assert (worker.status().active, worker.status().threads_busy, controller.in_flight) == (1, 1, 1)
        assert (await after.status()).state is JobState.QUEUED
        go.set()
        assert await after.result(PATIENCE) == "ran"
    assert worker.status().succeeded == 1


async def test_a_job_without_a_free_thread_comes_back_later(shop: Shop) -> None:
    """It is counted, costs no attempt, and its place is free meanwhile."""
    go, began = threading.Event(), threading.Event()

    @shop.queue.task
    def hold() -> None:
        began.set()
        go.wait(PATIENCE)

    @shop.queue.task
    def quick() -> int:
        job = current_job()
        assert job is not None
        return job.attempt

    await hold.enqueue()
    async with shop.worker(threads=1) as worker:
        await until(began.is_set)
        job = await quick.enqueue()
        await until(lambda: worker.status().thread_pool_exhausted >= 2)
        assert worker.status().active <= 2
        go.set()
        assert await job.result(PATIENCE) == 1
        assert (await job.status()).deliveries > 2
    assert worker.status().failed == 0


async def test_a_job_that_never_finds_a_thread_is_a_dead_letter(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After twelve times."""
    monkeypatch.setattr(run, "NO_THREAD", Retry.fixed(0.0, max_attempts=13))
    go, began = threading.Event(), threading.Event()

    @shop.queue.task
    def hold() -> None:
        began.set()
        go.wait(PATIENCE)

    @shop.queue.task
    def starved() -> None:
        raise AssertionError("there is no thread for it")

    await hold.enqueue()
    async with shop.worker(threads=1) as worker:
        await until(began.is_set)
        await starved.enqueue()
        (letter,) = await shop.letters(1)
        go.set()
    assert (letter.kind, letter.deliveries) == (BuryKind.NO_THREAD, 13)
    assert (worker.status().thread_pool_exhausted, worker.status().handed_back) == (13, 12)


async def test_a_running_job_can_be_cancelled(shop: Shop) -> None:
    """Its coroutine is cancelled where it waits, and nothing is kept of it."""
    gate = Gate()

    @shop.queue.task(retry=Retry.fixed(0.0, max_attempts=5))
    async def endless() -> None:
        await gate.pass_through()

    job = await endless.enqueue()
    async with shop.worker() as worker:
        await until(lambda: gate.reached)
        assert await job.cancel()
        with pytest.raises(TaskCancelled):
            await job.result(PATIENCE)
    assert (worker.status().cancelled, worker.status().retried) == (1, 0)
    assert (await shop.queue.stats()).dead == 0


# ---------------------------------------------------------------------- hostile


async def test_what_is_no_job_of_a_registered_task_never_runs(shop: Shop) -> None:
    """Unknown names, dotted paths, pickles, wrong and missing arguments: dead letters, and the worker lives."""
    ran: list[object] = []

    @shop.queue.task
    async def add(number: int) -> int:
        ran.append(number)
        return number

    bodies = [
        '{"task":"os.system","args":{"command":"true"}}',
        '{"task":"add","args":{"number":"not a number"}}',
        '{"task":"add","args":{}}',
        '{"task":"add","args":{"number":1,"more":2}}',
        '{"task":"add"}',
        '{"task":["add"],"args":{"number":1}}',
        "\x80\x04\x95 pickle",
        "",
        "[]",
        '{"task":"add","args":{"number":1},"options":{"timeout":-1}}',
        '{"task":"add","args":{"number":1},"options":{"retry_on":["os.system"]}}',
    ]
    for number, body in enumerate(bodies):
        await shop.queue.store.ask(script.put(f"{number:024x}", 2, "", 1000, 0, "", "", body))
    good = await add.enqueue(5)
    async with shop.worker():
        assert await good.result(PATIENCE) == 5
        letters = {int(letter.id, 16): letter.kind for letter in await shop.letters(len(bodies))}
    assert ran == [5]
    assert letters[0] is letters[6] is BuryKind.UNKNOWN_TASK
    assert letters[1] is letters[3] is letters[9] is BuryKind.BAD_ARGUMENTS


async def test_a_result_that_is_no_json_is_a_dead_letter(shop: Shop) -> None:
    """It would be of no use to whoever asks for it; so is one that is too large."""
    queue = shop.another_queue(max_payload_bytes=1000)

    @queue.task
    async def strange() -> object:
        return object()

    @queue.task
    async def huge() -> str:
        return "x" * 1001

    await strange.enqueue()
    await huge.enqueue()
    async with shop.worker(queue):
        letters = await shop.letters(2)
    assert [letter.kind for letter in letters] == [BuryKind.BAD_RESULT, BuryKind.BAD_RESULT]
    assert any("1,000" in letter.error for letter in letters)
    await queue.aclose()


# ---------------------------------------------------------------------- what follows


async def test_a_result_is_stored_for_other_tasks(shop: Shop) -> None:
    """Before the job counts as done."""

    @shop.queue.task(store_as="orders")
    async def fetch() -> list[int]:
        return [1, 2]

    job = await fetch.enqueue()
    async with shop.worker():
        await job.result(PATIENCE)
        assert await shop.queue.pull("orders") == [1, 2]


async def test_a_callback_finds_room_in_a_full_queue(shop: Shop) -> None:
    """Whoever fills the queue must not keep others from hearing how their jobs ended."""
    queue = shop.another_queue(max_queue_size=1)
    gate, heard = Gate(), asyncio.Event()

    @queue.task(priority="high")
    async def hear(news: dict[str, Any]) -> None:
        heard.set()

    @queue.task(on_success=hear, priority="high")
    async def good() -> None:
        await gate.pass_through()

    @queue.task(priority="low")
    async def later() -> None:
        pass

    async with queue, shop.worker(queue, workers=1) as worker:
        await good.enqueue()
        await until(lambda: gate.reached)
        await later.enqueue()
        with pytest.raises(QueueFull):
            await later.enqueue()
        gate.open()
        async with asyncio.timeout(PATIENCE):
            await heard.wait()
        await until(lambda: worker.status().succeeded == 3)


async def test_callbacks_are_jobs_of_their_own(shop: Shop) -> None:
    """Told what became of the job; retried by their own policy; of the job's class and tenant."""
    told: dict[str, Any] = {}
    heard: list[str] = []

    @shop.queue.task(retry=Retry.fixed(0.0, max_attempts=2))
    async def hear(news: dict[str, Any]) -> None:
        job = current_job()
        assert job is not None
        heard.append(news["task"])
        if news["outcome"] == "success" and job.attempt == 1:
            raise ConnectionError("busy")
        told[news["task"]] = (news, job.tenant, job.priority)

    @shop.queue.task(on_success=hear)
    async def good() -> str:
        return "result"

    @shop.queue.task(on_failure=hear)
    async def bad() -> None:
        raise ValueError("broken")

    @shop.queue.task(on_failure=hear, on_timeout="hear", timeout=0.05)
    async def slow() -> None:
        await asyncio.Event().wait()

    jobs = {
        "good": await good.enqueue(tenant="acme", priority="low", metadata={"n": 1}),
        "bad": await bad.enqueue(),
        "slow": await slow.enqueue(),
    }
    async with shop.worker() as worker:
        await until(lambda: len(told) == 3)
        await until(lambda: worker.status().callbacks == 3)
    news, tenant, priority = told["good"]
    assert news == {
        "id": jobs["good"].id,
        "task": "good",
        "outcome": "success",
        "result": "result",
        "metadata": {"n": 1},
    }
    assert (tenant, priority) == ("acme", "low")
    assert (told["bad"][0]["outcome"], told["bad"][0]["error"]) == ("failure", "ValueError: broken")
    assert told["slow"][0]["outcome"] == "timeout"
    assert heard.count("good") == 2


async def test_hooks_hear_of_everything_and_break_nothing(shop: Shop) -> None:
    """A hook that raises is logged; the jobs go on."""
    heard: list[object] = []

    @shop.queue.task(retry=Retry.fixed(0.0, max_attempts=2))
    async def fails() -> None:
        raise ValueError("no")

    @shop.queue.task
    async def works() -> None:
        return None

    def on_success(job: Any, seconds: float) -> None:
        heard.append(("success", job.task, seconds >= 0))
        raise RuntimeError("a broken hook")

    hooks = Hooks(
        on_start=lambda: heard.append("start"),
        on_stop=lambda: heard.append("stop"),
        on_task_success=on_success,
        on_task_failure=lambda job, error, seconds, final: heard.append((job.task, str(error), final)),
    )
    async with shop.worker(hooks=hooks):
        await (await works.enqueue()).result(PATIENCE)
        await fails.enqueue()
        await shop.letters(1)
    assert heard == ["start", ("success", "works", True), ("fails", "no", False), ("fails", "no", True), "stop"]


async def test_a_job_that_its_processes_died_of_is_not_run_but_its_end_is_told(shop: Shop) -> None:
    """By its callback and the hooks, by the next worker that gets it; and its permit goes back."""
    online, queue = await shop.controller(1), shop.another_queue(max_deliveries=2)
    told: list[Any] = []

    @queue.task
    async def tell(ending: dict[str, Any]) -> None:
        told.append((ending["task"], ending["outcome"], ending["error"]))

    @queue.task(on_failure="tell")
    async def poison() -> None:
        told.append("it ran")

    job = await poison.enqueue()
    for _ in range(2):
        async with Taker(shop.site) as taker:
            assert (await taker.take_one()).id == job.id
            await taker.die()
    hooks = Hooks(on_task_failure=lambda job, error, seconds, final: told.append((job.id, str(error), final)))
    error = "the process that ran it died, 2 times"
    async with shop.worker(queue, hooks=hooks) as worker:
        with pytest.raises(JobFailed, match="killed"):
            await job.result(PATIENCE)
        await until(lambda: len(told) == 2)
        assert (worker.status().failed, worker.status().buried, worker.status().callbacks) == (0, 1, 1)
        await until(lambda: online.in_flight == 0)
    assert told == [(job.id, error, True), ("poison", "failure", f"Killed: {error}")]
    (letter,) = await queue.dead.list()
    assert (letter.kind, letter.deliveries) == (BuryKind.KILLED, 3)
    await queue.aclose()


# ---------------------------------------------------------------------- whose jobs


async def test_a_worker_takes_the_jobs_of_its_tenants_first_and_then_steals(shop: Shop) -> None:
    """One place: both of its own, then of whom it may steal; the third tenant's stay."""
    order: list[str] = []

    @shop.queue.task
    async def note(name: str) -> None:
        order.append(name)

    await note.enqueue("stolen", tenant="globex")
    await note.enqueue("other", tenant="initech")
    await note.enqueue("own", tenant="acme")
    await note.enqueue("own", tenant="acme")
    async with shop.worker(workers=1, tenants=["acme"], steal=["globex"]) as worker:
        await until(lambda: worker.status().succeeded == 3)
        late = await note.enqueue("own again", tenant="acme")
        await late.result(PATIENCE)
    assert order == ["own", "own", "stolen", "own again"]
    (left,) = await shop.queue.ls()
    assert left.tenant == "initech"


async def test_stealing_from_everybody_leaves_nothing(shop: Shop) -> None:
    """Its own tenants' jobs come first all the same."""
    order: list[str] = []

    @shop.queue.task
    async def note(name: str) -> None:
        order.append(name)

    await note.enqueue("other", tenant="initech")
    await note.enqueue("own", tenant="acme")
    async with shop.worker(workers=1, tenants=["acme"], steal="*") as worker:
        await until(lambda: worker.status().succeeded == 2)
    assert order == ["own", "other"]


# ---------------------------------------------------------------------- the end


async def test_a_worker_that_stops_lets_its_jobs_end(shop: Shop) -> None:
    """And takes no more."""
    gate = Gate()

    @shop.queue.task
    async def wait(name: str) -> object:
        return await gate.pass_through(name)

    first = await wait.enqueue("first")
    worker = shop.worker(workers=1)
    await worker.start()
    await until(lambda: gate.reached)
    second = await wait.enqueue("second")
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: not worker.status().is_running)
    gate.open()
    await stopping
    assert gate.reached == ["first"]
    assert (await first.status()).state is JobState.DONE
    assert (await second.status()).state is JobState.QUEUED


async def test_what_has_not_ended_by_then_is_handed_back(shop: Shop) -> None:
    """Running, waiting for a thread's end, or not begun: each runs again elsewhere, as its first attempt."""
    gate, began, go = Gate(), threading.Event(), threading.Event()
    runs: list[tuple[str, int]] = []

    def note(name: str) -> None:
        job = current_job()
        assert job is not None
        runs.append((name, job.attempt))

    @shop.queue.task
    async def on_loop() -> None:
        note("loop")
        await gate.pass_through()

    @shop.queue.task
    def in_thread() -> None:
        note("thread")
        began.set()
        go.wait(PATIENCE)

    jobs = [await on_loop.enqueue(), await in_thread.enqueue()]
    worker = shop.worker(grace=0)
    await worker.start()
    await until(lambda: gate.reached and began.is_set())
    await worker.stop()
    assert {(await job.status()).state for job in jobs} == {JobState.QUEUED}
    assert worker.status().handed_back == 2
    go.set()
    gate.open()
    async with shop.worker():
        for job in jobs:
            await job.result(PATIENCE)
    assert sorted(runs) == [("loop", 1), ("loop", 1), ("thread", 1), ("thread", 1)]


async def test_a_job_that_does_not_heed_its_cancellation_is_handed_back_all_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it brings is too late."""
    monkeypatch.setattr("admission.jobs.worker.LAST_WORD", 0.05)
    gate = Gate()

    @shop.queue.task
    async def deaf() -> str:
        try:
            await gate.pass_through()
        except asyncio.CancelledError:
            await gate.pass_through()
        return "too late"

    job = await deaf.enqueue()
    worker = shop.worker(grace=0)
    await worker.start()
    await until(lambda: gate.reached)
    await worker.stop()
    assert (await job.status()).state is JobState.QUEUED
    gate.open()
    await asyncio.sleep(0)


async def test_a_worker_starts_again(shop: Shop) -> None:
    """After its end, on the same queue; twice at once is an error."""

    @shop.queue.task
    async def echo(number: int) -> int:
        return number

    worker = shop.worker()
    for number in range(2):
        async with worker:
            with pytest.raises(NotRunning, match="runs already"):
                await worker.start()
            assert await (await echo.enqueue(number)).result(PATIENCE) == number
    assert (worker.status().taken, worker.status().is_running) == (2, False)
    await worker.stop()


async def test_a_worker_runs_until_an_event(shop: Shop) -> None:
    """As the command line does."""
    stop = asyncio.Event()

    @shop.queue.task
    async def last() -> None:
        stop.set()

    await last.enqueue()
    worker = shop.worker()
    async with asyncio.timeout(PATIENCE):
        await worker.run(stop)
    assert worker.status().succeeded == 1


async def test_a_worker_leaves_nothing_that_goes_on(shop: Shop) -> None:
    """No task and no ticket, once it has stopped."""

    @shop.queue.task
    async def pause() -> None:
        await asyncio.sleep(0)

    before = asyncio.all_tasks()
    async with shop.worker():
        await (await pause.enqueue()).result(PATIENCE)
    await shop.queue.aclose()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() - before if "admission" in task.get_name()]


def test_options_out_of_range_are_named(redis_url: str) -> None:
    """With the value and the range."""
    from admission import AdmissionController
    from admission.jobs.worker import Worker

    queue = JobQueue(redis_url)
    with pytest.raises(ValueError, match="workers is 0: it must be at least 1"):
        Worker(queue, workers=0)
    with pytest.raises(ValueError, match="threads is 0"):
        Worker(queue, threads=0)
    with pytest.raises(ValueError, match="grace is -1"):
        Worker(queue, grace=-1)
    with pytest.raises(ValueError, match="tenants is 'acme': it must be a list"):
        Worker(queue, tenants="acme")
    with pytest.raises(ValueError, match="line breaks"):
        Worker(queue, steal=["a\nb"])
    with pytest.raises(ValueError, match="of a pool in this process alone"):
        Worker(queue, controller=AdmissionController())
    with pytest.raises(ValueError, match="of pool 'other'"):
        Worker(queue, controller=AdmissionController(name="other", backend=redis_url))
