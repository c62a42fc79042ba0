"""What clients and the curious are told of a pool that is kept elsewhere and answers later."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from faraway import Faraway
from scripted import Gate, Visitor, hello, settle
from trio.testing import MockClock

from admission.asgi import QoSAdmission
from admission.controller import AdmissionController
from admission.types import Reason

pytestmark = pytest.mark.anyio

HERE: dict[str, Any] = {"client": ("127.0.0.1", 5), "headers": {"host": "localhost:8000"}}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Comments and event streams look at their ticket now and then: in virtual time."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}


@pytest.fixture
def pool() -> Faraway:
    return Faraway()


def behind(pool: Faraway, app: Any, **options: Any) -> QoSAdmission:
    """*app* behind a middleware whose pool is elsewhere."""
    return QoSAdmission(app, controller=AdmissionController(backend=pool), **options)


async def test_a_request_runs_when_the_pool_has_said_so(pool: Faraway) -> None:
    """Not before: to have asked is no permit."""
    app = Gate()
    app.open()
    visitor = Visitor()
    async with anyio.create_task_group() as group:
        group.start_soon(visitor.call, behind(pool, app))
        await settle()
        assert app.served == []
        pool.grant(pool.asked[0])
    assert visitor.status == 200
    assert visitor.headers["x-queue-position"] == "0"


@pytest.mark.parametrize(("reason", "status"), [(Reason.QUEUE_FULL, 429), (Reason.UNAVAILABLE, 503)])
async def test_a_late_refusal_is_answered_like_an_early_one(pool: Faraway, reason: Reason, status: int) -> None:
    """The status is that of the reason, whenever it comes."""
    visitor = Visitor()
    async with anyio.create_task_group() as group:
        group.start_soon(visitor.call, behind(pool, hello))
        await settle()
        pool.refuse(pool.asked[0], reason)
    assert visitor.status == status
    assert visitor.headers["x-admission-reason"] == reason.value


async def test_a_pool_that_cannot_be_reached_refuses_with_503(pool: Faraway) -> None:
    """With `on_outage="closed"`: clients may come back."""
    pool.unreachable = True
    visitor = Visitor()
    await visitor.call(behind(pool, hello))
    error = json.loads(visitor.answer)["error"]
    assert (visitor.status, error["code"], error["type"]) == (503, "pool_unavailable", "server_error")
    assert 1 <= int(visitor.headers["retry-after"]) <= 60


async def test_a_client_that_leaves_before_the_answer_takes_its_request_back(pool: Faraway) -> None:
    """The pool may grant it in that instant: it hears of the withdrawal."""
    app = Gate()
    visitor = Visitor()
    async with anyio.create_task_group() as group:
        group.start_soon(visitor.call, behind(pool, app))
        await settle()
        visitor.leave()
    assert pool.withdrawn == [(pool.asked[0], Reason.DISCONNECT)]
    assert app.served == []


# ---------------------------------------------------------------------- shadow mode


async def test_shadow_mode_says_that_the_pool_was_asked(pool: Faraway) -> None:
    """There is no answer yet when the app is called, and none is made up."""
    visitor = Visitor()
    await visitor.call(behind(pool, hello, mode="shadow"))
    assert visitor.answer == b"hello"
    assert visitor.headers["x-admission-shadow"] == "asked"
    assert pool.withdrawn == [(pool.asked[0], Reason.CANCELLED)]


async def test_shadow_mode_takes_a_late_answer_as_it_comes(pool: Faraway) -> None:
    """A grant is given back, a refusal is no error; the client hears of neither."""
    app = Gate()
    shadow = behind(pool, app, mode="shadow")
    granted, refused = Visitor(), Visitor()
    async with anyio.create_task_group() as group:
        group.start_soon(granted.call, shadow)
        await settle()
        group.start_soon(refused.call, shadow)
        await settle()
        pool.grant(pool.asked[0])
        pool.refuse(pool.asked[1], Reason.QUEUE_FULL)
        app.open()
    assert [visitor.status for visitor in (granted, refused)] == [200, 200]
    assert [visitor.headers["x-admission-shadow"] for visitor in (granted, refused)] == ["asked", "asked"]
    assert pool.held == pool.waiting == 0


async def test_shadow_mode_tells_what_is_known_at_once(pool: Faraway) -> None:
    """During an outage the answer is there before the app is called."""
    pool.unreachable = True
    visitor = Visitor()
    await visitor.call(behind(pool, hello, mode="shadow"))
    assert visitor.headers["x-admission-shadow"] == "rejected-unavailable"


# ---------------------------------------------------------------------- a look inside


async def get(middleware: QoSAdmission, page: str) -> Any:
    visitor = Visitor(path=f"/-/admission/{page}", **HERE)
    await visitor.call(middleware)
    assert visitor.status == 200
    return json.loads(visitor.answer)


@pytest.mark.parametrize("page", ["status", "dump"])
async def test_the_status_is_that_of_all_processes_and_of_now(pool: Faraway, page: str) -> None:
    """The pool is asked before the page is answered."""
    shown = (await get(behind(pool, hello), page))["pool"]
    assert pool.refreshed == [None]
    assert shown["in_flight"] == 5
    assert shown["processes"] == [
        {"process": "aa", "slots": 2, "waiting": 1, "lease_left": 9.5, "elected": True, "own": True},
        {"process": "bb", "slots": 3, "waiting": 0, "lease_left": 4.0, "elected": False, "own": False},
    ]
    assert shown["link"]["state"] == "closed"
    assert shown["link"]["round_trip"] == {"bounds": [0.001, 0.01], "counts": [4, 2, 1], "sum": 0.05}


async def test_a_pool_of_one_process_has_no_link() -> None:
    """The fields are there and empty."""
    shown = (await get(QoSAdmission(hello, max_concurrency=1), "status"))["pool"]
    assert (shown["processes"], shown["link"]) == ([], None)


async def test_a_ticket_is_told_its_place_of_now(pool: Faraway) -> None:
    """Found under the id the pool gave it, once someone has seen that id."""
    middleware = behind(pool, hello)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, middleware)
        await settle()
        entry = pool.asked[0]
        (shown,) = (await get(middleware, "dump"))["tickets"]
        pool.answers = [3]
        place = await get(middleware, f"tickets/{shown['id']}")
        assert (place["position"], place["state"], place["held_back_by"]) == (3, "queued", "pool-limit")
        assert pool.refreshed == [None, entry]
        pool.grant(entry)
    assert middleware.controller.explain(shown["id"]) is None


async def test_a_tickets_events_ask_each_time(pool: Faraway) -> None:
    """One place further with each look, until it is gone."""
    middleware = behind(pool, hello)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, middleware)
        await settle()
        ticket = middleware.controller.tickets()[0].id
        pool.answers = [3, 2, 1]
        watcher = Visitor(path=f"/-/admission/tickets/{ticket}/events", **HERE)
        group.start_soon(watcher.call, middleware)
        await anyio.sleep(2.5)
        pool.grant(pool.asked[0])
    told = [json.loads(line[6:]) for line in watcher.answer.decode().splitlines() if line.startswith("data: ")]
    assert [event.get("position") for event in told] == [3, 2, 1, None]


async def test_comments_in_a_stream_tell_the_place_of_now(pool: Faraway) -> None:
    """The pool is asked before each of them."""
    visitor = Visitor(headers={"accept": "text/event-stream"})
    middleware = behind(pool, hello, queue_status="sse-comments", queue_status_after=1.0, queue_status_every=1.0)
    pool.answers = [4, 2]
    async with anyio.create_task_group() as group:
        group.start_soon(visitor.call, middleware)
        await anyio.sleep(2.5)
        pool.grant(pool.asked[0])
    assert visitor.answer.startswith(b": queue position=4\n\n: queue position=2\n\n")


async def test_a_process_is_of_the_pool_from_its_start_to_its_end(
    pool: Faraway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joins before the first request and says goodbye after the last, unless the controller is another's."""
    monkeypatch.setattr("admission.asgi.middleware.shared_pool", lambda options: pool)
    told: list[tuple[str, int, bool]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            message = await receive()
            told.append((message["type"], len(pool.refreshed), pool.stopped))

    async def live(middleware: QoSAdmission) -> None:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> dict[str, str]:
            return next(messages)

        await middleware({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, receive)

    await live(behind(pool, app))
    await live(QoSAdmission(app, max_concurrency=1))
    assert told == [
        ("lifespan.startup", 0, False),
        ("lifespan.shutdown", 0, False),
        ("lifespan.startup", 1, False),
        ("lifespan.shutdown", 1, True),
    ]
