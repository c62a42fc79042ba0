"""Limits that learn: what makes them grow, what makes them shrink, what teaches them nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.policy.limit import AimdLimit, FixedLimit, GradientLimit, Limit, VegasLimit, WindowedLimit
from admission.types import Outcome, Sample

Make = Callable[[], Limit]
ADAPTIVE: list[Make] = [
    lambda: AimdLimit(initial=10, least=2, most=40),
    lambda: GradientLimit(initial=10, least=2, most=40),
    lambda: VegasLimit(initial=10, least=2, most=40),
    lambda: WindowedLimit(AimdLimit(initial=10, least=2, most=40), window=0.01, least_samples=1),
]
adaptive = pytest.mark.parametrize("make", ADAPTIVE, ids=["aimd", "gradient", "vegas", "windowed"])


def feed(
    limit: Limit, times: int, *, rtt: float = 0.1, in_flight: int | None = None, outcome: Outcome = Outcome.SUCCESS
) -> int:
    """That many samples under full load, or under the one given."""
    for number in range(times):
        load = limit.slots if in_flight is None else in_flight
        limit.observe(Sample(rtt=rtt, in_flight=load, outcome=outcome, now=float(number)))
    return limit.slots


def test_a_fixed_limit_learns_nothing() -> None:
    """Drops included."""
    assert feed(FixedLimit(7), 100, outcome=Outcome.DROPPED) == 7


@adaptive
def test_it_grows_under_load_while_answers_stay_quick(make: Make) -> None:
    """Up to its most."""
    assert feed(make(), 3000) == 40


@adaptive
def test_an_idle_server_proves_nothing(make: Make) -> None:
    """Below half the limit it does not grow."""
    assert feed(make(), 1000, in_flight=1) == 10


@adaptive
def test_it_shrinks_on_drops_and_not_below_its_least(make: Make) -> None:
    """The backend says no."""
    limit = make()
    assert feed(limit, 5, outcome=Outcome.DROPPED) < 10
    assert feed(limit, 500, outcome=Outcome.DROPPED) == 2


@adaptive
def test_cancelled_work_teaches_nothing(make: Make) -> None:
    """However long it took."""
    assert feed(make(), 1000, rtt=99.0, outcome=Outcome.IGNORED) == 10


@pytest.mark.parametrize("make", ADAPTIVE[1:3], ids=["gradient", "vegas"])
def test_it_shrinks_when_answers_get_slower(make: Make) -> None:
    """The queue has moved into the backend."""
    limit = make()
    before = feed(limit, 200)
    assert feed(limit, 30, rtt=1.0) < before


def test_a_late_success_counts_as_a_drop() -> None:
    """AIMD with a timeout."""
    assert feed(AimdLimit(initial=10, timeout=0.5), 1, rtt=0.6) == 9


def test_a_window_gives_one_sample_of_all() -> None:
    """The mean rtt, the most in flight, dropped if any was."""

    class Noting:
        slots = 4

        def __init__(self) -> None:
            self.samples: list[Sample] = []

        def observe(self, sample: Sample) -> None:
            self.samples.append(sample)

    inner = Noting()
    limit = WindowedLimit(inner, window=1.0, least_samples=3)
    outcomes = (Outcome.SUCCESS, Outcome.IGNORED, Outcome.DROPPED, Outcome.SUCCESS)
    for now, (outcome, load) in enumerate(zip(outcomes, (1, 9, 3, 2), strict=True)):
        limit.observe(Sample(rtt=float(now), in_flight=load, outcome=outcome, now=float(now)))
    assert inner.samples == [Sample(rtt=5 / 3, in_flight=3, outcome=Outcome.DROPPED, now=3.0)]


@adaptive
@settings(max_examples=200)
@given(
    samples=st.lists(
        st.builds(
            Sample,
            rtt=st.floats(0, 1e6),
            in_flight=st.integers(0, 100),
            outcome=st.sampled_from(Outcome),
            now=st.floats(0, 1e6),
        ),
        max_size=50,
    )
)
def test_it_stays_within_its_bounds_whatever_it_sees(make: Make, samples: list[Sample]) -> None:
    """And is a whole number of slots."""
    limit = make()
    for sample in samples:
        limit.observe(sample)
        assert 2 <= limit.slots <= 40
        assert isinstance(limit.slots, int)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FixedLimit(0), "max_concurrency is 0"),
        (lambda: FixedLimit(True), "max_concurrency is True"),
        (lambda: FixedLimit(2.5), "max_concurrency is 2.5"),  # type: ignore[arg-type]
        (lambda: AimdLimit(initial=5, least=6), "initial is 5"),
        (lambda: AimdLimit(backoff=1.0), "backoff is 1.0"),
        (lambda: GradientLimit(tolerance=0.5), "tolerance is 0.5"),
        (lambda: VegasLimit(probe_every=0), "probe_every is 0"),
        (lambda: WindowedLimit(FixedLimit(1), window=0), "window is 0"),
    ],
)
def test_an_option_out_of_range_is_named(make: Make, named: str) -> None:
    """Option, value and range."""
    with pytest.raises(ValueError, match=named):
        make()
