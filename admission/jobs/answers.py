"""What clients of the jobs' HTTP face are answered: jobs as JSON, and RFC 9457 problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from admission.asgi.responses import Answer, Header, json_answer, retry_headers
from admission.jobs import failure
from admission.jobs.script import Record
from admission.jobs.task import name_in
from admission.jobs.types import JobState

if TYPE_CHECKING:
    from admission.jobs.queue import JobQueue

__all__ = ["forbidden", "no_job", "not_called_so", "problem", "text_answer", "told", "unavailable", "without_body"]

AGAIN = 5.0
"""Seconds after which a client may try again, where nothing better is known."""


def told(jobs: JobQueue, record: Record, estimated_wait: float | None = None) -> str:
    """A job as its owner sees it, as JSON in one line. Of an error only the last line, never where it was raised."""
    said: dict[str, object] = {
        "id": record.id,
        "task": name_in(record.body),
        "state": record.state.value,
        "priority": jobs.class_name(record.rank),
        "position": record.position or None,
        "estimated_wait": None if estimated_wait is None else round(estimated_wait, 3),
        "attempts": record.attempt,
        "enqueued_at": record.enqueued,
        "due_at": record.due,
        "started_at": record.started,
        "ended_at": record.ended,
    }
    if record.error:
        said["error"] = failure.read(record.error).error
    if record.kind is not None:
        said["kind"] = record.kind.value
    text = json.dumps(said, allow_nan=False)
    if record.state is not JobState.DONE:
        return text
    # As the worker wrote it: reading and writing it again could change its numbers.
    return f'{text[:-1]}, "result": {record.result or "null"}}}'


def text_answer(status: int, text: str, kind: bytes = b"application/json", headers: Sequence[Header] = ()) -> Answer:
    """JSON that is written already, not to be cached."""
    body = text.encode()
    fixed = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    return Answer(status=status, headers=[*fixed, *headers], body=body)


def problem(status: int, title: str, detail: str, headers: Sequence[Header] = (), **more: object) -> Answer:
    """An RFC 9457 problem. `type` is about:blank: the title and the members beside it say what a page could."""
    said = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return text_answer(status, json.dumps(said, allow_nan=False), b"application/problem+json", headers)


def no_job(id: str) -> Answer:
    """There is none, or it is somebody else's: whoever asks is not told which."""
    return problem(404, "Not found.", f"there is no job {id}, or what was kept of it has expired")


def forbidden() -> Answer:
    """Whoever asks is nobody the app knows."""
    return problem(403, "Not allowed.", "these jobs are not for you")


def unavailable(detail: str = "the server that keeps the jobs does not answer") -> Answer:
    """Come back later. What was to be enqueued may have been."""
    return problem(503, "Not available at the moment.", detail, retry_headers(AGAIN))


def not_called_so(method: str, allowed: Sequence[str]) -> Answer:
    """What OPTIONS asks for, and what every other method is refused with."""
    headers = [(b"allow", ", ".join(allowed).encode())]
    if method == "OPTIONS":
        return Answer(status=204, headers=[*headers, (b"cache-control", b"no-store")], body=b"")
    return problem(405, "Not called so.", f"{method[:20]} is not one of {', '.join(allowed)}", headers)


def without_body(answer: Answer) -> Answer:
    """The answer to HEAD: what GET is answered, but for the body."""
    return Answer(status=answer.status, headers=answer.headers, body=b"")


def accepted(record: Record | None, id: str, location: str) -> Answer:
    """A job was taken in. None: how it stands is not known."""
    said = {
        "id": id,
        "state": JobState.QUEUED.value if record is None else record.state.value,
        "position": None if record is None else record.position or None,
    }
    return json_answer(202, said, [(b"location", location.encode())])
