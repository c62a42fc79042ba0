"""Start-time fair queueing: tags, charges and what is forgotten."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from admission.policy.fairness import IDLE_TAGS, KEPT_FLOWS, UNITS, FairQueueing


def arrive(fair: FairQueueing, tenant: str, cost: float = 1) -> int:
    flow = fair.flow(tenant)
    return fair.arrive(flow, flow.charge(cost))


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    """Its start tags follow each other by its charges."""
    fair = FairQueueing({})
    assert [arrive(fair, "a", cost) for cost in (1, 5, 1)] == [0, UNITS, 6 * UNITS]


def test_two_tenants_take_turns() -> None:
    """Weighted round-robin: the second of one comes after the first of the other."""
    fair = FairQueueing({})
    a, b = [arrive(fair, "a") for _ in range(3)], [arrive(fair, "b") for _ in range(3)]
    assert a == b == [0, UNITS, 2 * UNITS]


def test_weight_divides_the_charge() -> None:
    """Weight 4: four tickets for one of the others."""
    fair = FairQueueing({"gold": 4.0})
    assert [arrive(fair, "gold") for _ in range(4)] == [0, 250, 500, 750]


def test_who_was_away_saves_nothing_up() -> None:
    """A newcomer starts at the virtual time, not at zero."""
    fair = FairQueueing({})
    flow = fair.flow("busy")
    for _ in range(5):
        fair.grant(flow, arrive(fair, "busy"))
    assert arrive(fair, "new") == 4 * UNITS


def test_a_withdrawn_ticket_costs_nothing() -> None:
    """Its charge goes back at once; the order among its tenant's others stays."""
    fair = FairQueueing({})
    flow = fair.flow("a")
    arrive(fair, "a"), arrive(fair, "a", 5)
    third = arrive(fair, "a")
    fair.withdraw(flow, 5 * UNITS)
    assert flow.finish == 2 * UNITS
    assert arrive(fair, "a") >= third


def test_settlement_moves_the_next_ticket() -> None:
    """What was underestimated is paid by the next one."""
    fair = FairQueueing({})
    flow = fair.flow("a")
    fair.grant(flow, arrive(fair, "a"))
    fair.settle(flow, 9 * UNITS)
    assert arrive(fair, "a") == 10 * UNITS


def test_the_end_of_a_busy_period_forgives_all_debts() -> None:
    """Nobody is served late for what it used while nobody else wanted it."""
    fair = FairQueueing({})
    flow = fair.flow("a")
    fair.grant(flow, arrive(fair, "a", 1000))
    flow.running -= 1
    fair.rest()
    assert arrive(fair, "a") == arrive(fair, "b")


def test_tenants_are_forgotten_once_their_tag_is_past() -> None:
    """State is bounded by active tenants."""
    fair = FairQueueing({})
    for number in range(10 * KEPT_FLOWS):
        flow = fair.flow(f"t{number}")
        arrive(fair, flow.tenant)
        fair.withdraw(flow, UNITS)
    assert not fair.flows


def test_debts_of_absent_tenants_are_bounded() -> None:
    """In a class that never rests the smallest are forgiven first."""
    fair = FairQueueing({})
    arrive(fair, "waits for ever")
    for number in range(5 * IDLE_TAGS):
        flow = fair.flow(f"t{number}")
        fair.grant(flow, arrive(fair, flow.tenant, number))
        fair.virtual = 0
        flow.running -= 1
        fair.absent(flow)
    assert len(fair.flows) <= 2 * IDLE_TAGS
    assert f"t{5 * IDLE_TAGS - 1}" in fair.flows
    assert "waits for ever" in fair.flows


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=40))
def test_a_tenants_tags_never_go_back_while_it_waits(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever is withdrawn in between: its own tickets are served in order of arrival."""
    fair = FairQueueing({"a": 3.0})
    waiting: dict[str, list[tuple[int, int]]] = {"a": [], "b": [], "c": []}
    for tenant, cost, leaves in steps:
        flow = fair.flow(tenant)
        if leaves and waiting[tenant]:
            fair.withdraw(flow, waiting[tenant].pop(cost % len(waiting[tenant]))[1])
        else:
            charge = flow.charge(cost)
            start = fair.arrive(flow, charge)
            assert all(start >= earlier for earlier, _ in waiting[tenant])
            waiting[tenant].append((start, charge))
        assert all(flow.waiting == len(waiting[name]) for name, flow in fair.flows.items())
