"""`Core` and its twin in Redis on one trace: every operation is done to both, and all that can be seen is compared.

    python -m tests.redis.twin --operations 100000 --seeds 40 [--url redis://…]

The core counts in microseconds here, as the script does, so that both do the same arithmetic to the last bit. Calls
are made in pipelines: the trace is drawn by looking at the core, and the replies are compared afterwards.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from admission.backends.base import PoolRules
from admission.backends.redis import script
from admission.backends.redis.script import Decision, Kind, Look, Op, Place, Reply, Script, SharedRules
from admission.core import Core, Decisions
from admission.line import REFUSED, RUNNING, WAITING, Entry
from admission.policy.limit import FixedLimit
from admission.types import BackpressureMode, PriorityClass, Reason
from tests.redis.servers import valkey

FOREVER = 10**15
"""Microseconds no trace lasts."""

CALLS_AT_ONCE = 50
"""Calls that go out in one pipeline."""

TENANTS = ("ann", "bob", "cy", "a tenant: with spaces", "ünïcode", "")


class Difference(AssertionError):
    """The two disagree."""


@dataclass
class Expected:
    """What one call must bring."""

    answers: list[object] = field(default_factory=list)
    told: dict[str, list[Decision]] = field(default_factory=dict)
    """By process, in order; without what only the script knows."""
    pool: tuple[object, ...] = ()


def any_rules(draw: random.Random) -> PoolRules:
    """A pool in whole microseconds, as the core of a trace takes it."""

    def plain_or(*values: object) -> Any:
        return draw.choice([None, None, *values])

    def one_class(rank: int) -> PriorityClass:
        rate = plain_or(1 / 2_000, 1 / 500, 1 / 128)
        codel = plain_or(None, 1_000, 5_000)
        return PriorityClass(
            name=f"c{rank}",
            guaranteed=draw.choice([0, 0, 0.05, 0.2]),
            ceiling=draw.choice([1, 1, 1, 0.5, 0.7]),
            max_delay=plain_or(3_000, 20_000),
            rate=rate,
            burst=None if rate is None else draw.choice([1, 1, 3, 20]),
            max_queued=plain_or(None, 2, 6),
            weights=draw.choice([{}, {"ann": 2.0, "bob": 0.5}]),
            codel_target=codel,
            codel_interval=None if codel is None else plain_or(4_000),
            exempt=draw.random() < 0.07,
        )

    return PoolRules(
        name="twin",
        limit=FixedLimit(draw.choice([1, 2, 3, 8, 20])),
        classes=tuple(one_class(rank) for rank in range(draw.choice([1, 2, 3, 4, 4, 8]))),
        max_queue_size=draw.choice([0, 3, 8, 8, 30, 300]),
        mode=draw.choice(list(BackpressureMode)),
        max_lobby_size=draw.choice([0, 3, 100, 100]),
        max_queued_per_tenant=draw.choice([None, None, None, 2, 5]),
        refuse_hopeless=draw.random() < 0.3,
    )


def in_seconds(rules: PoolRules) -> PoolRules:
    """The same pool as people write it down."""

    def seconds(value: float | None) -> float | None:
        return None if value is None else value / 1e6

    classes = tuple(
        replace(
            each,
            max_delay=seconds(each.max_delay),
            codel_target=seconds(each.codel_target),
            codel_interval=seconds(each.codel_interval),
            rate=None if each.rate is None else each.rate * 1e6,
        )
        for each in rules.classes
    )
    return replace(rules, classes=classes)


class Twin:
    """One pool, twice, and a trace drawn for it."""

    def __init__(
        self,
        client: redis.Redis,
        seed: int,
        *,
        namespace: str = "twin",
        source: str = Script.source,
        sharded: bool = False,
    ) -> None:
        self.draw = draw = random.Random(seed)
        self.seed = seed
        self.client = client
        rules = any_rules(draw)
        self.core = Core(
            limit=rules.limit,
            classes=rules.classes,
            max_queue_size=rules.max_queue_size,
            mode=rules.mode,
            max_lobby_size=rules.max_lobby_size,
            max_queued_per_tenant=rules.max_queued_per_tenant,
            refuse_hopeless=rules.refuse_hopeless,
        )
        self.script = Script(namespace, f"twin{seed}")
        self.evaluate = client.register_script(source)
        self.shared = SharedRules(in_seconds(rules), limit=rules.limit.slots, version=1)
        self.now = draw.randrange(1, 10**9)
        self.epoch = self.now
        self.fences = 0
        self.patient = draw.random() < 0.5
        self.crowd = draw.choice([3, 6, 200])
        self.busy = draw.choice([0.3, 0.45, 0.6])
        """Share of arrivals among arrivals and departures."""
        self.processes = [f"{number:016x}" for number in range(1, draw.choice([1, 3]) + 1)]
        self.entries: dict[Entry, tuple[str, int]] = {}
        """All live ones, with their ids and fences."""
        self.live: dict[str, list[Entry]] = {process: [] for process in self.processes}
        self.arrived = 0
        self.calls: list[tuple[str, list[Op], int, Expected]] = []
        self.counts: Counter[str] = Counter()
        self.channel = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self.sharded = sharded
        subscribe = self.channel.ssubscribe if sharded else self.channel.subscribe
        subscribe(*map(self.script.channel, self.processes))
        for _ in self.processes:
            self.channel.get_message(timeout=10)  # That it is subscribed.
        for process in self.processes:
            self._send(process, [script.beat(FOREVER, None)], Expected(answers=[Kind.DONE]))
        self.compare()

    # ------------------------------------------------------------------ the trace

    def run(self, operations: int) -> None:
        """Do that many operations, and compare all they brought."""
        while self.counts["operations"] < operations:
            self.step()
            if len(self.calls) >= CALLS_AT_ONCE:
                self.compare()
        self.compare()

    def step(self) -> None:
        """One call: time passes, and a batch of operations."""
        draw, core = self.draw, self.core
        self.now += draw.choice([0, 1, 50, 300, 300, 1_000, 7_000])
        due = core.next_event(self.now)
        if draw.random() < 0.3 and due < self.now + 50_000:
            self.now = max(self.now, math.ceil(due))
        process = draw.choice(self.processes)
        expected, ops = Expected(), list[Op]()
        self._decided(core.expire(self.now), expected)
        for _ in range(draw.choice([1, 1, 2, 5, 12, 30])):
            self._one(process, ops, expected)
        self.counts["operations"] += len(ops)
        self._send(process, ops, expected)

    def _one(self, process: str, ops: list[Op], expected: Expected) -> None:
        draw, core, now = self.draw, self.core, self.now
        kind = draw.random()
        if kind < 0.01:
            limit = draw.choice([1, 2, 3, 5, 8, 20])
            ops.append(script.resize(limit))
            self._decided(core.resize(now, FixedLimit(limit)), expected)
            expected.answers.append(Kind.DONE)
        elif kind < 0.04:
            rank = draw.choice([None, *range(len(core.classes))])
            if draw.random() < 0.25:
                ops.append(script.pause(rank))
                self._decided(core.pause(now, rank), expected)
            else:
                ops.append(script.resume(rank))
                self._decided(core.resume(now, rank), expected)
            expected.answers.append(Kind.DONE)
        elif kind < 0.0405:
            ops.append(script.close())
            self._decided(core.close(now), expected)
            expected.answers.append(Kind.DONE)
        elif kind < 0.06:
            ops.append(script.reopen())
            core.reopen()
            expected.answers.append(Kind.DONE)
        elif kind < 0.07:
            ops.append(script.beat(FOREVER, None))
            expected.answers.append(Kind.DONE)
        elif kind < 0.15 and self.live[process]:
            entry = draw.choice(self.live[process])
            if draw.random() < 0.3:  # A reply was lost: the offer comes once more.
                ops.append(self._offer_of(entry, None))
                expected.answers.append(self._present(entry))
            else:
                ops.append(script.position(self.entries[entry][0]))
                expected.answers.append(
                    Place(
                        core.position(entry),
                        core.predicted_wait(entry, now),
                        core.held_back_by(entry, now),
                        entry.rank,
                        entry.tenant,
                        None if entry.state is RUNNING else now - entry.arrival,
                    )
                )
        elif kind < 0.2 and self.live[process]:
            self._withdraw(draw.choice(self.live[process]), ops, expected)
        elif draw.random() < self.busy:
            self._offer(process, ops, expected)
        else:
            self._end_one(process, ops, expected)

    def _offer(self, process: str, ops: list[Op], expected: Expected) -> None:
        draw, now = self.draw, self.now
        self.arrived += 1
        id = f"{process}:{self.arrived:x}"
        tenant = draw.choice(TENANTS) if self.crowd < 10 else f"t{draw.randrange(self.crowd)}"
        rank = draw.randrange(len(self.core.classes))
        slots = draw.choice([1, 1, 1, 1, 1, 2, 3, 7])
        patience = None if self.patient else draw.choice([None, 0, 1, 500, 5_000, 40_000])
        expires_as = draw.choice([Reason.TIMEOUT, Reason.DEADLINE])
        may_wait = draw.random() < 0.93
        entry, decisions = self.core.offer(
            now,
            rank,
            tenant,
            slots,
            draw.choice([1, 1, 1, 0, 0.5, 2, 5, 300]),
            expires=math.inf if patience is None else now + patience,
            expires_as=expires_as,
            may_wait=may_wait,
        )
        if entry.state is RUNNING:
            self.counts["grants at once"] += 1
        self.entries[entry] = (id, 0)
        ops.append(self._offer_of(entry, patience, expires_as, may_wait))
        self._granted_in_order(entry, decisions)
        self._decided(decisions, expected)
        expected.answers.append(self._present(entry, on_arrival=True))
        if entry.state is REFUSED:
            del self.entries[entry]
            self.counts["rejections"] += 1
            self.counts[entry.reason] += 1
        else:
            self.live[process].append(entry)

    def _granted_in_order(self, newcomer: Entry, decisions: Decisions) -> None:
        """Number the grants as the script will: the newcomer's is the one at its own time."""
        grants = [*decisions.granted, *([newcomer] if newcomer.state is RUNNING else [])]
        # The slots in use after a grant grow within one pump, and tell the order.
        for entry in sorted(grants, key=lambda entry: entry.in_flight):
            self.fences += 1
            self.entries[entry] = (self.entries[entry][0], self.fences)

    def _offer_of(
        self, entry: Entry, patience: int | None, expires_as: Reason = Reason.TIMEOUT, may_wait: bool = True
    ) -> Op:
        id = self.entries[entry][0]
        return script.offer(id, entry.rank, entry.tenant, entry.slots, entry.charge, patience, expires_as, may_wait)

    def _present(self, entry: Entry, *, on_arrival: bool = False) -> Decision:
        core = self.core
        if entry.state is RUNNING:
            return Decision("", Kind.GRANTED, None, (self.epoch, self.entries[entry][1]))
        if entry.state is REFUSED:
            waits = core.predicted_newcomer_wait(entry.rank, self.now)
            return Decision("", Kind.REFUSED, entry.reason, None, entry.position, waits)
        kind = Kind.WAITING if entry.state is WAITING else Kind.LOBBY
        if on_arrival:
            return Decision("", kind, None, None, entry.position, entry.predicted)
        return Decision("", kind, None, None, core.position(entry), core.predicted_wait(entry, self.now))

    def _end_one(self, process: str, ops: list[Op], expected: Expected) -> None:
        running = [entry for entry in self.live[process] if entry.state is RUNNING]
        if not running:
            return
        entry = self.draw.choice(running)
        id, fence = self.entries.pop(entry)
        self.live[process].remove(entry)
        actual = self.draw.choice([None, None, 0, 1, 4, 500])
        difference = 0 if actual is None else entry.flow.charge(actual) - entry.charge
        decisions = self.core.release(self.now, entry, actual_cost=actual)
        ops.append(script.release(id, (self.epoch, fence), difference))
        expected.answers.append(Kind.DONE)
        self._granted_of(decisions)
        self._decided(decisions, expected)

    def _withdraw(self, entry: Entry, ops: list[Op], expected: Expected) -> None:
        id, _ = self.entries.pop(entry)
        self.live[id[:16]].remove(entry)
        reason = self.draw.choice([Reason.CANCELLED, Reason.DISCONNECT])
        ops.append(script.withdraw(id, reason))
        expected.answers.append(Kind.DONE)
        self._decided(self.core.withdraw(self.now, entry, reason), expected)

    def _granted_of(self, decisions: Decisions) -> None:
        for entry in decisions.granted:
            if not self.entries[entry][1]:
                self.fences += 1
                self.entries[entry] = (self.entries[entry][0], self.fences)

    def _decided(self, decisions: Decisions, expected: Expected) -> None:
        """Note what the script has to tell, and to whom."""
        self._granted_of(decisions)
        for entry in decisions.granted:
            id, fence = self.entries[entry]
            self.counts["grants from the line"] += 1
            expected.told.setdefault(id[:16], []).append(Decision(id, Kind.GRANTED, None, (self.epoch, fence)))
        for entry in decisions.entered:
            id = self.entries[entry][0] if entry in self.entries else ""
            self.counts["lobby moves"] += 1
            expected.told.setdefault(id[:16], []).append(Decision(id, Kind.ENTERED))
        for entry in decisions.evicted:
            id, _ = self.entries[entry]
            self.counts["evictions"] += 1
            self.counts[entry.reason] += 1
            expected.told.setdefault(id[:16], []).append(Decision(id, Kind.REFUSED, entry.reason))
        for entry in decisions.evicted:
            id, _ = self.entries.pop(entry)
            self.live[id[:16]].remove(entry)

    # ------------------------------------------------------------------ comparison

    def _send(self, process: str, ops: list[Op], expected: Expected) -> None:
        core = self.core
        if self.draw.random() < 0.1:
            ops.append(script.look(1000))
            expected.answers.append(self._look())
        due = core.next_event(self.now)
        expected.pool = (
            core.in_use,
            core.limit,
            core.line.queued,
            core.lobby.queued,
            -1 if due == math.inf else math.ceil(due),
        )
        self.calls.append((process, ops, self.now, expected))

    def _look(self) -> tuple[object, ...]:
        core, now = self.core, self.now
        classes = []
        for state in core.classes:
            line = state.line
            classes.append(
                (
                    state.share.held,
                    line.queued,
                    state.lobby.queued,
                    state.share.cap,
                    state.share.paused,
                    state.share.credit(core.starts),
                    now - line.oldest().arrival if line.queued and line.arrivals is not None else None,
                    _whole(core.predicted_newcomer_wait(state.rank, now)),
                    core.held_back_by(line.head(), now) if line.queued else None,
                )
            )
        tenants = {
            (state.rank, flow.tenant, flow.running, flow.waiting)
            for state in core.classes
            for flow in state.fair.flows.values()
            if flow.running or flow.waiting
        }
        rate = core.drain_rate(now)
        return (core.paused, core.closed, None if rate is None else f"{rate * 1e6:.12g}", classes, tenants)

    def compare(self) -> None:
        """Make the calls that have gathered, and hold their replies against what was expected."""
        calls, self.calls = self.calls, []
        pipe = self.client.pipeline(transaction=False)
        for process, ops, now, _ in calls:
            keys, arguments = self.script.call(self.shared, process, ops, now_us=now, sharded=self.sharded)
            self.evaluate(keys=keys, args=arguments, client=pipe)
        replies = pipe.execute()
        for (process, ops, now, expected), raw in zip(calls, replies, strict=True):
            reply = self.script.parse(raw)
            where = f"seed {self.seed}, at {now}, operations {ops}"
            self._same_answers(reply, expected, where)
            told = {process: list(reply.told)} if reply.told else {}
            for other in expected.told:
                if other != process:
                    told[other] = self._message(where)
            self._same_told(told, expected, where)
            pool = (reply.in_use, reply.limit, reply.queued, reply.lobby, raw[7])
            _same(pool, expected.pool, "in use, limit, queued, lobby, next event", where)

    def _message(self, where: str) -> list[Decision]:
        """The next message, of whatever channel: they come in the order of their calls."""
        message = self.channel.get_message(timeout=10)
        if message is None:
            raise Difference(f"{where}: no message was published")
        channel = message["channel"].decode()
        decisions = self.script.parse_message(message["data"])
        for decision in decisions:
            _same(self.script.channel(decision.id[:16]), channel, "channel", where)
        return decisions

    def _same_answers(self, reply: Reply, expected: Expected, where: str) -> None:
        for number, (answer, wanted) in enumerate(zip(reply.answers, expected.answers, strict=True)):
            what = f"answer {number}"
            if isinstance(answer, Look):
                _same(_seen(answer, wanted), wanted, what, where)
            elif isinstance(answer, Place):
                assert isinstance(wanted, Place)
                _same(
                    (answer.position, _us(answer.predicted), *answer[2:5], _us(answer.waited)),
                    (wanted.position, _whole(wanted.predicted), *wanted[2:]),
                    what,
                    where,
                )
            else:
                assert isinstance(answer, Decision)
                if isinstance(wanted, Kind):
                    _same(answer.kind, wanted, what, where)
                    continue
                assert isinstance(wanted, Decision)
                _same(
                    (*answer[1:4], answer.position, _us(answer.predicted)),
                    (*wanted[1:4], wanted.position, _whole(wanted.predicted)),
                    what,
                    where,
                )

    def _same_told(self, told: dict[str, list[Decision]], expected: Expected, where: str) -> None:
        # Messages of one call to several processes come in any order.
        found = {decision.id[:16]: decisions for decisions in told.values() for decision in decisions[:1]}
        _same(set(found), set(expected.told), "processes told", where)
        for process, decisions in found.items():
            for kind in (Kind.GRANTED, Kind.REFUSED, Kind.ENTERED):
                _same(
                    [decision[:4] for decision in decisions if decision.kind is kind],
                    [decision[:4] for decision in expected.told[process] if decision.kind is kind],
                    f"{kind.name} told to {process}",
                    where,
                )

    def finish(self) -> None:
        """All that wait give up and all that run end: nothing of a ticket, tenant or process may be left."""
        for process in self.processes:
            expected, ops = Expected(), list[Op]()
            self._decided(self.core.expire(self.now), expected)
            for entry in list(self.live[process]):
                if entry in self.entries:
                    self._withdraw(entry, ops, expected)
                if len(ops) >= 200:
                    self._send(process, ops, expected)
                    expected, ops = Expected(), []
            self._send(process, ops, expected)
            self._send(process, [script.leave()], Expected(answers=[Kind.DONE]))
        self.compare()
        left = [key for key in self.script.keys if self.client.exists(key)]
        _same(left, [self.script.keys[0]], "keys left", f"seed {self.seed}, at the end")
        self.client.delete(self.script.keys[0])
        self.channel.close()


