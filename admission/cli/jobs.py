"""`admission jobs`: look at durable jobs and steer them, with an application's queue or with nothing but its server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import click

from admission.cli.importing import NotFound
from admission.cli.job_pages import print_jobs, print_json, print_letters, print_stats, say_count, say_paused, tell
from admission.cli.queue import find_queue, queue_at
from admission.errors import AdmissionError, JobNotFound
from admission.jobs import JobQueue, JobState

T = TypeVar("T")

LISTED = ("queued", "delayed", "running", "dead", "done")
PURGED = ("queued", "delayed", "dead", "done")

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_priority = click.option("--priority", metavar="CLASS", help="Only jobs of this class.")
_tenant = click.option("--tenant", metavar="NAME", help="Only jobs of this tenant.")
_limit = click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many at most, first in line."
)
_yes = click.option("--yes", is_flag=True, help="Really.")


@click.group()
@click.option("--app", metavar="MODULE:JOBS", help="The JobQueue of an application.")
@click.option(
    "--redis",
    metavar="URL|embedded",
    help="In place of --app: the server that keeps the jobs. A URL with a password belongs in ADMISSION_REDIS, which "
    "no list of processes shows.",
)
@click.option("--pool", metavar="NAME", help="With --redis: the pool whose jobs they are.  [default: default]")
@click.option("--namespace", metavar="NAME", help="With --redis: the namespace of the pool.  [default: admission]")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In place of --app: the pool's settings in TOML or YAML, which name its server and its classes.",
)
@click.pass_context
def jobs(
    context: click.Context,
    app: str | None,
    redis: str | None,
    pool: str | None,
    namespace: str | None,
    config: Path | None,
) -> None:
    """Look at durable jobs, and steer them.

    \b
    admission jobs --app main:jobs stats
    admission jobs --redis redis://localhost:6379 ls --state dead

    Exits with 0 when it is done, with 1 when there is no such job or the server does not answer, and with 2 when it
    was asked wrongly.
    """
    server = {"redis": redis, "name": pool, "redis_namespace": namespace, "config": config}
    if app is not None and any(value is not None for value in server.values()):
        raise click.UsageError("--app says all of it: leave out --redis, --pool, --namespace and --config")

    def found() -> JobQueue:
        if app is None:
            return queue_at(server)
        try:
            return find_queue(app)
        except NotFound as error:
            raise click.UsageError(str(error)) from None

    context.obj = found


@jobs.command("ls")
@click.option("--state", type=click.Choice(LISTED), default="queued", show_default=True, help="Where they are.")
@_priority
@_tenant
@_limit
@_as_json
@click.pass_obj
def list_jobs(
    found: Callable[[], JobQueue], state: str, priority: str | None, tenant: str | None, limit: int, as_json: bool
) -> None:
    """List jobs, in the order in which they are served within a tenant."""
    queue = found()
    listed, now = _ask(
        queue, lambda: _with_now(queue, queue.ls(state=state, priority=priority, tenant=tenant, limit=limit))
    )
    if as_json:
        print_json([asdict(each) for each in listed])
        return
    if not listed:
        click.echo(f"No {state} jobs.")
        return
    print_jobs(listed, now)
    if len(listed) == limit:
        click.echo(f"\nThe first {limit}. There may be more: --limit shows them.")


@jobs.command()
@click.argument("id")
@_as_json
@click.pass_obj
def show(found: Callable[[], JobQueue], id: str, as_json: bool) -> None:
    """Say all that is known of one job."""
    queue = found()
    status = _ask(queue, lambda: queue.job(id).status())
    tell(status, as_json)


@jobs.command()
@click.argument("id")
@_as_json
@click.pass_obj
def cancel(found: Callable[[], JobQueue], id: str, as_json: bool) -> None:
    """Take a job out of the queue; have its worker stop it if it runs."""
    queue = found()

    async def ask() -> tuple[JobState, bool]:
        job = queue.job(id)
        status = await job.status()
        return status.state, await job.cancel()

    before, cancelled = _ask(queue, ask)
    if not cancelled:
        raise click.ClickException(f"job {id} is {before.value}: there is nothing to cancel")
    if as_json:
        print_json({"id": id, "was": before.value})
    elif before is JobState.RUNNING:
        click.echo(f"Job {id} runs: its worker has been told. A function in a thread cannot be stopped.")
    else:
        click.echo(f"Job {id} is cancelled.")


@jobs.command()
@click.option("--state", type=click.Choice(PURGED), required=True, help="Which ones.")
@_priority
@_tenant
@_yes
@_as_json
@click.pass_obj
def purge(
    found: Callable[[], JobQueue], state: str, priority: str | None, tenant: str | None, yes: bool, as_json: bool
) -> None:
    """Throw jobs away: those that wait, dead letters, or kept results."""
    _require_yes(yes, f"all {state} jobs{_of(priority, tenant)}")
    queue = found()
    count = _ask(queue, lambda: queue.purge(state=state, priority=priority, tenant=tenant))
    say_count(count, "purged", as_json)


@jobs.command()
@_priority
@_as_json
@click.pass_obj
def pause(found: Callable[[], JobQueue], priority: str | None, as_json: bool) -> None:
    """Have no job started until resume, by any worker. Those that run go on; more may be enqueued."""
    queue = found()
    _ask(queue, lambda: queue.pause(priority))
    say_paused(priority, True, as_json)


@jobs.command()
@_priority
@_as_json
@click.pass_obj
def resume(found: Callable[[], JobQueue], priority: str | None, as_json: bool) -> None:
    """Take a pause back: the one of everything, or the one of a class."""
    queue = found()
    _ask(queue, lambda: queue.resume(priority))
    say_paused(priority, False, as_json)


@jobs.command()
@_as_json
@click.pass_obj
def stats(found: Callable[[], JobQueue], as_json: bool) -> None:
    """Say how the queue stands, by class and tenant."""
    queue = found()
    numbers = _ask(queue, queue.stats)
    if as_json:
        print_json(asdict(numbers))
        return
    print_stats(queue, numbers)


# ---------------------------------------------------------------------- dead letters


@jobs.group()
def dead() -> None:
    """Jobs that failed for good: look at them, run them again, or throw them away."""


@dead.command("list")
@_priority
@_tenant
@_limit
@_as_json
@click.pass_obj
def list_dead(
    found: Callable[[], JobQueue], priority: str | None, tenant: str | None, limit: int, as_json: bool
) -> None:
    """List dead letters, the oldest first."""
    queue = found()
    letters, now = _ask(queue, lambda: _with_now(queue, queue.dead.list(priority=priority, tenant=tenant, limit=limit)))
    if as_json:
        print_json([asdict(letter) for letter in letters])
    elif letters:
        print_letters(letters, now)
    else:
        click.echo("No dead letters.")


@dead.command("show")
@click.argument("id")
@_as_json
@click.pass_obj
def show_dead(found: Callable[[], JobQueue], id: str, as_json: bool) -> None:
    """Say all that is known of one, with its arguments and its traceback."""
    queue = found()
    tell(_ask(queue, lambda: queue.dead.show(queue.job(id).id)), as_json)


@dead.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All of them, or all of --priority and --tenant.")
@_priority
@_tenant
@_as_json
@click.pass_obj
def requeue(
    found: Callable[[], JobQueue],
    ids: Sequence[str],
    every: bool,
    priority: str | None,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Queue them again, as if they were new."""
    if bool(ids) == every:
        raise click.UsageError("name dead letters by their ids, or say --all")
    if ids and (priority or tenant):
        raise click.UsageError("--priority and --tenant go with --all: ids say which ones")
    queue = found()

    async def ask() -> tuple[int, list[str]]:
        if every:
            return await queue.dead.requeue(priority=priority, tenant=tenant), []
        missing = []
        for id in ids:
            with suppress(JobNotFound):
                await queue.dead.requeue(queue.job(id).id)
                continue
            missing.append(id)
        return len(ids) - len(missing), missing

    count, missing = _ask(queue, ask)
    say_count(count, "queued again", as_json)
    if missing:
        raise click.ClickException(f"there is no dead letter {', '.join(missing)}")


