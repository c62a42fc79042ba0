"""The jobs' script under whatever processes may do, beside a model in plain Python, and under deliberate mistakes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from admission.jobs.script import Script
from tests.jobs.jobs_model import Jobs, walk
from tests.jobs.jobs_mutations import MUTATIONS, Mutation
from tests.redis.servers import Server


@pytest.fixture
def client(any_redis: Server) -> Iterator[redis.Redis]:
    """A connection to each kind of server in turn."""
    with any_redis.client(protocol=2) as client:
        yield client


def machine(client: redis.Redis, namespace: str, source: str = Script.source) -> type[Jobs]:
    """The state machine, for one server and script."""

    class Driven(Jobs):
        pass

    Driven.client, Driven.namespace, Driven.source = client, namespace, source
    return Driven


def walks(driven: type[Jobs]) -> None:
    """A few long traces, the same every time. Raises what they find."""
    for seed in range(5):
        walk(driven(), seed)


@pytest.mark.slow
def test_jobs_agree_with_a_plain_model_whatever_happens(
    client: redis.Redis, any_redis_url: str, namespace: str
) -> None:
    """Deaths, stale and repeated reports, calls of many operations: the same answers, messages and keys."""
    run_state_machine_as_test(
        machine(client, namespace),
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            phases=[Phase.generate, Phase.shrink],
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_jobs_agree_with_a_plain_model_on_long_traces(client: redis.Redis, any_redis_url: str, namespace: str) -> None:
    """The same with many jobs in every state at once."""
    walks(machine(client, namespace))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_traces_find_a_mistake_in_the_jobs_script(redis_url: str, namespace: str, mutation: Mutation) -> None:
    """A test that cannot fail shows nothing."""
    driven = machine(redis.Redis.from_url(redis_url, protocol=2), namespace, mutation.applied(Script.source))
    with driven.client as client:
        with pytest.raises((AssertionError, redis.exceptions.ResponseError)):
            walks(driven)
        for key in client.scan_iter(match=f"*{namespace}*", count=1000):
            client.delete(key)
