"""Fairness on a real log: 27 tenants of the LMSYS Chatbot Arena, charged by tokens, at 1.5 times what can be served."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from statistics import median

from admission.core import Core
from admission.policy.limit import FixedLimit
from admission.types import PriorityClass
from tests.scenarios.simulation import Request, Simulation, lmsys_arena, slots_for


class Watched(Simulation):
    """Notes after every event who has waiters and how much service each has been started."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.history: list[tuple[frozenset[str], dict[str, float]]] = []
        self._served: Counter[str] = Counter()
        self._seen = 0

    def look(self) -> None:
        for request, _ in self.granted[self._seen :]:
            self._served[request.tenant] += request.cost  # type: ignore[assignment]
        self._seen = len(self.granted)
        flows = self.core.classes[0].fair.flows.values()
        self.history.append((frozenset(flow.tenant for flow in flows if flow.waiting), dict(self._served)))


def play(requests: list[Request]) -> Watched:
    core = Core(limit=FixedLimit(slots_for(requests, 1.5)), classes=(PriorityClass(name="only"),))
    simulation = Watched(core)
    simulation.run(requests)
    return simulation


def test_two_tenants_that_both_wait_are_served_the_same_to_within_one_request_each() -> None:
    """The bound of start-time fair queueing (Goyal et al.), and of the Virtual Token Counter, over all 351 pairs."""
    simulation = play(lmsys_arena())
    largest: dict[str, float] = defaultdict(float)
    for request, _ in simulation.granted:
        largest[request.tenant] = max(largest[request.tenant], request.cost)
    tenants = sorted(largest)
    pairs = [(a, b) for place, a in enumerate(tenants) for b in tenants[place + 1 :]]
    judged = 0
    for a, b in pairs:
        low = high = None
        for waiting, served in simulation.history:
            if a not in waiting or b not in waiting:
                low = high = None
                continue
            difference = served.get(a, 0.0) - served.get(b, 0.0)
            low = difference if low is None else min(low, difference)
            high = difference if high is None else max(high, difference)
            judged += 1
            assert high - low <= largest[a] + largest[b] + 0.01
    assert judged > 10_000


def test_light_tenants_do_not_pay_for_heavy_ones() -> None:
    """Those who ask for less than their share wait a fraction of what one common line makes them wait."""
    requests = lmsys_arena()
    demand = Counter[str]()
    for request in requests:
        demand[request.tenant] += int(request.cost)
    light = {tenant for tenant, _ in demand.most_common()[13:]}
    fair = play(requests)
    common = play([replace(request, tenant="", cost=1) for request in requests])
    waits = [entry.granted_at - entry.arrival for request, entry in fair.granted if request.tenant in light]
    arrivals = {request.arrival for request in requests if request.tenant in light}
    in_one_line = [entry.granted_at - entry.arrival for request, entry in common.granted if request.arrival in arrivals]
    assert len(waits) == len(in_one_line)
    assert median(waits) < median(in_one_line) / 4
