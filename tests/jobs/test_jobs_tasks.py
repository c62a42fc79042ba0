"""Tasks: a function that is checked, written as JSON, and read again; nothing here needs a server."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from admission import Priority
from admission.errors import AdmissionError, BadArguments, PayloadTooLarge, UnknownTask
from admission.jobs import JobQueue, Task, script
from admission.jobs.task import name_in
from admission.policy.retry import Retry

ID = UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Colour(Enum):
    """Of an order."""

    RED = "red"


class Order(BaseModel):
    """What a shop sells."""

    number: int
    at: datetime
    colour: Colour = Field(alias="paint")


@pytest.fixture
def jobs() -> JobQueue:
    """A queue that is never connected."""
    return JobQueue("redis://127.0.0.1:1")


def body_of(task: Any, *args: object, **kwargs: object) -> dict[str, Any]:
    """What would be stored."""
    body: dict[str, Any] = json.loads(task.job(*args, **kwargs).body)
    return body


def call_again(task: Task[..., Any], *args: object, **kwargs: object) -> object:
    """Call the function with what its job gives back."""
    call = task.open(task.job(*args, **kwargs).body)
    return task(*call.args, **call.kwargs)


@pytest.mark.anyio
async def test_a_call_just_runs_the_function(jobs: JobQueue) -> None:
    """No server, no queue."""

    @jobs.task(priority=Priority.LOW, retry=Retry.exponential(max_attempts=5), timeout=60)
    async def sync_user(user_id: int, full: bool = False) -> dict[str, object]:
        """Fetch a user."""
        return {"user": user_id, "full": full}

    @jobs.task
    def plus(a: int, b: int) -> int:
        return a + b

    assert await sync_user(42) == {"user": 42, "full": False}
    assert plus(1, b=2) == 3
    assert sync_user.__doc__ == "Fetch a user."
    assert (sync_user.is_async, plus.is_async) == (True, False)
    assert list(jobs.tasks) == ["sync_user", "plus"]


def test_a_body_says_no_more_than_it_must(jobs: JobQueue) -> None:
    """What has a default and was not given is not stored: the code that runs the job has its own."""

    @jobs.task
    def sync_user(user_id: int, full: bool = False) -> None: ...

    assert body_of(sync_user, 42) == {"task": "sync_user", "args": {"user_id": 42}}
    assert body_of(sync_user, "42", full=True)["args"] == {"user_id": 42, "full": True}


def test_rich_types_travel_as_json_and_come_back(jobs: JobQueue) -> None:
    """Models with aliases, times, UUIDs and enums; what a model says as a dict becomes one."""

    @jobs.task
    def ship(order: Order, to: UUID, when: datetime, colours: set[Colour]) -> tuple[Any, ...]:
        return order, to, when, colours

    order = Order(number=7, at=NOON, paint=Colour.RED)
    assert body_of(ship, order, ID, NOON, {Colour.RED})["args"] == {
        "order": {"number": 7, "at": "2026-11-22T12:00:00Z", "paint": "red"},
        "to": str(ID),
        "when": "2026-11-22T12:00:00Z",
        "colours": ["red"],
    }
    assert call_again(ship, order, ID, NOON, {Colour.RED}) == (order, ID, NOON, {Colour.RED})
    assert call_again(ship, order.model_dump(by_alias=True), str(ID), NOON, ["red"])[0] == order  # type: ignore[index]


def test_every_kind_of_parameter_comes_back_where_it_was(jobs: JobQueue) -> None:
    """Positional only, the rest, by keyword only, and any other keyword."""

    @jobs.task
    def every(a: int, /, b: int = 2, *rest: str, c: int = 3, **more: float) -> tuple[object, ...]:
        return a, b, rest, c, more

    assert call_again(every, 1) == (1, 2, (), 3, {})
    assert call_again(every, 1, 5, "x", "y", c=4, z=1.5) == (1, 5, ("x", "y"), 4, {"z": 1.5})
    with pytest.raises(BadArguments, match=r"'rest'\[1\] is 3"):
        every.job(1, 2, "x", 3)  # type: ignore[arg-type]


def numbers(user_id: int, ratio: float = 0.5, extra: object = None, tags: list[str] | None = None) -> None:
    """What the refused calls below are meant for."""


def loose(value) -> None:  # type: ignore[no-untyped-def]
    """A parameter without annotation."""


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "argument", "said"),
    [
        (numbers, (), {}, "user_id", "argument 'user_id' is missing"),
        (numbers, ("many",), {}, "user_id", "argument 'user_id' is 'many': input should be a valid integer"),
        (numbers, (1,), {"full": True}, "full", "no argument 'full': the arguments are user_id, ratio, extra, tags"),
        (numbers, (1, 2, 3, 4, 5), {}, "", "too many positional arguments"),
        (numbers, (1,), {"user_id": 2}, "", "multiple values for argument 'user_id'"),
        (numbers, (1, math.nan), {}, "ratio", "argument 'ratio' is nan"),
        (numbers, (1, 0.5, {"deep": [math.inf]}), {}, "extra", r"'extra' is \{'deep': \[inf\]\}: it must be what JSON"),
        (numbers, (1, 0.5, object()), {}, "extra", "it must be what JSON can say"),
        (numbers, (1, 0.5, pickle.dumps), {}, "extra", "it must be what JSON can say"),
        (numbers, (1, 0.5, None, ["a", 3]), {}, "tags", r"argument 'tags'\[1\] is 3"),
        (loose, (object(),), {}, "value", "argument 'value' is <object"),
        (loose, (math.nan,), {}, "value", "without NaN or infinities"),
        (loose, ("\ud800",), {}, "value", "it must be what JSON can say"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    jobs: JobQueue,
    function: Callable[..., None],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    argument: str,
    said: str,
) -> None:
    """The error names task, argument and value, and what would be right."""
    task = jobs.task(function)
    with pytest.raises(BadArguments, match=said) as caught:
        task.job(*args, **kwargs)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AdmissionError)
    assert (caught.value.task, caught.value.argument) == (function.__name__, argument)
    assert f"task {function.__name__!r}" in str(caught.value)


def test_text_that_only_reads_like_nan_is_none(jobs: JobQueue) -> None:
    """A user may be called NaN."""

    @jobs.task
    def greet(name: str) -> None: ...

    assert body_of(greet, "NaN Infinity")["args"] == {"name": "NaN Infinity"}


def test_a_shown_value_is_short(jobs: JobQueue) -> None:
    """An error is no copy of the payload."""

    @jobs.task
    def count(n: int) -> None: ...

    with pytest.raises(BadArguments) as caught:
        count.job("x" * 10_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


def test_a_large_body_is_refused_with_size_and_limit() -> None:
    """Before anything is sent."""
    jobs = JobQueue("redis://127.0.0.1:1", max_payload_bytes=100)

    @jobs.task
    def store(text: str) -> None: ...

    fits = 100 - len(store.job("").body)
    assert len(store.job("x" * fits).body) == 100
    with pytest.raises(PayloadTooLarge, match="101 bytes: it must be at most 100") as caught:
        store.job("x" * (fits + 1))
    assert (caught.value.size, caught.value.limit) == (101, 100)
    with pytest.raises(PayloadTooLarge):  # Bytes count, not characters.
        store.job("é" * fits)


def test_an_annotation_that_json_cannot_say_is_refused_when_the_task_is_made(jobs: JobQueue) -> None:
    """It names the parameter."""

    def save(session: Callable[[], None] | JobQueue, n: int) -> None: ...

    with pytest.raises(TypeError, match="task 'save': argument 'session' is annotated with what cannot be"):
        jobs.task(save)
    assert "save" not in jobs.tasks


def test_an_annotation_may_name_what_comes_later(jobs: JobQueue) -> None:
    """It is read when it is needed."""

    def later(item: _Later) -> int:  # type: ignore[name-defined]  # noqa: F821
        return int(item.n)

    task = jobs.task(later)
    with pytest.raises(NameError, match="task 'later': its annotations need what is not defined: _Later"):
        task.job({"n": 1})

    class _Late(BaseModel):
        n: int

    later.__globals__["_Later"] = _Late
    try:
        assert call_again(task, {"n": 1}) == 1
    finally:
        del later.__globals__["_Later"]


class _Order(BaseModel):
    item: _Item  # type: ignore[name-defined]  # noqa: F821


def test_so_may_a_model(jobs: JobQueue) -> None:
    """What it needs has to be there when the first job is made."""

    def ship(order: _Order) -> int:
        return int(order.item.n)

    task = jobs.task(ship)
    with pytest.raises(NameError, match="task 'ship': its annotations need what is not defined: _Item"):
        task.job({"item": {"n": 1}})

    class _Item(BaseModel):
        n: int

    _Order.model_rebuild(_types_namespace={"_Item": _Item})
    assert call_again(task, {"item": {"n": 1}}) == 1


# ---------------------------------------------------------------------- names and options


def test_names_are_plain_and_unique(jobs: JobQueue) -> None:
    """The function's own, unless another one is given."""

    @jobs.task
    def send() -> None: ...

    with pytest.raises(ValueError, match="there is a task 'send' already"):
        jobs.task(send.function)
    assert jobs.task(name="mail.send-2")(send.function).name == "mail.send-2"
    for bad in ("", "a b", "é", "x" * 129, "a/b", "a\n"):
        with pytest.raises(ValueError, match="1 to 128 letters, digits"):
            jobs.task(name=bad)(send.function)
    with pytest.raises(ValueError, match="give one with name="):
        jobs.task(lambda: None)
    with pytest.raises(ValueError, match="give one with name="):
        jobs.task(partial(print, 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "timeout is 0: it must be above 0"),
        ({"timeout": math.nan}, "timeout is nan"),
        ({"cost": -1}, "cost is -1: it must be at least 0"),
        ({"retry": 5}, "retry is 5: it must be a Retry"),
        ({"store_as": ""}, "store_as is '', 0 bytes: it must be 1 to 128"),
        ({"priority": "urgent"}, "priority is 'urgent': the classes of pool 'default' are critical, high, normal, low"),
    ],
)
def test_options_of_tasks_and_of_calls_are_checked(jobs: JobQueue, options: dict[str, Any], said: str) -> None:
    """Alike, when they are said."""

    @jobs.task
    def send() -> None: ...

    with pytest.raises(ValueError, match=said):
        jobs.task(name="other", **options)
    with pytest.raises(ValueError, match=said):
        send.with_options(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tenant": "x" * 129}, "129 bytes: it must be 0 to 128"),
        ({"tenant": "é" * 65}, "130 bytes: it must be 0 to 128"),
        ({"tenant": "a\nb"}, r"tenant is 'a\\nb': control characters are not allowed"),
        ({"tenant": "a\x00"}, "control characters are not allowed"),
        ({"dedup_key": ""}, "dedup_key is '', 0 bytes: it must be 1 to 128"),
        ({"delay": -1}, "delay is -1: it must be at least 0"),
        ({"delay": math.inf}, "delay is inf"),
        ({"metadata": {"x": math.nan}}, "metadata has NaN"),
        ({"metadata": {"x": object()}}, "metadata cannot be written as JSON"),
    ],
)
def test_options_of_calls_are_checked(jobs: JobQueue, options: dict[str, Any], said: str) -> None:
    """When they are said."""

    @jobs.task
    def send() -> None: ...

    with pytest.raises(ValueError, match=said):
        send.with_options(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_queue_size": -1}, "max_queue_size is -1"),
        ({"max_wait": -1}, "max_wait is -1"),
        ({"max_payload_bytes": 0}, "max_payload_bytes is 0"),
        ({"result_ttl": -1}, "result_ttl is -1"),
        ({"dead_ttl": 0}, "dead_ttl is 0"),
        ({"max_deliveries": 0}, "max_deliveries is 0"),
        ({"backpressure_mode": "drop"}, "drop"),
        ({"classes": []}, "0 classes"),
        ({"default_priority": "urgent"}, "priority is 'urgent'"),
        ({"pool": ""}, "pool is ''"),
    ],
)
def test_options_of_a_queue_are_checked(options: dict[str, Any], said: str) -> None:
    """When it is made."""
    with pytest.raises(ValueError, match=said):
        JobQueue("redis://127.0.0.1:1", **options)


