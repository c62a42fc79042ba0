"""What a client sees: the headers of admitted responses, and refusals it can act on.

A refusal under load is 429, one because the server goes away or lost its shared pool is 503 (both are options). The
default body is OpenAI's, because its clients fill `.code` and `.type` from that shape alone; clients whose `Accept`
asks for `application/problem+json` get RFC 9457. `x-admission-reason` says why in either case:

| `x-admission-reason` | `code` | status | what happened |
|---|---|---|---|
| `rejected-queue-full` | `queue_full` | 429 | the line is full |
| `rejected-tenant-full` | `tenant_queue_full` | 429 | this tenant has its share of waiters in line already |
| `rejected-busy` | `busy` | 429 | no slot is free now and this request may not wait |
| `rejected-hopeless` | `wait_too_long` | 429 | the predicted wait is longer than this request can wait |
| `rejected-too-wide` | `too_many_slots` | 429 | more slots than its class can ever have; `x-should-retry: false` |
| `rejected-draining` | `draining` | 503 | the server takes no one in any more |
| `rejected-unavailable` | `pool_unavailable` | 503 | the shared pool cannot be reached, and `on_outage` is "closed" |
| `evicted-timeout` | `wait_timeout` | 429 | waited as long as it may |
| `evicted-deadline` | `deadline_exceeded` | 429 | its own deadline passed in line; `x-should-retry: false` |
| `evicted-priority` | `displaced` | 429 | pushed out of a full line by a higher class |
| `evicted-fairness` | `displaced` | 429 | pushed out of a full line by a tenant with fewer waiters |
| `evicted-codel` | `shed` | 429 | the line stood for too long, and this request in it |
| `evicted-draining` | `draining` | 503 | waited when the server began to go away |
| `evicted-cancelled` | `cancelled` | 503 | withdrawn on the server's side |

`Retry-After` is in whole seconds, 1 … 60; `retry-after-ms`, which OpenAI's clients prefer, carries the same with its
jitter. `connection: close` is never sent: it loses the answer for a client that is still uploading.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from admission.asgi.body import Message, Send
from admission.errors import Closed, Refusal
from admission.types import Reason

Header = tuple[bytes, bytes]

MAX_RETRY_AFTER = 60.0
"""Seconds. Older SDKs do not come back at all when told a longer time."""

CODES: Mapping[Reason, str] = {
    Reason.QUEUE_FULL: "queue_full",
    Reason.TENANT_FULL: "tenant_queue_full",
    Reason.BUSY: "busy",
    Reason.HOPELESS: "wait_too_long",
    Reason.TOO_WIDE: "too_many_slots",
    Reason.DRAINING: "draining",
    Reason.UNAVAILABLE: "pool_unavailable",
    Reason.TIMEOUT: "wait_timeout",
    Reason.DEADLINE: "deadline_exceeded",
    Reason.PRIORITY: "displaced",
    Reason.FAIRNESS: "displaced",
    Reason.CODEL: "shed",
    Reason.EVICTED_DRAINING: "draining",
    Reason.CANCELLED: "cancelled",
    Reason.DISCONNECT: "cancelled",
}

_NOT_SERVING = frozenset(
    {Reason.DRAINING, Reason.UNAVAILABLE, Reason.EVICTED_DRAINING, Reason.CANCELLED, Reason.DISCONNECT}
)
"""Refusals that say nothing about load."""

_POINTLESS = frozenset({Reason.TOO_WIDE, Reason.DEADLINE})
"""Refusals that would be the same however often the client came back."""

_TITLES: Mapping[str, str] = {
    "queue_full": "The waiting line is full.",
    "tenant_queue_full": "You have too many requests waiting already.",
    "busy": "No slot is free at the moment.",
    "wait_too_long": "The expected wait is longer than this request can wait.",
    "too_many_slots": "This request needs more slots than its class can have.",
    "draining": "The server is shutting down.",
    "pool_unavailable": "The server cannot tell at the moment whether there is room.",
    "wait_timeout": "No slot came free within the time this request may wait.",
    "deadline_exceeded": "The deadline passed while the request was waiting.",
    "displaced": "The request gave way to others in a full waiting line.",
    "shed": "The server is overloaded and dropped the request after it had waited.",
    "cancelled": "The request was withdrawn while it was waiting.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: Sequence[Header]
    body: bytes

    def messages(self, prefix: str = "http.response") -> tuple[Message, Message]:
        """Its two ASGI messages."""
        return (
            {"type": f"{prefix}.start", "status": self.status, "headers": list(self.headers)},
            {"type": f"{prefix}.body", "body": self.body, "more_body": False},
        )

    async def send(self, send: Send, *, prefix: str = "http.response") -> None:
        """Send it."""
        for message in self.messages(prefix):
            await send(message)


class Refusals:
    """Turns a refusal into an `Answer`.

    Args:
        format: "openai", "problem" or "auto" (by the request's `Accept`).
        contended: Status of refusals under load.
        draining: Status of refusals because the server goes away, or cannot reach its shared pool.
        retry_after: Seconds to name when the refusal does not say.
    """

    def __init__(
        self, *, format: str = "auto", contended: int = 429, draining: int = 503, retry_after: float = 5.0
    ) -> None:
        self._format = format
        self._contended = contended
        self._draining = draining
        self._retry_after = retry_after

    def answer(
        self,
        refusal: Refusal,
        request: Iterable[Header] = (),
        *,
        priority: str | None = None,
        ticket: str | None = None,
    ) -> Answer:
        """The response for *refusal*, in the form the *request* headers ask for."""
        reason = refusal.reason
        not_serving = reason in _NOT_SERVING or isinstance(refusal, Closed)
        status = self._draining if not_serving else self._contended
        headers = [(b"x-admission-reason", reason.value.encode()), (b"cache-control", b"no-store")]
        if reason in _POINTLESS:
            headers.append((b"x-should-retry", b"false"))
        else:
            headers += retry_headers(self._retry_after if refusal.retry_after is None else refusal.retry_after)
        if priority is not None:
            headers.append((b"x-queue-class", priority.encode()))
        if ticket is not None:
            headers.append((b"x-queue-ticket", ticket.encode()))
        if self._format == "problem" or (self._format == "auto" and wants_problem(request)):
            kind, body = b"application/problem+json", problem_body(refusal, status)
        else:
            kind, body = b"application/json", openai_body(refusal, status)
        headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        return Answer(status=status, headers=headers, body=body)


def retry_headers(seconds: float) -> list[Header]:
    """`retry-after` and `retry-after-ms` for a time that has its jitter already."""
    seconds = min(max(seconds, 0.05), MAX_RETRY_AFTER)
    return [
        (b"retry-after", str(math.ceil(seconds)).encode()),
        (b"retry-after-ms", str(math.ceil(seconds * 1000)).encode()),
    ]


def error_object(refusal: Refusal, status: int) -> dict[str, Any]:
    """OpenAI's error object."""
    code = CODES[refusal.reason]
    kind = "server_error" if status >= 500 else "rate_limit_error"
    return {"message": _message(refusal, code), "type": kind, "param": None, "code": code}


def openai_body(refusal: Refusal, status: int) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`, from which OpenAI's clients fill `.code` and `.type`."""
    return json.dumps({"error": error_object(refusal, status)}).encode()


def problem_body(refusal: Refusal, status: int) -> bytes:
    """An RFC 9457 problem. `type` is about:blank: the code says what a page could."""
    code = CODES[refusal.reason]
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": _TITLES[code],
        "status": status,
        "detail": _message(refusal, code),
        "code": code,
        "reason": refusal.reason.value,
    }
    if refusal.position is not None:
        problem["position"] = refusal.position
    if refusal.retry_after is not None and refusal.reason not in _POINTLESS:
        problem["retry_after"] = round(refusal.retry_after, 3)
    return json.dumps(problem).encode()


def wants_problem(request: Iterable[Header]) -> bool:
    """True when `Accept` names application/problem+json other than with `q=0`."""
    for name, value in request:
        if name != b"accept":
            continue
        for choice in value[:1024].lower().replace(b" ", b"").split(b","):
            kind, *parameters = choice.split(b";")
            if kind == b"application/problem+json" and not any(p.rstrip(b"0.") == b"q=" for p in parameters):
                return True
    return False


def json_answer(status: int, content: object, headers: Sequence[Header] = ()) -> Answer:
    """*content* as JSON, not to be cached."""
    body = json.dumps(content, allow_nan=False).encode()
    fixed = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    return Answer(status=status, headers=[*fixed, *headers], body=body)


def admitted_headers(*, priority: str, position: int, waited: float, ticket: str | None = None) -> list[Header]:
    """What an admitted response says about its time in line. *waited* is in seconds."""
    milliseconds = f"{waited * 1000:.0f}".encode()
    headers = [
        (b"x-queue-class", priority.encode()),
        (b"x-queue-position", str(position).encode()),
        (b"x-queue-wait-ms", milliseconds),
        # Browsers show this one in their network panel.
        (b"server-timing", b"queue;dur=" + milliseconds),
    ]
    if ticket is not None:
        headers.append((b"x-queue-ticket", ticket.encode()))
    return headers


def _message(refusal: Refusal, code: str) -> str:
    message = _TITLES[code]
    if refusal.position is not None and refusal.position > 0:
        message += f" Position in line: {refusal.position}."
    if refusal.retry_after is not None and refusal.reason not in _POINTLESS:
        message += f" Try again in {math.ceil(min(refusal.retry_after, MAX_RETRY_AFTER))} s."
    return message
