"""Builds of the jobs that are wrong on purpose, for `python -m tests.chaos.jobs --broken NAME`.

Each is applied in the worker processes, by name, before anything is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from admission.jobs import script
from admission.jobs.run import Run, Runs
from admission.jobs.script import Script, Taken
from admission.jobs.tender import ClassTender
from admission.line import Entry


def acks_on_take() -> None:
    """A job counts as done before it has begun: what a killed process had is lost."""
    arrived = Runs.arrived

    def reporting(runs: Runs, taken: Taken, entry: Entry, line: ClassTender) -> None:
        runs.store.send(script.done(taken.id, taken.delivery, str(taken.delivery), 3_600_000_000))
        arrived(runs, taken, entry, line)

    Runs.arrived = reporting  # type: ignore[assignment, method-assign]


def never_reaps() -> None:
    """The jobs of a process whose lease has run out stay its own."""
    _rewrite("if not pool.alive[name] then\n      core.sate(name)", "if false then\n      core.sate(name)")


def believes_stale_reports() -> None:
    """Whoever once had a job may say how it ended."""
    _rewrite("j.state == 'running' and j.by == me and j.delivery == tonumber(delivery)", "j.state == 'running'")


def takes_failures_for_success() -> None:
    """An attempt that raised is reported as done."""

    def succeeding(runs: Runs, run: Run, error: BaseException) -> None:
        runs.succeeded(run, run.taken.delivery)

    Runs.failed = succeeding  # type: ignore[assignment, method-assign]


def keeps_bodies() -> None:
    """What was to be run stays behind when nothing else of a job is kept."""
    _rewrite("  core.write('HDEL', JOB, gone)\n  core.write('HDEL', BODY, gone)", "  core.write('HDEL', JOB, gone)")


def _rewrite(right: str, wrong: str) -> None:
    """Change one place of the script."""
    if Script.source.count(right) != 1:
        raise RuntimeError(f"jobs.lua has changed: there is no, or more than one, {right!r}")
    Script.source = Script.source.replace(right, wrong)
    Script.sha = hashlib.sha1(Script.source.encode(), usedforsecurity=False).hexdigest()


BROKEN: dict[str, Callable[[], None]] = {
    build.__name__.replace("_", "-"): build
    for build in (acks_on_take, never_reaps, believes_stale_reports, takes_failures_for_success, keeps_bodies)
}

CAUGHT_BY = {
    "acks-on-take": {"lost", "unfounded"},
    "never-reaps": {"stalled"},
    "believes-stale-reports": {"stale"},
    "takes-failures-for-success": {"lost", "unfounded"},
    "keeps-bodies": {"leaked"},
}
"""As what kinds of violation each is found."""
