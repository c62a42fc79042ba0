"""Webhooks: who may be called, how a call is signed, and what becomes of a job's end."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from admission import PermanentError, Retry
from admission.jobs import BuryKind, JobState
from admission.jobs.webhook import (
    HEADER,
    MOST_READ,
    RETRY,
    BadSignature,
    Ending,
    WebhookRefused,
    Webhooks,
    sign,
    verify,
)
from tests.jobs.workshop import Shop, shop

__all__ = ["shop"]

SECRET = "a secret of enough bytes"
NOW = 1_790_000_000
PATIENCE = 30.0

HOSTS = ("hooks.example.com", "*.acme.com", "127.0.0.1", "localhost")


def webhooks(answer: Callable[[httpx2.Request], Any] | None = None, **options: Any) -> Webhooks:
    """Those of a queue that may call `HOSTS`; *answer* is the world outside."""
    transport = None if answer is None else httpx2.MockTransport(answer)
    return Webhooks(**{"secret": SECRET, "hosts": HOSTS, "transport": transport, **options})


def reply(status: int, body: bytes = b"", **headers: str) -> httpx2.Response:
    """An answer whose body is still to be read, as one that came over a network."""
    return httpx2.Response(status, stream=httpx2.ByteStream(body), headers=headers)


# ---------------------------------------------------------------------- signatures


def test_a_signature_is_the_hmac_of_time_and_body() -> None:
    """So that receivers in any language can check it."""
    right = hmac.new(SECRET.encode(), b"1790000000." + b'{"id":1}', hashlib.sha256).hexdigest()
    assert sign(SECRET, b'{"id":1}', NOW) == f"t=1790000000,v1={right}"


def test_what_was_signed_is_verified_as_text_and_as_bytes() -> None:
    """Frameworks give headers as either."""
    header = sign(SECRET, b"body", NOW)
    verify(SECRET, header, b"body", now=NOW + 299)
    verify(SECRET.encode(), header.encode(), b"body", now=NOW)
    verify(SECRET, sign(SECRET, b"body", int(time.time())), b"body")


def test_a_secret_can_be_changed_while_both_are_signed_with() -> None:
    """One `v1` of several is enough."""
    other = sign("another secret, as long", b"body", NOW).partition(",")[2]
    verify(SECRET, f"{sign(SECRET, b'body', NOW)},{other}", b"body", now=NOW)


@pytest.mark.parametrize("age", [301, -301])
def test_a_signature_that_is_too_old_or_of_the_future_is_refused(age: int) -> None:
    """Who has seen a webhook cannot send it for ever."""
    with pytest.raises(BadSignature, match="at most 300 s"):
        verify(SECRET, sign(SECRET, b"body", NOW), b"body", now=NOW + age)


def test_another_body_secret_or_time_is_refused() -> None:
    """Each is part of what is signed."""
    header = sign(SECRET, b"body", NOW)
    for secret, said, body in (
        (SECRET, header, b"Body"),
        ("another secret, as long", header, b"body"),
        (SECRET, header.replace(str(NOW), str(NOW + 1)), b"body"),
    ):
        with pytest.raises(BadSignature, match="not signed with this secret"):
            verify(secret, said, body, now=NOW)


@pytest.mark.parametrize(
    "header", ["", "t=1", "v1=" + "0" * 64, "t=x,v1=" + "0" * 64, "t=1,v1=zz", "t=1,v0=" + "0" * 64, "ü" * 5000]
)
def test_what_is_no_signature_is_refused(header: str) -> None:
    """Whatever a stranger sends, it is a `BadSignature`."""
    with pytest.raises(BadSignature, match="missing, or not of the form"):
        verify(SECRET, header, b"body", now=NOW)


def test_a_short_secret_is_refused_on_both_sides() -> None:
    """It could be guessed."""
    with pytest.raises(ValueError, match="has 5 bytes: it must have at least 16"):
        webhooks(secret="short")
    with pytest.raises(ValueError, match="has 5 bytes"):
        verify("short", "t=1,v1=" + "0" * 64, b"")


# ---------------------------------------------------------------------- who may be called


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com/",
        "https://hooks.example.com:8443/jobs/done?key=a%20b&c=d",
        "https://eu.acme.com/x",
        "https://a.b.acme.com/x",
    ],
)
def test_a_host_that_was_named_may_be_called(url: str) -> None:
    """By its name, or by one below a name with a star."""
    assert webhooks().check(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/",
        "https://hooks.example.com.evil.net/",
        "https://evilacme.com/",
        "https://acme.com/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
    ],
)
def test_a_host_that_was_not_named_may_not(url: str) -> None:
    """Nobody makes this machine call inside addresses."""
    with pytest.raises(ValueError, match="is not among the queue's webhook_hosts"):
        webhooks().check(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "ftp://hooks.example.com/",
        "https://user@hooks.example.com/",
        "https://user:pw@hooks.example.com/",
        "https://evil.net\\@hooks.example.com/",
        "https://hooks.example.com\\.evil.net/",
        "https://hooks.example.com/#there",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/\r\nHost: evil.net",
        "https://HOOKS.example.com/",
        "https://hööks.example.com/",
        "https://hooks.example.com./",
        "https://hooks.example.com/" + "x" * 3000,
        "https://%68ooks.example.com/",
    ],
)
def test_what_two_parsers_could_read_differently_is_no_url(url: str) -> None:
    """The one that checks and the one that calls must mean the same host."""
    with pytest.raises(ValueError, match="it must be https://host/path"):
        webhooks().check(url)


def test_what_is_checked_is_what_is_called() -> None:
    """The client reads the same host out of every URL that passes."""
    for url in ("https://hooks.example.com:8443/a?b", "https://eu.acme.com", "https://eu.acme.com?x=@evil.net"):
        assert httpx2.URL(webhooks().check(url)).host in ("hooks.example.com", "eu.acme.com")


def test_plain_http_is_for_this_machine_and_only_when_asked_for() -> None:
    """A test's receiver; on the way to any other, everybody could read along."""
    insecure = webhooks(insecure=True)
    assert insecure.check("http://127.0.0.1:8000/hook")
    assert insecure.check("http://localhost/hook")
    for hooks, url in ((insecure, "http://hooks.example.com/"), (webhooks(), "http://127.0.0.1/")):
        with pytest.raises(ValueError, match="must be https"):
            hooks.check(url)


