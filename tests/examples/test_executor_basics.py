"""The example of an executor on its own, run as a user runs it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "executor_basics.py"


def test_the_example_serves_everyone_and_tells_what_happened(capsys: pytest.CaptureFixture[str]):
    """Nine prompts done, the paid one first, the novel cut off."""
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith("paid stands at 1, ")
    assert lines[1] == "PAID"
    assert sum(line.startswith(("FREE", "ALSO FREE")) for line in lines) == 8
    assert "longer than its timeout of 0.05 s" in printed
    assert any(line.startswith("9 done, ") and line.endswith("1 timed out") for line in lines)
    assert lines[-1].startswith("dead letter ")
