"""Jobs over HTTP, for a web app to mount: `app.mount("/jobs", jobs.asgi(tasks=["sync_user"]))`.

    POST   /{task}          a JSON object of arguments → 202, Location: …/{id}, {"id", "state", "position"}
    GET    /{id}            how it stands, with its result once it is done
    DELETE /{id}            cancel it: 204, or 202 while its worker is told to stop; 409 when it has ended
    GET    /{id}/events     the same as server-sent events, until it has ended

Nothing can be enqueued from outside but the tasks that are named. Who asks is what `identify` says, and no header is
trusted with it: a client chooses neither its tenant nor its class, and sees no other tenant's jobs (they are 404).
Errors are RFC 9457 problems. A POST must be `application/json`, which no web page can send to another site unasked.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import anyio
from pydantic_core import from_json

from admission.asgi.body import Receive, Send
from admission.asgi.classify import Scope, route_path
from admission.asgi.responses import Answer, Header, json_answer, retry_headers
from admission.errors import (
    BadArguments,
    NotRunning,
    PayloadTooLarge,
    QueueFull,
    Unavailable,
    UnknownTask,
    WaitTimeout,
)
from admission.jobs import answers, script
from admission.jobs.arguments import shortened
from admission.jobs.job import estimated_wait
from admission.jobs.script import ID_DIGITS, Record, Said, Stats
from admission.jobs.stream import Stream
from admission.jobs.task import EnqueueOptions, Task, too_large
from admission.jobs.types import JobState
from admission.types import Priority, within

if TYPE_CHECKING:
    from admission.jobs.queue import JobQueue

__all__ = ["Identify", "Identity", "JobsApp"]

UPLOAD_SECONDS = 30.0
"""How long the arguments of a job may take to arrive."""

MOST_IGNORED = 4 * 1024 * 1024
"""Bytes beyond the limit that are read and thrown away: a connection closed amid an upload loses the answer."""

MOST_KEY = 255
"""Bytes of an `Idempotency-Key`."""

COUNT_SECONDS = 1.0
"""How often the queue is counted at most, to estimate waits."""

_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who asks."""

    tenant: str = ""
    priority: Priority | str | None = None
    """Class of the jobs they enqueue. None: the task's."""


Identify = Callable[[Scope], Identity | Awaitable[Identity | None] | None]
"""Says who sent a request, by its ASGI scope; None: nobody known."""


