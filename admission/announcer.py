"""Tells the observers of a controller what happens to its tickets, and keeps their failures away from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from admission.events import Event, Evicted, Granted, LimitChanged, Observer, Queued, Rejected, Released
from admission.line import ASKED, REFUSED, RUNNING, Entry, Waiter
from admission.types import Outcome

if TYPE_CHECKING:
    from admission.controller import AdmissionController

logger = logging.getLogger("admission")


class Announcer:
    """Builds the events. A controller without observers has none of these."""

    def __init__(self, controller: AdmissionController, observers: Sequence[Observer]) -> None:
        self._controller = controller
        self._observers = observers
        self._limit = controller.limit
        self._later: list[Event] | None = None
        """Events held back until another was told."""
        self.errors = 0
        """Exceptions that observers raised; each was logged."""

    def offered(self, entry: Entry) -> None:
        """A newcomer was let in, stands in line or was rejected; or was asked for, which is told when it is known."""
        if entry.state is ASKED:
            assert isinstance(entry.waiter, _Announced)
            entry.waiter.asked = True
            return
        self._answered(entry)

    def entered(self, entry: Entry) -> None:
        """A newcomer that was asked for stands in line."""
        ticket = self._controller.ticket_of(entry)
        self._tell(Queued(ticket=ticket, position=entry.position, predicted_wait=entry.predicted))

    def withdrawn(self, entry: Entry) -> None:
        """A waiter gave its place up."""
        self.decided(entry, asked=isinstance(entry.waiter, _Announced) and entry.waiter.asks_no_more())

    def decided(self, entry: Entry, *, asked: bool = False) -> None:
        """A waiter was granted or evicted; or one of which nothing has been told yet, because it was *asked* for."""
        if asked:
            if entry.position == 0 or (entry.state is REFUSED and entry.reason.rejects):
                self._answered(entry)
                return
            self.entered(entry)  # It has stood in the lobby since: of that no waiter hears.
        ticket = self._controller.ticket_of(entry)
        if entry.state is RUNNING:
            self._tell(Granted(ticket=ticket, waited=ticket.waited))
        else:
            self._tell(Evicted(ticket=ticket, reason=entry.reason, waited=ticket.waited))

    def _answered(self, entry: Entry) -> None:
        """What became of a newcomer."""
        if entry.state is RUNNING:
            self._tell(Granted(ticket=self._controller.ticket_of(entry), waited=0.0))
        elif entry.state is not REFUSED:
            self.entered(entry)
        elif entry.reason.rejects:
            self._tell(Rejected(ticket=self._controller.ticket_of(entry), reason=entry.reason))
        else:  # It was asked for, and given up before there was an answer.
            ticket = self._controller.ticket_of(entry)
            self._tell(Evicted(ticket=ticket, reason=entry.reason, waited=ticket.waited))

    @contextmanager
    def after(self) -> Iterator[None]:
        """Hold back what is told in this block, but for `released`, until its end."""
        outer = self._later
        later: list[Event] = []
        self._later = later
        try:
            yield
        finally:
            self._later = outer
            for event in later:
                self._tell(event)

    def released(self, entry: Entry, now: float, outcome: Outcome, actual_cost: float | None) -> None:
        """A running ticket ended; what was held back comes after it."""
        ticket, ran = self._controller.ticket_of(entry), now - entry.granted_at
        cost = entry.cost if actual_cost is None else actual_cost
        later, self._later = self._later, None
        self._tell(Released(ticket=ticket, ran=ran, outcome=outcome, actual_cost=cost))
        self.watch_limit()
        self._later = later

    def watch_limit(self) -> None:
        """Tell when the limit has moved since the last look."""
        limit = self._controller.limit
        old, self._limit = self._limit, limit
        if old != limit:
            self._tell(LimitChanged(pool=self._controller.name, old=old, new=limit))

    def waiter(self, waiter: Waiter | None) -> Waiter:
        """*waiter*, whose fate the observers hear of as well."""
        return _Announced(self, waiter)

    def _tell(self, event: Event) -> None:
        if self._later is not None:
            self._later.append(event)
            return
        for observer in self._observers:
            try:
                observer.observe(event)
            except Exception:
                self.errors += 1
                logger.exception("observer %r failed on %s", observer, type(event).__name__)


class _Announced:
    """A waiter whose fate is told to the observers as well."""

    __slots__ = ("_announcer", "_waiter", "asked")

    def __init__(self, announcer: Announcer, waiter: Waiter | None) -> None:
        self._announcer = announcer
        self._waiter = waiter
        self.asked = False
        """Nothing is known yet of what became of the newcomer."""

    def asks_no_more(self) -> bool:
        """Whether nothing was known until now of what became of the newcomer."""
        asked, self.asked = self.asked, False
        return asked

    def entered(self, entry: Entry) -> None:
        """Pass it on."""
        if self._waiter is not None:
            self._waiter.entered(entry)
        if self.asks_no_more():
            self._announcer.entered(entry)

    def decided(self, entry: Entry) -> None:
        """Pass it on, then tell."""
        asked = self.asks_no_more()
        if self._waiter is not None:
            self._waiter.decided(entry)
        self._announcer.decided(entry, asked=asked)
