"""What a pool has counted: own counters and histograms, read at scrape time and never written elsewhere.

Counting is on the hot path, so it is an addition on a plain attribute; labels, names and text are made when someone
looks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, TypedDict

from admission.types import HistogramSnapshot, Outcome, Reason

SECONDS: tuple[float, ...] = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
"""Upper edges for waits and run times."""

MOST_PENDING: Final = 1000
"""Values that wait to be sorted into a histogram at most."""

POSITIONS: tuple[float, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
RATIOS: tuple[float, ...] = (0.1, 0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0, 10.0)


class Histogram:
    """Counts values per bucket; a value equal to an edge belongs below it.

    Values are put on `pending` and sorted into their buckets later, many at once: when someone reads, or when there
    are `MOST_PENDING` of them.
    """

    __slots__ = ("_counts", "_sum", "bounds", "pending")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.pending: list[float] = []
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        pending = self.pending
        pending.append(value)
        if len(pending) > MOST_PENDING:
            self.digest()

    def digest(self) -> None:
        """Count the pending values."""
        pending, counts = sorted(self.pending), self._counts
        self.pending.clear()
        below = 0
        for bucket, bound in enumerate(self.bounds):
            up_to = bisect_right(pending, bound)
            counts[bucket] += up_to - below
            below = up_to
        counts[-1] += len(pending) - below
        self._sum += sum(pending)

    @property
    def count(self) -> int:
        """How many values were seen."""
        return sum(self._counts) + len(self.pending)

    def snapshot(self) -> HistogramSnapshot:
        """A frozen copy."""
        self.digest()
        return HistogramSnapshot(bounds=tuple(self.bounds), counts=tuple(self._counts), sum=self._sum)


class Totals(TypedDict):
    """What a `ClassSnapshot` tells of the past."""

    offered: int
    granted: int
    granted_at_once: int
    released: dict[Outcome, int]
    rejected: dict[Reason, int]
    evicted: dict[Reason, int]
    wait: HistogramSnapshot
    run: HistogramSnapshot
    position: HistogramSnapshot
    prediction: HistogramSnapshot


class ClassStatistics:
    """Everything counted for one class."""

    __slots__ = (
        "dropped",
        "evicted",
        "granted_later",
        "ignored",
        "position",
        "prediction",
        "rejected",
        "run",
        "wait",
    )

    def __init__(self) -> None:
        self.granted_later = 0
        """Granted after a wait."""
        self.dropped = 0
        """Releases with that outcome; the successes are all others in `run`."""
        self.ignored = 0
        self.rejected: dict[Reason, int] = {}
        self.evicted: dict[Reason, int] = {}
        self.wait = Histogram(SECONDS)
        self.run = Histogram(SECONDS)
        self.position = Histogram(POSITIONS)
        self.prediction = Histogram(RATIOS)

    def count_wait(self, waited: float, predicted: float | None) -> None:
        """A waiter was granted after *waited* seconds; *predicted* is what it was told on arrival."""
        self.granted_later += 1
        pending = self.wait.pending
        pending.append(waited)
        if predicted is not None and waited > 0:
            self.prediction.pending.append(predicted / waited)
        if len(pending) > MOST_PENDING:
            self.wait.digest()
            self.prediction.digest()

    def count_unsuccessful(self, outcome: Outcome) -> None:
        """A release ended with this outcome, which is not SUCCESS."""
        if outcome is Outcome.DROPPED:
            self.dropped += 1
        else:
            self.ignored += 1

    def released(self) -> dict[Outcome, int]:
        """How admitted work ended."""
        success = self.run.count - self.dropped - self.ignored
        return {Outcome.SUCCESS: success, Outcome.DROPPED: self.dropped, Outcome.IGNORED: self.ignored}

    def totals(self, *, running: int, waiting: int) -> Totals:
        """All of it, frozen.

        Args:
            running, waiting: Tickets that are counted nowhere yet.
        """
        released = self.released()
        granted = sum(released.values()) + running
        at_once = granted - self.granted_later
        refused = sum(self.rejected.values()) + sum(self.evicted.values())
        wait = self.wait.snapshot()
        # Whoever was granted at once waited 0 s.
        counts = (wait.counts[0] + at_once, *wait.counts[1:])
        return Totals(
            offered=granted + waiting + refused,
            granted=granted,
            granted_at_once=at_once,
            released=released,
            rejected=dict(self.rejected),
            evicted=dict(self.evicted),
            wait=HistogramSnapshot(bounds=wait.bounds, counts=counts, sum=wait.sum),
            run=self.run.snapshot(),
            position=self.position.snapshot(),
            prediction=self.prediction.snapshot(),
        )
