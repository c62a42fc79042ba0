"""The server that keeps a shared pool, as the command line deals with it: started if it is ours, and looked at."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import click

from admission.backends.redis import RedisPool
from admission.backends.redis.address import masked
from admission.errors import AdmissionError

_EMBEDDED = "embedded"


@contextmanager
def serving_pool(shared: RedisPool | None) -> Iterator[str | None]:
    """The URL of the server that keeps *shared*, with ours running as long as the block lasts; None without a pool.

    The processes of `admission serve` use the private server as well, each by itself. Here it is started before
    them, once, so that what may be wrong with it is said once.

    Raises:
        click.ClickException: Ours does not start.
    """
    if shared is None or shared.url != _EMBEDDED:
        yield None if shared is None else shared.url
        return
    from admission.backends.redis.embedded import embedded

    try:
        server = embedded()
    except AdmissionError as error:
        raise click.ClickException(str(error)) from None
    with server:
        yield server.url


def tell_fitness(shared: RedisPool, width: int) -> bool:
    """Print what is to be said about the server that keeps *shared*; True if it fits.

    Raises:
        click.ClickException: It cannot be looked at: a package is missing, or ours does not start.
    """
    try:
        from admission.backends.redis.fitness import Level, examine
    except AdmissionError as error:
        raise click.ClickException(str(error)) from None
    with serving_pool(shared) as url:
        assert url is not None
        click.echo(f"{masked(url)}\n")
        findings = asyncio.run(examine(url, namespace=shared.namespace))
    for finding in findings:
        text = f"{finding.level.name.lower():8} {finding}"
        # Commands to copy stay in one piece.
        click.echo(
            textwrap.fill(text, width, subsequent_indent=" " * 9, break_on_hyphens=False, break_long_words=False)
        )
    worst = max(finding.level for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    if worst is Level.UNFIT:
        verdict = "The server does not fit."
    elif warnings:
        verdict = f"The server fits, with {warnings} warning{'s' if warnings > 1 else ''}."
    else:
        verdict = "The server fits."
    click.echo(f"\n{verdict}")
    return worst < Level.UNFIT
