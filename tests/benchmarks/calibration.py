"""How fast this machine is next to the one on which the targets were set: figures in absolute terms need that."""

from __future__ import annotations

from functools import partial

from tests.benchmarks.builds import OURS, twins
from tests.benchmarks.executor_speed import tasks_per_second
from tests.benchmarks.http_speed import one_request
from tests.benchmarks.measure import interleaved, lower_quartile, upper_quartile
from tests.benchmarks.report import Report

TASKS_THERE = 335_000
"""`create_task` + `await` per second of CPU time on asyncio, on the machine of the targets."""
REQUEST_THERE = 20.3
"""Microseconds of CPU time for a request to a bare app on uvicorn there, sockets included."""

THROUGH_UVICORN = "through uvicorn, GET, fields as curl's"


def calibrate(report: Report) -> None:
    """Nothing of ours: tasks of asyncio, and a bare app behind uvicorn."""
    plan = report.plan
    report.begin("calibration", "nothing of ours: what this machine does, and what that of the targets did")
    with twins(plan.compiled) as by_name:
        call = by_name[OURS].call
        contenders = {"tasks": partial(call, tasks_per_second, plan.scaled(40_000, 1280))}
        try:
            import httptools  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            report.missing("a bare request", f"cannot be imported here ({error})")
        else:
            contenders["request"] = partial(call, one_request, THROUGH_UVICORN, "bare", plan.scaled(1000, 100))
        found = interleaved(contenders, plan.rounds)
    tasks = upper_quartile(found["tasks"])
    rows: list[tuple[str, float, float, float]] = [("create_task + await /s", tasks, TASKS_THERE, tasks / TASKS_THERE)]
    if "request" in found:
        request = lower_quartile(found["request"])
        what = "a request to a bare app, µs (here without sockets, there with)"
        rows.append((what, request, REQUEST_THERE, REQUEST_THERE / request))
    report.table("calibration", ("what", "here", "there", "speed here ÷ there"), rows)
