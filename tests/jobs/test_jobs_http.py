"""Jobs over HTTP: enqueued, looked at, cancelled and watched by clients that are trusted with nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from admission import PriorityClass
from admission.backends.redis.site import RedisPool
from admission.errors import Unavailable, UnknownTask
from admission.jobs import BuryKind, JobQueue, JobState
from admission.jobs.asgi import Identity, JobsApp
from tests.jobs.taking import Taker

pytestmark = pytest.mark.anyio

PATIENCE = 30.0

UNKNOWN = "0123456789abcdef01234567"


class Front:
    """A queue, and a client of its HTTP face. `add` may be enqueued, `secret` may not."""

    def __init__(self, site: RedisPool, **options: Any) -> None:
        self.queue = JobQueue(site, max_payload_bytes=2000, **options)

        @self.queue.task
        async def add(left: int, right: int = 1) -> int:
            return left + right

        @self.queue.task
        async def secret() -> None: ...

        self.add = add
        self.app = self.queue.asgi(tasks=["add"])

    def client(self, app: Any = None, **headers: str) -> httpx2.AsyncClient:
        """Somebody out there."""
        transport = httpx2.ASGITransport(app=app or self.app)
        return httpx2.AsyncClient(transport=transport, base_url="http://jobs", headers=headers)

    def by_tenant(self, **options: Any) -> JobsApp:
        """The face of an app that knows its clients by a header, `x-known-tenant`."""

        def identify(scope: MutableMapping[str, Any]) -> Identity | None:
            known = dict(scope["headers"]).get(b"x-known-tenant")
            return None if known is None else Identity(tenant=known.decode(), **options)

        return self.queue.asgi(tasks=["add"], identify=identify)


@pytest.fixture
async def front(queue_site: RedisPool) -> AsyncIterator[Front]:
    """A queue without jobs or workers."""
    front = Front(queue_site)
    async with front.queue:
        yield front


# ---------------------------------------------------------------------- to enqueue


async def test_a_post_enqueues_and_says_where_to_look(front: Front) -> None:
    """202, with the place of the job, its state and its position."""
    async with front.client() as client:
        first = await client.post("/add", json={"left": 1})
        second = await client.post("/add", json={"left": 1, "right": 2})
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json() == {"id": second.json()["id"], "state": "queued", "position": 2}
    assert second.headers["location"] == f"/{second.json()['id']}"
    assert second.headers["cache-control"] == "no-store"
    status = await front.queue.job(second.json()["id"]).status()
    assert (status.task, status.tenant, status.priority) == ("add", "", "normal")


async def test_mounted_in_an_app_its_addresses_begin_with_the_mount(front: Front) -> None:
    """`app.mount("/jobs", jobs.asgi())`: the Location can be followed."""
    app = Starlette(routes=[Mount("/api", routes=[Mount("/jobs", app=front.app)])])
    async with front.client(app) as client:
        posted = await client.post("/api/jobs/add", json={"left": 1})
        assert posted.headers["location"] == f"/api/jobs/{posted.json()['id']}"
        assert (await client.get(posted.headers["location"])).json()["state"] == "queued"


@pytest.mark.parametrize("path", ["/secret", "/nothing", "/", "", "/add/", "//add", "/add/add", "/admission.webhook"])
async def test_what_is_not_named_cannot_be_enqueued(front: Front, path: str) -> None:
    """It looks the same whether there is such a task or not."""
    async with front.client() as client:
        refused = await client.post(path, json={})
    assert refused.status_code == 404
    assert refused.headers["content-type"] == "application/problem+json"
    assert (await front.queue.stats()).queued == 0


async def test_by_default_nothing_can_be_enqueued_from_outside(front: Front) -> None:
    """Only what was registered for it."""

    @front.queue.task(http=True)
    async def shown() -> None: ...

    async with front.client(front.queue.asgi()) as client:
        assert (await client.post("/add", json={"left": 1})).status_code == 404
        assert (await client.post("/shown", json={})).status_code == 202


async def test_a_name_that_is_no_task_is_an_error_at_once(front: Front) -> None:
    """Not when the first client asks."""
    with pytest.raises(UnknownTask, match="'sub': the tasks are add, secret"):
        front.queue.asgi(tasks=["sub"])
    with pytest.raises(ValueError, match="several names"):
        front.queue.asgi(tasks="add")
    with pytest.raises(ValueError, match="max_streams"):
        front.queue.asgi(max_streams=0)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({}, "left"),
        ({"left": "three"}, "left"),
        ({"left": 1, "right": None}, "right"),
        ({"left": 1, "middle": 2}, "middle"),
        ({"left": 1, "self": 2}, "self"),
        ({"left": 1, "tenant": "x", "priority": "critical"}, "tenant"),
        ({"left": 1, "": 2}, ""),
    ],
)
async def test_arguments_that_do_not_fit_are_named(front: Front, arguments: object, argument: str) -> None:
    """422, and nothing was stored. A client sets none of the options of a job."""
    async with front.client() as client:
        refused = await client.post("/add", json=arguments)
    problem = refused.json()
    assert (refused.status_code, problem["argument"]) == (422, argument)
    assert repr(argument) in problem["detail"]
    assert refused.headers["content-type"] == "application/problem+json"
    assert (await front.queue.stats()).queued == 0


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"{", b'{"left": NaN}', b"\x80\x04}\x94.", b"\xff", b"[" * 1900, b'{"a":' * 300]
)
async def test_what_is_no_json_object_is_refused(front: Front, body: bytes) -> None:
    """Whatever bytes come."""
    async with front.client() as client:
        refused = await client.post("/add", content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 422


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_what_a_page_could_send_unasked_is_refused(front: Front, headers: dict[str, str]) -> None:
    """A form or a simple request of another site's page cannot enqueue in its visitor's name."""
    async with front.client() as client:
        refused = await client.post("/add", content=b'{"left": 1}', headers=headers)
    assert refused.status_code == 415


async def test_too_large_a_body_is_refused_with_the_limit(front: Front) -> None:
    """Also one that says nothing of its length; 100 MB are not read to the end."""
    read = 0

    async def upload() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 1_000_000

    async with front.client() as client:
        for content in (b'{"left": ' + b" " * 2000 + b"1}", upload()):
            refused = await client.post("/add", content=content, headers={"content-type": "application/json"})
            assert (refused.status_code, refused.json()["limit"]) == (413, 2000)
            assert "2,000 (max_payload_bytes)" in refused.json()["detail"]
    assert read <= 6
    assert (await front.queue.stats()).queued == 0


async def test_an_upload_that_does_not_end_is_given_up(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """408: who sends a byte a minute holds nothing for ever."""
    monkeypatch.setattr("admission.jobs.asgi.UPLOAD_SECONDS", 0.01)
    sent = await call(front.app, "POST", "/add", [{"type": "http.request", "body": b"{", "more_body": True}])
    assert sent[0]["status"] == 408


async def test_a_client_that_leaves_amid_its_upload_enqueues_nothing(front: Front) -> None:
    """And is answered nothing."""
    messages = [{"type": "http.request", "body": b'{"left": 1}', "more_body": True}, {"type": "http.disconnect"}]
    assert await call(front.app, "POST", "/add", messages) == []
    assert (await front.queue.stats()).queued == 0


async def test_a_full_queue_is_told_with_a_time_to_return(queue_site: RedisPool) -> None:
    """429, as every refusal under load."""
    front = Front(queue_site, max_queue_size=1)
    async with front.queue, front.client() as client:
        assert (await client.post("/add", json={"left": 1})).status_code == 202
        refused = await client.post("/add", json={"left": 1})
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_a_queue_that_stays_full_for_too_long_is_told_the_same(queue_site: RedisPool) -> None:
    """With BLOCK, after its `max_wait`."""
    front = Front(queue_site, max_queue_size=1, backpressure_mode="block", max_wait=0.01)
    async with front.queue, front.client() as client:
        assert (await client.post("/add", json={"left": 1})).status_code == 202
        assert (await client.post("/add", json={"left": 1})).status_code == 429


async def test_an_idempotency_key_enqueues_once(front: Front) -> None:
    """A client that lost the answer asks again, and is given the same job."""
    async with front.client(front.by_tenant()) as client:
        acme, other = ({"x-known-tenant": name, "idempotency-key": "k" * 200} for name in ("acme", "other"))
        first, again, theirs = [
            (await client.post("/add", json={"left": 1}, headers=headers)).json()["id"]
            for headers in (acme, acme, other)
        ]
    assert first == again
    assert theirs != first


@pytest.mark.parametrize("keys", [["a", "b"], [""], ["k" * 256]])
async def test_an_unclear_idempotency_key_is_refused(front: Front, keys: list[str]) -> None:
    """Two, none, or more than there is room for."""
    async with front.client() as client:
        headers = [("content-type", "application/json"), *(("idempotency-key", key) for key in keys)]
        assert (await client.post("/add", content=b'{"left": 1}', headers=headers)).status_code == 400


# ---------------------------------------------------------------------- who asks


async def test_the_app_says_who_asks_and_no_header_does(front: Front) -> None:
    """A client chooses neither its tenant nor its class."""
    claims = {"x-priority": "critical", "priority": "u=0", "x-tenant": "someone-else", "x-known-tenant": "acme"}
    async with front.client(front.by_tenant(priority="low")) as client:
        posted = await client.post("/add", json={"left": 1}, headers=claims)
    status = await front.queue.job(posted.json()["id"]).status()
    assert (status.tenant, status.priority) == ("acme", "low")


async def test_who_asks_may_be_looked_up(front: Front) -> None:
    """`identify` may be async."""

    async def identify(scope: object) -> Identity:
        return Identity(tenant="acme")

    async with front.client(front.queue.asgi(tasks=["add"], identify=identify)) as client:
        posted = await client.post("/add", json={"left": 1})
    assert (await front.queue.job(posted.json()["id"]).status()).tenant == "acme"


async def test_nobody_sees_or_cancels_the_jobs_of_another_tenant(front: Front) -> None:
    """It is answered as if there were no such job."""
    job = await front.add.enqueue(1, tenant="acme")
    async with front.client(front.by_tenant(), **{"x-known-tenant": "other"}) as client:
        answers = [
            await client.get(f"/{job.id}"),
            await client.delete(f"/{job.id}"),
            await client.get(f"/{job.id}/events"),
        ]
        unknown = await client.get(f"/{UNKNOWN}")
    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert answers[0].text.replace(job.id, UNKNOWN) == unknown.text
    assert (await job.status()).state is JobState.QUEUED


async def test_whoever_is_not_known_is_refused_everything(front: Front) -> None:
    """403, also for jobs without a tenant."""
    job = await front.add.enqueue(1)
    async with front.client(front.by_tenant()) as client:
        for method, path in (
            ("POST", "/add"),
            ("GET", f"/{job.id}"),
            ("DELETE", f"/{job.id}"),
            ("GET", f"/{job.id}/events"),
        ):
            assert (await client.request(method, path)).status_code == 403


# ---------------------------------------------------------------------- one job


async def test_a_job_is_shown_through_its_life(front: Front, queue_site: RedisPool) -> None:
    """Queued with its place, running, done with its result."""
    await front.add.enqueue(1)
    job = await front.add.enqueue(2)
    async with front.client() as client, Taker(queue_site) as taker:
        queued = (await client.get(f"/{job.id}")).json()
        assert (queued["state"], queued["position"], queued["attempts"], queued["task"]) == ("queued", 2, 0, "add")
        assert "result" not in queued
        _, taken = await taker.take(count=2)
        running = (await client.get(f"/{job.id}")).json()
        assert (running["state"], running["position"], running["attempts"]) == ("running", None, 1)
        await taker.succeed(taken, "[1.10,12345678901234567890]")
        done = await client.get(f"/{job.id}")
    assert done.text.endswith('"result": [1.10,12345678901234567890]}')
    assert done.json()["state"] == "done"
    assert done.json()["enqueued_at"] <= done.json()["started_at"] <= done.json()["ended_at"]


async def test_the_estimated_wait_is_told_and_the_queue_not_counted_for_everyone(
    front: Front, queue_site: RedisPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the pace at which jobs ended lately; many who ask at once share one count."""
    monkeypatch.setattr("admission.jobs.endings.SHORTEST_SIGHT", 0.0)
    counts = 0
    ask = front.queue.store.ask

    async def counting(op: Any) -> Any:
        nonlocal counts
        counts += op[0] == "stats"
        return await ask(op)

    monkeypatch.setattr(front.queue.store, "ask", counting)
    await front.add.enqueue(1)
    job = await front.add.enqueue(2)
    async with front.client() as client, Taker(queue_site) as taker:
        first = await asyncio.gather(*(client.get(f"/{job.id}") for _ in range(20)))
        assert counts == 1
        assert {answer.json()["estimated_wait"] for answer in first} == {None}
        await taker.succeed(await taker.take_one())
        monkeypatch.setattr("admission.jobs.asgi.COUNT_SECONDS", 0.0)
        assert (await client.get(f"/{job.id}")).json()["estimated_wait"] is not None