class JobsApp:
    """The jobs of a queue as an ASGI app. Made by `JobQueue.asgi`.

    Args:
        tasks: Names of the tasks that may be enqueued over HTTP. None: those registered with `http=True`.
        identify: Says who asks; may be async. Whoever it does not know is refused (403). None: everybody is the
            tenant "", and whoever knows the id of a job without a tenant may see and cancel it.
        max_streams: Event streams open at once; 1 to 100,000.
        poll: Seconds between two looks at a job whose events are watched; 0.01 to 1.
        keep_alive: Seconds of silence after which an event stream says that it is still there; up to 300.

    Raises:
        UnknownTask: One of *tasks* is not registered with the queue.
        ValueError: An option is outside its range.
    """

    def __init__(
        self,
        jobs: JobQueue,
        *,
        tasks: Iterable[str] | None = None,
        identify: Identify | None = None,
        max_streams: int = 1000,
        poll: float = 1.0,
        keep_alive: float = 15.0,
    ) -> None:
        within("max_streams", max_streams, 1, 100_000)
        within("poll", poll, 0.01, 1.0)
        within("keep_alive", keep_alive, 0.01, 300.0)
        self._jobs = jobs
        self._names = None if tasks is None else _checked_names(jobs, tasks)
        self._identify = identify
        self._max_streams = max_streams
        self._streams = 0
        self._poll = poll
        self._keep_alive = keep_alive
        self._counted: Stats | None = None
        self._counted_at = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _empty_lifespan(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        ways = self._ways(scope)
        way = ways.get(method)
        if not ways:
            answer: Answer | None = answers.problem(404, "Not found.", "there is no such task or job here")
        elif way is None:
            answer = answers.not_called_so(method, [*ways, "OPTIONS"])
        elif (who := await self._who(scope)) is None:
            answer = answers.forbidden()
        else:
            try:
                answer = await way(who, Request(scope=scope, receive=receive, send=send))
            except (Unavailable, NotRunning):
                answer = answers.unavailable()
        if answer is not None:
            await (answers.without_body(answer) if method == "HEAD" else answer).send(send)

    def _ways(self, scope: Scope) -> dict[str, Way]:
        """What may be done with the path, by method."""
        match route_path(scope).split("/")[1:]:
            case [name] if (task := self._task(name)) is not None:
                return {"POST": partial(self._enqueue, task)}
            case [id] if _ID.fullmatch(id):
                show = partial(self._show, id)
                return {"GET": show, "HEAD": show, "DELETE": partial(self._cancel, id)}
            case [id, "events"] if _ID.fullmatch(id):
                return {"GET": partial(self._events, id)}
        return {}

    def _task(self, name: str) -> Task[..., object] | None:
        """The task of that name, if it may be enqueued over HTTP."""
        task = self._jobs.tasks.get(name)
        if task is None:
            return None
        return task if (task.http if self._names is None else name in self._names) else None

    async def _who(self, scope: Scope) -> Identity | None:
        if self._identify is None:
            return Identity()
        found = self._identify(scope)
        return await found if inspect.isawaitable(found) else found

    # ------------------------------------------------------------------ to enqueue

    async def _enqueue(self, task: Task[..., object], who: Identity, request: Request) -> Answer | None:
        headers: Sequence[Header] = request.scope["headers"]
        if not _is_json(headers):
            return answers.problem(415, "Arguments come as JSON.", "the Content-Type must be application/json")
        options: EnqueueOptions = {"tenant": who.tenant, "priority": who.priority}
        keys = [value for name, value in headers if name == b"idempotency-key"]
        if keys:
            if len(keys) > 1 or not 0 < len(keys[0]) <= MOST_KEY:
                detail = f"there may be one Idempotency-Key, of 1 to {MOST_KEY} bytes"
                return answers.problem(400, "The request is not clear.", detail)
            options["dedup_key"] = _dedup_key(who.tenant, task.name, keys[0])
        prepared = task.with_options(**options)
        try:
            with anyio.fail_after(UPLOAD_SECONDS):
                body = await _read(request, self._jobs.max_payload_bytes)
            if body is None:
                return None
            job = await self._jobs.enqueue(prepared.job(**_arguments(body, task.name)))
        except PayloadTooLarge as error:
            return answers.problem(413, "The arguments are too large.", str(error), limit=error.limit)
        except BadArguments as error:
            return answers.problem(422, "The arguments do not fit the task.", str(error), argument=error.argument)
        except (QueueFull, WaitTimeout) as error:
            seconds = answers.AGAIN if error.retry_after is None else error.retry_after
            return answers.problem(429, "The queue is full.", "there is no room now", retry_headers(seconds))
        except TimeoutError:  # Of the upload: `WaitTimeout` is one, too.
            return answers.problem(408, "The arguments came too slowly.", f"they may take {UPLOAD_SECONDS:g} s")
        location = f"{quote(request.scope.get('root_path', ''))}/{job.id}"
        return answers.accepted(await self._seen(job.id), job.id, location)

    async def _seen(self, id: str) -> Record | None:
        """How a job stands that was just enqueued; None when that cannot be told. Its client has it all the same."""
        try:
            record = await self._jobs.store.ask(script.look(id))
        except (Unavailable, NotRunning):
            return None
        return record if isinstance(record, Record) else None

    # ------------------------------------------------------------------ one job

    async def _record(self, id: str, who: Identity) -> Record | None:
        """The job, if there is one and it is theirs."""
        record = await self._jobs.store.ask(script.look(id))
        return record if isinstance(record, Record) and record.tenant == who.tenant else None

    async def _show(self, id: str, who: Identity, request: Request) -> Answer:
        record = await self._record(id, who)
        if record is None:
            return answers.no_job(id)
        waits = record.state in (JobState.QUEUED, JobState.DELAYED)
        wait = await self._estimated_wait(record) if waits else None
        return answers.text_answer(200, answers.told(self._jobs, record, wait))

    async def _estimated_wait(self, record: Record) -> float | None:
        """From numbers that are about a second old: to have all counted for every client would wear the server out."""
        now = time.monotonic()
        if now - self._counted_at >= COUNT_SECONDS:
            self._counted_at = now  # Whoever comes meanwhile makes do with what there is.
            stats = await self._jobs.store.ask(script.stats())
            assert isinstance(stats, Stats)
            self._jobs.pace.saw(stats, self._jobs.now())
            self._counted = stats
        return None if self._counted is None else estimated_wait(self._jobs, self._counted, record)

    async def _cancel(self, id: str, who: Identity, request: Request) -> Answer:
        record = await self._record(id, who)
        if record is None:
            return answers.no_job(id)
        said = Said.UNKNOWN
        if record.state not in (JobState.DONE, JobState.DEAD):
            answer = await self._jobs.store.ask(script.cancel(id))
            said = answer if isinstance(answer, Said) else said
        if said is Said.DONE:
            return Answer(status=204, headers=[(b"cache-control", b"no-store")], body=b"")
        if said is Said.RUNNING:
            return json_answer(202, {"id": id, "state": JobState.RUNNING.value})
        return answers.problem(409, "The job has ended.", f"job {id} has ended, and cannot be cancelled")

    async def _events(self, id: str, who: Identity, request: Request) -> Answer | None:
        record = await self._record(id, who)
        if record is None:
            return answers.no_job(id)
        if self._streams >= self._max_streams:
            return answers.unavailable(f"{self._max_streams} clients watch jobs: as many as may")
        self._streams += 1
        try:
            stream = Stream(self._jobs, request.send, poll=self._poll, keep_alive=self._keep_alive)
            await stream.run(record, request.receive)
        finally:
            self._streams -= 1
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, as the server gave it."""

    scope: Scope
    receive: Receive
    send: Send


Way = Callable[[Identity, Request], Awaitable[Answer | None]]
"""Answers a request. None: it was answered already."""


def _checked_names(jobs: JobQueue, tasks: Iterable[str]) -> frozenset[str]:
    if isinstance(tasks, str):
        raise ValueError(f"tasks is {tasks!r}: it must be several names, such as ({tasks!r},)")
    names = frozenset(tasks)
    for name in names:
        if name not in jobs.tasks:
            raise UnknownTask(f"tasks has {shortened(name)}: the tasks are {', '.join(sorted(jobs.tasks)) or 'none'}")
    return names


def _is_json(headers: Iterable[Header]) -> bool:
    """Whether the body is said to be JSON, as it is."""
    kinds = [value.partition(b";")[0].strip().lower() for name, value in headers if name == b"content-type"]
    encoded = any(name == b"content-encoding" and value.strip().lower() != b"identity" for name, value in headers)
    return kinds == [b"application/json"] and not encoded


def _dedup_key(tenant: str, task: str, key: bytes) -> str:
    """Of one tenant and one task: the same key of another one means another job. A digest: its length is bounded."""
    whole = b"\0".join((tenant.encode(), task.encode(), key))
    return f"http:{hashlib.sha256(whole).hexdigest()}"


def _arguments(body: bytes, task: str) -> dict[str, object]:
    """Arguments by name. Raises BadArguments."""
    try:
        arguments = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadArguments(f"task {task!r}: the arguments are no JSON: {error}", task=task) from error
    if not isinstance(arguments, dict):
        raise BadArguments(f"task {task!r}: the arguments must be one JSON object, by their names", task=task)
    return arguments


async def _read(request: Request, limit: int) -> bytes | None:
    """The body; None when the client has left. Raises PayloadTooLarge, after reading on for the client to hear so."""
    chunks: list[bytes] = []
    size, more = 0, True
    while more and size <= limit + MOST_IGNORED:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        more = message.get("more_body", False)
    if size > limit:
        raise too_large("the body", size, limit)
    return b"".join(chunks)


async def _empty_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
