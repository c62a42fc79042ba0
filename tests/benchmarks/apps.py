"""The app that is served, bare and behind every contender.

`APPS` maps a contender's name to what builds it. Builders import what they need themselves: litellm takes ten seconds,
and a peer that is not installed, or not for this Python, must not keep the others from running.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tests.benchmarks.builds import OURS, PURE
from tests.benchmarks.traffic import KEYS, TIERS, key_digest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WORK_SECONDS = 0.005
"""What the app of the contended benchmark takes."""
WORKERS = 8
"""Its limit."""
ROOM = 100_000
"""A line or a limit that is never reached."""

PHYSICAL_PATH = "/physical-limit"

OURS_WITHOUT_FIELDS = "admission, without response headers"


async def instant(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"11")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"ok":true}'})


async def working(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after 5 ms of asynchronous work; on one path, with how often that can be done in a second."""
    global _worked, _pieces
    if scope["path"] == PHYSICAL_PATH:
        body = str(await _physical_limit(float(scope["query_string"]))).encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    begun = time.perf_counter()
    await asyncio.sleep(WORK_SECONDS)
    _worked += time.perf_counter() - begun
    _pieces += 1
    await instant(scope, receive, send)


_worked = 0.0
_pieces = 0


def work_done() -> float:
    """Seconds of work done so far in this process, all slots together."""
    return _worked


def pieces_done() -> int:
    """How many pieces that were."""
    return _pieces


async def _physical_limit(seconds: float) -> float:
    """Pieces of work a second when each worker begins the next one the moment the last is done."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    done = 0

    async def worker() -> None:
        nonlocal done
        while loop.time() < begun + seconds:
            await asyncio.sleep(WORK_SECONDS)
            done += 1

    await asyncio.gather(*(worker() for _ in range(WORKERS)))
    return done / (loop.time() - begun)


def nothing(app: App, limit: int, queue: int) -> App:
    """What any middleware costs."""

    async def passed_on(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return passed_on


def admission(app: App, limit: int, queue: int, *, response_headers: bool = True) -> App:
    """`QoSAdmission` with everything on: key → tenant → tier, response headers, a registered metrics collector."""
    from prometheus_client import CollectorRegistry

    from admission import AdmissionController
    from admission.asgi import QoSAdmission, Tenant
    from admission.observability.prometheus import PoolCollector

    tenants = [
        Tenant(name=f"tenant-{number}", tier=TIERS[number % len(TIERS)], keys=[key_digest(key)])
        for number, key in enumerate(KEYS)
    ]
    controller = AdmissionController(max_concurrency=limit, max_queue_size=queue, max_wait=30.0)
    CollectorRegistry().register(PoolCollector(controller, tenants=20))
    return QoSAdmission(
        app, controller=controller, tenants=tenants, response_headers=response_headers, drain_on_signal=False
    )


def without_fields(app: App, limit: int, queue: int) -> App:
    """The same with `response_headers=False`."""
    return admission(app, limit, queue, response_headers=False)


def semaphore(app: App, limit: int, queue: int) -> App:
    """An `asyncio.Semaphore` around the app: no bound, no classes, no answer to whoever waits too long."""
    slots = asyncio.Semaphore(limit)

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        async with slots:
            await app(scope, receive, send)

    return limited


def litellm(app: App, limit: int, queue: int) -> App:
    """The admission control of LiteLLM's proxy: a semaphore, a bound, a timeout and three Prometheus series."""
    from litellm.proxy.middleware.admission_control_middleware import (
        AdmissionControlMiddleware,
        AdmissionControlSettings,
        admission_control_state,
    )

    settings = AdmissionControlSettings(
        max_in_flight_requests=limit, max_queued_requests=queue, queue_timeout_seconds=30.0
    )
    wrapped: App = AdmissionControlMiddleware(app, get_settings=lambda: settings, state=admission_control_state)
    return wrapped


def concurrency_limiter(app: App, limit: int, queue: int) -> App:
    """The decorator of fastapi-concurrency-limiter, straight on the app, without FastAPI's own cost."""
    from fastapi_concurrency_limiter import Limiter, Resource

    slots = Resource(limit)
    wrapped = Limiter(timeout=30.0, resources=[slots]).resources([slots])(app)
    # It can be called with any arguments, so uvicorn would take it for an app factory.
    return nothing(wrapped, limit, queue)


def slowapi(app: App, limit: int, queue: int) -> App:
    """slowapi's pure ASGI middleware with one limit in memory: a rate limiter, which cannot make anyone wait."""
    from slowapi import Limiter
    from slowapi.middleware import SlowAPIASGIMiddleware
    from slowapi.util import get_remote_address
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def endpoint(request: Request) -> Response:
        raise AssertionError("only found, never called")

    # It looks the route up in the Starlette app it is in, so there has to be one.
    found = Starlette(routes=[Route("/v1/chat/completions", endpoint, methods=["GET", "POST"])])
    found.state.limiter = Limiter(key_func=get_remote_address, default_limits=["1000000000/minute"])
    middleware = SlowAPIASGIMiddleware(app)

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = found
        await middleware(scope, receive, send)

    return limited


def four_fields(app: App, limit: int, queue: int) -> App:
    """The app, if it sent the fields itself that `QoSAdmission` adds: what the server takes for writing them."""
    fields = [
        (b"x-queue-class", b"high"),
        (b"x-queue-position", b"0"),
        (b"x-queue-wait-ms", b"0"),
        (b"server-timing", b"queue;dur=0"),
    ]

    async def with_fields(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"11"), *fields]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"ok":true}'})

    return with_fields


def bare(app: App, limit: int, queue: int) -> App:
    """The app as it is."""
    return app


Build = Callable[[App, int, int], App]

APPS: dict[str, Build] = {
    "bare": bare,
    "bare, again": bare,
    "bare, with our 4 header fields": four_fields,
    OURS: admission,
    PURE: admission,
    OURS_WITHOUT_FIELDS: without_fields,
    "asyncio.Semaphore": semaphore,
    "LiteLLM": litellm,
    "fastapi-concurrency-limiter": concurrency_limiter,
    "slowapi": slowapi,
    "uvicorn --limit-concurrency": bare,
}
"""By name: what puts the contender around an app, given its limit and the length of its line."""
