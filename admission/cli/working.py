"""One worker process: it runs a worker until it is told to stop.

    python -m admission.cli.working PLAN

is how `admission worker` starts those it looks after. Its standard input is a pipe that says nothing: when it ends, the
process that looked after this one is gone, and this one stops in order, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from admission.cli.queue import find_queue
from admission.cli.worker_plan import WorkerPlan
from admission.config import Settings, serve_metrics
from admission.jobs.worker import Worker
from admission.observability.logging import configure_logging

_log = logging.getLogger("admission.jobs")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one process is to do."""

    name: str
    plan: WorkerPlan
    ports: int = 1
    """Ports to try for metrics: one for each process that may have the first."""

    def to_json(self) -> str:
        """For the command line of the process."""
        return json.dumps({"name": self.name, "plan": self.plan.model_dump(), "ports": self.ports})

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        """What `to_json` wrote."""
        said = json.loads(text)
        return cls(name=said["name"], plan=WorkerPlan(**said["plan"]), ports=said["ports"])


def work(assignment: Assignment, *, looked_after: bool = False) -> None:
    """Run a worker in this process until SIGTERM or SIGINT; a second one ends the process where it stands.

    Args:
        looked_after: Standard input is a pipe of the process that started this one; its end ends this one, too.
    """
    plan = assignment.plan
    configure_logging(plan.log_format)
    jobs = find_queue(plan.jobs)
    worker = Worker(
        jobs,
        workers=plan.workers,
        threads=plan.threads,
        tenants=plan.tenants,
        steal=plan.steals_from,
        grace=plan.grace,
        name=f"{assignment.name}-{os.getpid()}" if assignment.name else None,
    )

    async def run() -> None:
        stop = asyncio.Event()
        _heed_signals(stop)
        if looked_after:
            _heed_parent(stop)
        async with jobs:
            if plan.metrics_port is not None:
                _serve_metrics(Settings(metrics_port=plan.metrics_port), worker, tries=assignment.ports)
            await worker.run(stop)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run())
    if stuck := worker.status().threads_busy:
        # Python would wait for them for ever. What ran there was handed back.
        _log.warning("ended with %d threads in which functions still ran", stuck)
        logging.shutdown()
        os._exit(0)


def _serve_metrics(settings: Settings, worker: Worker, tries: int) -> None:
    """Those of the pool, of the jobs, and of this process."""
    from admission.observability.jobs import JobsCollector

    of_jobs = JobsCollector(worker.jobs, workers=[worker], namespace=settings.metrics_namespace)
    serve_metrics(settings, worker.controller, also=[of_jobs], tries=tries)


def _heed_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def heard(number: signal.Signals) -> None:
        if not stop.is_set():
            _log.info("%s: no more jobs are taken; a second signal ends this at once", number.name)
            stop.set()
            return
        # Not by leaving: threads that do not end would hold this up. The jobs are delivered again after the lease.
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, heard, number)


def _heed_parent(stop: asyncio.Event) -> None:
    """Stop when the pipe that is this process's input ends."""
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, heard)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    work(Assignment.from_json(sys.argv[1]), looked_after=True)
