"""The command line, run in this process."""

from __future__ import annotations

import builtins
import importlib
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result

from admission.cli import main, metrics
from admission.cli.commands import cli
from admission.cli.describe import describe
from admission.cli.serving import VARIABLE, AppNotFound, find_app
from admission.config import Settings

SECRET_URL = "redis://:hush-hush@cache:6379"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("ADMISSION_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("admission.cli.commands.configure_logging", lambda form: None)  # The root logger is pytest's.


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What uvicorn was asked to serve, instead of serving it; and the plan left for its processes."""
    asked: dict[str, Any] = {}

    def run(app: str, **options: Any) -> None:
        asked.update(options, app=app, plan=os.environ.pop(VARIABLE))

    monkeypatch.setattr(uvicorn, "run", run)
    return asked


@pytest.fixture
def app(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A module with an app in the current directory."""
    module = f"app_of_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{module}.py").write_text("async def app(scope, receive, send): ...\nnumber = 3\n")
    return f"{module}:app"


def run(*arguments: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, env=env)


def said(result: Result) -> str:
    """What was printed, with the lines joined: where a sentence breaks is not the point."""
    return " ".join(result.output.split())


# ---------------------------------------------------------------------- check


def test_check_says_what_a_file_means() -> None:
    """Whole sentences, at most 80 columns wide."""
    result = run("check", str(EXAMPLES / "admission.toml"))
    assert result.exit_code == 0, result.output
    assert "At most 8 requests run at once. 100 more may wait, 30 s at most." in said(result)
    assert "Class batch: sure of 5% of the starts while it has waiters; goes first once it has waited 2 min" in said(
        result
    )
    assert max(map(len, result.output.splitlines()[1:])) <= 80


def test_check_shows_tenants_and_no_key() -> None:
    """Names, tiers and how many keys; no digest."""
    result = run("check", str(EXAMPLES / "admission.toml"))
    assert "acme enterprise 3 1" in said(result)
    assert not any(len(word) == 64 for word in result.output.split())


def test_check_names_file_line_and_key(tmp_path: Path) -> None:
    """Every problem on a line of its own, and exit code 2."""
    file = tmp_path / "bad.toml"
    file.write_text('[pool]\nmax_concurrency = 0\nmode = "blok"\n')
    result = run("check", str(file))
    assert result.exit_code == 2
    assert f"{file}:2: pool.max_concurrency is 0: it must be at least 1" in result.output
    assert f"{file}:3: pool.mode is 'blok'" in result.output
    assert "Traceback" not in result.output


def test_check_says_when_the_environment_wins() -> None:
    """What is printed is what would run here."""
    result = run("check", str(EXAMPLES / "admission.toml"), env={"ADMISSION_MAX_CONCURRENCY": "3"})
    assert "At most 3 requests run at once" in said(result)
    assert "The environment overrides the file here: ADMISSION_MAX_CONCURRENCY." in said(result)


def test_check_asks_the_middleware_as_well(tmp_path: Path) -> None:
    """What only the middleware can judge is found before the server starts."""
    file = tmp_path / "bad.toml"
    file.write_text('[http]\nstatus_path = "/a//b"\n')
    result = run("check", str(file))
    assert result.exit_code == 2
    assert "status_path" in result.output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_concurrency": 1}, "At most 1 request runs at once."),
        ({"max_queue_size": 0, "max_wait": None}, "Any number of others may wait, as long as it takes."),
        ({"mode": "shadow"}, "Shadow mode: nobody is held back or refused."),
        ({"mode": "block"}, "up to 10000 callers wait for room in it"),
        ({"mode": "reject", "refusal_status": 503}, "newcomers are refused with status 503"),
        ({"limit": {"kind": "vegas", "most": 9}}, "adapts to the backend (vegas): at least 1, at most 9, 9 to begin"),
        ({"trust_headers": True}, "Do this only behind a gateway"),
        ({"status_path": None}, "There are no status pages."),
        ({"status_token": "x"}, "for whoever has the token"),
        ({"status_loopback": False}, "answer nobody"),
        ({"metrics_port": 9090, "metrics_namespace": "llm"}, "Metrics named llm_… on http://127.0.0.1:9090/."),
        ({"classes": [{"name": "vip", "exempt": True}]}, "Class vip: let in at once, always"),
        ({"classes": [{"name": "a", "weights": {"acme": 2}}]}, "In class a acme counts 2 times."),
        ({"classes": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}, "every request is b unless"),
        (
            {"redis": SECRET_URL},
            "all processes together that keep pool 'default' in redis://:***@cache:6379, namespace",
        ),
        ({"redis": "embedded"}, "in a private Valkey of this user, namespace 'admission'."),
        ({"redis": SECRET_URL}, "cannot be reached, each process lets in its share of the limit by itself. The slots"),
        ({"redis": SECRET_URL, "on_outage": "open"}, "each process lets in everyone."),
        ({"redis": SECRET_URL, "on_outage": "closed"}, "each process lets in nobody, with status 503."),
        ({"redis": SECRET_URL, "redis_lease": 6}, "The slots of a process that was killed are free again after 6 s."),
    ],
)
def test_a_setting_is_described(options: dict[str, Any], sentence: str) -> None:
    """Each option that changes what happens changes what is said."""
    assert any(sentence in found for found in describe(Settings(**options))), list(describe(Settings(**options)))


