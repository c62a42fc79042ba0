"""Running the app with a slot in hand: headers out, first byte noted, and the slot back, whatever happens."""

from __future__ import annotations

from collections.abc import Awaitable, MutableMapping
from typing import Any

import anyio

from admission.asgi.body import Message, Receive, Send
from admission.asgi.desk import ASGIApp, Desk
from admission.asgi.responses import Header
from admission.controller import AdmissionController
from admission.errors import Evicted, Rejected
from admission.line import RUNNING, Entry
from admission.permit import hold, unhold
from admission.types import Outcome

OVERLOADED = frozenset({429, 503, 504})
"""Statuses by which an app says that what stands behind it is overloaded: adaptive limits shrink on them."""

BIG_MESSAGE = 65536
"""Bytes from which on even a single body message may have to wait for its reader."""


async def serve(
    desk: Desk,
    app: ASGIApp,
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
    entry: Entry,
    headers: list[Header],
) -> None:
    """Run *app*, add *headers* to its response, and give the slots of *entry* back.

    They are held until the app has returned: releasing when the response starts would let any number of streams run
    at once. A refusal that the app itself did not catch (an executor behind it was full) becomes the same
    answer as a refusal here, unless the response has begun.
    """
    controller = desk.controller
    outcome = Outcome.SUCCESS
    started = False
    first_byte_at: float | None = None

    # A plain function: what it returns is the server's own awaitable, so no coroutine is made for a message.
    def answer(message: Message) -> Awaitable[None]:
        nonlocal outcome, started, first_byte_at
        kind = message["type"]
        if kind == "http.response.start":
            started = True
            if message["status"] in OVERLOADED:
                outcome = Outcome.DROPPED
            # A copy: apps may send the same message for every request.
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        elif kind == "http.response.body":
            if message.get("more_body", False):
                if first_byte_at is None:
                    first_byte_at = controller.now()
                if desk.stall_timeout is not None:
                    return _send_in_time(send, message, desk.stall_timeout)
            elif desk.last_byte:
                return _send_last(desk, send, message, entry, outcome, first_byte_at)
            elif len(message.get("body", b"")) > BIG_MESSAGE and desk.stall_timeout is not None:
                return _send_in_time(send, message, desk.stall_timeout)
        return send(message)

    scope[desk.mark] = entry
    token = hold(entry)
    try:
        await app(scope, receive, answer)
    except (Rejected, Evicted) as refusal:
        outcome = Outcome.DROPPED
        if started:
            raise
        name = desk.names[entry.rank]
        await desk.refusals.answer(refusal, scope["headers"], priority=name).send(send)
    except BaseException as error:
        outcome = outcome_of(error)
        raise
    finally:
        unhold(token)
        give_back(controller, entry, outcome, first_byte_at)


def give_back(
    controller: AdmissionController, entry: Entry, outcome: Outcome, first_byte_at: float | None = None
) -> None:
    """Release *entry* unless that was done: the app may have, to settle the cost, or its last byte has."""
    if entry.state is RUNNING:
        controller.finish(entry, outcome, None, None if first_byte_at is None else first_byte_at - entry.granted_at)


def outcome_of(error: BaseException) -> Outcome:
    """A timeout speaks of overload; a fault, a lost client or a cancellation says nothing about load."""
    return Outcome.DROPPED if isinstance(error, TimeoutError) else Outcome.IGNORED


async def _send_last(
    desk: Desk, send: Send, message: Message, entry: Entry, outcome: Outcome, first_byte_at: float | None
) -> None:
    if desk.stall_timeout is None:
        await send(message)
    else:
        await _send_in_time(send, message, desk.stall_timeout)
    give_back(desk.controller, entry, outcome, first_byte_at)


async def _send_in_time(send: Send, message: Message, seconds: float) -> None:
    """Send, but give up on a reader that takes nothing for *seconds*: the app gets what a lost connection raises."""
    with anyio.move_on_after(seconds) as scope:
        await send(message)
    if scope.cancelled_caught:
        raise ConnectionAbortedError(f"the client read nothing for {seconds:g} s")
