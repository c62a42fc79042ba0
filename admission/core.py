"""The state machine of one pool: which ticket runs now, which waits, which is turned away.

It reads no clock (`now` is an argument and never goes back), does no I/O, knows no event loop and uses no randomness.
Three drivers run it: the memory backend, the simulator and the property tests.

Every operation ends in `_pump`, which grants whatever may run, so that between two operations no waiter is left
that could have run. What changed for tickets other than the caller's is returned as `Decisions`.

Invariants:
    in use == sum of `slots` over RUNNING entries == sum of `held` over classes
    in use <= limit, unless one ticket wider than the limit runs alone, the limit was lowered, or a class is exempt
    the line is within its bounds between two operations; the lobby is empty unless the line is full
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from admission.class_state import ClassState
from admission.deadlines import Deadlines
from admission.line import DONE, LOBBY, REFUSED, RUNNING, WAITING, Entry, Line, Waiter
from admission.policy.fairness import KEPT_FLOWS
from admission.policy.limit import FixedLimit, Limit
from admission.policy.shares import next_class
from admission.policy.shedding import CoDel, pushes_out
from admission.statistics import MOST_PENDING
from admission.types import BackpressureMode, Outcome, PriorityClass, Reason, Sample


class Decisions(NamedTuple):
    """What an operation decided about tickets that were waiting, in order."""

    granted: Sequence[Entry] = ()
    evicted: Sequence[Entry] = ()
    entered: Sequence[Entry] = ()
    """Moved from the lobby into the line."""


NOTHING: Final = Decisions()

SUCCESS: Final[Outcome] = Outcome.SUCCESS

# Past the Python-level constructor of a named tuple, which costs more than the tuple.
_decisions = tuple.__new__


class Core:
    """One pool: one limit, one line, its classes.

    Not thread-safe. An entry that was granted must come back through `release` exactly once.

    Args:
        limit: How many slots may be in use.
        classes: The rules, highest rank first; at most 8.
        max_queue_size: Tickets in line at most; 0 is unlimited.
        mode: What a full line does with a caller that may not push anyone out.
        max_lobby_size: Callers in the lobby at most (BLOCK mode).
        max_queued_per_tenant: Waiters one tenant may have in one class. None: no bound of its own.
        refuse_hopeless: Refuse on arrival who would wait longer than it can.
    """

    def __init__(
        self,
        *,
        limit: Limit,
        classes: Sequence[PriorityClass],
        max_queue_size: int = 0,
        mode: BackpressureMode = BackpressureMode.REJECT,
        max_lobby_size: int = 10_000,
        max_queued_per_tenant: int | None = None,
        refuse_hopeless: bool = False,
    ) -> None:
        self.mode = mode
        self.max_queue_size = max_queue_size
        self.max_lobby_size = max_lobby_size
        self.max_queued_per_tenant = max_queued_per_tenant
        self.refuse_hopeless = refuse_hopeless
        self.pool: object = None
        """Put on every entry, for its driver."""
        self.paused = False
        self.closed = False
        self.in_use = 0
        """Slots held by running tickets."""
        self.starts = 0
        """Slots granted so far."""
        self.line = Line(classes)
        self.lobby = Line(classes)
        self.classes = tuple(
            ClassState(rules, rank, limit.slots, self.line.classes[rank], self.lobby.classes[rank])
            for rank, rules in enumerate(classes)
        )
        self._limit = limit
        self._learning = not isinstance(limit, FixedLimit)
        self.limit = limit.slots
        """Slots that may be in use now."""
        self._arrivals = 0
        self._deadlines = Deadlines()
        self._contenders: tuple[ClassState, ...] = ()
        """Classes with waiters, highest rank first."""
        self._free_limit = limit.slots
        """The limit while a free slot is all a newcomer needs; 0 while someone waits, or when paused or closed."""
        self._roomy = (
            max_queued_per_tenant is None and not refuse_hopeless and all(c.max_queued is None for c in classes)
        )
        """The length of the line is the only bound there is."""
        # Classes whose rules act by the mere passing of time.
        self.timed = tuple(c for c in self.classes if c.codel is not None or c.rules.rate is not None)

    # ------------------------------------------------------------------ arrival

    def try_start(self, now: float, rank: int, tenant: str, slots: int, cost: float) -> Entry | None:
        """Grant at once if a slot is free and nobody waits; else None, and nothing has changed.

        This is the hot path: what it leaves out (exempt classes, waiters of held-back classes, tickets wider than
        the limit) goes through `offer`, with the same result.
        """
        in_use = self.in_use + slots
        if in_use > self._free_limit:
            return None
        state = self.classes[rank]
        share = state.share
        held = share.held + slots
        if held > share.free_cap:
            return None
        fair = state.fair
        flow = fair.flows.get(tenant)
        if flow is None:
            flow = fair.flow(tenant)
        charge = flow.unit if cost == 1 else flow.charge(cost)
        # FairQueueing.arrive and .grant in one: nobody waits, so the newest start tag plays no part.
        start = flow.finish
        if start < fair.virtual:
            start = fair.virtual
        else:
            fair.virtual = start
        flow.finish = finish = start + charge
        if finish > fair.highest:
            fair.highest = finish
        flow.running += 1
        share.held = held
        if share.guaranteed:
            share.spend(slots, self.starts)
        self.starts += slots
        self.in_use = in_use
        entry = Entry()
        entry.rank = rank
        entry.flow = flow
        entry.slots = slots
        entry.cost = cost
        entry.charge = charge
        entry.state = RUNNING
        entry.arrival = entry.granted_at = now
        if self._learning:
            entry.in_flight = in_use
        entry.position = 0
        entry.id = None
        entry.pool = self.pool
        return entry

    def offer(
        self,
        now: float,
        rank: int,
        tenant: str = "",
        slots: int = 1,
        cost: float = 1,
        *,
        expires: float = math.inf,
        expires_as: Reason = Reason.TIMEOUT,
        may_wait: bool = True,
        waiter: Waiter | None = None,
    ) -> tuple[Entry, Decisions]:
        """Take in a newcomer; its `state` afterwards says what became of it.

        RUNNING: granted at once. WAITING: in line. LOBBY: waits for room in the line. REFUSED: rejected, see
        `reason`. The decisions are about *other* tickets.

        Args:
            expires: Monotonic seconds at which it stops waiting, recorded as *expires_as*.
            may_wait: False refuses it (BUSY) unless it can run at once, and pushes nobody out.
        """
        state = self.classes[rank]
        flow = state.fair.flow(tenant)
        charge = flow.unit if cost == 1 else flow.charge(cost)
        self._arrivals += 1
        entry = Entry()
        entry.rank = rank
        entry.flow = flow
        entry.slots = slots
        entry.cost = cost
        entry.charge = charge
        entry.state = WAITING
        entry.arrival = entry.granted_at = now
        entry.position = 0
        entry.id = None
        entry.pool = self.pool
        entry.number = self._arrivals
        newest_start = flow.newest_start
        entry.start = state.fair.arrive(flow, charge)
        entry.expires = expires
        entry.expires_as = expires_as
        entry.timed = False
        entry.predicted = None
        entry.correction = 0.0
        entry.waiter = waiter
        refusal: Reason | None = None
        if self.closed or expires <= now or slots > state.share.widest:
            refusal = self._refused_outright(entry, now)
            state.fair.withdraw(flow, charge)
            flow.newest_start = newest_start
            self._refuse(entry, refusal, state.statistics.rejected)
            return entry, NOTHING
        if state.rules.exempt:
            self._start(state, entry, now)
            return entry, NOTHING
        # The newcomer stands in line before the bounds are looked at: whoever can run at once is never refused for
        # a full line, and the bounds see the line as it will be.
        self._enter(state, entry, now)
        granted: list[Entry] = []
        evicted: list[Entry] = []
        # Whoever waited before could not run, so without a free slot there is nothing to pump for.
        if self.in_use < self.limit:
            self._pump(now, granted, evicted)
            if entry.state is RUNNING:
                granted.remove(entry)
                return entry, self._settle(now, granted, evicted)
        if not may_wait:
            refusal = Reason.BUSY
        elif self._roomy and not 0 < self.max_queue_size < self.line.queued:
            refusal = None
        else:
            refusal = self._find_room(state, entry, now, evicted)
        if refusal is not None:
            entry.position = self.position(entry)
            self._leave(entry, now)
            flow.newest_start = newest_start
            self._refuse(entry, refusal, state.statistics.rejected)
            return entry, self._settle(now, granted, evicted)
        if self.lobby.queued and entry.state is WAITING and self._overtakes_lobby(entry):
            self._park(state, entry)
        ahead, above = self._before(entry)
        entry.position = ahead + above + 1
        pace = state.pace
        entry.predicted = self._predict(state, ahead, entry.position, now, entry.start)
        entry.correction = pace.correction if pace.known else 0.0
        state.statistics.position.observe(entry.position)
        self._deadlines.add(entry)
        if not (evicted or granted or self.lobby.queued):
            return entry, NOTHING
        decisions = self._settle(now, granted, evicted)
        if entry.state is not WAITING and entry in granted:
            # Pushing someone out removed a wide head that had stopped the pump: the newcomer runs after all.
            granted.remove(entry)
        if entry in decisions.entered:
            decisions = decisions._replace(entered=[other for other in decisions.entered if other is not entry])
        return entry, decisions

    def _refused_outright(self, entry: Entry, now: float) -> Reason:
        """The reason to refuse a newcomer before it stands in line."""
        if self.closed:
            return Reason.DRAINING
        return Reason.HOPELESS if entry.expires <= now else Reason.TOO_WIDE

    def _find_room(self, state: ClassState, entry: Entry, now: float, evicted: list[Entry]) -> Reason | None:
        """Enforce the bounds on a newcomer that stands in line; the reason to refuse it, or None."""
        most = self.max_queued_per_tenant
        if most is not None and entry.flow.waiting > most:
            return Reason.TENANT_FULL
        if self.refuse_hopeless and entry.expires != math.inf:
            ahead, above = self._before(entry)
            predicted = self._predict(state, ahead, ahead + above + 1, now, entry.start)
            if predicted is not None and now + predicted > entry.expires:
                return Reason.HOPELESS
        class_full = state.rules.max_queued is not None and state.line.queued > state.rules.max_queued
        line_full = 0 < self.max_queue_size < self.line.queued
        if not class_full and not line_full:
            return None
        worst = state.line.worst() if class_full else self.line.worst()
        reason = pushes_out(
            rank=entry.rank,
            start=entry.start,
            waiting=entry.flow.waiting,
            worst_rank=worst.rank,
            worst_start=worst.start,
            worst_waiting=worst.flow.waiting,
        )
        if reason is not None:
            self._evict(worst, reason, now)
            evicted.append(worst)
            return None
        if self.mode is BackpressureMode.BLOCK and self.lobby.queued < self.max_lobby_size:
            self._park(state, entry)
            return None
        return Reason.QUEUE_FULL

    def _overtakes_lobby(self, entry: Entry) -> bool:
        """Whether someone in the lobby stands before this newcomer, and could have the place it found in line."""
        for state in self.classes[: entry.rank + 1]:
            if state.lobby.queued:
                if state.rank == entry.rank:
                    return state.lobby.head().start <= entry.start
                most = state.rules.max_queued
                if most is None or state.line.queued < most:
                    return True
        return False

    def _park(self, state: ClassState, entry: Entry) -> None:
        """Move a newcomer from the line to the lobby."""
        self._step_out(state, entry)
        entry.state = LOBBY
        self.lobby.add(entry)

    # ------------------------------------------------------------------ departure

    def try_finish(self, now: float, entry: Entry) -> bool:
        """Release a success at its estimated cost while nobody waits; else False, and nothing has changed.

        The other half of the hot path; what it leaves out goes through `release`, with the same result.
        """
        if not self._free_limit or self._learning or entry.id is not None or entry.state is not RUNNING:
            return False
        entry.state = DONE
        state = self.classes[entry.rank]
        share = state.share
        slots = entry.slots
        self.in_use -= slots
        share.held = held = share.held - slots
        flow = entry.flow
        flow.running = running = flow.running - 1
        if not held:
            fair = state.fair
            fair.virtual = fair.highest  # FairQueueing.rest
            if len(fair.flows) > KEPT_FLOWS:
                fair.rest()
        elif not running:
            state.fair.absent(flow)
        pending = state.statistics.run.pending  # Histogram.observe
        pending.append(now - entry.granted_at)
        if len(pending) > MOST_PENDING:
            state.statistics.run.digest()
        return True

    def release(
        self,
        now: float,
        entry: Entry,
        outcome: Outcome = SUCCESS,
        actual_cost: float | None = None,
        rtt: float | None = None,
    ) -> Decisions:
        """A running ticket ended: its slots are free, its tenant's account is settled.

        Args:
            actual_cost: What it really cost; None when the estimate stands.
            rtt: Seconds the limit shall learn from; None for the whole time since the grant.

        Raises:
            ValueError: The entry does not run: it was released before, or never granted.
        """
        if entry.state is not RUNNING:
            raise ValueError(f"released a ticket that is {entry.state.name}, not RUNNING")
        entry.state = DONE
        state = self.classes[entry.rank]
        share = state.share
        slots = entry.slots
        self.in_use -= slots
        share.held = held = share.held - slots
        flow = entry.flow
        flow.running = running = flow.running - 1
        if actual_cost is not None:
            state.fair.settle(flow, flow.charge(actual_cost) - entry.charge)
        if not held and state.at_rest():
            state.fair.rest()
        elif not running and not flow.waiting:
            state.fair.absent(flow)
        ran = now - entry.granted_at
        statistics = state.statistics
        statistics.run.observe(ran)
        if outcome is not SUCCESS:
            statistics.count_unsuccessful(outcome)
        if self._learning:
            self._learn(now, entry, outcome, ran if rtt is None else rtt)
        if self._contenders:
            return self._settle(now)
        return NOTHING

    def withdraw(self, now: float, entry: Entry, reason: Reason = Reason.CANCELLED) -> Decisions:
        """The caller gives up: a waiter leaves, a slot granted in the same instant goes to the next at once.

        Safe in every state; a ticket that is done or refused stays as it is.
        """
        if entry.state is RUNNING:
            return self.release(now, entry, Outcome.IGNORED)
        if entry.state not in (WAITING, LOBBY):
            return NOTHING
        self._evict(entry, reason, now)
        return self._settle(now)

    def expire(self, now: float) -> Decisions:
        """Time has passed: evict who has waited too long, and start what a start rate held back.

        Call it at `next_event`; calling it early or often does no harm.
        """
        evicted: list[Entry] = []
        while (entry := self._deadlines.pop_passed(now)) is not None:
            self._evict(entry, entry.expires_as, now)
            evicted.append(entry)
        for state in self.timed:
            if state.codel is not None:
                self._shed(state, state.codel, now, evicted)
        return self._settle(now, evicted=evicted)

    def next_event(self, now: float) -> float:
        """Monotonic seconds at which `expire` has something to do; inf when nothing is due by time alone."""
        due = self._deadlines.next()
        for state in self.timed:
            if not state.line.queued:
                continue
            if state.share.start_interval is not None and not state.share.paused and not self.paused:
                start_due = state.share.start_due()
                if start_due > now:
                    due = min(due, start_due)
            if state.codel is not None:
                due = min(due, state.codel.interval_end)
                if state.codel.overloaded:
                    due = min(due, state.oldest_arrival() + state.codel.oldest_allowed)
        return due

    # ------------------------------------------------------------------ steering

    def resize(self, now: float, limit: Limit) -> Decisions:
        """From now on *limit* says how many slots there are. Running tickets keep theirs."""
        self._limit = limit
        self._learning = not isinstance(limit, FixedLimit)
        self._set_limit(limit.slots)
        return self._settle(now)

    def pause(self, now: float, rank: int | None = None) -> Decisions:
        """Start nothing more, or nothing more of one class; exempt classes go on.

        Whoever stood behind a wide head of that class may run at once.
        """
        if rank is None:
            self.paused = True
        else:
            self.classes[rank].share.pause(True, self.limit)
        self._refresh()
        return self._settle(now)

    def resume(self, now: float, rank: int | None = None) -> Decisions:
        """Take a pause back."""
        if rank is None:
            self.paused = False
        else:
            self.classes[rank].share.pause(False, self.limit)
        self._refresh()
        return self._settle(now)

    def close(self, now: float) -> Decisions:
        """Drain: evict everyone who waits and refuse newcomers; running tickets go on."""
        self.closed = True
        self._refresh()
        evicted = [*self.line.entries(), *self.lobby.entries()]
        for entry in evicted:
            self._evict(entry, Reason.EVICTED_DRAINING, now)
        return self._settle(now, evicted=evicted)

    def reopen(self) -> None:
        """Take newcomers in again after a drain."""
        self.closed = False
        self._refresh()

    # ------------------------------------------------------------------ questions

    def position(self, entry: Entry) -> int:
        """1 + the tickets before it; 0 when it runs or is gone. O(log n)."""
        if entry.state not in (WAITING, LOBBY):
            return 0
        return sum(self._before(entry)) + 1

    def predicted_wait(self, entry: Entry, now: float) -> float | None:
        """Seconds *entry* will go on waiting; None while no rate is known."""
        if entry.state not in (WAITING, LOBBY):
            return 0.0
        ahead, above = self._before(entry)
        return self._predict(self.classes[entry.rank], ahead, ahead + above + 1, now, entry.start)

    def _before(self, entry: Entry) -> tuple[int, int]:
        """The tickets before a waiter: those of its own class, and all others."""
        rank = entry.rank
        if entry.state is WAITING:
            above = 0
            for contender in self._contenders:
                if contender.rank >= rank:
                    break
                above += contender.line.queued
            return self.classes[rank].line.before(entry), above
        # The whole line stands before the lobby, whatever its classes.
        own = self.classes[rank].line.queued
        ahead, above = self.lobby.before(entry)
        return own + ahead, self.line.queued - own + above

    def predicted_newcomer_wait(self, rank: int, now: float) -> float | None:
        """Seconds a newcomer of this class would wait, standing behind its class; None while no rate is known."""
        state = self.classes[rank]
        ahead = state.line.queued + state.lobby.queued
        position = 1 + sum(c.line.queued + c.lobby.queued for c in self.classes[: rank + 1])
        return self._predict(state, ahead, position, now)

    def _predict(self, state: ClassState, ahead: int, position: int, now: float, start: int = 0) -> float | None:
        wait = state.pace.wait(now, ahead, start - state.fair.virtual)
        if wait is not None:
            return wait
        gaps = [gap for other in self.classes if (gap := other.pace.gap(now)) is not None]
        return min(gaps) * position if gaps else None

    def drain_rate(self, now: float) -> float | None:
        """Grants per second to those who wait now; None while unknown."""
        rates = [rate for state in self._contenders if (rate := state.pace.rate(now)) is not None]
        return sum(rates) if rates else None

    def held_back_by(self, entry: Entry, now: float) -> str:
        """The binding limit of a waiting ticket, by name: why it waits."""
        if entry.state is LOBBY:
            return "line-full"
        if entry.state is not WAITING:
            return "nothing"
        if self.paused:
            return "paused"
        state = self.classes[entry.rank]
        held_back = state.share.held_back(entry.slots, now)
        if held_back is not None:
            return held_back
        if state.line.head() is not entry:
            return "line-order"
        return "pool-limit" if next_class(self._contenders, now, self.starts) is state else "higher-class"

    # ------------------------------------------------------------------ the pump

    def _pump(self, now: float, granted: list[Entry], evicted: list[Entry]) -> None:
        """Grant whatever may run; add the granted, and those whose deadline had passed when their turn came."""
        if self.paused:
            return
        while self.in_use < self.limit:
            contenders = self._contenders
            state = contenders[0] if len(contenders) == 1 else next_class(contenders, now, self.starts)
            if state is None:
                break
            entry = state.line.head()
            share = state.share
            if share.held + entry.slots > share.free_cap and share.held_back(entry.slots, now) is not None:
                break
            if entry.expires <= now:
                self._evict(entry, entry.expires_as, now)
                evicted.append(entry)
                continue
            # Nothing smaller overtakes a head that does not fit; one wider than the whole limit runs alone.
            if self.in_use and self.in_use + entry.slots > self.limit:
                break
            self._grant(state, entry, now)
            granted.append(entry)

    def _grant(self, state: ClassState, entry: Entry, now: float) -> None:
        """Let the head of a class run."""
        waited = now - entry.arrival
        if entry.position:
            pace = state.pace
            pace.granted(now, entry.start - state.fair.virtual)
            if entry.correction and entry.predicted is not None and waited > 0:
                pace.judge(entry.predicted, entry.correction, waited)
            state.statistics.count_wait(waited, entry.predicted)
        if state.codel is not None:
            state.codel.granted(waited)
        if entry.timed:
            self._deadlines.forget(entry)
        state.share.spend(entry.slots, self.starts)
        self._step_out(state, entry)
        self._start(state, entry, now)

    def _start(self, state: ClassState, entry: Entry, now: float) -> None:
        """Take the slots for a ticket that counts as waiting and stands nowhere any more."""
        slots = entry.slots
        share = state.share
        share.held += slots
        if share.start_interval is not None:
            share.count_start(now)
        state.fair.grant(entry.flow, entry.start)
        self.in_use += slots
        self.starts += slots
        entry.state = RUNNING
        entry.granted_at = now
        entry.in_flight = self.in_use

    def _settle(self, now: float, granted: list[Entry] | None = None, evicted: list[Entry] | None = None) -> Decisions:
        """Pump, let the lobby move up, and gather all that was decided, with what is in the lists already."""
        granted = [] if granted is None else granted
        evicted = [] if evicted is None else evicted
        entered: list[Entry] = []
        self._pump(now, granted, evicted)
        while self.lobby.queued and (entry := self._next_of_lobby()) is not None:
            self.lobby.remove(entry)
            entry.state = WAITING
            self._enter(self.classes[entry.rank], entry, now)
            entered.append(entry)
            self._pump(now, granted, evicted)
        if granted or evicted or entered:
            return _decisions(Decisions, (granted, evicted, entered))
        return NOTHING

    def _next_of_lobby(self) -> Entry | None:
        """The first of the lobby, in the line's order, for whose class there is room in the line."""
        if 0 < self.max_queue_size <= self.line.queued:
            return None
        for state in self.classes:
            if state.lobby.queued:
                most = state.rules.max_queued
                if most is None or state.line.queued < most:
                    return state.lobby.head()
        return None

    # ------------------------------------------------------------------ in and out of line

    def _enter(self, state: ClassState, entry: Entry, now: float) -> None:
        """Stand *entry* in line."""
        if not state.line.queued:
            state.share.waits(True, self.starts)
            state.pace.waiting_since(now)
            if state.codel is not None:
                state.codel.waiting_since(now)
        self.line.add(entry)
        if state.line.queued == 1:
            self._refresh()

    def _step_out(self, state: ClassState, entry: Entry) -> None:
        """Take *entry* out of the line; it still counts as waiting for its tenant."""
        self.line.remove(entry)
        if not state.line.queued:
            state.share.waits(False, self.starts)
            state.pace.emptied()
            if state.codel is not None:
                state.codel.emptied()
            self._refresh()

    def _leave(self, entry: Entry, now: float) -> None:
        """A waiter goes without a permit, from wherever it stands: its tenant gets the charge back."""
        state = self.classes[entry.rank]
        if entry.state is LOBBY:
            self.lobby.remove(entry)
        else:
            self._step_out(state, entry)
        state.fair.withdraw(entry.flow, entry.charge)
        if state.at_rest():
            state.fair.rest()
        if entry.timed:
            self._deadlines.forget(entry)

    def _evict(self, entry: Entry, reason: Reason, now: float) -> None:
        """A waiter has to leave."""
        self._leave(entry, now)
        self._refuse(entry, reason, self.classes[entry.rank].statistics.evicted)

    def _refuse(self, entry: Entry, reason: Reason, counters: dict[Reason, int]) -> None:
        entry.state = REFUSED
        entry.reason = reason
        counters[reason] = counters.get(reason, 0) + 1

    def _shed(self, state: ClassState, codel: CoDel, now: float, evicted: list[Entry]) -> None:
        """Evict the too old of a class whose line is a standing one."""
        codel.tick(now)
        while codel.overloaded and state.line.queued:
            oldest = state.line.oldest()
            # The very sum of `next_event`: a difference rounds otherwise, and the timer would ring for nothing.
            if now < oldest.arrival + codel.oldest_allowed:
                break
            self._evict(oldest, Reason.CODEL, now)
            evicted.append(oldest)

    # ------------------------------------------------------------------ the limit

    def _learn(self, now: float, entry: Entry, outcome: Outcome, rtt: float) -> None:
        in_flight = getattr(entry, "in_flight", None)
        if in_flight is None:
            return  # Granted under a fixed limit, which has been replaced since: nobody noted the load it met.
        self._limit.observe(Sample(rtt=rtt, in_flight=in_flight, outcome=outcome, now=now))
        if self._limit.slots != self.limit:
            self._set_limit(self._limit.slots)

    def _set_limit(self, slots: int) -> None:
        self.limit = slots
        for state in self.classes:
            state.share.resize(slots)
        self._refresh()

    def _refresh(self) -> None:
        """Bring up to date what is derived from the lines and switches."""
        # A list first: a tuple's own generator costs twice as much.
        self._contenders = tuple([state for state in self.classes if state.line.queued])
        self._free_limit = 0 if self.line.queued or self.paused or self.closed else self.limit
