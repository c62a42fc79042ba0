"""What a request costs: on a real server under load, and more precisely in this process."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from tests.benchmarks.apps import (
    OURS_WITHOUT_FIELDS,
    ROOM,
    App,
    Build,
    Message,
    Scope,
    admission,
    bare,
    four_fields,
    instant,
    nothing,
    semaphore,
    without_fields,
)
from tests.benchmarks.builds import OURS, PURE, twins
from tests.benchmarks.contenders import Server, contenders, serving
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
FIELDS = "bare, with our 4 header fields"
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
        with serving(report, contenders(report), limit=LIMIT, queue=ROOM) as servers:
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
    report.note(
        f"uvicorn matches every response header field against two regular expressions: '{FIELDS}' is what our four "
        "cost in any app that sends them."
    )
    ours, fields = lower_quartile(cpu[OURS]), lower_quartile(cpu[FIELDS])
    report.at_least("http: CPU efficiency, bare ÷ wrapped", base / ours, 0.95)
    report.at_least("http: CPU efficiency, bare with our 4 header fields ÷ wrapped", fields / ours, 0.95)
    without = lower_quartile(cpu[OURS_WITHOUT_FIELDS])
    report.at_least("http: CPU efficiency, bare ÷ wrapped without response headers", base / without, 0.95)
    report.at_most("http: CPU added to a request", ours - base, 1.0, "µs")
    if PURE in cpu:
        report.at_least("http: CPU efficiency, bare ÷ wrapped, pure Python", base / lower_quartile(cpu[PURE]), 0.95)


# ---------------------------------------------------------------------- in this process


def measure_in_process(report: Report) -> None:
    """The app called directly, and uvicorn's protocol fed without sockets: the same figures with far less noise."""
    report.begin("http-inprocess", "no sockets; every contender in turns, µs of its process's CPU time")
    # Many short rounds: some of them fall between what else the machine does.
    count, rounds = report.plan.scaled(1000, 100), report.plan.scaled(8, 2) * report.plan.rounds
    kinds = list(KINDS)
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: F401
    except ImportError as error:
        report.missing("uvicorn's protocol without sockets", str(error))
        kinds = [kind for kind in kinds if not kind.startswith("through uvicorn")]
    with twins(report.plan.compiled) as by_name:
        ours = by_name[OURS]
        apps = [(name, ours) for name in IN_PROCESS]
        apps += [(name, by_name[name]) for name in (PURE,) if name in by_name]
        for kind in kinds:
            found = interleaved(
                {name: partial(twin.call, one_request, kind, name, count) for name, twin in apps}, rounds
            )
            used = {name: lower_quartile(values) for name, values in found.items()}
            base = used["bare"]
            report.table(kind, ("contender", "µs", "added µs"), [(name, t, t - base) for name, t in used.items()])
            if kind.startswith("through uvicorn, GET"):
                report.at_most("http-inprocess: CPU added to a request", used[OURS] - base, 1.0, "µs")
                report.at_most("http-inprocess: the same beyond our 4 fields", used[OURS] - used[FIELDS], 1.0, "µs")


def one_request(kind: str, name: str, count: int) -> float:
    """Microseconds of CPU time for one of *count* requests to the app called *name*."""
    return run(list(event_loops().values())[-1], KINDS[kind](_app(name), count))


@cache
def _app(name: str) -> App:
    return IN_PROCESS[OURS if name == PURE else name](instant, LIMIT, ROOM)


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


IN_PROCESS: dict[str, Build] = {
    "bare": bare,
    FIELDS: four_fields,
    "middleware that does nothing": nothing,
    "asyncio.Semaphore": semaphore,
    OURS: admission,
    OURS_WITHOUT_FIELDS: without_fields,
}

KINDS: dict[str, Callable[[App, int], Coroutine[object, object, float]]] = {
    "called directly, GET, fields as curl's": lambda app, count: _call(app, count, CURL),
    "called directly, POST, fields as openai's": lambda app, count: _call(app, count, OPENAI, "POST"),
    "through uvicorn, GET, fields as curl's": lambda app, count: _feed(app, count, CURL),
    "through uvicorn, POST, fields as openai's": lambda app, count: _feed(app, count, OPENAI, "POST"),
}
