"""`QoSAdmission` on a shared pool, in several apps of one process: requests through httpx2, and clients that leave.

`test_web.py` has real servers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import pytest

from admission import AdmissionController, QoSAdmission
from admission.backends.redis import RedisPool
from admission.types import Reason
from tests.asgi.scripted import Gate, Visitor, hello
from tests.controller.test_contract import Make, is_empty, peace, until
from tests.redis.proxy import Proxy
from tests.redis.test_backend import make

__all__ = ["make"]

pytestmark = pytest.mark.anyio

HERE: dict[str, Any] = {"client": ("127.0.0.1", 5), "headers": {"host": "localhost:8000"}}


def client_of(app: Any) -> httpx2.AsyncClient:
    """Asks *app*, without a network between them."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost")


async def test_the_limit_holds_over_all_processes(make: Make) -> None:
    """Forty requests to two apps: at most three inside, and everyone is answered."""
    controllers = [make(3, 0) for _ in range(2)]
    inside = most = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await anyio.lowlevel.checkpoint()
        inside -= 1
        await hello(scope, receive, send)

    apps = [QoSAdmission(app, controller=controller) for controller in controllers]
    statuses: list[int] = []

    async def ask(number: int) -> None:
        async with client_of(apps[number % 2]) as client:
            answer = await (client.get("/") if number % 3 else client.post("/", content=b"x" * 100))
        statuses.append(answer.status_code)

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(ask, number)
    assert statuses == [200] * 40
    assert most <= 3
    for controller in controllers:
        await is_empty(controller)


async def test_a_full_line_is_refused_with_a_body_that_says_so(make: Make) -> None:
    """The line is full of another process's requests."""
    here, there = make(1, 1), make(1, 1)
    gate = Gate()
    app, other = QoSAdmission(gate, controller=here), QoSAdmission(gate, controller=there)
    visitors = [Visitor(), Visitor()]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(visitors[0].call, other)
        await until(lambda: gate.inside)
        tasks.start_soon(visitors[1].call, other)
        await until(lambda: [ticket.position for ticket in there.tickets()] == [1])
        async with client_of(app) as client:
            answer = await client.get("/")
        gate.open()
    assert answer.status_code == 429
    assert answer.headers["x-admission-reason"] == Reason.QUEUE_FULL.value
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["error"]["code"] == "queue_full"
    assert [visitor.status for visitor in visitors] == [200, 200]
    assert visitors[1].headers["x-queue-position"] == "1"
    await is_empty(here)


async def test_a_client_that_leaves_while_it_waits_leaves_the_line(make: Make) -> None:
    """Its slot goes to the next, in another process; its request never runs."""
    here, there = make(1, 5), make(1, 5)
    gate = Gate()
    app, other = QoSAdmission(gate, controller=here), QoSAdmission(gate, controller=there)
    runs, leaves, stays = Visitor(path="/runs"), Visitor(path="/leaves"), Visitor(path="/stays")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runs.call, app)
        await until(lambda: gate.inside)
        tasks.start_soon(leaves.call, app)
        await until(lambda: [ticket.position for ticket in here.tickets()] == [1])
        tasks.start_soon(stays.call, other)
        await until(lambda: [ticket.position for ticket in there.tickets()] == [2])
        leaves.leave()
        await until(lambda: leaves.returned)
        await peace(here, there)
        assert there.queued == 1
        gate.open()
    assert gate.served == ["/runs", "/stays"]
    assert leaves.status is None
    assert here.snapshot().of("normal").evicted == {Reason.DISCONNECT: 1}
    await is_empty(there)


@pytest.mark.parametrize("turns", range(0, 12, 2))
async def test_a_client_that_leaves_at_once_holds_no_slot(make: Make, turns: int) -> None:
    """While the pool is asked, or in the instant it answers."""
    controller = make(1, 5)
    app = QoSAdmission(hello, controller=controller)
    async with anyio.create_task_group() as tasks:
        leaves = Visitor()
        tasks.start_soon(leaves.call, app)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        leaves.leave()
    stays = Visitor()
    await stays.call(app)
    assert stays.status == 200
    await is_empty(controller)


