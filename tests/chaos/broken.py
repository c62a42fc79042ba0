"""Builds that are wrong on purpose: what the chaos run says of the real one counts only because it finds these.

Each is applied in the server processes, by name, before anything is made. `BROKEN` has them; `CAUGHT_BY` says
how each is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from admission.backends.redis import script
from admission.backends.redis.backend import RedisBackend
from admission.backends.redis.lease import Lease
from admission.backends.redis.link import Link
from admission.backends.redis.outage import NO_LIMIT, Standby

VARIABLE = "ADMISSION_CHAOS_BROKEN"
"""Names one of them to the server processes. Nothing else reads it."""


def never_reaps() -> None:
    """Leases of a day: the slots of a process that was killed stay taken."""
    beat = script.beat
    script.beat = lambda ttl_us, digest: beat(86_400_000_000, digest)


def grants_one_too_many() -> None:
    """An off-by-one in the rules that travel with every call."""
    made = script.SharedRules.__init__

    def make(rules: script.SharedRules, given: Any, *, limit: int, version: int) -> None:
        made(rules, given, limit=limit + 1, version=version)

    script.SharedRules.__init__ = make  # type: ignore[method-assign]


def ignores_resync() -> None:
    """After a failover nobody tells the new primary what runs."""
    RedisBackend._resync = _nothing  # type: ignore[method-assign]


def forgets_deadlines() -> None:
    """Whoever waits waits for ever."""
    offer = script.offer

    def patient(*arguments: Any) -> str:
        given = list(arguments)
        given[5] = None
        return offer(*given)

    script.offer = patient
    RedisBackend._arm_deadline = _nothing  # type: ignore[method-assign]


def renews_no_lease() -> None:
    """The lease's thread does nothing: a loop that computes loses its slots, though it lives."""

    async def idle(lease: Lease, exchange: object) -> bool:
        return True

    Lease._renew = idle  # type: ignore[method-assign]


def waits_for_every_answer() -> None:
    """Calls have no deadline: a connection that went mute holds up its process for good."""
    made = Link.__init__

    def make(link: Link, url: str, **options: Any) -> None:
        made(link, url, **{**options, "deadline": 3600.0})

    Link.__init__ = make  # type: ignore[method-assign]


def goes_alone_without_limit() -> None:
    """In an outage every process lets everyone in."""
    made = Standby.__init__

    def make(standby: Standby, rules: Any, slots: int, *more: Any) -> None:
        made(standby, rules, NO_LIMIT, *more)

    Standby.__init__ = make  # type: ignore[method-assign]


def _nothing(*_: object) -> float:
    return math.inf


BROKEN: dict[str, Callable[[], None]] = {
    build.__name__.replace("_", "-"): build
    for build in (
        never_reaps,
        grants_one_too_many,
        ignores_resync,
        forgets_deadlines,
        renews_no_lease,
        waits_for_every_answer,
        goes_alone_without_limit,
    )
}

CAUGHT_BY = {
    "never-reaps": ("kill", {"lost permits"}),
    "grants-one-too-many": ("flush", {"over-granted"}),
    "ignores-resync": ("promote", {"over-granted", "lost permits", "stalled"}),
    "forgets-deadlines": ("clog", {"hung"}),
    "renews-no-lease": ("block", {"over-granted"}),
    "waits-for-every-answer": ("mute", {"stalled"}),
    "goes-alone-without-limit": ("gone", {"over-granted"}),
}
"""Which fault brings each out, and as what kinds of violation."""
