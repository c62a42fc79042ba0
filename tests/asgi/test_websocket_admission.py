"""One permit for each WebSocket, and denials that can be read."""

from __future__ import annotations

import anyio
import pytest
from scripted import Visitor, guarded, settle

pytestmark = pytest.mark.anyio


class Socket(Visitor):
    """A WebSocket handshake."""

    def __init__(self, *, can_deny: bool = True, path: str = "/") -> None:
        extensions = {"websocket.http.response": {}} if can_deny else None
        super().__init__(path=path, type="websocket", extensions=extensions)
        self.incoming.clear()
        self.incoming.append({"type": "websocket.connect"})


async def talks(scope, receive, send):  # type: ignore[no-untyped-def]
    """Accepts, and stays until the client leaves."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "headers": [(b"x-app", b"yes")]})
    assert (await receive())["type"] == "websocket.disconnect"


async def test_a_connection_holds_its_permit_to_its_end() -> None:
    """From the handshake until the client leaves."""
    pool = guarded(talks)
    socket = Socket()
    async with anyio.create_task_group() as group:
        group.start_soon(socket.call, pool)
        await settle()
        assert pool.controller.in_flight == 1
        assert socket.sent == [{"type": "websocket.accept", "headers": [(b"x-app", b"yes")]}]
        socket.leave()
    assert pool.controller.in_flight == 0


async def test_a_connection_waits_its_turn() -> None:
    """The handshake is answered when there is room."""
    pool = guarded(talks)
    first, second = Socket(), Socket()
    async with anyio.create_task_group() as group:
        group.start_soon(first.call, pool)
        await settle()
        group.start_soon(second.call, pool)
        await settle()
        assert second.sent == []
        first.leave()
        await settle()
        assert [message["type"] for message in second.sent] == ["websocket.accept"]
        second.leave()
    assert second.most_readers == 1


async def test_a_client_that_leaves_before_its_turn_is_forgotten() -> None:
    """Its app is never called."""
    pool = guarded(talks)
    first, second = Socket(), Socket()
    async with anyio.create_task_group() as group:
        group.start_soon(first.call, pool)
        await settle()
        group.start_soon(second.call, pool)
        await settle()
        second.leave()
        await settle()
        assert second.returned
        assert pool.controller.queued == 0
        first.leave()
    assert second.sent == []


@pytest.mark.parametrize("can_deny", [True, False])
async def test_a_denial_can_be_read(can_deny: bool) -> None:
    """429 with Retry-After where the server can send it, else accept and close with 1013."""
    pool = guarded(talks, max_queue_size=1)
    first, second, third = Socket(), Socket(), Socket(can_deny=can_deny)
    async with anyio.create_task_group() as group:
        group.start_soon(first.call, pool)
        await settle()
        group.start_soon(second.call, pool)
        await settle()
        await third.call(pool)
        first.leave()
        second.leave()
    if can_deny:
        assert [message["type"] for message in third.sent] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert third.status == 429
        assert "retry-after" in third.headers
    else:
        assert [message["type"] for message in third.sent] == ["websocket.accept", "websocket.close"]
        assert third.sent[1]["code"] == 1013
        assert third.sent[1]["reason"] == "rejected-queue-full"


async def test_websockets_can_be_let_through() -> None:
    """For apps whose sockets only carry notifications; exempt paths go through in any case."""
    for pool, socket in ((guarded(talks, websockets=False), Socket()), (guarded(talks), Socket(path="/health"))):
        async with anyio.create_task_group() as group:
            group.start_soon(socket.call, pool)
            await settle()
            assert pool.controller.in_flight == 0
            socket.leave()


async def test_shadow_mode_lets_sockets_in() -> None:
    """And counts what it would have done."""
    pool = guarded(talks, mode="shadow", max_queue_size=1)
    sockets = [Socket() for _ in range(3)]
    async with anyio.create_task_group() as group:
        for socket in sockets:
            group.start_soon(socket.call, pool)
            await settle()
        assert [message["type"] for socket in sockets for message in socket.sent] == ["websocket.accept"] * 3
        assert pool.controller.snapshot().of("normal").rejected == {"rejected-queue-full": 1}
        for socket in sockets:
            socket.leave()
    assert (pool.controller.in_flight, pool.controller.queued) == (0, 0)
