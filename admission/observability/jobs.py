"""Prometheus metrics of durable jobs, read at scrape time.

    jobs_collector = JobsCollector(jobs, workers=[worker])
    prometheus_client.REGISTRY.register(jobs_collector)

A scrape never waits for the server of the jobs: it shows the queue as it was last heard of, and has it asked anew for
the next scrape, at most every few seconds. `jobs_stats_age_seconds` says how old the numbers are.

The queue is one, whoever is scraped: of its numbers take the `max` over the processes, never the sum. What a worker has
done is told by its own process: take the `sum`. The HELP of each says which. The share of attempts that were a success
is `rate(jobs_processed_total{outcome="success"}) / rate(jobs_processed_total)`.

Needs the extra `metrics` (`prometheus_client`).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from admission.errors import NotRunning, Unavailable
from admission.observability.families import Series, add_histogram
from admission.types import within

if TYPE_CHECKING:
    from admission.jobs.status import WorkerStatus
    from admission.jobs.types import JobStats

__all__ = ["JobsCollector"]

logger = logging.getLogger("admission.jobs")


class Queue(Protocol):
    """What is asked: a `JobQueue`."""

    @property
    def pool(self) -> str:
        """Name of its pool."""

    async def stats(self) -> JobStats:
        """Its numbers. Raises Unavailable."""


class Worker(Protocol):
    """Who works here: a `Worker` of jobs."""

    def status(self) -> WorkerStatus:
        """What it has done."""


_QUEUE = " Of the whole queue: take the max."
_OWN = " By this process: take the sum."

_CLASS_GAUGES = (
    Series("queued", "Jobs that are ready and wait.", lambda c: c.queued),
    Series("delayed", "Jobs that are not due yet.", lambda c: c.delayed),
    Series("running", "Jobs that workers have.", lambda c: c.running),
    Series("oldest_age_seconds", "Age of the job that has waited longest.", lambda c: c.oldest_age),
    Series("class_paused", "1 while no job of the class is started.", lambda c: int(c.paused)),
)
_QUEUE_GAUGES = (
    Series("dead_letters", "Jobs that failed for good and are kept.", lambda s: s.dead),
    Series("results_kept", "Results that are kept.", lambda s: s.kept),
    Series("worker_processes", "Processes that have jobs, or want some.", lambda s: s.workers),
    Series("paused", "1 while no job is started.", lambda s: int(s.paused)),
)
_QUEUE_COUNTERS = (
    Series("enqueued", "Jobs taken in.", lambda s: s.enqueued_total),
    Series("retried", "Attempts that failed and come back.", lambda s: s.retried_total),
    Series("handed_back", "Deliveries that were given back unrun.", lambda s: s.handed_back_total),
    Series("redelivered", "Deliveries after the death of a process.", lambda s: s.redelivered_total),
    Series("dead", "Jobs that failed for good.", lambda s: s.dead_total),
    Series("stale_reports", "Reports that were refused: the job had been delivered anew.", lambda s: s.stale_total),
)
_WORKER_GAUGES = (
    Series("up", "1 while the worker takes jobs.", lambda w: int(w.is_running)),
    Series("places", "Jobs it may have at once.", lambda w: w.workers),
    Series("active", "Jobs it has.", lambda w: w.active),
    Series("utilisation_ratio", "Jobs it has by those it may have.", lambda w: w.active / w.workers),
    Series("idle_permits", "Slots of the pool it holds without a job.", lambda w: w.permits),
    Series("waiting_permits", "Its tickets in the line of the pool.", lambda w: w.asked),
    Series("thread_pool_size", "Threads there may be.", lambda w: w.threads),
    Series("threads_busy", "Threads that run a job.", lambda w: w.threads_busy),
    Series("thread_pool_utilisation_ratio", "Busy threads by all.", lambda w: w.thread_pool_utilisation),
)
_WORKER_COUNTERS = (
    Series("taken", "Deliveries it got.", lambda w: w.taken),
    Series("retries", "Attempts of its that failed and come back.", lambda w: w.retried),
    Series("timeouts", "Attempts that took too long.", lambda w: w.timeouts),
    Series("buried", "Jobs it sent to the dead letters.", lambda w: w.buried),
    Series("cancelled", "Jobs it ended because they were cancelled.", lambda w: w.cancelled),
    Series("handed_back", "Jobs it gave back unfinished.", lambda w: w.handed_back),
    Series("stale_reports", "Reports of its that were refused.", lambda w: w.stale),
    Series("callbacks", "Callbacks and webhooks it enqueued.", lambda w: w.callbacks),
    Series("thread_pool_exhausted", "How often a job found no free thread.", lambda w: w.thread_pool_exhausted),
)
_WORKER_HISTOGRAMS = (
    Series("wait_time_seconds", "Time from enqueueing to the first start.", lambda w: w.wait),
    Series("run_time_seconds", "Time an attempt ran.", lambda w: w.run),
)


class JobsCollector(Collector):
    """A `prometheus_client` collector of one queue of jobs, and of the workers in this process.

    `namespace="tinyllm"` gives `tinyllm_jobs_queued`, `tinyllm_job_worker_run_time_seconds` and so on. Every series has
    the label `pool`; those of workers have `worker`, the worker's name.

    Args:
        jobs: The queue.
        workers: Those of this process.
        namespace: First word of every metric's name.
        every: Seconds between two questions to the server at least; 0.1 to 300.

    Raises:
        ValueError: *namespace* is no metric name, or *every* is outside its range.
    """

    def __init__(
        self, jobs: Queue, *, workers: Iterable[Worker] = (), namespace: str = "admission", every: float = 5.0
    ) -> None:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", namespace):
            raise ValueError(f"namespace is {namespace!r}: it must be a letter or '_', then letters, digits and '_'")
        within("every", every, 0.1, 300)
        self.namespace = namespace
        self._jobs = jobs
        self._workers = list(workers)
        self._every = every
        self._stats: JobStats | None = None
        self._seen_at = 0.0
        self._asked_at = float("-inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking: asyncio.Task[None] | None = None
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()

    def add(self, worker: Worker) -> None:
        """Show *worker* from the next scrape on; one that is shown already stays once."""
        if not any(known is worker for known in self._workers):
            self._workers.append(worker)

    async def refresh(self) -> None:
        """Ask the server now, so that the next scrape shows how things stand.

        Raises:
            Unavailable: It does not answer.
        """
        self._loop = asyncio.get_running_loop()
        self._asked_at = time.monotonic()
        self._stats = await self._jobs.stats()
        self._seen_at = time.monotonic()

    def describe(self) -> Iterable[Metric]:
        """The families without a sample: a registry compares their names and refuses a second collector."""
        return [*self._of_queue(None), *self._of_workers(())]

    def collect(self) -> Iterable[Metric]:
        """What is known now. Call it on the event loop of the jobs; from a thread, a histogram may be a count off.

        Raises:
            ValueError: Two workers have the same name.
        """
        self._have_it_asked()
        statuses = [worker.status() for worker in self._workers]
        names = [status.name for status in statuses]
        if len(set(names)) < len(names):
            raise ValueError(f"worker names {names} are not distinct: give each its own name=")
        return [*self._of_queue(self._stats), *self._of_workers(statuses)]

    # ------------------------------------------------------------------ to know

    def _have_it_asked(self) -> None:
        """See to it that the next scrape knows more. Does not wait, and needs not be on the loop."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # A thread reads, or a script: then it is the loop where it was used last.
            if self._loop is not None:
                with suppress(RuntimeError):  # That one is closed.
                    self._loop.call_soon_threadsafe(self._ask)
            return
        self._ask()

    def _ask(self) -> None:
        asking = self._asking is not None and not self._asking.done()
        if self._loop is None or asking or time.monotonic() - self._asked_at < self._every:
            return
        self._asked_at = time.monotonic()
        self._asking = self._loop.create_task(self._try_to_refresh(), name="admission job metrics")

    async def _try_to_refresh(self) -> None:
        try:
            await self.refresh()
        except (Unavailable, NotRunning) as error:
            logger.debug("the metrics of jobs are as old as they were: %s", error)

    # ------------------------------------------------------------------ as metrics

    def _of_queue(self, stats: JobStats | None) -> list[Metric]:
        prefix, pool = f"{self.namespace}_jobs_", self._jobs.pool
        families: list[Metric] = []
        for series in _CLASS_GAUGES:
            by_class = GaugeMetricFamily(prefix + series.name, series.help + _QUEUE, labels=("pool", "priority"))
            for each in stats.classes if stats is not None else ():
                by_class.add_metric([pool, each.name], series.read(each))
            families.append(by_class)
        for series in _QUEUE_GAUGES:
            gauge = GaugeMetricFamily(prefix + series.name, series.help + _QUEUE, labels=("pool",))
            if stats is not None:
                gauge.add_metric([pool], series.read(stats))
            families.append(gauge)
        for series in _QUEUE_COUNTERS:
            counter = CounterMetricFamily(prefix + series.name, series.help + _QUEUE, labels=("pool",))
            if stats is not None:
                counter.add_metric([pool], series.read(stats))
            families.append(counter)
        processed = CounterMetricFamily(
            prefix + "processed", "Attempts that ended, by outcome." + _QUEUE, labels=("pool", "outcome")
        )
        seen = GaugeMetricFamily(prefix + "stats_age_seconds", "Age of what is said of the queue.", labels=("pool",))
        if stats is not None:
            processed.add_metric([pool, "success"], stats.succeeded_total)
            processed.add_metric([pool, "failure"], stats.failed_total)
            seen.add_metric([pool], time.monotonic() - self._seen_at)
        return [*families, processed, seen]

    def _of_workers(self, statuses: Sequence[WorkerStatus]) -> list[Metric]:
        prefix, pool, labels = f"{self.namespace}_job_worker_", self._jobs.pool, ("pool", "worker")
        families: list[Metric] = []
        for series in _WORKER_GAUGES:
            gauge = GaugeMetricFamily(prefix + series.name, series.help + _OWN, labels=labels)
            for status in statuses:
                gauge.add_metric([pool, status.name], series.read(status))
            families.append(gauge)
        for series in _WORKER_COUNTERS:
            counter = CounterMetricFamily(prefix + series.name, series.help + _OWN, labels=labels)
            for status in statuses:
                counter.add_metric([pool, status.name], series.read(status))
            families.append(counter)
        for series in _WORKER_HISTOGRAMS:
            histogram = HistogramMetricFamily(prefix + series.name, series.help + _OWN, labels=labels)
            for status in statuses:
                add_histogram(histogram, [pool, status.name], series.read(status))
            families.append(histogram)
        processed = CounterMetricFamily(
            prefix + "processed", "Attempts that ended, by outcome." + _OWN, labels=(*labels, "outcome")
        )
        for status in statuses:
            processed.add_metric([pool, status.name, "success"], status.succeeded)
            processed.add_metric([pool, status.name, "failure"], status.failed)
        return [*families, processed]