def _same(found: object, wanted: object, what: str, where: str) -> None:
    if found != wanted:
        raise Difference(f"{what}: the script says {found}, the core {wanted}\n{where}")


def _us(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e6)


def _whole(microseconds: float | None) -> int | None:
    return None if microseconds is None else math.floor(microseconds + 0.5)


def _seen(answer: Look, wanted: object) -> tuple[object, ...]:
    assert isinstance(wanted, tuple)
    classes = []
    for seen, known in zip(answer.classes, wanted[3], strict=True):
        classes.append(
            (
                seen.in_use,
                seen.queued,
                seen.lobby,
                seen.cap,
                seen.paused,
                round(seen.credit * 1e6),
                None if known[6] is None else _us(seen.oldest_wait),
                _us(seen.predicted_wait),
                seen.held_back_by,
            )
        )
    tenants = {(tenant.rank, tenant.tenant, tenant.running, tenant.queued) for tenant in answer.tenants}
    rate = None if answer.drain_rate is None else f"{answer.drain_rate:.12g}"
    return (answer.paused, answer.closed, rate, classes, tenants)


def run(
    client: redis.Redis,
    operations: int,
    seeds: Sequence[int],
    *,
    namespace: str = "twin",
    source: str = Script.source,
) -> Counter[str]:
    """Do *operations*, spread evenly over pools with *seeds*; returns what happened. Raises `Difference`."""
    counts: Counter[str] = Counter()
    for number, seed in enumerate(seeds):
        twin = Twin(client, seed, namespace=namespace, source=source)
        twin.run(operations * (number + 1) // len(seeds) - operations * number // len(seeds))
        twin.finish()
        counts += twin.counts
    return counts


@contextmanager
def _server(url: str | None) -> Iterator[redis.Redis]:
    if url is not None:
        with redis.Redis.from_url(url) as client:
            yield client
        return
    with valkey() as server, server.client() as client:
        yield client


def main() -> None:
    """Run a trace and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=40, help="pools with rules of their own")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--url", help="a server that is there; by default one is started")
    options = parser.parse_args()
    began = time.monotonic()
    with _server(options.url) as client:
        counts = run(client, options.operations, range(options.first, options.first + options.seeds))
    refusals = sorted((reason.value, count) for reason, count in counts.items() if isinstance(reason, Reason))
    names = (
        "operations",
        "grants at once",
        "grants from the line",
        "evictions",
        "rejections",
        "lobby moves",
    )
    print(
        f"{', '.join(f'{counts[name]} {name}' for name in names)} "
        f"({', '.join(f'{count} {reason}' for reason, count in refusals)}), "
        f"{options.seeds} pools, {time.monotonic() - began:.0f} s: 0 differences"
    )


if __name__ == "__main__":
    main()