@pytest.mark.parametrize("hosts", [(), "hooks.example.com", ("*",), ("https://x.com",), ("A.com",), ("*.*.com",)])
def test_hosts_are_required_and_are_hosts(hosts: Any) -> None:
    """A single string would be many hosts of one letter."""
    with pytest.raises(ValueError, match="webhook_hosts"):
        webhooks(hosts=hosts)


# ---------------------------------------------------------------------- one call


pytestmark = pytest.mark.anyio


async def test_a_call_is_a_signed_post_that_the_receiver_can_verify() -> None:
    """The bytes that are signed are those that are sent."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(204)

    await webhooks(answer).deliver("https://hooks.example.com/done", '{"id": "ü"}')
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", "https://hooks.example.com/done")
    assert request.headers["content-type"] == "application/json"
    verify(SECRET, request.headers[HEADER], request.content)


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
async def test_an_answer_that_will_not_change_ends_it(status: int) -> None:
    """It goes to the dead letters at once."""
    with pytest.raises(PermanentError, match=f"answered {status}: 'no such hook'"):
        await webhooks(lambda _: reply(status, b"no such\nhook")).deliver("https://eu.acme.com/", "{}")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
async def test_an_answer_that_may_change_is_worth_another_attempt(status: int) -> None:
    """The error is retried, eight times over about ten minutes."""
    with pytest.raises(WebhookRefused) as refused:
        await webhooks(lambda _: reply(status)).deliver("https://eu.acme.com/", "{}")
    assert refused.value.status == status
    assert RETRY.next_delay(refused.value, attempt=1, elapsed=0, random=0) == 5.0


def test_the_attempts_take_about_ten_minutes() -> None:
    """Eight of them, however chance shortens the waits."""
    for random, least, most in ((0.0, 600, 660), (1.0, 480, 540)):
        waits = [RETRY.delay_for(attempt, random) for attempt in range(1, 9)]
        assert waits[7] is None
        assert least <= sum(wait or 0.0 for wait in waits) <= most


async def test_a_redirect_is_not_followed() -> None:
    """It would lead where nobody has checked."""
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        return reply(302, location="https://eu.acme.com/elsewhere")

    with pytest.raises(PermanentError, match="answered 302"):
        await webhooks(answer).deliver("https://eu.acme.com/", "{}")
    assert seen == ["https://eu.acme.com/"]


class Endless(httpx2.AsyncByteStream):
    """A body without an end; counts what was taken of it."""

    def __init__(self) -> None:
        self.given = 0

    async def __aiter__(self) -> Any:
        for _ in range(10_000):
            self.given += 1024
            yield b"x" * 1024


async def test_no_more_of_an_answer_is_read_than_64_kib() -> None:
    """Whatever the receiver sends."""
    body = Endless()
    with pytest.raises(WebhookRefused, match="answered 500"):
        await webhooks(lambda _: httpx2.Response(500, stream=body)).deliver("https://eu.acme.com/", "{}")
    assert MOST_READ <= body.given <= MOST_READ + 8192


async def test_a_receiver_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten seconds in all, however slowly it drips."""
    monkeypatch.setattr("admission.jobs.webhook.PATIENCE", 0.01)

    async def never(_: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(TimeoutError):
        await webhooks(never).deliver("https://eu.acme.com/", "{}")


async def test_a_worker_calls_no_host_that_it_was_not_told_of() -> None:
    """Whatever stands in a job: the worker checks again."""
    with pytest.raises(PermanentError, match="is not among"):
        await webhooks(lambda _: httpx2.Response(200)).deliver("https://169.254.169.254/", "{}")


async def test_a_worker_without_the_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error stands at the job, and the delivery is tried again."""
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(RuntimeError, match=r"admission\[webhooks\]"):
        await webhooks().deliver("https://eu.acme.com/", "{}")


# ---------------------------------------------------------------------- what is told


def test_a_result_is_told_as_it_was_written() -> None:
    """No number changes on the way."""
    ending = Ending(id="a" * 24, task="add", state=JobState.DONE, attempts=2, result="[1.10,12345678901234567890]")
    text = ending.to_json()
    assert '"result":[1.10,12345678901234567890]' in text
    assert json.loads(text)["state"] == "done"


def test_a_failure_is_told_with_its_kind_and_error() -> None:
    """And without a traceback."""
    ending = Ending(
        id="a" * 24,
        task="add",
        state=JobState.DEAD,
        attempts=3,
        kind=BuryKind.TIMEOUT,
        error="TaskTimeout: too long",
        metadata={"order": 7},
    )
    assert json.loads(ending.to_json()) == {
        "id": "a" * 24,
        "task": "add",
        "state": "dead",
        "attempts": 3,
        "metadata": {"order": 7},
        "kind": "timeout",
        "error": "TaskTimeout: too long",
    }


# ---------------------------------------------------------------------- through a worker


class Receiver:
    """Somebody who is called, and answers what he is told to."""

    def __init__(self, *statuses: int) -> None:
        self.told: list[dict[str, Any]] = []
        self._statuses = list(statuses)
        self._enough = asyncio.Event()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        verify(SECRET, request.headers[HEADER], request.content)
        self.told.append(json.loads(request.content))
        status = self._statuses.pop(0) if self._statuses else 204
        if status < 400:
            self._enough.set()
        return reply(status)

    async def taken(self) -> dict[str, Any]:
        """What it took, once it has."""
        async with asyncio.timeout(PATIENCE):
            await self._enough.wait()
        return self.told[-1]


def queue_calling(shop: Shop, receiver: Receiver, **options: Any) -> Any:
    """A queue whose webhooks come to *receiver*."""
    queue = shop.another_queue(webhook_secret=SECRET, webhook_hosts=HOSTS, **options)
    queue.webhooks._transport = httpx2.MockTransport(receiver)
    return queue


async def test_the_end_of_a_job_is_told_to_its_webhook(shop: Shop) -> None:
    """By a job of the same class and tenant."""
    receiver = Receiver()
    queue = queue_calling(shop, receiver)

    @queue.task(webhook="https://hooks.example.com/done", priority="high")
    async def double(number: int) -> int:
        return 2 * number

    async with queue, shop.worker(queue):
        job = await double.enqueue(21, tenant="acme", metadata={"order": 7})
        assert await receiver.taken() == {
            "id": job.id,
            "task": "double",
            "state": "done",
            "attempts": 1,
            "metadata": {"order": 7},
            "result": 42,
        }
    assert len(receiver.told) == 1


async def test_a_webhook_of_one_job_is_told_its_failure(shop: Shop) -> None:
    """Once it has failed for good, not before."""
    receiver = Receiver()
    queue = queue_calling(shop, receiver)

    @queue.task(retry=Retry.fixed(0.0, max_attempts=2))
    async def fail() -> None:
        raise ValueError("no such user")

    async with queue, shop.worker(queue):
        await fail.with_options(webhook="https://eu.acme.com/failed").enqueue()
        told = await receiver.taken()
    assert (told["state"], told["kind"], told["error"], told["attempts"]) == (
        "dead",
        "failed",
        "ValueError: no such user",
        2,
    )
    assert len(receiver.told) == 1


async def test_a_webhook_that_was_not_taken_is_sent_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same id, by which the receiver knows it."""
    monkeypatch.setattr("admission.jobs.webhook.RETRY", Retry.fixed(0.0, max_attempts=8))
    receiver = Receiver(503, 429)
    queue = queue_calling(shop, receiver)

    @queue.task(webhook="https://hooks.example.com/done")
    async def nothing() -> None: ...

    async with queue, shop.worker(queue):
        job = await nothing.enqueue()
        await receiver.taken()
    assert [told["id"] for told in receiver.told] == [job.id] * 3


async def test_a_webhook_that_is_refused_for_good_is_a_dead_letter(shop: Shop) -> None:
    """Where a person can see why, and send it again."""
    queue = queue_calling(shop, Receiver(410))

    @queue.task(webhook="https://hooks.example.com/done")
    async def nothing() -> None: ...

    async with queue, shop.worker(queue):
        await nothing.enqueue()
        (letter,) = await shop.letters(1)
    assert (letter.task, letter.kind, letter.attempts) == ("admission.webhook", BuryKind.PERMANENT, 1)
    assert "answered 410" in letter.error


async def test_a_result_that_is_too_large_for_a_webhook_is_left_out(shop: Shop) -> None:
    """The end is told all the same."""
    receiver = Receiver()
    queue = queue_calling(shop, receiver, max_payload_bytes=2000)

    @queue.task(webhook="https://hooks.example.com/done")
    async def lengthy() -> str:
        return "x" * 1900

    async with queue, shop.worker(queue):
        job = await lengthy.enqueue()
        told = await receiver.taken()
        assert await job.result(PATIENCE) == "x" * 1900
    assert told["result_omitted"] is True
    assert "result" not in told


async def test_a_webhook_needs_a_secret_and_hosts(shop: Shop) -> None:
    """A queue that was told of none has none."""
    with pytest.raises(ValueError, match="the queue has no webhook_secret"):
        shop.queue.task(webhook="https://hooks.example.com/")(len)
    with pytest.raises(ValueError, match="webhook_hosts is \\(\\)"):
        shop.another_queue(webhook_secret=SECRET)
    with pytest.raises(ValueError, match="without a webhook_secret"):
        shop.another_queue(webhook_hosts=HOSTS)


async def test_a_webhook_that_may_not_be_called_is_refused_before_anything_is_stored(shop: Shop) -> None:
    """With the name of the host."""
    queue = queue_calling(shop, Receiver())

    @queue.task
    async def nothing() -> None: ...

    async with queue:
        with pytest.raises(ValueError, match=r"host 'evil\.net' is not among"):
            nothing.with_options(webhook="https://evil.net/")
        assert (await queue.stats()).queued == 0


async def test_a_real_receiver_on_this_machine_is_called() -> None:
    """Over a socket, with the client that workers use."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head + await reader.readexactly(2))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await webhooks(insecure=True).deliver(f"http://127.0.0.1:{port}/done", "{}")
    assert heard[0].startswith(b"POST /done HTTP/1.1\r\n")
    assert heard[0].endswith(b"\r\n\r\n{}")
