"""The script decides as the core does, on traces drawn at random; and a script with a mistake in it does not."""

from __future__ import annotations

import pytest
import redis

from admission.backends.redis.script import Script
from tests.redis import twin
from tests.redis.mutations import OF_RULES, Mutation
from tests.redis.servers import Cluster, Server


@pytest.mark.slow
def test_script_decides_as_the_core_does(any_redis: Server, any_redis_url: str, namespace: str) -> None:
    """The same grants in the same order, evictions with their reasons, positions, forecasts, on each kind of server."""
    with any_redis.client(protocol=2) as client:
        counts = twin.run(client, 20_000, range(20), namespace=namespace)
    assert counts["operations"] >= 20_000
    assert min(counts[what] for what in ("grants at once", "grants from the line", "evictions", "lobby moves")) > 100


def test_script_decides_as_the_core_does_on_a_cluster(redis_cluster: Cluster, namespace: str) -> None:
    """Each pool on the node of its slot; messages go by SPUBLISH."""
    grants = 0
    for seed in range(100, 106):
        node = redis_cluster.node_of(Script(namespace, f"twin{seed}").keys[0])
        with node.client(protocol=2) as client:
            pool = twin.Twin(client, seed, namespace=namespace, sharded=True)
            pool.run(500)
            pool.finish()
        grants += pool.counts["grants from the line"]
    assert grants > 100


@pytest.mark.slow
@pytest.mark.parametrize("mutation", OF_RULES, ids=lambda mutation: mutation.name)
def test_trace_finds_a_mistake(redis_url: str, namespace: str, mutation: Mutation) -> None:
    """A test that cannot fail shows nothing."""
    source = mutation.applied(Script.source)
    with redis.Redis.from_url(redis_url) as client:
        with pytest.raises((twin.Difference, redis.exceptions.ResponseError)):
            twin.run(client, 100_000, range(100), namespace=namespace, source=source)
        for key in client.scan_iter(match=f"*{namespace}*"):
            client.delete(key)
