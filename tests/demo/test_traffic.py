"""What the demo sends, and how it reads the answers."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from admission.demo.report import quantile
from admission.demo.traffic import SHARES, Arrival, Tally, completion_tokens, plan

KEYS = {tier: [f"key-of-{tier}"] for tier in SHARES}


def planned(seed: int) -> list[Arrival]:
    return plan(capacity=10, seconds=100, prompts=["a", "b"], keys=KEYS, rng=random.Random(seed))


def test_the_same_seed_plans_the_same_traffic() -> None:
    """Two runs on machines of one speed can be compared."""
    assert planned(1) == planned(1)
    assert planned(1) != planned(2)


def test_traffic_is_a_calm_a_rush_and_a_calm() -> None:
    """0.7, 2.0 and 0.7 times what the model can serve, within a tenth."""
    times = [arrival.at for arrival in planned(1)]
    assert times == sorted(times)
    assert sum(at < 20 for at in times) == pytest.approx(20 * 7, rel=0.15)
    assert sum(20 <= at < 70 for at in times) == pytest.approx(50 * 20, rel=0.1)
    assert sum(70 <= at <= 100 for at in times) == pytest.approx(30 * 7, rel=0.15)


def test_every_tier_sends_its_share_with_its_own_key() -> None:
    """A tenth enterprise, a fifth pro, two fifths free, the rest batch."""
    arrivals = planned(1)
    counts = Counter(arrival.tier for arrival in arrivals)
    assert {tier: counts[tier] / len(arrivals) for tier in SHARES} == pytest.approx(SHARES, abs=0.03)
    assert all(arrival.key == f"key-of-{arrival.tier}" for arrival in arrivals)


def test_usage_is_read_from_an_answer_in_one_piece_and_from_a_stream() -> None:
    """The number of completion tokens, wherever it stands."""
    usage = '{"choices": [], "usage": {"completion_tokens": 7}}'
    assert completion_tokens(usage, streamed=False) == 7
    assert completion_tokens(f": note\n\ndata: {{}}\n\ndata: {usage}\n\ndata: [DONE]\n\n", streamed=True) == 7


@pytest.mark.parametrize(
    "stream",
    ["", 'data: {"choices": []}\n\n', 'data: {"error": {"message": "no"}}\n\ndata: [DONE]\n\n', "data: [DONE]\n\n"],
)
def test_a_stream_that_broke_off_is_no_answer(stream: str) -> None:
    """Status 200 was sent long before: only the end tells."""
    with pytest.raises(ValueError, match="stream"):
        completion_tokens(stream, streamed=True)


def test_tokens_per_second_forget_what_is_long_past() -> None:
    """The live table shows the last ten seconds."""
    tally = Tally()
    tally.answered(0.0, waited=0.1, tokens=50)
    tally.answered(8.0, waited=0.1, tokens=30)
    assert tally.rate(9.0) == 8.0
    assert tally.rate(11.0) == 3.0
    assert tally.tokens == 80


def test_quantiles_are_values_that_were_seen() -> None:
    """No interpolation: a p99 of two waits is the longer one."""
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0], 0.99) == 3.0
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
