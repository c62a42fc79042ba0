"""The look inside: who may, and what is seen."""

from __future__ import annotations

import json

import anyio
import pytest
from scripted import Gate, Visitor, guarded, hello, settle
from trio.testing import MockClock

from admission.asgi import Tenant
from admission.controller import AdmissionController

pytestmark = pytest.mark.anyio

HERE = {"client": ("127.0.0.1", 5), "headers": {"host": "localhost:8000"}}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Event streams look at their ticket once a second: in virtual time."""
    return "trio", {"clock": MockClock(autojump_threshold=0)}


async def test_this_machine_sees_the_status() -> None:
    """The snapshot as JSON, and what was noticed about requests."""
    pool = guarded(hello)
    await Visitor().call(pool)
    visitor = Visitor(path="/-/admission/status", **HERE)
    await visitor.call(pool)
    assert visitor.status == 200
    seen = json.loads(visitor.answer)
    assert seen["pool"]["limit"] == 1
    assert seen["pool"]["classes"][2]["name"] == "normal"
    assert seen["pool"]["classes"][2]["granted"] == 1
    assert seen["requests"]["unknown_class"] == 0
    assert seen["mode"] == "reject"


@pytest.mark.parametrize(
    "request_",
    [
        {"headers": {"host": "localhost"}},
        {"client": ("127.0.0.1", 5), "headers": {"host": "localhost", "x-forwarded-for": "127.0.0.1"}},
        {"client": ("127.0.0.1", 5), "headers": {"host": "localhost", "forwarded": "for=192.0.2.1"}},
        {"client": ("127.0.0.1", 5), "headers": {"host": "evil.example"}},
        {"client": ("127.0.0.1", 5), "headers": {}},
        {"client": None, "headers": {"host": "localhost"}},
    ],
    ids=["outside", "behind a proxy", "behind another proxy", "a rebound name", "no host", "no peer"],
)
async def test_the_outside_sees_nothing(request_: dict[str, object]) -> None:
    """Without a token, anyone but a local user gets 404, and the app is not asked."""
    visitor = Visitor(path="/-/admission/status", **request_)  # type: ignore[arg-type]
    await visitor.call(guarded(hello))
    assert visitor.status == 404
    assert b"hello" not in visitor.answer


async def test_a_token_opens_it_from_anywhere() -> None:
    """And then nothing else does: not even this machine."""
    pool = guarded(hello, status_token="s3cret")
    for headers, status in (
        ({"authorization": "Bearer s3cret"}, 200),
        ({"authorization": "bearer s3cret"}, 200),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "s3cret"}, 401),
        ([("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")], 401),
        ({}, 401),
    ):
        visitor = Visitor(path="/-/admission/status", headers=headers)
        await visitor.call(pool)
        assert visitor.status == status
    local = Visitor(path="/-/admission/status", **HERE)
    await local.call(pool)
    assert local.status == 401
    assert local.headers["www-authenticate"] == "Bearer"


async def test_loopback_can_be_switched_off() -> None:
    """For machines whose proxy leaves no mark."""
    visitor = Visitor(path="/-/admission/status", **HERE)
    await visitor.call(guarded(hello, status_loopback=False))
    assert visitor.status == 404


async def test_the_pages_can_be_moved_or_left_out() -> None:
    """Then the path is the app's."""
    moved = Visitor(path="/ops/status", **HERE)
    await moved.call(guarded(hello, status_path="/ops"))
    assert moved.headers["content-type"] == "application/json"
    for options in ({"status_path": None}, {"status_path": "/ops"}):
        visitor = Visitor(path="/-/admission/status", **HERE)
        await visitor.call(guarded(hello, **options))
        assert visitor.answer == b"hello"


async def test_a_ticket_says_where_it_stands_and_what_holds_it_back() -> None:
    """Position, eta, and the binding limit by name; and its tenant only to who has the token."""
    gate = Gate()
    controller = AdmissionController(max_concurrency=1)
    from admission.asgi import QoSAdmission

    pool = QoSAdmission(gate, controller=controller, trust_headers=True)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, pool)
        await settle()
        group.start_soon(Visitor(headers={"x-tenant-id": "acme"}).call, pool)
        await settle()
        ticket = controller.tickets()[-1]
        visitor = Visitor(path=f"/-/admission/tickets/{ticket.id}", **HERE)
        await visitor.call(pool)
        seen = json.loads(visitor.answer)
        assert (seen["state"], seen["position"]) == ("queued", 1)
        assert seen["held_back_by"]
        assert seen["tenant"].startswith("tenant-")
        assert "acme" not in seen["tenant"]
        dump = Visitor(path="/-/admission/dump", **HERE)
        await dump.call(pool)
        assert ticket.id in [shown["id"] for shown in json.loads(dump.answer)["tickets"]]
        assert b"acme" not in dump.answer
        gate.open()
    missing = Visitor(path=f"/-/admission/tickets/{ticket.id}", **HERE)
    await missing.call(pool)
    assert missing.status == 404


async def test_a_tickets_events_follow_it_to_the_end() -> None:
    """Server-sent events while it waits, one when it is over."""
    gate = Gate()
    pool = guarded(gate)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, pool)
        await settle()
        group.start_soon(Visitor().call, pool)
        await settle()
        ticket = pool.controller.tickets()[-1].id
        watcher = Visitor(path=f"/-/admission/tickets/{ticket}/events", **HERE)
        group.start_soon(watcher.call, pool)
        await anyio.sleep(2.5)
        gate.open()
    lines = watcher.answer.decode().splitlines()
    assert watcher.headers["content-type"].startswith("text/event-stream")
    assert [line for line in lines if line.startswith("event:")] == ["event: queued"] * 3 + ["event: gone"]
    assert watcher.returned


async def test_a_watcher_that_leaves_is_let_go() -> None:
    """Its stream would otherwise last as long as the ticket waits."""
    gate = Gate()
    pool = guarded(gate)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, pool)
        await settle()
        group.start_soon(Visitor().call, pool)
        await settle()
        ticket = pool.controller.tickets()[-1].id
        watcher = Visitor(path=f"/-/admission/tickets/{ticket}/events", **HERE)
        watcher.incoming.clear()
        group.start_soon(watcher.call, pool)
        await settle()
        watcher.leave()
        await settle()
        assert watcher.returned
        gate.open()


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "status", 405), ("GET", "nothing", 404), ("GET", "", 404)]
)
async def test_other_questions_get_no_answer(method: str, path: str, status: int) -> None:
    """Only GET and HEAD, only the pages there are."""
    visitor = Visitor(method, f"/-/admission/{path}", **HERE)
    await visitor.call(guarded(hello))
    assert visitor.status == status


async def test_keys_and_tokens_are_nowhere_to_be_seen() -> None:
    """Neither the pages nor a `repr` shows a secret."""
    key = "ab" * 32
    pool = guarded(hello, status_token="s3cret", tenants=[Tenant(name="acme", keys=[key])])
    visitor = Visitor(path="/-/admission/dump", headers={"authorization": "Bearer s3cret"})
    await visitor.call(pool)
    assert b"s3cret" not in visitor.answer
    assert key.encode() not in visitor.answer
    assert "s3cret" not in repr(pool)
