"""The tables of the reference are complete and say what the code says."""

from __future__ import annotations

import re

import click
import pytest
from fences import ROOT, pages

import admission
from admission.asgi.classify import RequestCounts
from admission.asgi.options import Options
from admission.asgi.responses import CODES, Refusals
from admission.cli.commands import cli
from admission.config import Settings
from admission.config.headings import HEADINGS
from admission.config.tables import OPTIONS_OF_TABLES
from admission.errors import Rejected
from admission.jobs import JobQueue
from admission.observability.jobs import JobsCollector
from admission.observability.prometheus import PoolCollector
from admission.types import Reason

REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / name).read_text("utf-8")


def rows(text: str) -> list[list[str]]:
    """The rows of all tables, without headings and rules."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    return [[cell.replace("\\|", "|") for cell in row] for row in cells]


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level."""
    mark = re.escape(heading)
    level = heading.split(" ")[0]
    return re.search(rf"^{mark}\n(.*?)(?=^{level} |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def test_every_setting_is_in_the_table_with_its_default() -> None:
    """No option is missing, none is invented, and the defaults are those of the code."""
    table = {row[0].strip("`"): row[1] for row in rows(section(page("settings.md"), "## Options"))}
    assert table.keys() == Settings.model_fields.keys()
    for option, field in Settings.model_fields.items():
        assert shown(field.default) == table[option].replace("`", ""), option


def shown(default: object) -> str:
    match default:
        case None | () | {}:
            return "\N{EN DASH}"
        case bool():
            return str(default).lower()
        case tuple():
            return ", ".join(map(str, default))
        case float():
            return f"{default:g}"
    return str(default)


@pytest.mark.parametrize("heading", HEADINGS)
def test_settings_stand_under_the_heading_they_may_stand_under(heading: str) -> None:
    """A file can be written from the page."""
    under = re.search(rf"`\[{heading}\]`\n(.*?)(?=^##)", page("settings.md"), re.DOTALL | re.MULTILINE)
    assert under is not None
    for option in [row[0].strip("`") for row in rows(under[1])]:
        assert option in HEADINGS[heading], option


def test_options_of_tables_are_named() -> None:
    """Classes, tenants, paths, limits."""
    text = section(page("settings.md"), "## Tables")
    for options in OPTIONS_OF_TABLES.values():
        for option in options:
            assert f"`{option}`" in text or f"`{option} " in text, option


def test_every_metric_is_in_the_table_with_its_labels() -> None:
    """Names, types and labels, as a scrape shows them."""
    table = {row[0].strip("`"): row[1:3] for row in rows(page("metrics.md")) if "_" in row[0]}
    described = [*PoolCollector().describe(), *JobsCollector(JobQueue("redis://cache")).describe()]
    families = {family.name + ("_total" if family.type == "counter" else ""): family for family in described}
    assert table.keys() == families.keys()
    for name, (kind, labels) in table.items():
        assert kind == families[name].type
        assert re.findall(r"`(\w+)`", labels) == list(families[name]._labelnames), name
    for noticed in RequestCounts.__dataclass_fields__:
        assert f"`{noticed}`" in page("metrics.md")


def test_every_reason_is_in_the_table_with_its_code_and_status() -> None:
    """What a refusal says on the wire."""
    table = {row[0].strip("`"): row[1:4] for row in rows(section(page("errors.md"), "## Reasons"))}
    assert table.keys() == {reason.value for reason in Reason}
    refusals = Refusals()
    for reason in Reason:
        error, code, status = table[reason.value]
        assert issubclass(getattr(admission, error.strip("`")), admission.AdmissionError)
        assert code.strip("`") == CODES[reason]
        assert int(status) == refusals.answer(Rejected("", reason=reason, retry_after=1.0)).status, reason


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_of_every_command_is_in_the_table(name: str) -> None:
    """The page and `--help` know the same options."""
    found = re.search(rf"^## admission {name}\b[^\n]*\n(.*?)(?=^## |\Z)", page("cli.md"), re.DOTALL | re.MULTILINE)
    assert found is not None, f"{name} has no section"
    documented = {re.match(r"`(--[\w-]+)", row[0])[1] for row in rows(found[1])}
    assert documented == options_of(cli.commands[name])


def options_of(command: click.Command) -> set[str]:
    """Those of a command, and of the commands in it."""
    options = {param.opts[0] for param in command.params if isinstance(param, click.Option)}
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    return options.union(*map(options_of, inner))


def test_every_public_name_is_somewhere_in_the_reference() -> None:
    """What can be imported from `admission` can be looked up."""
    text = "\n".join(file.read_text("utf-8") for file in REFERENCE.glob("*.md"))
    for name in admission.__all__:
        documented = rf"::: admission\.{name}$|`{name}`|── {name}\b|^{name}$"
        assert re.search(documented, text, re.MULTILINE), name


def test_every_option_of_the_middleware_has_a_docstring_or_a_row() -> None:
    """Middleware options are documented under their names; those without a docstring stand in the settings table."""
    table = {row[0].strip("`") for row in rows(page("settings.md"))}
    assert set(Options.__annotations__) - {"classify"} <= table


def test_every_row_of_coming_from_has_code_or_says_that_it_is_not_here_yet() -> None:
    """Nobody who comes from an ancestor reads a promise without proof."""
    sections = re.split(r"^### ", page("coming-from.md"), flags=re.MULTILINE)[1:]
    assert len(sections) > 40
    for text in sections:
        assert re.search(r"^```(python|sh|yaml)$", text, re.MULTILINE) or "not in this release" in text.lower(), text


def test_links_between_pages_lead_somewhere() -> None:
    """GitHub shows these pages, too: relative links must be right without a build."""
    for source in pages():
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", source.read_text("utf-8")):
            assert (source.parent / target).exists(), f"{source.name}: {target}"


def test_the_readme_stays_short() -> None:
    """It is read from top to bottom by people who want to know whether to go on."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200
