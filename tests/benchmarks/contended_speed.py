"""More callers than slots: how much of what the limit allows is really used."""

from __future__ import annotations

import statistics
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.benchmarks.apps import APPS, PHYSICAL_PATH, ROOM, WORK_SECONDS, WORKERS
from tests.benchmarks.contenders import Server, serving
from tests.benchmarks.load import Generator, generator
from tests.benchmarks.measure import interleaved, paired_ratio
from tests.benchmarks.report import Report

CONNECTIONS = 256

CANNOT_WAIT = {"slowapi", "bare, again", "bare, with our 4 header fields"}
"""Not in this benchmark: a rate limiter lets everything in at once, and bare needs no twins."""

PHYSICAL = "physical limit"


def measure_contended(report: Report) -> None:
    """256 connections, limit 8, 5 ms of asynchronous work."""
    plan = report.plan
    with generator() as (loader, load):
        about = f"{CONNECTIONS} connections, limit {WORKERS}, {WORK_SECONDS * 1000:g} ms of work; load by {loader}"
        report.begin("contended", about)
        names = [name for name in APPS if name not in CANNOT_WAIT]
        with serving(report, names, limit=WORKERS, queue=ROOM, work=True) as servers:
            seconds = plan.scaled(4, 1)
            contenders: dict[str, Callable[[], Load]] = {PHYSICAL: partial(_physical, servers["bare"], seconds)}
            for name, server in servers.items():
                if name != "bare":
                    contenders[name] = partial(_rate, server, load, seconds)
            found = interleaved(contenders, plan.scaled(max(1, plan.rounds // 2), 1), warm_up=plan.scaled(1, 0))
    rates = {name: [load.rate for load in loads] for name, loads in found.items()}
    used = {name: statistics.median(load.used for load in loads) for name, loads in found.items()}
    rows = [
        (name, statistics.median(rates[name]), paired_ratio(rates[name], rates[PHYSICAL]), used[name]) for name in found
    ]
    columns = ("contender", "useful/s", "÷ physical", "slots used")
    report.table("useful responses per second (median)", columns, rows)
    report.note(
        f"The physical limit: {WORKERS} coroutines in the server that do such work back to back, without HTTP. "
        "They all begin on a tick of the loop's timer, which counts in milliseconds; work that begins between two "
        "ticks takes up to a fifth longer, whatever stands in front of it. So the claim is about the share of the "
        "slots' time in which work ran: the rest is lost between the end of one request and the start of the next.\n"
        "uvicorn --limit-concurrency lets nobody wait: most get a 503. slowapi cannot hold anyone back at all."
    )
    report.at_least("contended: share of the slots' time in which work ran", used["admission"], 0.99)


@dataclass(frozen=True)
class Load:
    """What came of one round."""

    rate: float
    """Pieces of work done per second."""
    used: float
    """Of the slots' time, the share in which work ran."""


def _physical(server: Server, seconds: float) -> Load:
    url = f"http://127.0.0.1:{server.port}{PHYSICAL_PATH}?{seconds}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return Load(float(answer.read()), 1.0)


def _rate(server: Server, load: Generator, seconds: float) -> Load:
    worked, begun = server.worked_seconds(), time.perf_counter()
    rate = load(server.port, CONNECTIONS, seconds).rate
    worked, elapsed = server.worked_seconds() - worked, time.perf_counter() - begun
    return Load(rate, worked / (elapsed * WORKERS))