def test_callbacks_are_registered_tasks(jobs: JobQueue) -> None:
    """Checked when a job is made, because tasks may be registered in any order."""

    @jobs.task(on_success="audit")
    def send() -> None: ...

    with pytest.raises(UnknownTask, match="on_success is 'audit': the tasks are send"):
        send.job()

    @jobs.task
    def audit(outcome: object) -> None: ...

    assert "options" not in body_of(send)
    said = body_of(send.with_options(on_failure=audit, on_timeout="audit"))["options"]
    assert said == {"on_failure": "audit", "on_timeout": "audit"}
    with pytest.raises(UnknownTask, match=r"on_failure is 'os\.system'"):
        send.with_options(on_failure="os.system")


def test_options_come_back_with_what_the_task_says_besides(jobs: JobQueue) -> None:
    """Which errors are worth another try is code, and never in a message."""

    @jobs.task(retry=Retry.fixed(1, retry_on=(OSError,)), timeout=60, cost=2)
    def send() -> None: ...

    plain = send.open(send.job().body)
    assert plain.options is send.options
    job = send.with_options(retry=Retry.exponential(max_attempts=7), metadata={"source": "ui"}).job()
    assert "OSError" not in job.body
    call = send.open(job.body)
    assert call.options.retry == Retry.exponential(max_attempts=7, retry_on=(OSError,))
    assert (call.options.timeout, call.options.cost) == (60, 2)
    assert call.metadata == {"source": "ui"}
    untimed = send.with_options(timeout=None, retry=None).job()
    assert send.open(untimed.body).options.timeout is None
    assert send.open(untimed.body).options.retry.max_attempts == 1


