"""Which class goes next: overdue heads, guaranteed shares, then rank; and what holds a class back.

The idea: ranks alone starve whoever is last, so three rules bend them.

    overdue     a class with `max_delay` whose oldest waiter has waited that long goes first, oldest first
    credit      every grant of s slots to anyone adds guaranteed x s to a class's credit, and its own grants take s
                away. At most limit + 1 is kept while it has waiters, nothing above 0 while it has none, and at
                least -OWED x (limit + 1). The highest-ranked class whose credit covers its head goes next
    rank        then the highest-ranked class with waiters

So a guaranteed class gets its share of the *starts* under contention, at any limit, and what it has had of late counts:
who lives well on what others leave need not go before them in a rush. Two things hold a class back at every step: its
ceiling, max(1, floor(ceiling x limit)) slots, and its start rate (a token bucket, kept as the time at which the next
start is due: the generic cell rate algorithm).

Credits are integers in millionths of a slot, so that two implementations agree to the last digit. Nobody's account is
touched when another class is granted something: it is brought up to date when it is looked at, from the slots that the
pool has granted so far.

Known weakness: it shares starts, not time. Where one class's work is longer, `ceiling` bounds time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol, TypeVar

from admission.types import PriorityClass

MICRO = 1_000_000
"""One slot's worth of credit."""

OWED = 8
"""Limits' worth of starts beyond its share that a class may owe.

Its memory has to outlast a rush. Under a higher class at 90 % load, equally long work that is sure of a twentieth then
makes p99 of the other's waits 1.11 times as long, as it does when sure of nothing; with 4 it would be 1.23, with 0 2.05
(8 slots; tests/scenarios/test_shared_capacity.py with 160,000 requests).
"""


class Share:
    """The account of one class: slots it holds, credit, ceiling and start rate."""

    __slots__ = (
        "_credit",
        "_least_credit",
        "_most_credit",
        "_start_allowance",
        "_starts_seen",
        "_waits",
        "cap",
        "free_cap",
        "guaranteed",
        "held",
        "next_start",
        "paused",
        "rank",
        "rules",
        "start_interval",
        "widest",
    )

    def __init__(self, rules: PriorityClass, rank: int, limit: int) -> None:
        self.rules = rules
        self.rank = rank
        self.held = 0
        """Slots its running tickets hold."""
        self.paused = False
        self.cap = limit
        self.free_cap = limit
        """Slots it may hold with no other rule to ask: the ceiling, or 0 when it is paused, rated or exempt."""
        self.widest: float = math.inf
        """Slots of the widest ticket it may ever start."""
        self.guaranteed = round(rules.guaranteed * MICRO)
        """Credit earned for each slot granted to anyone."""
        self._credit = 0
        self._starts_seen = 0
        """Slots the pool had granted when `_credit` was right."""
        self._waits = False
        self._most_credit = self._least_credit = 0
        self.start_interval: float | None = None
        self._start_allowance = 0.0
        if rules.rate is not None:
            burst = rules.burst if rules.burst is not None else max(1, math.floor(rules.rate))
            self.start_interval = 1 / rules.rate
            self._start_allowance = (burst - 1) * self.start_interval
        self.next_start = -math.inf
        """When the bucket will be full again; a start is due when that is no more than a burst away."""
        self.resize(limit)

    def resize(self, limit: int) -> None:
        """The pool's limit is now *limit*."""
        # The epsilon: 0.1 x 30 is 3.0000000000000004 and 0.7 x 10 is 6.999...; both mean what they say.
        self.cap = max(1, math.floor(self.rules.ceiling * limit + 1e-9))
        self._most_credit = (limit + 1) * MICRO
        self._least_credit = -OWED * self._most_credit
        plain = not self.paused and self.start_interval is None and not self.rules.exempt
        self.free_cap = self.cap if plain else 0
        self.widest = self.cap if self.rules.ceiling < 1 and not self.rules.exempt else math.inf

    def pause(self, paused: bool, limit: int) -> None:
        """Start nothing more of this class, or go on."""
        self.paused = paused
        self.resize(limit)

    def start_due(self) -> float:
        """The earliest time at which the start rate allows another start; -inf without a rate."""
        return self.next_start - self._start_allowance

    def held_back(self, slots: int, now: float) -> str | None:
        """The rule that keeps a ticket of this many slots from starting now, by name; None when none does."""
        if self.paused:
            return "class-paused"
        # A ceiling of 1 is the pool's own limit: a head too wide for it is not passed over, it stops the pump.
        if self.held and self.held + slots > self.cap and self.rules.ceiling < 1:
            return "class-ceiling"
        if self.start_interval is not None and now < self.start_due():
            return "start-rate"
        return None

    def count_start(self, now: float) -> None:
        """A ticket of this class was granted: that was one start."""
        if self.start_interval is not None:
            self.next_start = max(self.next_start, now) + self.start_interval

    def credit(self, starts: int) -> int:
        """What it may claim, in millionths of a slot, now that the pool has granted *starts* slots in all.

        Below 0: what it has had beyond its share.
        """
        most = self._most_credit if self._waits else 0
        return min(self._credit + self.guaranteed * (starts - self._starts_seen), most)

    def waits(self, waits: bool, starts: int) -> None:
        """Its line has its first waiter, or none any more."""
        if self.guaranteed:
            self._credit, self._starts_seen = min(self.credit(starts), 0), starts
            self._waits = waits

    def spend(self, slots: int, starts: int) -> None:
        """It is granted *slots*, which are not among the *starts* yet."""
        if self.guaranteed:
            self._credit = max(self.credit(starts) + (self.guaranteed - MICRO) * slots, self._least_credit)
            self._starts_seen = starts + slots

    def is_due(self, slots: int, starts: int) -> bool:
        """Whether its credit pays for a ticket of this many slots."""
        return self.guaranteed > 0 and self.credit(starts) >= slots * MICRO


class Contender(Protocol):
    """A class with waiters, as `next_class` looks at it."""

    @property
    def share(self) -> Share:
        """Its account."""

    def head_slots(self) -> int:
        """Slots its head needs."""

    def oldest_arrival(self) -> float:
        """When its oldest waiter arrived, in monotonic seconds."""


C = TypeVar("C", bound=Contender)


def next_class(contenders: Iterable[C], now: float, starts: int) -> C | None:
    """The class to serve next among those with waiters, given in order of rank; None when all are held back.

    Args:
        now: Monotonic seconds.
        starts: Slots the pool has granted so far.
    """
    by_rank: C | None = None
    by_credit: C | None = None
    overdue: C | None = None
    overdue_since = math.inf
    for contender in contenders:
        share = contender.share
        slots = contender.head_slots()
        if share.held + slots > share.free_cap and share.held_back(slots, now) is not None:
            continue
        max_delay = share.rules.max_delay
        if max_delay is not None:
            arrival = contender.oldest_arrival()
            if now - arrival >= max_delay and arrival < overdue_since:
                overdue, overdue_since = contender, arrival
        if by_credit is None and share.is_due(slots, starts):
            by_credit = contender
        if by_rank is None:
            by_rank = contender
    return overdue or by_credit or by_rank
