"""Guarantees, ceilings, aging and start rates of one class, and which class goes next."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.policy.shares import MICRO, OWED, Share, next_class
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
    assert next_class([high, low], 0, 0) is high
    assert next_class([], 0, 0) is None


def test_credit_goes_before_rank_and_age_before_credit() -> None:
    """The three rules in their order."""
    high, owed, overdue = waiting(0), waiting(1, guaranteed=0.5), waiting(2, max_delay=5)
    owed.share.waits(True, 0)
    assert next_class([high, owed, overdue], 4, starts=2) is owed
    assert next_class([high, owed, overdue], 5, starts=2) is overdue


def test_credit_has_to_cover_the_whole_head() -> None:
    """Half a ticket is none."""
    high, owed = waiting(0), waiting(1, slots=2, guaranteed=0.5)
    owed.share.waits(True, 0)
    assert next_class([high, owed], 0, starts=3) is high
    assert next_class([high, owed], 0, starts=4) is owed


def test_who_waits_saves_up_no_more_than_the_limit_and_one() -> None:
    """At any limit: what counts follows it at once."""
    share = waiting(0, limit=2, guaranteed=1.0).share
    share.waits(True, 0)
    assert share.credit(2) == 2 * MICRO
    assert share.credit(10) == 3 * MICRO
    share.resize(1)
    assert share.credit(10) == 2 * MICRO
    share.resize(8)
    assert share.credit(10) == 9 * MICRO


def test_who_does_not_wait_saves_nothing_up() -> None:
    """Neither before its line began nor after it ended."""
    share = waiting(0, guaranteed=0.5).share
    assert share.credit(100) == 0
    share.waits(True, 100)
    assert share.credit(104) == 2 * MICRO
    share.waits(False, 104)
    assert share.credit(200) == 0


def test_starts_beyond_a_share_are_owed_and_paid_back_by_those_of_others() -> None:
    """Whether or not the class waits meanwhile."""
    share = waiting(0, guaranteed=0.5).share
    for start in range(4):
        share.spend(1, start)
    assert share.credit(4) == -2 * MICRO
    share.waits(True, 5)
    assert share.credit(5) == -1.5 * MICRO
    share.waits(False, 6)
    assert share.credit(7) == -0.5 * MICRO
    share.waits(True, 8)
    assert share.credit(10) == MICRO


def test_no_more_is_owed_than_some_limits_worth_of_starts() -> None:
    """So a class that had the pool to itself has its share again after so many starts of others."""
    share = waiting(0, limit=4, guaranteed=0.1).share
    for start in range(1000):
        share.spend(1, start)
    assert share.credit(1000) == -OWED * 5 * MICRO
    share.waits(True, 1000)
    assert not share.is_due(1, 1000 + 409)
    assert share.is_due(1, 1000 + 410)


def test_a_class_that_is_guaranteed_nothing_neither_saves_nor_owes() -> None:
    """Its account is never looked at."""
    share = waiting(0).share
    share.spend(1, 0)
    share.waits(True, 1)
    assert share.credit(100) == 0
    assert not share.is_due(1, 100)


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
    assert next_class([capped, other], 0, 0) is other
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
