"""The words of the project as data: classes, tickets, samples and the one `Snapshot`.

Everything here is frozen or an enum. Seconds are floats on a monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Final

MAX_CLASSES = 8
"""A pool has at most this many classes: a rank fits three bits and a scan of them is constant time."""

MAX_TENANT_BYTES = 128
"""Longest tenant id: tenants are keys of dictionaries and labels of metrics, so clients may not choose their size."""


def within(
    option: str,
    value: float | None,
    low: float,
    high: float = math.inf,
    *,
    above_low: bool = False,
) -> None:
    """Raise ValueError naming *option*, the value and the range unless *value* is None or inside it."""
    if value is None:
        return
    fits = isinstance(value, int | float) and (low < value if above_low else low <= value) and value <= high
    if fits:
        return
    least = f"above {low:g}" if above_low else f"at least {low:g}"
    most = "" if math.isinf(high) else f" and at most {high:g}"
    raise ValueError(f"{option} is {value!r}: it must be {least}{most}")


class Unset(Enum):
    """The type of `UNSET`: not said, which is not the same as None."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


class Priority(IntEnum):
    """The four default classes. The value is the rank: 0 is served first."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


class BackpressureMode(StrEnum):
    """What a full line does with a caller that may not push anyone out."""

    REJECT = "reject"
    """Raise `QueueFull` at once."""
    BLOCK = "block"
    """Park the caller in the lobby until there is room in the line."""


class Outcome(Enum):
    """How admitted work ended, as the adaptive limits see it."""

    SUCCESS = "success"
    DROPPED = "dropped"
    """The backend was overloaded: a timeout, a 429 or 503 from it. Limits shrink on this."""
    IGNORED = "ignored"
    """Cancelled or failed for reasons that say nothing about load. Limits learn nothing."""


class Reason(StrEnum):
    """Why a ticket was refused. *Rejected* never entered the line, *evicted* left it without a permit."""

    QUEUE_FULL = "rejected-queue-full"
    TENANT_FULL = "rejected-tenant-full"
    """The tenant has its own cap of waiters (`max_queued_per_tenant`) in line already."""
    BUSY = "rejected-busy"
    """`acquire_nowait` or `max_wait=0`: no slot is free at this instant."""
    HOPELESS = "rejected-hopeless"
    """The predicted wait is longer than the caller can wait."""
    TOO_WIDE = "rejected-too-wide"
    """The ticket needs more slots than its class's ceiling can ever give it."""
    DRAINING = "rejected-draining"
    UNAVAILABLE = "rejected-unavailable"
    """The pool is kept elsewhere, cannot be reached, and `on_outage` is "closed"."""
    TIMEOUT = "evicted-timeout"
    """`max_wait` ran out in line."""
    DEADLINE = "evicted-deadline"
    """The caller's own deadline passed in line."""
    PRIORITY = "evicted-priority"
    """Pushed out of a full line by a higher class."""
    FAIRNESS = "evicted-fairness"
    """Pushed out of a full line by a tenant of the same class with fewer waiters."""
    CODEL = "evicted-codel"
    """Shed because the class's shortest wait stayed above its target."""
    EVICTED_DRAINING = "evicted-draining"
    CANCELLED = "evicted-cancelled"
    """The caller withdrew: its task was cancelled or it gave the place up."""
    DISCONNECT = "evicted-disconnect"
    """The client went away while it waited."""

    @property
    def rejects(self) -> bool:
        """Whether it turns away on arrival; else it ends a wait."""
        return self.value.startswith("rejected-")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityClass:
    """One class of a pool: its name and its rules. Its place in the list of classes is its rank.

    Args:
        name: What headers, metrics and `acquire(priority=…)` call it.
        guaranteed: Share of the starts this class gets under contention, 0 … 1, however high the classes
            above it. What it has had of late counts, also when nobody else waited. Unused shares go to whoever
            waits.
        ceiling: Share of the limit this class may hold at once, above 0 and at most 1 (never less than one slot).
        max_delay: Seconds after which the class's oldest waiter makes it go before every other. None: never.
        rate: Starts per second at most (token bucket). None: unlimited.
        burst: Starts that may follow each other at once after a pause. None: one second's worth, at least 1.
        max_queued: Waiters of this class in line at most. None: only the line's own bound.
        max_wait: Seconds a ticket of this class waits at most. None: the controller's `max_wait`.
        weights: Weight of a tenant inside the class (default 1.0): a tenant of weight 3 gets three times the
            service of a tenant of weight 1 while both have waiters.
        codel_target: Seconds of standing wait the class puts up with; when the *shortest* wait of an interval
            is longer, waiters older than twice this are evicted. None: no shedding.
        codel_interval: Seconds of such an interval. None: ten times the target.
        exempt: Granted at once, counted, and held back by nothing.

    Raises:
        ValueError: A value is outside its range; the message names option, value and range.
    """

    name: str
    guaranteed: float = 0.0
    ceiling: float = 1.0
    max_delay: float | None = None
    rate: float | None = None
    burst: int | None = None
    max_queued: int | None = None
    max_wait: float | None = None
    weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    codel_target: float | None = None
    codel_interval: float | None = None
    exempt: bool = False

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name) or len(self.name) > 64:
            raise ValueError(f"class name {self.name!r}: 1 to 64 letters, digits, '-', '_' or '.' are allowed")
        where = f"class {self.name!r}"
        within(f"{where}: guaranteed", self.guaranteed, 0, 1)
        within(f"{where}: ceiling", self.ceiling, 0, 1, above_low=True)
        for option in ("max_delay", "max_wait"):
            within(f"{where}: {option}", getattr(self, option), 0)
        for option in ("rate", "codel_target", "codel_interval"):
            within(f"{where}: {option}", getattr(self, option), 0, above_low=True)
        for option in ("burst", "max_queued"):
            within(f"{where}: {option}", getattr(self, option), 1)
        for tenant, weight in self.weights.items():
            within(f"{where}: weight of tenant {tenant!r}", weight, 0.001, 1000)
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))


