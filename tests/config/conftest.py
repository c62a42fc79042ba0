"""Settings are read from the environment: every test here starts without any of ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("ADMISSION_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a settings file into the current directory and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "admission.toml") -> str:
        (tmp_path / name).write_text(text)
        return name

    return write
