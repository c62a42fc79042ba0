"""Guarantees, ceilings, aging and start rates of one class, and which class goes next."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.policy.shares import MICRO, Share, next_class
from admission.types import PriorityClass


@dataclass(eq=False)
class Waiting:
    """A class with one waiter."""

    share: Share
    slots: int = 1
    since: float = 0.0

    def head_slots(self) -> int:
        return self.slots

    def oldest_arrival(self) -> float:
        return self.since


def waiting(rank: int, *, limit: int = 8, slots: int = 1, since: float = 0.0, **rules: object) -> Waiting:
    return Waiting(Share(PriorityClass(name=f"c{rank}", **rules), rank, limit), slots, since)  # type: ignore[arg-type]


def test_rank_decides_when_nothing_bends_it() -> None:
    """The highest class first; nobody when nobody waits."""
    high, low = waiting(0), waiting(1)
    assert next_class([high, low], 0) is high
    assert next_class([], 0) is None


def test_credit_goes_before_rank_and_age_before_credit() -> None:
    """The three rules in their order."""
    high, owed, overdue = waiting(0), waiting(1, guaranteed=0.5), waiting(2, max_delay=5)
    owed.share.credit = MICRO
    assert next_class([high, owed, overdue], 4) is owed
    assert next_class([high, owed, overdue], 5) is overdue


def test_credit_has_to_cover_the_whole_head() -> None:
    """Half a ticket is none."""
    high, owed = waiting(0), waiting(1, slots=2)
    owed.share.credit = 2 * MICRO - 1
    assert next_class([high, owed], 0) is high
    owed.share.credit = 2 * MICRO
    assert next_class([high, owed], 0) is owed


def test_credit_stays_within_its_bounds() -> None:
    """Zero, and one more than the limit."""
    share = waiting(0, limit=2, guaranteed=1.0).share
    for _ in range(10):
        share.earn(1)
    assert share.credit_in_slots == 3
    share.resize(1)
    assert share.credit_in_slots == 2
    share.spend(5)
    assert share.credit == 0


@pytest.mark.parametrize(
    ("ceiling", "limit", "cap"), [(1, 8, 8), (0.5, 8, 4), (0.5, 1, 1), (0.1, 30, 3), (0.7, 10, 7), (0.01, 8, 1)]
)
def test_a_ceiling_is_rounded_down_but_never_to_nothing(ceiling: float, limit: int, cap: int) -> None:
    """And 0.7 x 10 is 7, though floats say 6.999."""
    assert waiting(0, limit=limit, ceiling=ceiling).share.cap == cap


def test_a_class_at_its_ceiling_is_passed_over() -> None:
    """It keeps headroom for the others; a ceiling of 1 is the pool's own limit and passes nobody over."""
    capped, other = waiting(0, ceiling=0.5), waiting(1)
    capped.share.held = 4
    assert capped.share.held_back(1, 0) == "class-ceiling"
    assert next_class([capped, other], 0) is other
    whole = waiting(0)
    whole.share.held = 7
    assert whole.share.held_back(2, 0) is None


def test_a_paused_class_is_passed_over() -> None:
    """By name, so that people can be told."""
    paused = waiting(0)
    paused.share.pause(True, 8)
    assert paused.share.held_back(1, 0) == "class-paused"
    paused.share.pause(False, 8)
    assert paused.share.held_back(1, 0) is None


def test_a_burst_is_let_through_and_then_the_rate_is_kept() -> None:
    """Two at once, then one every half second."""
    share = waiting(0, rate=2.0, burst=2).share
    starts = []
    for tick in range(21):
        now = tick / 10
        while share.held_back(1, now) is None:
            share.count_start(now)
            starts.append(now)
    assert starts == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


@settings(max_examples=200)
@given(
    rate=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    burst=st.integers(1, 5),
    gaps=st.lists(st.integers(0, 40).map(lambda n: n / 8), max_size=40),
)
def test_no_window_holds_more_starts_than_a_token_bucket_allows(rate: float, burst: int, gaps: list[float]) -> None:
    """burst + rate x time, over every window."""
    share = waiting(0, rate=rate, burst=burst).share
    now, starts = 0.0, []
    for gap in gaps:
        now += gap
        for _ in range(3):
            if share.held_back(1, now) is None:
                share.count_start(now)
                starts.append(now)
    for first, begin in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= burst + rate * (starts[last] - begin)