# ---------------------------------------------------------------------- serve


def test_serve_hands_its_options_down(app: str, served: dict[str, Any]) -> None:
    """`--workers` is the number of requests let in at once; what is not given is left to environment and file."""
    result = run("serve", app, "--workers", "2", "--max-queue-size", "5", "--mode", "block", "--max-wait", "none")
    assert result.exit_code == 0, result.output
    assert served["app"] == "admission.cli.serving:create_app"
    assert served["workers"] == 1
    assert (
        '"options": {"max_concurrency": 2, "max_queue_size": 5, "mode": "block", "max_wait": "none"}' in served["plan"]
    )


def test_processes_share_what_was_asked_for(app: str, served: dict[str, Any]) -> None:
    """Limit and line are divided, at least one each, and a warning says so."""
    result = run("serve", app, "--workers", "8", "--max-queue-size", "5", "--processes", "4")
    assert served["workers"] == 4
    assert '"max_concurrency": 2, "max_queue_size": 1}' in served["plan"]
    assert "Warning: 4 processes share no line. Each has 2 of 8 requests running and 1 of 5 waiting" in result.output
    run("serve", app, "--workers", "1", "--max-queue-size", "0", "--processes", "4")
    assert '"max_concurrency": 1, "max_queue_size": 0}' in served["plan"]


def test_processes_that_share_a_pool_are_told_all_of_it(app: str, served: dict[str, Any]) -> None:
    """Limit and line are not divided, there is nothing to warn of, and the password is not printed."""
    result = run("serve", app, "--workers", "8", "--processes", "4", "--redis", SECRET_URL, "--redis-namespace", "chat")
    assert result.exit_code == 0, result.output
    assert '"max_concurrency": 8' in served["plan"]
    assert f'"redis": "{SECRET_URL}", "redis_namespace": "chat"' in served["plan"]
    assert said(result) == "4 processes share pool 'default' in redis://:***@cache:6379, namespace 'chat'."


