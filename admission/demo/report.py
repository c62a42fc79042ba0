"""What the demo prints: the table of the classes, and whether server and clients counted the same."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from admission.demo.traffic import Tally
from admission.types import ClassSnapshot, Snapshot


def quantile(values: Sequence[float], q: float) -> float | None:
    """The nearest-rank quantile *q* (0 … 1), None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def table(snapshot: Snapshot, tallies: Mapping[str, Tally], *, elapsed: float, whole: bool = False) -> Table:
    """The state of every class, at most 80 columns wide.

    Args:
        elapsed: Seconds since the traffic began.
        whole: Average tokens per second over all of them, not over the last `TOKEN_WINDOW` seconds.
    """
    now = time.monotonic()
    out = Table(
        title=f"After {elapsed:.0f} s: {snapshot.in_flight} of {snapshot.limit} slots in use, "
        f"{snapshot.queued} of {snapshot.max_queue_size} places in line",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
    out.add_column("class", no_wrap=True)
    for heading in ("in flight", "queued", "wait p50", "wait p99", "tokens/s", "served", "refused"):
        out.add_column(heading, justify="right", no_wrap=True)
    for tier, tally in tallies.items():
        of_class = snapshot.of(tier)
        rate = tally.tokens / elapsed if whole else tally.rate(now)
        out.add_row(
            tier,
            str(of_class.in_flight),
            str(of_class.queued),
            _seconds(quantile(tally.waits, 0.5)),
            _seconds(quantile(tally.waits, 0.99)),
            f"{rate:.1f}",
            str(tally.served),
            str(tally.refused),
        )
    return out


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def disagreements(before: Snapshot, after: Snapshot, tallies: Mapping[str, Tally]) -> list[str]:
    """Where the clients and the server counted differently, in sentences; empty when all is well."""
    wrong = []
    for tier, tally in tallies.items():
        was, now = before.of(tier), after.of(tier)
        granted = now.granted - was.granted
        refused = _refusals(now) - _refusals(was)
        if tally.failed:
            wrong.append(f"{tier}: {tally.failed} of {tally.sent} requests failed")
        if tally.sent != tally.served + tally.refused + tally.failed:
            wrong.append(f"{tier}: {tally.sent} sent, but {tally.served} served and {tally.refused} refused")
        if granted != tally.served + tally.failed:
            wrong.append(f"{tier}: the server admitted {granted}, the clients got {tally.served} answers")
        if refused != tally.refused:
            wrong.append(f"{tier}: the server refused {refused}, the clients saw {tally.refused} refusals")
        if now.in_flight or now.queued:
            wrong.append(f"{tier}: {now.in_flight} slots and {now.queued} places in line were never given back")
    if not any(tally.served for tally in tallies.values()):
        wrong.append("nothing was served")
    return wrong


def _refusals(of_class: ClassSnapshot) -> int:
    return sum(of_class.rejected.values()) + sum(of_class.evicted.values())
