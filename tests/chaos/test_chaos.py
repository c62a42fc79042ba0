"""The short form of `./dev chaos`: every fault of the promise once, and builds that are wrong on purpose are found."""

from __future__ import annotations

import json

import pytest

from tests.chaos.__main__ import main
from tests.chaos.broken import BROKEN, CAUGHT_BY

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.xdist_group("chaos")]

PROMISED = "kill,stop,pause,flush,lose,unsubscribe,restart,promote,full"
"""The faults the documentation makes promises about."""


def test_the_promise_holds_through_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """Four processes under load: never more than the limit and what is declared, nobody hangs, nothing is left."""
    code = main(["--seed", "1", "--ticks", "9", "--faults", PROMISED, "--lease", "1.5", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["violations"] == []
    assert code == 0
    assert sorted(tick["fault"] for tick in report["ticks"]) == sorted(PROMISED.split(","))
    assert report["requests"]["200"] > 100


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_build_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By one tick of the fault that brings it out, with two processes."""
    fault, kinds = CAUGHT_BY[name]
    options = ["--seed", "3", "--ticks", "1", "--processes", "2", "--limit", "4", "--lease", "1.5", "--brief", "--json"]
    code = main([*options, "--faults", fault, "--broken", name])
    report = json.loads(capsys.readouterr().out)
    assert code == 1
    assert {violation["kind"] for violation in report["violations"]} <= kinds