async def test_a_failure_is_shown_without_its_traceback(front: Front, queue_site: RedisPool) -> None:
    """What it raised, not where."""
    job = await front.add.enqueue(1)
    async with front.client() as client, Taker(queue_site) as taker:
        await taker.bury(await taker.take_one(), BuryKind.TIMEOUT, "TaskTimeout: too long")
        dead = await client.get(f"/{job.id}")
    assert (dead.json()["state"], dead.json()["kind"], dead.json()["error"]) == (
        "dead",
        "timeout",
        "TaskTimeout: too long",
    )
    assert "Traceback" not in dead.text


async def test_head_is_get_without_a_body(front: Front) -> None:
    """With the same headers."""
    job = await front.add.enqueue(1)
    async with front.client() as client:
        head, got = await client.head(f"/{job.id}"), await client.get(f"/{job.id}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"] == "application/json"
    assert head.headers["cache-control"] == "no-store"


async def test_delete_cancels_what_has_not_ended(front: Front, queue_site: RedisPool) -> None:
    """Queued: gone. Running: its worker is told. Ended: 409. Unknown: 404."""
    first, second = await front.add.enqueue(1), await front.add.enqueue(2)
    async with front.client() as client, Taker(queue_site) as taker:
        assert (await client.delete(f"/{first.id}")).status_code == 204
        assert (await client.delete(f"/{first.id}")).status_code == 404
        taken = await taker.take_one()
        told = await client.delete(f"/{second.id}")
        assert (told.status_code, told.json()) == (202, {"id": second.id, "state": "running"})
        await taker.succeed(taken)
        assert (await client.delete(f"/{second.id}")).status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/add", "POST, OPTIONS"),
        ("POST", f"/{UNKNOWN}", "GET, HEAD, DELETE, OPTIONS"),
        ("PUT", f"/{UNKNOWN}", "GET, HEAD, DELETE, OPTIONS"),
        ("DELETE", f"/{UNKNOWN}/events", "GET, OPTIONS"),
    ],
)
async def test_other_methods_are_told_which_there_are(front: Front, method: str, path: str, allowed: str) -> None:
    """405 with Allow; OPTIONS asks for it."""
    async with front.client() as client:
        refused, asked = await client.request(method, path), await client.options(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert (asked.status_code, asked.headers["allow"]) == (204, allowed)


async def test_a_server_that_does_not_answer_is_503(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a time to return, and never a stack trace."""

    async def gone(*_: object) -> None:
        raise Unavailable("the server of the jobs gave no answer")

    monkeypatch.setattr(front.queue.store, "ask", gone)
    monkeypatch.setattr(front.queue.store, "ask_all", gone)
    monkeypatch.setattr(front.queue, "enqueue", gone)
    async with front.client() as client:
        for answer in (
            await client.post("/add", json={"left": 1}),
            await client.get(f"/{UNKNOWN}"),
            await client.delete(f"/{UNKNOWN}"),
            await client.get(f"/{UNKNOWN}/events"),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.headers["content-type"] == "application/problem+json"


async def test_a_websocket_is_closed_and_a_lifespan_is_empty(front: Front) -> None:
    """It may stand at the top of a server, too."""
    assert await call(front.app, "", "", [{"type": "websocket.connect"}], kind="websocket") == [
        {"type": "websocket.close", "code": 1000}
    ]
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = await call(front.app, "", "", messages, kind="lifespan")
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_classes_of_other_names_are_shown_by_theirs(queue_site: RedisPool) -> None:
    """As everywhere else."""
    front = Front(queue_site, classes=[PriorityClass(name="now"), PriorityClass(name="soon")])
    async with front.queue, front.client() as client:
        posted = await client.post("/add", json={"left": 1})
        assert (await client.get(posted.headers["location"])).json()["priority"] == "now"


# ---------------------------------------------------------------------- events


class Watch:
    """A client that reads the events of a job.

    async with Watch(app, path) as watch:
        name, data = await watch.next()
    """

    def __init__(self, app: Callable[..., Awaitable[None]], path: str) -> None:
        self.status = 0
        self._app = app
        self._path = path
        self._events: asyncio.Queue[str | None] = asyncio.Queue()
        self._leaves = asyncio.Event()

    async def __aenter__(self) -> Watch:
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leaves.set()
        async with asyncio.timeout(PATIENCE):
            await self._running

    async def _run(self) -> None:
        scope = {"type": "http", "method": "GET", "path": self._path, "headers": [], "root_path": ""}
        await self._app(scope, self._receive, self._send)
        self._events.put_nowait(None)

    async def _receive(self) -> dict[str, Any]:
        await self._leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["body"]:
            self._events.put_nowait(message["body"].decode())

    async def text(self) -> str | None:
        """What is sent next; None at the end."""
        async with asyncio.timeout(PATIENCE):
            return await self._events.get()

    async def next(self) -> tuple[str, Any]:
        """The next event and its data."""
        text = await self.text()
        assert text is not None
        event, data, *rest = text.split("\n")
        assert rest == ["", ""]
        return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def watched(front: Front, **options: Any) -> JobsApp:
    """A face that looks often."""
    return JobsApp(front.queue, **{"poll": 0.01, **options})


async def test_events_tell_every_place_in_line_and_the_end(front: Front, queue_site: RedisPool) -> None:
    """queued 2, queued 1, started, done; then the stream ends."""
    await front.add.enqueue(1)
    job = await front.add.enqueue(2)
    async with Taker(queue_site) as taker, Watch(watched(front), f"/{job.id}/events") as watch:
        assert await watch.next() == ("queued", {"position": 2})
        await taker.take_one()
        assert await watch.next() == ("queued", {"position": 1})
        taken = await taker.take_one()
        event, data = await watch.next()
        assert (event, data["attempt"]) == ("started", 1)
        await taker.succeed(taken, "3")
        event, data = await watch.next()
        assert (event, data["state"], data["result"]) == ("done", "done", 3)
        assert await watch.text() is None
    assert watch.status == 200


async def test_a_job_that_has_ended_is_told_at_once(front: Front, queue_site: RedisPool) -> None:
    """Started and dead, with the error; a watcher that comes late misses nothing that matters."""
    job = await front.add.enqueue(1)
    async with Taker(queue_site) as taker:
        await taker.bury(await taker.take_one(), error="ValueError: no")
    async with Watch(watched(front), f"/{job.id}/events") as watch:
        assert (await watch.next())[0] == "started"
        event, data = await watch.next()
        assert (event, data["error"]) == ("dead", "ValueError: no")
        assert await watch.text() is None


async def test_a_delayed_job_is_told_as_such(front: Front) -> None:
    """With the time when it is due."""
    job = await front.add.with_options(delay=3600).enqueue(1)
    async with Watch(watched(front), f"/{job.id}/events") as watch:
        event, data = await watch.next()
        assert event == "delayed"
        assert data["due_at"] > 1e9


async def test_a_cancelled_job_is_told_as_such(front: Front) -> None:
    """Nothing is kept of it, and the stream ends."""
    job = await front.add.enqueue(1)
    async with Watch(watched(front), f"/{job.id}/events") as watch:
        assert (await watch.next())[0] == "queued"
        await job.cancel()
        assert await watch.next() == ("cancelled", {"id": job.id})
        assert await watch.text() is None


async def test_a_silent_stream_says_that_it_is_there(front: Front) -> None:
    """By comments, which no client takes for an event."""
    job = await front.add.enqueue(1)
    async with Watch(watched(front, keep_alive=0.01), f"/{job.id}/events") as watch:
        assert (await watch.next())[0] == "queued"
        assert await watch.text() == ": still here\n\n"
        assert await watch.text() == ": still here\n\n"


async def test_a_stream_ends_when_its_client_leaves(front: Front) -> None:
    """At once; its place is free for another one."""
    job = await front.add.enqueue(1)
    app = watched(front, max_streams=1, poll=1.0)
    for _ in range(3):
        async with Watch(app, f"/{job.id}/events") as watch:
            assert (await watch.next())[0] == "queued"


async def test_a_client_that_reads_no_more_is_cut_off(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold its place for ever."""
    monkeypatch.setattr("admission.jobs.stream.STALL", 0.01)
    job = await front.add.enqueue(1)

    async def full(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    watch = Watch(watched(front), f"/{job.id}/events")
    monkeypatch.setattr(watch, "_send", full)
    async with watch:
        assert await watch.text() is None


async def test_there_are_only_so_many_streams(front: Front) -> None:
    """One more is refused with 503 and a time to return."""
    job = await front.add.enqueue(1)
    app = watched(front, max_streams=1)
    async with Watch(app, f"/{job.id}/events") as watch, front.client(app) as client:
        assert (await watch.next())[0] == "queued"
        refused = await client.get(f"/{job.id}/events")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


async def test_a_stream_outlives_an_outage_of_the_server(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing new, and goes on."""
    job = await front.add.enqueue(1)
    async with Watch(watched(front, keep_alive=0.01), f"/{job.id}/events") as watch:
        assert (await watch.next())[0] == "queued"
        with monkeypatch.context() as outage:

            async def gone(*_: object) -> None:
                raise Unavailable("no answer")

            outage.setattr(front.queue.store, "ask", gone)
            assert await watch.text() == ": still here\n\n"
        await job.cancel()
        while (text := await watch.text()) == ": still here\n\n":
            pass
        assert text is not None
        assert text.startswith("event: cancelled\n")


# ---------------------------------------------------------------------- by hand


async def call(
    app: Callable[..., Awaitable[None]],
    method: str,
    path: str,
    messages: list[dict[str, Any]],
    *,
    kind: str = "http",
) -> list[MutableMapping[str, Any]]:
    """What an app sends to a client that sends *messages*, and then nothing."""
    sent: list[MutableMapping[str, Any]] = []
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        for message in left:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": kind, "method": method, "path": path, "root_path": "", "headers": headers}
    async with asyncio.timeout(PATIENCE):
        await app(scope, receive, send)
    return sent
