"""Predicted waits: the gap between grants, start tags, and the correction."""

from __future__ import annotations

import pytest

from admission.policy.forecast import Pace


def paced(gap: float = 2.0, grants: int = 10, advance: float = 1000) -> Pace:
    """A line that moved like that until now, which is 0."""
    pace = Pace()
    pace.waiting_since(-gap * grants)
    for number in range(grants):
        pace.granted(-gap * (grants - 1 - number), advance)
    return pace


def test_nothing_is_known_before_the_first_grant() -> None:
    """Better none than a guess."""
    pace = Pace()
    pace.waiting_since(0)
    assert pace.wait(5, 3) is None
    assert pace.rate(5) is None
    assert not pace.known


def test_the_nth_to_be_granted_waits_n_gaps() -> None:
    """Next in line: one gap."""
    assert [paced().wait(0, ahead) for ahead in (0, 1, 9)] == pytest.approx([2, 4, 20])
    assert paced().rate(0) == pytest.approx(0.5)


def test_a_flooder_waits_for_those_who_will_come_before_it() -> None:
    """Its tag lies far ahead of the virtual time: others will be placed in between."""
    assert paced(advance=100).wait(0, 9, distance=5000) == pytest.approx(100)
    assert paced(advance=0).wait(0, 9, distance=5000) == pytest.approx(20)


def test_a_line_that_has_stopped_does_not_look_fast() -> None:
    """The open gap counts as soon as it is longer than usual."""
    pace = paced()
    at_first = pace.wait(0, 0)
    later = pace.wait(100, 0)
    assert at_first is not None
    assert later is not None
    assert later > 3 * at_first


def test_time_in_which_nobody_waits_says_nothing() -> None:
    """An hour of idling is no slow grant."""
    pace = paced()
    pace.emptied()
    pace.waiting_since(3600)
    pace.granted(3602, 1000)
    assert pace.wait(3602, 0) == pytest.approx(2)


def test_the_correction_finds_the_median_of_what_was_wrong() -> None:
    """Waits that last 1.5 times as long as expected, give or take."""
    pace = paced()
    for number in range(200):
        expected = 10.0
        waited = expected * (1.0, 1.5, 9.0)[number % 3]
        pace.judge(expected * pace.correction, pace.correction, waited)
    assert pace.correction == pytest.approx(1.5, rel=0.1)


def test_the_correction_is_bounded() -> None:
    """Beyond, yesterday was another world."""
    pace = paced()
    for _ in range(500):
        pace.judge(1.0, 1.0, 1000.0)
    assert pace.correction == 4.0
    for _ in range(500):
        pace.judge(1.0, 1.0, 0.001)
    assert pace.correction == 0.25
