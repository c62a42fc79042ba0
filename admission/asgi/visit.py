"""One HTTP request that cannot go straight through: it uploads, it waits, or its client must be watched.

    read the body (bounded) ─▶ ask for a permit ─▶ wait, watching the client ─▶ serve, or refuse

The one reader of the request (`Spool`) runs beside all this; the app runs in the request's own task, so
that its context, its cancellation and its exceptions are what they would be without a middleware.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import anyio

from admission.asgi.beside import beside
from admission.asgi.body import Message, Receive, Send, Spool, UploadDeadline, drain
from admission.asgi.desk import ASGIApp, Desk
from admission.asgi.place import Place
from admission.asgi.responses import Header, json_answer
from admission.asgi.serving import serve
from admission.asgi.streams import QueueComments, wants_events
from admission.asgi.verdict import Verdict
from admission.errors import Refusal
from admission.line import ASKED, RUNNING, Entry
from admission.types import Outcome

DRAIN_SECONDS = 5.0
"""How long a refused upload is read at most."""

HEAD_SECONDS = 5.0
"""How long an app may go on after it has answered a HEAD: a stream without end would never let go of its permit."""


class Visit:
    """One request and its way through the line. Call `run` once."""

    def __init__(
        self,
        desk: Desk,
        app: ASGIApp,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        verdict: Verdict,
        first: Message | None,
    ) -> None:
        self._desk = desk
        self._controller = desk.controller
        self._app = app
        self._scope = scope
        self._raw_receive = receive
        self._send = send
        self._verdict = verdict
        self._first = first
        self._spool: Spool | None = None
        self._scope_of_app: anyio.CancelScope | None = None
        self._place = Place(desk.controller, verdict)
        self._comments: QueueComments | None = None
        self._response: _Response | None = None

    async def run(self) -> None:
        """Serve the request or refuse it."""
        if self._verdict.expects_continue:
            # The client waits for `100 Continue` with its upload, and `receive` would send that. So nothing is read
            # before the grant, and the client's leaving is not noticed.
            await self._proceed(self._raw_receive)
            return
        options = self._desk.options
        self._spool = Spool(
            self._raw_receive,
            budget=self._desk.budget,
            max_bytes=options["spool_bytes"],
            on_gone=self._client_left,
            first=self._first,
            follow=options["cancel_on_disconnect"],
        )
        try:
            await beside(self._spool.watch, self._after_upload)
        finally:
            self._spool.close()
            self._spool = None  # It knows this visit: else both would wait for the garbage collector.

    async def _after_upload(self) -> None:
        spool = self._spool
        assert spool is not None
        grace = self._desk.options["upload_grace"]
        # Without a first message it is a GET or HEAD, whose body nobody waits for.
        if self._first is not None and not spool.complete and self._desk.options["mode"] != "shadow":
            with anyio.move_on_after(math.inf if grace is None else grace):
                await spool.body()
        if not spool.gone:
            await self._proceed(spool.receive)

    async def _proceed(self, receive: Receive) -> None:
        verdict = self._verdict
        if self._desk.options["mode"] == "shadow":
            await self._in_shadow(receive)
            return
        entry = self._controller.try_start(verdict.rank, verdict.tenant, verdict.slots, verdict.cost)
        headers = self._desk.at_once[verdict.rank]
        if entry is None:
            entry = await self._wait(receive)
            if entry is None:
                return
            headers = self._desk.waited_headers(entry)
        try:
            await self._serve(entry, headers, receive)
        finally:
            if entry.state is RUNNING:  # `serve` was not reached.
                self._controller.finish(entry, Outcome.IGNORED)

    # ------------------------------------------------------------------ waiting

    async def _wait(self, receive: Receive) -> Entry | None:
        """A running entry, or None when the request was refused and answered, or its client has left."""
        try:
            entry = self._place.enter()
            if entry.state is not RUNNING and self._wants_comments():
                self._comments = comments = self._comments_for(entry)
                return await beside(comments.run, self._place.wait)
            return await self._place.wait()
        except Refusal as error:
            refusal = error.with_traceback(None)  # Of frames that hold it: all would wait for the garbage collector.
        # Not inside `except`: compiled by mypyc, that shows the error to whoever runs while this waits.
        await self._refuse(refusal, receive)
        return None

    def _client_left(self) -> None:
        """Called by the reader, at once."""
        self._place.leave()
        # Servers also report a disconnect once the response is complete; background tasks are not cut off then.
        if self._scope_of_app is not None and self._response is not None and not self._response.ended:
            self._scope_of_app.cancel()

    # ------------------------------------------------------------------ telling the client meanwhile

    def _wants_comments(self) -> bool:
        if self._desk.options["queue_status"] is None or self._spool is None or self._scope["method"] == "HEAD":
            return False
        return wants_events(self._scope["headers"], self._spool.peek())

    def _comments_for(self, entry: Entry) -> QueueComments:
        options = self._desk.options

        async def place() -> tuple[int, float | None]:
            await self._controller.refresh(entry)
            return self._controller.position_of(entry), self._controller.predicted_wait_of(entry)

        headers: list[Header] = []
        if options["response_headers"]:
            headers = [
                (b"x-queue-class", self._desk.names[self._verdict.rank].encode()),
                (b"x-queue-ticket", self._controller.id_of(entry).encode()),
            ]
        return QueueComments(
            self._send,
            place,
            headers=headers,
            after=options["queue_status_after"],
            every=options["queue_status_every"],
        )

    # ------------------------------------------------------------------ how it ends

    async def _serve(self, entry: Entry, headers: list[Header], receive: Receive) -> None:
        send = await self._stop_comments()
        spool = self._spool
        if spool is not None:
            spool.hand_over()
        options = self._desk.options
        deadline: UploadDeadline | None = None
        if options["upload_grace"] is not None and not (spool is not None and spool.complete):
            deadline = UploadDeadline(
                receive, grace=options["upload_grace"], rate=options["min_upload_rate"], clock=self._controller.now
            )
            receive = deadline.receive
        if deadline is None and self._scope["method"] != "HEAD" and not options["cancel_on_disconnect"]:
            await serve(self._desk, self._app, self._scope, receive, send, entry, headers)
        else:
            await self._serve_watched(entry, headers, receive, send, deadline)

    async def _serve_watched(
        self, entry: Entry, headers: list[Header], receive: Receive, send: Send, deadline: UploadDeadline | None
    ) -> None:
        """Serve a request that may have to be ended before the app has returned."""
        head = self._scope["method"] == "HEAD"
        cancellable = self._desk.options["cancel_on_disconnect"]
        with anyio.CancelScope() as scope:
            self._response = response = _Response(send, scope if head else None)
            self._scope_of_app = scope if cancellable else None
            try:
                await serve(self._desk, self._app, self._scope, receive, response.send, entry, headers)
            except Exception:
                # The app was told that its client has left, which is not quite what happened.
                if deadline is None or not deadline.missed or response.started:
                    raise
        if head and response.started and not response.ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif deadline is not None and deadline.missed and not response.started:
            await json_answer(408, {"detail": "the upload was too slow"}, [(b"connection", b"close")]).send(send)

    async def _refuse(self, refusal: Refusal, receive: Receive) -> None:
        send = await self._stop_comments()
        priority = self._desk.names[self._verdict.rank]
        answer = self._desk.refusals.answer(refusal, self._scope["headers"], priority=priority)
        if self._comments is not None and self._comments.started:
            await self._comments.refuse(refusal, answer.status)
            return
        if self._spool is None or self._spool.complete:
            await answer.send(send)
            return
        # The answer first, so that a client which listens can stop uploading; its end only after the upload's.
        start, body = answer.messages()
        await send(start)
        await send({**body, "more_body": True})
        self._spool.hand_over()
        await drain(receive, max_bytes=self._desk.options["refused_upload_bytes"], seconds=DRAIN_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stop_comments(self) -> Send:
        """The `send` to go on with, once no comment is under way."""
        if self._comments is None:
            return self._send
        await self._comments.stop()
        return self._comments.send if self._comments.started else self._send

    async def _in_shadow(self, receive: Receive) -> None:
        """Serve at once whatever was decided; the decision is counted and told in `x-admission-shadow`.

        The ticket stays in line as long as the app runs: what the line would have made of this load can be seen
        in the pool's numbers, though with the run times of a server that lets everything in at once. A shared pool
        answers later than the app is called: then all that can be said is that it was asked.
        """
        try:
            said = _IN_SHADOW.get(self._place.enter().state, "queued")
        except Refusal as refusal:
            said = refusal.reason.value
        headers = [(b"x-admission-shadow", said.encode())] if self._desk.options["response_headers"] else []
        if self._spool is not None:
            self._spool.hand_over()
        outcome = Outcome.IGNORED
        try:
            await self._app(self._scope, receive, _Adding(self._send, headers).send)
            outcome = Outcome.SUCCESS
        finally:
            self._place.settle(outcome)


_IN_SHADOW = {RUNNING: "admitted", ASKED: "asked"}
"""What becomes of a request in shadow mode, by its state on arrival; else it is queued."""


class _Response:
    """A `send` that knows how far the response has got, and gives an app *head* seconds after it answered a HEAD."""

    def __init__(self, send: Send, head: anyio.CancelScope | None) -> None:
        self._send = send
        self._head = head
        self.started = False
        self.ended = False

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self.started = True
            if self._head is not None:
                self._head.deadline = anyio.current_time() + HEAD_SECONDS
        elif kind == "http.response.body" and not message.get("more_body", False):
            self.ended = True  # Before it is sent: the disconnect may be reported while it is.
            if self._head is not None:
                self._head.deadline = math.inf  # What runs now are background tasks.
        await self._send(message)


class _Adding:
    """A `send` that adds headers."""

    def __init__(self, send: Send, headers: list[Header]) -> None:
        self._send = send
        self._headers = headers

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)
