"""A request leaves nothing behind that only the garbage collector could find.

What refers to itself in a circle is kept until a collection, which stops the server the longer the more it has to look
through: under load that is a pause in everybody's stream.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from scripted import Gate, Visitor, guarded, settle

from admission.asgi import QoSAdmission
from admission.controller import AdmissionController
from admission.errors import Refusal
from admission.types import Reason

pytestmark = pytest.mark.anyio

kept: list[object] = []
"""Pools: they refer to themselves, and live as long as the server."""

Scene = Callable[[], Awaitable[None]]


async def found_by_the_collector(scene: Scene) -> list[str]:
    """Objects of ours that *scene* left for it, by type."""
    await scene()  # What is made once stays.
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await scene()
        await settle()
        gc.collect()
        kinds = [type(thing) for thing in gc.garbage]
        return sorted(kind.__qualname__ for kind in kinds if kind.__module__.startswith("admission"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        kept.clear()


@asynccontextmanager
async def one_in_line(visitor: Visitor, **options: Any) -> AsyncIterator[tuple[QoSAdmission, Gate]]:
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


async def waits_and_is_served() -> None:
    """A GET."""
    visitor = Visitor()
    async with one_in_line(visitor):
        assert visitor.status is None
    assert visitor.status == 200


async def uploads_waits_and_is_served() -> None:
    """A POST in several pieces."""
    visitor = Visitor("POST", body=[b"a", b"b", b""])
    async with one_in_line(visitor):
        assert visitor.status is None
    assert visitor.status == 200


async def is_watched_while_it_runs() -> None:
    """The client may leave at any time."""
    visitor = Visitor("POST", body=[b"a"])
    async with one_in_line(visitor, cancel_on_disconnect=True):
        assert visitor.status is None
    assert visitor.status == 200


async def leaves_the_line() -> None:
    """Nobody is answered."""
    visitor = Visitor()
    async with one_in_line(visitor) as (pool, _):
        visitor.leave()
        await settle()
        assert visitor.returned
        assert pool.controller.queued == 0


async def is_refused() -> None:
    """On arrival."""
    visitor = Visitor()
    async with one_in_line(Visitor(), max_queue_size=1) as (pool, _):
        await visitor.call(pool)
    assert visitor.status == 429


async def is_evicted() -> None:
    """The server is going away."""
    visitor = Visitor()
    async with one_in_line(visitor) as (pool, _):
        pool.controller.start_draining()
        await settle()
        assert visitor.status == 503


async def runs_into_an_error_of_the_app() -> None:
    """Which is raised on."""

    async def fails(scope: object, receive: object, send: object) -> None:
        raise LookupError("the app's own")

    pool = guarded(fails)
    kept.append(pool)
    with pytest.raises(LookupError):
        await Visitor().call(pool)


async def is_asked_for_by_hand() -> None:
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
