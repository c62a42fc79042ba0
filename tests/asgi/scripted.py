"""A server and a client played by hand: one `Visitor` is one request, from what it sends to what it gets."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

import anyio

from admission.asgi import QoSAdmission

Message = MutableMapping[str, Any]
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class Visitor:
    """One HTTP request or WebSocket. `await visitor.call(app)` plays it; `leave` hangs up."""

    def __init__(
        self,
        method: str = "GET",
        path: str = "/",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: Iterable[bytes] = (b"",),
        **scope: Any,
    ) -> None:
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "scheme": "http",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
            "client": ("192.0.2.1", 4711),
            "server": ("192.0.2.2", 80),
            **scope,
        }
        chunks = list(body)
        self.incoming: deque[Message] = deque(
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
            for number, chunk in enumerate(chunks)
        )
        self.taken: list[Message] = []
        """Messages the app's side has taken off the server."""
        self.sent: list[Message] = []
        self.readers = 0
        self.most_readers = 0
        self.reads = 0
        self.returned = False
        self.error: BaseException | None = None
        self._gone = anyio.Event()
        self._started = anyio.Event()
        self._reading: anyio.Event | None = None

    def leave(self) -> None:
        """Hang up."""
        self._gone.set()

    async def call(self, app: App) -> None:
        """Play the request to its end."""
        try:
            await app(self.scope, self.receive, self.send)
        finally:
            self.returned = True

    async def receive(self) -> Message:
        self.reads += 1
        self.readers += 1
        self.most_readers = max(self.most_readers, self.readers)
        try:
            if self.incoming:
                await anyio.lowlevel.checkpoint()
                message = self.incoming.popleft()
            else:
                await self._gone.wait()
                kind = "websocket" if self.scope["type"] == "websocket" else "http"
                message = {"type": f"{kind}.disconnect"}
            self.taken.append(message)
            return message
        finally:
            self.readers -= 1

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(dict(message))
        self._started.set()

    @property
    def status(self) -> int | None:
        """Of the response; None before it starts."""
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def answer(self) -> bytes:
        """The body of the response as far as it was sent."""
        return b"".join(message.get("body", b"") for message in self.sent)


class Gate:
    """An app whose requests stay inside until `open`. Counts who is inside."""

    def __init__(self, *, status: int = 200) -> None:
        self.inside = 0
        self.most_inside = 0
        self.served: list[str] = []
        self.bodies: list[list[Message]] = []
        self._status = status
        self._open = anyio.Event()

    def open(self) -> None:
        """Let everyone out, now and later."""
        self._open.set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.served.append(scope["path"])
        try:
            await self._open.wait()
            await send({"type": "http.response.start", "status": self._status, "headers": [(b"x-app", b"yes")]})
            await send({"type": "http.response.body", "body": b"done"})
        finally:
            self.inside -= 1


async def hello(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """An app that answers at once."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"yes")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def settle() -> None:
    """Let everything happen that can happen without time passing."""
    await anyio.wait_all_tasks_blocked()


def guarded(app: App, **options: Any) -> QoSAdmission:
    """*app* behind a pool of one slot, unless *options* say otherwise."""
    options.setdefault("max_concurrency", 1)
    return QoSAdmission(app, **options)
