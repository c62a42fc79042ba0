"""The lease: renewed from a thread while the event loop turns, and left to run out when it does not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from admission.backends.redis.lease import Lease
from admission.backends.redis.link import Call, Wire
from admission.errors import NotRunning
from tests.redis.scripts import COUNT, Lua, until
from tests.redis.servers import Server, debian_redis, wait_until

pytestmark = pytest.mark.anyio

BEAT = Call(COUNT, ["beats"], [])
TTL = 0.3


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server this module may hold up and empty."""
    with debian_redis() as server:
        yield server


@pytest.fixture
def server(own_server: Server) -> Iterator[Server]:
    """The same, running and empty."""
    yield own_server
    own_server.ask("CLIENT", "UNPAUSE")
    own_server.ask("FLUSHALL")


@asynccontextmanager
async def kept(
    server: Server,
    *,
    heard: Callable[[Wire], None] = lambda answer: None,
    beat: Callable[[], Call] = lambda: BEAT,
    ttl: float = TTL,
    stall: float = 60.0,
    deadline: float = 20.0,
) -> AsyncIterator[Lease]:
    """A lease that is renewed inside the block."""
    lease = Lease(server.url, beat=beat, heard=heard, ttl=ttl, stall=stall, deadline=deadline)
    lease.start()
    try:
        yield lease
    finally:
        await lease.close()


async def test_lease_is_renewed_and_the_answers_are_told(server: Server) -> None:
    """On the event loop, one after the other."""
    loop = asyncio.get_running_loop()
    answers: asyncio.Queue[Wire] = asyncio.Queue()

    def tell(answer: Wire) -> None:
        assert asyncio.get_running_loop() is loop
        answers.put_nowait(answer)

    async with kept(server, heard=tell) as lease, asyncio.timeout(60):
        assert [await answers.get() for _ in range(4)] == [1, 2, 3, 4]
        statistics = lease.statistics
        assert statistics.renewals >= 4
        assert statistics.failures == statistics.stalls == 0
        assert statistics.running
    assert not lease.statistics.running


async def test_lease_is_kept_while_the_loop_is_busy(server: Server) -> None:
    """For less than `stall`: a long computation loses nothing."""
    async with kept(server) as lease:
        wait_until(lambda: lease.statistics.renewals >= 5, "renewals while the loop is blocked")
        assert lease.statistics.stalls == 0


async def test_lease_of_a_loop_that_hangs_runs_out(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """No renewal from then on, until the loop turns again; the log says each once."""
    async with kept(server, stall=TTL) as lease:
        await until(lambda: lease.statistics.renewals)
        wait_until(lambda: lease.statistics.stalls, "the hanging loop to be noticed")
        renewals = lease.statistics.renewals
        wait_until(lambda: not lease.statistics.held, "the lease to run out")
        assert lease.statistics.renewals == renewals
        await until(lambda: lease.statistics.renewals > renewals)
        assert lease.statistics.held
        assert lease.statistics.stalls == 1
    assert caplog.text.count("the event loop has had no turn") == 1
    assert caplog.text.count("the event loop turns again") == 1


async def test_renewals_that_fail_are_tried_again_soon(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """More often than those that succeed; the log says when they begin and end to fail."""
    async with kept(server, deadline=0.05) as lease:
        await until(lambda: lease.statistics.renewals)
        server.ask("CLIENT", "PAUSE", 60_000, "WRITE")
        await until(lambda: lease.statistics.failures >= 3)
        await until(lambda: not lease.statistics.held)
        server.ask("CLIENT", "UNPAUSE")
        await until(lambda: lease.statistics.held)
    assert caplog.text.count("the lease cannot be renewed") == 1
    assert caplog.text.count("is renewed again") == 1
    assert "after it had run out" in caplog.text


async def test_every_fourth_step_renews_but_after_failures_every_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What succeeded need not be hurried."""
    steps = 0

    def step(low: float, high: float) -> float:
        nonlocal steps
        steps += 1
        return 0.1

    monkeypatch.setattr("admission.backends.redis.lease.random.uniform", step)
    async with kept(server, ttl=12.0) as lease:
        await until(lambda: lease.statistics.renewals)
        await until(lambda: steps >= 12)
        assert lease.statistics.renewals <= steps // 4 + 1
    refuse = Call(Lua("return redis.error_reply('OOM no')"), [], [])
    steps = 0
    async with kept(server, ttl=12.0, beat=lambda: refuse) as lease:
        await until(lambda: steps >= 8)
        assert lease.statistics.failures >= steps - 1


async def test_server_that_comes_later_is_found(server: Server) -> None:
    """The thread does not end because nobody is there."""
    server.stop()
    async with kept(server) as lease:
        await until(lambda: lease.statistics.failures)
        assert not lease.statistics.held
        server.start()
        await until(lambda: lease.statistics.held)


async def test_beat_that_raises_is_a_failure(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and tried again."""
    beats = iter([KeyError("broken"), *[BEAT] * 1000])

    def beat() -> Call:
        made = next(beats)
        if isinstance(made, KeyError):
            raise made
        return made

    async with kept(server, beat=beat) as lease:
        await until(lambda: lease.statistics.renewals)
        assert lease.statistics.failures == 1
    assert "KeyError" in caplog.text


async def test_listener_that_raises_does_not_stop_renewals(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged."""

    def complain(answer: Wire) -> None:
        raise ValueError(answer)

    async with kept(server, heard=complain) as lease:
        await until(lambda: lease.statistics.renewals >= 3)
    assert "failed on the answer to a renewal" in caplog.text


async def test_closing_does_not_wait_for_a_frozen_server(server: Server) -> None:
    """The renewal under way is cut short; nothing is renewed or told afterwards."""
    told: list[Wire] = []
    async with kept(server, heard=told.append, deadline=30.0) as lease:
        await until(lambda: told)
        server.ask("CLIENT", "PAUSE", 60_000, "WRITE")
        await until(lambda: server.info("clients")["blocked_clients"])
        seen = len(told)
    assert not lease.statistics.running
    await lease.close()
    assert len(told) == seen


async def test_lease_is_started_once(server: Server) -> None:
    """And closing one that was never started does nothing."""
    await Lease(server.url, beat=lambda: BEAT, heard=print, ttl=TTL).close()
    async with kept(server) as lease:
        with pytest.raises(NotRunning, match="started before"):
            lease.start()


async def test_forked_child_leaves_the_lease_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no such thread, and the connection is its parent's."""
    async with kept(server) as lease:
        await until(lambda: lease.statistics.renewals)
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            await lease.close()
            with pytest.raises(NotRunning):
                lease.start()
        renewals = lease.statistics.renewals
        await until(lambda: lease.statistics.renewals > renewals)


async def test_options_out_of_range_are_named() -> None:
    """With the value and the range."""
    for option, value in {"ttl": 0.0, "stall": 0.5, "deadline": 0.0}.items():
        options = {"ttl": 12.0, option: value}
        with pytest.raises(ValueError, match=f"{option} is {value}: it must be"):
            Lease("redis://cache", beat=lambda: BEAT, heard=print, **options)
