"""Pushed messages: they arrive, and a connection that is gone is noticed and made anew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from admission.backends.redis.link import Link
from tests.redis.scripts import until
from tests.redis.servers import Server, debian_redis

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server this module may freeze and restart."""
    with debian_redis() as server:
        yield server


class Ear:
    """Somebody who listens on the channel "news"."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self.subscribed: asyncio.Queue[None] = asyncio.Queue()

    def tell(self, message: bytes) -> None:
        self.heard.put_nowait(message)

    def stands(self) -> None:
        self.subscribed.put_nowait(None)


@asynccontextmanager
async def listening(link: Link, ear: Ear) -> AsyncIterator[None]:
    """Listen inside the block, from the moment the channel is subscribed."""
    task = asyncio.create_task(link.listen("news", ear.tell, ear.stands))
    try:
        async with asyncio.timeout(60):
            await ear.subscribed.get()
            yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_messages_arrive_in_order(any_redis: Server) -> None:
    """From every kind of server."""
    ear = Ear()
    async with Link(any_redis.url, deadline=20.0) as link, listening(link, ear):
        for number in range(10):
            any_redis.ask("PUBLISH", "news", number)
        assert [await ear.heard.get() for _ in range(10)] == [b"%d" % number for number in range(10)]


async def test_broken_channel_is_subscribed_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever listens is told, since what was published meanwhile is lost; the log says each once."""
    caplog.set_level(logging.INFO, "admission.redis")
    ear = Ear()
    async with Link(server.url, deadline=20.0) as link, listening(link, ear):
        for number in range(3):
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await ear.subscribed.get()
            server.ask("PUBLISH", "news", number)
            assert await ear.heard.get() == b"%d" % number
        assert link.statistics.reconnects == 3
        assert link.statistics.listening
    assert caplog.text.count("is lost") == caplog.text.count("subscribed again") == 3


async def test_silent_connection_is_noticed(server: Server) -> None:
    """The other end may be gone without a word; a PING that is not answered tells."""
    ear = Ear()
    async with Link(server.url, deadline=0.2, quiet=0.02) as link, listening(link, ear):
        server.freeze()
        try:
            await until(lambda: not link.statistics.listening)
        finally:
            server.thaw()
        await ear.subscribed.get()
        server.ask("PUBLISH", "news", "again")
        assert await ear.heard.get() == b"again"


async def test_quiet_connection_that_answers_is_kept(server: Server) -> None:
    """Nothing to say is no fault."""
    pings = server.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"]
    ear = Ear()
    async with Link(server.url, deadline=20.0, quiet=0.01) as link, listening(link, ear):
        await until(lambda: server.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"] >= pings + 3)
        assert link.statistics.listening
        assert link.statistics.reconnects == 0
        server.ask("PUBLISH", "news", "still here")
        assert await ear.heard.get() == b"still here"


async def test_server_that_comes_later_is_found(server: Server) -> None:
    """Listening begins before there is anything to listen to."""
    server.stop()
    ear = Ear()
    async with Link(server.url, deadline=20.0) as link:
        task = asyncio.create_task(link.listen("news", ear.tell, ear.stands))
        await asyncio.sleep(0)
        assert not link.statistics.listening
        server.start()
        async with asyncio.timeout(60):
            await ear.subscribed.get()
        task.cancel()
        await asyncio.wait([task])


async def test_listener_that_raises_goes_on_listening(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged."""
    ear = Ear()

    def complain(message: bytes) -> None:
        ear.tell(message)
        raise ValueError(message)

    async with Link(server.url, deadline=20.0) as link:
        task = asyncio.create_task(link.listen("news", complain, ear.stands))
        async with asyncio.timeout(60):
            await ear.subscribed.get()
            for number in range(2):
                server.ask("PUBLISH", "news", number)
                assert await ear.heard.get() == b"%d" % number
        task.cancel()
        await asyncio.wait([task])
    assert caplog.text.count("failed on a message") == 2


async def test_closing_the_link_ends_listening(server: Server) -> None:
    """Whether subscribed or not."""
    ear = Ear()
    link = Link(server.url, deadline=20.0)
    task = asyncio.create_task(link.listen("news", ear.tell, ear.stands))
    async with asyncio.timeout(60):
        await ear.subscribed.get()
        await link.close()
        await task


async def test_long_outage_is_logged_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """However often connecting again fails."""
    caplog.set_level(logging.INFO, "admission.redis")
    ear = Ear()
    async with Link(server.url, deadline=20.0) as link, listening(link, ear):
        server.stop()
        await until(lambda: not link.statistics.listening)
        with pytest.MonkeyPatch.context() as patch:
            pauses: list[float] = []
            patch.setattr(
                "admission.backends.redis.channel.random.uniform", lambda low, high: pauses.append(low) or low
            )
            await until(lambda: len(pauses) >= 3)
        server.start()
        await ear.subscribed.get()
    assert caplog.text.count("is lost") == caplog.text.count("subscribed again") == 1
