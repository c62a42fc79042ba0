"""More callers than slots: how much of what the limit allows is really used."""

from __future__ import annotations

import statistics
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.benchmarks.apps import OURS_WITHOUT_FIELDS, PHYSICAL_PATH, ROOM, WORK_SECONDS, WORKERS
from tests.benchmarks.builds import OURS
from tests.benchmarks.contenders import Server, contenders, serving
from tests.benchmarks.load import Generator, generator
from tests.benchmarks.measure import interleaved, paired_ratio
from tests.benchmarks.report import Report

CONNECTIONS = 256

CANNOT_WAIT = ("slowapi", "bare, again", "bare, with our 4 header fields", OURS_WITHOUT_FIELDS)
"""Not in this benchmark: a rate limiter lets everything in at once, and nobody needs twins here."""

BACK_TO_BACK = "work back to back, no HTTP"
EXACTLY = f"bare, {WORKERS} connections"


def measure_contended(report: Report) -> None:
    """256 connections, limit 8, 5 ms of asynchronous work."""
    plan = report.plan
    with generator() as (loader, load):
        about = f"{CONNECTIONS} connections, limit {WORKERS}, {WORK_SECONDS * 1000:g} ms of work; load by {loader}"
        report.begin("contended", about)
        with serving(report, contenders(report, *CANNOT_WAIT), limit=WORKERS, queue=ROOM, work=True) as servers:
            seconds = plan.scaled(4, 1)
            bare = servers["bare"]
            measured: dict[str, Callable[[], Load]] = {
                BACK_TO_BACK: partial(_physical, bare, seconds),
                EXACTLY: partial(_rate, bare, load, seconds, connections=WORKERS),
            }
            for name, server in servers.items():
                if name != "bare":
                    measured[name] = partial(_rate, server, load, seconds)
            found = interleaved(measured, plan.scaled(max(1, plan.rounds // 2), 1), warm_up=plan.scaled(1, 0))
    rates = {name: [load.rate for load in loads] for name, loads in found.items()}
    used = {name: statistics.median(load.used for load in loads) for name, loads in found.items()}
    rows = [
        (
            name,
            statistics.median(rates[name]),
            paired_ratio(rates[name], rates[BACK_TO_BACK]),
            paired_ratio(rates[name], rates[EXACTLY]),
            statistics.median(load.work for load in found[name]) * 1000,
            used[name],
        )
        for name in found
    ]
    columns = ("contender", "useful/s", "÷ back to back", f"÷ {WORKERS} conn.", "work ms", "slots used")
    report.table("useful responses per second (median)", columns, rows)
    report.note(
        f"Three readings of 'the physical limit'. Back to back: {WORKERS} coroutines in the server do such work, one "
        f"piece after the other, without HTTP. {EXACTLY}: the same app with as many clients as slots, where nobody "
        "waits for anybody; a queue can only do better because its next request is there already. Slots used: the "
        "share of the slots' time in which work ran, however long it took: a loop's timer counts in milliseconds, so "
        "work that begins between two ticks takes up to a fifth longer.\n"
        "uvicorn --limit-concurrency lets nobody wait: most get a 503. slowapi cannot hold anyone back at all."
    )
    for limit, reached in (
        ("of back-to-back work without HTTP", paired_ratio(rates[OURS], rates[BACK_TO_BACK])),
        (f"of the bare app with {WORKERS} clients", paired_ratio(rates[OURS], rates[EXACTLY])),
        ("share of the slots' time in which work ran", used[OURS]),
    ):
        report.at_least(f"contended: {limit}", reached, 0.99)


@dataclass(frozen=True)
class Load:
    """What came of one round."""

    rate: float
    """Pieces of work done per second."""
    used: float
    """Of the slots' time, the share in which work ran."""
    work: float
    """Seconds one piece of work took."""


def _physical(server: Server, seconds: float) -> Load:
    url = f"http://127.0.0.1:{server.port}{PHYSICAL_PATH}?{seconds}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        rate = float(answer.read())
    return Load(rate, 1.0, WORKERS / rate)


def _rate(server: Server, load: Generator, seconds: float, connections: int = CONNECTIONS) -> Load:
    worked, pieces, begun = server.worked_seconds(), server.pieces_done(), time.perf_counter()
    rate = load(server.port, connections, seconds).rate
    worked, elapsed = server.worked_seconds() - worked, time.perf_counter() - begun
    return Load(rate, worked / (elapsed * WORKERS), worked / max(1, server.pieces_done() - pieces))
