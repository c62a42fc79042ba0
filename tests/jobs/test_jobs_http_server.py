"""Jobs over HTTP through a real server, with a real worker."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from admission.jobs.asgi import JobsApp
from tests.jobs.workshop import Gate, Shop, shop, until

__all__ = ["shop"]

pytestmark = [pytest.mark.anyio, pytest.mark.servers]

PATIENCE = 30.0


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of *app*, which uvicorn serves on this event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=5))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            async with asyncio.timeout(PATIENCE), httpx2.AsyncClient(base_url=url, timeout=PATIENCE) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


async def test_a_job_is_enqueued_watched_and_fetched(shop: Shop) -> None:
    """202, queued, started, done, and the result."""
    gate = Gate()

    @shop.queue.task(http=True)
    async def double(number: int) -> int:
        await gate.pass_through()
        return 2 * number

    app = Starlette(routes=[Mount("/jobs", app=shop.queue.asgi())])
    async with served(app) as client:
        posted = await client.post("/jobs/double", json={"number": 21})
        assert (posted.status_code, posted.json()["position"]) == (202, 1)
        events: list[tuple[str, Any]] = []
        async with client.stream("GET", posted.headers["location"] + "/events") as stream:
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
            lines = stream.aiter_lines()
            async with shop.worker():
                async for line in lines:
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        events.append((name, json.loads(line.removeprefix("data: "))))
                        if name == "started":
                            gate.open()
        assert [name for name, _ in events] == ["queued", "started", "done"]
        assert events[-1][1]["result"] == 42
        assert (await client.get(posted.headers["location"])).json()["result"] == 42


async def test_a_watcher_that_goes_away_frees_its_place(shop: Shop) -> None:
    """The server tells the app, which stops looking."""

    @shop.queue.task(http=True)
    async def nothing() -> None: ...

    app = JobsApp(shop.queue)
    job = await nothing.enqueue()
    async with served(app) as client:
        async with client.stream("GET", f"/{job.id}/events") as stream:
            assert await anext(stream.aiter_lines()) == "event: queued"
            assert app._streams == 1
        await until(lambda: app._streams == 0)


async def test_who_uploads_too_much_hears_so(shop: Shop) -> None:
    """The answer is not lost with the connection."""

    @shop.queue.task(http=True)
    async def nothing() -> None: ...

    async with served(shop.queue.asgi()) as client:
        headers = {"content-type": "application/json"}
        refused = await client.post("/nothing", content=b" " * 3_000_000, headers=headers)
    assert (refused.status_code, refused.json()["limit"]) == (413, 1024 * 1024)
