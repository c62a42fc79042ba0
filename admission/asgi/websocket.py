"""WebSockets: one permit for as long as the connection lasts, and a denial that a client can read."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import partial
from typing import Any

from admission.asgi.beside import beside
from admission.asgi.body import Receive, Send, Spool
from admission.asgi.desk import MARK, ASGIApp, Desk
from admission.asgi.place import Place
from admission.asgi.verdict import Verdict
from admission.errors import Refusal
from admission.line import RUNNING, Entry
from admission.permit import hold_for_task
from admission.types import Outcome

TRY_AGAIN_LATER = 1013
"""Close code of RFC 6455's registry."""


async def serve_websocket(
    desk: Desk,
    app: ASGIApp,
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
    verdict: Verdict,
) -> None:
    """Let one connection in, at once or after it has waited, or deny it."""
    entry = desk.controller.try_start(verdict.rank, verdict.tenant, verdict.slots, verdict.cost)
    if entry is not None:
        await _serve(desk, app, scope, receive, send, entry)
        return
    place = Place(desk.controller, verdict)
    spool = Spool(receive, budget=desk.budget, max_bytes=desk.options["spool_bytes"], on_gone=place.leave)
    try:
        await beside(spool.watch, partial(_wait_and_serve, desk, app, scope, spool, send, place))
    finally:
        spool.close()


async def serve_websocket_in_shadow(
    desk: Desk,
    app: ASGIApp,
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
    verdict: Verdict,
) -> None:
    """Let the connection in, whatever is decided, and count the decision."""
    place = Place(desk.controller, verdict)
    try:
        place.enter()
    except Refusal:
        await app(scope, receive, send)  # It was counted, which is all there is to do.
        return
    try:
        await app(scope, receive, send)
    finally:
        place.settle()


async def _wait_and_serve(
    desk: Desk, app: ASGIApp, scope: MutableMapping[str, Any], spool: Spool, send: Send, place: Place
) -> None:
    try:
        entry = await place.wait()
    except Refusal as refusal:
        await _deny(desk, scope, spool.receive, send, refusal)
        return
    if entry is None:
        return
    spool.hand_over()
    await _serve(desk, app, scope, spool.receive, send, entry)


async def _serve(
    desk: Desk, app: ASGIApp, scope: MutableMapping[str, Any], receive: Receive, send: Send, entry: Entry
) -> None:
    # How long a connection lasts says nothing about load, so its end teaches an adaptive limit nothing.
    entry.outer = scope.get(MARK)
    scope[MARK] = entry
    hold_for_task(entry)
    try:
        await app(scope, receive, send)
    finally:
        if entry.state is RUNNING:
            desk.controller.finish(entry, Outcome.IGNORED)


async def _deny(desk: Desk, scope: MutableMapping[str, Any], receive: Receive, send: Send, refusal: Refusal) -> None:
    """Refuse before the handshake is answered.

    A plain `websocket.close` would reach the client as a bare 403. So the refusal is sent as an HTTP response, and
    where a server cannot do that, the connection is accepted and closed with 1013 (try again later).
    """
    await receive()  # websocket.connect
    if "websocket.http.response" in (scope.get("extensions") or {}):
        answer = desk.refusals.answer(refusal, scope["headers"])
        await answer.send(send, prefix="websocket.http.response")
        return
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": refusal.reason.value})
