"""What `admission jobs` prints: sentences and tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime

import click
from rich.console import Console
from rich.table import Table

from admission.cli.options import WIDTH
from admission.cli.queue import whereabouts
from admission.jobs import ClassStats, DeadLetter, JobQueue, JobStats, JobStatus, TenantStats


def print_json(value: object) -> None:
    """An answer for programs."""
    click.echo(json.dumps(value, default=str, ensure_ascii=False))


def say_count(count: int, done: str, as_json: bool) -> None:
    """How many jobs something was done to."""
    if as_json:
        print_json({"count": count})
    else:
        click.echo(f"{count:,} job{'' if count == 1 else 's'} {done}.")


def say_paused(priority: str | None, paused: bool, as_json: bool) -> None:
    """What a pause, or its end, means."""
    if as_json:
        print_json({"priority": priority, "paused": paused})
        return
    which = f"jobs of class {priority}" if priority else "jobs"
    click.echo(f"No {which} start until resume." if paused else f"{which.capitalize()} start again.")


def tell(record: JobStatus | DeadLetter, as_json: bool) -> None:
    """A record, one line for each thing that is known."""
    values = asdict(record)
    if as_json:
        print_json(values)
        return
    traceback = values.pop("traceback", "")
    names = [field.name for field in fields(record) if field.name in values]
    known = {name: text for name in names if (text := _text(name, values[name]))}
    width = max(map(len, known))
    for name, text in known.items():
        click.echo(f"{name.replace('_', ' '):{width}}  {_plain(text)}")
    if traceback:
        click.echo(f"\n{_plain(traceback.rstrip())}")


def _text(name: str, value: object) -> str:
    """A value for people; empty when there is nothing to say."""
    match value:
        case None | "":
            return ""
        case float() if name.endswith("_at"):
            return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        case Mapping():
            return json.dumps(value, ensure_ascii=False) if value else ""
        case 0 if name == "position":
            return ""
    return str(value)


def _print(headings: Mapping[str, bool], rows: Iterable[Sequence[str]]) -> None:
    """A table; True stands for columns of numbers."""
    table = Table(box=None, pad_edge=False)
    for heading, is_number in headings.items():
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    # No markup: a tenant may be called [red].
    Console(width=WIDTH, markup=False, highlight=False, emoji=False).print(table)


def print_jobs(listed: Sequence[JobStatus], now: float) -> None:
    """Jobs, a line each."""
    headings = {"id": False, "task": False, "class": False, "tenant": False, "attempts": True, "age": True}
    _print(
        headings,
        (
            (each.id, each.task, each.priority, each.tenant or "-", str(each.attempts), _age(now - each.enqueued_at))
            for each in listed
        ),
    )


def print_letters(letters: Sequence[DeadLetter], now: float) -> None:
    """Dead letters, a line each."""
    headings = {"id": False, "task": False, "tenant": False, "kind": False, "error": False, "age": True}
    _print(
        headings,
        (
            (each.id, each.task, each.tenant or "-", each.kind.value, each.error, _age(now - each.died_at))
            for each in letters
        ),
    )


def print_stats(queue: JobQueue, numbers: JobStats) -> None:
    """How the queue stands, at 80 columns."""
    where = whereabouts(queue)
    _say(f"{where[0].upper()}{where[1:]}: {_counted(numbers.workers, 'worker process', 'worker processes')}.")
    if numbers.paused:
        _say("Everything is paused: no job starts until resume.")
    _say(
        f"Now: {numbers.queued:,} queued, {numbers.delayed:,} delayed, {numbers.running:,} running, "
        f"{_counted(numbers.dead, 'dead letter')}, {_counted(numbers.kept, 'result')} kept."
    )
    _say(
        f"In all: {numbers.enqueued_total:,} enqueued, {numbers.succeeded_total:,} succeeded, "
        f"{_counted(numbers.failed_total, 'attempt')} failed, {numbers.retried_total:,} retried, "
        f"{numbers.handed_back_total:,} handed back, {numbers.redelivered_total:,} delivered again after a death, "
        f"{numbers.dead_total:,} dead, {_counted(numbers.stale_total, 'late report')} refused."
    )
    click.echo()
    counts = {"queued": True, "delayed": True, "running": True, "oldest": True}
    _print({"class": False, **counts, "": False}, map(_class_row, numbers.classes))
    if numbers.tenants:
        click.echo()
        headings = {"tenant": False, "class": False, "queued": True, "running": True}
        _print(headings, map(_tenant_row, numbers.tenants))


def _say(sentence: str) -> None:
    click.echo(textwrap.fill(sentence, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False))


def _class_row(each: ClassStats) -> tuple[str, ...]:
    oldest = _age(each.oldest_age) if each.queued else "-"
    numbers = (f"{number:,}" for number in (each.queued, each.delayed, each.running))
    return (each.name, *numbers, oldest, "paused" if each.paused else "")


def _tenant_row(each: TenantStats) -> tuple[str, ...]:
    return each.tenant or "-", each.priority, f"{each.queued:,}", f"{each.running:,}"


def _counted(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def _age(value: float) -> str:
    """`4 s`, `12 min`, `3 h`, `2 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{math.floor(value / size)} {unit}"
    return f"{max(0, math.floor(value))} s"


def _plain(text: str) -> str:
    """*text* without what would steer a terminal: names and errors come from whoever enqueues."""
    return "".join(each if each.isprintable() or each == "\n" else f"\\x{ord(each):02x}" for each in text)
