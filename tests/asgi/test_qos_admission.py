"""The middleware between a server and an app: who gets in, what is told, and when the slot comes back."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import nullcontext

import anyio
import pytest
from scripted import Gate, Visitor, guarded, hello, settle

from admission.asgi import Classification, QoSAdmission, Tenant
from admission.asgi.desk import MARK
from admission.controller import AdmissionController
from admission.permit import current_permit, current_ticket
from admission.types import Outcome

pytestmark = pytest.mark.anyio


async def test_an_idle_pool_lets_a_request_through_and_says_so() -> None:
    """Position 0, no wait, the app's own headers untouched."""
    visitor = Visitor()
    await visitor.call(guarded(hello))
    assert visitor.status == 200
    assert visitor.answer == b"hello"
    assert visitor.headers == {
        "x-app": "yes",
        "x-queue-class": "normal",
        "x-queue-position": "0",
        "x-queue-wait-ms": "0",
        "server-timing": "queue;dur=0",
    }


async def test_response_headers_can_be_turned_off() -> None:
    """Then the response is the app's alone."""
    visitor = Visitor()
    await visitor.call(guarded(hello, response_headers=False))
    assert visitor.headers == {"x-app": "yes"}


async def test_an_apps_own_message_is_not_written_to() -> None:
    """Apps may send one and the same message for every request."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"yes")]}

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await send(start)
        await send({"type": "http.response.body", "body": b""})

    pool = guarded(app)
    for _ in range(2):
        await Visitor().call(pool)
    assert start["headers"] == [(b"x-app", b"yes")]


async def test_four_streams_at_limit_one_never_run_two_at_once() -> None:
    """The slot is held until the app returns, not until the response starts or its last byte is out."""
    running, most = 0, 0

    async def streams(scope, receive, send):  # type: ignore[no-untyped-def]
        nonlocal running, most
        running += 1
        most = max(most, running)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(5):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await anyio.lowlevel.checkpoint()
        await send({"type": "http.response.body", "body": b""})
        await anyio.lowlevel.checkpoint()  # Background tasks and trailers belong to the request as well.
        running -= 1

    pool = guarded(streams)
    visitors = [Visitor() for _ in range(4)]
    async with anyio.create_task_group() as group:
        for visitor in visitors:
            group.start_soon(visitor.call, pool)
    assert most == 1
    assert [visitor.answer for visitor in visitors] == [b"xxxxx"] * 4


async def test_release_on_last_byte_frees_the_slot_before_background_work() -> None:
    """The option for apps whose background tasks need no model."""
    gate = anyio.Event()

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await hello(scope, receive, send)
        await gate.wait()

    for release_on, in_flight in (("return", 1), ("last_byte", 0)):
        pool = guarded(app, release_on=release_on)
        async with anyio.create_task_group() as group:
            group.start_soon(Visitor().call, pool)
            await settle()
            assert pool.controller.in_flight == in_flight
            group.cancel_scope.cancel()


async def test_an_app_that_raises_gives_its_slot_back() -> None:
    """And its exception comes out as it was."""

    async def fails(scope, receive, send):  # type: ignore[no-untyped-def]
        raise KeyError("mine")

    pool = guarded(fails)
    for visitor in (Visitor(), Visitor("HEAD"), Visitor("POST", body=[b"a", b"b"])):
        with pytest.raises(KeyError, match="mine"):
            await visitor.call(pool)
        assert pool.controller.in_flight == 0


async def test_a_cancelled_request_gives_its_slot_or_place_back() -> None:
    """Servers cancel; neither a running nor a waiting request may leave anything behind."""
    pool = guarded(Gate())
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, pool)
        await settle()
        group.start_soon(Visitor().call, pool)
        await settle()
        assert (pool.controller.in_flight, pool.controller.queued) == (1, 1)
        group.cancel_scope.cancel()
    assert (pool.controller.in_flight, pool.controller.queued) == (0, 0)


async def test_a_full_line_refuses_with_everything_a_client_needs() -> None:
    """429, when to come back, and why, in the shape OpenAI's clients read."""
    gate = Gate()
    pool = guarded(gate, max_queue_size=1)
    refused = Visitor(headers={"x-priority": "low"})
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(Visitor().call, pool)
            await settle()
        await refused.call(pool)
        gate.open()
    assert refused.status == 429
    assert refused.headers["x-admission-reason"] == "rejected-queue-full"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert int(refused.headers["retry-after-ms"]) <= 60_000
    assert "connection" not in refused.headers
    assert "x-should-retry" not in refused.headers
    assert b'"code": "queue_full"' in refused.answer


