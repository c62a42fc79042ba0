"""A request leaves nothing behind that only the garbage collector could find."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from scripted import Gate, Visitor, guarded, settle

from admission.asgi import QoSAdmission
from admission.controller import AdmissionController
from admission.errors import Refusal
from admission.types import Reason
from tests.collector import Scene, found_by_the_collector

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def one_in_line(kept: list[object], visitor: Visitor, **options: Any) -> AsyncIterator[tuple[QoSAdmission, Gate]]:
    """A pool whose slot is taken, and *visitor* behind it; both go on at the end."""
    gate = Gate()
    pool = guarded(gate, **options)
    kept.append(pool)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor(path="/first").call, pool)
        await settle()
        group.start_soon(visitor.call, pool)
        await settle()
        yield pool, gate
        gate.open()


async def waits_and_is_served(kept: list[object]) -> None:
    """A GET."""
    visitor = Visitor()
    async with one_in_line(kept, visitor):
        assert visitor.status is None
    assert visitor.status == 200


async def uploads_waits_and_is_served(kept: list[object]) -> None:
    """A POST in several pieces."""
    visitor = Visitor("POST", body=[b"a", b"b", b""])
    async with one_in_line(kept, visitor):
        assert visitor.status is None
    assert visitor.status == 200


async def is_watched_while_it_runs(kept: list[object]) -> None:
    """The client may leave at any time."""
    visitor = Visitor("POST", body=[b"a"])
    async with one_in_line(kept, visitor, cancel_on_disconnect=True):
        assert visitor.status is None
    assert visitor.status == 200


async def leaves_the_line(kept: list[object]) -> None:
    """Nobody is answered."""
    visitor = Visitor()
    async with one_in_line(kept, visitor) as (pool, _):
        visitor.leave()
        await settle()
        assert visitor.returned
        assert pool.controller.queued == 0


async def is_refused(kept: list[object]) -> None:
    """On arrival."""
    visitor = Visitor()
    async with one_in_line(kept, Visitor(), max_queue_size=1) as (pool, _):
        await visitor.call(pool)
    assert visitor.status == 429


async def is_evicted(kept: list[object]) -> None:
    """The server is going away."""
    visitor = Visitor()
    async with one_in_line(kept, visitor) as (pool, _):
        pool.controller.start_draining()
        await settle()
        assert visitor.status == 503


async def runs_into_an_error_of_the_app(kept: list[object]) -> None:
    """Which is raised on."""

    async def fails(scope: object, receive: object, send: object) -> None:
        raise LookupError("the app's own")

    pool = guarded(fails)
    kept.append(pool)
    with pytest.raises(LookupError):
        await Visitor().call(pool)


async def is_asked_for_by_hand(kept: list[object]) -> None:
    """Permits, one after the other, and a refusal."""
    controller = AdmissionController(max_concurrency=1, max_queue_size=1)
    kept.append(controller)
    refused = []

    async def asks() -> None:
        try:
            async with controller.admit():
                pass
        except Refusal as refusal:
            refused.append(refusal.reason)

    first = await controller.acquire()
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(asks)
        await settle()
        first.release()
    assert refused == [Reason.QUEUE_FULL]


SCENES = [
    waits_and_is_served,
    uploads_waits_and_is_served,
    is_watched_while_it_runs,
    leaves_the_line,
    is_refused,
    is_evicted,
    runs_into_an_error_of_the_app,
    is_asked_for_by_hand,
]


@pytest.mark.parametrize("scene", SCENES)
async def test_nothing_is_left_for_the_collector_of_what(scene: Scene) -> None:
    """Whatever became of it."""
    assert await found_by_the_collector(scene) == []
