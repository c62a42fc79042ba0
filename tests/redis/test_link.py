"""The link to one server: calls that end in time, whatever the server does, and messages that arrive."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from admission.backends.redis import exchange
from admission.backends.redis.link import BreakerState, Call, Link, ServerError, TimedOut, Unreachable
from admission.errors import NotRunning
from tests.redis.scripts import COUNT, ECHO, NOTE, Lua, until
from tests.redis.servers import Server, debian_redis

pytestmark = pytest.mark.anyio

SOON = 0.15
"""Seconds a link of these tests gives a call that is not to be answered."""


def pause(server: Server) -> None:
    """Have it take scripts, and not answer them."""
    server.ask("CLIENT", "PAUSE", 60_000, "WRITE")


async def turns() -> None:
    """Let the event loop see what has come in, and others send what they have to."""
    for _ in range(5):
        await asyncio.sleep(0)


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


@pytest.fixture
async def link(server: Server) -> AsyncIterator[Link]:
    """A patient link to it."""
    async with Link(server.url, deadline=20.0) as link:
        yield link


async def test_script_answers_over_every_kind_of_server(any_redis_url: str) -> None:
    """Keys and arguments arrive, bytes come back."""
    async with Link(any_redis_url) as link:
        both = Lua("return {KEYS[1], ARGV[1], ARGV[2], 7, false}")
        assert await link.run(both, ["{pool}:key"], ["text", b"\x00\xff"]) == [
            b"{pool}:key",
            b"text",
            b"\x00\xff",
            7,
            None,
        ]


async def test_forgotten_script_is_sent_with_its_text(server: Server, link: Link) -> None:
    """A server that was restarted, or was told to forget, knows none."""
    server.ask("SCRIPT", "FLUSH")
    server.ask("CONFIG", "RESETSTAT")
    assert await link.run(ECHO, [], [1]) == b"1"
    server.ask("SCRIPT", "FLUSH")
    assert await link.run(ECHO, [], [2]) == b"2"
    assert await link.run(ECHO, [], [3]) == b"3"
    assert server.info("commandstats")["cmdstat_eval"]["calls"] == 2
    assert link.statistics.failures == 0


async def test_answers_find_those_who_asked(link: Link) -> None:
    """However many calls are under way."""
    answers = await asyncio.gather(*(link.run(ECHO, [], [number]) for number in range(50)))
    assert answers == [b"%d" % number for number in range(50)]
    assert link.statistics.round_trips == 50
    assert link.statistics.seconds.count == 50


async def test_calls_in_order_are_done_in_order(server: Server, link: Link) -> None:
    """A short one stays behind a long one, of which the server has read a part when the short one is all there."""
    way = link.in_order()
    lengths = [20_000, 1, 5_000, 1, 1]
    calls = (link.run(NOTE, ["seen"], [length, *range(length)], way) for length in lengths)
    assert await asyncio.gather(*calls) == [1, 2, 3, 4, 5]
    assert server.ask("LRANGE", "seen", 0, -1) == [str(length) for length in lengths]
    await way.close()


async def test_calls_in_order_go_on_after_one_was_given_up(server: Server, link: Link) -> None:
    """Those behind it fail, as nobody reads its late answer; the next one has a connection of its own."""
    way = link.in_order()
    await link.run(ECHO, [], ["warm"], way)
    pause(server)
    given_up, behind = (asyncio.create_task(link.run(ECHO, [], [name], way)) for name in ("given up", "behind"))
    await until(lambda: server.info("clients")["blocked_clients"] == 1)
    given_up.cancel()
    with pytest.raises(Unreachable):
        await behind
    server.ask("CLIENT", "UNPAUSE")
    assert given_up.cancelled()
    assert await link.run(ECHO, [], ["next"], way) == b"next"
    await way.close()


async def test_calls_in_order_survive_errors_and_a_forgotten_script(server: Server, link: Link) -> None:
    """Both are answers: the connection is kept, and given back at the end."""
    way = link.in_order()
    assert await link.run(ECHO, [], ["warm"], way) == b"warm"
    connections = server.info("stats")["total_connections_received"]
    with pytest.raises(ServerError):
        await link.run(Lua("return redis.error_reply('WRONG it is')"), [], [], way)
    server.ask("SCRIPT", "FLUSH")
    assert await asyncio.gather(*(link.run(ECHO, [], [n], way) for n in range(3))) == [b"0", b"1", b"2"]
    await way.close()
    assert await link.run(ECHO, [], ["after"]) == b"after"
    # The two are this test's own: for the flush, and for the look.
    assert server.info("stats")["total_connections_received"] == connections + 2


async def test_frozen_server_does_not_hold_a_call_past_its_deadline(server: Server) -> None:
    """It took the call, and says nothing."""
    async with Link(server.url, deadline=SOON) as link:
        await link.run(ECHO, [], ["warm"])
        pause(server)
        with pytest.raises(TimedOut, match=r"did not answer within 0.15 s"):
            await link.run(ECHO, [], ["first"])
        assert link.statistics.timeouts == link.statistics.failures == 1


async def test_server_that_does_not_even_greet_is_given_up_in_time(server: Server) -> None:
    """Connecting, too, is part of the deadline."""
    server.freeze()
    try:
        async with Link(f"{server.url}/3", deadline=SOON) as link:
            with pytest.raises(TimedOut):
                await link.run(ECHO, [], ["first"])
    finally:
        server.thaw()


async def test_late_answer_is_not_taken_for_the_next_one(server: Server) -> None:
    """The connection of a call that ran out of time is closed."""
    async with Link(server.url, deadline=SOON, failures=100) as link:
        await link.run(ECHO, [], ["warm"])
        for number in range(5):
            pause(server)
            with pytest.raises(TimedOut):
                await link.run(ECHO, [], [f"late {number}"])
            server.ask("CLIENT", "UNPAUSE")
            assert await link.run(ECHO, [], [f"next {number}"]) == b"next %d" % number
        assert link.statistics.reconnects == 5


async def test_answer_of_a_cancelled_call_is_not_taken_for_the_next_one(server: Server, link: Link) -> None:
    """Nor does a cancelled call count as a failure."""
    await link.run(ECHO, [], ["warm"])
    pause(server)
    cancelled = asyncio.create_task(link.run(ECHO, [], ["cancelled"]))
    await until(lambda: server.info("clients")["blocked_clients"] == 1)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    server.ask("CLIENT", "UNPAUSE")
    assert cancelled.cancelled()
    assert await link.run(ECHO, [], ["next"]) == b"next"
    assert link.statistics.failures == 0


async def test_call_that_failed_is_not_sent_again() -> None:
    """Whether it was done is unknown, so trying again is not the link's to decide."""
    received = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(4096))
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with Link(f"redis://127.0.0.1:{port}", deadline=20.0) as link:
        with pytest.raises(Unreachable, match="cannot be reached"):
            await link.run(COUNT, ["key"], [])
    listener.close()
    assert len(received) == 1
    assert b"EVALSHA" in received[0]


