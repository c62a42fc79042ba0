"""Builds of the jobs that are wrong on purpose, for `python -m tests.chaos.jobs --broken NAME`.

Each is applied in the worker processes, by name, before anything is made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from admission.jobs import script
from admission.jobs.run import Run, Runs
from admission.jobs.script import Script, Taken
from admission.jobs.tender import ClassTender
from admission.line import Entry
from tests.chaos.broken import never_reaps


def acks_on_take() -> None:
    """A job counts as done before it has begun: what a killed process had is lost."""
    arrived = Runs.arrived

    def reporting(runs: Runs, taken: Taken, entry: Entry, line: ClassTender) -> None:
        runs.store.send(script.done(taken.id, taken.delivery, str(taken.delivery), 3_600_000_000))
        arrived(runs, taken, entry, line)

    Runs.arrived = reporting  # type: ignore[assignment, method-assign]


def takes_failures_for_success() -> None:
    """An attempt that raised is reported as done."""

    def succeeding(runs: Runs, run: Run, error: BaseException) -> None:
        runs.succeeded(run, run.taken.delivery)

    Runs.failed = succeeding  # type: ignore[assignment, method-assign]


REWRITES = {
    # Whoever once had a job may say how it ended.
    "believes-stale-reports": (r"(j\.state == 'running') and [^\n]*delivery[^\n]* then\n", r"\1 then\n"),
    # A key stays taken when its job is over.
    "keeps-deduplication-keys": (r"if j\.dedup ~= '' and [^\n]* then\n", "if false then\n"),
}
"""The place in the script that is changed, and into what."""


@contextmanager
def script_of(build: str) -> Iterator[None]:
    """The script as that build has it, in this process too."""
    kept = Script.source, Script.sha
    if build in REWRITES:
        _rewrite(*REWRITES[build])
    try:
        yield
    finally:
        Script.source, Script.sha = kept


def _rewrite(right: str, wrong: str) -> None:
    """Change one place of the script."""
    source, places = re.subn(right, wrong, Script.source)
    if places != 1:
        raise RuntimeError(f"jobs.lua has changed: {places} places are like {right!r}")
    Script.source = source
    Script.sha = hashlib.sha1(Script.source.encode(), usedforsecurity=False).hexdigest()


BROKEN: dict[str, Callable[[], None]] = {
    "acks-on-take": acks_on_take,
    "never-reaps": never_reaps,
    "takes-failures-for-success": takes_failures_for_success,
    **{name: partial(_rewrite, *change) for name, change in REWRITES.items()},
}

CAUGHT_BY = {
    "acks-on-take": {"lost", "unfounded"},
    "never-reaps": {"stalled"},
    "believes-stale-reports": {"stale"},
    "takes-failures-for-success": {"lost", "unfounded"},
    "keeps-deduplication-keys": {"leaked"},
}
"""As what kinds of violation each is found."""
