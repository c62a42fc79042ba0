"""Who keeps a count of what runs in Redis: ours and others', each made by what its documentation shows first.

All are given room for everyone, so that none refuses; only `admission` and `fastapi-stream-lease` can wait at all.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import redis.asyncio

from admission import AdmissionController, Permit
from admission.backends.redis import RedisPool

PATIENCE = 60.0
"""Seconds a caller waits for a slot."""

TENANTS = 16
"""Between whom the callers are divided."""


class Limiter(Protocol):
    """A limit on what runs at once, shared through Redis."""

    async def open(self) -> None:
        """Be ready."""

    async def close(self) -> None:
        """Let go of every connection."""

    async def acquire(self, caller: int) -> Any:
        """Wait for a slot; the answer is what `release` wants."""

    async def release(self, slot: Any) -> None:
        """Give it back."""


class Ours:
    """A controller whose pool is in Redis."""

    def __init__(self, url: str, namespace: str, limit: int) -> None:
        self.controller = AdmissionController(
            max_concurrency=limit,
            max_queue_size=0,
            max_wait=PATIENCE,
            backend=RedisPool(url, namespace=namespace, on_outage="closed"),
        )

    async def open(self) -> None:
        await self.controller.__aenter__()
        # A cold start: the script may have to be loaded, and the connections are made.
        (await self.controller.acquire()).release()

    async def close(self) -> None:
        await self.controller.__aexit__(None, None, None)

    async def acquire(self, caller: int) -> Permit:
        return await self.controller.acquire(tenant=f"tenant-{caller % TENANTS}")

    async def release(self, slot: Permit) -> None:
        slot.release()


class StreamLeases:
    """fastapi-stream-lease: a sorted set for each user and one for all; who waits asks again every 50 ms."""

    def __init__(self, url: str, namespace: str, limit: int) -> None:
        from fastapi_stream_lease import LeaseConfig, StreamLeaseManager

        self._client: Any = redis.asyncio.from_url(url)
        config = LeaseConfig(
            max_per_user=limit,
            max_global=limit,
            key_prefix=namespace,
            acquire_timeout=PATIENCE,
        )
        self._manager = StreamLeaseManager(self._client, config)

    async def open(self) -> None:
        await self._manager.release(await self._manager.acquire("tenant-0"))

    async def close(self) -> None:
        await self._manager.close()
        await self._client.aclose()

    async def acquire(self, caller: int) -> Any:
        return await self._manager.acquire(f"tenant-{caller % TENANTS}")

    async def release(self, slot: Any) -> None:
        await self._manager.release(slot)


class LiteLLM:
    """The heart of its proxy's limit on the parallel requests of a key: one script to begin, one to end.

    What the proxy does before, finding out which limits concern a request, needs the whole proxy and is left out. It
    does not wait, it refuses.
    """

    def __init__(self, url: str, namespace: str, limit: int) -> None:
        logging.getLogger("LiteLLM").setLevel(logging.ERROR)
        from litellm.caching.caching import DualCache
        from litellm.caching.redis_cache import RedisCache
        from litellm.proxy.hooks.parallel_request_limiter_v3 import (
            ParallelSlotAcquisition,
            RateLimitDescriptor,
            _PROXY_MaxParallelRequestsHandler_v3,
        )
        from litellm.proxy.utils import InternalUsageCache

        self._cache = RedisCache(url=url)
        self._limiter = _PROXY_MaxParallelRequestsHandler_v3(
            InternalUsageCache(DualCache(redis_cache=self._cache)), fail_closed_resolver=lambda: True
        )
        self._acquisition = ParallelSlotAcquisition
        self._descriptors = [
            RateLimitDescriptor(
                key="api_key", value=f"{namespace}-{number}", rate_limit={"max_parallel_requests": limit}
            )
            for number in range(TENANTS)
        ]

    async def open(self) -> None:
        await self.release(await self.acquire(0))

    async def close(self) -> None:
        await self._cache.disconnect()

    async def acquire(self, caller: int) -> Any:
        descriptor = self._descriptors[caller % TENANTS]
        key = self._limiter.create_rate_limit_keys(descriptor["key"], descriptor["value"], "max_parallel_requests")
        slot = self._acquisition(slot_id=uuid.uuid4().hex, counter_keys=[key])
        found = await self._limiter.should_rate_limit(
            descriptors=[descriptor], skip_tpm_check=True, parallel_slot_id=slot["slot_id"]
        )
        assert found["overall_code"] == "OK", found
        return slot

    async def release(self, slot: Any) -> None:
        await self._limiter._release_parallel_request_slots(slot)


OURS = "admission"
LEASES = "fastapi-stream-lease"

LIMITERS: Mapping[str, Callable[[str, str, int], Limiter]] = {
    OURS: Ours,
    LEASES: StreamLeases,
    "LiteLLM, max_parallel_requests": LiteLLM,
}
"""By name: from the server's URL, a namespace and a limit."""
