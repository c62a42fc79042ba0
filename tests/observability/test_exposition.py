"""The metrics over HTTP: mounted in an app, and on a port of their own."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import httpx2
import pytest
from anyio import to_thread
from pools import POOL, FakePool
from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from admission.observability.exposition import metrics_app, start_metrics_server
from admission.observability.prometheus import PoolCollector
from admission.types import Snapshot

pytestmark = pytest.mark.anyio


class ThreadBoundPool:
    """A pool that may be read by the thread it was made in, and by no other."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()

    def snapshot(self) -> Snapshot:
        assert threading.get_ident() == self._owner, "read from a foreign thread"
        return POOL


async def get(app: Any, path: str = "/", **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of one answer, straight from the app."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": raw}, receive, send)
    start, *rest = sent
    answered = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], answered, b"".join(message["body"] for message in rest).decode()


async def test_the_app_answers_with_the_metrics() -> None:
    """Any path will do: the app is meant to be mounted."""
    status, headers, text = await get(metrics_app(PoolCollector(FakePool())), "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert 'admission_queue_size{pool="default",priority="all"} 5.0' in text


async def test_a_scraper_that_asks_for_openmetrics_gets_it() -> None:
    """Prometheus does."""
    _, headers, text = await get(
        metrics_app(PoolCollector(FakePool())), accept="application/openmetrics-text; version=1.0.0"
    )
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_another_registry_is_shown_as_well() -> None:
    """The app's own metrics need no second port."""
    registry = CollectorRegistry()
    Counter("answers", "Answers to everything.", registry=registry).inc(42)
    _, _, text = await get(metrics_app(PoolCollector(FakePool()), registry=registry))
    assert "answers_total 42.0" in text
    assert "admission_queue_size" in text


def test_the_app_can_be_mounted_or_served_alone() -> None:
    """It speaks lifespan, so servers do not complain, and works below a path."""
    app = metrics_app(PoolCollector(FakePool()))
    with TestClient(app) as alone:
        assert alone.get("/").status_code == 200
    with TestClient(Starlette(routes=[Mount("/metrics", app)])) as mounted:
        assert "admission_queue_size" in mounted.get("/metrics/").text


async def test_a_websocket_is_closed() -> None:
    """Nothing else is spoken here, and no exception reaches the server's log."""
    sent = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, str]) -> None:
        sent.append(message)

    await metrics_app(PoolCollector(FakePool()))({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


@pytest.mark.servers
async def test_the_server_reads_pools_on_their_own_loop() -> None:
    """The server has a thread of its own, but a pool is only read where it lives; on asyncio and on trio."""
    collector = PoolCollector(ThreadBoundPool())
    server = start_metrics_server(0, collector)
    try:
        with anyio.fail_after(30):
            response = await to_thread.run_sync(httpx2.get, f"http://127.0.0.1:{server.port}/metrics")
        assert 'admission_limit_slots{pool="default"} 8.0' in response.text
    finally:
        await to_thread.run_sync(server.close)
        collector.lag.stop()


@pytest.mark.servers
async def test_a_pool_that_fails_fails_the_scrape_and_nothing_else() -> None:
    """The scraper sees a 500; the next scrape works again."""

    class Flaky:
        seen: Snapshot | None = None

        def snapshot(self) -> Snapshot:
            if self.seen is None:
                raise RuntimeError("not yet")
            return self.seen

    pool = Flaky()
    collector = PoolCollector(pool)
    server = start_metrics_server(0, collector)
    url = f"http://127.0.0.1:{server.port}/metrics"
    try:
        with anyio.fail_after(30):
            assert (await to_thread.run_sync(httpx2.get, url)).status_code == 500
            pool.seen = POOL
            assert (await to_thread.run_sync(httpx2.get, url)).status_code == 200
    finally:
        await to_thread.run_sync(server.close)
        collector.lag.stop()
