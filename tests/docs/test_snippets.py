"""What the README and the documentation show is run as it stands there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml
from click.testing import CliRunner
from fences import ROOT, Fence, fences, in_text, pages

from admission import Settings
from admission.backends.redis import keeper
from admission.cli.commands import cli
from admission.observability.prometheus import PoolCollector

PYTHON = fences("python")
SHELL = fences("sh", "bash", "console")


@pytest.fixture
def _private_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The embedded server of a snippet is none that this user has; its path is short, as a socket needs."""
    with tempfile.TemporaryDirectory(prefix="adm-") as path:
        monkeypatch.setenv("XDG_STATE_HOME", path)
        yield
        lock = Path(path, "admission", "embedded", keeper.SERVER)
        assert not lock.exists() or keeper.wait_for(lambda: _is_free(lock)), "the embedded server did not end"


def _is_free(lock: Path) -> bool:
    held = keeper.lock(lock)
    if held is not None:
        os.close(held)
    return held is not None


@pytest.mark.usefixtures("_private_state")
@pytest.mark.parametrize("fence", [fence for fence in PYTHON if not fence.skipped], ids=str)
def test_every_python_snippet_runs(fence: Fence, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each in a namespace of its own, in an empty directory, with `await` allowed at the top."""
    monkeypatch.chdir(tmp_path)
    assert "uvicorn.run" not in fence.code, "a snippet must not start a server: show the command instead"
    tree = ast.parse("\n" * (fence.line - 1) + fence.code)
    # dont_inherit: this module's own imports from __future__ are not the snippet's.
    code = compile(tree, str(fence.path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    module = ModuleType("snippet")
    monkeypatch.setitem(sys.modules, "snippet", module)  # taskiq looks for the module of a task.
    outcome = eval(code, vars(module))
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)


def test_a_snippet_that_is_not_run_says_why() -> None:
    """`<!-- run: no, REASON -->`; if it is Python, at least its syntax is right."""
    for fence in fences("python", "toml"):
        if fence.skipped:
            assert len(fence.why) > 10, f"{fence}: say why it is not run"
            if fence.language == "python":
                ast.parse(fence.code)


def test_there_is_something_to_run() -> None:
    """The extractor finds the snippets, so a silent change of the fences cannot switch the tests off."""
    assert len(PYTHON) > 60
    assert sum(fence.skipped for fence in PYTHON) <= 3
    assert {fence.path.name for fence in PYTHON} >= {"README.md", "tutorial.md", "coming-from.md"}


def test_marks_and_indented_fences_are_understood() -> None:
    """The extractor itself: a mark belongs to the next fence alone, and code in lists is dedented."""
    text = "<!-- run: no, needs a GPU -->\n```python\nbad(\n```\n\n- item\n\n    ```python\n    x = 1\n    ```\n"
    marked, plain = in_text(ROOT / "page.md", text)
    assert (marked.skipped, marked.why) == (True, "needs a GPU")
    assert (plain.skipped, plain.code, plain.line) == (False, "x = 1\n", 9)


@pytest.mark.parametrize("fence", [fence for fence in fences("toml") if not fence.skipped], ids=str)
def test_every_settings_file_shown_is_valid(fence: Fence, tmp_path: Path) -> None:
    """`admission check` accepts it; the servers the pages name are no real ones."""
    file = tmp_path / "admission.toml"
    file.write_text(fence.code, "utf-8")
    result = CliRunner().invoke(cli, ["check", str(file), "--offline"], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("fence", SHELL, ids=str)
def test_every_command_shown_exists(fence: Fence) -> None:
    """Our commands with their options, the verbs of ./dev, extras, environment variables."""
    for words in commands(fence.code):
        for name in takewhile_assignments(words):
            assert_is_variable(name)
        match [word for word in words if not is_assignment(word)]:
            case ["admission", *arguments]:
                assert_parses(arguments)
            case ["./dev", verb, *_]:
                assert re.search(rf"^    {verb}\)$", (ROOT / "dev").read_text("utf-8"), re.MULTILINE), verb
            case ["pip", "install", *what]:
                assert_extras_exist(what)
            case ["export", assignment]:
                assert_is_variable(assignment.partition("=")[0])
            case _:
                pass


def test_every_admission_variable_named_anywhere_exists() -> None:
    """In text as well: a variable that is documented is read."""
    for page in pages():
        for name in set(re.findall(r"\bADMISSION_[A-Z][A-Z_]*[A-Z]\b", page.read_text("utf-8"))):
            assert_is_variable(name)


@pytest.mark.parametrize("fence", fences("yaml", "promql"), ids=str)
def test_every_yaml_block_parses_and_names_existing_metrics(fence: Fence) -> None:
    """Manifests and alert rules: readable, and no metric that is not there."""
    if fence.language == "yaml":
        list(yaml.safe_load_all(fence.code))
    known = {sample for family in PoolCollector().describe() for sample in sample_names(family.name, family.type)}
    for name in re.findall(r"\badmission_[a-z_]+", fence.code):
        assert name in known, name


def commands(code: str) -> list[list[str]]:
    """The words of each command in a shell block; prompts, comments, output and pipes' right sides are left out."""
    joined = code.replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in joined.splitlines()]
    return [shlex.split(line.split(" | ")[0], comments=True) for line in lines if line and not line.startswith("#")]


def is_assignment(word: str) -> bool:
    return re.match(r"[A-Z][A-Z_]*=", word) is not None


def takewhile_assignments(words: list[str]) -> list[str]:
    """Names of the variables set before a command."""
    return [word.partition("=")[0] for word in words if is_assignment(word)]


def assert_is_variable(name: str) -> None:
    """*name* is none of ours, or an option, or a table of one (`ADMISSION_LIMIT__KIND`)."""
    if name.startswith("ADMISSION_"):
        assert name.removeprefix("ADMISSION_").partition("__")[0].lower() in Settings.model_fields, name


def assert_parses(arguments: list[str]) -> None:
    """click accepts command, options and values; nothing is run."""
    if arguments in (["--help"], ["--version"]):
        return
    parse(cli, arguments)


def parse(group: click.Group, arguments: list[str]) -> None:
    """A command of *group* with its options, and that command's own if it is a group, too."""
    command = group.commands[arguments[0]]
    with click.Context(group) as above:
        context = command.make_context(arguments[0], list(arguments[1:]), parent=above)
    if isinstance(command, click.Group):
        parse(command, [*context._protected_args, *context.args])


def assert_extras_exist(what: list[str]) -> None:
    """`admission[metrics,yaml]` and `-e .[demo]` name extras of the project file."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for requirement in what:
        extras = re.search(r"(?:admission|\.)\[([\w,]+)\]", requirement)
        for extra in extras[1].split(",") if extras else ():
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def sample_names(family: str, kind: str) -> list[str]:
    """The names a metric family has on the page of a scrape."""
    match kind:
        case "counter":
            return [f"{family}_total"]
        case "histogram":
            return [f"{family}_bucket", f"{family}_sum", f"{family}_count"]
    return [family]
