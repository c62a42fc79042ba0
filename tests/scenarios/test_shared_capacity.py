"""What online requests feel of a backlog of jobs in their pool, and jobs of online requests, in virtual time.

The load is that of `./dev bench shared`, which shows the same with a real web app, a worker and a server between them:
8 slots, requests at 90 % of what they can do, and a worker that has so many jobs wait in the pool as it would.
"""

from __future__ import annotations

import random
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from typing import Any

import pytest

from admission.core import Core
from admission.jobs.tender import Appetite
from admission.line import RUNNING, WAITING, Entry
from admission.policy.limit import FixedLimit
from admission.types import DEFAULT_CLASSES, PriorityClass
from tests.scenarios.simulation import Request, Simulation

LIMIT = 8
REQUESTS = 5_000
BACKLOG = 5_000
SEEDS = range(8)
ONLINE, JOBS = (rank for rank, rules in enumerate(DEFAULT_CLASSES) if rules.name in ("normal", "low"))


def exponential(chance: random.Random, count: int, mean: float) -> list[float]:
    """So many draws, whose mean is exactly this one: the load is 90 %, not what chance makes of it."""
    drawn = [chance.expovariate(1.0) for _ in range(count)]
    factor = mean / statistics.fmean(drawn)
    return [factor * each for each in drawn]


class Shared(Simulation):
    """Requests of *service* seconds on average at 90 % of capacity, and a backlog of jobs that last *job* seconds."""

    def __init__(self, seed: int, service: float, job: float, classes: Sequence[PriorityClass]) -> None:
        super().__init__(Core(limit=FixedLimit(LIMIT), classes=classes, max_queue_size=0))
        chance = random.Random(seed)
        arrivals = list(accumulate(exponential(chance, REQUESTS, service / (0.9 * LIMIT))))
        services = exponential(chance, REQUESTS, service)
        requests = [
            Request(arrival=at, service=service, rank=ONLINE) for at, service in zip(arrivals, services, strict=True)
        ]
        self._backlog = [chance.expovariate(1 / job) for _ in range(BACKLOG)] if job else []
        self._appetite = Appetite(classes[JOBS].max_delay)
        self._asked: deque[Entry] = deque()
        """The worker's tickets in the pool, in the order in which they came."""
        self._last_arrival = arrivals[-1]
        self._requests_left = REQUESTS
        self.slots_after = 0
        """Those that jobs have in the instant in which the last request ends."""
        self.run(requests, again=self._ended)

    def waits(self) -> list[float]:
        """Seconds, of each request."""
        return [entry.granted_at - entry.arrival for request, entry in self.granted if request.rank == ONLINE]

    def share_of_jobs(self) -> float:
        """Of the starts, while requests came."""
        ranks = [request.rank for request, entry in self.granted if entry.granted_at <= self._last_arrival]
        return ranks.count(JOBS) / len(ranks)

    def look(self) -> None:
        """The worker has as many tickets wait as it would (`ClassTender.ask`)."""
        asked, appetite = self._asked, self._appetite
        while asked and asked[0].state is not WAITING:
            appetite.granted(asked[0].granted_at - asked.popleft().arrival)
        if asked:
            appetite.waits(self.now - asked[0].arrival)
        while len(asked) > appetite.most:
            self.withdraw(asked.pop())
        while len(asked) < appetite.most and self._backlog:
            entry = self.offer(Request(arrival=self.now, service=self._backlog.pop(), rank=JOBS, tenant="jobs"))
            if entry.state is RUNNING:
                appetite.granted(0.0)
            else:
                asked.append(entry)
        if not self._requests_left:
            self.slots_after = self.core.classes[JOBS].share.held
            self._requests_left = -1
            self._backlog.clear()

    def _ended(self, request: Request, now: float) -> None:
        if request.rank == ONLINE:
            self._requests_left -= 1


@cache
def p99_alone(service: float) -> float:
    """Of the requests without jobs."""
    return p99([Shared(seed, service, 0.0, DEFAULT_CLASSES) for seed in SEEDS])


def p99(runs: Sequence[Shared]) -> float:
    """Seconds that one request in a hundred waits longer than, in all runs together."""
    return statistics.quantiles([wait for run in runs for wait in run.waits()], n=100)[98]


def classes_with(**changes: Any) -> Sequence[PriorityClass]:
    """The classes everybody has, but for these rules of `low`, in which jobs are."""
    return [replace(rules, **changes) if rank == JOBS else rules for rank, rules in enumerate(DEFAULT_CLASSES)]


@pytest.mark.parametrize(
    ("service", "job", "changes", "most"),
    [
        pytest.param(0.05, 0.2, {}, 1.2, id="short jobs"),
        pytest.param(0.05, 1.0, {}, 1.2, id="jobs like requests"),
        pytest.param(1.0, 1.0, {"max_delay": 60.0}, 1.2, id="requests of a second, and jobs like them"),
        pytest.param(10.0, 1.0, {"max_delay": None}, 1.2, id="requests of ten seconds, and jobs like them"),
        # A twentieth of the starts is a tenth of the time then, and requests leave no more.
        pytest.param(1.0, 2.0, {"guaranteed": 0.01}, 1.5, id="jobs twice as long, sure of less"),
        # One that has waited for 30 seconds goes first, in each rush.
        pytest.param(1.0, 1.0, {}, 1.3, id="requests of a second, and jobs that get overdue"),
    ],
)
def test_a_backlog_of_jobs_takes_what_requests_leave_and_hardly_delays_them(
    service: float, job: float, changes: Mapping[str, Any], most: float
) -> None:
    """p99 is at most so many times that without jobs. These have their share of the starts; after them, all slots."""
    classes = classes_with(**changes)
    runs = [Shared(seed, service, job * service, classes) for seed in SEEDS]
    assert p99(runs) <= most * p99_alone(service)
    for shared in runs:
        assert shared.share_of_jobs() >= classes[JOBS].guaranteed
        assert shared.slots_after == LIMIT