@dead.command("purge")
@_priority
@_tenant
@_yes
@_as_json
@click.pass_obj
def purge_dead(
    found: Callable[[], JobQueue], priority: str | None, tenant: str | None, yes: bool, as_json: bool
) -> None:
    """Throw dead letters away."""
    _require_yes(yes, f"all dead letters{_of(priority, tenant)}")
    queue = found()
    count = _ask(queue, lambda: queue.dead.purge(priority=priority, tenant=tenant))
    say_count(count, "purged", as_json)


# ---------------------------------------------------------------------- asking


def _ask(queue: JobQueue, ask: Callable[[], Awaitable[T]]) -> T:
    """The answer to *ask*, which needs an event loop.

    Raises:
        click.ClickException: There is no such job, or the server does not answer.
        click.UsageError: What was asked makes no sense.
    """

    async def asked() -> T:
        async with queue:
            return await ask()

    try:
        return asyncio.run(asked())
    except AdmissionError as error:
        raise click.ClickException(str(error)) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None


async def _with_now(queue: JobQueue, asked: Awaitable[T]) -> tuple[T, float]:
    """An answer, and the server's clock at that time."""
    return await asked, queue.now()


def _require_yes(yes: bool, what: str) -> None:
    if not yes:
        raise click.UsageError(f"this throws away {what}, for ever: say --yes as well")


def _of(priority: str | None, tenant: str | None) -> str:
    return (f" of class {priority}" if priority else "") + (f" of tenant {tenant}" if tenant else "")