def test_each_step_of_the_builder_gives_a_new_one(jobs: JobQueue) -> None:
    """Those before stay as they are."""

    @jobs.task
    def send(n: int) -> None: ...

    base = send.with_options(tenant="acme", cost=3)
    high = base.with_options(priority=Priority.HIGH)
    assert base.how == script.how(2, "acme", 3000)
    assert high.how == script.how(1, "acme", 3000)


def test_a_parameter_named_like_an_option_is_given_after_with_options(jobs: JobQueue) -> None:
    """There all arguments are the function's, and the error says so."""

    @jobs.task
    def invite(tenant: str) -> None: ...

    assert body_of(invite.with_options(), tenant="acme")["args"] == {"tenant": "acme"}
    with pytest.raises(BadArguments, match=r"'tenant' is missing \(enqueue takes tenant=… for itself"):
        invite.job()


# ---------------------------------------------------------------------- what comes out of a queue


def victim(n: int = 0) -> None:
    """Must not be run by any of the bodies below."""
    raise AssertionError


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{",
        '{"args":{}}',
        '{"task":7,"args":{}}',
        '{"task":"os.system","args":{"command":"true"}}',
        '{"task":"tests.jobs.test_jobs_tasks.victim","args":{}}',
        pickle.dumps({"task": "victim"}).decode("latin-1"),
    ],
)
def test_a_body_without_a_registered_name_is_for_no_task(jobs: JobQueue, body: str) -> None:
    """Pickles and dotted paths are texts like others."""
    jobs.task(victim)
    assert jobs.tasks.get(name_in(body)) is None


