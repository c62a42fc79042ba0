"""A shared pool whose server freezes, dies, forgets or comes back empty. Each test has a server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import anyio
import pytest

from admission import AdmissionController, Rejected, WaitTimeout
from admission.types import Reason
from tests.controller.test_contract import Crowd, is_empty, until
from tests.redis.servers import STARTERS, Server
from tests.redis.test_backend_faults import Reach, is_connected, is_cut_off, reach

__all__ = ["reach"]

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[("valkey", False)], ids=["valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One of the test's own, to do with what it likes: its kind, and whether it keeps what it was told."""
    kind, aof = request.param
    with STARTERS[kind](aof=aof) as server:
        yield server


@pytest.fixture
def any_redis_url(server: Server) -> str:
    """Where it is reached; so its keys are looked at before it ends."""
    return server.url


async def seen(controller: AdmissionController, **wanted: int) -> None:
    """Return once the pool is seen like this."""
    with anyio.fail_after(30):
        while True:
            await controller.refresh()
            snapshot = controller.snapshot()
            if all(getattr(snapshot, name) == value for name, value in wanted.items()):
                return
            await anyio.sleep(0.02)


# ---------------------------------------------------------------------- frozen


@pytest.mark.parametrize("on_outage", ["degrade", "open", "closed"])
@pytest.mark.parametrize("max_wait", [0.0, 0.3])
async def test_nobody_waits_past_its_deadline(server: Server, reach: Reach, on_outage: str, max_wait: float) -> None:
    """The server is frozen: every caller hears something, whatever it asked and whenever."""
    controller = reach(server.url, 1, 3, on_outage=on_outage)
    held = await controller.acquire()
    server.freeze()
    answered = 0

    async def ask() -> None:
        nonlocal answered
        with suppress(Rejected, WaitTimeout):
            (await controller.acquire(max_wait=max_wait)).release()
        answered += 1

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(ask)
        await is_cut_off(controller)
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(ask)
    assert answered == 12
    server.thaw()
    await is_connected(controller)
    held.release()
    await is_empty(controller)


async def test_waiters_move_to_the_pool_of_the_outage_and_back(server: Server, reach: Reach) -> None:
    """In their order, with their deadlines; and one that left meanwhile is not served afterwards."""
    controller = reach(server.url, 1)
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("first")
        await crowd.comes("leaves")
        await crowd.comes("gives up", max_wait=2.0)
        await crowd.comes("last", priority="low")
        server.freeze()
        tasks.start_soon(controller.refresh)
        await is_cut_off(controller)
        crowd.scopes["leaves"].cancel()
        await crowd.ended("gives up")
        assert isinstance(crowd.errors["gives up"], WaitTimeout)
        assert [ticket.priority for ticket in controller.tickets()] == ["normal", "low"]
        held.release()
        await until(lambda: "first" in crowd.permits)
        server.thaw()
        await is_connected(controller)
        await until(lambda: controller.in_flight == 1 and controller.queued == 1)
        crowd.release("first")
        await crowd.ended("last")
        crowd.release("last")
    await is_empty(controller)


@pytest.mark.parametrize("on_outage", ["degrade", "open", "closed"])
async def test_a_server_that_comes_later_is_joined(server: Server, reach: Reach, on_outage: str) -> None:
    """It was not there when the process started: the outage's rules hold from the first request on."""
    server.kill()
    controller = reach(server.url, 1, on_outage=on_outage)
    if on_outage == "closed":
        with pytest.raises(Rejected) as away:
            await controller.acquire()
        assert away.value.reason is Reason.UNAVAILABLE
    permits = [] if on_outage == "closed" else [await controller.acquire()]
    server.start()
    await is_connected(controller)
    await seen(controller, in_flight=len(permits))
    for permit in permits:
        permit.release()
    (await controller.acquire()).release()
    await is_empty(controller)


async def test_who_leaves_during_an_outage_leaves_nobody_waiting(server: Server, reach: Reach) -> None:
    """Its waiters are refused at once, and closing takes no longer than it must."""
    controller = reach(server.url, 1)
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("waits")
        server.freeze()
        tasks.start_soon(controller.refresh)
        await is_cut_off(controller)
        await controller.aclose()
        await crowd.ended("waits")
        assert crowd.errors["waits"].reason is Reason.EVICTED_DRAINING  # type: ignore[attr-defined]
    held.release()
    server.thaw()
    await seen(controller, in_flight=0)  # When the lease of the name it had has run out.


# ---------------------------------------------------------------------- the server comes back without its data


@pytest.mark.parametrize(
    "server",
    [("valkey", True), ("valkey", False), ("redis", True), ("redis", False)],
    ids=["valkey-aof", "valkey-empty", "redis-aof", "redis-empty"],
    indirect=True,
)
async def test_a_restarted_server_is_told_what_runs(server: Server, reach: Reach) -> None:
    """Whether or not it kept its data: what runs counts, who waits is served in the end, nothing is lost or doubled."""
    here, there = reach(server.url, 2), reach(server.url, 2)
    ours, theirs = await here.acquire(), await there.acquire()
    async with anyio.create_task_group() as tasks:
        crowd, others = Crowd(here, tasks), Crowd(there, tasks)
        await crowd.comes("ours")
        await others.comes("theirs")
        server.restart(politely=False)
        for controller in (here, there):
            await controller.refresh()
            await is_connected(controller)
        # In the instant it was back an offer may have come before a hold: then one more runs.
        await seen_in_all(here, 4)
        ours.release()
        theirs.release()
        await crowd.ended("ours")
        await others.ended("theirs")
        crowd.release("ours")
        others.release("theirs")
    await is_empty(here)
    await is_empty(there)


async def seen_in_all(controller: AdmissionController, tickets: int) -> None:
    """Return once the pool knows of so many."""
    with anyio.fail_after(30):
        while True:
            await controller.refresh()
            if controller.in_flight + controller.queued == tickets:
                return
            await anyio.sleep(0.02)


async def test_flushed_data_is_told_anew(server: Server, reach: Reach) -> None:
    """Someone emptied the server: what runs counts again with the next call."""
    here, there = reach(server.url, 2), reach(server.url, 2)
    ours, theirs = await here.acquire(), await there.acquire()
    server.ask("FLUSHALL")
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(here, tasks)
        tasks.start_soon(crowd._acquire, "first", {})
        tasks.start_soon(crowd._acquire, "second", {})
        # It may be let in before the others have told what they hold; then nothing more is until that has drained.
        await until(lambda: here.snapshot().link.resyncs > 1)  # type: ignore[union-attr]
        await seen_in_all(here, 4)
        ours.release()
        theirs.release()
        await crowd.ended("first", "second")
        crowd.release("first", "second")
    await is_empty(here)
    await is_empty(there)


async def test_forgotten_scripts_are_sent_again(server: Server, reach: Reach) -> None:
    """SCRIPT FLUSH, between one call and the next."""
    controller = reach(server.url, 1)
    for _ in range(3):
        (await controller.acquire()).release()
        server.ask("SCRIPT", "FLUSH")
    await is_empty(controller)
