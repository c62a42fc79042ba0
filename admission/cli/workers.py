"""`admission worker`: run the jobs of a queue."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from admission.cli.importing import NotFound
from admission.cli.metrics import require_metrics
from admission.cli.options import WIDTH, WrongSettings
from admission.cli.processes import Processes
from admission.cli.queue import find_queue, whereabouts
from admission.cli.worker_plan import MOST_PROCESSES, WorkerOptions, WorkerPlan, about, planned, read_plans
from admission.cli.working import Assignment, work
from admission.config import SettingsError
from admission.jobs import JobQueue
from admission.observability.logging import configure_logging


@click.command()
@click.argument("jobs", metavar="[MODULE:JOBS]", required=False)
@click.option("--workers", type=int, metavar="N", help="Jobs at once, in each process.  [default: 100]")
@click.option("--threads", type=int, metavar="N", help="Threads for functions that are not async.  [default: 20]")
@click.option("--tenants", metavar="A,B", help="Take only the jobs of these tenants.")
@click.option("--steal", metavar="'*'|A,B", help="Whose jobs to take while those have none; '*' is everyone's.")
@click.option("--processes", type=int, metavar="N", help=f"Worker processes, 1 to {MOST_PROCESSES}.  [default: 1]")
@click.option(
    "--grace", type=float, metavar="SECONDS", help="How long running jobs may go on after SIGTERM.  [default: 30]"
)
@click.option(
    "--metrics-port",
    type=int,
    metavar="PORT",
    help="Serve Prometheus metrics on this port, locally; with several processes, on as many, upwards from it.",
)
@click.option("--log-format", metavar="text|json", help="Form of the log on standard error.  [default: text]")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Named workers, in TOML or YAML. Options given here win over the file.",
)
@click.option("--name", "names", metavar="NAME", multiple=True, help="Of those, run this one; may be given again.")
def worker(config: Path | None, names: tuple[str, ...], **flags: Any) -> None:
    """Run the jobs of a queue, until SIGTERM.

    \b
    admission worker main:jobs --workers 100 --threads 20
    admission worker main:jobs --tenants acme,globex --steal '*' --processes 2
    admission worker --config workers.toml --name fast

    MODULE:JOBS is a JobQueue, imported from the current directory. On SIGTERM no more jobs are taken; those that run
    have the grace time to end, and are handed back then. A second signal ends it at once.
    """
    if names and config is None:
        raise click.UsageError("--name goes with --config, the file that has a worker of that name")
    given = WorkerOptions(**{option: value for option, value in flags.items() if value is not None})  # type: ignore[typeddict-item]
    try:
        plans = planned(config, names, given)
    except SettingsError as error:
        raise WrongSettings(str(error)) from None
    if any(plan.metrics_port is not None for plan in plans.values()):
        require_metrics()
    queues = {name: _queue_of(plan) for name, plan in plans.items()}
    configure_logging(next(iter(plans.values())).log_format)
    _tell(plans, queues)
    everyone = assignments(plans)
    if len(everyone) == 1:
        work(everyone[0])
    else:
        asyncio.run(_look_after(everyone))


def check_workers(file: Path) -> None:
    """Print what a file of workers means.

    Raises:
        WrongSettings: Something in it is wrong.
    """
    try:
        plans = read_plans(file)
    except SettingsError as error:
        raise WrongSettings(str(error)) from None
    click.echo(f"{file} is valid.\n")
    for name, plan in plans.items():
        _print_sentences(*about(name, plan), aside=False)


def assignments(plans: Mapping[str, WorkerPlan]) -> list[Assignment]:
    """What each process is to do."""
    return [
        Assignment(name=name, plan=plan, ports=sum(other.processes for other in plans.values()))
        for name, plan in plans.items()
        for _ in range(plan.processes)
    ]


async def _look_after(everyone: list[Assignment]) -> None:
    await Processes(everyone).run()


def _queue_of(plan: WorkerPlan) -> JobQueue:
    try:
        queue = find_queue(plan.jobs)
    except NotFound as error:
        raise click.UsageError(str(error)) from None
    if not queue.tasks:
        raise click.UsageError(f"{plan.jobs!r} has no tasks: import the modules that register them where it is made")
    return queue


def _tell(plans: Mapping[str, WorkerPlan], queues: Mapping[str, JobQueue]) -> None:
    for name, plan in plans.items():
        queue = queues[name]
        tasks = ", ".join(sorted(queue.tasks))
        count = len(queue.tasks)
        _print_sentences(
            *about(name, plan),
            f"Jobs come from {whereabouts(queue)}. It knows {count} task{'' if count == 1 else 's'}: {tasks}.",
        )


def _print_sentences(*sentences: str, aside: bool = True) -> None:
    text = " ".join(sentences)
    click.echo(textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False), err=aside)