@pytest.mark.parametrize("connected", [True, False])
async def test_blocked_loop_is_not_blamed_on_the_server(
    server: Server, connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it could not do for want of a turn it may still do, be it only to read an answer that is there."""
    monkeypatch.setattr(exchange, "MERCY", 20.0)
    async with Link(f"{server.url}/3", deadline=SOON) as link:
        if connected:
            await link.run(ECHO, [], ["warm"])
        call = asyncio.create_task(link.run(ECHO, [], ["in time"]))
        await turns()
        threading.Event().wait(2 * SOON)
        assert await call == b"in time"
        assert link.statistics.failures == 0


async def test_blocked_loop_is_no_excuse_for_ever(server: Server) -> None:
    """A server that is frozen, too, is given up all the same."""
    async with Link(server.url, deadline=SOON) as link:
        await link.run(ECHO, [], ["warm"])
        pause(server)
        call = asyncio.create_task(link.run(ECHO, [], ["late"]))
        await turns()
        threading.Event().wait(2 * SOON)
        with pytest.raises(TimedOut):
            await call


async def test_error_of_the_server_is_told_with_its_code(link: Link) -> None:
    """And leaves the connection usable."""
    with pytest.raises(ServerError, match="out of memory") as told:
        await link.run(Lua("return redis.error_reply('OOM out of memory')"), [], [])
    assert told.value.code == "OOM"
    with pytest.raises(ServerError) as told:
        await link.run(Lua("return redis.error_reply('MINE no')"), [], [])
    assert told.value.code == "MINE"
    assert await link.run(ECHO, [], ["next"]) == b"next"


async def test_connection_closed_while_idle_is_replaced(server: Server, link: Link) -> None:
    """A firewall or a restart may have closed it; that is no failure."""
    await link.run(ECHO, [], ["warm"])
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await turns()
    assert await link.run(ECHO, [], ["next"]) == b"next"
    assert link.statistics.failures == 0


async def test_demoted_server_is_looked_up_again(link: Link, server: Server) -> None:
    """Behind the same name or address someone else may answer by now: the old connection would never tell."""
    before = await link.ask("CLIENT", "ID")
    assert await link.ask("CLIENT", "ID") == before
    server.ask("REPLICAOF", "127.0.0.1", 1)
    try:
        with pytest.raises(ServerError) as told:
            await link.run(COUNT, ["key"], [])
    finally:
        server.ask("REPLICAOF", "NO", "ONE")
    assert told.value.code == "READONLY"
    assert await link.ask("CLIENT", "ID") != before


async def test_restarted_server_is_found_again(link: Link, server: Server) -> None:
    """Without its memory of scripts."""
    await link.run(ECHO, [], ["before"])
    server.restart()
    await turns()
    assert await link.run(ECHO, [], ["after"]) == b"after"


async def test_breaker_opens_turns_calls_away_and_closes(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Each transition is told, and the two that matter are logged once."""
    states: list[BreakerState] = []
    caplog.set_level(logging.INFO, "admission.redis")
    async with Link(server.url, deadline=SOON, first_pause=0.01, longest_pause=0.02, on_change=states.append) as link:
        await link.run(ECHO, [], ["warm"])
        pause(server)
        for _ in range(3):
            with pytest.raises(TimedOut):
                await link.run(ECHO, [], ["late"])
        assert link.state is BreakerState.OPEN
        with pytest.raises(Unreachable, match="the circuit breaker is open"):
            await link.run(ECHO, [], ["turned away"])
        await until(lambda: states.count(BreakerState.PROBING) == 2)
        server.ask("CLIENT", "UNPAUSE")
        await until(lambda: link.state is BreakerState.CLOSED)
        assert await link.run(ECHO, [], ["after"]) == b"after"
        statistics = link.statistics
    probing = [BreakerState.PROBING, BreakerState.OPEN]
    assert states[:3] == [BreakerState.OPEN, *probing]
    assert states[-2:] == [BreakerState.PROBING, BreakerState.CLOSED]
    assert (statistics.failures, statistics.turned_away, statistics.opened) == (3, 1, 1)
    messages = [record.getMessage() for record in caplog.records if "circuit breaker" in record.getMessage()]
    assert [message.split(",")[0].split(" after")[0].rsplit(" ", 1)[1] for message in messages] == ["open", "again"]


async def test_slow_answers_open_the_breaker(server: Server) -> None:
    """They are answers all the same."""
    async with Link(server.url, budget=1e-9) as link:
        for number in range(3):
            assert await link.run(ECHO, [], [number]) == b"%d" % number
        assert link.state is BreakerState.OPEN


async def test_probe_is_the_callers(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """One that raises fails like one that is not answered: the breaker tries again."""
    probes = iter([ValueError("broken"), Call(COUNT, ["probes"], [])])

    def probe() -> Call:
        made = next(probes)
        if isinstance(made, ValueError):
            raise made
        return made

    refuse = Lua("return redis.error_reply('OOM no')")
    async with Link(server.url, deadline=20.0, failures=1, first_pause=0.01, probe=probe) as link:
        with pytest.raises(ServerError):
            await link.run(refuse, [], [])
        await until(lambda: link.state is BreakerState.CLOSED)
    assert server.ask("GET", "probes") == "1"
    assert "a probe could not be made" in caplog.text


async def test_listener_that_raises_does_not_stop_the_prober(server: Server) -> None:
    """State first, listeners after."""

    def complain(state: BreakerState) -> None:
        raise ValueError(state)

    async with Link(server.url, deadline=20.0, failures=1, first_pause=0.01, on_change=complain) as link:
        with pytest.raises(ServerError):
            await link.run(Lua("return redis.error_reply('OOM no')"), [], [])
        await until(lambda: link.state is BreakerState.CLOSED)


async def test_nobody_there_is_unreachable() -> None:
    """The message says where it looked."""
    async with Link("redis://127.0.0.1:1") as link:
        with pytest.raises(Unreachable, match=r"redis://127\.0\.0\.1:1 cannot be reached"):
            await link.run(ECHO, [], [])


async def test_closed_link_says_so(link: Link) -> None:
    """And may be closed twice."""
    await link.run(ECHO, [], ["before"])
    await link.close()
    await link.close()
    with pytest.raises(NotRunning, match="is closed"):
        await link.run(ECHO, [], ["after"])


async def test_link_belongs_to_one_loop(link: Link) -> None:
    """On another one its connections would never wake up."""
    await link.run(ECHO, [], ["here"])
    refused: list[NotRunning] = []

    def elsewhere() -> None:
        try:
            asyncio.run(link.run(ECHO, [], ["there"]))  # type: ignore[arg-type]
        except NotRunning as error:
            refused.append(error)

    await asyncio.to_thread(elsewhere)
    assert "another event loop" in str(refused[0])


async def test_options_out_of_range_are_named() -> None:
    """With the value and the range."""
    with pytest.raises(ValueError, match="deadline is 0: it must be above 0"):
        Link("redis://cache", deadline=0)
    with pytest.raises(ValueError, match="failures is 0: it must be at least 1"):
        Link("redis://cache", failures=0)