async def test_block_mode_lets_callers_wait_for_room() -> None:
    """A full line then refuses nobody; the lobby holds them."""
    gate = Gate()
    pool = guarded(gate, max_queue_size=1, mode="block")
    visitors = [Visitor() for _ in range(5)]
    async with anyio.create_task_group() as group:
        for visitor in visitors:
            group.start_soon(visitor.call, pool)
            await settle()
        assert pool.controller.snapshot().lobby == 3
        gate.open()
    assert [visitor.status for visitor in visitors] == [200] * 5


async def test_shadow_mode_lets_everyone_in_and_counts() -> None:
    """What would have been refused is told in a header and in the pool's numbers."""
    gate = Gate()
    pool = guarded(gate, max_queue_size=1, mode="shadow")
    visitors = [Visitor("POST", body=[b"x"]) for _ in range(3)]
    async with anyio.create_task_group() as group:
        for visitor in visitors:
            group.start_soon(visitor.call, pool)
            await settle()
        assert gate.inside == 3
        gate.open()
    said = [visitor.headers["x-admission-shadow"] for visitor in visitors]
    assert said == ["admitted", "queued", "rejected-queue-full"]
    assert [visitor.status for visitor in visitors] == [200] * 3
    seen = pool.controller.snapshot().of("normal")
    assert dict(seen.rejected) == {"rejected-queue-full": 1}
    assert (pool.controller.in_flight, pool.controller.queued) == (0, 0)


@pytest.mark.parametrize("path", ["/health", "/healthz", "/livez", "/readyz", "/ping", "/metrics", "/metrics/"])
async def test_health_checks_do_not_wait(path: str) -> None:
    """They would tell an orchestrator to kill a server for being busy."""
    gate = Gate()

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await (hello if scope["path"] == path else gate)(scope, receive, send)

    pool = guarded(app, max_queue_size=1)
    async with anyio.create_task_group() as group:
        group.start_soon(Visitor().call, pool)
        await settle()
        visitor = Visitor(path=path)
        await visitor.call(pool)
        gate.open()
    assert visitor.answer == b"hello"
    assert visitor.headers == {"x-app": "yes"}


@pytest.mark.parametrize(
    ("path", "root_path", "exempt"),
    [
        ("/health", "", True),
        ("/api/health", "/api", True),
        ("//health", "", False),
        ("/health/", "", False),
        ("/health/../v1", "", False),
        ("/v1/../health", "", False),
        ("/x/health", "", False),
        ("/apihealth", "/api", False),
        ("/Health", "", False),
        ("/health%2f", "", False),
    ],
)
async def test_no_spelling_slips_through_as_exempt(path: str, root_path: str, exempt: bool) -> None:
    """Only the exact path, as the app's routes see it."""
    visitor = Visitor(path=path, root_path=root_path)
    await visitor.call(guarded(hello))
    assert ("x-queue-class" not in visitor.headers) is exempt


async def test_a_mount_does_not_lend_its_exemption() -> None:
    """An exempt path of the outer app is not exempt below a mount, and a mounted middleware sees its own paths."""
    outer = Visitor(path="/models/health")
    await outer.call(guarded(hello))
    assert "x-queue-class" in outer.headers
    mounted = Visitor(path="/models/health", root_path="/models")
    await mounted.call(guarded(hello))
    assert "x-queue-class" not in mounted.headers


async def test_a_cors_preflight_does_not_wait() -> None:
    """OPTIONS is exempt by default, and not when the option says otherwise."""
    preflight = Visitor("OPTIONS", "/v1/chat/completions", {"origin": "https://example.org"})
    await preflight.call(guarded(hello))
    assert "x-queue-class" not in preflight.headers
    counted = Visitor("OPTIONS")
    await counted.call(guarded(hello, exempt_methods=()))
    assert "x-queue-class" in counted.headers


async def test_two_middlewares_of_one_pool_take_one_slot() -> None:
    """At limit 1 a second slot would never come."""
    controller = AdmissionController(max_concurrency=1)
    pool = QoSAdmission(QoSAdmission(hello, controller=controller), controller=controller)
    for visitor in (Visitor(), Visitor("POST", body=[b"a", b"b"])):
        await visitor.call(pool)
        assert visitor.status == 200
    assert controller.snapshot().of("normal").granted == 2


async def test_two_pools_take_a_slot_each() -> None:
    """One for the server, one for a model behind it."""
    inner = guarded(hello, name="model")
    outer = guarded(inner, name="server")
    visitor = Visitor()
    await visitor.call(outer)
    assert visitor.status == 200
    assert inner.controller.snapshot().of("normal").granted == outer.controller.snapshot().of("normal").granted == 1


async def test_a_scope_that_is_served_again_takes_a_slot_again() -> None:
    """A mark left by a request that is over counts for nothing."""
    pool = guarded(hello)
    visitor = Visitor()
    await visitor.call(pool)
    assert MARK in visitor.scope
    await visitor.call(pool)
    assert pool.controller.snapshot().of("normal").granted == 2


