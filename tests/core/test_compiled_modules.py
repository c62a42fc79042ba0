"""What the modules that mypyc compiles must not do."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import admission

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
PACKAGE = Path(admission.__file__).parent
WAITS = (ast.Await, ast.AsyncFor, ast.AsyncWith, ast.Yield, ast.YieldFrom)

with PROJECT.open("rb") as file:
    MODULES = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]


def waits_inside_except(source: str) -> list[int]:
    """The lines on which it does."""
    handlers = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    return [node.lineno for handler in handlers for node in ast.walk(handler) if isinstance(node, WAITS)]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_waits_inside_except(module: str) -> None:
    """There mypyc shows the error that is handled to whoever runs meanwhile: others raised it as their own."""
    source = PACKAGE.parent / module
    assert waits_inside_except(source.read_text(encoding="utf-8")) == []


def test_waiting_inside_except_is_noticed() -> None:
    """However deep it stands."""
    source = "async def f():\n  try: pass\n  except ValueError:\n    if x:\n      await y\n    raise\n"
    assert waits_inside_except(source) == [5]
