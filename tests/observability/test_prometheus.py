"""What a scrape says, read back with Prometheus' own parsers."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest
from pools import BUSY_CLASS, IDLE_CLASS, POOL, SHARED_POOL, FakeExecutor, FakePool
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from tickets import ticket

from admission.asgi.middleware import QoSAdmission
from admission.controller import AdmissionController
from admission.errors import QueueFull
from admission.events import Granted, Rejected
from admission.observability.prometheus import PoolCollector
from admission.observability.tenants import TenantTotals
from admission.types import Reason, TenantSnapshot


class Still:
    """What a collector says at one instant: two formats of it can be compared."""

    def __init__(self, collector: PoolCollector) -> None:
        self._families = list(collector.collect())

    def collect(self) -> list[Metric]:
        return self._families


def scrape(collector: PoolCollector) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of one scrape, after both parsers agreed to it."""
    registry = CollectorRegistry()
    registry.register(Still(collector))
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in parse_text(generate_latest(registry).decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    strictly_read = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(generate_openmetrics(registry).decode())
        for sample in family.samples
    }
    assert strictly_read == samples
    return samples


def value(collector: PoolCollector, name: str, **labels: str) -> float:
    """One sample; the pool's name may be left out."""
    wanted = frozenset(({"pool": "default"} | labels).items())
    return scrape(collector)[name, wanted]


def names(collector: PoolCollector) -> set[str]:
    return {name for name, _ in scrape(collector)}


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("admission_queue_size", {"priority": "batch"}, 5),
        ("admission_queue_size", {"priority": "all"}, 5),
        ("admission_queue_lobby_size", {"priority": "batch"}, 1),
        ("admission_queue_oldest_wait_seconds", {"priority": "batch"}, 2.5),
        ("admission_queue_predicted_wait_seconds", {"priority": "batch"}, 7),
        ("admission_queue_requests_total", {"priority": "batch"}, 20),
        ("admission_queue_requests_granted_total", {"priority": "batch"}, 9),
        ("admission_queue_requests_granted_at_once_total", {"priority": "batch"}, 4),
        (
            "admission_queue_requests_rejected_total",
            {"priority": "batch", "reason": "rejected-queue-full"},
            3,
        ),
        ("admission_queue_requests_evicted_total", {"priority": "batch", "reason": "evicted-timeout"}, 2),
        ("admission_queue_requests_finished_total", {"priority": "batch", "outcome": "success"}, 6),
        ("admission_in_flight_slots", {"priority": "batch"}, 3),
        ("admission_queue_active_workers", {}, 2),
        ("admission_limit_slots", {}, 8),
        ("admission_utilisation_ratio", {}, 0.375),
        ("admission_queue_max_size", {}, 100),
        ("admission_tenants_active", {}, 4),
    ],
)
def test_a_scrape_shows_what_the_snapshot_says(name: str, labels: dict[str, str], expected: float) -> None:
    """Every number of a snapshot has its sample."""
    assert value(PoolCollector(FakePool()), name, **labels) == expected


def test_histograms_are_cumulative_and_end_at_infinity() -> None:
    """The wait histogram is what Prometheus wants: rising buckets, `+Inf` = count, and the sum."""
    collector = PoolCollector(FakePool())
    buckets = [
        value(collector, "admission_queue_wait_time_seconds_bucket", priority="batch", le=le)
        for le in ("0.005", "1.0", "+Inf")
    ]
    assert buckets == [4, 7, 9]
    assert value(collector, "admission_queue_wait_time_seconds_count", priority="batch") == 9
    assert value(collector, "admission_queue_wait_time_seconds_sum", priority="batch") == 8


def test_a_namespace_gives_the_names_of_the_server_it_replaces() -> None:
    """`namespace="tinyllm"` gives the five names existing dashboards ask for, and no others of ours."""
    found = names(PoolCollector(FakePool(), executors=[FakeExecutor()], namespace="tinyllm"))
    assert found >= {
        "tinyllm_queue_size",
        "tinyllm_queue_wait_time_seconds_bucket",
        "tinyllm_queue_requests_total",
        "tinyllm_queue_requests_rejected_total",
        "tinyllm_queue_active_workers",
    }
    assert all(name.startswith("tinyllm_") for name in found)


def test_every_reason_is_there_from_the_start() -> None:
    """A counter that appears with its first count hides that count from `rate()`."""
    of_idle_class = {
        labels: count
        for (_, labels), count in scrape(PoolCollector(FakePool())).items()
        if ("priority", "normal") in labels and "reason" in dict(labels)
    }
    assert len(of_idle_class) > 10
    assert set(of_idle_class.values()) == {0}


def test_an_unknown_prediction_is_left_out() -> None:
    """None is no number: neither 0 nor NaN."""
    samples = scrape(PoolCollector(FakePool()))
    assert not any("drain_rate" in name for name, _ in samples)
    predicted = {
        dict(labels)["priority"] for name, labels in samples if name == "admission_queue_predicted_wait_seconds"
    }
    assert predicted == {"batch"}


