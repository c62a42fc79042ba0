"""Real servers and a namespace of its own for each test, as the tests of the Redis backend have them."""

from collections.abc import Iterator

import pytest
import redis

from admission.backends.redis.site import RedisPool
from tests.redis.conftest import (  # noqa: F401
    PoolKeys,
    any_redis,
    any_redis_url,
    anyio_backend,
    namespace,
    pool_keys,
    redis_cluster,
    redis_url,
    tls,
)


@pytest.fixture
def queue_site(redis_url: str, namespace: str, pool_keys: PoolKeys) -> Iterator[RedisPool]:  # noqa: F811
    """Where a test keeps a queue of its own. All of it is thrown away afterwards."""
    yield RedisPool(redis_url, namespace=namespace)
    with redis.Redis.from_url(redis_url) as client:
        for key in pool_keys.present():
            client.delete(key)