async def test_a_request_that_is_cancelled_holds_no_slot(make: Make) -> None:
    """By the server, while it waits and while it runs."""
    here, there = make(1, 5), make(1, 5)
    gate = Gate()
    app, other = QoSAdmission(gate, controller=here), QoSAdmission(hello, controller=there)
    for waiting in (True, False):
        async with anyio.create_task_group() as tasks:
            for _ in range(1 + waiting):
                tasks.start_soon(Visitor().call, app)
            await until(lambda: gate.inside and len(here.tickets()) == int(waiting))  # noqa: B023
            tasks.cancel_scope.cancel()
        visitor = Visitor()
        await visitor.call(other)
        assert visitor.status == 200
        await is_empty(there)


async def test_status_and_tickets_are_those_of_all_processes(make: Make) -> None:
    """The page of one app shows both, and finds a ticket that waits in the other."""
    here, there = make(1, 5), make(1, 5)
    gate = Gate()
    app, other = QoSAdmission(gate, controller=here), QoSAdmission(gate, controller=there)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Visitor().call, app)
        await until(lambda: gate.inside)
        tasks.start_soon(Visitor().call, other)
        await until(lambda: [ticket.position for ticket in there.tickets()] == [1])
        page = Visitor(path="/-/admission/status", **HERE)
        await page.call(app)
        shown = json.loads(page.answer)["pool"]
        assert (shown["in_flight"], shown["queued"]) == (1, 1)
        assert sorted((each["slots"], each["waiting"]) for each in shown["processes"]) == [(0, 1), (1, 0)]
        ticket = Visitor(path=f"/-/admission/tickets/{there.tickets()[0].id}", **HERE)
        await ticket.call(app)
        assert json.loads(ticket.answer)["position"] == 1
        gate.open()
    await is_empty(here)


async def test_the_middleware_opens_its_pool_and_leaves_it_at_shutdown(any_redis_url: str, namespace: str) -> None:
    """With `redis=` alone; and again when it is served again."""
    app = QoSAdmission(hello, redis=any_redis_url, redis_namespace=namespace, max_concurrency=2)
    for _ in range(2):
        started = anyio.Event()
        leave = anyio.Event()

        async def receive(started: anyio.Event = started, leave: anyio.Event = leave) -> dict[str, str]:
            if not started.is_set():
                return {"type": "lifespan.startup"}
            await leave.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: dict[str, str], started: anyio.Event = started) -> None:
            started.set()

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive())["type"] == "lifespan.startup"
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"

        app.app = inner
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, {"type": "lifespan"}, receive, send)
            await started.wait()
            app.app = hello
            async with client_of(app) as client:
                assert (await client.get("/")).status_code == 200
            assert app.controller.snapshot().link is not None
            leave.set()
        assert app.controller.snapshot().link is None


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """Between an app and the server."""
    with Proxy(int(redis_url.rpartition(":")[2])) as proxy:
        yield proxy


async def test_an_outage_is_answered_as_it_is_configured(proxy: Proxy, namespace: str) -> None:
    """Closed: 503, with a body that says why. Degraded: the app's share goes on."""
    for on_outage, status in (("closed", 503), ("degrade", 200)):
        pool = RedisPool(proxy.url, namespace=namespace, lease=3.0, timeout=0.3, on_outage=on_outage)  # type: ignore[arg-type]
        controller = AdmissionController(backend=pool, max_concurrency=1, name=on_outage)
        app = QoSAdmission(hello, controller=controller)
        async with client_of(app) as client:
            assert (await client.get("/")).status_code == 200
            proxy.hold()
            answer = await client.get("/")
            assert answer.status_code == status
            if status == 503:
                assert answer.json()["error"]["code"] == "pool_unavailable"
                assert answer.headers["x-admission-reason"] == Reason.UNAVAILABLE.value
                assert int(answer.headers["retry-after"]) >= 1
            proxy.let_go()
            await until(lambda: controller.snapshot().link.state == "closed")  # type: ignore[union-attr]  # noqa: B023
            assert (await client.get("/")).status_code == 200
        await is_empty(controller)
        await controller.aclose()
