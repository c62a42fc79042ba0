"""A look inside, over HTTP: status, one ticket, the events of one ticket, and everything for a bug report.

    GET /-/admission/status                 the pool as JSON: limit, in flight, queued, waits, by class
    GET /-/admission/tickets/{id}           position, eta, and what the ticket waits for, by name
    GET /-/admission/tickets/{id}/events    the same as server-sent events, until the ticket runs or is gone
    GET /-/admission/dump                   all of it, with the tickets in order of service

Of a pool that many processes share they tell how it stands now, in all of them: it is asked before they answer. Tickets
are known only to the process that took them in.

With a token configured, whoever shows it (`Authorization: Bearer …`) sees everything. Without one, only this machine is
answered: the peer must be a loopback address, the `Host` too (so that no web page can borrow a browser for
it), and no proxy may have left its mark. Tenant names are then replaced by marks that only tell tenants apart.
A proxy on this machine that leaves no mark at all cannot be told from a local user: configure a token there, or
switch `status_loopback` off. Everyone else gets 404.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from hmac import compare_digest
from typing import Any

import anyio

from admission.asgi.body import Receive, Send
from admission.asgi.classify import RequestCounts, Scope
from admission.asgi.responses import Answer, Header, json_answer
from admission.controller import AdmissionController

MAX_WATCHERS = 256
"""Event streams open at once: they take no slot, so something else must bound them."""

EVENT_SECONDS = 1.0
"""How often a watched ticket is looked at."""

MAX_TICKETS = 1000
"""Tickets in a dump."""

_PROXY_MARKS = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})


class StatusPages:
    """Answers requests below *path*.

    Args:
        controller: Gives the controller; asked on every request.
        counts: What classification noticed.
        path: Without a slash at its end. None: nothing is answered.
        token: Who shows it may look. None: see *loopback*.
        loopback: Without a token, answer this machine.
        mode: Shown as it is.
    """

    def __init__(
        self,
        controller: Callable[[], AdmissionController],
        counts: RequestCounts,
        *,
        path: str | None,
        token: str | None,
        loopback: bool,
        mode: str,
    ) -> None:
        self._controller = controller
        self._counts = counts
        self._path = path
        # Digests have one length, so comparing them does not tell the token's.
        self._token = None if token is None else _digest(token.encode())
        self._loopback = loopback
        self._mode = mode
        self._salt = secrets.token_bytes(16)
        self._watchers = 0

    def owns(self, path: str) -> bool:
        """True for paths that are answered here and never reach the app."""
        return self._path is not None and (path == self._path or path.startswith(self._path + "/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer one request."""
        denied = self._denied(scope)
        if denied is not None:
            await denied.send(send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await json_answer(405, {"detail": "only GET and HEAD"}, [(b"allow", b"GET, HEAD")]).send(send)
            return
        match path.removeprefix(self._path or "").strip("/").split("/"):
            case ["status"]:
                answer = json_answer(200, await self._status())
            case ["dump"]:
                answer = json_answer(200, await self._dump())
            case ["tickets", ticket]:
                answer = await self._ticket(ticket)
            case ["tickets", ticket, "events"] if scope["method"] == "GET":
                await self._events(ticket, receive, send)
                return
            case _:
                answer = _missing()
        await answer.send(send)

    def _denied(self, scope: Scope) -> Answer | None:
        headers: Sequence[Header] = scope["headers"]
        if self._token is not None:
            shown = [value for name, value in headers if name == b"authorization"]
            scheme, _, token = (shown[0] if len(shown) == 1 else b"").partition(b" ")
            if scheme.lower() == b"bearer" and compare_digest(_digest(token.strip()), self._token):
                return None
            return json_answer(401, {"detail": "a bearer token is needed"}, [(b"www-authenticate", b"Bearer")])
        if self._loopback and _from_this_machine(scope.get("client"), headers):
            return None
        return _missing()

    # ------------------------------------------------------------------ what is shown

    async def _status(self) -> dict[str, Any]:
        controller = self._controller()
        await controller.refresh()
        shown = self._plain(controller.snapshot())
        return {"mode": self._mode, "requests": self._plain(self._counts), "pool": shown}

    async def _dump(self) -> dict[str, Any]:
        status = await self._status()
        return {**status, "tickets": [self._plain(t) for t in self._controller().tickets(MAX_TICKETS)]}

    async def _place(self, ticket: str) -> dict[str, Any] | None:
        found = await self._controller().look_up(ticket)
        if found is None:
            return None
        return {
            "id": found.id,
            "priority": found.priority,
            "tenant": self._tenant(found.tenant),
            "state": "running" if found.running else "queued",
            "position": found.position,
            "eta": found.predicted_wait,
            "waited": found.waited,
            "held_back_by": found.held_back_by,
        }

    async def _ticket(self, ticket: str) -> Answer:
        place = await self._place(ticket)
        return _missing() if place is None else json_answer(200, self._plain(place))

    async def _events(self, ticket: str, receive: Receive, send: Send) -> None:
        place = await self._place(ticket)
        if place is None:
            await _missing().send(send)
            return
        if self._watchers >= MAX_WATCHERS:
            await json_answer(429, {"detail": "too many are watching"}, [(b"retry-after", b"5")]).send(send)
            return
        self._watchers += 1
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_until_gone, receive, group.cancel_scope)
                await self._stream(ticket, place, send)
                group.cancel_scope.cancel()
        finally:
            self._watchers -= 1

    async def _stream(self, ticket: str, place: dict[str, Any] | None, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            state = "gone" if place is None else place["state"]
            event = f"event: {state}\ndata: {json.dumps(self._plain(place or {'id': ticket}))}\n\n"
            more = state == "queued"
            await send({"type": "http.response.body", "body": event.encode(), "more_body": more})
            if not more:
                return
            await anyio.sleep(EVENT_SECONDS)
            place = await self._place(ticket)

    # ------------------------------------------------------------------ as JSON

    def _plain(self, value: Any) -> Any:
        """*value* in JSON's own types."""
        if is_dataclass(value):
            shown = {f.name: self._plain(getattr(value, f.name)) for f in fields(value)}
            if "tenant" in shown:
                shown["tenant"] = self._tenant(shown["tenant"])
            if "weights" in shown:
                shown["weights"] = {self._tenant(t): w for t, w in shown["weights"].items()}
            return shown
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, Mapping):
            return {str(key.value if isinstance(key, Enum) else key): self._plain(v) for key, v in value.items()}
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if value is None or isinstance(value, str | int):
            return value
        return [self._plain(item) for item in value]

    def _tenant(self, name: str) -> str:
        """*name* for who has shown the token, else a mark that tells it from other tenants of this process."""
        if self._token is not None or not name:
            return name
        return "tenant-" + hashlib.sha256(self._salt + name.encode()).hexdigest()[:10]


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _from_this_machine(client: Sequence[Any] | None, headers: Iterable[Header]) -> bool:
    hosts = []
    for name, value in headers:
        if name in _PROXY_MARKS:
            return False
        if name == b"host":
            hosts.append(value.decode("latin-1"))
    return client is not None and _is_loopback(str(client[0])) and len(hosts) == 1 and _is_loopback(_host(hosts[0]))


def _host(authority: str) -> str:
    """The host of `host:port`, without the brackets of IPv6."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _missing() -> Answer:
    return json_answer(404, {"detail": "not found"})
