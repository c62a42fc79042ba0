"""Messages pushed by the server, on a connection of its own that is made anew when it breaks.

What is published while it is broken is lost: the state in Redis is the truth, and a message only says that looking is
worth while. So whoever listens is told each time the subscription stands, and looks.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AsyncExitStack

from admission.backends.redis.exchange import Patience
from admission.backends.redis.server import FAILURES, Connection, ConnectionFailed, Server, send

__all__ = ["Channel"]

logger = logging.getLogger("admission.redis")

FIRST_PAUSE = 0.05
"""Seconds until the first try to connect again, doubled after each that fails, and jittered."""

LONGEST_PAUSE = 2.0


class Channel:
    """One subscription.

    Args:
        server: Who publishes.
        origin: What to call it in the log.
        deadline: Seconds that connecting and subscribing may take, and the answer to a PING.
        quiet: Seconds without a message after which a PING asks whether the other side is there at all: nothing else
            tells a connection whose other end has gone from one on which nothing is said.
    """

    def __init__(self, server: Server, origin: str, name: str, *, deadline: float, quiet: float) -> None:
        self.name = name
        self.subscribed = False
        """Whether messages would arrive now."""
        self.resubscriptions = 0
        """How often it was subscribed again."""
        self._server = server
        self._origin = origin
        self._deadline = deadline
        self._quiet = quiet
        self._connection: Connection | None = None
        self._ended = asyncio.Event()
        self._failed = 0
        """Tries in a row that ended without a subscription."""
        self._stood = False
        """Whether it was subscribed before."""
        self._mourned = False
        """Whether the log says that it is lost."""

    async def listen(self, heard: Callable[[bytes], None], subscribed: Callable[[], None]) -> None:
        """Pass every message to *heard* until `end()` or cancelled; call *subscribed* whenever it (again) can."""
        while not self._ended.is_set():
            try:
                async with AsyncExitStack() as stack:
                    self._connection = await self._subscribe(stack)
                    self._stands(subscribed)
                    await self._follow(self._connection, heard)
            except (TimeoutError, *FAILURES) as error:
                if not self._ended.is_set():
                    await self._lost(error)
            finally:
                self.subscribed = False
                self._connection = None
            await self._pause()

    async def end(self) -> None:
        """Have `listen` return."""
        self._ended.set()
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def _subscribe(self, stack: AsyncExitStack) -> Connection:
        async with Patience(self._deadline):
            connection = await stack.enter_async_context(self._server.line(self.name))
            await connection.connect()
            await send(connection, "SSUBSCRIBE" if self._server.sharded else "SUBSCRIBE", self.name)
            await connection.read_response()
        return connection

    def _stands(self, subscribed: Callable[[], None]) -> None:
        if self._mourned:
            self._mourned = False
            logger.info("the channel from %s is subscribed again", self._origin)
        self._failed = 0
        self.subscribed = True
        self.resubscriptions += self._stood
        self._stood = True
        _tell(subscribed)

    async def _follow(self, connection: Connection, heard: Callable[[bytes], None]) -> None:
        """Pass messages on until the connection ends, or does not answer."""
        asked = False
        while True:
            message = await connection.read_response(timeout=self._deadline if asked else self._quiet)
            if not isinstance(message, list):
                if asked:
                    raise ConnectionFailed(f"no answer to a PING within {self._deadline:g} s")
                await send(connection, "PING")
                asked = True
                continue
            asked = False
            kind, data = message[0], message[-1]
            if kind in (b"message", b"smessage") and isinstance(data, bytes):
                _tell(heard, data)
            elif kind == b"sunsubscribe":
                raise ConnectionFailed("the slot of the channel moved to another node")

    async def _lost(self, error: Exception) -> None:
        if not self._mourned:
            self._mourned = True
            reason = str(error) or f"no answer within {self._deadline:g} s"
            logger.warning("the channel from %s is lost: %s; connecting again", self._origin, reason)
        if self.subscribed:
            return
        self._failed += 1
        await self._server.forget()  # Perhaps another one has to be asked.

    async def _pause(self) -> None:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failed, 16))
        try:
            async with asyncio.timeout(longest * random.uniform(0.5, 1.0)):
                await self._ended.wait()
        except TimeoutError:
            return


def _tell(callback: Callable[..., None], *data: bytes) -> None:
    """Call it; what it raises must not end the subscription."""
    try:
        callback(*data)
    except Exception:
        logger.exception("%r failed on a message from the server", callback)
