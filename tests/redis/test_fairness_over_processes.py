"""Who gets what when the tenants of a pool are spread over three real processes: Kubernetes' share scenarios.

Clients are closed loops, and time is logical: whenever everyone runs or stands in line, the one that has run longest
ends and its client comes again. So all work takes equally long, nothing depends on the machine, and starts can be
counted.
Run with `-s` to see the shares.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.redis.remote import Remote
from tests.redis.servers import PATIENCE

STARTS = 200
"""Counted, after a settling-in."""

SETTLING = 30

PROCESSES = 3


@dataclass(frozen=True, kw_only=True)
class Client:
    """A tenant, or a class, with *out* requests out at a time, spread over the processes."""

    out: int
    tenant: str = ""
    priority: str = "only"
    wishes: Mapping[str, object] = field(default_factory=dict)
    actual_cost: float | None = None
    """What its requests turn out to have cost."""
    every: int | None = None
    """Comes once in so many starts of anyone, instead of when it has ended."""
    only_in: int | None = None
    """The one process it uses."""

    @property
    def name(self) -> str:
        """What its starts are counted under."""
        return self.tenant or self.priority


class Play:
    """Runs clients against one pool, step by step."""

    def __init__(self, remotes: Sequence[Remote], clients: Sequence[Client], limit: int) -> None:
        self._remotes = remotes
        self._limit = limit
        self._clients = clients
        self._comings = 0
        self._looking = False
        self._whose: dict[str, tuple[Client, Remote]] = {}
        self._running: deque[str] = deque()
        self._known = [0] * len(remotes)
        """Of each process, how many grants were seen."""
        self.starts: list[str] = []
        """Whose, in the order in which they were seen."""
        for number in range(max(client.out for client in clients)):
            for client in clients:
                if number < client.out:
                    place = (number if client.only_in is None else client.only_in) % len(remotes)
                    self._comes(client, remotes[place])

    def run(self, starts: int) -> Counter[str]:
        """So many more starts, by client."""
        until = len(self.starts) + starts
        before = len(self.starts)
        while len(self.starts) < until:
            self._settles()
            oldest = self._running.popleft()
            client, remote = self._whose.pop(oldest)
            remote.release(oldest, client.actual_cost)
            if client.every is None:
                self._comes(client, remote)
            for client in self._clients:
                if client.every is not None and len(self.starts) % client.every == 0:
                    self._comes(client, self._remotes[client.only_in or 0])
        return Counter(self.starts[before:until])

    def _comes(self, client: Client, remote: Remote) -> None:
        self._comings += 1
        name = f"{self._comings}/{client.name}"
        self._whose[name] = (client, remote)
        remote.comes(name, tenant=client.tenant, priority=client.priority, **client.wishes)

    def _settles(self) -> None:
        """Return once all slots are taken, and whoever has none stands in line."""
        give_up = time.monotonic() + PATIENCE
        while not self._is_settled():
            assert time.monotonic() < give_up, f"{len(self._running)} run of {len(self._whose)}, {self._limit} may"
            time.sleep(0.001)

    def _is_settled(self) -> bool:
        for number, remote in enumerate(self._remotes):
            for name in remote.order[self._known[number] :]:
                self._known[number] += 1
                self._running.append(name)
                self.starts.append(self._whose[name][0].name)
        if len(self._running) < self._limit:
            return False
        remote = self._remotes[0]
        if not self._looking:
            remote.look()
            self._looking = True
        if not remote.seen:
            return False
        self._looking = False
        seen = (remote.seen["in_flight"], remote.seen["queued"])
        return seen == (self._limit, len(self._whose) - self._limit)


def max_min(demands: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Shares of 1 by demand and weight: whoever wants less than its part gets that, and the others share the rest."""
    weights = dict.fromkeys(demands, 1.0) if weights is None else weights
    left, open_, shares = 1.0, dict(demands), {}
    while open_:
        level = left / sum(weights[name] for name in open_)
        modest = [name for name, demand in open_.items() if demand < level * weights[name]]
        for name in modest or list(open_):
            shares[name] = open_[name] if modest else level * weights[name]
            left -= shares[name]
            del open_[name]
    return shares