async def test_a_request_begun_in_anothers_context_takes_its_own_slot() -> None:
    """Servers start a pipelined request in the context of the one before it: a chain of them must not ride for free."""
    most = 0

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        nonlocal most
        most = max(most, pool.controller.in_flight)
        if scope["path"] == "/first":
            await Visitor(path="/second").call(pool)
        await hello(scope, receive, send)

    pool = guarded(app, max_concurrency=2)
    await Visitor(path="/first").call(pool)
    assert most == 2


async def test_the_app_sees_its_ticket() -> None:
    """Class, tenant and the permit are there for whatever runs inside."""
    seen = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        ticket, permit = current_ticket(), current_permit("default")
        assert ticket is not None
        assert permit is not None
        permit.release(actual_cost=17)
        seen.append((ticket.priority, ticket.tenant, ticket.running))
        await hello(scope, receive, send)

    key = hashlib.sha256(b"sk-1").hexdigest()
    pool = guarded(app, tenants=[Tenant(name="acme", tier="pro", keys=[key])])
    await Visitor(headers={"authorization": "Bearer sk-1"}).call(pool)
    assert seen == [("high", "acme", True)]
    assert pool.controller.in_flight == 0


async def test_your_own_callable_has_the_last_word() -> None:
    """Sync or async, it may raise what no header may."""

    def by_path(scope):  # type: ignore[no-untyped-def]
        return Classification(priority="critical", tenant="vip", cost=3) if scope["path"] == "/vip" else None

    async def slowly(scope):  # type: ignore[no-untyped-def]
        await anyio.lowlevel.checkpoint()
        return by_path(scope)

    for classify in (by_path, slowly):
        pool = guarded(hello, classify=classify)
        for path, name in (("/vip", "critical"), ("/", "normal")):
            visitor = Visitor(path=path)
            await visitor.call(pool)
            assert visitor.headers["x-queue-class"] == name


