"""Where a shared pool is kept, and how this process behaves towards it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from admission.backends.base import Backend, PoolRules
from admission.types import within

OUTAGES = ("degrade", "open", "closed")

_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class RedisPool:
    """A pool in Redis (6.2 or newer) or Valkey, shared by every process that names it.

        AdmissionController(backend=RedisPool("redis://cache:6379/0", on_outage="closed"), max_concurrency=64)

    One pool is one name in one namespace of one server. Its rules are those of the process that was started last.

    Args:
        url: `redis://`, `rediss://` (TLS), `valkey://`, `unix://`, `redis+sentinel://`, `redis+cluster://`; or
            "embedded": a private server on this machine, started by whoever comes first.
        namespace: Put before every key: 1 to 64 letters, digits, '_', '.' or '-'.
        on_outage: What happens while the server cannot be reached. "degrade": this process lets in its share of the
            limit by itself. "open": everyone. "closed": no one.
        lease: Seconds after which the slots of a process that was killed are free again. A shorter one is renewed
            more often, and a process that hangs for as long loses its slots.
        timeout: Seconds a call to the server may take.
        joins: Leave the rules as they are where the pool has some: this process's own hold only where it is the first.

    Raises:
        ValueError: An option is outside its range; the message names it, its value and the range.
    """

    url: str
    namespace: str = "admission"
    on_outage: Literal["degrade", "open", "closed"] = "degrade"
    lease: float = 12.0
    timeout: float = 1.0
    joins: bool = False

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ValueError(f"namespace is {self.namespace!r}: it must be 1 to 64 letters, digits, '_', '.' or '-'")
        if self.on_outage not in OUTAGES:
            raise ValueError(f"on_outage is {self.on_outage!r}: it must be {', '.join(map(repr, OUTAGES))}")
        within("lease", self.lease, 1, 600)
        within("timeout", self.timeout, 0.01, 60)
        if self.timeout > self.lease / 3:
            raise ValueError(f"timeout is {self.timeout!r}: it must be at most a third of lease, {self.lease!r}")
        if self.url != "embedded":
            from admission.backends.redis.address import check_address

            check_address(self.url)

    def __repr__(self) -> str:
        return f"RedisPool(namespace={self.namespace!r}, on_outage={self.on_outage!r}, lease={self.lease!r})"

    def open_pool(self, rules: PoolRules) -> Backend:
        """The backend of the pool with these rules. Connects on first use.

        Raises:
            ValueError: The URL is none.
            AdmissionError: The package `redis` is missing.
        """
        from admission.backends.redis.backend import RedisBackend

        return RedisBackend(self, rules)
