"""Clients that send or read slowly, in virtual time."""

from __future__ import annotations

import anyio
import pytest
from scripted import Gate, Visitor, guarded, hello, settle
from trio.testing import MockClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Time passes only when nothing else can happen."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}


async def reads_all(scope, receive, send):  # type: ignore[no-untyped-def]
    """An app that reads its body and answers with its length."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client has left")
        body += message["body"]
        more = message["more_body"]
    await hello(scope, receive, send)


class Dripping(Visitor):
    """Sends a byte every *pause* seconds."""

    def __init__(self, *, pause: float, **request: object) -> None:
        super().__init__("POST", **request)  # type: ignore[arg-type]
        self.pause = pause

    async def receive(self):  # type: ignore[no-untyped-def]
        if self.incoming:
            await anyio.sleep(self.pause)
        return await super().receive()


async def test_an_upload_below_the_least_rate_is_ended() -> None:
    """1 byte per second with a least rate of 10: the app is told the client has left, the client is told 408."""
    pool = guarded(reads_all, spool_bytes=0, upload_grace=5.0, min_upload_rate=10.0)
    visitor = Dripping(pause=1.0, body=[b"x"] * 60)
    begun = anyio.current_time()
    await visitor.call(pool)
    assert visitor.status == 408
    assert anyio.current_time() - begun < 15
    assert pool.controller.in_flight == 0


async def test_an_upload_above_the_least_rate_may_take_its_time() -> None:
    """60 seconds at twice the least rate are no offence."""
    pool = guarded(reads_all, spool_bytes=0, upload_grace=5.0, min_upload_rate=10.0)
    visitor = Dripping(pause=1.0, body=[b"x" * 20] * 60)
    await visitor.call(pool)
    assert visitor.status == 200


async def test_a_reader_that_stops_reading_loses_its_slot() -> None:
    """A stream whose client takes nothing for `stall_timeout` is aborted with what a lost connection raises."""
    raised = []

    async def streams(scope, receive, send):  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError as error:
            raised.append(error)
            raise

    class Stalled(Visitor):
        async def send(self, message):  # type: ignore[no-untyped-def]
            await super().send(message)
            if message["type"] == "http.response.body":
                await anyio.sleep_forever()

    pool = guarded(streams, stall_timeout=20.0)
    with pytest.raises(ConnectionAbortedError, match="20 s"):
        await Stalled().call(pool)
    assert raised
    assert pool.controller.in_flight == 0


async def test_a_head_on_an_endless_stream_comes_to_an_end() -> None:
    """The client has its answer with the headers; nobody would ever end the stream."""

    async def endless(scope, receive, send):  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"tick", "more_body": True})
            await anyio.sleep(1)

    pool = guarded(endless)
    visitor = Visitor("HEAD")
    await visitor.call(pool)
    assert visitor.status == 200
    assert visitor.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert pool.controller.in_flight == 0


async def test_a_head_waits_in_line_like_a_get() -> None:
    """It may be as dear to compute."""
    gate = Gate()
    pool = guarded(gate)
    head = Visitor("HEAD")
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, pool)
        await settle()
        group.start_soon(head.call, pool)
        await settle()
        assert pool.controller.queued == 1
        gate.open()
    assert head.headers["x-queue-position"] == "1"


async def test_waiting_too_long_is_429_with_a_reason() -> None:
    """`max_wait` ends the waiting; the answer says what happened and when to come back."""
    gate = Gate()
    pool = guarded(gate, max_wait=7.0)
    visitor = Visitor()
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, pool)
        await settle()
        begun = anyio.current_time()
        await visitor.call(pool)
        assert anyio.current_time() - begun == pytest.approx(7.0, abs=0.01)
        gate.open()
    assert visitor.status == 429
    assert visitor.headers["x-admission-reason"] == "evicted-timeout"
    assert 1 <= int(visitor.headers["retry-after"]) <= 60


async def test_a_wait_shows_in_the_headers() -> None:
    """Position on arrival, time in line, and the same for the browser's network panel."""
    gate = Gate()
    pool = guarded(gate)
    visitor = Visitor()
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, pool)
        await settle()
        group.start_soon(visitor.call, pool)
        await anyio.sleep(2.5)
        gate.open()
    assert visitor.headers["x-queue-position"] == "1"
    assert visitor.headers["x-queue-wait-ms"] == "2500"
    assert visitor.headers["server-timing"] == "queue;dur=2500"
    assert visitor.headers["x-queue-class"] == "normal"
    assert visitor.headers["x-queue-ticket"]
