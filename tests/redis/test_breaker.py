"""The circuit breaker, driven by plain calls: seconds and chance are arguments."""

from __future__ import annotations

import math

import pytest

from admission.backends.redis.breaker import Breaker, BreakerState


def steady(**options: float) -> Breaker:
    """One that opens after two failures and pauses for 1, 2, 4, 8, 8 … seconds."""
    settings = {"failures": 2, "budget": 0.5, "first_pause": 1.0, "longest_pause": 8.0, **options}
    return Breaker(**settings, chance=lambda: 1.0)  # type: ignore[arg-type]


def opened(breaker: Breaker, now: float = 0.0) -> Breaker:
    """The same, after two failures."""
    breaker.failed(now)
    breaker.failed(now)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    """The last of them decides."""
    breaker = steady()
    breaker.failed(0.0)
    assert breaker.closed
    breaker.failed(1.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.opened_at == 1.0


def test_an_answer_between_failures_keeps_it_closed() -> None:
    """Only failures in a row count."""
    breaker = steady()
    for now in range(10):
        breaker.failed(now)
        breaker.succeeded(now, 0.1)
    assert breaker.closed


def test_slow_answers_are_failures() -> None:
    """A server that needs longer than the budget holds everyone up."""
    breaker = steady()
    breaker.succeeded(0.0, 0.5)
    breaker.succeeded(1.0, 0.6)
    assert breaker.closed
    breaker.succeeded(2.0, 0.6)
    assert breaker.state is BreakerState.OPEN


def test_one_probe_is_due_after_the_pause() -> None:
    """Neither before it nor a second time."""
    breaker = opened(steady(), now=10.0)
    assert breaker.probe_at == 11.0
    assert not breaker.probe(10.9)
    assert breaker.probe(11.0)
    assert breaker.state is BreakerState.PROBING
    assert not breaker.probe(99.0)
    assert breaker.probe_at == math.inf


def test_answered_probe_closes_it() -> None:
    """And it takes as many failures as before to open it again."""
    breaker = opened(steady())
    breaker.probe(1.0)
    breaker.probe_succeeded(1.1, 0.1)
    assert breaker.closed
    breaker.failed(2.0)
    assert breaker.closed


def test_slow_probe_does_not_close_it() -> None:
    """The budget holds for probes too."""
    breaker = opened(steady())
    breaker.probe(1.0)
    breaker.probe_succeeded(2.0, 0.6)
    assert breaker.state is BreakerState.OPEN


def test_pauses_double_up_to_the_longest() -> None:
    """And start over after it was closed."""
    breaker = opened(steady())
    pauses = []
    for _ in range(5):
        now = breaker.probe_at
        assert breaker.probe(now)
        breaker.probe_failed(now)
        pauses.append(breaker.probe_at - now)
    assert pauses == [2.0, 4.0, 8.0, 8.0, 8.0]
    breaker.probe(breaker.probe_at)
    breaker.probe_succeeded(50.0, 0.1)
    assert opened(breaker, now=100.0).probe_at == 101.0


def test_pauses_are_jittered() -> None:
    """Between a half and the whole of what they would be."""
    low = opened(Breaker(failures=2, first_pause=1.0, chance=lambda: 0.0))
    high = opened(Breaker(failures=2, first_pause=1.0, chance=lambda: 1.0))
    assert (low.probe_at, high.probe_at) == (0.5, 1.0)


def test_late_news_change_nothing() -> None:
    """Calls that were under way when it opened neither close it nor put off the probe."""
    breaker = opened(steady())
    breaker.succeeded(0.5, 0.1)
    breaker.failed(0.6)
    assert (breaker.state, breaker.probe_at) == (BreakerState.OPEN, 1.0)
    breaker.probe(1.0)
    breaker.succeeded(1.1, 0.1)
    breaker.failed(1.2)
    assert breaker.state is BreakerState.PROBING


def test_news_of_no_probe_change_nothing() -> None:
    """A probe that was not asked for is not believed."""
    breaker = steady()
    breaker.probe_failed(0.0)
    assert breaker.closed
    opened(breaker).probe_succeeded(0.5, 0.1)
    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"failures": 0}, "failures is 0: it must be at least 1"),
        ({"budget": 0}, "budget is 0: it must be above 0"),
        ({"first_pause": 0}, "first_pause is 0: it must be above 0"),
        ({"first_pause": 2.0, "longest_pause": 1.0}, "longest_pause is 1.0: it must be at least 2"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], complaint: str) -> None:
    """With the value and the range."""
    with pytest.raises(ValueError, match=complaint):
        steady(**options)
