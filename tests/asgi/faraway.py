"""A shared pool played by hand: it answers when the test says so, and records what it was asked."""

from __future__ import annotations

from collections.abc import Sequence

from admission.backends.base import PoolRules
from admission.line import ASKED, DONE, REFUSED, RUNNING, WAITING, Entry, Waiter
from admission.policy.fairness import Flow
from admission.policy.limit import Limit
from admission.types import (
    BackpressureMode,
    HistogramSnapshot,
    LinkSnapshot,
    Outcome,
    ProcessSnapshot,
    Reason,
    Snapshot,
    TicketStatus,
)
from admission.waker import Loop

PROCESSES = (
    ProcessSnapshot(process="aa", slots=2, waiting=1, lease_left=9.5, elected=True, own=True),
    ProcessSnapshot(process="bb", slots=3, waiting=0, lease_left=4.0, elected=False, own=False),
)
LINK = LinkSnapshot(
    state="closed",
    calls=7,
    operations=21,
    largest_batch=5,
    round_trip=HistogramSnapshot(bounds=(0.001, 0.01), counts=(4, 2, 1), sum=0.05),
    failures=2,
    timeouts=1,
    reconnects=3,
    resyncs=4,
    lease_renewals=6,
    lease_failures=8,
    stale=9,
    over_limit=1,
)


class Faraway:
    """A `PoolSite` and the `Backend` of its one pool. `grant`, `refuse` and `line_up` are what the server decides."""

    answers_later = True
    cut_off = False

    def __init__(self) -> None:
        self.asked: list[Entry] = []
        """Every entry that was offered, in order."""
        self.refreshed: list[Entry | None] = []
        self.withdrawn: list[tuple[Entry, Reason]] = []
        self.answers: list[int] = []
        """Positions that the pool tells one after the other when it is asked."""
        self.unreachable = False
        """Refuses newcomers at once, as with `on_outage="closed"`."""
        self.stopped = False
        self.limit = 1
        self._pool: object = None
        self._positions: dict[int, int] = {}

    def open_pool(self, rules: PoolRules) -> Faraway:
        return self

    def _decided(self, entry: Entry) -> None:
        assert entry.waiter is not None
        entry.waiter.decided(entry)

    def grant(self, entry: Entry) -> None:
        """Its answer: let in."""
        entry.state = RUNNING
        self._decided(entry)

    def refuse(self, entry: Entry, reason: Reason) -> None:
        """Its answer: turned away."""
        entry.state, entry.reason = REFUSED, reason
        self._decided(entry)

    def line_up(self, entry: Entry, position: int) -> None:
        """Its answer: in line."""
        entry.state, entry.position = WAITING, position
        self._positions[entry.number] = position

    # ------------------------------------------------------------------ the protocol

    def adopt(self, pool: object) -> None:
        self._pool = pool

    def start(self, loop: Loop) -> None: ...

    def try_start(self, now: float, rank: int, tenant: str, slots: int, cost: float) -> Entry | None:
        return None

    def try_finish(self, now: float, entry: Entry) -> bool:
        return False

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
        entry = Entry()
        entry.rank, entry.flow, entry.slots, entry.cost = rank, Flow(tenant, 1.0), slots, cost
        entry.state, entry.arrival, entry.granted_at, entry.position = ASKED, now, now, 0
        entry.pool, entry.waiter, entry.expires, entry.expires_as = self._pool, waiter, expires, expires_as
        entry.number = len(self.asked)
        entry.id = f"aa:{entry.number}"
        if self.unreachable:
            entry.state, entry.reason = REFUSED, Reason.UNAVAILABLE
        self.asked.append(entry)
        return entry

    def release(self, now: float, entry: Entry, outcome: Outcome, actual_cost: float | None, rtt: float | None) -> None:
        entry.state = DONE

    def withdraw(self, now: float, entry: Entry, reason: Reason) -> None:
        self.withdrawn.append((entry, reason))
        if entry.state is not REFUSED:
            entry.state, entry.reason = REFUSED, reason

    def resize(self, now: float, limit: Limit) -> None: ...

    def pause(self, now: float, rank: int | None) -> None: ...

    def resume(self, now: float, rank: int | None) -> None: ...

    def close(self, now: float) -> None: ...

    def reopen(self) -> None: ...

    def position(self, entry: Entry) -> int:
        return 0 if entry.state is RUNNING else self._positions.get(entry.number, 0)

    def predicted_wait(self, entry: Entry, now: float) -> float | None:
        return None

    def predicted_newcomer_wait(self, rank: int, now: float) -> float | None:
        return None

    def held_back_by(self, entry: Entry, now: float) -> str:
        return "pool-limit"

    def entries(self, most: int) -> Sequence[Entry]:
        return [entry for entry in self.asked if entry.state in (ASKED, WAITING)][:most]

    def snapshot(self, now: float, name: str, top_tenants: int) -> Snapshot:
        """Five slots in use once it was asked; before that it knows nothing."""
        known = bool(self.refreshed)
        return Snapshot(
            pool=name,
            mode=BackpressureMode.REJECT,
            limit=self.limit,
            in_flight=5 if known else 0,
            queued=1 if known else 0,
            lobby=0,
            max_queue_size=100,
            paused=False,
            draining=False,
            drain_rate=None,
            classes=(),
            tenants=(),
            tenants_active=0,
            processes=PROCESSES if known else (),
            link=LINK,
        )

    async def refresh(self, entry: Entry | None = None) -> None:
        self.refreshed.append(entry)
        if entry is not None and self.answers:
            self.line_up(entry, self.answers.pop(0))

    async def find(self, ticket_id: str) -> TicketStatus | None:
        return None

    async def stop(self) -> None:
        self.stopped = True

    @property
    def held(self) -> int:
        return sum(entry.state is RUNNING for entry in self.asked)

    @property
    def waiting(self) -> int:
        return len(self.entries(1000))

    @property
    def in_flight(self) -> int:
        return self.held

    @property
    def queued(self) -> int:
        return self.waiting
