"""Tickets made by hand, for observers."""

from __future__ import annotations

from dataclasses import replace

from admission.types import Ticket

TICKET = Ticket(
    id="t1",
    pool="default",
    priority="high",
    tenant="acme",
    slots=1,
    cost=1.0,
    arrival=100.0,
    deadline=None,
    position=3,
    waited=0.0,
    running=False,
)


def ticket(**changes: object) -> Ticket:
    """`TICKET` with some fields changed."""
    return replace(TICKET, **changes)  # type: ignore[arg-type]
