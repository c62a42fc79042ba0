"""The servers of one benchmark: all started at once, each measured in its turn, all ended at the end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.apps import APPS, OURS_WITHOUT_FIELDS
from tests.benchmarks.builds import OURS, PURE, THIS
from tests.benchmarks.report import Report

COMPILED = {OURS, OURS_WITHOUT_FIELDS}
"""Contenders that run on the compiled build, where there is one."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running contender."""

    port: int
    process: subprocess.Popen[str]

    def cpu_seconds(self) -> float:
        """User and system time it has used so far."""
        return self._ask("cpu")

    def worked_seconds(self) -> float:
        """Seconds of work it has done so far, all slots together."""
        return self._ask("worked")

    def pieces_done(self) -> float:
        """How many pieces of work that were."""
        return self._ask("pieces")

    def _ask(self, what: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def contenders(report: Report, *left_out: str) -> list[str]:
    """The names of all servers there are to measure, but for some."""
    out = left_out if report.plan.compiled is not None else (*left_out, PURE)
    return [name for name in APPS if name not in out]


@contextmanager
def serving(
    report: Report, names: Sequence[str], *, limit: int, queue: int, work: bool = False
) -> Iterator[dict[str, Server]]:
    """Every contender that can be imported here, by name; the others are reported."""
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in names:
            build = report.plan.compiled if name in COMPILED and report.plan.compiled is not None else THIS
            command = [build.python, "-m", "tests.benchmarks.server", name]
            command += [f"--limit={limit}", f"--queue={queue}", *(["--work"] if work else [])]
            processes[name] = subprocess.Popen(
                command, cwd=build.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        servers: dict[str, Server] = {}
        for name, process in processes.items():
            assert process.stdout is not None
            line = process.stdout.readline()
            said: dict[str, Any] = json.loads(line) if line else {"absent": "its server did not start"}
            if "port" in said:
                servers[name] = Server(said["port"], process)
            else:
                report.missing(name, said["absent"])
        yield servers
    finally:
        for process in processes.values():
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Let it go by itself, and see to it that it does."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
