"""Prometheus metrics of pools and executors, read at scrape time.

    collector = PoolCollector(controller, executors=[executor])
    prometheus_client.REGISTRY.register(collector)      # or serve it as admission.observability.exposition
    does

Nothing is counted here: the pool counts for itself, and a scrape turns one `Snapshot` into metrics, so
requests pay nothing. Every series carries the label `pool`. Counters exist from the start, at zero, for every
reason there is, so that `rate()` sees the first refusal.

`queue_size` has, besides one series per class, `priority="all"` with the sum; leave it out of a
`sum by (pool)`.

Where several processes share a pool, each of them is scraped. What stands in the pool (slots, line, limit, tenants) is
told by each for the whole pool, as it last heard of it: take the `max` over the processes, never the sum. What happened
(every counter and histogram) is told by each for its own requests: take the `sum`. The HELP of each says which.

Needs the extra `metrics` (`prometheus_client`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from admission.observability.families import Series, add_histogram
from admission.observability.lag import LoopLag
from admission.observability.tenants import OTHER, TenantTotal, TenantTotals
from admission.types import ClassSnapshot, HistogramSnapshot, Outcome, Reason, Snapshot, within

_REJECTED = tuple(reason for reason in Reason if reason.startswith("rejected-"))
_EVICTED = tuple(reason for reason in Reason if reason.startswith("evicted-"))


class Pool(Protocol):
    """What is scraped: an `AdmissionController`, or anything else with a `Snapshot` to show."""

    def snapshot(self) -> Snapshot: ...


class Middleware(Protocol):
    """A `QoSAdmission`: its pool, and what it noticed about requests as a dataclass of counts."""

    @property
    def controller(self) -> Pool: ...
    @property
    def counts(self) -> object: ...


class Executor(Protocol):
    """A `QueuedExecutor`, or anything else whose status has the attributes of an `ExecutorStatus`."""

    def get_status(self) -> object: ...


_STANDS = " In a shared pool that of all processes: take the max."
_HAPPENED = " In a shared pool that of this process: take the sum."

_CLASS_GAUGES = (
    Series("queue_lobby_size", "Callers waiting for room in the line.", lambda c: c.lobby),
    Series("queue_oldest_wait_seconds", "Wait so far of the oldest waiter.", lambda c: c.oldest_wait),
    Series("queue_predicted_wait_seconds", "Wait a newcomer can expect.", lambda c: c.predicted_wait),
    Series("in_flight_slots", "Slots held.", lambda c: c.in_flight),
    Series("slot_cap", "Slots the class's ceiling lets it hold.", lambda c: c.slot_cap),
    Series("class_paused", "1 while the class may start nothing.", lambda c: int(c.paused)),
)
_CLASS_COUNTERS = (
    Series("queue_requests", "Requests that arrived.", lambda c: c.offered),
    Series("queue_requests_granted", "Requests that were let in.", lambda c: c.granted),
    Series("queue_requests_granted_at_once", "Those let in without waiting.", lambda c: c.granted_at_once),
)
_CLASS_HISTOGRAMS = (
    Series("queue_wait_time_seconds", "Time in line of requests that were let in.", lambda c: c.wait),
    Series("run_time_seconds", "Time between being let in and the end.", lambda c: c.run),
    Series("queue_position", "Position on arrival of requests that had to wait.", lambda c: c.position),
    Series("queue_prediction_ratio", "Predicted wait divided by the actual one.", lambda c: c.prediction),
)
_POOL_GAUGES = (
    Series("queue_active_workers", "Requests running.", lambda s: sum(c.running for c in s.classes)),
    Series("queue_max_size", "Room in the line; 0 is unlimited.", lambda s: s.max_queue_size),
    Series("limit_slots", "Slots that may be in use now.", lambda s: s.limit),
    Series("utilisation_ratio", "Slots in use divided by the limit.", lambda s: s.utilisation),
    Series("drain_rate", "Grants per second while someone waits.", lambda s: s.drain_rate),
    Series("paused", "1 while the pool starts nothing.", lambda s: int(s.paused)),
    Series("tenants_active", "Tenants with something waiting or running.", lambda s: s.tenants_active),
)
_DRAINING = Series("draining", "1 while this process takes no one in.", lambda s: int(s.draining))
_SHARED_POOL_GAUGES = (
    Series("pool_processes", "Processes that share the pool.", lambda s: len(s.processes)),
    Series("pool_over_limit_slots", "Slots in use beyond the limit.", lambda s: s.link.over_limit),
)
_LINK_GAUGES = (Series("link_largest_batch", "Most operations a call has carried.", lambda s: s.link.largest_batch),)
_LINK_COUNTERS = (
    Series("link_calls", "Calls of the script.", lambda s: s.link.calls),
    Series("link_operations", "Operations they carried.", lambda s: s.link.operations),
    Series("link_failures", "Calls that brought no reply.", lambda s: s.link.failures),
    Series("link_timeouts", "Those of them that took too long.", lambda s: s.link.timeouts),
    Series("link_reconnects", "Times the channel of messages was subscribed anew.", lambda s: s.link.reconnects),
    Series("link_resyncs", "Times everything was told to the pool anew.", lambda s: s.link.resyncs),
    Series("link_lease_renewals", "Times the lease was renewed.", lambda s: s.link.lease_renewals),
    Series("link_lease_failures", "Times it could not be.", lambda s: s.link.lease_failures),
    Series("link_stale_releases", "Releases of slots that had gone to others.", lambda s: s.link.stale),
)
_BREAKER_STATES = ("closed", "probing", "open")
_EXECUTOR_GAUGES = (
    Series("healthy", "1 while the executor runs and its workers work.", lambda e: int(e.is_healthy)),
    Series("workers", "Workers there are.", lambda e: e.workers),
    Series("active_workers", "Workers that run a task.", lambda e: e.active_workers),
    Series("max_workers", "Workers there may be.", lambda e: e.max_workers),
    Series("tasks_retrying", "Tasks between two attempts.", lambda e: e.retrying),
    Series("dead_letters", "Tasks that failed for good and are kept.", lambda e: e.dead_letters),
    Series("thread_pool_size", "Threads there may be.", lambda e: e.thread_pool_size),
    Series("threads_busy", "Threads that run a task.", lambda e: e.threads_busy),
    Series("thread_pool_utilisation_ratio", "Busy threads by all.", lambda e: e.thread_pool_utilisation),
)
_EXECUTOR_COUNTERS = (
    Series("tasks_submitted", "Tasks handed in.", lambda e: e.submitted),
    Series("attempts", "Attempts started, retries included.", lambda e: e.started),
    Series("retries", "Attempts after the first.", lambda e: e.retried),
    Series("thread_pool_exhausted", "How often a task found no free thread.", lambda e: e.thread_pool_exhausted),
    Series("callback_errors", "Callbacks that raised.", lambda e: e.callback_errors),
)
_TASK_OUTCOMES = ("completed", "failed", "timed_out", "cancelled", "refused")


class PoolCollector(Collector):
    """A `prometheus_client` collector over one or more pools and executors.

    Register it once per namespace and `add()` further pools to it. `namespace="tinyllm"` gives
    `tinyllm_queue_size`, `tinyllm_queue_wait_time_seconds`, `tinyllm_queue_requests_total` and so on.

    Args:
        pools: Controllers to read; their names must differ, for the name is the label `pool`.
        executors: `QueuedExecutor`s whose workers are shown too.
        namespace: First word of every metric's name.
        tenants: The busiest tenants that get series of their own, 0 … 1000; all others are `other`. 0: no tenant
            is named. A pool knows no more of them than its own `top_tenants`. Clients may be able to choose
            tenants, and every series costs memory here and at Prometheus.
        lag: Sampler of the event loop's lag. The first scrape on an event loop starts it there.

    Raises:
        ValueError: *namespace* is no metric name, or *tenants* is out of its range.
    """

    def __init__(
        self,
        *pools: Pool,
        executors: Iterable[Executor] = (),
        namespace: str = "admission",
        tenants: int = 0,
        lag: LoopLag | None = None,
    ) -> None:
        if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", namespace):
            raise ValueError(f"namespace is {namespace!r}: it must be a letter or '_', then letters, digits and '_'")
        within("tenants", tenants, 0, 1000)
        self.namespace = namespace
        self._tenants = tenants
        self.lag = lag if lag is not None else LoopLag()
        self._pools = list(pools)
        self._executors = list(executors)
        self._middlewares: list[Middleware] = []

    def add(self, pool: Pool) -> None:
        """Show *pool* from the next scrape on; a pool that is shown already stays once."""
        if not any(known is pool for known in self._pools):
            self._pools.append(pool)

    def watch(self, middleware: Middleware) -> None:
        """Show a middleware's pool, and what it noticed: unknown classes, unknown keys, clients' retries …"""
        if not any(known is middleware for known in self._middlewares):
            self._middlewares.append(middleware)

    def describe(self) -> Iterable[Metric]:
        """The families without a sample: a registry compares their names and refuses a second collector."""
        return self._families([], {}, [], [])

    def collect(self) -> Iterable[Metric]:
        """Read every pool once. Call it on the pools' event loop, or use `start_metrics_server`.

        Raises:
            ValueError: Two pools, or two executors, have the same name.
        """
        with suppress(RuntimeError):  # No loop runs here, as when a script reads a registry: there is no lag.
            self.lag.start()
        read = [(pool, pool.snapshot()) for pool in self._all_pools()]
        snapshots = [snapshot for _, snapshot in read]
        _require_distinct("pool", [snapshot.pool for snapshot in snapshots])
        executors = [executor.get_status() for executor in self._executors]
        _require_distinct("executor", [_name(status) for status in executors])
        totals = {snapshot.pool: _tenant_totals(pool) for pool, snapshot in read}
        return self._families(snapshots, totals, executors, self._middlewares)

    def _all_pools(self) -> list[Pool]:
        pools = list(self._pools)
        for middleware in self._middlewares:
            # Asked for every time: a middleware that is started again has a new one.
            if not any(known is middleware.controller for known in pools):
                pools.append(middleware.controller)
        return pools

    def _families(
        self,
        snapshots: Sequence[Snapshot],
        totals: Mapping[str, Mapping[str, TenantTotal]],
        executors: Sequence[object],
        middlewares: Sequence[Middleware],
    ) -> list[Metric]:
        prefix = f"{self.namespace}_"
        return [
            _queue_size(prefix, snapshots),
            *(_class_gauge(prefix, series, snapshots) for series in _CLASS_GAUGES),
            *(_class_counter(prefix, series, snapshots) for series in _CLASS_COUNTERS),
            *_reason_counters(prefix, snapshots),
            _finished(prefix, snapshots),
            *(_class_histogram(prefix, series, snapshots) for series in _CLASS_HISTOGRAMS),
            *(_pool_gauge(prefix, series, snapshots, _STANDS) for series in _POOL_GAUGES),
            _pool_gauge(prefix, _DRAINING, snapshots),
            *_tenant_gauges(prefix, snapshots, self._tenants),
            *_tenant_counters(prefix, totals),
            _noticed(prefix, middlewares),
            *_link_families(prefix, [snapshot for snapshot in snapshots if snapshot.link is not None]),
            *_executor_families(f"{prefix}executor_", executors),
            self._loop_lag(prefix),
        ]

    def _loop_lag(self, prefix: str) -> Metric:
        family = HistogramMetricFamily(
            prefix + "event_loop_lag_seconds", "How late the event loop runs what is due.", labels=()
        )
        add_histogram(family, [], self.lag.snapshot())
        return family


def _require_distinct(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{kind} names {list(names)} are not distinct: give each its own name=")


def _each_class(snapshots: Iterable[Snapshot]) -> Iterator[tuple[list[str], ClassSnapshot]]:
    for snapshot in snapshots:
        for found in snapshot.classes:
            yield [snapshot.pool, found.name], found


def _queue_size(prefix: str, snapshots: Iterable[Snapshot]) -> Metric:
    family = GaugeMetricFamily(prefix + "queue_size", "Requests in line." + _STANDS, labels=("pool", "priority"))
    for labels, found in _each_class(snapshots):
        family.add_metric(labels, found.queued)
    for snapshot in snapshots:
        family.add_metric([snapshot.pool, "all"], snapshot.queued)
    return family


def _class_gauge(prefix: str, series: Series, snapshots: Iterable[Snapshot]) -> Metric:
    family = GaugeMetricFamily(prefix + series.name, series.help + _STANDS, labels=("pool", "priority"))
    for labels, found in _each_class(snapshots):
        if (value := series.read(found)) is not None:
            family.add_metric(labels, value)
    return family


def _class_counter(prefix: str, series: Series, snapshots: Iterable[Snapshot]) -> Metric:
    family = CounterMetricFamily(prefix + series.name, series.help + _HAPPENED, labels=("pool", "priority"))
    for labels, found in _each_class(snapshots):
        family.add_metric(labels, series.read(found) or 0)
    return family


def _class_histogram(prefix: str, series: Series, snapshots: Iterable[Snapshot]) -> Metric:
    family = HistogramMetricFamily(prefix + series.name, series.help + _HAPPENED, labels=("pool", "priority"))
    for labels, found in _each_class(snapshots):
        histogram = series.read(found)
        assert isinstance(histogram, HistogramSnapshot)
        add_histogram(family, labels, histogram)
    return family


def _pool_gauge(prefix: str, series: Series, snapshots: Iterable[Snapshot], scope: str = "") -> Metric:
    family = GaugeMetricFamily(prefix + series.name, series.help + scope, labels=("pool",))
    for snapshot in snapshots:
        if (value := series.read(snapshot)) is not None:
            family.add_metric([snapshot.pool], value)
    return family


def _reason_counters(prefix: str, snapshots: Iterable[Snapshot]) -> tuple[Metric, Metric]:
    labels = ("pool", "priority", "reason")
    rejected = CounterMetricFamily(
        prefix + "queue_requests_rejected", "Requests refused on arrival." + _HAPPENED, labels=labels
    )
    evicted = CounterMetricFamily(
        prefix + "queue_requests_evicted",
        "Requests that left the line without being let in." + _HAPPENED,
        labels=labels,
    )
    for whose, found in _each_class(snapshots):
        for reason in _REJECTED:
            rejected.add_metric([*whose, reason.value], found.rejected.get(reason, 0))
        for reason in _EVICTED:
            evicted.add_metric([*whose, reason.value], found.evicted.get(reason, 0))
    return rejected, evicted


def _finished(prefix: str, snapshots: Iterable[Snapshot]) -> Metric:
    family = CounterMetricFamily(
        prefix + "queue_requests_finished",
        "Requests that ran and ended." + _HAPPENED,
        labels=("pool", "priority", "outcome"),
    )
    for whose, found in _each_class(snapshots):
        for outcome in Outcome:
            family.add_metric([*whose, outcome.value], found.released.get(outcome, 0))
    return family


def _tenant_gauges(prefix: str, snapshots: Iterable[Snapshot], named: int) -> tuple[Metric, Metric]:
    labels = ("pool", "tenant")
    queued = GaugeMetricFamily(prefix + "tenant_queue_size", "Requests in line, by tenant." + _STANDS, labels=labels)
    running = GaugeMetricFamily(prefix + "tenant_running", "Requests running, by tenant." + _STANDS, labels=labels)
    for snapshot in snapshots if named else ():
        # The snapshot names only the busiest tenants: whoever it does not name is in the difference.
        waiting_rest = snapshot.queued + snapshot.lobby
        running_rest = sum(seen.running for seen in snapshot.classes)
        for tenant, (waits, runs) in _busiest(snapshot, named).items():
            queued.add_metric([snapshot.pool, tenant], waits)
            running.add_metric([snapshot.pool, tenant], runs)
            waiting_rest -= waits
            running_rest -= runs
        queued.add_metric([snapshot.pool, OTHER], waiting_rest)
        running.add_metric([snapshot.pool, OTHER], running_rest)
    return queued, running


def _busiest(snapshot: Snapshot, named: int) -> dict[str, tuple[int, int]]:
    """Waiting and running tickets of the first *named* tenants, over all classes."""
    found: dict[str, tuple[int, int]] = {}
    for seen in snapshot.tenants:
        if seen.tenant not in ("", OTHER) and (seen.tenant in found or len(found) < named):
            queued, running = found.get(seen.tenant, (0, 0))
            found[seen.tenant] = (queued + seen.queued, running + seen.running)
    return found


def _tenant_totals(pool: Pool) -> Mapping[str, TenantTotal]:
    for observer in getattr(pool, "observers", ()):
        if isinstance(observer, TenantTotals):
            return observer.totals
    return {}


def _tenant_counters(prefix: str, totals: Mapping[str, Mapping[str, TenantTotal]]) -> tuple[Metric, Metric]:
    labels = ("pool", "tenant")
    granted = CounterMetricFamily(
        prefix + "tenant_requests_granted", "Requests let in, by tenant." + _HAPPENED, labels=labels
    )
    refused = CounterMetricFamily(
        prefix + "tenant_requests_refused", "Requests refused or evicted, by tenant." + _HAPPENED, labels=labels
    )
    for pool, tenants in totals.items():
        for tenant, total in tenants.items():
            granted.add_metric([pool, tenant], total.granted)
            refused.add_metric([pool, tenant], total.refused)
    return granted, refused


def _noticed(prefix: str, middlewares: Sequence[Middleware]) -> Metric:
    family = CounterMetricFamily(
        prefix + "http_requests_noticed", "Requests with something odd about them.", labels=("pool", "what")
    )
    for middleware in middlewares:
        pool = str(getattr(middleware.controller, "name", ""))
        for field in fields(middleware.counts):  # type: ignore[arg-type]  # The protocol says it is a dataclass.
            family.add_metric([pool, field.name], getattr(middleware.counts, field.name))
    return family


def _link_families(prefix: str, shared: Sequence[Snapshot]) -> list[Metric]:
    """Of shared pools: who shares them, and the way to them."""
    families = [_pool_gauge(prefix, series, shared, _STANDS) for series in _SHARED_POOL_GAUGES]
    families += [_pool_gauge(prefix, series, shared) for series in _LINK_GAUGES]
    for series in _LINK_COUNTERS:
        counter = CounterMetricFamily(prefix + series.name, series.help, labels=("pool",))
        for snapshot in shared:
            counter.add_metric([snapshot.pool], series.read(snapshot))
        families.append(counter)
    breaker = GaugeMetricFamily(
        prefix + "link_breaker", "1 for the state the circuit breaker is in.", labels=("pool", "state")
    )
    round_trip = HistogramMetricFamily(
        prefix + "link_round_trip_seconds", "Time between a call of the script and its reply.", labels=("pool",)
    )
    for snapshot in shared:
        assert snapshot.link is not None
        for state in _BREAKER_STATES:
            breaker.add_metric([snapshot.pool, state], int(snapshot.link.state == state))
        add_histogram(round_trip, [snapshot.pool], snapshot.link.round_trip)
    return [*families, breaker, round_trip]


def _name(status: Any) -> str:
    return str(status.name)


def _executor_families(prefix: str, executors: Sequence[object]) -> list[Metric]:
    families: list[Metric] = []
    for series in _EXECUTOR_GAUGES:
        gauge = GaugeMetricFamily(prefix + series.name, series.help, labels=("executor",))
        for status in executors:
            gauge.add_metric([_name(status)], series.read(status))
        families.append(gauge)
    for series in _EXECUTOR_COUNTERS:
        counter = CounterMetricFamily(prefix + series.name, series.help, labels=("executor",))
        for status in executors:
            counter.add_metric([_name(status)], series.read(status))
        families.append(counter)
    finished = CounterMetricFamily(
        prefix + "tasks_finished", "Tasks that ended, by outcome.", labels=("executor", "outcome")
    )
    for status in executors:
        for outcome in _TASK_OUTCOMES:
            finished.add_metric([_name(status), outcome], getattr(status, outcome))
    families.append(finished)
    return families
