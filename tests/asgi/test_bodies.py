"""What the client sends reaches the app unchanged, and nobody holds a slot by sending slowly."""

from __future__ import annotations

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Gate, Visitor, guarded, settle

from admission.asgi.body import ByteBudget, Spool

pytestmark = pytest.mark.anyio


async def all_messages(scope: object, receive: object, send: object) -> None:
    """An app that never reads."""


class Reader:
    """An app that reads its whole body and keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[object] = []

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        more = True
        while more:
            message = await receive()
            self.messages.append(message)
            more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@given(
    chunks=st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    spool_bytes=st.sampled_from([0, 600, 2000, 10**6]),
    wait=st.booleans(),
)
@settings(max_examples=150)
def test_a_body_comes_out_of_the_spool_as_it_went_in(chunks: list[bytes], spool_bytes: int, wait: bool) -> None:
    """Byte for byte and message for message, whether it waited or not and wherever the spool was full."""

    async def main() -> None:
        reader, gate = Reader(), Gate()

        async def app(scope, receive, send):  # type: ignore[no-untyped-def]
            await (gate if scope["path"] == "/occupy" else reader)(scope, receive, send)

        pool = guarded(app, spool_bytes=spool_bytes)
        visitor = Visitor("POST", "/read", body=chunks)
        sent = list(visitor.incoming)
        async with anyio.create_task_group() as group:
            if wait:
                group.start_soon(Visitor(path="/occupy").call, pool)
                await settle()
            group.start_soon(visitor.call, pool)
            await settle()
            assert visitor.returned is not wait
            gate.open()
        assert reader.messages == sent
        assert visitor.status == 200
        assert visitor.most_readers == 1
        assert pool._desk.budget.used == 0

    trio.run(main)


async def test_a_client_that_leaves_gives_its_place_up_at_once() -> None:
    """The place is free before anything else happens, and its app is never called."""
    gate = Gate()
    pool = guarded(gate, max_queue_size=1)
    visitor = Visitor("POST", "/waits", body=[b"some", b"thing"])
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        group.start_soon(visitor.call, pool)
        await settle()
        assert pool.controller.queued == 1
        visitor.leave()
        await settle()
        assert pool.controller.queued == 0
        assert visitor.returned
        assert visitor.sent == []
        gate.open()
    assert gate.served == ["/occupy"]
    assert pool.controller.snapshot().of("normal").evicted == {"evicted-disconnect": 1}


async def test_a_client_that_leaves_with_the_grant_passes_its_slot_on() -> None:
    """Granted and gone in the same instant: the slot goes to whoever is next, and none is lost."""
    gate = Gate()
    pool = guarded(gate)
    leaver, stayer = Visitor(path="/leaves"), Visitor(path="/stays")
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        group.start_soon(leaver.call, pool)
        await settle()
        group.start_soon(stayer.call, pool)
        await settle()
        leaver.leave()
        gate.open()
    assert stayer.status == 200
    assert pool.controller.in_flight == 0
    assert gate.most_inside == 1


async def test_a_body_past_the_cap_is_not_watched_and_not_lost() -> None:
    """Beyond `spool_bytes` reading stops, so the client's leaving is not seen; what came is replayed."""
    gate = Gate()
    pool = guarded(gate, spool_bytes=100)
    visitor = Visitor("POST", "/big", body=[b"x" * 90, b"y" * 90, b"z" * 90])
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        group.start_soon(visitor.call, pool)
        await settle()
        assert len(visitor.taken) == 1
        visitor.leave()
        await settle()
        assert pool.controller.queued == 1
        gate.open()
    assert gate.served == ["/occupy", "/big"]


async def test_all_spools_together_stay_within_the_budget() -> None:
    """A hundred uploads cannot fill the memory: past the global budget nothing more is read."""
    gate = Gate()
    pool = guarded(gate, spool_bytes=10**6, spool_budget=20_000)
    visitors = [Visitor("POST", f"/{number}", body=[b"x" * 1000] * 50) for number in range(10)]
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        for visitor in visitors:
            group.start_soon(visitor.call, pool)
        await settle()
        assert sum(len(visitor.taken) for visitor in visitors) <= 14 + len(visitors)
        assert pool._desk.budget.used <= 20_000 + len(visitors) * 1512
        gate.open()
    assert pool._desk.budget.used == 0


async def test_expect_100_continue_reads_nothing_before_the_grant() -> None:
    """`receive` would make the server invite an upload that may be refused."""
    gate = Gate()
    pool = guarded(gate, max_queue_size=1)
    upload = {"method": "POST", "headers": {"expect": "100-continue"}, "body": [b"x"]}
    waiting, refused = Visitor(**upload), Visitor(**upload)  # type: ignore[arg-type]
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        group.start_soon(waiting.call, pool)
        await settle()
        await refused.call(pool)
        assert refused.status == 429
        assert refused.reads == waiting.reads == 0
        gate.open()
    assert waiting.status == 200


async def test_a_refused_upload_is_read_to_a_bound_before_its_answer_ends() -> None:
    """The answer begins at once, its end comes after what the client is still sending."""
    gate = Gate()
    pool = guarded(gate, max_queue_size=1, spool_bytes=0, refused_upload_bytes=2500)
    short = Visitor("POST", body=[b"x" * 1000] * 3)
    long = Visitor("POST", body=[b"x" * 1000] * 9)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        group.start_soon(Visitor(path="/waits").call, pool)
        await settle()
        await short.call(pool)
        await long.call(pool)
        gate.open()
    for visitor in (short, long):
        assert visitor.status == 429
        assert "connection" not in visitor.headers
        assert [message["type"] for message in visitor.sent] == ["http.response.start", *["http.response.body"] * 2]
        assert [message.get("more_body") for message in visitor.sent[1:]] == [True, False]
    assert len(short.taken) == 3
    assert len(long.taken) == 3


async def test_who_uploads_slowly_holds_no_slot_meanwhile() -> None:
    """The body is read before a slot is asked for."""
    gate = Gate()
    gate.open()
    pool = guarded(gate)
    dripping = Visitor("POST", "/drips", body=[b"a", b"b"])
    dripping.incoming.pop()
    async with anyio.create_task_group() as group:
        group.start_soon(dripping.call, pool)
        await settle()
        assert pool.controller.in_flight == 0
        other = Visitor(path="/other")
        await other.call(pool)
        assert other.status == 200
        dripping.leave()
    assert gate.served == ["/other"]


async def test_a_broken_receive_is_the_apps_to_hear_of() -> None:
    """An exception in the server's `receive` comes out of the app's, as it would without a spool."""

    async def broken() -> object:
        raise RuntimeError("the socket burst")

    spool = Spool(broken, budget=ByteBudget(100), max_bytes=100, on_gone=lambda: None)  # type: ignore[arg-type]
    await spool.watch()
    with pytest.raises(RuntimeError, match="burst"):
        await spool.receive()


async def test_an_app_that_reads_on_gets_the_disconnect_the_reader_was_waiting_for() -> None:
    """There is one reader: the app takes over the read that is under way instead of starting a second."""
    gate, seen = Gate(), []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        if scope["path"] == "/occupy":
            await gate(scope, receive, send)
            return
        seen.append(await receive())
        seen.append(await receive())

    pool = guarded(app)
    visitor = Visitor("POST", "/listens", body=[b"x"])
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/occupy").call, pool)
        await settle()
        group.start_soon(visitor.call, pool)
        await settle()
        gate.open()
        await settle()
        visitor.leave()
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]
    assert visitor.most_readers == 1
    assert visitor.reads == 2
