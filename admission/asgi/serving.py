"""Running the app with a slot in hand: headers out, first byte noted, and the slot back, whatever happens."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, MutableMapping
from typing import Any, Final

import anyio

from admission.asgi.body import Message, Receive, Send
from admission.asgi.classify import Scope
from admission.asgi.desk import MARK, ASGIApp, Desk
from admission.asgi.responses import Header
from admission.errors import Refusal
from admission.line import RUNNING, Entry
from admission.permit import hold_for_task
from admission.types import Outcome

_OUTCOMES: Mapping[int, Outcome] = {
    429: Outcome.DROPPED,
    503: Outcome.DROPPED,
    504: Outcome.DROPPED,
    500: Outcome.IGNORED,
}
"""What a status teaches an adaptive limit, if it is not a success: by these an app says that what stands behind it is
overloaded, or that it failed for reasons of its own."""

BIG_MESSAGE: Final = 65536
"""Bytes from which on even a single body message may have to wait for its reader."""


class Exchange:
    """One response on its way out, and the slots that go back when it is over.

        exchange = exchange_of(desk, send, entry, headers, scope)
        try:
            await app(scope, receive, exchange.send)
        except BaseException as error:
            if not await exchange.answered(error, scope):
                raise
        finally:
            exchange.end()

    The slots are held until the app has returned: giving them back when the response starts would let any number of
    streams run at once. This is on the hot path: the middleware spells `exchange_of` and `serve` out, and there is no
    `__init__`, which would cost more than what it does.
    """

    __slots__ = ("desk", "entry", "first_byte_at", "headers", "raw_send", "status")

    desk: Desk
    entry: Entry
    raw_send: Send
    """The server's."""
    headers: list[Header]
    """Added to the response."""
    status: int
    """Of the response: 0 until it has started; what it would have been for an app that failed."""
    first_byte_at: float | None

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`.

        A plain function: what it returns is the server's own awaitable, so no coroutine is made for a message.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            # A copy: apps may send the same message for every request.
            message = {**message}
            message["headers"] = [*message.get("headers", ()), *self.headers]
        elif message.get("more_body"):
            return self._send_part(message)
        elif self.desk.last_byte or len(message.get("body", b"")) > BIG_MESSAGE:
            return self._send_whole(message)
        return self.raw_send(message)

    def _send_part(self, message: Message) -> Awaitable[None]:
        desk = self.desk
        if self.first_byte_at is None:
            self.first_byte_at = desk.controller.now()
        return self.raw_send(message) if desk.stall_timeout is None else self._send_in_time(message, desk.stall_timeout)

    async def _send_whole(self, message: Message) -> None:
        if self.desk.stall_timeout is None:
            await self.raw_send(message)
        else:
            await self._send_in_time(message, self.desk.stall_timeout)
        if self.desk.last_byte and message["type"] == "http.response.body":
            self.end()

    async def _send_in_time(self, message: Message, seconds: float) -> None:
        """Send, but give up on a reader that takes nothing for *seconds*, as if the connection were lost."""
        with anyio.move_on_after(seconds) as scope:
            await self.raw_send(message)
        if scope.cancelled_caught:
            raise ConnectionAbortedError(f"the client read nothing for {seconds:g} s")

    async def answered(self, error: BaseException, scope: Scope) -> bool:
        """Whether what the app raised could be answered, and was; else it must be raised on.

        A refusal the app did not catch (an executor behind it was full) gets the same answer as one from here.
        """
        if isinstance(error, Refusal) and self.status == 0:
            self.status = 429
            name = self.desk.names[self.entry.rank]
            await self.desk.refusals.answer(error, scope["headers"], priority=name).send(self.raw_send)
            return True
        # A timeout speaks of overload; a fault, a lost client or a cancellation says nothing about load.
        self.status = 504 if isinstance(error, TimeoutError) else 500
        return False

    def end(self) -> None:
        """Give the slots back, unless that was done: the app may have, to settle the cost, or the last byte has."""
        entry = self.entry
        if entry.state is RUNNING:
            first_byte_at = self.first_byte_at
            rtt = None if first_byte_at is None else first_byte_at - entry.granted_at
            self.desk.controller.finish(entry, _OUTCOMES.get(self.status, Outcome.SUCCESS), None, rtt)


def exchange_of(
    desk: Desk, send: Send, entry: Entry, headers: list[Header], scope: MutableMapping[str, Any]
) -> Exchange:
    """Begin: the app, and what it calls, can see from here on whose slots it runs on."""
    exchange = Exchange()
    exchange.desk = desk
    exchange.raw_send = send
    exchange.entry = entry
    exchange.headers = headers
    exchange.status = 0
    exchange.first_byte_at = None
    entry.outer = scope.get(MARK)
    scope[MARK] = entry
    hold_for_task(entry)
    return exchange


async def serve(
    desk: Desk,
    app: ASGIApp,
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
    entry: Entry,
    headers: list[Header],
) -> None:
    """Run *app*, add *headers* to its response, and give the slots of *entry* back. See `Exchange`."""
    exchange = exchange_of(desk, send, entry, headers, scope)
    failure: BaseException | None = None
    try:
        try:
            await app(scope, receive, exchange.send)
        except BaseException as error:
            failure = error
        # Not inside `except`: compiled by mypyc, that shows the error to whoever runs while this waits.
        if failure is not None and not await exchange.answered(failure, scope):
            raise failure
    finally:
        failure = None  # Its traceback holds this frame: both would wait for the garbage collector.
        exchange.end()
