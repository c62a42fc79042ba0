"""Who is turned away, and what they are told: push-out, CoDel, Retry-After.

*Push-out.* When the line is full, the worst waiter is the one with the lowest class, then the largest start tag. A
newcomer that stands before it takes its place if its class is higher, or, inside one class, if the worst
waiter's tenant has more waiters than the newcomer's own (the newcomer counted in): the flooder loses first.

*CoDel.* A line that is never empty for long is not absorbing a burst, it only adds delay. If the shortest wait
of an interval is above the target, waiters older than twice the target are evicted: they are most likely to be
abandoned already. Source: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012; the form for requests
is Maurer's "Fail at Scale", ACM Queue 2015. Known weakness: it needs a target that the owner believes in.

*Retry-After.* What a newcomer would wait, between 1 and 30 s, with up to 5 s of jitter. Without jitter, 1,000
refusals that say "1 second" come back as one herd.
"""

from __future__ import annotations

import math

from admission.types import Reason

RETRY_AFTER_LEAST = 1.0
RETRY_AFTER_MOST = 30.0
RETRY_AFTER_JITTER = 5.0


def pushes_out(
    *, rank: int, start: int, waiting: int, worst_rank: int, worst_start: int, worst_waiting: int
) -> Reason | None:
    """Why a newcomer may evict the worst waiter; None when it may not.

    Args:
        rank, start: Class and start tag of the newcomer.
        waiting: Waiters of the newcomer's tenant, the newcomer included.
        worst_rank, worst_start, worst_waiting: The same of the worst waiter.
    """
    if worst_rank > rank:
        return Reason.PRIORITY
    if worst_rank == rank and start < worst_start and worst_waiting > waiting:
        return Reason.FAIRNESS
    return None


def retry_after(predicted_wait: float | None, default: float, jitter: float) -> int:
    """Whole seconds to put into `Retry-After`, within 1 … 30.

    Args:
        predicted_wait: Seconds a newcomer would wait; None while no rate is known.
        default: Seconds to say then.
        jitter: Random number in 0 … 1.
    """
    seconds = default if predicted_wait is None else predicted_wait
    most = RETRY_AFTER_MOST - RETRY_AFTER_JITTER
    return math.ceil(min(max(seconds, RETRY_AFTER_LEAST), most) + jitter * RETRY_AFTER_JITTER - 1e-9)


class CoDel:
    """Watches the waits of one class and says when its line is a standing one."""

    __slots__ = ("_interval", "_shortest", "interval_end", "overloaded", "target")

    def __init__(self, target: float, interval: float | None) -> None:
        self.target = target
        self._interval = interval if interval is not None else 10 * target
        self._shortest = math.inf
        self.interval_end = math.inf
        """When the present interval ends; inf while nobody waits."""
        self.overloaded = False

    def waiting_since(self, now: float) -> None:
        """The line, empty until now, has its first waiter: an interval begins."""
        self._shortest = math.inf
        self.interval_end = now + self._interval

    def emptied(self) -> None:
        """Nobody waits any more: whatever this was, it was no standing line."""
        self.interval_end = math.inf
        self.overloaded = False

    def granted(self, waited: float) -> None:
        """A ticket was granted after this many seconds."""
        self._shortest = min(self._shortest, waited)

    def tick(self, now: float) -> None:
        """Close the interval if it has ended, and judge it."""
        if now >= self.interval_end:
            self.overloaded = self._shortest > self.target
            self._shortest = math.inf
            self.interval_end = now + self._interval

    @property
    def oldest_allowed(self) -> float:
        """Seconds after which a waiter is evicted while the class is overloaded."""
        return 2 * self.target
