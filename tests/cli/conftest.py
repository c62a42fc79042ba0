"""Servers for the commands that need one."""

from __future__ import annotations

from tests.redis.conftest import namespace, pool_keys, redis_url  # noqa: F401
