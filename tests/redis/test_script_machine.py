"""The script under whatever may happen to processes and servers, and under deliberate mistakes of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from admission.backends.redis.script import Script
from tests.redis.holders import Holders
from tests.redis.mutations import OF_SHARING, Mutation
from tests.redis.servers import Server


@pytest.fixture
def client(any_redis: Server) -> Iterator[redis.Redis]:
    """A connection to each kind of server in turn."""
    with any_redis.client(protocol=2) as client:
        yield client


def drive(client: redis.Redis, namespace: str, *, source: str = Script.source, examples: int, shrink: bool) -> None:
    """Run the machine. Raises what it finds."""

    class Driven(Holders):
        pass

    Driven.client, Driven.namespace, Driven.source = client, namespace, source
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    run_state_machine_as_test(
        Driven,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            phases=phases,
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_pool_stays_sound_whatever_happens_to_its_processes(
    client: redis.Redis, any_redis_url: str, namespace: str
) -> None:
    """Deaths, hangs, lost messages, late and repeated calls, stale and empty replicas."""
    drive(client, namespace, examples=settings.default.max_examples // 50, shrink=True)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", OF_SHARING, ids=lambda mutation: mutation.name)
def test_machine_finds_a_mistake(redis_url: str, namespace: str, mutation: Mutation) -> None:
    """A test that cannot fail shows nothing."""
    source = mutation.applied(Script.source)
    with redis.Redis.from_url(redis_url) as client:
        with pytest.raises((AssertionError, redis.exceptions.ResponseError, KeyError)):
            drive(client, namespace, source=source, examples=200, shrink=False)
        for key in client.scan_iter(match=f"*{namespace}*"):
            client.delete(key)
