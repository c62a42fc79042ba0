"""Pools that are wrong on purpose: the fuzzer's silence counts only because it does not keep silent about these.

Each is the real thing with one mistake, most of them made by somebody somewhere. `BROKEN` has them by name.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from admission.controller import AdmissionController, Sleeper
from admission.core import NOTHING, Core, Decisions
from admission.line import DONE, RUNNING, WAITING, ClassLine, Entry
from admission.permit import Permit
from admission.policy.limit import Limit
from admission.types import Outcome, Reason, Unset


class LosesTheSlotOfACancelledGrantee(Core):
    """A waiter that is cancelled in the instant of its grant takes the slot with it (anyio's Semaphore, gh-90155)."""

    def withdraw(self, now: float, entry: Entry, reason: Reason = Reason.CANCELLED) -> Decisions:
        if entry.state is RUNNING:
            entry.state = DONE
            return NOTHING
        return super().withdraw(now, entry, reason)


class WakesNobodyForACancelledGrantee(Core):
    """The slot of a cancelled grantee is free again, but nobody is told."""

    def withdraw(self, now: float, entry: Entry, reason: Reason = Reason.CANCELLED) -> Decisions:
        if entry.state is not RUNNING:
            return super().withdraw(now, entry, reason)
        with_pump, self._pump = self._pump, lambda *_: None  # type: ignore[method-assign]
        try:
            return super().withdraw(now, entry, reason)
        finally:
            self._pump = with_pump  # type: ignore[method-assign]


class ResizesWithoutServing(Core):
    """A raised limit is used only when somebody leaves."""

    def resize(self, now: float, limit: Limit) -> Decisions:
        with_pump, self._pump = self._pump, lambda *_: None  # type: ignore[method-assign]
        try:
            return super().resize(now, limit)
        finally:
            self._pump = with_pump  # type: ignore[method-assign]


class ExpiresWithoutServing(Core):
    """A wide head times out, and those it held up are forgotten."""

    def expire(self, now: float) -> Decisions:
        with_pump, self._pump = self._pump, lambda *_: None  # type: ignore[method-assign]
        try:
            return super().expire(now)
        finally:
            self._pump = with_pump  # type: ignore[method-assign]


class WithdrawsWithoutServing(Core):
    """A wide head gives up, and those it held up are forgotten."""

    def withdraw(self, now: float, entry: Entry, reason: Reason = Reason.CANCELLED) -> Decisions:
        if entry.state is RUNNING:
            return super().withdraw(now, entry, reason)
        with_pump, self._pump = self._pump, lambda *_: None  # type: ignore[method-assign]
        try:
            return super().withdraw(now, entry, reason)
        finally:
            self._pump = with_pump  # type: ignore[method-assign]


class CountsAtResume(Core):
    """A slot is counted when its new owner resumes, not when it is granted (anyio's CapacityLimiter, anyio#1170)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.uncounted: set[Entry] = set()

    def release(
        self,
        now: float,
        entry: Entry,
        outcome: Outcome = Outcome.SUCCESS,
        actual_cost: float | None = None,
        rtt: float | None = None,
    ) -> Decisions:
        self.count(entry)
        decisions = super().release(now, entry, outcome, actual_cost, rtt)
        for granted in decisions.granted:
            if isinstance(granted.waiter, Sleeper):
                self.uncounted.add(granted)
                self.in_use -= granted.slots
        return decisions

    def count(self, entry: Entry) -> None:
        """It runs for good now."""
        if entry in self.uncounted:
            self.uncounted.remove(entry)
            self.in_use += entry.slots


class ResumesLate(AdmissionController):
    """The driver that goes with it: counts when the sleeper gets up."""

    async def _acquire(
        self,
        rank: int,
        tenant: str,
        slots: int,
        cost: float | None,
        max_wait: float | Unset | None,
        deadline: float | None,
    ) -> Permit:
        permit = await super()._acquire(rank, tenant, slots, cost, max_wait, deadline)
        core = self._backend._core  # type: ignore[attr-defined]
        if isinstance(core, CountsAtResume):
            core.count(permit.entry)
        return permit


class ReleasesTwice(Core):
    """A ticket does not know that it has ended, so a second release frees a slot of someone else."""

    def release(
        self,
        now: float,
        entry: Entry,
        outcome: Outcome = Outcome.SUCCESS,
        actual_cost: float | None = None,
        rtt: float | None = None,
    ) -> Decisions:
        decisions = super().release(now, entry, outcome, actual_cost, rtt)
        entry.state = RUNNING
        return decisions


class FrontOfTheLine(ClassLine):
    """Takes the first for the last."""

    __slots__ = ()

    def worst(self) -> Entry:
        return self.head()


class PushesOutTheWrongOne(Core):
    """The head of the lowest class is evicted from a full line instead of its tail."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for line in self.line.classes:
            line.__class__ = FrontOfTheLine


class LetsTheSmallOvertake(Core):
    """Whoever fits goes, so a wide head starves."""

    def _pump(self, now: float, granted: list[Entry], evicted: list[Entry]) -> None:
        super()._pump(now, granted, evicted)
        for entry in [] if self.paused else self.line.entries():
            state = self.classes[entry.rank]
            if self.in_use + entry.slots <= self.limit and state.share.held_back(entry.slots, now) is None:
                self._grant(state, entry, now)
                granted.append(entry)


class ServesTheLastFirst(Core):
    """A stack instead of a line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for line in self.line.classes:
            line.__class__ = BackOfTheLine


class BackOfTheLine(ClassLine):
    """Takes the last for the first."""

    __slots__ = ()

    def head(self) -> Entry:
        return self.worst()


class KeepsTheChargeOfWhoGaveUp(Core):
    """Work that never ran is paid for."""

    def withdraw(self, now: float, entry: Entry, reason: Reason = Reason.CANCELLED) -> Decisions:
        if entry.state is not RUNNING:
            entry.charge = 0
        return super().withdraw(now, entry, reason)


class RemembersWhoGaveUp(Core):
    """A tenant's waiter that withdrew still counts: its state is never dropped."""

    def withdraw(self, now: float, entry: Entry, reason: Reason = Reason.CANCELLED) -> Decisions:
        if entry.state is WAITING:
            entry.flow.waiting += 1
        return super().withdraw(now, entry, reason)


class StartsTheLate(Core):
    """The deadline is looked at by the timer alone, which rings late when the loop is busy."""

    def offer(self, now: float, *args: Any, **options: Any) -> tuple[Entry, Decisions]:
        entry, decisions = super().offer(now, *args, **options)
        if entry.timed:
            expires, entry.expires = entry.expires, math.inf
            entry.waiter = _Late(entry.waiter, expires)
        return entry, decisions


class _Late:
    """Gives the deadline back when it is too late, for whoever checks."""

    def __init__(self, waiter: Any, expires: float) -> None:
        self.waiter, self.expires = waiter, expires

    def entered(self, entry: Entry) -> None:
        if self.waiter is not None:
            self.waiter.entered(entry)

    def decided(self, entry: Entry) -> None:
        entry.expires = self.expires
        if self.waiter is not None:
            self.waiter.decided(entry)


class IgnoresCeilings(Core):
    """A class may take all there is."""

    def _refresh(self) -> None:
        super()._refresh()
        for state in self.classes:
            state.share.cap = state.share.free_cap = self.limit


class LeavesTheLobbyStanding(Core):
    """Room in the line is given to newcomers only."""

    def _next_of_lobby(self) -> Entry | None:
        return None


class IgnoresTheOverdue(Core):
    """Ranks alone: the lowest class starves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for state in self.classes:
            state.share.rules = replace(state.rules, max_delay=None)


class ForgetsItsPlace(AdmissionController):
    """A cancelled caller just goes: its place in line stays, and what it may have been granted is lost."""

    def withdraw(self, entry: Entry, reason: Reason = Reason.CANCELLED) -> None:
        if not isinstance(getattr(entry, "waiter", None), Sleeper):
            super().withdraw(entry, reason)


BROKEN: dict[str, tuple[type[Core], type[AdmissionController]]] = {
    kind.__name__: (kind, AdmissionController)
    for kind in (
        LosesTheSlotOfACancelledGrantee,
        WakesNobodyForACancelledGrantee,
        ResizesWithoutServing,
        ExpiresWithoutServing,
        WithdrawsWithoutServing,
        ReleasesTwice,
        PushesOutTheWrongOne,
        LetsTheSmallOvertake,
        ServesTheLastFirst,
        KeepsTheChargeOfWhoGaveUp,
        RemembersWhoGaveUp,
        StartsTheLate,
        IgnoresCeilings,
        IgnoresTheOverdue,
        LeavesTheLobbyStanding,
    )
}
BROKEN["CountsAtResume"] = CountsAtResume, ResumesLate
BROKEN["ForgetsItsPlace"] = Core, ForgetsItsPlace
