"""A process that ends politely leaves nothing behind in the pool."""

from __future__ import annotations

import pytest

from admission import AdmissionController
from admission.backends.redis import RedisPool, backend
from tests.redis.conftest import PoolKeys
from tests.redis.proxy import Proxy
from tests.redis.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.servers]


async def test_nothing_renews_the_lease_after_the_goodbye(
    any_redis: Server, any_redis_url: str, pool_keys: PoolKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the goodbye takes its time on the way, and a pulse is due every moment."""
    monkeypatch.setattr(backend, "PULSES", 200)
    with Proxy(any_redis.port) as proxy:
        site = RedisPool(proxy.url, namespace=pool_keys.namespace, lease=3.0, timeout=1.0)
        async with AdmissionController(backend=site, max_concurrency=2) as controller, controller.admit():
            proxy.delay(0.1)
    assert pool_keys.leaked() == []
