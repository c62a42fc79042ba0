"""What a worker tells about itself: counters, and a frozen picture of them."""

from __future__ import annotations

from dataclasses import dataclass

from admission.statistics import SECONDS, Histogram
from admission.types import HistogramSnapshot

__all__ = ["Tally", "WorkerStatus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker at one instant. Totals count from its creation."""

    name: str
    is_running: bool
    """It takes jobs."""
    workers: int
    """Jobs it may have at once."""
    active: int
    """Jobs it has."""
    permits: int
    """Slots of the pool it holds without a job."""
    asked: int
    """Tickets of its that wait in the pool's line."""
    taken: int
    """Deliveries."""
    succeeded: int
    failed: int
    """Attempts that raised, those that took too long included."""
    retried: int
    """How many of them come back."""
    timeouts: int
    buried: int
    """Jobs it sent to the dead letters."""
    cancelled: int
    handed_back: int
    """Jobs it gave back unfinished: for want of a thread, or because it stopped."""
    stale: int
    """Its reports that were refused: the job had been delivered again meanwhile."""
    callbacks: int
    """Callbacks it enqueued."""
    success_rate: float
    """succeeded ÷ (succeeded + failed); 1.0 before the first."""
    wait: HistogramSnapshot
    """Seconds from enqueueing to the first start."""
    run: HistogramSnapshot
    """Seconds an attempt ran, of those that ended."""
    threads: int
    """Threads there may be."""
    threads_busy: int
    thread_pool_exhausted: int
    """How often a job found no free thread."""

    @property
    def average_wait(self) -> float:
        """Seconds from enqueueing to the first start; 0.0 before the first."""
        return self.wait.mean

    @property
    def average_run_time(self) -> float:
        """Seconds an attempt ran; 0.0 before the first ended."""
        return self.run.mean

    @property
    def thread_pool_utilisation(self) -> float:
        """Busy threads ÷ threads there may be."""
        return self.threads_busy / self.threads


class Tally:
    """The counters of one worker: plain numbers, read when somebody looks."""

    __slots__ = (
        "buried",
        "callbacks",
        "cancelled",
        "failed",
        "handed_back",
        "retried",
        "run",
        "stale",
        "succeeded",
        "timeouts",
        "wait",
    )

    def __init__(self) -> None:
        self.succeeded = self.failed = self.retried = self.timeouts = self.buried = 0
        self.cancelled = self.handed_back = self.stale = self.callbacks = 0
        self.wait = Histogram(SECONDS)
        """Seconds from enqueueing to the first start."""
        self.run = Histogram(SECONDS)
        """Seconds of each attempt that ended."""

    def success_rate(self) -> float:
        """succeeded ÷ all attempts that ended by themselves; 1.0 before the first."""
        ended = self.succeeded + self.failed
        return self.succeeded / ended if ended else 1.0
