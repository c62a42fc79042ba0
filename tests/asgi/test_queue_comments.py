"""A stream that tells its client its place in line, in virtual time."""

from __future__ import annotations

import json

import anyio
import pytest
from scripted import Gate, Message, Visitor, guarded, settle
from trio.testing import MockClock

from admission.asgi.streams import wants_events

pytestmark = pytest.mark.anyio

STREAM = {"headers": {"accept": "text/event-stream"}}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Time passes only when nothing else can happen."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Chat:
    """`/occupy` holds the slot; the other paths answer as *answer* says."""

    def __init__(self, *answer: Message) -> None:
        self.gate = Gate()
        self._answer = answer

    async def __call__(self, scope, receive, send):  # type: ignore[no-untyped-def]
        if scope["path"] == "/occupy":
            await self.gate(scope, receive, send)
            return
        for message in self._answer:
            await send(message)


def start(status: int, kind: str) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]}


def body(content: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


EVENTS = (start(200, "text/event-stream"), body(b"data: 1\n\n", True), body(b"data: [DONE]\n\n"))


async def wait_behind(app: Chat, visitor: Visitor, seconds: float, **options: object) -> None:
    """Let *visitor* wait *seconds* for the one slot."""
    options = {"queue_status": "sse-comments", "queue_status_after": 2.0, "queue_status_every": 5.0, **options}
    pool = guarded(app, **options)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        group.start_soon(visitor.call, pool)
        await anyio.sleep(seconds)
        app.gate.open()
    assert pool.controller.in_flight == 0


def test_who_wants_events_says_so() -> None:
    """By `Accept`, or by `"stream": true` in a JSON body."""
    json_type = [(b"content-type", b"application/json")]
    assert wants_events([(b"accept", b"text/event-stream")], b"")
    assert wants_events(json_type, b'{"stream": true}')
    assert not wants_events(json_type, b'{"stream": false}')
    assert not wants_events(json_type, b'{"a": {"stream": true}}')
    assert not wants_events(json_type, b'{"stream": tr')
    assert not wants_events([], b'{"stream": true}')


async def test_comments_come_before_the_stream() -> None:
    """Only comment lines, then the app's own stream, and one response start."""
    visitor = Visitor(**STREAM)
    await wait_behind(Chat(*EVENTS), visitor, 10)
    lines = visitor.answer.decode().split("\n\n")
    assert lines == [": queue position=1", ": queue position=1", "data: 1", "data: [DONE]", ""]
    assert [message["type"] for message in visitor.sent].count("http.response.start") == 1
    assert visitor.headers["content-type"].startswith("text/event-stream")
    assert visitor.headers["x-queue-ticket"]


async def test_a_short_wait_is_an_ordinary_response() -> None:
    """Nothing goes out early before `queue_status_after`."""
    visitor = Visitor(**STREAM)
    await wait_behind(Chat(*EVENTS), visitor, 1)
    assert visitor.answer == b"data: 1\n\ndata: [DONE]\n\n"
    assert visitor.headers["x-queue-position"] == "1"


async def test_who_did_not_ask_for_events_gets_none() -> None:
    """An ordinary client sees its ordinary answer."""
    visitor = Visitor()
    await wait_behind(Chat(start(200, "text/plain"), body(b"hi")), visitor, 10)
    assert visitor.answer == b"hi"


async def test_a_refusal_after_200_is_an_error_event() -> None:
    """`data: {"error": …}` and `data: [DONE]`: the status can no longer say it."""
    visitor = Visitor("POST", headers={"content-type": "application/json"}, body=[b'{"stream": true}'])
    await wait_behind(Chat(*EVENTS), visitor, 20, max_wait=6.0)
    comment, error, done, _ = visitor.answer.decode().split("\n\n")
    assert comment == ": queue position=1"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "wait_timeout"
    assert done == "data: [DONE]"
    assert visitor.sent[-1]["more_body"] is False


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        ((start(400, "application/json"), body(b'{"error": {"code": "bad"}}')), {"error": {"code": "bad"}}),
        (
            (start(500, "text/plain"), body(b"Internal", True), body(b" error")),
            {"error": {"message": "Internal error", "type": "server_error", "param": None, "code": "500"}},
        ),
        ((start(200, "application/json"), body(b'{"id": 1}')), {"id": 1}),
    ],
)
async def test_an_answer_that_is_no_stream_becomes_an_event(answer: tuple[Message, ...], event: object) -> None:
    """After status 200 and comments, an error of the app is told as clients of streams expect it."""
    visitor = Visitor(**STREAM)
    await wait_behind(Chat(*answer), visitor, 3)
    _, data, done, _ = visitor.answer.decode().split("\n\n")
    assert json.loads(data.removeprefix("data: ")) == event
    assert done == "data: [DONE]"


async def test_a_client_that_leaves_during_comments_is_forgotten() -> None:
    """Its place is free at once."""
    app = Chat(*EVENTS)
    pool = guarded(app, queue_status="sse-comments")
    visitor = Visitor(**STREAM)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        group.start_soon(visitor.call, pool)
        await anyio.sleep(3)
        visitor.leave()
        await settle()
        assert pool.controller.queued == 0
        assert visitor.returned
        app.gate.open()
