"""How long a newcomer will wait, learnt from how fast the line moved.

The idea: a ticket with n others to be granted before it waits n + 1 times the usual gap between two grants. The
gap is learnt per class, while that class has waiters: so guarantees, ceilings, start rates and the traffic of
higher classes are in it without being modelled. A class that has not moved yet borrows the fastest class's gap.

    gap      exponentially weighted mean of the seconds between two grants of waiters (a plain mean at first)
    wait     (tickets before it in its class + 1) x gap

Known weakness: it believes that the next minute is like the last one; a tenant that floods its class sees
newcomers of others placed before its own tail, and so waits longer than predicted.
"""

from __future__ import annotations

import math

_MEMORY = 64
"""Grants the mean looks back on."""


class Pace:
    """How fast one line moves while someone waits in it."""

    __slots__ = ("_gap", "_last", "_seen")

    def __init__(self) -> None:
        self._gap = 0.0
        self._seen = 0
        self._last = math.inf

    def waiting_since(self, now: float) -> None:
        """The line, empty until now, has its first waiter."""
        self._last = now

    def emptied(self) -> None:
        """Nobody waits any more: time that passes now says nothing about the pace."""
        self._last = math.inf

    def granted(self, now: float) -> None:
        """A waiter was granted."""
        gap = now - self._last
        if gap < 0.0:
            gap = 0.0
        self._last = now
        if self._seen < _MEMORY:
            self._seen += 1
        self._gap += (gap - self._gap) / self._seen

    @property
    def known(self) -> bool:
        """Whether any waiter was ever granted."""
        return self._seen > 0

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
