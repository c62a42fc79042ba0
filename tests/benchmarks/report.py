"""What a run found: tables as it goes, at the end each target beside what was measured, all of it as JSON if wanted."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.builds import Build

WIDTH = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How thorough a run shall be."""

    rounds: int
    """Interleaved rounds of each measurement."""
    quick: bool
    """Only show that it works: short rounds, whose figures mean little."""
    compiled: Build | None = None
    """The compiled build, where there is one: it is measured as `admission`, beside the pure one."""
    peers: Path | None = None
    """The environment with other job queues, where there is one."""

    def scaled(self, full: int, quick: int) -> int:
        """*full*, or *quick* in a quick run."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One target and what was measured for it."""

    what: str
    target: str
    measured: float
    unit: str
    met: bool


class Report:
    """Prints tables as they come, and keeps the claims for the end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.console = Console(width=WIDTH, highlight=False)
        self.claims: list[Claim] = []
        self.figures: list[dict[str, object]] = []
        self.absent: dict[str, str] = {}
        """Peers that could not be measured, and why."""

    def begin(self, name: str, about: str) -> None:
        """Announce a benchmark."""
        self.console.rule(f"[bold]{name}")
        self.console.print(about, style="dim")

    def note(self, text: str) -> None:
        """One line of prose."""
        self.console.print(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> None:
        """Print a table; its first column names the row. None is printed as a dash."""
        table = Table(title=title, title_justify="left", title_style="bold", width=WIDTH)
        table.add_column(columns[0], overflow="fold", ratio=1)
        for column in columns[1:]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
            self.figures.append({"table": title, **dict(zip(columns, row, strict=True))})
        self.console.print(table)

    def missing(self, name: str, why: str) -> None:
        """A peer that could not take part."""
        self.absent[name] = why
        self.console.print(f"[yellow]not measured[/]: {name}: {why}")

    def at_least(self, what: str, measured: float, target: float, unit: str = "") -> None:
        """Claim that something reaches *target*."""
        self._claim(what, measured, target, unit, sign="≥", met=measured >= target)

    def at_most(self, what: str, measured: float, target: float, unit: str = "") -> None:
        """Claim that something stays within *target*."""
        self._claim(what, measured, target, unit, sign="≤", met=measured <= target)

    def _claim(self, what: str, measured: float, target: float, unit: str, *, sign: str, met: bool) -> None:
        text = f"{sign} {_number(target)} {unit}".strip()
        self.claims.append(Claim(what=what, target=text, measured=measured, unit=unit, met=met))

    def summary(self) -> None:
        """Print every claim, then who could not take part."""
        self.console.rule("[bold]summary")
        table = Table(width=WIDTH)
        table.add_column("claim", overflow="fold", ratio=1)
        table.add_column("target", justify="right")
        table.add_column("measured", justify="right")
        table.add_column("")
        for claim in self.claims:
            verdict = "[green]met[/]" if claim.met else "[red]missed[/]"
            table.add_row(claim.what, claim.target, f"{_number(claim.measured)} {claim.unit}".strip(), verdict)
        self.console.print(table)
        for name, why in self.absent.items():
            self.console.print(f"[yellow]not measured[/]: {name}: {why}")
        if self.plan.quick:
            self.console.print("A quick run: it shows that everything works, its figures mean little.")

    def write(self, path: Path) -> None:
        """Everything as JSON."""
        found = {
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "rounds": self.plan.rounds,
            "quick": self.plan.quick,
            "compiled": self.plan.compiled is not None,
            "claims": [asdict(claim) for claim in self.claims],
            "figures": self.figures,
            "not_measured": self.absent,
        }
        path.write_text(json.dumps(found, indent=2) + "\n")


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """Three significant digits, or all before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
