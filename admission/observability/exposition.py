"""The metrics over HTTP: an ASGI app to mount, or a server on a port of its own.

    app.mount("/metrics", metrics_app(collector))
    start_metrics_server(9090, collector, also=[jobs_collector])

Both read pools only on the pools' own event loop and start sampling its lag. Needs the extra `metrics`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, make_asgi_app, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from admission.observability.lag import on_trio
from admission.observability.prometheus import PoolCollector


def metrics_app(
    collector: PoolCollector, *, also: Iterable[Collector] = (), registry: CollectorRegistry | None = None
) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """An ASGI app that answers every path with the metrics; mount it, or serve it on a port of its own.

    It reads the pools on the event loop it runs on, which is theirs, and starts sampling that loop's lag.

    Args:
        collector: What to show.
        also: Further collectors, such as a `JobsCollector`.
        registry: A registry whose metrics are shown as well, such as `prometheus_client.REGISTRY`.
    """
    answer = make_asgi_app(_joined([collector, *also], registry))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _empty_lifespan(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close"})

    return app


class MetricsServer:
    """A running metrics server; `close()` it once."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening. Takes up to half a second."""
        self._server.shutdown()
        self._server.server_close()


def start_metrics_server(
    port: int,
    collector: PoolCollector,
    *,
    host: str = "127.0.0.1",
    also: Iterable[Collector] = (),
    registry: CollectorRegistry | None = None,
) -> MetricsServer:
    """Serve the metrics on a port of their own, from a thread.

    Call it on the event loop of the pools: every scrape crosses over to it, so that no pool is read while it
    changes. A loop that is blocked for longer than five seconds makes the scrape fail.

    Args:
        port: 0 takes any free one.
        collector: What to show.
        host: Address to listen on; metrics tell much, so only this machine by default.
        also: Further collectors that are read on this event loop, such as a `JobsCollector`.
        registry: A registry whose metrics are shown as well.

    Raises:
        OSError: The port is taken.
        RuntimeError: No event loop is running here.
    """
    collector.lag.start()
    call = _caller_of_this_loop()
    crossing = [_OnLoop(each, call) for each in (collector, *also)]
    server, _ = start_http_server(port, host, registry=_joined(crossing, registry))
    return MetricsServer(server)


class _OnLoop(Collector):
    """A collector that is read on its event loop, whichever thread asks."""

    def __init__(self, inner: Collector, call: Callable[[Callable[[], list[Metric]]], list[Metric]]) -> None:
        self._inner = inner
        self._call = call

    def collect(self) -> Iterable[Metric]:
        return self._call(lambda: list(self._inner.collect()))


def _caller_of_this_loop() -> Callable[[Callable[[], list[Metric]]], list[Metric]]:
    if on_trio():
        import trio

        token = trio.lowlevel.current_trio_token()
        return lambda work: trio.from_thread.run_sync(work, trio_token=token)
    loop = asyncio.get_running_loop()

    def call(work: Callable[[], list[Metric]]) -> list[Metric]:
        answer: Future[list[Metric]] = Future()

        def run() -> None:
            try:
                answer.set_result(work())
            except Exception as error:  # Told to the thread that asked.
                answer.set_exception(error)

        loop.call_soon_threadsafe(run)
        return answer.result(timeout=5.0)

    return call


def _joined(collectors: Iterable[Collector], registry: CollectorRegistry | None) -> CollectorRegistry:
    joined = CollectorRegistry()
    for collector in collectors:
        joined.register(collector)
    if registry is not None:
        joined.register(registry)
    return joined


async def _empty_lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
