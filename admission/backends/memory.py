"""The pool in this process: `core.Core`, a timer for what happens by time alone, and delivery to the waiters."""

from __future__ import annotations

import math

from admission.backends.base import PoolRules, Waiter, deliver
from admission.class_state import ClassState
from admission.core import NOTHING, Core, Decisions
from admission.line import Entry
from admission.policy.limit import Limit
from admission.policy.shares import MICRO
from admission.types import ClassSnapshot, Outcome, Reason, Snapshot, TenantSnapshot, TicketStatus
from admission.waker import Loop, Timer


class MemoryBackend:
    """Drives a `Core` on one event loop."""

    answers_later = False
    cut_off = False
    process = ""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._loop: Loop | None = None
        self._timer: Timer | None = None
        self._armed_for = math.inf
        self.try_start = core.try_start
        self.try_finish = core.try_finish

    @classmethod
    def of(cls, rules: PoolRules) -> MemoryBackend:
        """A pool with these rules."""
        return cls(
            Core(
                limit=rules.limit,
                classes=rules.classes,
                max_queue_size=rules.max_queue_size,
                mode=rules.mode,
                max_lobby_size=rules.max_lobby_size,
                max_queued_per_tenant=rules.max_queued_per_tenant,
                refuse_hopeless=rules.refuse_hopeless,
            )
        )

    def adopt(self, pool: object) -> None:
        """Put *pool* on every entry."""
        self._core.pool = pool

    def start(self, loop: Loop) -> None:
        """Use this loop's timers."""
        self._loop = loop
        self._timer, self._armed_for = None, math.inf
        for state in self._core.timed:
            state.share.next_start = -math.inf  # A time on the last loop's clock, which may count from elsewhere.

    def offer(
        self,
        now: float,
        rank: int,
        tenant: str,
        slots: int,
        cost: float,
        *,
        expires: float,
        expires_as: Reason,
        may_wait: bool,
        waiter: Waiter | None,
    ) -> Entry:
        """See `Backend.offer`."""
        core = self._core
        entry, decisions = core.offer(
            now,
            rank,
            tenant,
            slots,
            cost,
            expires=expires,
            expires_as=expires_as,
            may_wait=may_wait,
            waiter=waiter,
        )
        if decisions is not NOTHING:
            deliver(*decisions)
        if expires < self._armed_for or core.timed:
            self._arm(now)
        return entry

    def release(self, now: float, entry: Entry, outcome: Outcome, actual_cost: float | None, rtt: float | None) -> None:
        """See `Backend.release`."""
        try:
            decisions = self._core.release(now, entry, outcome, actual_cost, rtt)
        except Exception:
            # A limit of the user's own that failed to learn: its slots are free all the same, and whoever is next runs.
            self._deliver(now, self._core.expire(now))
            raise
        if decisions is not NOTHING:
            self._deliver(now, decisions)

    def withdraw(self, now: float, entry: Entry, reason: Reason) -> None:
        """See `Backend.withdraw`."""
        self._deliver(now, self._core.withdraw(now, entry, reason))

    def resize(self, now: float, limit: Limit) -> None:
        """See `Backend.resize`."""
        self._deliver(now, self._core.resize(now, limit))

    def pause(self, now: float, rank: int | None) -> None:
        """See `Backend.pause`."""
        self._deliver(now, self._core.pause(now, rank))

    def resume(self, now: float, rank: int | None) -> None:
        """See `Backend.resume`."""
        self._deliver(now, self._core.resume(now, rank))

    def close(self, now: float) -> None:
        """See `Backend.close`."""
        self._deliver(now, self._core.close(now))
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._armed_for = None, math.inf

    def reopen(self) -> None:
        """See `Backend.reopen`."""
        self._core.reopen()

    def position(self, entry: Entry) -> int:
        """See `Backend.position`."""
        return self._core.position(entry)

    def predicted_wait(self, entry: Entry, now: float) -> float | None:
        """See `Backend.predicted_wait`."""
        return self._core.predicted_wait(entry, now)

    def predicted_newcomer_wait(self, rank: int, now: float) -> float | None:
        """See `Backend.predicted_newcomer_wait`."""
        return self._core.predicted_newcomer_wait(rank, now)

    def held_back_by(self, entry: Entry, now: float) -> str:
        """See `Backend.held_back_by`."""
        return self._core.held_back_by(entry, now)

    def entries(self, most: int) -> list[Entry]:
        """Waiters in order of service."""
        return [*self._core.line.entries(), *self._core.lobby.entries()][:most]

    async def refresh(self, entry: Entry | None = None) -> None:
        """Nothing: what it says is always of this instant."""

    async def find(self, ticket_id: str) -> TicketStatus | None:
        """None: all there are were offered here."""
        return None

    async def stop(self) -> None:
        """Nothing: it holds nothing but a timer, which `close` has ended."""

    @property
    def in_flight(self) -> int:
        """Slots in use."""
        return self._core.in_use

    held = in_flight

    @property
    def queued(self) -> int:
        """Tickets in line and lobby."""
        return self._core.line.queued + self._core.lobby.queued

    waiting = queued

    @property
    def limit(self) -> int:
        """Slots that may be in use."""
        return self._core.limit

    def snapshot(self, now: float, name: str, top_tenants: int) -> Snapshot:
        """The pool as it stands."""
        core = self._core
        tenants = [
            TenantSnapshot(tenant=flow.tenant, priority=state.rules.name, running=flow.running, queued=flow.waiting)
            for state in core.classes
            for flow in state.fair.flows.values()
            if flow.running or flow.waiting
        ]
        tenants.sort(key=lambda tenant: (-tenant.queued - tenant.running, tenant.tenant))
        return Snapshot(
            pool=name,
            mode=core.mode,
            limit=core.limit,
            in_flight=core.in_use,
            queued=core.line.queued,
            lobby=core.lobby.queued,
            max_queue_size=core.max_queue_size,
            paused=core.paused,
            draining=core.closed,
            drain_rate=core.drain_rate(now),
            classes=tuple(self._class_snapshot(state, now) for state in core.classes),
            tenants=tuple(tenants[:top_tenants]),
            tenants_active=len(tenants),
        )

    def _class_snapshot(self, state: ClassState, now: float) -> ClassSnapshot:
        core = self._core
        running = sum(flow.running for flow in state.fair.flows.values())
        return ClassSnapshot(
            name=state.rules.name,
            rank=state.rank,
            rules=state.rules,
            in_flight=state.share.held,
            running=running,
            queued=state.line.queued,
            lobby=state.lobby.queued,
            slot_cap=state.share.cap,
            paused=state.share.paused,
            credit=state.share.credit(core.starts) / MICRO,
            oldest_wait=now - state.line.oldest().arrival if state.line.queued else 0.0,
            predicted_wait=core.predicted_newcomer_wait(state.rank, now),
            held_back_by=core.held_back_by(state.line.head(), now) if state.line.queued else None,
            **state.statistics.totals(running=running, waiting=state.line.queued + state.lobby.queued),
        )

    def _deliver(self, now: float, decisions: Decisions) -> None:
        if decisions is not NOTHING:
            deliver(*decisions)
            if self._core.timed:
                self._arm(now)

    def _arm(self, now: float) -> None:
        """Have the timer ring when time alone has something to decide; one timer, not one per waiter."""
        due = self._core.next_event(now)
        if due < self._armed_for and self._loop is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._ring)
            self._armed_for = due

    def _ring(self) -> None:
        assert self._loop is not None
        self._timer, self._armed_for = None, math.inf
        now = self._loop.now()
        decisions = self._core.expire(now)
        if decisions is not NOTHING:
            deliver(*decisions)
        self._arm(now)
