"""OpenTelemetry spans for time spent in line.

    controller = AdmissionController(observers=[TracingObserver()])

A ticket that waited gets one span, `admission.wait`, in the trace of the request that waited, whoever let it
in. The span is written when the wait is over, with the times of its begin and end, so no span is ever held
open while something waits (PEP 789). A ticket let in at once gets none; a refusal on arrival is an event on
the caller's span.

Needs the extra `otel` (`opentelemetry-api`); without a configured SDK all this is nearly free.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry import context, trace
from opentelemetry.trace import Status, StatusCode, Tracer

from admission.events import Event, Evicted, Granted, Queued, Rejected
from admission.types import Reason, Ticket

SPAN = "admission.wait"

_THEIR_OWN_WISH = frozenset({Reason.CANCELLED, Reason.DISCONNECT})
"""Who leaves on their own has met no error."""

_Attributes = dict[str, str | int | float]


class TracingObserver:
    """An observer that writes a span for every wait.

    Args:
        tracer: None takes the global tracer provider's.
        tenants: Whether spans name the tenant.
        wall_clock: Nanoseconds since the epoch, as `time.time_ns`.
    """

    def __init__(
        self,
        tracer: Tracer | None = None,
        *,
        tenants: bool = False,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = tracer if tracer is not None else trace.get_tracer("admission")
        self._tenants = tenants
        self._wall_clock = wall_clock
        # By pool and ticket. Every ticket that is queued is granted or evicted, so this is as long as the
        # line.
        self._waiting: dict[tuple[str, str], tuple[context.Context, int]] = {}

    def observe(self, event: Event) -> None:
        """Remember who begins to wait; write the span of who has ended waiting."""
        match event:
            case Queued(ticket=ticket, position=position):
                # Told in the context of the request itself; a grant is told in that of whoever made room.
                self._waiting.setdefault((ticket.pool, ticket.id), (context.get_current(), position))
            case Granted(ticket=ticket, waited=waited):
                self._write(ticket, waited, None)
            case Evicted(ticket=ticket, waited=waited, reason=reason):
                self._write(ticket, waited, reason)
            case Rejected(ticket=ticket, reason=reason):
                trace.get_current_span().add_event(
                    "admission.rejected", self._attributes(ticket) | {"admission.outcome": reason.value}
                )

    def _write(self, ticket: Ticket, waited: float, refused: Reason | None) -> None:
        parent, position = self._waiting.pop((ticket.pool, ticket.id), (None, 0))
        if parent is None:
            return
        end = self._wall_clock()
        outcome = "granted" if refused is None else refused.value
        span = self._tracer.start_span(
            SPAN,
            context=parent,
            start_time=end - int(waited * 1e9),
            attributes=self._attributes(ticket) | {"admission.outcome": outcome, "admission.position": position},
        )
        if refused is not None and refused not in _THEIR_OWN_WISH:
            span.set_status(Status(StatusCode.ERROR, outcome))
        span.end(end)

    def _attributes(self, ticket: Ticket) -> _Attributes:
        attributes: _Attributes = {
            "admission.pool": ticket.pool,
            "admission.class": ticket.priority,
            "admission.ticket": ticket.id,
            "admission.slots": ticket.slots,
        }
        if self._tenants:
            attributes["admission.tenant"] = ticket.tenant
        return attributes
