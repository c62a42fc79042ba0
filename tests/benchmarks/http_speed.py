"""What a request costs: on a real server under load, and more precisely in this process."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.benchmarks.apps import APPS, ROOM, App, Message, Scope, admission, four_fields, instant, nothing, semaphore
from tests.benchmarks.contenders import Server, serving
from tests.benchmarks.load import Generator, generator
from tests.benchmarks.measure import (
    cpu_microseconds,
    event_loops,
    interleaved,
    lower_quartile,
    paired_ratio,
    run,
)
from tests.benchmarks.report import Report
from tests.benchmarks.traffic import BODY, CURL, OPENAI, fresh_scope, raw_request

CONNECTIONS = 64
LIMIT = 1024
"""More than there are connections: nobody waits."""


@dataclass(frozen=True, slots=True)
class Burst:
    """One burst of load on one server."""

    cpu: float
    """Microseconds of the server's CPU time for each request."""
    rate: float
    """Responses per second."""


def measure_http(report: Report) -> None:
    """Every contender on uvicorn, under load over the loopback interface."""
    plan = report.plan
    with generator() as (loader, load):
        report.begin("http", f"uvicorn (uvloop, httptools), one process; load by {loader}, {CONNECTIONS} connections")
        with serving(report, list(APPS), limit=LIMIT, queue=ROOM) as servers:
            seconds = plan.scaled(2, 1)
            bursts = interleaved(
                {name: partial(_burst, name, server, load, seconds) for name, server in servers.items()},
                plan.scaled(plan.rounds, 1),
                warm_up=plan.scaled(1, 0),
            )
    _tell_http(report, bursts)


def _burst(name: str, server: Server, load: Generator, seconds: float) -> Burst:
    before = server.cpu_seconds()
    found = load(server.port, CONNECTIONS, seconds)
    used = server.cpu_seconds() - before
    if found.refused or not found.answers:
        raise RuntimeError(f"{name} failed {found.refused} of {found.answers} requests, though there was room for all")
    return Burst(used / found.answers * 1e6, found.rate)


def _tell_http(report: Report, bursts: dict[str, list[Burst]]) -> None:
    cpu = {name: [burst.cpu for burst in found] for name, found in bursts.items()}
    rate = {name: [burst.rate for burst in found] for name, found in bursts.items()}
    base = lower_quartile(cpu["bare"])
    rows = []
    for name in bursts:
        used = lower_quartile(cpu[name])
        throughput = paired_ratio(rate[name], rate["bare"])
        rows.append((name, used, used - base, base / used, statistics.median(rate[name]), throughput))
    columns = ("contender", "CPU µs", "added µs", "efficiency", "requests/s", "÷ bare")
    report.table("server CPU per request (lower quartile), throughput (median)", columns, rows)
    report.note("'bare, again' is the same app in a second process: how far it is from 1.00 is the noise of this run.")
    ours = lower_quartile(cpu["admission"])
    report.at_least("http: CPU efficiency, bare ÷ wrapped", base / ours, 0.95)
    report.at_most("http: CPU added to a request", ours - base, 1.0, "µs")


# ---------------------------------------------------------------------- in this process


def measure_in_process(report: Report) -> None:
    """The app called directly, and uvicorn's protocol fed without sockets: the same figures with far less noise."""
    report.begin("http-inprocess", "no sockets; every contender in turns, µs of this process's CPU time")
    # Many short rounds: some of them fall between what else the machine does.
    count, rounds = report.plan.scaled(1000, 100), report.plan.scaled(8, 2) * report.plan.rounds
    factory = list(event_loops().values())[-1]
    apps = {
        "bare": instant,
        "bare, with our 4 header fields": four_fields(instant, LIMIT, ROOM),
        "middleware that does nothing": nothing(instant),
        "asyncio.Semaphore": semaphore(instant, LIMIT, ROOM),
        "admission": admission(instant, LIMIT, ROOM),
        "admission, without response headers": admission(instant, LIMIT, ROOM, response_headers=False),
    }
    kinds: dict[str, Callable[[App], float]] = {
        "called directly, GET, fields as curl's": lambda app: run(factory, _call(app, count, CURL)),
        "called directly, POST, fields as openai's": lambda app: run(factory, _call(app, count, OPENAI, "POST")),
    }
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: F401
    except ImportError as error:
        report.missing("uvicorn's protocol without sockets", str(error))
    else:
        kinds["through uvicorn, GET, fields as curl's"] = lambda app: run(factory, _feed(app, count, CURL))
        kinds["through uvicorn, POST, fields as openai's"] = lambda app: run(factory, _feed(app, count, OPENAI, "POST"))
    for kind, measure in kinds.items():
        found = interleaved({name: partial(measure, app) for name, app in apps.items()}, rounds)
        used = {name: lower_quartile(values) for name, values in found.items()}
        base, ours = used["bare"], used["admission"]
        report.table(kind, ("contender", "µs", "added µs"), [(name, t, t - base) for name, t in used.items()])
        if kind.startswith("through uvicorn, GET"):
            report.at_most("http-inprocess: CPU added to a request", ours - base, 1.0, "µs")


async def _call(app: App, count: int, fields: Any, method: str = "GET") -> float:
    scopes = [fresh_scope(number, fields, method) for number in range(count)]

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        pass

    async def serve(scopes: Sequence[Scope]) -> None:
        for scope in scopes:
            await app(scope, receive, send)

    await serve([fresh_scope(number, fields, method) for number in range(100)])
    return await cpu_microseconds(serve(scopes), count)


@dataclass
class FakeTransport:
    """What uvicorn's protocol wants of a transport; tells when an answer is complete."""

    answered: asyncio.Future[None]
    info: dict[str, Any] = field(
        default_factory=lambda: {"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 80)}
    )

    def write(self, data: bytes) -> None:
        """Headers and body are one write each, and the end of the body is the end of the answer."""
        if data.endswith(b'{"ok":true}'):
            self.answered.set_result(None)

    def get_extra_info(self, name: str) -> Any:
        """Addresses; no socket, no TLS."""
        return self.info.get(name)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def pause_reading(self) -> None:
        """Does nothing."""

    def resume_reading(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


async def _feed(app: App, count: int, fields: Any, method: str = "GET") -> float:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import ServerState

    config = uvicorn.Config(
        app, http="httptools", interface="asgi3", lifespan="off", access_log=False, log_level="error"
    )
    config.load()
    loop = asyncio.get_running_loop()
    transport = FakeTransport(loop.create_future())
    protocol = HttpToolsProtocol(config, ServerState(), {})
    protocol.connection_made(transport)  # type: ignore[arg-type]
    body = BODY if method == "POST" else b""
    requests = [raw_request(number, fields, method, body) for number in range(100)]

    async def serve(number: int) -> None:
        for done in range(number):
            transport.answered = loop.create_future()
            protocol.data_received(requests[done % 100])
            await transport.answered

    await serve(100)
    used = await cpu_microseconds(serve(count), count)
    protocol.connection_lost(None)
    return used