DEFAULT_CLASSES: tuple[PriorityClass, ...] = (
    PriorityClass(name="critical"),
    PriorityClass(name="high"),
    PriorityClass(name="normal"),
    PriorityClass(name="low", guaranteed=0.05, max_delay=30.0),
)
"""What a pool has when the user says nothing: strict ranks, with a floor under `low`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One request's place in line, as it stood when this picture was taken."""

    id: str
    pool: str
    priority: str
    """Name of the class."""
    tenant: str
    slots: int
    cost: float
    arrival: float
    """Monotonic seconds."""
    deadline: float | None
    """Monotonic seconds at which waiting ends, or None."""
    position: int
    """On arrival; 0 means it ran at once."""
    waited: float
    """Seconds between arrival and grant, or until now while it waits."""
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketStatus:
    """What a waiting or running ticket may be told."""

    id: str
    priority: str
    """Name of the class."""
    tenant: str
    running: bool
    waited: float | None
    """Seconds in line so far, or until the grant; None of one that runs in another process of a shared pool."""
    position: int
    """Now; 0 while it runs."""
    predicted_wait: float | None
    """Seconds to go; None while no rate is known."""
    held_back_by: str
    """The rule that binds it, by name; "nothing" while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one finished request teaches a limit."""

    rtt: float
    """Seconds from grant to end; for a stream, to its first byte. Time in line is not counted."""
    in_flight: int
    """Slots in use just after this one was granted."""
    outcome: Outcome
    now: float
    """Monotonic seconds at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramSnapshot:
    """Counts per bucket. `bounds` are upper edges; `counts` has one more entry, for what lies above them all."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float

    @property
    def count(self) -> int:
        """How many values were seen."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Average of the values seen, 0.0 when there were none."""
        return self.sum / self.count if self.count else 0.0

    def quantile(self, q: float) -> float | None:
        """The value below which the share *q* (0 … 1) of the values lies, interpolated; None without values."""
        total = self.count
        if total == 0:
            return None
        rank, seen, low = q * total, 0, 0.0
        for count, high in zip(self.counts, [*self.bounds, math.inf], strict=True):
            if count and seen + count >= rank:
                return low if math.isinf(high) else low + (high - low) * max(0.0, rank - seen) / count
            seen += count
            low = high
        return low


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSnapshot:
    """One class of a pool at one instant. Totals count from the start of the pool."""

    name: str
    rank: int
    rules: PriorityClass
    in_flight: int
    """Slots held."""
    running: int
    """Tickets holding them."""
    queued: int
    lobby: int
    slot_cap: int
    """Slots the ceiling allows now."""
    paused: bool
    credit: float
    """Slots' worth of guaranteed starts it may claim next; below 0, what it has had of late beyond its share."""
    oldest_wait: float
    """Seconds the oldest waiter has been in line; 0.0 with an empty line."""
    predicted_wait: float | None
    """Seconds a newcomer would wait; None while no rate is known."""
    held_back_by: str | None
    """The rule that keeps its head from running now, by name; None with an empty line."""
    offered: int
    granted: int
    granted_at_once: int
    released: Mapping[Outcome, int]
    rejected: Mapping[Reason, int]
    evicted: Mapping[Reason, int]
    wait: HistogramSnapshot
    """Seconds in line of those that were granted."""
    run: HistogramSnapshot
    """Seconds between grant and release."""
    position: HistogramSnapshot
    """Position on arrival of those that had to wait."""
    prediction: HistogramSnapshot
    """Predicted ÷ actual wait of those that were granted after a prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSnapshot:
    """One tenant of one class at one instant."""

    tenant: str
    priority: str
    running: int
    """Tickets that hold slots."""
    queued: int
    """Tickets in line or lobby."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSnapshot:
    """One of the processes that share a pool, as the pool knows it."""

    process: str
    """Its name in the pool: new with every start."""
    slots: int
    """Slots its tickets hold."""
    waiting: int
    """Its tickets in line and lobby."""
    lease_left: float
    """Seconds until its slots are given to others, unless it renews."""
    elected: bool
    """Whether it is the one whose adaptive limit holds for all."""
    own: bool
    """Whether it is the one that tells this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSnapshot:
    """How this process gets on with the server that keeps a shared pool. Totals count from the start."""

    state: str
    """Of the circuit breaker: "closed" is well, "open" cut off, "probing" about to find out."""
    calls: int
    """Calls of the script."""
    operations: int
    """Operations they carried."""
    largest_batch: int
    round_trip: HistogramSnapshot
    """Seconds from a call to its reply."""
    failures: int
    """Calls that brought no reply, those that took too long included."""
    timeouts: int
    reconnects: int
    """Times the channel of pushed messages was subscribed anew."""
    resyncs: int
    """Times this process told the pool everything it has."""
    lease_renewals: int
    lease_failures: int
    stale: int
    """Releases the pool refused: the slots had gone to others."""
    over_limit: int
    """Slots in use beyond the limit when the pool was last heard of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One pool at one instant: what pages, metrics and tests read."""

    pool: str
    mode: BackpressureMode
    limit: int
    in_flight: int
    """Slots in use, by whatever class."""
    queued: int
    lobby: int
    max_queue_size: int
    paused: bool
    draining: bool
    drain_rate: float | None
    """Grants per second while someone waits; None while unknown."""
    classes: tuple[ClassSnapshot, ...]
    tenants: tuple[TenantSnapshot, ...]
    """The busiest tenants, capped."""
    tenants_active: int
    """How many tenants have something waiting or running, before the cap."""
    processes: tuple[ProcessSnapshot, ...] = ()
    """Of a shared pool: who shares it. What the classes count of the past is of the own process alone."""
    link: LinkSnapshot | None = None
    """Of a shared pool: the way to it."""

    @property
    def utilisation(self) -> float:
        """Slots in use ÷ limit."""
        return self.in_flight / self.limit

    def of(self, priority: str) -> ClassSnapshot:
        """The class of this name. Raises KeyError."""
        for found in self.classes:
            if found.name == priority:
                return found
        raise KeyError(priority)
