"""Start-time fair queueing: who of the tenants of one class goes next.

The idea: every tenant has a clock that runs faster the more it is served. Whoever's clock shows the earliest
time goes first, so a tenant that asks for ten times as much waits ten times as long, and no one else waits for it.

Symbols, as in the source:

    V        virtual time of the class: the start tag of the latest grant
    F        finish tag of a tenant: where its next ticket would start
    S        start tag of a ticket; smallest first, ties by arrival number
    charge   cost / weight

    arrival      B = max(V, F);  F = B + charge;  S = max(B, newest S of this tenant)
    grant        V = max(V, S)
    release      F = F + (actual charge - estimated charge)
    withdrawal   F = F - charge: work that never ran costs nothing

The second half of the rule for S keeps one tenant's tickets in order of arrival after a withdrawal has
moved its F back. "Newest" is that of the last ticket taken in since the tenant last had nobody waiting; those
that were rejected do not count.

Tags are integers, in thousandths of a cost unit, so that two implementations agree to the last digit.

State: a tag is dropped once its tenant has nothing waiting or running and F ≤ V. When the whole class has nothing
waiting or running (the end of a busy period), V jumps past every tag, which makes all of them droppable. In a class
that never rests, at most `IDLE_TAGS` tags of absent tenants with F > V are kept; beyond that the
smallest debts are forgiven.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996; with costs in tokens it is the Virtual Token
Counter of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024. Known weakness: a cost known only
at the end is charged late, so a tenant with one very long answer can be ahead by that answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

UNITS: Final = 1000
"""Tags count in 1/UNITS of a cost unit: 2**53 of them (the exact integers of Lua) last for 9e12 cost units."""

IDLE_TAGS: Final = 1024
"""Tags of absent tenants that a class which never rests remembers at most."""

KEPT_FLOWS: Final = 1024
"""Flows kept over the end of a busy period: their tags mean nothing then, but they need not be made anew."""


class Flow:
    """One tenant of one class."""

    __slots__ = ("finish", "newest_start", "running", "scale", "tenant", "unit", "waiting")

    def __init__(self, tenant: str, weight: float) -> None:
        self.tenant = tenant
        self.scale = UNITS / weight
        """Tag units one cost unit is charged."""
        self.unit = self.charge(1)
        """The charge of a ticket of cost 1, which most are."""
        self.finish = 0
        self.newest_start = 0
        self.waiting = 0
        """Tickets in line or lobby."""
        self.running = 0
        """Tickets that hold slots."""

    def charge(self, cost: float) -> int:
        """What a ticket of this cost is charged, in tag units; half a unit rounds up."""
        return int(cost * self.scale + 0.5)


class FairQueueing:
    """The clocks of one class: hands out start tags and keeps the accounts. It holds no tickets."""

    __slots__ = ("_sweep_at", "flows", "highest", "virtual", "weights")

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self.flows: dict[str, Flow] = {}
        self.virtual = 0
        self.highest = 0
        """No finish tag is above this."""
        self._sweep_at = IDLE_TAGS

    def flow(self, tenant: str) -> Flow:
        """The tenant's flow, made on first sight."""
        flow = self.flows.get(tenant)
        if flow is None:
            flow = self.flows[tenant] = Flow(tenant, self.weights.get(tenant, 1.0))
        return flow

    def arrive(self, flow: Flow, charge: int) -> int:
        """Charge a ticket that has just arrived to *flow* and return its start tag. It counts as waiting."""
        base = flow.finish
        if base < self.virtual:
            base = self.virtual
        flow.finish = finish = base + charge
        if finish > self.highest:
            self.highest = finish
        start = base
        if flow.waiting and start < flow.newest_start:
            start = flow.newest_start
        flow.newest_start = start
        flow.waiting += 1
        return start

    def grant(self, flow: Flow, start: int) -> None:
        """A waiting ticket with this start tag begins to run."""
        flow.waiting -= 1
        flow.running += 1
        if start > self.virtual:
            self.virtual = start

    def withdraw(self, flow: Flow, charge: int) -> None:
        """A waiting ticket left without having run: its tenant gets the charge back."""
        flow.waiting -= 1
        flow.finish -= charge
        if not flow.running and not flow.waiting:
            self.absent(flow)

    def settle(self, flow: Flow, difference: int) -> None:
        """A ticket's actual charge turned out to be that much more than the estimated one."""
        flow.finish = finish = flow.finish + difference
        if finish > self.highest:
            self.highest = finish

    def absent(self, flow: Flow) -> None:
        """A tenant has nothing waiting or running any more: drop its tag if it is past, or when too many are kept."""
        if flow.finish <= self.virtual:
            self.flows.pop(flow.tenant, None)
        elif len(self.flows) > self._sweep_at:
            self._sweep()

    def rest(self) -> None:
        """The class has nothing waiting or running: the busy period ends, and with it all debts."""
        self.virtual = self.highest
        if len(self.flows) > KEPT_FLOWS:
            self.flows.clear()
            self._sweep_at = IDLE_TAGS

    def _sweep(self) -> None:
        """Forget absent tenants: those whose tag is past, then the smallest debts. Amortised O(log n) a release."""
        debts: list[Flow] = []
        for flow in list(self.flows.values()):
            if not flow.running and not flow.waiting:
                if flow.finish <= self.virtual:
                    del self.flows[flow.tenant]
                else:
                    debts.append(flow)
        debts.sort(key=lambda flow: flow.finish)
        for flow in debts[: max(0, len(debts) - IDLE_TAGS // 2)]:
            del self.flows[flow.tenant]
        self._sweep_at = len(self.flows) + IDLE_TAGS // 2
