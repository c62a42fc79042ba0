"""What this process has asked a shared pool for, and what it holds of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from admission.backends.redis.script import Fence, Op
from admission.line import RUNNING, WAITS, Entry
from admission.statistics import ClassStatistics
from admission.types import Outcome, Reason


class Claim:
    """One ticket of this process in the shared pool.

    The entry is what the process sees of it; the rest is what the script has to be told.
    """

    __slots__ = (
        "answered",
        "entry",
        "fence",
        "held_back_by",
        "hold",
        "id",
        "inner",
        "known_at",
        "left",
        "may_wait",
        "op",
        "position",
        "predicted",
    )

    def __init__(self, id: str, entry: Entry, *, may_wait: bool) -> None:
        self.id = id
        self.entry = entry
        self.may_wait = may_wait
        """Whether anything but a grant at once is a refusal."""
        self.op: Op | None = None
        """The offer, as it was sent last."""
        self.answered = False
        """Whether the script has answered an offer: before, it may not be told anything else about the ticket."""
        self.fence: Fence | None = None
        """Names the grant; None while there is none, or when this process granted it by itself."""
        self.hold: Op | None = None
        """What tells the pool that it runs, while that is under way."""
        self.inner: Entry | None = None
        """Its entry in the pool this process runs alone during an outage."""
        self.left: Reason | None = None
        """Withdrawn before the offer was answered."""
        self.position = 1
        self.predicted: float | None = None
        """Seconds it would go on waiting."""
        self.held_back_by = "line-order"
        self.known_at = 0.0
        """When these three were true, in monotonic seconds."""

    def knows(self, position: int, predicted: float | None, now: float, held_back_by: str | None = None) -> None:
        """The pool says where it stands now."""
        self.position, self.predicted, self.known_at = position, predicted, now
        if held_back_by is not None:
            self.held_back_by = held_back_by


class Claims:
    """All of them, by id; and what was counted on the way, by class."""

    def __init__(self, classes: int) -> None:
        self.by_id: dict[str, Claim] = {}
        self.statistics = tuple(ClassStatistics() for _ in range(classes))
        self.running = [0] * classes
        """Tickets of this process that run."""
        self.waiting = [0] * classes
        self.held = 0
        """Slots they hold."""

    def __iter__(self) -> Iterator[Claim]:
        """A copy: what is decided about one may add or remove others."""
        return iter(list(self.by_id.values()))

    def of(self, entry: Entry) -> Claim:
        """The claim behind an entry. Raises KeyError when it is over."""
        assert entry.id is not None
        return self.by_id[entry.id]

    def asks(self, claim: Claim) -> None:
        """A newcomer."""
        self.by_id[claim.id] = claim
        self.waiting[claim.entry.rank] += 1

    def runs(self, claim: Claim, now: float) -> None:
        """A waiter got its slots."""
        entry = claim.entry
        entry.state = RUNNING
        entry.granted_at = now
        self.waiting[entry.rank] -= 1
        self.running[entry.rank] += 1
        self.held += entry.slots
        if entry.position:
            self.statistics[entry.rank].count_wait(now - entry.arrival, entry.predicted)

    def goes(self, claim: Claim, reason: Reason) -> None:
        """A waiter was refused or left."""
        entry = claim.entry
        del self.by_id[claim.id]
        self.waiting[entry.rank] -= 1
        self.refused(entry, reason)

    def refused(self, entry: Entry, reason: Reason) -> None:
        """Count a refusal, also of one that was never asked for."""
        statistics = self.statistics[entry.rank]
        counters = statistics.rejected if reason.rejects else statistics.evicted
        counters[reason] = counters.get(reason, 0) + 1

    def ends(self, claim: Claim, ran: float, outcome: Outcome) -> None:
        """A running one gave its slots back after so many seconds."""
        entry = claim.entry
        del self.by_id[claim.id]
        self.running[entry.rank] -= 1
        self.held -= entry.slots
        statistics = self.statistics[entry.rank]
        statistics.run.observe(ran)
        if outcome is not Outcome.SUCCESS:
            statistics.count_unsuccessful(outcome)

    def waiters(self) -> Sequence[Claim]:
        """Those that wait, in order of class and arrival."""
        found = [claim for claim in self.by_id.values() if claim.entry.state in WAITS]
        found.sort(key=lambda claim: (claim.entry.rank, claim.entry.number))
        return found

    def runners(self) -> Sequence[Claim]:
        """Those that run."""
        return [claim for claim in self.by_id.values() if claim.entry.state is RUNNING]
