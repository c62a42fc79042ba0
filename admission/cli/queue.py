"""The queue of jobs that is meant on the command line: one of an application, or one that is only looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from admission.cli.describe import place
from admission.cli.importing import NotFound, imported
from admission.cli.options import settings_of
from admission.jobs import JobQueue

_FLAGS = {"name": "pool", "redis_namespace": "namespace"}


def find_queue(name: str) -> JobQueue:
    """The `JobQueue` that *name* means: `module:jobs`, imported from the current directory.

    Raises:
        NotFound: There is no such module or no such name in it, or what is there is no `JobQueue`.
    """
    found = imported(name, "queue", "main:jobs", _queues_in)
    if not isinstance(found, JobQueue):
        raise NotFound(f"{name!r} is {type(found).__name__}: it must be a JobQueue")
    return found


def queue_at(given: Mapping[str, Any]) -> JobQueue:
    """A queue without tasks, to look at and to steer. What is not *given* comes from the environment and the file.

    Raises:
        WrongSettings: An option is wrong.
        click.UsageError: No server is named anywhere.
    """
    settings = settings_of({option: value for option, value in given.items() if value is not None}, _FLAGS)
    site = settings.shared_pool()
    if site is None:
        raise click.UsageError(
            "which jobs? name their queue with --app MODULE:JOBS, or the server that keeps them with --redis URL"
        )
    return JobQueue(site, pool=settings.name, classes=settings.build_classes())


def whereabouts(jobs: JobQueue) -> str:
    """Where its jobs are, without a password."""
    return f"pool {jobs.pool!r} in {place(jobs.site.url)}, namespace {jobs.site.namespace!r}"


def _queues_in(module: object) -> str:
    return ", ".join(name for name, value in vars(module).items() if isinstance(value, JobQueue))
