"""What Prometheus reads of a queue and of the workers of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import replace

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from admission import PermanentError, Retry
from admission.errors import Unavailable
from admission.jobs import ClassStats, JobStats
from admission.observability.exposition import start_metrics_server
from admission.observability.jobs import JobsCollector
from admission.observability.prometheus import PoolCollector
from tests.jobs.workshop import Shop, shop

__all__ = ["shop"]

pytestmark = pytest.mark.anyio

PATIENCE = 30.0

STATS = JobStats(
    queued=7,
    delayed=2,
    running=3,
    dead=4,
    kept=5,
    enqueued_total=100,
    succeeded_total=80,
    failed_total=11,
    retried_total=6,
    handed_back_total=1,
    redelivered_total=2,
    dead_total=5,
    stale_total=3,
    workers=2,
    paused=False,
    classes=(
        ClassStats(name="high", queued=7, delayed=0, running=3, paused=False, oldest_age=12.5),
        ClassStats(name="low", queued=0, delayed=2, running=0, paused=True, oldest_age=0.0),
    ),
    tenants=(),
)


class Queue:
    """A queue with numbers of its own making, whose server may be gone."""

    pool = "default"

    def __init__(self) -> None:
        self.asked = 0
        self.numbers: JobStats | None = STATS
        self.answered = asyncio.Event()

    async def stats(self) -> JobStats:
        self.asked += 1
        await asyncio.sleep(0)
        self.answered.set()
        if self.numbers is None:
            raise Unavailable("no answer")
        return self.numbers


class Still:
    """What a collector says at one instant: two formats of it can be compared."""

    def __init__(self, collector: JobsCollector) -> None:
        self._families = list(collector.collect())

    def collect(self) -> list[Metric]:
        return self._families


def scrape(collector: JobsCollector) -> dict[str, float]:
    """Every sample by `name{labels in their order}`, after both parsers agreed to it. The label pool is left out."""
    registry = CollectorRegistry()
    registry.register(Still(collector))
    read = [
        {
            f"{sample.name}{sorted((k, v) for k, v in sample.labels.items() if k != 'pool') or ''}": sample.value
            for family in families
            for sample in family.samples
        }
        for families in (
            parse_text(generate_latest(registry).decode()),
            parse_openmetrics(generate_openmetrics(registry).decode()),
        )
    ]
    assert read[0] == read[1]
    return read[0]


async def test_a_scrape_tells_the_numbers_of_the_queue() -> None:
    """By class what stands there, and what has happened."""
    collector = JobsCollector(Queue(), namespace="tiny")
    await collector.refresh()
    seen = scrape(collector)
    assert 0 <= seen.pop("tiny_jobs_stats_age_seconds") < PATIENCE
    assert seen == {
        "tiny_jobs_queued[('priority', 'high')]": 7,
        "tiny_jobs_queued[('priority', 'low')]": 0,
        "tiny_jobs_delayed[('priority', 'high')]": 0,
        "tiny_jobs_delayed[('priority', 'low')]": 2,
        "tiny_jobs_running[('priority', 'high')]": 3,
        "tiny_jobs_running[('priority', 'low')]": 0,
        "tiny_jobs_oldest_age_seconds[('priority', 'high')]": 12.5,
        "tiny_jobs_oldest_age_seconds[('priority', 'low')]": 0,
        "tiny_jobs_class_paused[('priority', 'high')]": 0,
        "tiny_jobs_class_paused[('priority', 'low')]": 1,
        "tiny_jobs_dead_letters": 4,
        "tiny_jobs_results_kept": 5,
        "tiny_jobs_worker_processes": 2,
        "tiny_jobs_paused": 0,
        "tiny_jobs_enqueued_total": 100,
        "tiny_jobs_retried_total": 6,
        "tiny_jobs_handed_back_total": 1,
        "tiny_jobs_redelivered_total": 2,
        "tiny_jobs_dead_total": 5,
        "tiny_jobs_stale_reports_total": 3,
        "tiny_jobs_processed_total[('outcome', 'success')]": 80,
        "tiny_jobs_processed_total[('outcome', 'failure')]": 11,
    }


async def test_a_scrape_does_not_wait_and_the_next_one_knows_more() -> None:
    """What was heard last is shown; the server is asked meanwhile."""
    queue = Queue()
    collector = JobsCollector(queue)
    assert "admission_jobs_dead_letters" not in scrape(collector)
    async with asyncio.timeout(PATIENCE):
        await queue.answered.wait()
    await asyncio.sleep(0)
    assert scrape(collector)["admission_jobs_dead_letters"] == 4


async def test_the_server_is_asked_only_so_often() -> None:
    """However often Prometheus and people look."""
    queue = Queue()
    collector = JobsCollector(queue, every=300)
    for _ in range(10):
        scrape(collector)
        await asyncio.sleep(0)
    assert queue.asked == 1


async def test_numbers_that_cannot_be_had_stay_as_they_were() -> None:
    """Their age tells; no scrape fails."""
    queue = Queue()
    collector = JobsCollector(queue, every=0.1)
    await collector.refresh()
    queue.numbers = None
    collector._asked_at = float("-inf")
    queue.answered.clear()
    scrape(collector)
    async with asyncio.timeout(PATIENCE):
        await queue.answered.wait()
    await asyncio.sleep(0)
    assert scrape(collector)["admission_jobs_dead_letters"] == 4
    with pytest.raises(Unavailable):
        await collector.refresh()


async def test_a_scrape_from_a_thread_has_the_loop_ask() -> None:
    """As that of `prometheus_client.start_http_server`."""
    queue = Queue()
    collector = JobsCollector(queue)
    thread = threading.Thread(target=scrape, args=(collector,))
    thread.start()
    async with asyncio.timeout(PATIENCE):
        await queue.answered.wait()
    thread.join()
    await asyncio.sleep(0)
    assert scrape(collector)["admission_jobs_dead_letters"] == 4


def test_where_no_loop_runs_a_scrape_is_silent_about_the_queue() -> None:
    """And no error."""

    class Silent:
        pool = "default"

        async def stats(self) -> JobStats:
            raise AssertionError

    assert scrape(JobsCollector(Silent())) == {}


async def test_a_worker_tells_what_it_has_done(shop: Shop) -> None:
    """Successes, failures, retries, timeouts, times."""

    @shop.queue.task(retry=Retry.fixed(0.0, max_attempts=2))
    async def sometimes(fails: bool) -> None:
        if fails:
            raise ValueError

    @shop.queue.task(timeout=0.001)
    async def slow() -> None:
        await asyncio.Event().wait()

    @shop.queue.task
    def never() -> None:
        raise PermanentError

    worker = shop.worker(name="w")
    collector = JobsCollector(shop.queue, workers=[worker])
    collector.add(worker)
    async with worker:
        fine = await sometimes.enqueue(False)
        await sometimes.enqueue(True)
        await slow.enqueue()
        await never.enqueue()
        await fine.result(PATIENCE)
        await shop.letters(3)
        await collector.refresh()
        seen = scrape(collector)
    own = {
        name.removeprefix("admission_job_worker_").replace("[('worker', 'w')]", ""): value
        for name, value in seen.items()
        if name.startswith("admission_job_worker_") and "bucket" not in name
    }
    assert own["up"] == 1
    assert (own["places"], own["active"], own["utilisation_ratio"]) == (10, 0, 0)
    assert (own["taken_total"], own["retries_total"], own["timeouts_total"], own["buried_total"]) == (5, 1, 1, 3)
    assert own["processed_total[('outcome', 'success'), ('worker', 'w')]"] == 1
    assert own["processed_total[('outcome', 'failure'), ('worker', 'w')]"] == 4
    assert (own["wait_time_seconds_count"], own["run_time_seconds_count"]) == (4, 5)
    assert own["wait_time_seconds_sum"] > 0
    assert own["thread_pool_size"] == 2
    assert seen["admission_jobs_enqueued_total"] == 4
    assert seen["admission_jobs_processed_total[('outcome', 'failure')]"] == 4
    assert seen["admission_jobs_dead_letters"] == 3


async def test_workers_of_one_name_are_an_error(shop: Shop) -> None:
    """Their series would be one."""
    collector = JobsCollector(shop.queue, workers=[shop.worker(name="w"), shop.worker(name="w")])
    with pytest.raises(ValueError, match="not distinct"):
        list(collector.collect())


async def test_one_address_shows_pools_and_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics server reads both on this event loop."""
    collector, pools = JobsCollector(Queue()), PoolCollector()
    await collector.refresh()
    read_by: list[threading.Thread] = []
    collect = collector.collect

    def noting() -> Iterable[Metric]:
        read_by.append(threading.current_thread())
        return collect()

    monkeypatch.setattr(collector, "collect", noting)
    server = start_metrics_server(0, pools, also=[collector])
    try:
        async with httpx2.AsyncClient() as client:
            text = (await client.get(f"http://127.0.0.1:{server.port}/metrics")).text
    finally:
        await asyncio.to_thread(server.close)
        pools.lag.stop()
    assert "admission_jobs_dead_letters" in text
    assert "admission_event_loop_lag_seconds" in text
    assert set(read_by) == {threading.current_thread()}


async def test_jobs_and_pools_can_be_in_one_registry() -> None:
    """No name of the one is a name of the other; a second collector of jobs is refused."""
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    registry.register(JobsCollector(Queue()))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(JobsCollector(Queue()))


def test_options_outside_their_range_are_refused() -> None:
    """With their names."""
    with pytest.raises(ValueError, match="namespace"):
        JobsCollector(Queue(), namespace="a-b")
    with pytest.raises(ValueError, match="every"):
        JobsCollector(Queue(), every=0)


async def test_a_class_that_came_later_is_shown() -> None:
    """Whatever the server tells of."""
    queue = Queue()
    queue.numbers = replace(STATS, classes=())
    collector = JobsCollector(queue)
    await collector.refresh()
    assert "admission_jobs_queued[('priority', 'high')]" not in scrape(collector)
    queue.numbers = STATS
    await collector.refresh()
    assert scrape(collector)["admission_jobs_queued[('priority', 'high')]"] == 7
