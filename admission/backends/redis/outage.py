"""While the server cannot be reached: this process runs a pool of its own, with its share of the limit.

Whoever holds slots of the shared pool keeps them and counts here. Whoever waits there waits here. Afterwards what runs
is told to the shared pool, and who waits goes back to its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from admission.backends.base import PoolRules
from admission.backends.memory import MemoryBackend
from admission.backends.redis.claims import Claim
from admission.line import REFUSED, RUNNING, Entry
from admission.policy.limit import FixedLimit
from admission.types import Outcome, Reason
from admission.waker import Loop

NO_LIMIT = 2**31
"""Slots while `on_outage` is "open"."""


class Standby:
    """The pool of this process alone.

    Args:
        slots: Its limit.
        decided: Told when a waiter here was granted or refused; its `inner` says which.
        entered: Told when a waiter here moved from the lobby into the line.
    """

    def __init__(
        self,
        rules: PoolRules,
        slots: int,
        loop: Loop,
        pool: object,
        decided: Callable[[Claim], None],
        entered: Callable[[Claim], None],
    ) -> None:
        self._pool = MemoryBackend.of(replace(rules, limit=FixedLimit(slots)))
        self._pool.adopt(pool)
        self._pool.start(loop)
        self._decided = decided
        self._entered = entered
        self._stand_ins: dict[str, Entry] = {}
        """What shared permits take up here, by id of their claims."""
        self._uncounted: dict[str, Claim] = {}
        """Shared permits for which there was no room here."""

    @property
    def limit(self) -> int:
        """Slots it may use."""
        return self._pool.limit

    def holds(self, now: float, claims: Sequence[Claim]) -> None:
        """These hold slots of the shared pool, and go on."""
        for claim in claims:
            if not self._count(now, claim):
                self._uncounted[claim.id] = claim

    def take(self, now: float, claim: Claim) -> Entry:
        """Let a claim in, let it wait, or refuse it: the entry returned says which, and is its `inner` from now on."""
        entry = claim.entry
        claim.inner = inner = self._pool.offer(
            now,
            entry.rank,
            entry.tenant,
            entry.slots,
            entry.cost,
            expires=entry.expires,
            expires_as=entry.expires_as,
            may_wait=claim.may_wait,
            waiter=_Mirror(claim, self._decided, self._entered),
        )
        return inner

    def release(self, now: float, claim: Claim, outcome: Outcome, actual_cost: float | None) -> None:
        """A claim that runs has ended, wherever it was granted."""
        self._uncounted.pop(claim.id, None)
        room = self._stand_ins.pop(claim.id, None) if claim.inner is None else claim.inner
        if room is None:
            return
        if self._uncounted:
            # Its room goes to one that has none yet, before anyone new is let in.
            other, _ = self._uncounted.popitem()
            self._stand_ins[other] = room
        elif claim.inner is None:
            self._pool.release(now, room, Outcome.IGNORED, None, None)
        else:
            self._pool.release(now, room, outcome, actual_cost, None)

    def withdraw(self, now: float, claim: Claim, reason: Reason) -> None:
        """A claim stops waiting."""
        if claim.inner is not None:
            self._pool.withdraw(now, claim.inner, reason)

    def passes(self, now: float, claim: Claim) -> None:
        """A claim that waits here was granted by the shared pool after all: from now on it holds that pool's slots."""
        self.withdraw(now, claim, Reason.CANCELLED)
        claim.inner = None
        self.holds(now, [claim])

    def pause(self, now: float, rank: int | None) -> None:
        """Start nothing more, of one class or of all."""
        self._pool.pause(now, rank)

    def resume(self, now: float, rank: int | None) -> None:
        """Take a pause back."""
        self._pool.resume(now, rank)

    def position(self, claim: Claim) -> int:
        """Position here."""
        return 0 if claim.inner is None else self._pool.position(claim.inner)

    def predicted_wait(self, claim: Claim, now: float) -> float | None:
        """Seconds a claim will go on waiting; None while unknown."""
        return None if claim.inner is None else self._pool.predicted_wait(claim.inner, now)

    def dissolve(self, now: float, claims: Sequence[Claim]) -> None:
        """It is over: nobody here hears anything any more."""
        for claim in claims:
            inner, claim.inner = claim.inner, None
            if inner is not None and inner.state not in (RUNNING, REFUSED):
                inner.waiter = None
        self._pool.close(now)

    def _count(self, now: float, claim: Claim) -> bool:
        entry = claim.entry
        stand_in = self._pool.offer(
            now,
            entry.rank,
            entry.tenant,
            entry.slots,
            entry.cost,
            expires=math.inf,
            expires_as=Reason.TIMEOUT,
            may_wait=False,
            waiter=None,
        )
        if stand_in.state is RUNNING:
            self._stand_ins[claim.id] = stand_in
        return stand_in.state is RUNNING


class _Mirror:
    """Passes on what becomes of a claim's inner entry."""

    __slots__ = ("_claim", "_decided", "_entered")

    def __init__(self, claim: Claim, decided: Callable[[Claim], None], entered: Callable[[Claim], None]) -> None:
        self._claim = claim
        self._decided = decided
        self._entered = entered

    def entered(self, entry: Entry) -> None:
        """From the lobby into the line."""
        if self._claim.inner is entry:
            self._entered(self._claim)

    def decided(self, entry: Entry) -> None:
        """Granted or refused."""
        if self._claim.inner is entry:
            self._decided(self._claim)
