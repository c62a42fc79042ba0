"""Processes that share a pool, each with its own belief of what it has: they die, hang, lose messages, come back.

The machine drives the real script with whatever Hypothesis thinks of, and looks after every step at all that the keys
say. What it holds the pool to:

- slots in use are the sum over the running tickets, and every index and counter agrees with the entries;
- nothing is started above the limit; it is exceeded only by what was held before and by what `hold` brings back;
- no two grants have the same fence, unless the server has lost the first;
- nobody is left waiting who could run;
- a process that asks is told the truth, so that afterwards both agree; and when all have left, nothing remains.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from admission.backends.redis import script
from admission.backends.redis.script import Decision, Fence, Kind, Op, Page, Reply, Script
from admission.types import BackpressureMode, Reason
from tests.redis.pools import LEASE, SharedPool, offer, rules_of

PROCESSES = tuple(f"{number:016x}" for number in range(1, 4))


@dataclass
class Belief:
    """What one process thinks of one of its tickets."""

    rank: int
    tenant: str
    slots: int
    fence: Fence | None = None
    """None: it waits."""


@dataclass
class Holder:
    """One process."""

    name: str
    tickets: dict[str, Belief] = field(default_factory=dict)
    seen: Fence | None = None
    alive: bool = True
    """A dead one does nothing any more."""
    lease_ends: int = 0

    def heard(self, decisions: list[Decision]) -> list[Op]:
        """Believe what was told; returns what has to be answered."""
        answers: list[Op] = []
        for decision in decisions:
            belief = self.tickets.get(decision.id)
            if decision.kind is Kind.GRANTED:
                if belief is None:  # Granted in the instant it left.
                    answers.append(script.withdraw(decision.id, Reason.CANCELLED))
                elif belief.fence is None or (decision.fence is not None and decision.fence > belief.fence):
                    belief.fence = decision.fence
            elif decision.kind is Kind.REFUSED and belief is not None and belief.fence is None:
                del self.tickets[decision.id]
            # GONE: its slots went to others. The work goes on all the same, so it will be held.
        return answers


class Holders(RuleBasedStateMachine):
    """Every rule is a call, or something that happens to a process or to the server."""

    client: redis.Redis
    namespace: str
    source = Script.source

    def __init__(self) -> None:
        super().__init__()
        self.holders = [Holder(name) for name in PROCESSES]
        self.made = 0
        self.fences: dict[Fence, str] = {}
        """Every grant there ever was, with its ticket."""
        self.in_use = 0
        """Slots, after the latest call."""
        self.backup: dict[str, bytes] | None = None

    @initialize(
        limit=st.integers(1, 4),
        size=st.sampled_from([0, 2, 5]),
        mode=st.sampled_from(BackpressureMode),
        lobby=st.sampled_from([1, 100]),
    )
    def a_pool(self, limit: int, size: int, mode: BackpressureMode, lobby: int) -> None:
        rules = rules_of(max_queue_size=size, mode=mode, max_lobby_size=lobby)
        self.pool = SharedPool(self.client, self.namespace, limit=limit, rules=rules, source=self.source)
        self.client.delete(*self.pool.script.keys, *map(self.pool.script.channel, PROCESSES))
        for holder in self.holders:
            self.beat(holder)

    # ------------------------------------------------------------------ calls

    def call(self, holder: Holder, *ops: Op) -> Reply:
        """One call; grants in it are noted, and its own decisions believed."""
        reply = self.pool.call(holder.name, *ops, seen=holder.seen)
        holder.seen = max(holder.seen or (0, 0), (reply.epoch, reply.fence))
        self.keeps_the_limit(reply, brought_back=sum(int(op[4]) for op in ops if op[0] == "hold"))
        for op, answer in zip(ops, reply.answers, strict=True):
            if op[0] in ("offer", "hold") and isinstance(answer, Decision):
                self.believe(holder, str(op[1]), answer)
        self.note(list(reply.told))
        for op in holder.heard(list(reply.told)):
            self.call(holder, op)
        return reply

    def keeps_the_limit(self, reply: Reply, *, brought_back: int) -> None:
        """Above it is only what was there before, what was brought back, and a wide ticket that runs alone."""
        if reply.in_use > max(reply.limit, self.in_use + brought_back):
            running = self.pool.contents().ids("running")
            assert len(running) == 1, (
                f"{reply.in_use} slots are in use at limit {reply.limit}, {self.in_use} were before"
            )
        self.in_use = reply.in_use

    def believe(self, holder: Holder, id: str, answer: Decision) -> None:
        """The answer to an offer or hold."""
        if answer.kind is Kind.GRANTED:
            assert answer.fence is not None
            holder.tickets[id].fence = answer.fence
            self.note([answer._replace(id=id)])
        elif answer.kind is Kind.REFUSED:
            del holder.tickets[id]

    def note(self, decisions: list[Decision]) -> None:
        """Remember fences: one grant has one, and one fence names one grant."""
        for decision in decisions:
            if decision.fence is not None:
                assert self.fences.setdefault(decision.fence, decision.id) == decision.id, "one fence names two grants"

    def beat(self, holder: Holder) -> Reply:
        waiting = [id for id, belief in holder.tickets.items() if belief.fence is None]
        running = [id for id, belief in holder.tickets.items() if belief.fence is not None]
        reply = self.call(holder, script.beat(LEASE, script.digest(waiting, running)))
        holder.lease_ends = self.pool.now + LEASE
        return reply

    def resync(self, holder: Holder) -> None:
        """Say all that is believed, hear what is true, give back what is not known."""
        self.read_mail(holder)
        for id, belief in list(holder.tickets.items()):
            if belief.fence is None:
                self.call(holder, self.offer_of(id, belief))
            else:
                self.call(
                    holder, script.hold(id, belief.fence, belief.rank, belief.tenant, belief.slots, belief.slots * 1000)
                )
        page = self.call(holder, script.mine()).answers[0]
        assert isinstance(page, Page)
        for id in page.ids:
            if id not in holder.tickets:
                self.call(holder, script.withdraw(id, Reason.CANCELLED))

    def read_mail(self, holder: Holder) -> None:
        decisions = self.pool.mail(holder.name)
        self.note(decisions)
        for op in holder.heard(decisions):
            self.call(holder, op)

    def offer_of(self, id: str, belief: Belief, patience: int | None = None) -> Op:
        return offer(id, belief.rank, belief.tenant, belief.slots, charge=belief.slots * 1000, patience=patience)

    def holder(self, which: int) -> Holder:
        """A living process; the first has most tickets."""
        living = sorted((holder for holder in self.holders if holder.alive), key=lambda holder: -len(holder.tickets))
        return living[which % len(living)]

    # ------------------------------------------------------------------ what happens

    @rule(
        which=st.integers(0, 2),
        rank=st.integers(0, 3),
        tenant=st.sampled_from(["x", "y"]),
        slots=st.sampled_from([1, 1, 2]),
        patience=st.sampled_from([None, None, LEASE // 4]),
        count=st.sampled_from([1, 1, 3]),
    )
    def somebody_comes(self, which: int, rank: int, tenant: str, slots: int, patience: int | None, count: int) -> None:
        holder = self.holder(which)
        ops = []
        for _ in range(count):
            self.made += 1
            id = f"{holder.name}:{self.made:x}"
            holder.tickets[id] = belief = Belief(rank, tenant, slots)
            ops.append(self.offer_of(id, belief, patience))
        self.call(holder, *ops)

    @precondition(lambda self: any(holder.tickets for holder in self.holders))
    @rule(which=st.integers(0, 99), twice=st.booleans())
    def somebody_ends(self, which: int, twice: bool) -> None:
        """Whoever runs is released, whoever waits gives up."""
        everyone = [(holder, id) for holder in self.holders if holder.alive for id in holder.tickets]
        if everyone:
            holder, id = everyone[which % len(everyone)]
            belief = holder.tickets.pop(id)
            op = script.withdraw(id, Reason.CANCELLED) if belief.fence is None else script.release(id, belief.fence)
            for _ in range(1 + twice):
                self.call(holder, op)

    @precondition(lambda self: any(holder.tickets for holder in self.holders))
    @rule(which=st.integers(0, 99))
    def somebody_is_thrown_out(self, which: int) -> None:
        """By an operator, from another process, wherever it is: its own hears of it."""
        holder = self.holder(which)
        for id in list(holder.tickets)[:1]:
            self.call(self.holder(which + 1), script.withdraw(id, Reason.CANCELLED))
            del holder.tickets[id]

    @rule(ranks=st.lists(st.integers(0, 3), min_size=2, max_size=6))
    def a_crowd_comes(self, ranks: list[int]) -> None:
        """To whoever has least, so that all have something to lose."""
        for rank in ranks:
            self.somebody_comes(-1, rank, "xy"[rank % 2], 1, None, 1)

    @rule(which=st.integers(0, 2))
    def an_offer_comes_twice(self, which: int) -> None:
        holder = self.holder(which)
        for id, belief in list(holder.tickets.items()):
            if belief.fence is None:
                self.call(holder, self.offer_of(id, belief))

    @rule(which=st.integers(0, 2), number=st.integers(1, 3))
    def a_stale_release_arrives(self, which: int, number: int) -> None:
        """With the fence of another grant: it must change nothing."""
        holder = self.holder(which)
        for id, belief in list(holder.tickets.items()):
            if belief.fence is not None:
                epoch, fence = belief.fence
                if fence > number:
                    answer = self.call(holder, script.release(id, (epoch, fence - number))).answers[0]
                    assert isinstance(answer, Decision)
                    assert answer.kind in (Kind.STALE, Kind.GONE)

    @rule(which=st.integers(0, 2))
    def a_process_reads_its_mail(self, which: int) -> None:
        self.read_mail(self.holder(which))

    @rule(which=st.integers(0, 2))
    def messages_are_lost(self, which: int) -> None:
        self.note(self.pool.mail(self.holders[which].name))

    @rule(which=st.integers(0, 2))
    def a_process_beats(self, which: int) -> None:
        holder = self.holder(which)
        if self.beat(holder).resync:
            self.resync(holder)

    @rule(share=st.sampled_from([0.1, 0.4, 1.1]))
    def time_passes(self, share: float) -> None:
        self.pool.now += int(LEASE * share)

    @precondition(lambda self: sum(holder.alive for holder in self.holders) > 1)
    @rule(which=st.integers(0, 2))
    def a_process_is_killed(self, which: int) -> None:
        self.holders[which].alive = False

    @rule(which=st.integers(0, 2))
    def a_process_says_goodbye_and_starts_anew(self, which: int) -> None:
        holder = self.holder(which)
        self.call(holder, script.leave())
        holder.tickets.clear()

    @rule(limit=st.integers(1, 6))
    def the_limit_changes(self, limit: int) -> None:
        self.call(self.holder(0), script.resize(limit))

    @rule(ends=st.booleans())
    def a_pause(self, ends: bool) -> None:
        self.call(self.holder(0), script.resume(None) if ends else script.pause(None))

    @rule()
    def a_replica_is_in_step(self) -> None:
        """What it has now is what it will have when it is promoted."""
        keys = [key for key in self.pool.script.keys if self.client.exists(key)]
        self.backup = {key: bytes(self.client.dump(key) or b"") for key in keys}

    @precondition(lambda self: self.backup is not None)
    @rule()
    def the_stale_replica_is_promoted(self) -> None:
        assert self.backup is not None
        self.client.delete(*self.pool.script.keys)
        for key, value in self.backup.items():
            self.client.restore(key, 86_400_000, value)
        self.everyone_agrees_again()

    @rule(calls=st.integers(1, 3))
    def a_failover_loses_the_last_calls(self, calls: int) -> None:
        """Those that run ended, others were granted and know it: the replica has seen none of that."""
        self.a_replica_is_in_step()
        for _ in range(calls):
            for holder in self.holders:
                running = [id for id, belief in holder.tickets.items() if belief.fence is not None]
                if holder.alive and running:
                    fence = holder.tickets.pop(running[0]).fence
                    assert fence is not None
                    self.call(holder, script.release(running[0], fence))
        for holder in self.holders:
            if holder.alive:
                self.read_mail(holder)
        self.the_stale_replica_is_promoted()

    @rule()
    def an_empty_replica_is_promoted(self) -> None:
        self.client.delete(*self.pool.script.keys)
        self.everyone_agrees_again()

    def everyone_agrees_again(self) -> None:
        """After a failover each process that lives is asked to resync with its next call, and does."""
        state = self.pool.contents().pool
        latest = (state.get("epoch", 0), state.get("fence", 0))
        self.fences = {fence: id for fence, id in self.fences.items() if fence <= latest or fence[0] < latest[0]}
        self.in_use = state.get("in_use", 0)
        for _ in range(2):  # Twice: what one brings back is taken for granted by those who came before it.
            for holder in self.holders:
                if holder.alive:
                    self.agree(holder)

    def agree(self, holder: Holder) -> None:
        """In a few rounds: its own resync may lead to grants it hears of only afterwards."""
        for _ in range(4):
            self.read_mail(holder)
            if not self.beat(holder).resync:
                break
            self.resync(holder)
        found = self.pool.contents()
        for places, runs in ((("running",), True), (("line", "lobby"), False)):
            known = {id for id in found.ids(*places) if id[:16] == holder.name}
            believed = {id for id, belief in holder.tickets.items() if (belief.fence is not None) is runs}
            assert known == believed, f"the pool knows {known} to be {places}, {holder.name} believes {believed}"

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def the_keys_agree(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()

    @invariant()
    def nobody_waits_who_could_run(self) -> None:
        if not hasattr(self, "pool"):
            return
        found = self.pool.contents()
        state, most = found.pool, self.pool.shared.rules.max_queue_size
        if state["queued"] and not state["paused"] and state["in_use"] < state["limit"]:
            head = found.order[0]
            assert state["in_use"], f"{head} waits before an empty pool"
            assert state["in_use"] + found.slots(head) > state["limit"], f"{head} waits beside free slots"
        if state["lobby"]:
            assert 0 < most <= state["queued"], "somebody stands in the lobby beside room in line"

    def teardown(self) -> None:
        """Whoever lives agrees with the pool; whoever died is reaped; then nothing is left."""
        if not hasattr(self, "pool"):
            return
        living = [holder for holder in self.holders if holder.alive]
        for holder in living:
            self.agree(holder)
        self.pool.now += 2 * LEASE
        for holder in living:
            self.call(holder, script.leave())
        self.call(living[0], script.leave())
        found = self.pool.check()
        assert not found.tickets, f"permits and waiters are lost: {found.tickets}"
        left = {key.rpartition("}")[2] for key in self.pool.script.keys if self.client.exists(key)}
        assert left == {"st"}, f"keys are left: {left}"
        self.client.delete(*self.pool.script.keys, *map(self.pool.script.channel, PROCESSES))
