"""Who is turned away, and what they are told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.policy.shedding import CoDel, pushes_out, retry_after
from admission.types import Reason


@pytest.mark.parametrize(
    ("newcomer", "worst", "reason"),
    [
        ((0, 9, 1), (1, 0, 1), Reason.PRIORITY),
        ((1, 0, 1), (0, 9, 9), None),
        ((0, 0, 1), (0, 5, 2), Reason.FAIRNESS),
        ((0, 0, 2), (0, 5, 2), None),
        ((0, 5, 1), (0, 5, 9), None),
        ((0, 6, 1), (0, 5, 9), None),
    ],
    ids=["lower class", "higher class", "flooder", "as many waiters", "same tag", "stands behind"],
)
def test_who_may_push_whom_out(
    newcomer: tuple[int, int, int], worst: tuple[int, int, int], reason: Reason | None
) -> None:
    """Class first; inside one, only a tenant with more waiters, and only one that stands behind."""
    (rank, start, waiting), (worst_rank, worst_start, worst_waiting) = newcomer, worst
    found = pushes_out(
        rank=rank,
        start=start,
        waiting=waiting,
        worst_rank=worst_rank,
        worst_start=worst_start,
        worst_waiting=worst_waiting,
    )
    assert found is reason


@given(
    predicted=st.one_of(st.none(), st.floats(0, 1e9)),
    default=st.floats(1, 30),
    jitter=st.floats(0, 1),
)
def test_retry_after_is_whole_seconds_from_one_to_thirty(
    predicted: float | None, default: float, jitter: float
) -> None:
    """Whatever is predicted."""
    seconds = retry_after(predicted, default, jitter)
    assert isinstance(seconds, int)
    assert 1 <= seconds <= 30


def test_retry_after_is_the_predicted_wait_spread_over_five_seconds() -> None:
    """A thousand refusals must not come back as one herd."""
    assert [retry_after(7.2, 5.0, n / 1000) for n in (0, 1000)] == [8, 13]
    assert {retry_after(7.0, 5.0, n / 1000) for n in range(1001)} == {7, 8, 9, 10, 11, 12}
    assert retry_after(None, 3.0, 0.0) == 3


def test_a_short_burst_is_no_standing_line() -> None:
    """One quick grant in an interval is enough."""
    codel = CoDel(1.0, 10.0)
    codel.waiting_since(0.0)
    for waited in (5.0, 0.9, 5.0):
        codel.granted(waited)
    codel.tick(10.0)
    assert not codel.overloaded


def test_a_standing_line_is_overload_until_it_empties_or_gets_quick() -> None:
    """The shortest wait of the interval was above the target; no grant at all counts as one."""
    codel = CoDel(1.0, None)
    codel.waiting_since(0.0)
    assert codel.interval_end == 10.0
    codel.granted(1.1)
    codel.tick(9.9)
    assert not codel.overloaded
    codel.tick(10.0)
    assert codel.overloaded
    codel.granted(0.5)
    codel.tick(20.0)
    assert not codel.overloaded
    codel.tick(30.0)
    assert codel.overloaded
    codel.emptied()
    assert not codel.overloaded
    assert codel.interval_end == math.inf
