"""More callers than slots: how much of what the limit allows is really used."""

from __future__ import annotations

import statistics
import urllib.request
from collections.abc import Callable
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
            contenders: dict[str, Callable[[], float]] = {PHYSICAL: partial(_physical, servers["bare"], seconds)}
            for name, server in servers.items():
                if name != "bare":
                    contenders[name] = partial(_rate, server, load, seconds)
            found = interleaved(contenders, plan.scaled(max(1, plan.rounds // 2), 1), warm_up=plan.scaled(1, 0))
    nominal = WORKERS / WORK_SECONDS
    rows = [
        (name, statistics.median(rates), paired_ratio(rates, found[PHYSICAL]), statistics.median(rates) / nominal)
        for name, rates in found.items()
    ]
    columns = ("contender", "useful/s", "÷ physical", f"÷ {nominal:,.0f}/s")
    report.table("useful responses per second (median)", columns, rows)
    report.note(
        f"The physical limit: {WORKERS} coroutines in the server that do such work back to back, without HTTP.\n"
        "uvicorn --limit-concurrency lets nobody wait: most get a 503. slowapi cannot hold anyone back at all."
    )
    report.at_least("contended: throughput ÷ physical limit", paired_ratio(found["admission"], found[PHYSICAL]), 0.99)


def _physical(server: Server, seconds: float) -> float:
    url = f"http://127.0.0.1:{server.port}{PHYSICAL_PATH}?{seconds}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return float(answer.read())


def _rate(server: Server, load: Generator, seconds: float) -> float:
    return load(server.port, CONNECTIONS, seconds).rate