@pytest.mark.parametrize(
    "body",
    [
        '{"task":"victim"}',
        '{"task":"victim","args":[]}',
        '{"task":"victim","args":{"n":"x"}}',
        '{"task":"victim","args":{"m":1}}',
        '{"task":"victim","args":{"n":NaN}}',
        '{"task":"victim","args":{},"call":"os.system"}',
        '{"task":"victim","args":{},"options":{"hook":"os.system"}}',
        '{"task":"victim","args":{},"options":{"timeout":-1}}',
        '{"task":"victim","args":{},"options":{"timeout":"soon"}}',
        '{"task":"victim","args":{},"options":{"retry":{"max_attempts":0}}}',
        '{"task":"victim","args":{},"options":{"retry":{"retry_on":["SystemExit"],"x":1}}}',
        '{"task":"victim","args":{},"options":{"retry":"always"}}',
        '{"task":"victim","args":{},"task":"other"}',
    ],
)
def test_a_body_that_does_not_fit_any_more_is_refused(jobs: JobQueue, body: str) -> None:
    """The code may be older or newer than the job."""
    jobs.task(victim)
    task = jobs.tasks.get(name_in(body))
    assert task is None or task.name == "victim"
    with pytest.raises(BadArguments, match="task 'victim'"):
        jobs.tasks["victim"].open(body)


def test_the_name_is_found_however_the_body_is_written() -> None:
    """Another program may have put it there."""
    assert name_in('{"task":"a","args":{}}') == "a"
    assert name_in('{ "args": {}, "task" : "b" }') == "b"
