"""One question, one answer, one deadline: what everything else here asks the server through.

Nothing is sent twice: whether what failed is worth another try is for the caller to say. Only a script the server does
not know is sent again, with its text, because nothing of it was done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

from admission.backends.redis.address import Address
from admission.backends.redis.server import (
    FAILURES,
    NoScriptError,
    Ordered,
    ReadOnlyError,
    ResponseError,
    TooSlow,
    Wire,
    Word,
    server_at,
)
from admission.errors import AdmissionError

__all__ = ["Call", "Exchange", "Patience", "Script", "ServerError", "TimedOut", "Unreachable"]

BLOCKED = 0.02
"""Seconds a timer may be late before the event loop is taken to have been blocked."""

MERCY = 0.05
"""Seconds more, once, for whose time ran out on a blocked loop."""


class Unreachable(AdmissionError):
    """The server did not answer. What it was asked may have been done, or not."""


class TimedOut(Unreachable):
    """The server did not answer in time."""


class ServerError(Unreachable):
    """The server answered with an error.

    Attributes:
        code: Its first word: OOM, READONLY, NOPERM, ERR …
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class Script(Protocol):
    """A Lua script."""

    @property
    def source(self) -> str | bytes:
        """Its text."""

    @property
    def sha(self) -> str:
        """SHA1 of its text, in hexadecimal digits: its name to the server."""


class Call(NamedTuple):
    """A script, called."""

    script: Script
    keys: Sequence[Word]
    argv: Sequence[Word]


class Exchange:
    """Asks the server behind an address. Connects on first use; each call under way has a connection of its own.

    Args:
        deadline: Seconds one call may take, with connecting and all.
    """

    def __init__(self, address: Address, *, deadline: float) -> None:
        self.address = address
        self.deadline = deadline
        self.server = server_at(address, deadline=deadline)

    async def run(self, call: Call, way: Ordered | None = None) -> Wire:
        """What the script answers, asked the given way if there is one.

        If cancelled, or out of time, its connection is closed, so that no one reads the late answer.

        Raises:
            TimedOut: It did not answer within the deadline.
            ServerError: It answered with an error.
            Unreachable: Any other failure.
        """
        script, keys, argv = call
        rest = (len(keys), *keys, *argv)
        ask = self.server.call if way is None else way.call
        try:
            async with Patience(self.deadline):
                try:
                    return await ask(("EVALSHA", script.sha, *rest))
                except NoScriptError:
                    return await ask(("EVAL", script.source, *rest))
        except (TimeoutError, *FAILURES) as error:
            raise await self._failure(error) from error

    async def ask(self, *command: Word) -> Wire:
        """What the server answers to one command, which on a cluster needs a key.

        Raises:
            Unreachable: As in `run`.
        """
        try:
            async with Patience(self.deadline):
                return await self.server.call(command)
        except (TimeoutError, *FAILURES) as error:
            raise await self._failure(error) from error

    async def close(self) -> None:
        """Close every connection, or drop those that cannot be closed in time. A call under way closes its own."""
        try:
            async with Patience(self.deadline):
                await self.server.close()
        except (TimeoutError, *FAILURES):
            await self.server.forget()

    async def _failure(self, error: Exception) -> Unreachable:
        """What to raise for *error*."""
        if isinstance(error, ResponseError):
            if isinstance(error, ReadOnlyError):
                await self.server.forget()  # It was demoted: someone else answers at this address, or soon will.
            text = str(error)
            code = error.status_code or text.partition(" ")[0]
            return ServerError(f"{self.address} answered: {text}", code=code)
        await self.server.forget()
        if isinstance(error, TimeoutError | TooSlow):
            return TimedOut(f"{self.address} did not answer within {self.deadline:g} s")
        return Unreachable(f"{self.address} cannot be reached: {error}")


class Patience:
    """`asyncio.timeout`, but fair to the other side: when the loop was blocked, it first reads what has arrived."""

    __slots__ = ("_due", "_loop", "_seconds", "_spared", "_timeout", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._spared = False

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # Not the loop's clock, which on uvloop stands still during a turn.
        self._due = time.monotonic() + self._seconds
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._timer = self._loop.call_later(self._seconds, self._over)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _over(self) -> None:
        if time.monotonic() - self._due > BLOCKED and not self._spared:
            self._spared = True
            self._timer = self._loop.call_later(MERCY, self._over)
        else:
            self._timeout.reschedule(self._loop.time())
