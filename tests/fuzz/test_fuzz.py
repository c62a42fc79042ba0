"""The fuzzer keeps silent about the real pool, and bites every one that is broken on purpose."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.broken import BROKEN
from tests.fuzz.controllers import Totals, run_batch
from tests.fuzz.cores import interleave

SEED = 20
BATCHES = 20
MODELS = 400


def test_the_real_controller_survives_a_thousand_interleavings() -> None:
    """No permit lost, none too many, nobody stuck; the long run is `./dev fuzz`."""
    totals = Totals()
    for batch in range(BATCHES):
        run_batch(SEED, batch, totals)
    assert totals.interleavings == 1_000
    assert min(totals.granted, totals.cancelled, totals.timed_out, totals.refused) > 10


def test_the_real_core_agrees_with_the_model() -> None:
    """The same decisions in the same order, whatever is done to it."""
    for number in range(MODELS):
        interleave(Random(f"{SEED}:{number}"))


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_pool_is_caught(name: str) -> None:
    """By a run a thousand times shorter than the usual one."""
    core, controller = BROKEN[name]
    with pytest.raises((AssertionError, ValueError, KeyError)):  # noqa: PT012  # Whichever half bites first.
        for number in range(MODELS):
            interleave(Random(f"{SEED}:{number}"), core)
        for batch in range(BATCHES):
            run_batch(SEED, batch, Totals(), kind=core, controller=controller)


def test_the_command_reports_and_its_exit_code_says_whether_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """A run can be repeated by its seed."""
    assert main(["--interleavings", "60", "--models", "5", "--seed", "1"]) == 0
    assert "60 interleavings" in capsys.readouterr().out
    assert main(["--interleavings", "200", "--seed", "1", "--core", "ReleasesTwice"]) == 1
    printed = capsys.readouterr().out
    assert "seed 1, ReleasesTwice" in printed
    assert "over-granted" in printed
