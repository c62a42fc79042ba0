"""What happens to tickets, told to observers.

An `Observer` is any object with an `observe(event)` method. Observers run after the state has changed and are
isolated: one that raises is logged and counted, and cannot corrupt a slot. Without observers no event is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from admission.types import Outcome, Reason, Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A ticket entered the line (or the lobby) at *position*."""

    ticket: Ticket
    position: int
    predicted_wait: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A ticket may run, after *waited* seconds in line."""

    ticket: Ticket
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A ticket gave its slots back after running *ran* seconds."""

    ticket: Ticket
    ran: float
    outcome: Outcome
    actual_cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A ticket was refused on arrival and never entered the line."""

    ticket: Ticket
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """A ticket left the line without a permit, after *waited* seconds."""

    ticket: Ticket
    reason: Reason
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitChanged:
    """The pool's limit moved."""

    pool: str
    old: int
    new: int


Event = Queued | Granted | Released | Rejected | Evicted | LimitChanged


class Observer(Protocol):
    """Someone who wants to know."""

    def observe(self, event: Event) -> None:
        """Take note of *event*. Called on the event loop: be quick, do no I/O."""
