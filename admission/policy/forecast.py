"""How long a newcomer will wait, learnt from how fast the line moved and from how wrong the last predictions were.

The idea: the n-th ticket to be granted from now on waits n times the usual gap between two grants. The gap is
learnt per class, while that class has waiters: so guarantees, ceilings, start rates and the traffic of higher
classes are in it without being modelled. A class that has not moved yet borrows the fastest class's gap.

Which one is it? Before it go those who stand before it now, and those of other tenants who will come and be placed
before it. The latter are many for a tenant that floods: so n is also counted in start tags, by how far its own lies
ahead of the class's virtual time and how far a grant moves that on.

    gap         exponentially weighted mean of the seconds between two grants of waiters (a plain mean at first)
    advance     the same mean of what a grant adds to the virtual time V
    n           max(tickets before it in its class + 1, (S - V) / advance)
    correction  the median of actual ÷ uncorrected wait: a step up after each grant that came later than it says,
                a step down after each that came earlier
    wait        n x gap x correction

The correction takes in what is not modelled: those who give up or are pushed out before it, bursts, long answers.

Known weakness: it believes that the next minute is like the last one. Right in the median, it is wide for single
tickets where run times differ much.
"""

from __future__ import annotations

import math

_MEMORY = 64
"""Grants the means look back on."""

_STEP = 1.05
"""Factor of one step of the correction: fine enough to stay within the band, 14 grants from 1 to 2."""

_MOST_CORRECTION = 4.0
"""The correction stays within 1 / this … this: beyond, yesterday was another world."""


class Pace:
    """How fast one line moves while someone waits in it."""

    __slots__ = ("_advance", "_gap", "_last", "_seen", "correction")

    def __init__(self) -> None:
        self._gap = 0.0
        self._advance = 0.0
        self._seen = 0
        self._last = math.inf
        self.correction = 1.0
        """By how much waits have been longer than expected lately."""

    def waiting_since(self, now: float) -> None:
        """The line, empty until now, has its first waiter."""
        self._last = now

    def emptied(self) -> None:
        """Nobody waits any more: time that passes now says nothing about the pace."""
        self._last = math.inf

    def granted(self, now: float, advance: float) -> None:
        """A waiter was granted, whose start tag lay *advance* ahead of the virtual time."""
        gap = now - self._last
        if gap < 0.0:
            gap = 0.0
        if advance < 0:
            advance = 0.0
        self._last = now
        if self._seen < _MEMORY:
            self._seen += 1
        self._gap += (gap - self._gap) / self._seen
        self._advance += (advance - self._advance) / self._seen

    def judge(self, predicted: float, correction: float, waited: float) -> None:
        """A wait that was predicted with that correction, on arrival, lasted *waited* seconds."""
        if waited * correction > predicted * self.correction:
            self.correction = min(self.correction * _STEP, _MOST_CORRECTION)
        else:
            self.correction = max(self.correction / _STEP, 1 / _MOST_CORRECTION)

    @property
    def known(self) -> bool:
        """Whether any waiter was ever granted."""
        return self._seen > 0

    def wait(self, now: float, ahead: int, distance: float = 0) -> float | None:
        """Seconds until a ticket is granted; None while unknown.

        Args:
            ahead: Tickets before it in its class.
            distance: How far its start tag lies ahead of the virtual time.
        """
        gap = self.gap(now)
        if gap is None:
            return None
        grants = float(ahead + 1)
        if distance > grants * self._advance and self._advance:
            grants = distance / self._advance
        return grants * gap * self.correction

    def gap(self, now: float) -> float | None:
        """Seconds from one grant to the next; None while unknown.

        A gap that is open for longer than usual counts already: a line that has stopped does not look fast.
        """
        if not self._seen:
            return None
        open_for = now - self._last
        if open_for > self._gap:
            return self._gap + (open_for - self._gap) / self._seen
        return self._gap

    def rate(self, now: float) -> float | None:
        """Grants per second; None while unknown."""
        gap = self.gap(now)
        return 1 / gap if gap else None
