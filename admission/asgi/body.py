"""What comes from the client: a bounded spool for those who wait, a deadline for those who upload slowly.

A body is read, within bounds, *before* a permit is asked for: who uploads one byte a second holds nothing meanwhile.
Most bodies are there with the first message, which costs one call. What does not fit the bounds is read by the app
while it holds the permit, and then `UploadDeadline` sees to it that this comes to an end.

Servers announce a client's leaving only to whoever waits in `receive` after the whole body was read. So while a request
is in line, one reader takes its messages off the server, keeps them, and later hands the app the very same messages in
the same order. It is the only reader there ever is: two would steal from each other. After the hand-over the
reader finishes the one `receive` it may be in and stops, so that back-pressure on the client works as before.

What is kept is bounded, for each request and over all of them. Past the bound the reader stops: that client's leaving
goes unnoticed, and only `max_wait` ends its waiting. A client that shuts down its sending side early (half-close) looks
as if it had left; no server tells the two apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MESSAGE_BYTES = 512
"""What a message takes besides its payload: a body sent in chunks of one byte must not be a way around the budget."""

_DISCONNECTS = ("http.disconnect", "websocket.disconnect")


class ByteBudget:
    """Bytes that all spools together may hold."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        """Overshoots by at most one message per request: a message can only be measured once it was taken."""

    @property
    def exhausted(self) -> bool:
        """Nothing more should be read."""
        return self.used >= self.limit


class Spool:
    """The one reader of a request that waits. Use it as the app's `receive`, and `close` it in the end.

    Args:
        receive: The server's.
        budget: Shared by all spools.
        max_bytes: Of this request's body.
        first: A message that was taken off *receive* already.
        on_gone: Called once, when the client has left. It must be quick.
        follow: Go on watching after `hand_over`, within the same bounds.
    """

    def __init__(
        self,
        receive: Receive,
        *,
        budget: ByteBudget,
        max_bytes: int,
        on_gone: Callable[[], None],
        first: Message | None = None,
        follow: bool = False,
    ) -> None:
        self._receive = receive
        self._budget = budget
        self._max_bytes = max_bytes
        self._on_gone = on_gone
        self._follow = follow
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._reading = False
        self._handed_over = False
        self._ended = False
        self._failure: Exception | None = None
        self._changed: anyio.Event | None = None
        self.gone = False
        """The client has left."""
        self.complete = False
        """All of the body was read off the server."""
        if first is not None:
            self._keep(first)

    async def watch(self) -> None:
        """Read until the client has left, the bounds are reached, or the app has taken over."""
        try:
            # After a complete body only a disconnect can come, which takes no room.
            while self._wanted() if self.complete or not self._full() else await self._room():
                self._reading = True
                try:
                    message = await self._receive()
                finally:
                    self._reading = False
                self._keep(message)
                if self.gone:
                    self._on_gone()
                    return
        except Exception as error:
            # The server's `receive` broke. It is the app that must hear of it, as it would have without a spool.
            self._failure = error
        finally:
            self._ended = True
            self._wake()

    async def body(self) -> None:
        """Return when the body is complete, the client gone, or no more will be kept."""
        while not (self.complete or self.gone or self._ended):
            await self._wait()

    def peek(self) -> bytes:
        """What is kept of the body, without taking it."""
        return b"".join(message.get("body", b"") for message in self._messages)

    def hand_over(self) -> None:
        """The app has begun: what was kept is its, and so is everything after the read now under way."""
        self._handed_over = True

    async def receive(self) -> Message:
        """The app's `receive`: what was kept, then what the server has."""
        while True:
            if self._messages:
                return self._next()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if not self._reading:
                return await self._receive()
            await self._wait()

    def close(self) -> None:
        """Give back the bytes of what nobody took."""
        self._messages.clear()
        self._budget.used -= self._bytes
        self._bytes = 0

    def _keep(self, message: Message) -> None:
        size = _size(message) + _MESSAGE_BYTES
        self._bytes += size
        self._budget.used += size
        self._messages.append(message)
        if message["type"] in _DISCONNECTS:
            self.gone = True
        else:
            self.complete = not message.get("more_body", False)
        self._wake()

    def _next(self) -> Message:
        message = self._messages.popleft()
        size = _size(message) + _MESSAGE_BYTES
        self._bytes -= size
        self._budget.used -= size
        self._wake()
        return message

    def _wanted(self) -> bool:
        """Whether the next message is still the spool's to read."""
        return self._follow or not self._handed_over

    async def _room(self) -> bool:
        """Wait, as a follower, until the app has made room; False when the spool's reading ends here."""
        while not self.complete and self._full():
            if not (self._follow and self._handed_over and self._messages):
                return False
            await self._wait()
        return self._wanted()

    def _full(self) -> bool:
        return self._bytes >= self._max_bytes or self._budget.exhausted

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _wait(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()


class UploadDeadline:
    """A `receive` that gives up on clients which upload too slowly, because they hold a permit meanwhile.

    A client may lag *grace* seconds behind *rate* bytes per second. One that lags more is treated as gone: the app
    gets `http.disconnect`, and `missed` says why. Once the body is complete nothing is timed any more.
    """

    def __init__(self, receive: Receive, *, grace: float, rate: float, clock: Callable[[], float]) -> None:
        self._receive = receive
        self._clock = clock
        self._seconds_per_byte = 1 / rate
        self._due = clock() + grace
        self._complete = False
        self.missed = False
        """The client was too slow."""

    async def receive(self) -> Message:
        """The app's `receive`."""
        if self._complete:
            return await self._receive()
        if not self.missed:
            with anyio.move_on_after(max(0.0, self._due - self._clock())):
                message = await self._receive()
                self._due += _size(message) * self._seconds_per_byte
                self._complete = not message.get("more_body", False)
                return message
            self.missed = True
        return {"type": "http.disconnect"}


def replaying(first: Message, receive: Receive) -> Receive:
    """A `receive` that gives *first*, which was taken off *receive*, and then whatever comes."""
    kept: Message | None = first

    async def replay() -> Message:
        nonlocal kept
        if kept is None:
            return await receive()
        message, kept = kept, None
        return message

    return replay


async def drain(receive: Receive, *, max_bytes: int, seconds: float) -> None:
    """Read and drop the rest of a body, within bounds, so that its client gets to read the answer.

    A server that closes a connection on which a client is still sending makes the client's system throw away the
    answer it has already received.
    """
    with anyio.move_on_after(seconds):
        while max_bytes > 0:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            max_bytes -= _size(message)


def _size(message: Message) -> int:
    payload = message.get("body") or message.get("bytes") or message.get("text") or b""
    return len(payload)
