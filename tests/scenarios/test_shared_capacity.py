"""What online requests feel of a backlog of jobs in their pool, and jobs of online requests, in virtual time.

The load is that of `./dev bench shared`, which shows the same with a real web app, a worker and a server between them:
16 slots, requests at 90 % of what they can do, and a worker that has 32 jobs wait in the pool at any time.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from itertools import accumulate

import pytest

from admission.core import Core
from admission.jobs.tender import MOST_ASKED
from admission.policy.limit import FixedLimit
from admission.types import DEFAULT_CLASSES
from tests.scenarios.simulation import Request, Simulation

LIMIT = 16
SERVICE = 0.08
REQUESTS = 5_000
BACKLOG = 5_000
ONLINE, JOBS = (rank for rank, rules in enumerate(DEFAULT_CLASSES) if rules.name in ("normal", "low"))


def exponential(chance: random.Random, count: int, mean: float) -> list[float]:
    """So many draws, whose mean is exactly this one: the load is 90 %, not what chance makes of it."""
    drawn = [chance.expovariate(1.0) for _ in range(count)]
    factor = mean / statistics.fmean(drawn)
    return [factor * each for each in drawn]


class Shared(Simulation):
    """Requests at 90 % of capacity, and a backlog of jobs that last *job* seconds on average; 0: there are none."""

    def __init__(self, job: float, guaranteed: float) -> None:
        classes = list(DEFAULT_CLASSES)
        classes[JOBS] = replace(classes[JOBS], guaranteed=guaranteed)
        super().__init__(Core(limit=FixedLimit(LIMIT), classes=classes, max_queue_size=0))
        chance = random.Random(1)
        arrivals = list(accumulate(exponential(chance, REQUESTS, SERVICE / (0.9 * LIMIT))))
        services = exponential(chance, REQUESTS, SERVICE)
        requests = [
            Request(arrival=at, service=service, rank=ONLINE) for at, service in zip(arrivals, services, strict=True)
        ]
        lengths = [chance.expovariate(1 / job) for _ in range(BACKLOG)] if job else []
        self._backlog = [Request(arrival=0.0, service=length, rank=JOBS, tenant="jobs") for length in lengths]
        self._last_arrival = arrivals[-1]
        self._requests_left = REQUESTS
        self.slots_after = 0
        """Those that jobs have in the instant in which the last request ends."""
        worker = [self._backlog.pop() for _ in range(LIMIT + MOST_ASKED)] if job else []
        self.run(worker + requests, until=self._last_arrival + 2, again=self._ended)

    def p99(self) -> float:
        """Seconds that one request in a hundred waits longer than."""
        waits = [entry.granted_at - entry.arrival for request, entry in self.granted if request.rank == ONLINE]
        return statistics.quantiles(waits, n=100)[98]

    def share_of_jobs(self) -> float:
        """Of the starts, while requests came."""
        ranks = [request.rank for request, entry in self.granted if entry.granted_at <= self._last_arrival]
        return ranks.count(JOBS) / len(ranks)

    def _ended(self, request: Request, now: float) -> Request | None:
        """For a job that has ended the worker has another one wait."""
        if request.rank == ONLINE:
            self._requests_left -= 1
            if not self._requests_left:
                self.slots_after = self.core.classes[JOBS].share.held
            return None
        return replace(self._backlog.pop(), arrival=now) if self._backlog else None


@pytest.fixture(scope="module")
def alone() -> Shared:
    """The requests without jobs."""
    return Shared(0.0, guaranteed=0.05)


@pytest.mark.parametrize(
    ("job", "guaranteed"),
    [
        pytest.param(SERVICE / 5, 0.05, id="short jobs and the default share"),
        pytest.param(SERVICE, 0.0, id="jobs like requests and nothing guaranteed"),
    ],
)
def test_a_backlog_of_jobs_takes_what_requests_leave_and_hardly_delays_them(
    alone: Shared, job: float, guaranteed: float
) -> None:
    """p99 is within 1.2 times that without jobs, jobs have a twentieth of the starts, and all slots at once after."""
    shared = Shared(job, guaranteed)
    assert shared.p99() <= 1.2 * alone.p99()
    assert shared.share_of_jobs() >= 0.05
    assert shared.slots_after == LIMIT
