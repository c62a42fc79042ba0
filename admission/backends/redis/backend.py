"""The pool that many processes share: what this process asks of it, and what it hears back.

    offer ─▶ outbox ─▶ one call of the script ─▶ answer    ─▶ the entry's state, its waiter
                             ▲          └──────▶ published ─▶ the other processes' entries
    release, withdraw ───────┘

The server holds the truth. An entry here is `ASKED` until the answer to its offer is back. What is decided later comes
as a pushed message, which is a hint: after every new subscription, and whenever the digests of what this process has
differ, everything is told anew (`_resync`), which every operation is made for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from admission.backends.base import PoolRules, Waiter
from admission.backends.redis import script
from admission.backends.redis.breaker import BreakerState
from admission.backends.redis.claims import Claim, Claims
from admission.backends.redis.commit import Committer
from admission.backends.redis.exchange import Call, Unreachable
from admission.backends.redis.lease import Lease
from admission.backends.redis.link import Link
from admission.backends.redis.outage import NO_LIMIT, Standby
from admission.backends.redis.script import Answer, Decision, Fence, Kind, Op, Reply, Script
from admission.backends.redis.site import RedisPool
from admission.backends.redis.view import View
from admission.deadlines import Deadlines
from admission.errors import NotRunning
from admission.line import ASKED, DONE, LOBBY, REFUSED, RUNNING, WAITING, WAITS, Entry
from admission.policy.fairness import KEPT_FLOWS, Flow
from admission.policy.limit import FixedLimit, Limit
from admission.types import LinkSnapshot, Outcome, Reason, Sample, Snapshot, TicketStatus
from admission.waker import Loop, Timer

if TYPE_CHECKING:
    from admission.backends.redis.embedded import Embedded

logger = logging.getLogger("admission.redis")

PULSES = 3
"""Per lease: how often the digests are compared and the view is renewed."""

_dice = random.Random(secrets.randbits(64)).getrandbits
"""Four digits at the end of every id, by which digests tell one from another; the process's name keeps it secret."""


