"""Small scripts for tests of the link, and waiting for what other tasks and threads do."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lua:
    """A script by its text."""

    source: str

    @property
    def sha(self) -> str:
        """Its name to the server."""
        return hashlib.sha1(self.source.encode()).hexdigest()


ECHO = Lua("return ARGV[1]")
"""Answers its first argument."""

COUNT = Lua("return redis.call('INCR', KEYS[1])")
"""Answers how often it was called with this key."""

NOTE = Lua("return redis.call('RPUSH', KEYS[1], ARGV[1])")
"""Notes its first argument, and answers how many were noted."""


async def until(happened: Callable[[], object]) -> None:
    """Return once *happened()* is true; at most 30 s."""
    async with asyncio.timeout(30):
        while not happened():  # noqa: ASYNC110 Of a server, or of a thread: neither sets an event.
            await asyncio.sleep(0.005)
