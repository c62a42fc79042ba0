"""The scheduling rules once more, as plainly as they can be written: lists, scans and fractions.

Written from the design's words, not from `core.py`, and slow on purpose: every question is answered by looking at
every ticket. The state machine and the fuzzer hold `Core` to the same decisions, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from admission.types import BackpressureMode, PriorityClass, Reason

LINE, LOBBY, RUNNING, DONE, REFUSED = "line", "lobby", "running", "done", "refused"


@dataclass(eq=False)
class Held:
    """A ticket as the model sees it."""

    number: int
    rank: int
    tenant: str
    slots: int
    cost: float
    arrival: float
    expires: float
    expires_as: Reason
    where: str = DONE
    start: Fraction = Fraction(0)
    charge: Fraction = Fraction(0)
    newest_before: Fraction = Fraction(0)
    reason: Reason | None = None
    position: int = 0


@dataclass
class Account:
    """What a class knows of a tenant."""

    finish: Fraction = Fraction(0)
    newest_start: Fraction = Fraction(0)
    """Of the tickets that arrived since the tenant last had nobody waiting."""


class Room:
    """One class."""

    def __init__(self, rules: PriorityClass, rank: int) -> None:
        self.rules = rules
        self.rank = rank
        self.virtual = Fraction(0)
        self.accounts: dict[str, Account] = {}
        self.credit = Fraction(0)
        self.paused = False
        self.burst = 0 if rules.rate is None else (rules.burst or max(1, math.floor(rules.rate)))
        self.tokens = float(self.burst)
        self.tokens_at = 0.0
        self.shortest: list[float] = []
        self.interval_from = math.inf
        self.overloaded = False

    def refill(self, now: float) -> None:
        """The token bucket, as everybody knows it."""
        if self.rules.rate is not None and now > self.tokens_at:
            self.tokens = min(self.burst, self.tokens + self.rules.rate * (now - self.tokens_at))
            self.tokens_at = now


@dataclass
class Outcomes:
    """What an operation decided about tickets other than its own, by number, in order."""

    granted: list[int]
    evicted: list[int]
    entered: list[int]


class Model:
    """One pool. Arguments as `Core`, with a plain number for the limit."""

    def __init__(
        self,
        *,
        limit: int,
        classes: Sequence[PriorityClass],
        max_queue_size: int,
        mode: BackpressureMode,
        max_lobby_size: int,
        max_queued_per_tenant: int | None,
    ) -> None:
        self.limit = limit
        self.rooms = [Room(rules, rank) for rank, rules in enumerate(classes)]
        self.max_queue_size = max_queue_size
        self.mode = mode
        self.max_lobby_size = max_lobby_size
        self.max_queued_per_tenant = max_queued_per_tenant
        self.paused = False
        self.closed = False
        self.tickets: list[Held] = []
        self.arrivals = 0
        self.now = 0.0

    # ------------------------------------------------------------------ scans

    def at(self, where: str, rank: int | None = None, tenant: str | None = None) -> list[Held]:
        """Tickets in that place, in the order of service."""
        found = [
            t
            for t in self.tickets
            if t.where == where and (rank is None or t.rank == rank) and (tenant is None or t.tenant == tenant)
        ]
        return sorted(found, key=lambda t: (t.rank, t.start, t.number))

    def waiting(self, rank: int, tenant: str) -> list[Held]:
        """Tickets of a tenant in line or lobby."""
        return self.at(LINE, rank, tenant) + self.at(LOBBY, rank, tenant)

    def in_use(self, rank: int | None = None) -> int:
        """Slots held."""
        return sum(t.slots for t in self.at(RUNNING, rank))

    def cap(self, room: Room) -> int:
        """Slots the class may hold."""
        return max(1, math.floor(Fraction(str(room.rules.ceiling)) * self.limit))

    def position(self, ticket: Held) -> int:
        """1 + the tickets before it; the whole line stands before the lobby."""
        if ticket.where == LINE:
            return self.at(LINE).index(ticket) + 1
        if ticket.where == LOBBY:
            return len(self.at(LINE)) + self.at(LOBBY).index(ticket) + 1
        return 0

    # ------------------------------------------------------------------ operations

    def offer(
        self,
        now: float,
        rank: int,
        tenant: str,
        slots: int,
        cost: float,
        expires: float,
        expires_as: Reason,
        may_wait: bool,
    ) -> tuple[Held, Outcomes]:
        """A newcomer."""
        self.now = now
        room = self.rooms[rank]
        self.arrivals += 1
        ticket = Held(self.arrivals, rank, tenant, slots, cost, now, expires, expires_as)
        out = Outcomes([], [], [])
        reason = self.refused_at_the_door(room, ticket)
        if reason is not None:
            ticket.where, ticket.reason = REFUSED, reason
            return ticket, out
        self.charge(room, ticket)
        self.tickets.append(ticket)
        if room.rules.exempt:
            self.start(room, ticket)
            return ticket, out
        self.stands_in_line(room, ticket)
        self.pump(out)
        if ticket.where == LINE:
            self.keep_the_bounds(room, ticket, may_wait, out)
        if ticket.where == LINE and self.overtakes_lobby(ticket):
            ticket.where = LOBBY
            self.left_the_line(room)
        ticket.position = self.position(ticket)
        self.settle(out)
        for decided in (out.granted, out.entered):
            if ticket.number in decided:
                decided.remove(ticket.number)
        return ticket, out

    def release(self, now: float, ticket: Held, actual_cost: float | None) -> Outcomes:
        """A running ticket ended."""
        self.now = now
        out = Outcomes([], [], [])
        room = self.rooms[ticket.rank]
        ticket.where = DONE
        self.tickets.remove(ticket)
        if actual_cost is not None:
            difference = self.price(room, ticket.tenant, actual_cost) - ticket.charge
            room.accounts[ticket.tenant].finish += difference
        self.end_of_busy_period(room)
        self.settle(out)
        return out

    def withdraw(self, now: float, ticket: Held, reason: Reason) -> Outcomes:
        """The caller gives up."""
        self.now = now
        if ticket.where == RUNNING:
            return self.release(now, ticket, None)
        out = Outcomes([], [], [])
        if ticket.where in (LINE, LOBBY):
            self.leave(ticket, reason)
            self.settle(out)
        return out

    def expire(self, now: float) -> Outcomes:
        """Time has passed."""
        self.now = now
        out = Outcomes([], [], [])
        late = [t for t in self.at(LINE) + self.at(LOBBY) if t.expires <= now]
        for ticket in sorted(late, key=lambda t: (t.expires, t.number)):
            self.leave(ticket, ticket.expires_as)
            out.evicted.append(ticket.number)
        for room in self.rooms:
            self.shed(room, out)
        self.settle(out)
        return out

    def resize(self, now: float, limit: int) -> Outcomes:
        """Another limit."""
        self.now = now
        self.limit = limit
        out = Outcomes([], [], [])
        self.settle(out)
        return out

    def pause(self, now: float, rank: int | None) -> Outcomes:
        """Start nothing more."""
        self.now = now
        if rank is None:
            self.paused = True
        else:
            self.rooms[rank].paused = True
        out = Outcomes([], [], [])
        self.settle(out)
        return out

    def resume(self, now: float, rank: int | None) -> Outcomes:
        """Go on."""
        self.now = now
        if rank is None:
            self.paused = False
        else:
            self.rooms[rank].paused = False
        out = Outcomes([], [], [])
        self.settle(out)
        return out

    def close(self, now: float) -> Outcomes:
        """Drain."""
        self.now = now
        self.closed = True
        out = Outcomes([], [], [])
        for ticket in self.at(LINE) + self.at(LOBBY):
            self.leave(ticket, Reason.EVICTED_DRAINING)
            out.evicted.append(ticket.number)
        return out

    def next_event(self, now: float) -> float:
        """When time alone has something to decide."""
        due = [t.expires for t in self.at(LINE) + self.at(LOBBY)]
        for room in self.rooms:
            line = self.at(LINE, room.rank)
            if not line:
                continue
            if room.rules.rate is not None and not room.paused and not self.paused:
                room.refill(now)
                if room.tokens < 1:
                    due.append(now + (1 - room.tokens) / room.rules.rate)
            if room.rules.codel_target is not None:
                due.append(room.interval_from + self.interval(room))
                if room.overloaded:
                    due.append(min(t.arrival for t in line) + 2 * room.rules.codel_target)
        return min(due, default=math.inf)

    # ------------------------------------------------------------------ the rules

    def refused_at_the_door(self, room: Room, ticket: Held) -> Reason | None:
        if self.closed:
            return Reason.DRAINING
        if ticket.expires <= self.now:
            return Reason.HOPELESS
        if room.rules.ceiling < 1 and not room.rules.exempt and ticket.slots > self.cap(room):
            return Reason.TOO_WIDE
        return None

    def price(self, room: Room, tenant: str, cost: float) -> Fraction:
        return Fraction(cost) / Fraction(room.rules.weights.get(tenant, 1.0))

    def charge(self, room: Room, ticket: Held) -> None:
        """Start-time fair queueing: S = max(V, F), F = S + cost / weight; a tenant's own tickets keep their order."""
        account = room.accounts.setdefault(ticket.tenant, Account())
        base = max(room.virtual, account.finish)
        ticket.charge = self.price(room, ticket.tenant, ticket.cost)
        account.finish = base + ticket.charge
        ticket.start = base
        ticket.newest_before = account.newest_start
        if self.waiting(ticket.rank, ticket.tenant):
            ticket.start = max(base, account.newest_start)
        account.newest_start = ticket.start

    def stands_in_line(self, room: Room, ticket: Held) -> None:
        if not [t for t in self.at(LINE, room.rank) if t is not ticket]:
            room.interval_from, room.shortest, room.overloaded = self.now, [], False
        ticket.where = LINE

    def left_the_line(self, room: Room) -> None:
        if not self.at(LINE, room.rank):
            room.credit = min(room.credit, Fraction(0))
            room.overloaded = False

    def keep_the_bounds(self, room: Room, ticket: Held, may_wait: bool, out: Outcomes) -> None:
        if not may_wait:
            self.reject(ticket, Reason.BUSY)
            return
        own = len(self.waiting(ticket.rank, ticket.tenant))
        if self.max_queued_per_tenant is not None and own > self.max_queued_per_tenant:
            self.reject(ticket, Reason.TENANT_FULL)
            return
        line = self.at(LINE)
        if room.rules.max_queued is not None and len(self.at(LINE, room.rank)) > room.rules.max_queued:
            worst = self.at(LINE, room.rank)[-1]
        elif self.max_queue_size and len(line) > self.max_queue_size:
            worst = line[-1]
        else:
            return
        if worst.rank > ticket.rank:
            reason = Reason.PRIORITY
        elif (
            worst.rank == ticket.rank
            and worst.start > ticket.start
            and len(self.waiting(worst.rank, worst.tenant)) > own
        ):
            reason = Reason.FAIRNESS
        elif self.mode is BackpressureMode.BLOCK and len(self.at(LOBBY)) < self.max_lobby_size:
            ticket.where = LOBBY
            self.left_the_line(room)
            return
        else:
            self.reject(ticket, Reason.QUEUE_FULL)
            return
        self.leave(worst, reason)
        out.evicted.append(worst.number)

    def reject(self, ticket: Held, reason: Reason) -> None:
        """As if it had never come."""
        account = self.rooms[ticket.rank].accounts[ticket.tenant]
        self.leave(ticket, reason)
        account.newest_start = ticket.newest_before

    def overtakes_lobby(self, newcomer: Held) -> bool:
        """Whether a place in line would rather be somebody's who waits for one already."""
        for ticket in self.at(LOBBY):
            if (ticket.rank, ticket.start) <= (newcomer.rank, newcomer.start):
                most = self.rooms[ticket.rank].rules.max_queued
                others = [t for t in self.at(LINE, ticket.rank) if t is not newcomer]
                if most is None or len(others) < most:
                    return True
        return False

    def held_back(self, room: Room, head: Held) -> bool:
        """Paused, at its ceiling, or without a start token."""
        if room.paused:
            return True
        held = self.in_use(room.rank)
        if room.rules.ceiling < 1 and held + head.slots > self.cap(room) and held:
            return True
        room.refill(self.now)
        return room.rules.rate is not None and room.tokens < 1

    def next_room(self) -> Room | None:
        """Overdue, oldest first; then the highest class whose credit covers its head; then rank."""
        able = []
        for room in self.rooms:
            line = self.at(LINE, room.rank)
            if line and not self.held_back(room, line[0]):
                able.append((room, line))
        overdue = []
        for room, line in able:
            oldest = min(line, key=lambda t: t.number)
            if room.rules.max_delay is not None and self.now - oldest.arrival >= room.rules.max_delay:
                overdue.append((oldest.arrival, room.rank, room))
        if overdue:
            return min(overdue)[2]
        for room, line in able:
            if room.rules.guaranteed and self.credit(room) >= line[0].slots:
                return room
        return able[0][0] if able else None

    def credit(self, room: Room) -> Fraction:
        """As much of it as counts."""
        return min(room.credit, Fraction(self.limit + 1))

    def pump(self, out: Outcomes) -> None:
        """Grant while slots are free."""
        while not self.paused and self.in_use() < self.limit:
            room = self.next_room()
            if room is None:
                return
            head = self.at(LINE, room.rank)[0]
            if head.expires <= self.now:
                self.leave(head, head.expires_as)
                out.evicted.append(head.number)
                continue
            free = self.limit - self.in_use()
            if head.slots > free and self.in_use():
                return
            room.shortest.append(self.now - head.arrival)
            room.credit = self.credit(room)
            self.start(room, head)
            if room.rules.guaranteed:
                room.credit = max(room.credit - head.slots, Fraction(-8 * (self.limit + 1)))
            self.left_the_line(room)
            out.granted.append(head.number)

    def start(self, room: Room, ticket: Held) -> None:
        """Give it its slots; every class earns its share of them, and those without waiters save nothing up."""
        for other in self.rooms:
            other.credit += Fraction(str(other.rules.guaranteed)) * ticket.slots
            if not self.at(LINE, other.rank):
                other.credit = min(other.credit, Fraction(0))
        ticket.where = RUNNING
        room.virtual = max(room.virtual, ticket.start)
        room.refill(self.now)
        room.tokens -= 1

    def settle(self, out: Outcomes) -> None:
        """Pump; let the lobby move up one by one."""
        self.pump(out)
        while (ticket := self.next_of_lobby()) is not None:
            self.stands_in_line(self.rooms[ticket.rank], ticket)
            out.entered.append(ticket.number)
            self.pump(out)

    def next_of_lobby(self) -> Held | None:
        if self.max_queue_size and len(self.at(LINE)) >= self.max_queue_size:
            return None
        for ticket in self.at(LOBBY):
            most = self.rooms[ticket.rank].rules.max_queued
            if most is None or len(self.at(LINE, ticket.rank)) < most:
                return ticket
        return None

    def leave(self, ticket: Held, reason: Reason) -> None:
        """Without a permit: the tenant gets its charge back."""
        room = self.rooms[ticket.rank]
        was = ticket.where
        ticket.where, ticket.reason = REFUSED, reason
        self.tickets.remove(ticket)
        if was == LINE:
            self.left_the_line(room)
        room.accounts[ticket.tenant].finish -= ticket.charge
        self.end_of_busy_period(room)

    def end_of_busy_period(self, room: Room) -> None:
        """A class with nothing waiting or running forgets who owes what."""
        if not any(t.rank == room.rank for t in self.tickets):
            room.accounts.clear()

    def interval(self, room: Room) -> float:
        target = room.rules.codel_target
        assert target is not None
        return room.rules.codel_interval or 10 * target

    def shed(self, room: Room, out: Outcomes) -> None:
        """CoDel: the shortest wait of an interval was above the target, so the too old go."""
        target = room.rules.codel_target
        if target is None or not self.at(LINE, room.rank):
            return
        if self.now >= room.interval_from + self.interval(room):
            room.overloaded = min(room.shortest, default=math.inf) > target
            room.shortest, room.interval_from = [], self.now
        while room.overloaded and (line := self.at(LINE, room.rank)):
            oldest = min(line, key=lambda t: t.number)
            if self.now < oldest.arrival + 2 * target:
                return
            self.leave(oldest, Reason.CODEL)
            out.evicted.append(oldest.number)