class RedisBackend:
    """One pool of `Backend` in Redis or Valkey. Made by `RedisPool`; runs on asyncio."""

    answers_later = True

    def __init__(self, site: RedisPool, rules: PoolRules) -> None:
        self._site = site
        self._rules = rules
        self._limit = rules.limit
        self._script = Script(site.namespace, rules.name)
        version = 1 if site.joins else time.time_ns() // 1000
        self._shared = script.SharedRules(rules, limit=rules.limit.slots, version=version)
        self.process = secrets.token_hex(8)
        """Names this process in the pool; new with every start."""
        self._claims = Claims(len(rules.classes))
        self._flows: list[dict[str, Flow]] = [{} for _ in rules.classes]
        self._asked = 0
        self._deadlines = Deadlines()
        self._view = View(rules)
        self._pool: object = None
        self._closed = False
        self._loop: Loop | None = None
        self._link: Link | None = None
        self._lease: Lease | None = None
        self._commit: Committer[Op, Answer, Reply] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._embedded: Embedded | None = None
        self._standby: Standby | None = None
        self._cut_off = False
        """The server cannot be reached, and the outage's rules hold."""
        self._leaving = False
        """The goodbye is being said: what is given back with it must not be claimed again."""
        self._seen: Fence | None = None
        """Epoch and number of the latest grant heard of."""
        self._resyncs = self._stale = 0
        self._uncompared = 0
        """Pulses since the digests were compared."""
        self._deadline_timer: Timer | None = None
        self._deadline_due = math.inf
        self._event_timer: Timer | None = None
        self._event_due = math.inf
        self._pulse_timer: Timer | None = None
        self._wishes: dict[str, Op] = {}
        """How the pool shall be steered, by what it is about: the last word on each that it has not confirmed."""

    def adopt(self, pool: object) -> None:
        """Put *pool* on every entry."""
        self._pool = pool

    # ------------------------------------------------------------------ from start to stop

    def start(self, loop: Loop) -> None:
        """Use this loop, which must be asyncio's. Connects with the first call.

        Raises:
            NotRunning: The loop is trio's.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise NotRunning(
                f"pool {self._rules.name!r} is kept in Redis, whose client needs asyncio; it was used on trio"
            ) from None
        self._loop = loop
        self._abandon()

    def _connect(self) -> Committer[Op, Answer, Reply]:
        """The way to the server; opened on first use."""
        if self._commit is None:
            url = self._server_url()
            self._link = Link(url, deadline=self._site.timeout, probe=self._beat_call, on_change=self._breaker_changed)
            self._lease = Lease(
                url, beat=self._beat_call, heard=self._beaten, ttl=self._site.lease, deadline=self._site.timeout
            )
            self._commit = Committer(self._call, self._replied)
            channel = self._script.channel(self.process)
            self._listening = asyncio.get_running_loop().create_task(
                self._link.listen(channel, self._heard, self._subscribed)
            )
            self._lease.start()
            self._pulse()
            for subject in self._wishes:
                self._say(subject)
        return self._commit

    def _server_url(self) -> str:
        if self._site.url != "embedded":
            return self._site.url
        from admission.backends.redis.embedded import embedded

        if self._embedded is None:
            self._embedded = embedded()  # Takes a moment where no other process has started it.
        return self._embedded.url

    async def stop(self) -> None:
        """Tell the pool goodbye, if it can be reached, and close the connections."""
        link, lease, commit = self._link, self._lease, self._commit
        if link is None or lease is None or commit is None or self._loop is None:
            return
        self._dismiss(self._loop.now())
        self._leaving = True
        try:
            # After the goodbye nothing may renew the lease, neither its thread nor a call that was under way.
            await lease.close()
            await self._say_goodbye(commit)
        finally:
            listening = self._listening
            self._abandon()
            await link.close()
            if listening is not None:
                await asyncio.wait([listening])
            if self._embedded is not None:
                self._embedded.close()
                self._embedded = None

    async def _say_goodbye(self, commit: Committer[Op, Answer, Reply]) -> None:
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        if self._cut_off:
            return
        try:
            async with asyncio.timeout(self._site.timeout):
                await commit.drain()
                commit.send(script.leave(), self._left)
                await commit.drain()
        except TimeoutError:
            logger.warning("pool %r did not hear this process's goodbye in time", self._rules.name)

    def _left(self, answer: Answer) -> None:
        if isinstance(answer, Decision) and answer.kind is Kind.MORE and self._commit is not None:
            self._commit.send(script.leave(), self._left)

    def _abandon(self) -> None:
        """Forget the loop's belongings: timers, tasks, connections."""
        for timer in (self._deadline_timer, self._event_timer, self._pulse_timer):
            if timer is not None:
                timer.cancel()
        self._deadline_timer = self._event_timer = self._pulse_timer = None
        self._deadline_due = self._event_due = math.inf
        if self._commit is not None:
            self._commit.cancel()
        if self._listening is not None:
            self._listening.cancel()
        self._link = self._lease = self._commit = self._standby = self._listening = None
        self._seen = None
        self.process = secrets.token_hex(8)  # Here and not on connecting: the first ticket is named before that.
        self._cut_off = self._leaving = False

    def close(self, now: float) -> None:
        """Drain this process: its waiters are evicted, its newcomers refused. The other processes go on."""
        self._closed = True
        self._dismiss(now)

    def reopen(self) -> None:
        """Take newcomers in again."""
        self._closed = False

    def _dismiss(self, now: float) -> None:
        """Evict the waiters of this process."""
        for claim in self._claims.waiters():
            if claim.entry.state in WAITS:  # What one of them does about it may end another's wait.
                self._leave(claim, Reason.EVICTED_DRAINING, now)
                _tell(claim.entry)

    # ------------------------------------------------------------------ what callers do

    def try_start(self, now: float, rank: int, tenant: str, slots: int, cost: float) -> Entry | None:
        """None: nothing can be said at this instant."""
        return None

    def try_finish(self, now: float, entry: Entry) -> bool:
        """False: there is always something to tell."""
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
        """See `Backend.offer`."""
        self._asked += 1
        flow = self._flow(rank, tenant)
        entry = Entry()
        entry.rank = rank
        entry.flow = flow
        entry.slots = slots
        entry.cost = cost
        entry.charge = flow.unit if cost == 1 else flow.charge(cost)
        entry.state = ASKED
        entry.arrival = entry.granted_at = now
        entry.position = 0
        entry.pool = self._pool
        entry.number = self._asked
        entry.start = 0
        entry.expires = expires
        entry.expires_as = expires_as
        entry.timed = False
        entry.predicted = None
        entry.correction = 0.0
        entry.waiter = waiter
        entry.id = f"{self.process}:{self._asked:x}{_dice(16):04x}"
        if self._closed or self._leaving or expires <= now:
            _refuse(entry, Reason.DRAINING if self._closed or self._leaving else Reason.HOPELESS)
            self._claims.refused(entry, entry.reason)
            return entry
        commit = self._connect()
        claim = Claim(entry.id, entry, may_wait=may_wait)
        self._claims.asks(claim)
        if self._cut_off:
            self._stand_by(claim, now)
        else:
            claim.op = self._offer_of(claim, now)
            commit.send(claim.op, partial(self._answered, claim))
        if entry.state in WAITS:
            self._deadlines.add(entry)
            if expires < self._deadline_due:
                self._arm_deadline()
        return entry

    def release(self, now: float, entry: Entry, outcome: Outcome, actual_cost: float | None, rtt: float | None) -> None:
        """See `Backend.release`."""
        if entry.state is not RUNNING:
            raise ValueError(f"released a ticket that is {entry.state.name}, not RUNNING")
        claim = self._claims.of(entry)
        entry.state = DONE
        ran = now - entry.granted_at
        self._claims.ends(claim, ran, outcome)
        if self._standby is not None:
            self._standby.release(now, claim, outcome, actual_cost)
        elif self._commit is not None and not self._cut_off and self._shares(claim) and self._runs():
            if claim.hold is not None:  # Releases go first: it would be done after its end.
                self._commit.unsend(claim.hold)
            if claim.fence is None:  # Let in during an outage, and the pool has not confirmed it yet.
                self._commit.send(script.withdraw(claim.id, Reason.CANCELLED))
            else:
                difference = 0 if actual_cost is None else entry.flow.charge(actual_cost) - entry.charge
                released = partial(self._released, claim.id)
                self._commit.send(script.release(claim.id, claim.fence, difference), released, first=True)
        if not isinstance(self._limit, FixedLimit):
            self._learn(now, entry, outcome, ran if rtt is None else rtt)

    def withdraw(self, now: float, entry: Entry, reason: Reason) -> None:
        """See `Backend.withdraw`."""
        if entry.state is RUNNING:
            self.release(now, entry, Outcome.IGNORED, None, None)
        elif entry.state in WAITS:
            self._leave(self._claims.of(entry), reason, now)

    def resize(self, now: float, limit: Limit) -> None:
        """For every process."""
        self._limit = limit
        self._steer("limit", script.resize(limit.slots))

    def pause(self, now: float, rank: int | None) -> None:
        """For every process."""
        if self._standby is not None:
            self._standby.pause(now, rank)
        self._steer(f"pause {rank}", script.pause(rank))

    def resume(self, now: float, rank: int | None) -> None:
        """For every process."""
        if self._standby is not None:
            self._standby.resume(now, rank)
        self._steer(f"pause {rank}", script.resume(rank))

    def _steer(self, subject: str, op: Op) -> None:
        """Have the pool changed. One word on a subject is under way at a time, so the last one is also done last."""
        said = subject in self._wishes
        self._wishes[subject] = op
        if self._loop is None:
            return  # Said as soon as there is a connection.
        if self._commit is None:
            self._connect()
        elif not said:
            self._say(subject)

    def _say(self, subject: str) -> None:
        if self._commit is not None and not self._cut_off:
            op = self._wishes[subject]
            self._commit.send(op, partial(self._steered, subject, op))

    def _steered(self, subject: str, said: Op, answer: Answer) -> None:
        wish = self._wishes.get(subject)
        if wish == said:
            del self._wishes[subject]
            self._look()
        elif wish is not None:
            self._say(subject)

    def _released(self, id: str, answer: Answer) -> None:
        assert isinstance(answer, Decision)
        if answer.kind is not Kind.DONE:
            self._stale += 1  # The slots had gone to others meanwhile.
        if answer.kind is Kind.STALE:  # It was held anew, under a fence not heard of yet.
            self._send(script.withdraw(id, Reason.CANCELLED))

    # ------------------------------------------------------------------ what becomes of a claim

    def _answered(self, claim: Claim, answer: Answer) -> None:
        """The answer to an offer, or to `hold`."""
        assert isinstance(answer, Decision)
        claim.answered = True
        claim.hold = None
        if claim.id in self._claims.by_id:
            self._decide(claim, answer)
        elif answer.kind is not Kind.REFUSED:
            # Its caller gave up while the offer was under way, or its end has overtaken what was told anew.
            self._send(script.withdraw(claim.id, claim.left or Reason.CANCELLED))

    def _decide(self, claim: Claim, decision: Decision) -> None:
        """The pool says what became of a ticket. It may say so twice, and late."""
        assert self._loop is not None
        entry, now = claim.entry, self._loop.now()
        kind = decision.kind
        if kind is Kind.GRANTED:
            if entry.state in WAITS:
                if self._standby is not None:  # Granted before the outage began, and heard of only now.
                    self._standby.passes(now, claim)
                claim.fence = decision.fence
                entry.in_flight = decision.in_use
                self._run(claim, now)
                _tell(entry)
            elif entry.state is RUNNING and (claim.fence is None or (decision.fence or (0, 0)) > claim.fence):
                claim.fence = decision.fence  # Confirmed, maybe under a new one.
        elif kind is Kind.GONE:
            # The lease ran out while this process hung. What runs goes on and must count; who waits asks anew.
            self._assert(claim, now)
        elif entry.state not in WAITS:
            return
        elif kind is Kind.REFUSED:
            assert decision.reason is not None
            self._view.heard_wait(entry.rank, decision.predicted)
            entry.position = decision.position
            if self._standby is not None:
                self._standby.withdraw(now, claim, decision.reason)
            self._end_wait(claim, decision.reason)
            _tell(entry)
        elif self._standby is None:
            self._stands(claim, decision, now)

    def _stands(self, claim: Claim, decision: Decision, now: float) -> None:
        """It waits: in the line or in the lobby."""
        entry = claim.entry
        was = entry.state
        # That it has entered may be heard before the answer that it stands in the lobby.
        entry.state = LOBBY if decision.kind is Kind.LOBBY and was is not WAITING else WAITING
        if entry.position == 0:
            entry.position = decision.position
            entry.predicted = decision.predicted
            self._claims.statistics[entry.rank].position.observe(entry.position)
        if decision.kind is not Kind.ENTERED:
            claim.knows(decision.position, decision.predicted, now)
        if was is not WAITING and entry.state is WAITING and entry.waiter is not None:
            entry.waiter.entered(entry)

    def _run(self, claim: Claim, now: float) -> None:
        if claim.entry.timed:
            self._deadlines.forget(claim.entry)
        self._claims.runs(claim, now)

    def _end_wait(self, claim: Claim, reason: Reason) -> None:
        if claim.entry.timed:
            self._deadlines.forget(claim.entry)
        self._claims.goes(claim, reason)
        _refuse(claim.entry, reason)

    def _leave(self, claim: Claim, reason: Reason, now: float) -> None:
        """A waiter leaves by this process's will."""
        self._end_wait(claim, reason)
        if self._standby is not None:
            self._standby.withdraw(now, claim, reason)
        elif claim.answered:
            self._send(script.withdraw(claim.id, reason))
        elif self._commit is not None and claim.op is not None and not self._commit.unsend(claim.op):
            claim.left = reason

    def _heard(self, message: bytes) -> None:
        """Another process's call decided about tickets of this one."""
        self._told(self._script.parse_message(message))

    def _told(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            claim = self._claims.by_id.get(decision.id)
            if claim is not None:
                self._decide(claim, decision)
            elif decision.kind is Kind.GRANTED:
                # Granted in the instant it left: the next one's turn.
                self._send(script.withdraw(decision.id, Reason.CANCELLED))

    # ------------------------------------------------------------------ calls and their replies

    async def _call(self, ops: Sequence[Op]) -> Reply:
        link = self._link
        if link is None:
            raise Unreachable("the connection was closed")
        keys, arguments = self._script.call(self._shared, self.process, ops, sharded=link.sharded, seen=self._seen)
        return self._script.parse(await link.run(self._script, keys, arguments))

    def _replied(self, reply: Reply) -> None:
        """What every reply says, before the answers in it are told."""
        if self._loop is None:
            return
        seen = (reply.epoch, reply.fence)
        if self._seen is None or seen > self._seen:
            self._seen = seen
        self._view.heard(reply)
        if reply.repaired:
            logger.error(
                "pool %r: its counters were wrong by %d slots, and were corrected", self._rules.name, reply.repaired
            )
        if reply.next_event is not None:
            self._arm_event(self._loop.now() + reply.next_event)
        if reply.resync:
            self._resync()
        self._told(reply.told)

    def _send(self, op: Op) -> None:
        """Have *op* done, unless the server cannot be reached: then the resync makes up for it."""
        if not self._cut_off:
            self._connect().send(op)

    def _beat_call(self) -> Call:
        """What the lease's thread sends, and a probe."""
        beat = script.beat(round(self._site.lease * 1e6), None)
        sharded = self._link is not None and self._link.sharded
        call = self._script.call(self._shared, self.process, [beat], sharded=sharded, seen=self._seen)
        return Call(self._script, *call)

    def _beaten(self, answer: object) -> None:
        """The answer to the lease's thread."""
        if not self._cut_off:
            self._replied(self._script.parse(answer))

    def _pulse(self) -> None:
        """Compare digests and look at the pool, a few times per lease: the backstop for every lost message."""
        assert self._loop is not None
        self._pulse_timer = self._loop.call_at(self._loop.now() + self._site.lease / PULSES, self._pulse)
        if self._cut_off:
            return
        commit, digest = self._connect(), None
        self._uncompared += 1
        # What is on its way makes digests differ for nothing: a busy process compares once per lease all the same.
        if commit.idle or self._uncompared >= PULSES:
            self._uncompared = 0
            waiting = [claim.id for claim in self._claims.waiters()]
            running = [claim.id for claim in self._claims.runners() if self._shares(claim)]
            digest = script.digest(waiting, running)
        commit.send(script.beat(round(self._site.lease * 1e6), digest))
        self._look()

    def _look(self) -> None:
        if not self._cut_off:
            self._connect().send(script.look(), self._view.looked)

    # ------------------------------------------------------------------ the server comes and goes

    def _subscribed(self) -> None:
        """Messages may have been lost until now."""
        if self._claims.by_id and not self._cut_off:
            self._resync()

    def _resync(self) -> None:
        """Tell the pool everything this process has, and hear what became of it; then give back what it has not."""
        assert self._loop is not None
        self._resyncs += 1
        now = self._loop.now()
        for claim in self._claims:
            if claim.entry.state is RUNNING or claim.answered or claim.op is None:
                self._assert(claim, now)
        self._connect().send(script.mine(), self._reconcile)

    def _assert(self, claim: Claim, now: float) -> None:
        """Tell the pool what this claim is, whatever it believes."""
        entry = claim.entry
        if self._leaving or not self._shares(claim):
            return
        if entry.state is RUNNING:
            claim.hold = op = script.hold(claim.id, claim.fence, entry.rank, entry.tenant, entry.slots, entry.charge)
        else:
            claim.op = op = self._offer_of(claim, now)
        if not self._cut_off:
            self._connect().send(op, partial(self._answered, claim))

    def _reconcile(self, answer: Answer) -> None:
        """What the pool has of this process, a page of it: what is not known here any more is given back."""
        assert isinstance(answer, script.Page)
        for id in answer.ids:
            if id not in self._claims.by_id:
                self._send(script.withdraw(id, Reason.CANCELLED))
        if answer.next:
            self._connect().send(script.mine(answer.next), self._reconcile)

    def _breaker_changed(self, state: BreakerState) -> None:
        if self._loop is None:
            return
        if state is BreakerState.CLOSED and self._cut_off:
            self._rejoin(self._loop.now())
        elif state is BreakerState.OPEN and not self._cut_off:
            self._go_alone(self._loop.now())

    def _go_alone(self, now: float) -> None:
        """The outage begins: who waits there waits here, or is refused."""
        assert self._loop is not None
        assert self._commit is not None
        self._cut_off = True
        self._commit.suspend()
        if self._site.on_outage != "closed":
            share = max(1, self._view.limit // max(1, self._view.processes))
            slots = share if self._site.on_outage == "degrade" else NO_LIMIT
            self._standby = Standby(
                self._rules, slots, self._loop, self._pool, self._decided_alone, self._entered_alone
            )
            for rank in self._view.paused:
                self._standby.pause(now, rank)
            self._standby.holds(now, self._claims.runners())
        for claim in self._claims.waiters():
            entry = claim.entry
            was = entry.state
            if was in WAITS:  # What one of them does when it is told may end another's wait.
                self._stand_by(claim, now)
                if entry.state not in WAITS:
                    _tell(entry)
                elif was is not WAITING and entry.state is WAITING and entry.waiter is not None:
                    entry.waiter.entered(entry)

    def _stand_by(self, claim: Claim, now: float) -> None:
        """Take a waiter or newcomer into the pool of the outage."""
        if self._standby is None:
            self._end_wait(claim, Reason.UNAVAILABLE)
            return
        entry, inner = claim.entry, self._standby.take(now, claim)
        if inner.state in (RUNNING, REFUSED):
            self._follow(claim, now)
            return
        if entry.state is ASKED:
            entry.position, entry.predicted = inner.position, inner.predicted
        entry.state = inner.state

    def _entered_alone(self, claim: Claim) -> None:
        entry = claim.entry
        if entry.state is LOBBY:
            entry.state = WAITING
            if entry.waiter is not None:
                entry.waiter.entered(entry)

    def _decided_alone(self, claim: Claim) -> None:
        assert self._loop is not None
        if claim.entry.state in WAITS:
            self._follow(claim, self._loop.now())
            _tell(claim.entry)

    def _follow(self, claim: Claim, now: float) -> None:
        """What became of a claim in the pool of the outage becomes of it here."""
        inner = claim.inner
        assert inner is not None
        if inner.state is RUNNING:
            claim.entry.in_flight = inner.in_flight
            claim.fence = None
            self._run(claim, now)
        else:
            self._end_wait(claim, inner.reason)

    def _rejoin(self, now: float) -> None:
        """The outage is over: what runs is told to the pool, who waits goes back to its line."""
        self._cut_off = False
        if self._standby is not None:
            self._standby.dissolve(now, list(self._claims))
            self._standby = None
        for claim in self._claims.waiters():
            claim.op = None
        self._resync()
        for subject in self._wishes:
            self._say(subject)
        self._connect().resume()

    # ------------------------------------------------------------------ time

    def _arm_deadline(self) -> None:
        """Have the timer ring at the earliest deadline of a waiter here; one timer, not one per waiter."""
        due = self._deadlines.next()
        if due < self._deadline_due and self._loop is not None:
            if self._deadline_timer is not None:
                self._deadline_timer.cancel()
            self._deadline_due = due
            self._deadline_timer = self._loop.call_at(due, self._deadline_passed)

    def _deadline_passed(self) -> None:
        assert self._loop is not None
        self._deadline_due, now = math.inf, self._loop.now()
        while (entry := self._deadlines.pop_passed(now)) is not None:
            self._leave(self._claims.of(entry), entry.expires_as, now)
            _tell(entry)
        self._arm_deadline()

    def _arm_event(self, due: float) -> None:
        """Call the script when time alone lets it decide something: a start rate, a standing line."""
        if due < self._event_due and self._loop is not None:
            if self._event_timer is not None:
                self._event_timer.cancel()
            self._event_due = due
            self._event_timer = self._loop.call_at(due, self._event)

    def _event(self) -> None:
        self._event_due = math.inf
        if sum(self._claims.waiting):
            self._look()

    # ------------------------------------------------------------------ questions

    @property
    def cut_off(self) -> bool:
        """Whether the server is out of reach, and this process goes alone."""
        return self._cut_off

    @property
    def held(self) -> int:
        """Slots the tickets of this process hold."""
        return self._claims.held

    @property
    def waiting(self) -> int:
        """Tickets of this process that wait."""
        return sum(self._claims.waiting)

    @property
    def in_flight(self) -> int:
        """Slots in use, by whatever process, when the pool was last heard of."""
        return max(self._view.in_use, self._claims.held)

    @property
    def queued(self) -> int:
        """Tickets that wait, of whatever process, when the pool was last heard of."""
        return max(self._view.queued, self.waiting)

    @property
    def limit(self) -> int:
        """Slots that may be in use: of the pool, or of this process alone while it is cut off."""
        return self._view.limit if self._standby is None else self._standby.limit

    def position(self, entry: Entry) -> int:
        """As last heard; `refresh` asks."""
        claim = self._waiting_claim(entry)
        if claim is None:
            return 0
        return claim.position if self._standby is None else self._standby.position(claim)

    def predicted_wait(self, entry: Entry, now: float) -> float | None:
        """As last heard, less the time since."""
        claim = self._waiting_claim(entry)
        if claim is None:
            return 0.0
        if self._standby is not None:
            return self._standby.predicted_wait(claim, now)
        return None if claim.predicted is None else max(0.0, claim.predicted - (now - claim.known_at))

    def predicted_newcomer_wait(self, rank: int, now: float) -> float | None:
        """As last heard."""
        return self._view.newcomer_wait(rank)

    def held_back_by(self, entry: Entry, now: float) -> str:
        """As last heard; `refresh` asks."""
        claim = self._waiting_claim(entry)
        if claim is None:
            return "nothing"
        return "outage" if self._cut_off else claim.held_back_by

    def entries(self, most: int) -> list[Entry]:
        """Waiters of this process, by class and arrival."""
        return [claim.entry for claim in self._claims.waiters()[:most]]

    async def refresh(self, entry: Entry | None = None) -> None:
        """Ask the pool how it stands, and where *entry* does. Where it cannot be asked, what was known stands."""
        if self._loop is None or self._cut_off:
            return
        commit, ends = self._connect(), self._loop.now() + self._site.timeout
        await commit.answered(self._site.timeout)  # What was said before shall be among what is seen.
        if self._cut_off:
            return
        told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def looked(answer: Answer) -> None:
            self._view.looked(answer)
            _settle(told, answer)

        claim = None if entry is None else self._waiting_claim(entry)
        if claim is not None:
            commit.send(script.position(claim.id), partial(self._placed, claim))
        commit.send(script.look(), looked)
        await asyncio.wait([told], timeout=max(0.0, ends - self._loop.now()))

    async def find(self, ticket_id: str) -> TicketStatus | None:
        """Ask the pool for a ticket of another process."""
        if self._loop is None or self._cut_off or not script.is_id(ticket_id):
            return None
        told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._connect().send(script.position(ticket_id), partial(_settle, told))
        await asyncio.wait([told], timeout=self._site.timeout)
        place = told.result() if told.done() else None
        if not isinstance(place, script.Place) or place.rank >= len(self._rules.classes):
            return None
        return TicketStatus(
            id=ticket_id,
            priority=self._rules.classes[place.rank].name,
            tenant=place.tenant,
            running=place.position == 0,
            waited=place.waited,
            position=place.position,
            predicted_wait=place.predicted,
            held_back_by=place.held_back_by,
        )

    def _placed(self, claim: Claim, answer: Answer) -> None:
        """The answer to a question for a position."""
        if isinstance(answer, script.Place) and self._loop is not None:
            claim.knows(answer.position, answer.predicted, self._loop.now(), answer.held_back_by)

    def snapshot(self, now: float, name: str, top_tenants: int) -> Snapshot:
        """The pool as last heard of; what is counted is this process's."""
        return self._view.snapshot(
            name,
            self.process,
            self._claims,
            limit=self.limit,
            in_flight=self.in_flight,
            queued=self.queued,
            top_tenants=top_tenants,
            draining=self._closed,
            link=self._link_snapshot(),
        )

    def _link_snapshot(self) -> LinkSnapshot | None:
        if self._link is None or self._lease is None or self._commit is None:
            return None
        link, lease, commit = self._link.statistics, self._lease.statistics, self._commit.statistics
        return LinkSnapshot(
            state=link.breaker.value,
            calls=commit.calls,
            operations=commit.operations,
            largest_batch=commit.largest,
            round_trip=link.seconds,
            failures=link.failures,
            timeouts=link.timeouts,
            reconnects=link.reconnects,
            resyncs=self._resyncs,
            lease_renewals=lease.renewals,
            lease_failures=lease.failures,
            stale=self._stale,
            over_limit=max(0, self._view.in_use - self._view.limit),
        )

    # ------------------------------------------------------------------ inside

    def _flow(self, rank: int, tenant: str) -> Flow:
        flows = self._flows[rank]
        flow = flows.get(tenant)
        if flow is None:
            if len(flows) >= KEPT_FLOWS:
                flows.clear()
            flow = flows[tenant] = Flow(tenant, self._rules.classes[rank].weights.get(tenant, 1.0))
        return flow

    def _offer_of(self, claim: Claim, now: float) -> Op:
        entry = claim.entry
        left = None if entry.expires == math.inf else max(0, round((entry.expires - now) * 1e6))
        return script.offer(
            claim.id, entry.rank, entry.tenant, entry.slots, entry.charge, left, entry.expires_as, claim.may_wait
        )

    def _waiting_claim(self, entry: Entry) -> Claim | None:
        return None if entry.id is None or entry.state not in WAITS else self._claims.by_id.get(entry.id)

    def _shares(self, claim: Claim) -> bool:
        """Whether the pool counts it as this process's; what ran when `stop` said goodbye does not."""
        return claim.id.startswith(self.process)

    def _runs(self) -> bool:
        """Whether the loop goes on: else there is no one to tell the pool, and the end of the lease will."""
        return self._loop is not None and self._loop.is_running()

    def _learn(self, now: float, entry: Entry, outcome: Outcome, rtt: float) -> None:
        """Every process learns from its own requests, and what the eldest has learnt holds for all."""
        self._limit.observe(Sample(rtt=rtt, in_flight=entry.in_flight, outcome=outcome, now=now))
        if self._limit.slots != self._view.limit and self._view.elected == self.process:
            self._steer("limit", script.resize(self._limit.slots))


def _settle(told: asyncio.Future[Answer], answer: Answer) -> None:
    if not told.done():
        told.set_result(answer)


def _refuse(entry: Entry, reason: Reason) -> None:
    entry.state = REFUSED
    entry.reason = reason


def _tell(entry: Entry) -> None:
    if entry.waiter is not None:
        entry.waiter.decided(entry)
