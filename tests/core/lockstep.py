"""`Core` and the naive model side by side: every operation is done to both, and all that can be seen is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from admission.core import Core, Decisions
from admission.line import Entry, State
from admission.policy.limit import FixedLimit
from admission.types import BackpressureMode, PriorityClass, Reason
from tests.core.model import DONE, LINE, LOBBY, REFUSED, RUNNING, Held, Model, Outcomes

PLACES = {
    State.WAITING: LINE,
    State.LOBBY: LOBBY,
    State.RUNNING: RUNNING,
    State.DONE: DONE,
    State.REFUSED: REFUSED,
}


class Lockstep:
    """One pool, twice. Any difference is an AssertionError that says what differs."""

    def __init__(
        self,
        *,
        limit: int,
        classes: Sequence[PriorityClass],
        max_queue_size: int = 0,
        mode: BackpressureMode = BackpressureMode.REJECT,
        max_lobby_size: int = 10_000,
        max_queued_per_tenant: int | None = None,
        kind: type[Core] = Core,
    ) -> None:
        self.core = kind(
            limit=FixedLimit(limit),
            classes=classes,
            max_queue_size=max_queue_size,
            mode=mode,
            max_lobby_size=max_lobby_size,
            max_queued_per_tenant=max_queued_per_tenant,
        )
        self.model = Model(
            limit=limit,
            classes=classes,
            max_queue_size=max_queue_size,
            mode=mode,
            max_lobby_size=max_lobby_size,
            max_queued_per_tenant=max_queued_per_tenant,
        )
        self.now = 0.0
        self.pairs: list[tuple[Entry, Held]] = []
        """All tickets so far that were not refused on arrival."""
        self.numbers: dict[Entry, int] = {}

    # ------------------------------------------------------------------ operations

    def offer(
        self,
        rank: int,
        tenant: str,
        slots: int = 1,
        cost: float = 1,
        expires: float = math.inf,
        expires_as: Reason = Reason.TIMEOUT,
        *,
        may_wait: bool = True,
        by_hot_path: bool = False,
    ) -> tuple[Entry, Held]:
        """A newcomer; by the hot path if that one takes it."""
        entry, decisions = None, Decisions()
        if by_hot_path:
            entry = self.core.try_start(self.now, rank, tenant, slots, cost)
        if entry is None:
            entry, decisions = self.core.offer(
                self.now, rank, tenant, slots, cost, expires=expires, expires_as=expires_as, may_wait=may_wait
            )
        held, outcomes = self.model.offer(self.now, rank, tenant, slots, cost, expires, expires_as, may_wait)
        self.numbers[entry] = held.number
        self.pairs.append((entry, held))
        self.same(decisions, outcomes)
        self.same_place(entry, held)
        if held.where != REFUSED:
            assert entry.position == held.position, f"told position {entry.position}, not {held.position}"
        return entry, held

    def release(self, pair: tuple[Entry, Held], actual_cost: float | None = None, *, by_hot_path: bool = False) -> None:
        """A running ticket ended; by the hot path if that one takes it."""
        entry, held = pair
        decisions = Decisions()
        if not (by_hot_path and actual_cost is None and self.core.try_finish(self.now, entry)):
            decisions = self.core.release(self.now, entry, actual_cost=actual_cost)
        self.same(decisions, self.model.release(self.now, held, actual_cost))

    def withdraw(self, pair: tuple[Entry, Held]) -> None:
        """A caller gives up, wherever its ticket is."""
        entry, held = pair
        decisions = self.core.withdraw(self.now, entry)
        self.same(decisions, self.model.withdraw(self.now, held, Reason.CANCELLED))

    def wait(self, seconds: float, *, rings: bool = True) -> None:
        """Time passes. The driver calls `expire` whenever it is due, or its loop was blocked and it does not."""
        until = self.now + seconds
        while rings and (due := self.core.next_event(self.now)) <= until:
            self.now = max(self.now, due)
            waiting = len(self.at(LINE, LOBBY))
            self.expire()
            # What moves up from the lobby may be too old for a class under CoDel at once: then it rings once more.
            over = self.core.next_event(self.now) > self.now or len(self.at(LINE, LOBBY)) < waiting
            assert over, f"due at {due}, and still due after expire, which did nothing"
        self.now = until

    def expire(self) -> None:
        """The timer rings."""
        self.same(self.core.expire(self.now), self.model.expire(self.now))

    def resize(self, limit: int) -> None:
        """Another limit."""
        decisions = self.core.resize(self.now, FixedLimit(limit))
        self.same(decisions, self.model.resize(self.now, limit))

    def pause(self, rank: int | None) -> None:
        """Start nothing more."""
        self.same(self.core.pause(self.now, rank), self.model.pause(self.now, rank))

    def resume(self, rank: int | None) -> None:
        """Go on."""
        self.same(self.core.resume(self.now, rank), self.model.resume(self.now, rank))

    def close(self) -> None:
        """Drain."""
        self.same(self.core.close(self.now), self.model.close(self.now))

    def at(self, *places: str) -> list[tuple[Entry, Held]]:
        """Tickets in one of these places, by arrival."""
        return [pair for pair in self.pairs if pair[1].where in places]

    # ------------------------------------------------------------------ comparison

    def same(self, decisions: Decisions, outcomes: Outcomes) -> None:
        """The two decided the same about other tickets, in the same order."""
        for what in ("granted", "evicted", "entered"):
            of_core = [self.numbers[entry] for entry in getattr(decisions, what)]
            assert of_core == getattr(outcomes, what), f"{what} {of_core}, not {getattr(outcomes, what)}"

    def same_place(self, entry: Entry, held: Held) -> None:
        """The two have one ticket in the same place."""
        assert PLACES[entry.state] == held.where, f"ticket {held.number} is {entry.state.name}, not {held.where}"
        if held.where == REFUSED:
            assert entry.reason is held.reason, f"ticket {held.number}: {entry.reason}, not {held.reason}"

    def check(self) -> None:
        """The two have the same order, accounts and times."""
        core, model = self.core, self.model
        for place, line in ((LINE, core.line), (LOBBY, core.lobby)):
            order = [self.numbers[entry] for entry in line.entries()]
            expected = [held.number for held in model.at(place)]
            assert order == expected, f"the {place} is {order}, not {expected}"
        assert core.in_use == model.in_use(), f"{core.in_use} slots in use, not {model.in_use()}"
        assert core.limit == model.limit
        for state, room in zip(core.classes, model.rooms, strict=True):
            assert state.share.held == model.in_use(room.rank)
            credit = state.share.credit(core.starts)
            assert credit == model.credit(room) * 1_000_000, f"class {room.rank} has another credit"
        assert core.next_event(self.now) == model.next_event(self.now)

    def check_every_ticket(self) -> None:
        """Each ticket there ever was is in the same place, at the same position."""
        for entry, held in self.pairs:
            self.same_place(entry, held)
            if held.where in (LINE, LOBBY):
                assert self.core.position(entry) == self.model.position(held)

    def finish(self) -> None:
        """All that wait give up and all that run end: nothing may be left."""
        for place in (LOBBY, LINE, RUNNING):
            while pairs := self.at(place):
                self.withdraw(pairs[-1])
        core = self.core
        assert core.in_use == 0, f"{core.in_use} slots lost"
        assert core.line.queued == core.lobby.queued == 0
        for state in core.classes:
            assert state.share.held == 0
            leaked = [flow.tenant for flow in state.fair.flows.values() if flow.waiting or flow.running]
            assert not leaked, f"tenants {leaked} still count as waiting or running"