def test_tenants_are_not_named_unless_asked_for() -> None:
    """By default no client can add a series."""
    assert not any("tenant" in dict(labels) for _, labels in scrape(PoolCollector(FakePool())))


def test_the_busiest_tenants_are_named_and_the_rest_are_other() -> None:
    """Top-N by name; the tenants' lines add up to the whole line, their requests to those running."""
    collector = PoolCollector(FakePool(), tenants=1)
    assert value(collector, "admission_tenant_queue_size", tenant="acme") == 2
    assert value(collector, "admission_tenant_queue_size", tenant="other") == 4
    assert value(collector, "admission_tenant_running", tenant="acme") == 1
    assert value(collector, "admission_tenant_running", tenant="other") == 1


def test_ten_thousand_tenants_are_as_many_series_as_asked_for() -> None:
    """The scrape does not grow with the number of tenants."""
    many = tuple(TenantSnapshot(tenant=f"t{number}", priority="batch", running=0, queued=1) for number in range(10_000))
    samples = scrape(PoolCollector(FakePool(replace(POOL, queued=10_000, tenants=many)), tenants=20))
    by_tenant = {dict(labels)["tenant"] for _, labels in samples if "tenant" in dict(labels)}
    assert len(by_tenant) == 21


def test_totals_by_tenant_are_shown_when_an_observer_counts_them() -> None:
    """Counters need a memory; a pool that has one shows it."""
    totals = TenantTotals(most=1)
    for tenant in ("acme", "acme", "late", ""):
        totals.observe(Granted(ticket=ticket(tenant=tenant), waited=0.0))
    totals.observe(Rejected(ticket=ticket(tenant="acme"), reason=Reason.QUEUE_FULL))
    collector = PoolCollector(FakePool(observers=(totals,)))
    assert value(collector, "admission_tenant_requests_granted_total", tenant="acme") == 2
    assert value(collector, "admission_tenant_requests_refused_total", tenant="acme") == 1
    assert value(collector, "admission_tenant_requests_granted_total", tenant="other") == 2


def test_a_pool_nobody_has_used_yet_is_shown_idle() -> None:
    """Read from a thread before the first request, on no loop, it has its limit and zeros to show."""
    collector = PoolCollector(AdmissionController(name="unused", max_concurrency=3), FakePool())
    assert value(collector, "admission_limit_slots", pool="unused") == 3
    assert value(collector, "admission_queue_size", pool="unused", priority="all") == 0


def test_a_hostile_tenant_name_stays_inside_its_label() -> None:
    """Quotes, newlines and backslashes in a name cannot forge a sample."""
    name = 'x"} 1\nforged_total{a="\\'
    totals = TenantTotals()
    totals.observe(Granted(ticket=ticket(tenant=name), waited=0.0))
    collector = PoolCollector(FakePool(observers=(totals,)))
    assert value(collector, "admission_tenant_requests_granted_total", tenant=name) == 1
    assert "forged_total" not in names(collector)


def test_several_pools_share_a_scrape() -> None:
    """One collector, two pools, told apart by their label."""
    collector = PoolCollector(FakePool(), FakePool(replace(POOL, pool="second", queued=0)))
    assert value(collector, "admission_queue_size", priority="all") == 5
    assert value(collector, "admission_queue_size", pool="second", priority="all") == 0


def test_a_pool_added_twice_is_shown_once() -> None:
    """`add` is safe to call on every start."""
    pool = FakePool()
    collector = PoolCollector(pool)
    collector.add(pool)
    assert value(collector, "admission_limit_slots") == 8


def test_two_pools_of_one_name_are_an_error() -> None:
    """Two pools under one label would be one wrong series."""
    collector = PoolCollector(FakePool(), FakePool())
    with pytest.raises(ValueError, match="not distinct"):
        list(collector.collect())


def test_a_second_collector_of_one_namespace_is_refused() -> None:
    """The registry says so when it is registered, not Prometheus when it scrapes."""
    registry = CollectorRegistry()
    registry.register(PoolCollector(FakePool()))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PoolCollector(FakePool()))
    registry.register(PoolCollector(FakePool(), namespace="second"))


def test_registering_reads_no_pool() -> None:
    """A registry asks for names only: pools may not have started yet."""

    class NotYet:
        def snapshot(self) -> None:
            raise AssertionError("read too early")

    CollectorRegistry().register(PoolCollector(NotYet()))