@pytest.mark.parametrize("how", ["raises", "unknown class"])
async def test_a_faulty_callable_costs_nobody_the_request(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is counted, and logged when it raised; the other rules decide."""

    def classify(scope):  # type: ignore[no-untyped-def]
        if how == "raises":
            raise ZeroDivisionError
        return Classification(priority="vip")

    pool = guarded(hello, classify=classify)
    visitor = Visitor()
    await visitor.call(pool)
    assert visitor.headers["x-queue-class"] == "normal"
    assert (pool.counts.classify_failed, pool.counts.unknown_class) == ((1, 0) if how == "raises" else (0, 1))


async def test_an_executor_behind_the_app_that_is_full_becomes_a_refusal() -> None:
    """A refusal the app does not catch is answered like one from here, and not with a 500."""
    model = AdmissionController(max_concurrency=1, name="model")

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        model.acquire_nowait()
        async with model.admit(max_wait=0):
            await hello(scope, receive, send)

    visitor = Visitor()
    await visitor.call(guarded(app))
    assert visitor.status == 429
    assert visitor.headers["x-admission-reason"] == "rejected-busy"


async def test_a_refusal_after_the_response_has_begun_is_the_apps_error() -> None:
    """There is never a second response start."""
    model = AdmissionController(max_concurrency=1, name="model")

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        model.acquire_nowait()
        model.acquire_nowait()

    visitor = Visitor()
    with pytest.raises(Exception, match="no free slot"):
        await visitor.call(guarded(app))
    assert len(visitor.sent) == 1


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        (200, None, Outcome.SUCCESS),
        (404, None, Outcome.SUCCESS),
        (503, None, Outcome.DROPPED),
        (200, TimeoutError(), Outcome.DROPPED),
        (200, KeyError(), Outcome.IGNORED),
    ],
)
async def test_the_limit_learns_how_it_went(status: int, error: Exception | None, outcome: Outcome) -> None:
    """Overload shrinks it, a fault of the app teaches nothing."""

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await send({"type": "http.response.start", "status": status, "headers": []})
        if error is not None:
            raise error
        await send({"type": "http.response.body", "body": b""})

    pool = guarded(app)
    with pytest.raises(type(error)) if error is not None else nullcontext():
        await Visitor().call(pool)
    released = pool.controller.snapshot().of("normal").released
    assert {how for how, many in released.items() if many} == {outcome}


async def test_cancel_on_disconnect_ends_work_nobody_waits_for() -> None:
    """By default the app only hears of it; with the option it is cancelled."""
    gate = Gate()
    pool = guarded(gate, cancel_on_disconnect=True)
    visitor = Visitor("POST", body=[b"x"])
    async with anyio.create_task_group() as group:
        group.start_soon(visitor.call, pool)
        await settle()
        assert gate.inside == 1
        visitor.leave()
        await settle()
        assert gate.inside == 0
        assert visitor.returned
    assert pool.controller.in_flight == 0


async def test_cancel_on_disconnect_spares_background_work() -> None:
    """Servers also report a disconnect when the response is complete; what runs then is wanted."""
    finished = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await hello(scope, receive, send)
        visitor.leave()
        await settle()
        finished.append(True)

    pool = guarded(app, cancel_on_disconnect=True)
    visitor = Visitor()
    await visitor.call(pool)
    assert finished == [True]


async def test_unknown_scopes_pass_through_untouched() -> None:
    """What this does not know, it leaves alone."""
    seen = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        seen.append((scope, receive, send))

    scope: dict[str, object] = {"type": "carrier-pigeon"}
    await guarded(app)(scope, hello, settle)  # type: ignore[arg-type]
    assert seen == [(scope, hello, settle)]
    assert scope == {"type": "carrier-pigeon"}


async def test_lifespan_passes_and_its_end_drains_the_pool() -> None:
    """The app starts and stops as without us; served again afterwards, it has a new pool."""
    events = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        if scope["type"] != "lifespan":
            await hello(scope, receive, send)
            return
        for _ in range(2):
            events.append((await receive())["type"])
            await send({"type": events[-1] + ".complete"})

    pool = guarded(app)
    first = pool.controller
    visitor = Visitor(type="lifespan")
    visitor.incoming.clear()
    visitor.incoming.extend([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    await visitor.call(pool)
    assert events == ["lifespan.startup", "lifespan.shutdown"]
    assert first.draining
    again = Visitor()
    await again.call(pool)
    assert again.status == 200


async def test_a_controller_of_your_own_outlives_the_app() -> None:
    """It may serve other apps and executors; the lifespan of one does not close it."""
    controller = AdmissionController()

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await receive()

    visitor = Visitor(type="lifespan")
    visitor.incoming.clear()
    visitor.incoming.append({"type": "lifespan.shutdown"})
    await visitor.call(QoSAdmission(app, controller=controller))
    assert not controller.draining


async def test_draining_answers_the_line_with_503() -> None:
    """Whoever waits is sent away at once, whoever runs finishes, newcomers are told to go elsewhere."""
    gate = Gate()
    pool = guarded(gate)
    running, waiting, late = Visitor(), Visitor("POST", body=[b"x"]), Visitor()
    async with anyio.create_task_group() as group:
        group.start_soon(running.call, pool)
        await settle()
        group.start_soon(waiting.call, pool)
        await settle()
        pool.controller.start_draining()
        await settle()
        assert waiting.status == 503
        assert waiting.headers["x-admission-reason"] == "evicted-draining"
        await late.call(pool)
        assert late.status == 503
        assert late.headers["x-admission-reason"] == "rejected-draining"
        gate.open()
    assert running.status == 200


async def test_a_client_retry_is_counted() -> None:
    """So that a retry storm shows."""
    pool = guarded(hello)
    for count in ("0", "1", "2"):
        await Visitor(headers={"x-stainless-retry-count": count}).call(pool)
    assert pool.counts.client_retry == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "maybe"}, "mode is 'maybe'"),
        ({"refusal_status": 200}, "refusal_status is 200.*at least 400"),
        ({"stall_timeout": 0}, "stall_timeout is 0"),
        ({"exempt_paths": ["health"]}, "'health'"),
        ({"status_token": ""}, "status_token"),
        ({"max_concurrency": 0}, "0"),
        ({"controller": AdmissionController(), "max_queue_size": 3}, "max_queue_size was given along with controller"),
    ],
)
async def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    """With its value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        QoSAdmission(hello, **options)  # type: ignore[arg-type]


async def test_an_unknown_option_is_named() -> None:
    """A typo does not pass for a setting."""
    with pytest.raises(TypeError, match="max_queu_size"):
        QoSAdmission(hello, max_queu_size=3)  # type: ignore[call-arg]


async def test_without_arguments_the_environment_configures(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `vllm serve --middleware admission.QoSAdmission` needs it."""
    monkeypatch.setenv("ADMISSION_MAX_CONCURRENCY", "3")
    monkeypatch.setenv("ADMISSION_TRUST_HEADERS", "true")
    pool = QoSAdmission(hello)
    assert pool.controller.snapshot().limit == 3
    visitor = Visitor(headers={"x-priority": "critical"})
    await visitor.call(pool)
    assert visitor.headers["x-queue-class"] == "critical"


def test_each_event_loop_may_have_its_turn() -> None:
    """Test clients run every request on a loop of its own."""
    pool = guarded(hello)
    for method in ("GET", "HEAD", "POST"):
        visitor = None

        async def one(method: str = method) -> Visitor:
            visitor = Visitor(method)
            await visitor.call(pool)
            return visitor

        visitor = asyncio.run(one())
        assert visitor.status == 200
