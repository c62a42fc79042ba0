"""A shared pool driven call by call, at a time the test sets, and everything its keys say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from admission.backends.base import PoolRules
from admission.backends.redis import script
from admission.backends.redis.script import Decision, Fence, Op, Reply, Script, SharedRules
from admission.policy.limit import FixedLimit
from admission.types import DEFAULT_CLASSES, BackpressureMode, PriorityClass, Reason

ANN, BOB, CY = "a" * 16, "b" * 16, "c" * 16
"""Processes."""

LEASE = 10_000_000
"""Microseconds of a lease."""


def rules_of(
    *,
    classes: Sequence[PriorityClass] = DEFAULT_CLASSES,
    max_queue_size: int = 0,
    mode: BackpressureMode = BackpressureMode.REJECT,
    max_lobby_size: int = 100,
    max_queued_per_tenant: int | None = None,
    refuse_hopeless: bool = False,
) -> PoolRules:
    """The rules of a pool; its limit is named where the rules are shared."""
    return PoolRules(
        name="pool",
        limit=FixedLimit(1),
        classes=tuple(classes),
        max_queue_size=max_queue_size,
        mode=mode,
        max_lobby_size=max_lobby_size,
        max_queued_per_tenant=max_queued_per_tenant,
        refuse_hopeless=refuse_hopeless,
    )


def offer(
    id: str,
    rank: int = 2,
    tenant: str = "t",
    slots: int = 1,
    *,
    charge: int = 1000,
    patience: int | None = None,
    expires_as: Reason = Reason.TIMEOUT,
    may_wait: bool = True,
) -> Op:
    """`script.offer`, for a ticket like most."""
    return script.offer(id, rank, tenant, slots, charge, patience, expires_as, may_wait)


@dataclass
class Contents:
    """What the keys of a pool say, in Python."""

    pool: dict[str, int] = field(default_factory=dict)
    classes: dict[int, dict[str, int]] = field(default_factory=dict)
    tickets: dict[str, list[str]] = field(default_factory=dict)
    """The words of each entry in `d`."""
    order: list[str] = field(default_factory=list)
    """Ids in order of service."""

    def ids(self, *places: str) -> set[str]:
        """Tickets in one of these places."""
        return {id for id, words in self.tickets.items() if words[0] in places}

    def slots(self, *ids: str) -> int:
        """Slots these hold."""
        return sum(int(self.tickets[id][1]) for id in ids)


class SharedPool:
    """One pool.

    What other processes are told goes to a list each, read by `mail`, instead of a channel: nothing is lost, and the
    order is plain.
    """

    def __init__(
        self,
        client: redis.Redis,
        namespace: str,
        *,
        limit: int = 2,
        rules: PoolRules | None = None,
        source: str = Script.source,
    ) -> None:
        self.client = client
        self.script = Script(namespace, "pool")
        self.shared = SharedRules(rules or rules_of(), limit=limit, version=1)
        self.now = 1_000_000
        self.raw: Any = None
        """The latest reply as it came."""
        self._evaluate = client.register_script(source)

    def call(self, process: str, *ops: Op, rules: SharedRules | None = None, seen: Fence | None = None) -> Reply:
        """One call of a process."""
        keys, arguments = self.script.call(rules or self.shared, process, ops, seen=seen, now_us=self.now)
        words = list(arguments)
        words[2] = "RPUSH"
        self.raw = self._evaluate(keys=list(keys), args=words)
        return self.script.parse(self.raw)

    def ask(self, process: str, op: Op) -> Any:
        """One operation in a call of its own: its answer."""
        return self.call(process, op).answers[0]

    def beats(self, *processes: str, digest: int | None = None) -> None:
        """Renew leases."""
        for process in processes:
            self.call(process, script.beat(LEASE, digest))

    def mail(self, process: str) -> list[Decision]:
        """What a process was told since the last time."""
        channel = self.script.channel(process)
        found: list[Decision] = []
        while (message := self.client.lpop(channel)) is not None:
            assert isinstance(message, bytes)
            found += self.script.parse_message(message)
        return found

    def leave(self, *processes: str) -> None:
        """Have these say goodbye, and forget the pool."""
        for process in processes:
            self.ask(process, script.leave())
            self.client.delete(self.script.channel(process))

    # ------------------------------------------------------------------ what the keys say

    def key(self, name: str) -> str:
        """One of the script's keys."""
        return next(key for key in self.script.keys if key.endswith(f"}}{name}"))

    def contents(self) -> Contents:
        """All of it."""
        found = Contents()
        state = {field.decode(): value.decode() for field, value in self._hash("st").items()}
        found.pool = _named(state.get("pool", ""))
        for name, value in state.items():
            if name.startswith("class"):
                found.classes[int(name[5:])] = _named(value)
        for id, record in self._hash("d").items():
            words = record.decode()
            found.tickets[id.decode()] = words.split(" ", 4 if words.startswith("running") else 12)
        found.order = [member.decode().split(":", 3)[3] for member in self._sorted("w")]
        return found

    def check(self) -> Contents:
        """The contents, which agree with each other.

        Counters are the sums over entries, the indexes name the live tickets, every key vanishes by itself one day.
        """
        found = self.contents()
        pool, tickets = found.pool, found.tickets
        running = found.ids("running")
        waiting = found.ids("line", "lobby")
        assert pool["in_use"] == found.slots(*running), "slots in use are not those of the running tickets"
        assert pool["in_use"] == sum(each["held"] for each in found.classes.values())
        assert pool["running"] == len(running) == sum(each["running"] for each in found.classes.values())
        for place, counter in (("line", "queued"), ("lobby", "lobby")):
            assert pool[counter] == len(found.ids(place)), f"{counter} is not the length of the {place}"
            for rank, each in found.classes.items():
                own = [id for id in found.ids(place) if tickets[id][-1][0] == str(rank)]
                assert each[counter] == len(own)
        assert sorted(found.order) == sorted(waiting), "the line is not made of the waiters"
        assert {id.decode() for id in self._sorted("own")} == set(tickets), (
            "the index of ids is not that of the tickets"
        )
        due = {member.decode().split(":", 1)[1] for member in self._sorted("due")}
        assert due == {id for id in waiting if tickets[id][6] != "never"}, "deadlines are not those of the waiters"
        old = {member.decode().split(":", 3)[3] for member in self._sorted("old")}
        assert old == {id for id in found.ids("line") if tickets[id][8] == "1"}
        self._check_tenants(found)
        self._check_processes(found)
        for key in self.script.keys:
            assert self.client.ttl(key) != -1, f"{key} would stay for ever"
        return found

    def _check_tenants(self, found: Contents) -> None:
        waiting = Counter(found.tickets[id][-1] for id in found.ids("line", "lobby"))
        running = Counter(found.tickets[id][-1] for id in found.ids("running"))
        debts = {member.decode() for member in self._sorted("debt")}
        kept = Counter[int]()
        for name, record in self._hash("f").items():
            tenant = name.decode()
            finish, _, waits, runs = map(int, record.split())
            assert (waits, runs) == (waiting.pop(tenant, 0), running.pop(tenant, 0)), f"tenant {tenant} is miscounted"
            if not waits and not runs:
                debts.remove(f"{tenant[0]}:{finish:016d}:{tenant[2:]}")
                kept[int(tenant[0])] += 1
        assert not waiting, f"tenants {list(waiting)} are not known"
        assert not running, f"tenants {list(running)} are not known"
        assert not debts, f"debts {debts} are nobody's"
        for rank, each in found.classes.items():
            assert each["debts"] == kept[rank]

    def _check_processes(self, found: Contents) -> None:
        processes = {name.decode(): list(map(int, record.split())) for name, record in self._hash("proc").items()}
        assert set(processes) == {name.decode() for name in self._sorted("lease")}, "a process has no lease"
        assert {id[:16] for id in found.tickets} <= set(processes), "a ticket's process has no lease"
        for name, (slots, runs, waits, digest, _) in processes.items():
            running = [id for id in found.ids("running") if id[:16] == name]
            waiting = [id for id in found.ids("line", "lobby") if id[:16] == name]
            assert (slots, runs, waits) == (found.slots(*running), len(running), len(waiting)), f"{name} is miscounted"
            assert digest == script.digest(waiting, running)

    def _hash(self, name: str) -> dict[bytes, bytes]:
        found: Any = self.client.hgetall(self.key(name))
        return dict(found)

    def _sorted(self, name: str) -> list[bytes]:
        found: Any = self.client.zrange(self.key(name), 0, -1)
        return list(found)


def _named(text: str) -> dict[str, int]:
    return {name: int(value) for name, _, value in (word.partition("=") for word in text.split())}
