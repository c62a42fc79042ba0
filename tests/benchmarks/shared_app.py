"""A process of the scenario of shared capacity: a web app, a worker of the same pool, or both in one.

    python -m tests.benchmarks.shared_app web|worker|both URL NAMESPACE LIMIT GUARANTEED

It says `{"port": …}` on its standard output once it is ready, with 0 for a worker, and ends when its standard input is
closed, so it never outlives whoever started it. All is as a user would write it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from admission import AdmissionController, Priority, PriorityClass, QoSAdmission, RedisPool
from admission.jobs import JobQueue, Task, Worker
from admission.types import DEFAULT_CLASSES
from tests.benchmarks.measure import event_loops, run

POOL = "default"

PLACES = 100
"""Jobs a worker may have at once: many more than there are slots, so that the pool alone decides."""

PARTS = ("web", "worker", "both")


def classes_with(guaranteed: float) -> tuple[PriorityClass, ...]:
    """The classes everybody has, but for what is guaranteed to `low`."""
    return tuple(replace(each, guaranteed=guaranteed) if each.name == "low" else each for each in DEFAULT_CLASSES)


def queue_at(url: str, namespace: str, guaranteed: float) -> tuple[JobQueue, Task[[float], Coroutine[Any, Any, None]]]:
    """The queue of jobs, and its task: to wait for so many seconds."""
    jobs = JobQueue(RedisPool(url, namespace=namespace), pool=POOL, classes=classes_with(guaranteed))

    @jobs.task(priority=Priority.LOW)
    async def background(seconds: float) -> None:
        await asyncio.sleep(seconds)

    return jobs, background


async def online(request: Request) -> PlainTextResponse:
    """What a client waits for: so many seconds of work that is done elsewhere, as by a model."""
    await asyncio.sleep(float(request.query_params["seconds"]))
    return PlainTextResponse("done")


def web_app(jobs: JobQueue, limit: int, *, with_worker: bool) -> Starlette:
    """The web app; *with_worker*: it works off jobs, too."""
    controller = AdmissionController(
        backend=jobs.site, name=POOL, classes=jobs.classes, max_concurrency=limit, max_queue_size=0
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with controller:
            if not with_worker:
                yield
                return
            async with jobs, Worker(jobs, workers=PLACES, controller=controller):
                yield

    return Starlette(
        routes=[Route("/online", online)],
        middleware=[Middleware(QoSAdmission, controller=controller)],
        lifespan=lifespan,
    )


def serve(app: Starlette) -> None:
    """Serve until standard input is closed."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
        # The clients decide which connections are kept: one that is closed just when it is used again is an error.
        timeout_keep_alive=600,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        when_input_ends(partial(setattr, server, "should_exit", True))
        say(listener.getsockname()[1])
        server.run(sockets=[listener])


async def work(jobs: JobQueue) -> None:
    """Work off jobs until standard input is closed."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    when_input_ends(partial(loop.call_soon_threadsafe, stop.set))
    async with jobs, Worker(jobs, workers=PLACES):
        say(0)
        await stop.wait()


def when_input_ends(callback: Callable[[], object]) -> None:
    """Call that, in a thread, when the parent wants this process to end or is gone."""

    def listen() -> None:
        sys.stdin.read()
        callback()

    threading.Thread(target=listen, daemon=True).start()


def say(port: int) -> None:
    """One line of JSON."""
    print(json.dumps({"port": port}), flush=True)


def main() -> None:
    """Be one part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("url")
    parser.add_argument("namespace")
    parser.add_argument("limit", type=int)
    parser.add_argument("guaranteed", type=float)
    options = parser.parse_args()
    jobs, _ = queue_at(options.url, options.namespace, options.guaranteed)
    if options.part == "worker":
        run(list(event_loops().values())[-1], work(jobs))
    else:
        serve(web_app(jobs, options.limit, with_worker=options.part == "both"))


if __name__ == "__main__":
    main()
