"""The short form of `./dev chaos jobs`: no job is lost, and builds that are wrong on purpose are found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos.jobs import main
from tests.chaos.jobs_broken import BROKEN, CAUGHT_BY

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.xdist_group("chaos")]


def chaos(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of a run."""
    code = main([*options, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_job_is_done_though_its_workers_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each at least once; what a worker says of a job that was given to another one meanwhile is refused."""
    code, report = chaos(capsys, "--seed", "1", "--jobs", "600")
    assert report["violations"] == []
    assert code == 0
    assert report["lost"] == 0
    assert report["kills"] > 3
    assert report["redelivered"] > 0
    assert report["deliveries"] >= 600


def test_every_job_is_done_though_the_server_is_killed_too(capsys: pytest.CaptureFixture[str]) -> None:
    """It has written down what it acknowledged."""
    code, report = chaos(capsys, "--seed", "2", "--jobs", "400", "--restart")
    assert report["violations"] == []
    assert code == 0
    assert report["restarts"] == 1


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_build_of_jobs_is_caught(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the same run with fewer jobs; by one of three, as it is chance what a process is doing when it is killed."""
    for seed in "4", "5", "6":
        code, report = chaos(capsys, "--seed", seed, "--jobs", "300", "--patience", "5", "--broken", name)
        if code:
            break
    assert code == 1
    assert {violation["kind"] for violation in report["violations"]} & CAUGHT_BY[name]
