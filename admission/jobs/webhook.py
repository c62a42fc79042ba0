"""Telling another server that a job has ended: a signed POST, itself a job that is retried.

    POST https://hooks.example.com/…
    X-Admission-Signature: t=1790000000,v1=<hex of HMAC-SHA256(secret, "1790000000." + body)>
    {"id": …, "task": …, "state": "done" | "dead", "attempts": …, "metadata": {…}, "result": … | "kind": …, "error": …}

A receiver checks it with `verify`, answers 2xx soon, and expects the same `id` more than once: delivery is at least
once. A job that was cancelled, or that its workers died of, has no webhook: no worker is there to tell its end.

What is called is fenced, because the call comes from inside: only hosts that the queue was told of, only over TLS (a
name that somebody makes point at an inside address has no certificate there), and no redirect is followed.
Needs the package `httpx2`, in workers only.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic_core import to_json

from admission.errors import AdmissionError, PayloadTooLarge, PermanentError
from admission.jobs.types import BuryKind, JobState
from admission.policy.retry import Retry

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    import httpx2

    from admission.jobs.queue import JobQueue
    from admission.jobs.task import NewJob, Task

__all__ = ["BadSignature", "Ending", "WebhookRefused", "Webhooks", "sign", "verify"]

TASK = "admission.webhook"
"""Name of the built-in task."""

HEADER = "X-Admission-Signature"

RETRY = Retry.exponential(max_attempts=8, base=5.0, factor=2.0, max_delay=320.0, jitter=0.2)
"""Eight attempts, the last after eight to eleven minutes."""

PATIENCE = 10.0
"""Seconds a receiver may take in all."""

LEAST_SECRET = 16
"""Bytes."""

MOST_READ = 64 * 1024
"""Bytes of an answer that are read."""

MOST_SHOWN = 200
"""Characters of a refusal that an error shows."""

MOST_URL = 2048
"""Characters of a URL, and of a signature's header."""

WORTH_A_RETRY = frozenset({408, 425, 429})
"""Of the answers 4xx. All others say that the next attempt would end the same."""

# Stricter than the standard: what two parsers could read differently is no URL here. No user, no fragment.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:]{2,39}\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?"
)

_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|[0-9a-f:]{2,39}")

_SIGNATURE = re.compile(r"[0-9a-f]{64}")


class BadSignature(AdmissionError, ValueError):
    """A webhook that was not signed with this secret, or too long ago."""


class WebhookRefused(AdmissionError):
    """The receiver of a webhook answered, and did not take it.

    Attributes:
        status: Of its answer.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A job that has ended, as its webhook tells."""

    id: str
    task: str
    state: JobState
    """DONE or DEAD."""
    attempts: int
    result: str = ""
    """JSON text, of one that is done."""
    kind: BuryKind | None = None
    """Why it is dead."""
    error: str = ""
    """Its last error, in one line."""
    metadata: Mapping[str, object] = field(default_factory=dict)

    def to_json(self, *, with_result: bool = True) -> str:
        """The body of the webhook. Without a result there is `"result_omitted": true` in its place."""
        said: dict[str, object] = {
            "id": self.id,
            "task": self.task,
            "state": self.state.value,
            "attempts": self.attempts,
            "metadata": self.metadata,
        }
        if self.state is not JobState.DONE:
            said |= {"kind": self.kind.value if self.kind is not None else None, "error": self.error}
        elif not with_result:
            said["result_omitted"] = True
        text = to_json(said).decode()
        if self.state is JobState.DONE and with_result:
            # As it was written: reading and writing it again could change its numbers.
            text = f'{text[:-1]},"result":{self.result or "null"}}}'
        return text


# ---------------------------------------------------------------------- signatures


def sign(secret: str | bytes, body: bytes, timestamp: int) -> str:
    """The value of `X-Admission-Signature` for *body*, sent at *timestamp* (seconds since the epoch)."""
    return f"t={timestamp},v1={_digest(_bytes(secret), body, timestamp)}"


def verify(
    secret: str | bytes, header: str | bytes, body: bytes, tolerance: float = 300.0, *, now: float | None = None
) -> None:
    """Return if *body* is what a queue with this secret sent, and not long ago; raise otherwise.

    Give it the bytes that were received, before anything parses them. Within the tolerance the same webhook may come
    again, by a retry or by somebody who has seen it: its `id` tells.

    Args:
        header: Of `X-Admission-Signature`. Where it has several `v1`, one that fits is enough.
        tolerance: Seconds between its time and this machine's clock.
        now: Seconds since the epoch, for tests. None: this machine's clock.

    Raises:
        BadSignature: It was not, or is too old, or its header is none.
        ValueError: The secret is shorter than 16 bytes.
    """
    key = check_secret(secret)
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    timestamp, signatures = _parse(text)
    right = _digest(key, body, timestamp)
    if not any([hmac.compare_digest(right, signature) for signature in signatures]):
        raise BadSignature("the webhook was not signed with this secret")
    age = (time.time() if now is None else now) - timestamp
    if abs(age) > tolerance:
        raise BadSignature(f"the webhook was signed {age:.0f} s ago: at most {tolerance:g} s are tolerated")


def check_secret(secret: str | bytes) -> bytes:
    """*secret* in bytes, if it is long enough. Raises ValueError."""
    key = _bytes(secret)
    if len(key) < LEAST_SECRET:
        raise ValueError(f"webhook_secret has {len(key)} bytes: it must have at least {LEAST_SECRET}")
    return key