@pytest.mark.parametrize("namespace", ["", "my-app", "1st", "a b"])
def test_a_namespace_that_is_no_metric_name_is_refused(namespace: str) -> None:
    """The error names the option and what is allowed."""
    with pytest.raises(ValueError, match=r"namespace is .*letter"):
        PoolCollector(namespace=namespace)


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("admission_executor_workers", {}, 4),
        ("admission_executor_active_workers", {}, 2),
        ("admission_executor_healthy", {}, 1),
        ("admission_executor_thread_pool_utilisation_ratio", {}, 0.75),
        ("admission_executor_thread_pool_exhausted_total", {}, 6),
        ("admission_executor_retries_total", {}, 5),
        ("admission_executor_dead_letters", {}, 2),
        ("admission_executor_tasks_finished_total", {"outcome": "timed_out"}, 1),
        ("admission_executor_tasks_finished_total", {"outcome": "completed"}, 30),
    ],
)
def test_executors_show_their_workers(name: str, labels: dict[str, str], expected: float) -> None:
    """The numbers of `get_status()`, under the executor's name."""
    samples = scrape(PoolCollector(executors=[FakeExecutor()]))
    assert samples[name, frozenset(({"executor": "models"} | labels).items())] == expected


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("admission_pool_processes", {}, 2),
        ("admission_pool_over_limit_slots", {}, 1),
        ("admission_link_calls_total", {}, 7),
        ("admission_link_operations_total", {}, 21),
        ("admission_link_largest_batch", {}, 5),
        ("admission_link_failures_total", {}, 2),
        ("admission_link_timeouts_total", {}, 1),
        ("admission_link_reconnects_total", {}, 3),
        ("admission_link_resyncs_total", {}, 4),
        ("admission_link_lease_renewals_total", {}, 6),
        ("admission_link_lease_failures_total", {}, 8),
        ("admission_link_stale_releases_total", {}, 9),
        ("admission_link_breaker", {"state": "closed"}, 0),
        ("admission_link_breaker", {"state": "probing"}, 0),
        ("admission_link_breaker", {"state": "open"}, 1),
        ("admission_link_round_trip_seconds_bucket", {"le": "0.01"}, 6),
        ("admission_link_round_trip_seconds_count", {}, 7),
    ],
)
def test_a_shared_pool_shows_its_processes_and_the_way_to_it(
    name: str, labels: dict[str, str], expected: float
) -> None:
    """Every number of the link has its sample."""
    assert value(PoolCollector(FakePool(SHARED_POOL)), name, **labels) == expected


def test_a_pool_of_one_process_has_no_series_of_a_link() -> None:
    """Beside a shared pool in the same process it stays without."""
    assert not any("link" in name or "pool_" in name for name in names(PoolCollector(FakePool())))
    both = PoolCollector(FakePool(), FakePool(replace(SHARED_POOL, pool="shared")))
    assert {dict(labels)["pool"] for name, labels in scrape(both) if "_link_" in name} == {"shared"}


def test_the_help_says_what_may_be_added_up() -> None:
    """Whoever sums a shared pool's line over its processes sees a multiple of it."""
    families = {family.name: family for family in PoolCollector().describe()}
    of_no_shared_pool = ("executor", "event_loop", "http", "draining", "link")
    for name, family in families.items():
        if any(word in name for word in of_no_shared_pool):
            assert "take the" not in family.documentation
        else:
            assert ("take the max" if family.type == "gauge" else "take the sum") in family.documentation, name


def test_a_slot_held_is_not_a_request_running() -> None:
    """A ticket may hold several slots: `active_workers` counts tickets, `in_flight_slots` slots."""
    wide = replace(POOL, classes=(IDLE_CLASS, replace(BUSY_CLASS, in_flight=8, running=2)), in_flight=8)
    collector = PoolCollector(FakePool(wide))
    assert value(collector, "admission_queue_active_workers") == 2
    assert value(collector, "admission_in_flight_slots", priority="batch") == 8


@pytest.mark.anyio
async def test_a_real_pool_and_its_middleware_are_shown() -> None:
    """From arrival to refusal on a real controller; a middleware adds what it noticed about requests."""
    controller = AdmissionController(max_concurrency=1, max_queue_size=1)
    collector = PoolCollector(controller)
    collector.watch(QoSAdmission(nowhere, controller=controller))
    running = controller.acquire_nowait()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(controller.acquire)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await controller.acquire()
        assert value(collector, "admission_queue_size", priority="normal") == 1
        assert value(collector, "admission_queue_active_workers") == 1
        refused = {"priority": "normal", "reason": "rejected-queue-full"}
        assert value(collector, "admission_queue_requests_rejected_total", **refused) == 1
        running.release()
    assert value(collector, "admission_queue_requests_total", priority="normal") == 3
    assert value(collector, "admission_queue_wait_time_seconds_count", priority="normal") == 2
    assert value(collector, "admission_queue_position_bucket", priority="normal", le="1.0") == 1
    assert value(collector, "admission_run_time_seconds_count", priority="normal") == 1
    assert value(collector, "admission_http_requests_noticed_total", what="unknown_class") == 0
    collector.lag.stop()


async def nowhere(scope: object, receive: object, send: object) -> None:
    """An app that is never called."""


@pytest.mark.anyio
async def test_the_first_scrape_on_a_loop_starts_sampling_its_lag() -> None:
    """Nobody has to think of it."""
    collector = PoolCollector()
    assert collector.lag._loop is None
    scrape(collector)
    assert collector.lag._loop is not None
    collector.lag.stop()
