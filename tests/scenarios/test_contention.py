"""Who gets what under contention: the scenarios of Kubernetes API Priority and Fairness, and more, in virtual time.

Clients are closed loops: each has some requests out at a time and sends the next when one ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from admission.core import Core
from admission.line import Entry
from admission.policy.limit import FixedLimit
from admission.types import PriorityClass, Reason
from tests.scenarios.simulation import Request, Simulation

ONE = (PriorityClass(name="only"),)


@dataclass(frozen=True)
class Client:
    """A tenant with *out* requests out at a time."""

    tenant: str = ""
    out: int = 10
    rank: int = 0
    service: float = 1.0
    slots: int = 1
    cost: float = 1
    begins: float = 0.0


def play(core: Core, clients: Sequence[Client], seconds: float = 400) -> list[tuple[Request, Entry]]:
    """Let them all run; return what was granted after a settling-in of a tenth."""
    first = [
        Request(
            arrival=client.begins + number / 1000,
            service=client.service * (1 + 0.01 * number),
            rank=client.rank,
            tenant=client.tenant,
            slots=client.slots,
            cost=client.cost,
        )
        for client in clients
        for number in range(client.out)
    ]
    simulation = Simulation(core)
    simulation.run(first, seconds, again=lambda request, now: replace(request, arrival=now))
    return [(request, entry) for request, entry in simulation.granted if entry.granted_at > seconds / 10]


def shares(granted: Sequence[tuple[Request, Entry]], *, by: str = "tenant") -> dict[object, float]:
    """Which part of the starts each got."""
    counts = Counter(getattr(request, by) for request, _ in granted)
    return {key: count / len(granted) for key, count in counts.items()}


def core_of(limit: int, classes: Sequence[PriorityClass] = ONE, max_queue_size: int = 0) -> Core:
    return Core(limit=FixedLimit(limit), classes=classes, max_queue_size=max_queue_size)


# ---------------------------------------------------------------------- tenants


def test_equal_tenants_get_equal_shares() -> None:
    """The uniform case."""
    found = shares(play(core_of(4), [Client("a"), Client("b")]))
    assert found["a"] == pytest.approx(0.5, abs=0.02)


def test_a_tenant_with_ten_times_the_clients_gets_no_more() -> None:
    """An elephant among mice: fairness is between tenants, not between requests."""
    found = shares(play(core_of(4), [Client("elephant", out=100), Client("mouse"), Client("rat")]))
    assert found == pytest.approx({"elephant": 1 / 3, "mouse": 1 / 3, "rat": 1 / 3}, abs=0.02)


def test_who_asks_for_less_than_its_share_gets_all_it_asks_for() -> None:
    """Max-min fairness: what it leaves is shared by the others."""
    granted = play(core_of(9), [Client("modest", out=1), Client("a", out=30), Client("b", out=30)])
    found = shares(granted)
    assert found["modest"] == pytest.approx(1 / 9, abs=0.02)
    assert found["a"] == pytest.approx(found["b"], abs=0.02)


def test_a_newcomer_among_tenants_does_not_get_what_it_missed() -> None:
    """A tenant that was away saves nothing up: from its return on it gets its share, and no more."""
    granted = play(core_of(4), [Client("old"), Client("new", begins=200.0)])
    late = [(request, entry) for request, entry in granted if entry.granted_at > 205]
    assert shares(late)["new"] == pytest.approx(0.5, abs=0.03)


def test_tenants_are_served_by_weight() -> None:
    """Weight 3 gets three times the service of weight 1."""
    core = core_of(4, [PriorityClass(name="only", weights={"gold": 3.0})])
    found = shares(play(core, [Client("gold", out=40), Client("basic", out=40)]))
    assert found["gold"] == pytest.approx(0.75, abs=0.02)


def test_costs_are_shared_not_requests() -> None:
    """A tenant whose requests cost five times as much starts a fifth as many."""
    found = shares(play(core_of(4), [Client("long", cost=5, out=40), Client("short", cost=1, out=40)]))
    assert found["short"] == pytest.approx(5 / 6, abs=0.02)


def test_a_mouse_waits_a_turn_and_not_a_line() -> None:
    """A tenant with one request at a time does not stand behind the hundred of another."""
    granted = play(core_of(1), [Client("elephant", out=100), Client("mouse", out=1)])
    waits = [entry.granted_at - entry.arrival for request, entry in granted if request.tenant == "mouse"]
    assert max(waits) < 4.1  # A running request of up to 2 s, and a turn of the other of up to 2 s.


# ---------------------------------------------------------------------- classes


@pytest.mark.parametrize("limit", [1, 2, 4, 8, 100])
def test_eighty_twenty_holds_at_any_limit(limit: int) -> None:
    """`guaranteed` is a share of the starts; at limit 1 it is as exact as at 100."""
    classes = (PriorityClass(name="high", guaranteed=0.8), PriorityClass(name="low", guaranteed=0.2))
    granted = play(core_of(limit, classes), [Client(rank=0, out=2 * limit + 2), Client(rank=1, out=2 * limit + 2)])
    assert shares(granted, by="rank")[1] == pytest.approx(0.2, abs=0.02)


def test_an_unused_share_goes_to_whoever_waits() -> None:
    """An idle server is used in full."""
    classes = (PriorityClass(name="high", guaranteed=0.8), PriorityClass(name="low", guaranteed=0.2))
    core = core_of(4, classes)
    granted = play(core, [Client(rank=1, out=20)], seconds=100)
    assert shares(granted, by="rank") == {1: 1.0}
    assert core.in_use == 4


def test_without_guarantees_rank_is_strict() -> None:
    """The lower class runs when the higher line is empty, and else not at all."""
    classes = (PriorityClass(name="high"), PriorityClass(name="low"))
    assert shares(play(core_of(4, classes), [Client(rank=0), Client(rank=1)]), by="rank") == {0: 1.0}


def test_three_guarantees_are_kept_and_the_rest_goes_by_rank() -> None:
    """What nobody is guaranteed belongs to the highest class."""
    classes = (
        PriorityClass(name="a"),
        PriorityClass(name="b", guaranteed=0.2),
        PriorityClass(name="c", guaranteed=0.1),
    )
    clients = [Client(rank=rank, out=20) for rank in range(3)]
    found = shares(play(core_of(4, classes), clients), by="rank")
    assert found == pytest.approx({0: 0.7, 1: 0.2, 2: 0.1}, abs=0.02)


def test_nobody_waits_longer_than_max_delay_and_a_turn() -> None:
    """Aging: a starved class is served when its oldest waiter is due."""
    classes = (PriorityClass(name="high"), PriorityClass(name="low", max_delay=5.0))
    granted = play(core_of(2, classes), [Client(rank=0, out=10), Client(rank=1, out=1)])
    waits = [entry.granted_at - entry.arrival for request, entry in granted if request.rank == 1]
    assert len(waits) > 30
    assert max(waits) <= 5.0 + 1.1  # The longest running request.


def test_a_ceiling_keeps_headroom_for_the_higher_class() -> None:
    """Work of the lower class never holds more than its ceiling, so the higher one finds a slot at once."""
    classes = (PriorityClass(name="high"), PriorityClass(name="low", ceiling=0.75))
    core = core_of(8, classes)
    granted = play(core, [Client(rank=1, out=50, service=20.0), Client(rank=0, out=2)])
    assert core.classes[1].share.held == 6
    assert all(entry.position == 0 for request, entry in granted if request.rank == 0)


def test_a_start_rate_is_kept() -> None:
    """Two starts a second, however many slots are free."""
    classes = (PriorityClass(name="high"), PriorityClass(name="low", rate=2.0))
    granted = play(core_of(100, classes), [Client(rank=1, out=50, service=0.1)], seconds=100)
    assert len(granted) == pytest.approx(180, abs=3)


def test_a_wide_client_is_not_starved_by_narrow_ones() -> None:
    """Nothing overtakes a head that waits for several slots."""
    granted = play(core_of(4), [Client("narrow", out=20), Client("wide", out=2, slots=4, cost=4)])
    found = Counter[str]()
    for request, _ in granted:
        found[request.tenant] += request.slots
    assert found["wide"] / found.total() == pytest.approx(0.5, abs=0.05)


def test_a_full_line_keeps_the_flooder_out_and_lets_the_others_in() -> None:
    """Push-out: the tenant that fills the line pays for it, whoever came first."""
    core = core_of(2, max_queue_size=10)
    flood = [Request(arrival=n / 20, service=1.0, tenant="flood") for n in range(2000)]
    modest = [Request(arrival=0.5 + n, service=1.0, tenant="modest") for n in range(90)]
    simulation = Simulation(core)
    simulation.run(sorted(flood + modest, key=lambda request: request.arrival))
    assert {request.tenant for request, _ in simulation.refused} == {"flood"}
    assert {reason for _, reason in simulation.refused} == {Reason.QUEUE_FULL, Reason.FAIRNESS}


def test_goodput_survives_a_tenfold_overload_and_recovers_at_once() -> None:
    """A bounded line refuses early, so what is admitted is served in time: no metastable collapse."""
    load = [Request(arrival=n / 100, service=0.1, patience=2.0) for n in range(1000)]
    after = [Request(arrival=12 + n / 5, service=0.1, patience=2.0) for n in range(50)]
    simulation = Simulation(core_of(1, max_queue_size=10))
    simulation.run(load + after)
    served = [entry for request, entry in simulation.granted if request.arrival < 10]
    assert len(served) >= 100
    assert max(entry.granted_at - entry.arrival for entry in served) < 1.2
    assert all(entry.position == 0 for request, entry in simulation.granted if request.arrival >= 12)