def play(
    redis_url: str,
    namespace: str,
    clients: Sequence[Client],
    expected: Mapping[str, float],
    *,
    limit: int = 4,
    classes: Sequence[Mapping[str, object]] = ({"name": "only"},),
) -> None:
    """Let them all run in three processes; each must end within 5 % of what it is due."""
    with ExitStack() as stack:
        remotes = [
            stack.enter_context(
                Remote(redis_url, namespace, max_concurrency=limit, use_uvloop=number == 1, lease=30.0, classes=classes)
            )
            for number in range(PROCESSES)
        ]
        playing = Play(remotes, clients, limit)
        playing.run(SETTLING)
        starts = playing.run(STARTS)
    found = {name: starts[name] / STARTS for name in expected}
    print("".join(f"\n  {name:>9}: {found[name]:.3f} of the starts, due {due:.3f}" for name, due in expected.items()))
    assert found == {name: pytest.approx(due, rel=0.05) for name, due in expected.items()}


def test_equal_tenants_get_equal_shares(redis_url: str, namespace: str) -> None:
    """Each in another process."""
    clients = [Client(tenant=name, out=8, only_in=number) for number, name in enumerate(("a", "b", "c"))]
    play(redis_url, namespace, clients, max_min({"a": 2, "b": 2, "c": 2}))


def test_an_elephant_in_all_processes_gets_no_more_than_a_mouse_in_one(redis_url: str, namespace: str) -> None:
    """Fairness is between tenants: neither their requests nor their processes count."""
    clients = [
        Client(tenant="elephant", out=30),
        Client(tenant="mouse", out=6, only_in=0),
        Client(tenant="rat", out=6, only_in=2),
    ]
    play(redis_url, namespace, clients, max_min({"elephant": 7.5, "mouse": 1.5, "rat": 1.5}))


def test_who_asks_for_less_than_its_share_gets_all_it_asks_for(redis_url: str, namespace: str) -> None:
    """Max-min: what the modest one leaves is shared by the others."""
    clients = [
        Client(tenant="modest", out=0, every=10, only_in=1),
        Client(tenant="a", out=10),
        Client(tenant="b", out=10, only_in=2),
    ]
    play(redis_url, namespace, clients, max_min({"modest": 0.1, "a": 2.5, "b": 2.5}))


def test_tenants_are_served_by_weight(redis_url: str, namespace: str) -> None:
    """Weight 3 gets three times the starts of weight 1, wherever they come in."""
    clients = [Client(tenant="gold", out=16), Client(tenant="basic", out=16, only_in=1)]
    expected = max_min({"gold": 4, "basic": 4}, {"gold": 3, "basic": 1})
    play(redis_url, namespace, clients, expected, classes=[{"name": "only", "weights": {"gold": 3.0}}])


def test_costs_are_shared_not_requests(redis_url: str, namespace: str) -> None:
    """A tenant whose requests cost five times as much starts a fifth as many."""
    clients = [Client(tenant="long", out=12, wishes={"cost": 5}), Client(tenant="short", out=12)]
    play(redis_url, namespace, clients, {"long": 1 / 6, "short": 5 / 6})


def test_what_work_really_cost_is_shared(redis_url: str, namespace: str) -> None:
    """A tenant that says 1 and uses 3 starts a third as many, also in processes where it was not settled."""
    clients = [Client(tenant="cheat", out=12, actual_cost=3), Client(tenant="honest", out=12, only_in=2)]
    play(redis_url, namespace, clients, {"cheat": 0.25, "honest": 0.75})


@pytest.mark.parametrize("limit", [1, 4])
def test_eighty_twenty_holds_across_processes(redis_url: str, namespace: str, limit: int) -> None:
    """`guaranteed` is a share of the starts of the whole pool, at any limit."""
    classes = [{"name": "high", "guaranteed": 0.8}, {"name": "low", "guaranteed": 0.2}]
    clients = [Client(priority="high", out=3 * limit + 3), Client(priority="low", out=2 * limit + 2, only_in=1)]
    play(redis_url, namespace, clients, {"high": 0.8, "low": 0.2}, limit=limit, classes=classes)
