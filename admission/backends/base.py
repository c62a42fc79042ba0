"""What a backend is: one pool's limit, line and order, wherever they are kept.

The memory backend keeps them in this process, in `core.Core`. Another one may keep them elsewhere and hear of its
grants later: that is why nothing here returns a grant. A `Waiter` is told, and an entry's `state` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from admission.line import Entry, State, Waiter
from admission.policy.limit import Limit
from admission.types import BackpressureMode, Outcome, PriorityClass, Reason, Snapshot, TicketStatus
from admission.waker import Loop

__all__ = ["Backend", "Entry", "PoolRules", "PoolSite", "State", "Waiter", "deliver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRules:
    """What a pool is to be: the options of a controller that concern its backend, checked. See `Core`."""

    name: str
    limit: Limit
    classes: tuple[PriorityClass, ...]
    max_queue_size: int
    mode: BackpressureMode
    max_lobby_size: int
    max_queued_per_tenant: int | None
    refuse_hopeless: bool


@runtime_checkable
class PoolSite(Protocol):
    """Where pools are kept."""

    def open_pool(self, rules: PoolRules) -> Backend:
        """The backend of one pool there. Does no I/O yet."""


@runtime_checkable
class Backend(Protocol):
    """One pool. All methods run on the loop it was started on, none of them waits.

    `now` is monotonic seconds of that loop's clock.
    """

    @property
    def process(self) -> str:
        """What a shared pool calls this process; empty of a pool of this process alone."""

    @property
    def answers_later(self) -> bool:
        """Whether an entry may be `ASKED` when `offer` returns: the pool is kept elsewhere."""

    @property
    def cut_off(self) -> bool:
        """Whether the pool is kept elsewhere and out of reach, so that this process decides alone."""

    def adopt(self, pool: object) -> None:
        """Put *pool* on every entry from now on."""

    def start(self, loop: Loop) -> None:
        """Work on this loop from now on. Called again on another loop only while nothing waits or runs."""

    def try_start(self, now: float, rank: int, tenant: str, slots: int, cost: float) -> Entry | None:
        """An entry that runs, if that can be said at this instant; else None, and nothing has changed."""

    def try_finish(self, now: float, entry: Entry) -> bool:
        """Release a running entry as a success at its estimated cost, if that is all there is to do.

        Else False, and nothing has changed: call `release`.
        """

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
        """Take a newcomer in. If it is neither running nor refused on return, *waiter* is told later, once."""

    def release(self, now: float, entry: Entry, outcome: Outcome, actual_cost: float | None, rtt: float | None) -> None:
        """A running entry ended. Raises ValueError when it does not run."""

    def withdraw(self, now: float, entry: Entry, reason: Reason) -> None:
        """The caller gives up, in whatever state; its waiter is not told."""

    def resize(self, now: float, limit: Limit) -> None:
        """From now on *limit* says how many slots there are."""

    def pause(self, now: float, rank: int | None) -> None:
        """Start nothing more, of one class or of all."""

    def resume(self, now: float, rank: int | None) -> None:
        """Take a pause back."""

    def close(self, now: float) -> None:
        """Drain: evict all waiters that were offered here, refuse newcomers."""

    def reopen(self) -> None:
        """Take newcomers in again."""

    def position(self, entry: Entry) -> int:
        """1 + the tickets before it; 0 when it runs or is gone."""

    def predicted_wait(self, entry: Entry, now: float) -> float | None:
        """Seconds it will go on waiting; None while unknown."""

    def predicted_newcomer_wait(self, rank: int, now: float) -> float | None:
        """Seconds a newcomer of this class would wait; None while unknown."""

    def held_back_by(self, entry: Entry, now: float) -> str:
        """The rule that binds a waiter, by name."""

    def entries(self, most: int) -> list[Entry]:
        """Waiters in order of service."""

    def snapshot(self, now: float, name: str, top_tenants: int) -> Snapshot:
        """The pool as it stands."""

    async def refresh(self, entry: Entry | None = None) -> None:
        """Bring up to date what the questions answer about the pool, or about one entry; they never wait."""

    async def find(self, ticket_id: str) -> TicketStatus | None:
        """A ticket that was offered elsewhere; None when there is none, or none can be asked for."""

    async def stop(self) -> None:
        """Let go of whatever the loop has to do with it: connections, threads. `start` begins anew."""

    @property
    def held(self) -> int:
        """Slots that tickets offered here hold; of a shared pool, those of this process."""

    @property
    def waiting(self) -> int:
        """Tickets offered here that wait."""

    @property
    def in_flight(self) -> int:
        """Slots in use."""

    @property
    def queued(self) -> int:
        """Tickets in line and lobby."""

    @property
    def limit(self) -> int:
        """Slots that may be in use."""


def deliver(granted: Sequence[Entry], evicted: Sequence[Entry], entered: Sequence[Entry]) -> None:
    """Tell the waiters what was decided. The state is final before the first of them hears of it."""
    for entry in granted:
        if entry.waiter is not None:
            entry.waiter.decided(entry)
    for entry in evicted:
        if entry.waiter is not None:
            entry.waiter.decided(entry)
    for entry in entered:
        if entry.waiter is not None and entry.state is State.WAITING:
            entry.waiter.entered(entry)
