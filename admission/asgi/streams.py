"""Telling a streaming client its place in line, in the stream itself.

Only comment lines (`: queue position=3 eta=12`) are safe before the first chunk: clients drop them by the rules of
server-sent events, whereas an event of our own is taken for a broken chunk. The price is that status 200 goes out
before anyone knows how things end. So this is opt-in, begins only after some seconds of waiting, and whatever the app
or a refusal has to say afterwards that is no stream becomes `data: {"error": …}` and `data: [DONE]`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio

from admission.asgi.body import Message, Send
from admission.asgi.responses import Header, error_object
from admission.errors import Refusal

MAX_BODY = 65536
"""Bytes of an answer that is no stream which are still turned into an event."""

_DONE = b"data: [DONE]\n\n"

Place = Callable[[], Awaitable[tuple[int, float | None]]]
"""Position in line and predicted seconds, as of now."""


def wants_events(request: Iterable[Header], body: bytes) -> bool:
    """True for `Accept: text/event-stream` or a JSON body with `"stream": true`."""
    kinds = {name: value for name, value in request if name in (b"accept", b"content-type")}
    if b"text/event-stream" in kinds.get(b"accept", b"").lower():
        return True
    if b"json" not in kinds.get(b"content-type", b"").lower() or b'"stream"' not in body:
        return False
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return False  # Not for us to judge: the app will say what is wrong with it.
    return isinstance(content, dict) and content.get("stream") is True


class QueueComments:
    """Sends comments while a request waits, and then makes the rest of the response fit the status already sent.

    Args:
        send: The server's.
        place: Asked before every comment.
        headers: For the early response, besides its content type.
        after: Seconds of waiting before the first comment.
        every: Seconds between comments.
    """

    def __init__(self, send: Send, place: Place, *, headers: Iterable[Header] = (), after: float, every: float) -> None:
        self._send = send
        self._place = place
        self._headers = list(headers)
        self._after = after
        self._every = every
        # Held while a message is under way, so that `stop` never cuts one in two.
        self._sending = anyio.Lock()
        self._stopped = False
        self.started = False
        """Status 200 has gone out; only events may follow."""
        self._status = 200
        self._is_stream = True
        self._body = bytearray()

    async def run(self) -> None:
        """Send comments until stopped or cancelled. A client that has gone is not our concern here."""
        pause = self._after
        while not self._stopped:
            await anyio.sleep(pause)
            # Asked before the lock is taken: a shared pool may take its time, and the grant must not wait for it.
            await self._comment(*await self._place())
            pause = self._every

    async def stop(self) -> None:
        """Return once no comment is under way and none will follow."""
        async with self._sending:
            self._stopped = True

    async def refuse(self, refusal: Refusal, status: int) -> None:
        """End a response that has begun with a refusal."""
        await self._finish(_event(error_object(refusal, status)))

    async def send(self, message: Message) -> None:
        """The app's `send`, once `started`."""
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
            content_type = next((v for n, v in message.get("headers", ()) if n.lower() == b"content-type"), b"")
            self._is_stream = self._status == 200 and content_type.lower().startswith(b"text/event-stream")
        elif self._is_stream:
            await self._send(message)
        elif kind == "http.response.body":
            self._body += message.get("body", b"")[: MAX_BODY + 1 - len(self._body)]
            if not message.get("more_body", False):
                await self._finish(self._as_event())

    async def _comment(self, position: int, eta: float | None) -> None:
        async with self._sending:
            if self._stopped:
                return
            if not self.started:
                # Set before it is sent: after a send that was cut short nobody may start a second response.
                self.started = True
                fixed = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
                await self._send({"type": "http.response.start", "status": 200, "headers": [*fixed, *self._headers]})
            line = f": queue position={position}" + ("" if eta is None else f" eta={eta:.0f}") + "\n\n"
            await self._send({"type": "http.response.body", "body": line.encode(), "more_body": True})

    async def _finish(self, event: bytes) -> None:
        await self._send({"type": "http.response.body", "body": event + _DONE, "more_body": False})

    def _as_event(self) -> bytes:
        """The app's answer that was no stream, as one event."""
        text = bytes(self._body).decode("utf-8", "replace")
        if self._status < 400 and len(self._body) <= MAX_BODY:
            return b"".join(b"data: " + line.encode() + b"\n" for line in text.splitlines() or [""]) + b"\n"
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict) and isinstance(content.get("error"), dict):
            return _event(content["error"])
        kind = "server_error" if self._status >= 500 or self._status < 400 else "invalid_request_error"
        return _event({"message": text[:2000], "type": kind, "param": None, "code": str(self._status)})


def _event(error: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
