"""The line: what stands where, whatever the order of coming and going."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.line import WAITING, Entry, Line
from admission.policy.fairness import Flow
from admission.ranked import BLOCK, RankedList
from admission.types import PriorityClass


def entry(number: int, *, rank: int = 0, start: int = 0) -> Entry:
    made = Entry()
    made.rank, made.number, made.start = rank, number, start
    made.state, made.flow, made.arrival = WAITING, Flow("ann", 1.0), float(number)
    return made


def line_of_two() -> Line:
    return Line([PriorityClass(name="high"), PriorityClass(name="low", max_delay=1)])


def test_line_is_ordered_by_class_then_start_tag_then_arrival() -> None:
    """The order of service is one total order over all waiters."""
    line = line_of_two()
    entries = [entry(1, rank=1), entry(2, start=5), entry(3, start=2), entry(4, start=2)]
    for each in entries:
        line.add(each)
    assert [each.number for each in line.entries()] == [3, 4, 2, 1]
    assert [sum(line.before(each)) for each in line.entries()] == [0, 1, 2, 3]
    assert line.worst().number == 1


def test_oldest_is_the_first_to_arrive_though_it_entered_later() -> None:
    """A ticket that comes up from the lobby may be older than those in line: starvation is counted from its arrival."""
    line = line_of_two()
    for number in (5, 3, 4):
        line.add(entry(number, rank=1, start=number))
    assert line.classes[1].oldest().number == 3


def test_oldest_is_found_in_classes_that_are_not_kept_by_age() -> None:
    """Snapshots ask every class for it."""
    line = line_of_two()
    for number in (5, 3, 4):
        line.add(entry(number, start=10 - number))
    assert line.classes[0].oldest().number == 3


def test_nothing_is_left_of_who_was_removed() -> None:
    """A starved class full of cancelled waiters would otherwise never be cleaned."""
    line = line_of_two()
    entries = [entry(number, rank=number % 2, start=number % 7) for number in range(100)]
    for each in entries:
        line.add(each)
    for each in entries[::-1]:
        line.remove(each)
    assert line.queued == 0
    assert line.entries() == []
    assert line.classes[1].arrivals is not None
    assert line.classes[1].arrivals.count == 0


def test_removing_a_stranger_is_an_error() -> None:
    """A double removal is a bug that must not pass in silence."""
    line = line_of_two()
    line.add(entry(1))
    with pytest.raises(KeyError):
        line.remove(entry(2))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=60),
    st.sampled_from([1, BLOCK // 2, BLOCK * 3]),
)
def test_ranked_list_is_a_sorted_list_that_knows_ranks(steps: list[tuple[int, bool]], scale: int) -> None:
    """Bulk adds and removes split and join its blocks; order, ends and ranks are those of a plain sorted list."""
    ranked: RankedList[tuple[int, int]] = RankedList()
    plain: list[tuple[int, int]] = []
    number = 0
    for key, adds in steps[: 60 if scale == 1 else 6]:
        if adds or not plain:
            for offset in range(scale):
                number += 1
                item = (key * scale + offset * 7 % scale, number)
                ranked.add(item)
                plain.append(item)
            plain.sort()
        else:
            for place in range(0, len(plain), 2 if scale > 1 else 50):
                ranked.remove(plain[place])
            del plain[:: 2 if scale > 1 else 50]
        assert ranked.count == len(plain)
        asked = [(key * scale, 0), *plain[:: max(1, len(plain) // 5)]]
        for item in asked:
            assert ranked.rank(item) == sum(other < item for other in plain)
    assert list(ranked) == plain
    if plain:
        assert ranked.first() == plain[0]
        assert ranked.last() == plain[-1]
    with pytest.raises(KeyError):
        ranked.remove((-1, -1))
