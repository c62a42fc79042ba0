"""Spans for waits, read back from OpenTelemetry's own SDK."""

from __future__ import annotations

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tickets import TICKET

from admission import AdmissionController, Rejected, WaitTimeout
from admission.events import Evicted, Granted, Queued
from admission.events import Rejected as RejectedEvent
from admission.observability.tracing import TracingObserver
from admission.types import Reason

QUEUED = Queued(ticket=TICKET, position=3, predicted_wait=1.0)
NOW = 1_000_000_000_000


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> trace.Tracer:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


@pytest.fixture
def observer(tracer: trace.Tracer) -> TracingObserver:
    return TracingObserver(tracer, wall_clock=lambda: NOW)


def the_wait(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = [span for span in exporter.get_finished_spans() if span.name == "admission.wait"]
    return span


def test_a_wait_is_one_span(observer: TracingObserver, exporter: InMemorySpanExporter) -> None:
    """It covers the time in line, and says class, position and outcome; the tenant only when asked."""
    observer.observe(QUEUED)
    assert not exporter.get_finished_spans()
    observer.observe(Granted(ticket=TICKET, waited=2.0))
    span = the_wait(exporter)
    assert (span.start_time, span.end_time) == (NOW - 2_000_000_000, NOW)
    assert dict(span.attributes or {}) == {
        "admission.pool": "default",
        "admission.class": "high",
        "admission.ticket": "t1",
        "admission.slots": 1,
        "admission.outcome": "granted",
        "admission.position": 3,
    }
    assert span.status.is_unset


def test_whoever_does_not_wait_gets_no_span(observer: TracingObserver, exporter: InMemorySpanExporter) -> None:
    """A grant on arrival costs no span."""
    observer.observe(Granted(ticket=TICKET, waited=0.0))
    assert not exporter.get_finished_spans()


@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.PRIORITY, Reason.EVICTED_DRAINING])
def test_an_eviction_is_an_error(observer: TracingObserver, exporter: InMemorySpanExporter, reason: Reason) -> None:
    """The span's status says so, with the reason."""
    observer.observe(QUEUED)
    observer.observe(Evicted(ticket=TICKET, reason=reason, waited=30.0))
    assert the_wait(exporter).status.description == reason.value


@pytest.mark.parametrize("reason", [Reason.CANCELLED, Reason.DISCONNECT])
def test_leaving_is_no_error(observer: TracingObserver, exporter: InMemorySpanExporter, reason: Reason) -> None:
    """Whoever goes away on their own met no failure of ours."""
    observer.observe(QUEUED)
    observer.observe(Evicted(ticket=TICKET, reason=reason, waited=1.0))
    span = the_wait(exporter)
    assert span.status.is_unset
    assert (span.attributes or {})["admission.outcome"] == reason.value


def test_nothing_is_kept_after_the_wait(observer: TracingObserver) -> None:
    """What the observer remembers is as long as the line, not as the day."""
    for _ in range(100):
        observer.observe(QUEUED)
        observer.observe(Granted(ticket=TICKET, waited=0.1))
        observer.observe(QUEUED)
        observer.observe(Evicted(ticket=TICKET, reason=Reason.TIMEOUT, waited=0.1))
    assert not observer._waiting


def test_tenants_are_named_only_on_request(tracer: trace.Tracer, exporter: InMemorySpanExporter) -> None:
    """Who a customer is does not belong in every trace."""
    observer = TracingObserver(tracer, tenants=True)
    observer.observe(QUEUED)
    observer.observe(Granted(ticket=TICKET, waited=0.1))
    assert (the_wait(exporter).attributes or {})["admission.tenant"] == "acme"


def test_a_refusal_on_arrival_is_an_event_on_the_request(
    tracer: trace.Tracer, observer: TracingObserver, exporter: InMemorySpanExporter
) -> None:
    """It took no time, so it is no span of its own."""
    with tracer.start_as_current_span("request"):
        observer.observe(RejectedEvent(ticket=TICKET, reason=Reason.QUEUE_FULL))
    (request,) = exporter.get_finished_spans()
    (event,) = request.events
    assert (event.name, (event.attributes or {})["admission.outcome"]) == (
        "admission.rejected", "rejected-queue-full",
    )  # fmt: skip


@pytest.mark.anyio
async def test_the_span_belongs_to_the_request_that_waited(
    tracer: trace.Tracer, exporter: InMemorySpanExporter
) -> None:
    """Another request lets it in by ending, yet the wait stands in the waiter's own trace."""
    controller = AdmissionController(max_concurrency=1, observers=[TracingObserver(tracer)])

    async def waiter() -> None:
        with tracer.start_as_current_span("waiter"):
            async with controller.admit():
                pass

    with tracer.start_as_current_span("holder"):
        async with anyio.create_task_group() as tasks:
            first = controller.acquire_nowait()
            tasks.start_soon(waiter)
            await anyio.wait_all_tasks_blocked()
            assert controller.queued == 1
            first.release()
    of_waiter = next(span for span in exporter.get_finished_spans() if span.name == "waiter")
    wait = the_wait(exporter)
    assert wait.parent is not None
    assert wait.parent.span_id == of_waiter.context.span_id
    assert wait.context.trace_id == of_waiter.context.trace_id


@pytest.mark.anyio
async def test_every_way_out_of_a_real_line_ends_its_span(tracer: trace.Tracer, exporter: InMemorySpanExporter) -> None:
    """Cancelled, timed out and drained waiters leave one span each, and nothing behind."""
    observer = TracingObserver(tracer)
    controller = AdmissionController(max_concurrency=1, observers=[observer])
    controller.acquire_nowait()

    async def waiter(max_wait: float | None) -> None:
        with pytest.raises((WaitTimeout, Rejected)):
            await controller.acquire(max_wait=max_wait)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiter, None)
        await waiter(0.001)
        with anyio.CancelScope() as scope:
            tasks.start_soon(cancelled_by, scope, controller)
            await controller.acquire(max_wait=None)
        controller.start_draining()
    outcomes = sorted(str((span.attributes or {})["admission.outcome"]) for span in exporter.get_finished_spans())
    assert outcomes == ["evicted-cancelled", "evicted-draining", "evicted-timeout"]
    assert not observer._waiting


async def cancelled_by(scope: anyio.CancelScope, controller: AdmissionController) -> None:
    await anyio.wait_all_tasks_blocked()
    scope.cancel()
