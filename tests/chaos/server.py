"""One server process: uvicorn, the middleware, a controller whose pool is in Redis, and work that notes itself down.

`python -m tests.chaos.server NUMBER JOURNAL URL …` says its port on standard output and ends, politely, when its
standard input is closed: so it never outlives whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import uvicorn

from admission import AdmissionController, PriorityClass, QoSAdmission, current_ticket
from admission.asgi.body import Receive, Send
from admission.backends.redis import RedisPool
from admission.backends.redis.backend import RedisBackend
from tests.chaos.broken import BROKEN, VARIABLE
from tests.chaos.journal import Journal, Kind

POOL = "chaos"

BLOCK = "/block"
"""The path of a request that needs no permit, and blocks the event loop for so many milliseconds."""

MAX_WAIT = 1.0
"""Seconds in line at most, in every class."""

CLASSES = (
    PriorityClass(name="critical"),
    PriorityClass(name="normal", guaranteed=0.2),
    PriorityClass(name="low", guaranteed=0.05, max_delay=1.0),
)


class Work:
    """The app: each request works for as long as its query says, in milliseconds."""

    def __init__(self, number: int, journal: Journal, controller: AdmissionController, alone: set[str]) -> None:
        self._number = number
        self._journal = journal
        self._controller = controller
        self._alone = alone

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["path"] == BLOCK:
            # On purpose: the loop of a server that computes.
            time.sleep(int(scope["query_string"]) / 1000)  # noqa: ASYNC251
            await _answer(send, b"done")
            return
        ticket = current_ticket()
        assert ticket is not None, "the middleware let a request in without a permit"
        self._journal.write(self._number, Kind.BEGIN, ticket.id, alone=ticket.id in self._alone)
        try:
            await asyncio.sleep(int(scope["query_string"]) / 1000)
        finally:
            self._journal.write(self._number, Kind.END, ticket.id)
            self._alone.discard(ticket.id)
        await _answer(send, b"done")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._controller:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def note_what_is_done_alone(number: int, journal: Journal) -> set[str]:
    """Write down when this process goes alone, and back; the ids of the tickets it lets in by itself meanwhile."""
    alone: set[str] = set()
    follow, go_alone, rejoin = RedisBackend._follow, RedisBackend._go_alone, RedisBackend._rejoin

    def following(backend: RedisBackend, claim: Any, now: float) -> None:
        follow(backend, claim, now)
        if claim.entry.state.name == "RUNNING":
            alone.add(claim.id)

    def going_alone(backend: RedisBackend, now: float) -> None:
        journal.write(number, Kind.CUT_OFF)
        go_alone(backend, now)

    def rejoining(backend: RedisBackend, now: float) -> None:
        journal.write(number, Kind.REJOINED)
        rejoin(backend, now)

    RedisBackend._follow = following  # type: ignore[method-assign]
    RedisBackend._go_alone = going_alone  # type: ignore[method-assign]
    RedisBackend._rejoin = rejoining  # type: ignore[method-assign]
    return alone


def main() -> None:
    """Serve until standard input is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("number", type=int)
    parser.add_argument("journal", type=Path)
    parser.add_argument("url")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--lease", type=float, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--on-outage", required=True)
    parser.add_argument("--loop", default="asyncio")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    journal = Journal(options.journal)
    alone = note_what_is_done_alone(options.number, journal)
    if os.environ.get(VARIABLE):
        BROKEN[os.environ[VARIABLE]]()
    site = RedisPool(
        options.url,
        namespace=options.namespace,
        lease=options.lease,
        timeout=options.timeout,
        on_outage=options.on_outage,
    )
    controller = AdmissionController(
        backend=site,
        name=POOL,
        max_concurrency=options.limit,
        max_queue_size=3 * options.limit,
        max_wait=MAX_WAIT,
        classes=CLASSES,
    )
    app = QoSAdmission(
        Work(options.number, journal, controller, alone),
        controller=controller,
        trust_headers=True,
        exempt_paths=(BLOCK,),
        drain_on_signal=False,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app, loop=options.loop, lifespan="on", access_log=False, log_config=None, timeout_graceful_shutdown=5
        )
    )
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
        print(listener.getsockname()[1], flush=True)
        server.run(sockets=[listener])


def _end_with_input(server: uvicorn.Server) -> None:
    while sys.stdin.buffer.read(1):
        pass
    server.should_exit = True


if __name__ == "__main__":
    main()
