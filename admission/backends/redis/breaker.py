"""The circuit breaker: whether it is worth asking at all.

             k failures in a row             the pause is over
    CLOSED ──────────────────────▶ OPEN ──────────────────────▶ PROBING
       ▲                             ▲      one probe fails:       │
       │                             └── twice the pause, jittered ┤
       └──────────────── the probe succeeds ───────────────────────┘

An answer that came, but took longer than the budget, counts as a failure: a server that needs half a second for each
call holds up more than one that is gone. While OPEN or PROBING calls fail at once, so nothing piles up, and the server
comes back to one probe per process instead of to everyone at once. Results of calls that were under way when the
breaker opened are late news and change nothing.

A pure state machine: seconds of any monotonic clock are arguments, chance is handed in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from enum import StrEnum

from admission.types import within

__all__ = ["Breaker", "BreakerState"]


class BreakerState(StrEnum):
    """What the breaker lets through."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """Nothing, until its pause is over."""
    PROBING = "probing"
    """One probe, which is under way."""


class Breaker:
    """Opens after failures in a row, and closes again when a probe succeeds.

    Args:
        failures: That many in a row open it.
        budget: Seconds. An answer that took longer is a failure.
        first_pause, longest_pause: Seconds until the first probe, doubled after every probe that failed.
        chance: Where the jitter comes from: evenly spread over 0 … 1. A pause is 0.5 to 1 times what it would be.

    Raises:
        ValueError: An option is outside its range; the message names it, its value and the range.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        budget: float = math.inf,
        first_pause: float = 0.1,
        longest_pause: float = 5.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        within("failures", failures, 1)
        within("budget", budget, 0, above_low=True)
        within("first_pause", first_pause, 0, above_low=True)
        within("longest_pause", longest_pause, first_pause)
        self.state = BreakerState.CLOSED
        self.probe_at = math.inf
        """When the next probe is due; inf unless OPEN."""
        self.opened_at = -math.inf
        """When it last left CLOSED."""
        self._most = failures
        self._budget = budget
        self._first = first_pause
        self._longest = longest_pause
        self._chance = chance
        self._failed = 0
        """Failures in a row, while CLOSED."""
        self._pause = first_pause

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return self.state is BreakerState.CLOSED

    def succeeded(self, now: float, seconds: float) -> None:
        """A call was answered after *seconds*."""
        if seconds > self._budget:
            self.failed(now)
        elif self.closed:
            self._failed = 0

    def failed(self, now: float) -> None:
        """A call was not answered, or by an error."""
        if not self.closed:
            return
        self._failed += 1
        if self._failed >= self._most:
            self.opened_at = now
            self._pause = self._first
            self._open(now)

    def probe(self, now: float) -> bool:
        """Whether to send a probe now; one of the next two is then to be told what became of it."""
        if self.state is not BreakerState.OPEN or now < self.probe_at:
            return False
        self.state = BreakerState.PROBING
        self.probe_at = math.inf
        return True

    def probe_succeeded(self, now: float, seconds: float) -> None:
        """The probe was answered after *seconds*."""
        if seconds > self._budget:
            self.probe_failed(now)
        elif self.state is BreakerState.PROBING:
            self.state = BreakerState.CLOSED
            self._failed = 0

    def probe_failed(self, now: float) -> None:
        """The probe was not answered, or by an error."""
        if self.state is BreakerState.PROBING:
            self._pause = min(2 * self._pause, self._longest)
            self._open(now)

    def _open(self, now: float) -> None:
        self.state = BreakerState.OPEN
        self.probe_at = now + self._pause * (0.5 + 0.5 * self._chance())
