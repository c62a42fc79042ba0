"""The example of durable jobs, run as a user runs it."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.redis.servers import valkey

EXAMPLE = Path(__file__).parents[2] / "examples" / "jobs_worker.py"


def test_the_example_serves_everyone_and_tells_what_happened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The small tenant before the backlog of the large one; a retry, a dead letter, and all jobs done."""
    with valkey() as server:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), server.url])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    first, customer, charged, dead, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"acme has 'receipt 1'; globex waits for [1-9]\d* more", first)
    assert re.fullmatch(r"a customer is let in while [1-9]\d* jobs wait", customer)
    assert charged == "order 7 charged at attempt 2"
    assert dead == "dead after 3 attempts: ValueError: there is no order -1"
    assert last == "1002 jobs done, 3 tried again, 1 dead"
