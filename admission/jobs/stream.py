"""The events of a job as they happen: queued (again with every new position) → started → done, dead or cancelled.

A job that is to be tried again is `delayed`, and then `queued` anew. What has ended is told with all there is to know
of it, and the stream ends. What comes and goes between two looks is not told: how often a place in line is looked at is
bounded, and only the end of a job is announced by the server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from admission.asgi.body import Receive, Send
from admission.errors import NotRunning, TaskCancelled, Unavailable
from admission.jobs import failure, script
from admission.jobs.answers import told
from admission.jobs.script import Record
from admission.jobs.types import BuryKind, JobState

if TYPE_CHECKING:
    from admission.jobs.queue import JobQueue

__all__ = ["Stream"]

STALL = 30.0
"""Seconds for which a client may leave what it is sent unread."""

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the events back until there are many.
]


class _Stalled(Exception):
    """The client reads no more."""


class Stream:
    """The events of one job, sent to one client.

    Args:
        poll: Seconds between two looks.
        keep_alive: Seconds of silence after which a comment is sent.
    """

    def __init__(self, jobs: JobQueue, send: Send, *, poll: float, keep_alive: float) -> None:
        self._jobs = jobs
        self._send = send
        self._poll = poll
        self._keep_alive = keep_alive
        self._last = ("", "")
        """The event that was sent last, and its data."""
        self._sent_at = 0.0

    async def run(self, record: Record, receive: Receive) -> None:
        """Send everything from *record* to the end of the job, or until the client leaves or reads no more."""
        async with anyio.create_task_group() as group:
            group.start_soon(_until_gone, receive, group.cancel_scope)
            with suppress(_Stalled):
                await self._follow(record)
            group.cancel_scope.cancel()

    async def _follow(self, record: Record | None) -> None:
        id = "" if record is None else record.id
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        self._sent_at = anyio.current_time()
        while True:
            for event, data in self._news(record, id):
                await self._write(f"event: {event}\ndata: {data}\n\n")
            if record is None or record.state in (JobState.DONE, JobState.DEAD):
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if anyio.current_time() - self._sent_at >= self._keep_alive:
                await self._write(": still here\n\n")
            record = await self._next(record)

    async def _next(self, record: Record) -> Record | None:
        """The job at its end, or after a while; None when there is nothing of it any more."""
        try:
            return await self._jobs.endings.ended(record.id, self._poll)
        except TimeoutError:
            pass
        except (Unavailable, NotRunning):
            await asyncio.sleep(self._poll)
        try:
            found = await self._jobs.store.ask(script.look(record.id))
        except (Unavailable, NotRunning):
            return record  # As far as is known.
        return found if isinstance(found, Record) else None

    def _news(self, record: Record | None, id: str) -> Iterator[tuple[str, str]]:
        """What has not been told yet."""
        if record is not None and _was_cancelled(record):
            record = None
        if record is None:
            # Nothing is kept of a cancelled job; of others neither, where the queue keeps no results.
            yield "cancelled" if self._jobs.result_ttl else "gone", json.dumps({"id": id})
            return
        if record.state is JobState.QUEUED:
            event, data = "queued", json.dumps({"position": record.position})
        elif record.state is JobState.DELAYED:
            event, data = "delayed", json.dumps({"due_at": record.due, "attempts": record.attempt})
        else:
            event, data = "started", json.dumps({"attempt": record.attempt, "started_at": record.started})
            if record.state is not JobState.RUNNING and record.started is None:
                event = ""  # It ended without having been run.
        if event and (event, data) != self._last:
            self._last = event, data
            yield event, data
        if record.state in (JobState.DONE, JobState.DEAD):
            yield record.state.value, told(self._jobs, record)

    async def _write(self, text: str) -> None:
        with anyio.move_on_after(STALL) as scope:
            await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        if scope.cancelled_caught:
            raise _Stalled
        self._sent_at = anyio.current_time()


def _was_cancelled(record: Record) -> bool:
    """Whether its worker was told to end it: for a moment, before nothing is left of it, it is among the dead."""
    said = failure.failure_of(TaskCancelled(f"job {record.id} was cancelled")).error
    return record.kind is BuryKind.FAILED and failure.read(record.error).error == said


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