def _parse(header: str) -> tuple[int, list[str]]:
    timestamp, signatures = "", []
    for part in header[:MOST_URL].split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            timestamp = value
        elif name == "v1" and _SIGNATURE.fullmatch(value):
            signatures.append(value)
    if not re.fullmatch(r"[0-9]{1,12}", timestamp) or not signatures:
        raise BadSignature(f"the header {HEADER} is missing, or not of the form t=…,v1=…")
    return int(timestamp), signatures


def _digest(secret: bytes, body: bytes, timestamp: int) -> str:
    return hmac.new(secret, b"%d." % timestamp + body, hashlib.sha256).hexdigest()


def _bytes(secret: str | bytes) -> bytes:
    return secret.encode() if isinstance(secret, str) else bytes(secret)


# ---------------------------------------------------------------------- the sending side


class Webhooks:
    """The webhooks of a queue: what may be called, and the calling.

    Args:
        secret: What they are signed with; at least 16 bytes.
        hosts: Whom to call: names such as `hooks.example.com`, or `*.acme.com` for every name below `acme.com`.
        insecure: Call hosts on this machine over plain http too, if *hosts* names them. For tests.
        transport: Of `httpx2`, instead of its own.

    Raises:
        ValueError: The secret is too short, or a host is none.
    """

    def __init__(
        self,
        *,
        secret: str | bytes,
        hosts: Sequence[str],
        insecure: bool = False,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._secret = check_secret(secret)
        if isinstance(hosts, str) or not hosts:
            raise ValueError(f'webhook_hosts is {hosts!r}: name the hosts to call, such as ("hooks.example.com",)')
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"webhook_hosts has {host!r}: it must be a host in lower case, or *. and one")
        self._hosts = frozenset(host for host in hosts if not host.startswith("*."))
        self._below = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._insecure = insecure
        self._transport = transport
        self._tls: ssl.SSLContext | None = None

    def check(self, url: str) -> str:
        """*url*, if it may be called.

        Raises:
            ValueError: It is no plain https URL, or its host is not among the queue's `webhook_hosts`.
        """
        found = _URL.fullmatch(url) if isinstance(url, str) and len(url) <= MOST_URL else None
        if found is None:
            raise ValueError(
                f"webhook is {url!r:.100}: it must be https://host/path in ASCII, the host in lower case, "
                f"without user or fragment, at most {MOST_URL} characters"
            )
        host = found["host"].strip("[]")
        if host not in self._hosts and not host.endswith(self._below):
            raise ValueError(f"webhook is {url!r:.100}: host {host!r} is not among the queue's webhook_hosts")
        if found["scheme"] == "http" and not (self._insecure and _is_loopback(host)):
            raise ValueError(
                f"webhook is {url!r:.100}: it must be https (http: to this machine, webhook_insecure=True)"
            )
        return url

    def register(self, jobs: JobQueue) -> Task[[str, str], object]:
        """Make the delivery a task of *jobs*."""

        async def deliver(url: str, body: str) -> None:
            await self.deliver(url, body)

        task: Task[[str, str], object] = jobs.task(name=TASK, retry=RETRY, timeout=2 * PATIENCE)(deliver)
        return task

    def notice(self, jobs: JobQueue, url: str, ending: Ending, *, priority: str, tenant: str) -> NewJob:
        """The job that delivers the webhook of a job which has ended, of the same class and tenant.

        A result so large that the two do not fit into a job is left out; whoever is told may ask for it.
        """
        prepared = jobs.tasks[TASK].with_options(priority=priority, tenant=tenant)
        with suppress(PayloadTooLarge):
            return prepared.job(url, ending.to_json())
        return prepared.job(url, ending.to_json(with_result=False))

    async def deliver(self, url: str, body: str) -> None:
        """Call *url* once.

        Raises:
            PermanentError: It may not be called, or the receiver's refusal would be the same next time.
            WebhookRefused: The receiver did not take it, and may the next time.
            httpx2.TransportError: It could not be reached.
            TimeoutError: It did not answer in time.
        """
        try:
            self.check(url)
        except ValueError as error:
            raise PermanentError(str(error)) from error
        httpx2 = _httpx2()
        if self._tls is None:
            self._tls = httpx2.create_ssl_context()  # Once: it takes long.
        content = body.encode()
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": "admission-webhook",
            HEADER: sign(self._secret, content, int(time.time())),
        }
        async with asyncio.timeout(PATIENCE):
            # The environment is not asked: a proxy or .netrc in it is not meant for these calls.
            client = httpx2.AsyncClient(
                transport=self._transport,
                verify=self._tls,
                timeout=PATIENCE,
                follow_redirects=False,
                trust_env=False,
            )
            async with client, client.stream("POST", url, content=content, headers=headers) as answer:
                if answer.is_success:
                    return
                said = await _beginning(answer)
        _refuse(answer.status_code, said)


def _refuse(status: int, said: str) -> None:
    what = f"the receiver answered {status}: {said!r}" if said else f"the receiver answered {status}"
    if status >= 500 or status in WORTH_A_RETRY:
        raise WebhookRefused(what, status=status)
    raise PermanentError(what)  # Redirects too: they are not followed.


async def _beginning(answer: httpx2.Response) -> str:
    read = b""
    async for chunk in answer.aiter_raw(4096):
        read += chunk
        if len(read) >= MOST_READ:
            break
    return " ".join(read[:MOST_READ].decode("utf-8", "replace").split())[:MOST_SHOWN]


def _httpx2() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise RuntimeError("webhooks need the package httpx2 in workers: pip install 'admission[webhooks]'") from error
    return httpx2


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
