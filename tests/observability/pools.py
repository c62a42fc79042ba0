"""Hand-made pools and executors: what a scrape sees, without anything that runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from admission.executor.status import ExecutorStatus
from admission.observability.tenants import TenantTotals
from admission.types import (
    BackpressureMode,
    ClassSnapshot,
    HistogramSnapshot,
    LinkSnapshot,
    Outcome,
    PriorityClass,
    ProcessSnapshot,
    Reason,
    Snapshot,
    TenantSnapshot,
)

NOTHING = HistogramSnapshot(bounds=(0.005, 1.0), counts=(0, 0, 0), sum=0.0)

IDLE_CLASS = ClassSnapshot(
    name="normal",
    rank=0,
    rules=PriorityClass(name="normal"),
    in_flight=0,
    running=0,
    queued=0,
    lobby=0,
    slot_cap=8,
    paused=False,
    credit=0.0,
    oldest_wait=0.0,
    predicted_wait=None,
    held_back_by=None,
    offered=0,
    granted=0,
    granted_at_once=0,
    released=MappingProxyType({}),
    rejected=MappingProxyType({}),
    evicted=MappingProxyType({}),
    wait=NOTHING,
    run=NOTHING,
    position=NOTHING,
    prediction=NOTHING,
)

BUSY_CLASS = replace(
    IDLE_CLASS,
    name="batch",
    rank=1,
    in_flight=3,
    running=2,
    queued=5,
    lobby=1,
    oldest_wait=2.5,
    predicted_wait=7.0,
    offered=20,
    granted=9,
    granted_at_once=4,
    released={Outcome.SUCCESS: 6, Outcome.DROPPED: 1},
    rejected={Reason.QUEUE_FULL: 3},
    evicted={Reason.TIMEOUT: 2},
    wait=HistogramSnapshot(bounds=(0.005, 1.0), counts=(4, 3, 2), sum=8.0),
)

POOL = Snapshot(
    pool="default",
    mode=BackpressureMode.REJECT,
    limit=8,
    in_flight=3,
    queued=5,
    lobby=1,
    max_queue_size=100,
    paused=False,
    draining=False,
    drain_rate=None,
    classes=(IDLE_CLASS, BUSY_CLASS),
    tenants=(
        TenantSnapshot(tenant="acme", priority="batch", running=1, queued=2),
        TenantSnapshot(tenant="nobody in particular", priority="batch", running=1, queued=1),
    ),
    tenants_active=4,
)

SHARED_POOL = replace(
    POOL,
    processes=(
        ProcessSnapshot(process="aa", slots=1, waiting=4, lease_left=9.5, elected=True, own=True),
        ProcessSnapshot(process="bb", slots=8, waiting=2, lease_left=4.0, elected=False, own=False),
    ),
    link=LinkSnapshot(
        state="open",
        calls=7,
        operations=21,
        largest_batch=5,
        round_trip=HistogramSnapshot(bounds=(0.001, 0.01), counts=(4, 2, 1), sum=0.05),
        failures=2,
        timeouts=1,
        reconnects=3,
        resyncs=4,
        lease_renewals=6,
        lease_failures=8,
        stale=9,
        over_limit=1,
    ),
)

EXECUTOR = ExecutorStatus(
    name="models",
    is_healthy=True,
    is_running=True,
    workers=4,
    active_workers=2,
    max_workers=8,
    total_queued=5,
    queued=MappingProxyType({"normal": 5}),
    lobby=0,
    retrying=1,
    submitted=40,
    started=45,
    completed=30,
    failed=2,
    timed_out=1,
    cancelled=0,
    refused=3,
    retried=5,
    average_wait=0.1,
    average_run_time=0.2,
    success_rate=0.9,
    tasks_per_second=3.0,
    dead_letters=2,
    callback_errors=1,
    threads_busy=3,
    thread_pool_size=4,
    thread_pool_exhausted=6,
)


@dataclass
class FakePool:
    """A pool that always looks the same."""

    seen: Snapshot = POOL
    observers: tuple[TenantTotals, ...] = ()

    def snapshot(self) -> Snapshot:
        return self.seen


class FakeExecutor:
    """An executor that always looks the same."""

    def get_status(self) -> ExecutorStatus:
        return EXECUTOR