def test_a_pool_named_elsewhere_is_shared_as_well(app: str, served: dict[str, Any]) -> None:
    """The environment will do: a command line shows in every list of processes."""
    result = run("serve", app, "--processes", "2", env={"ADMISSION_REDIS": SECRET_URL})
    assert "2 processes share pool 'default' in redis://:***@cache:6379" in said(result)
    assert "hush" not in served["plan"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers is 0: it must be at least 1"),
        (["--max-queue-size", "-1"], "--max-queue-size is -1: it must be at least 0"),
        (["--max-wait", "soon"], "--max-wait is 'soon': it must be a number"),
        (["--mode", "blok"], "--mode is 'blok': it must be 'reject', 'block' or 'shadow'"),
        (["--metrics-port", "70000"], "--metrics-port is 70000: it must be at least 0 and at most 65535"),
        (["--log-format", "xml"], "--log-format is 'xml': it must be 'text' or 'json'"),
        (["--config", "nowhere.toml"], "nowhere.toml: there is no such file"),
        (["--redis", "redis://:hush@cache:0"], "--redis is 'redis://:***@cache:0': it has the port '0'"),
        (["--redis-namespace", "chat"], "--redis-namespace is 'chat': it needs redis"),
        (["--redis", SECRET_URL, "--on-outage", "panic"], "--on-outage is 'panic': it must be 'degrade', 'open' or"),
    ],
)
def test_a_wrong_flag_is_named_as_it_was_typed(
    app: str, served: dict[str, Any], arguments: list[str], message: str
) -> None:
    """The error names the flag, the value and what is allowed; nothing is served."""
    result = run("serve", app, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "hush" not in result.output
    assert not served


def test_a_port_for_metrics_that_is_taken_stops_the_start(app: str, served: dict[str, Any]) -> None:
    """Before the server runs, not in its log afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("serve", app, "--metrics-port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "metrics_port: cannot listen on 127.0.0.1" in result.output
    assert not served


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_metrics_without_the_package_that_writes_them_stop_the_start(
    app: str, served: dict[str, Any], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the option, the package and how to install it."""
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    result = run(command, app, "--metrics-port", "9090")
    assert result.exit_code == 1
    assert 'metrics_port needs the package prometheus_client. Install it with: pip install "admission[metrics]"' in (
        result.output
    )
    assert not served


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("main", "'main' names no app: write it as module:app"),
        ("main:", "names no app"),
        ("no_such_module:app", "there is no module 'no_such_module': tried to import 'no_such_module' from"),
        ("os.path.nowhere:app", "there is no module 'os.path.nowhere'"),
        ("json:app", "module 'json' has no 'app'"),
        ("json:__name__", "'json:__name__' is str: an ASGI app can be called"),
    ],
)
def test_an_app_that_is_not_there_is_named(served: dict[str, Any], name: str, message: str) -> None:
    """What was tried, and how to write it."""
    result = run("serve", name)
    assert result.exit_code == 2
    assert message in said(result)
    assert not served


def test_an_app_of_another_name_is_suggested(app: str) -> None:
    """The module is there, the name in it is not."""
    module = app.partition(":")[0]
    with pytest.raises(AppNotFound, match="has no 'application'; it has app"):
        find_app(f"{module}:application")


def test_an_app_whose_own_import_fails_keeps_its_traceback(tmp_path: Path) -> None:
    """The missing package is the app's, and only its traceback says where."""
    (tmp_path / "broken_app.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        find_app("broken_app:app")


# ---------------------------------------------------------------------- the rest


def test_the_demo_is_run_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is the command's."""
    demo = importlib.import_module("admission.demo")
    called: dict[str, Any] = {}

    def run_demo(**options: Any) -> int:
        called.update(options)
        return 3

    monkeypatch.setattr(demo, "run_demo", run_demo)
    result = run("demo", "--once", "--port", "0", "--seconds", "5")
    assert result.exit_code == 3
    assert called == {"host": "127.0.0.1", "port": 0, "once": True, "load": True, "seconds": 5.0}


def without(monkeypatch: pytest.MonkeyPatch, package: str, forget: str) -> None:
    """Make *package* impossible to import, and *forget* not yet imported."""
    real = builtins.__import__

    def importing(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *arguments, **keywords)

    for name in [name for name in sys.modules if name.startswith(forget)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", importing)


def test_without_the_model_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback for a package that is an extra."""
    without(monkeypatch, "httpx2", "admission.demo")
    result = run("demo")
    assert result.exit_code == 1
    assert "the demo needs the package 'httpx2'" in said(result)
    assert "admission[demo]" in said(result)


def test_without_click_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script is installed with the core; its packages are an extra."""
    without(monkeypatch, "click", "admission.cli.commands")
    with pytest.raises(SystemExit, match=r"pip install 'admission\[cli\]'"):
        main()


@pytest.mark.parametrize("command", [[], ["serve"], ["check"], ["demo"]])
def test_help_fits_a_terminal(command: list[str]) -> None:
    """80 columns, and every option has a sentence."""
    result = CliRunner().invoke(cli, [*command, "--help"], terminal_width=80)
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


def test_help_of_serve_explains_workers_and_processes() -> None:
    """The two numbers people mix up."""
    text = said(run("serve", "--help"))
    assert "--workers N Requests let in at once." in text
    assert "With --redis they share one pool. Without it each has a pool of its own: --workers and" in text
