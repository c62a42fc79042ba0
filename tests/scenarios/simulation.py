"""The smallest driver of `Core`: arrivals with known service times, in virtual time."""

from __future__ import annotations

import csv
import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from admission.core import Core, Decisions
from admission.line import REFUSED, RUNNING, Entry
from admission.types import Reason

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request: when it comes, whose it is, and how long it will run."""

    arrival: float
    service: float
    rank: int = 0
    tenant: str = ""
    slots: int = 1
    cost: float = 1
    patience: float = math.inf


class Simulation:
    """Runs requests through a core and remembers what became of them."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.now = 0.0
        self.granted: list[tuple[Request, Entry]] = []
        """In the order of the grants."""
        self.refused: list[tuple[Request, Reason]] = []
        self._requests: dict[Entry, Request] = {}
        self._ends: list[tuple[float, int, Entry]] = []

    def run(
        self,
        requests: Iterable[Request],
        until: float = math.inf,
        again: Callable[[Request, float], Request | None] | None = None,
    ) -> None:
        """Play *requests*, which are ordered by arrival; a closed-loop client is *again*, asked after every end."""
        arrivals = [(request.arrival, number, request) for number, request in enumerate(requests)]
        heapq.heapify(arrivals)
        number = len(arrivals)
        while True:
            arrival = arrivals[0][0] if arrivals else math.inf
            end = self._ends[0][0] if self._ends else math.inf
            timer = self.core.next_event(self.now)
            self.now = min(arrival, end, timer)
            if self.now >= until or self.now == math.inf:
                return
            if timer == self.now:
                self._note(self.core.expire(self.now))
            elif end == self.now:
                _, _, entry = heapq.heappop(self._ends)
                request = self._requests[entry]
                self._note(self.core.release(self.now, entry))
                following = again(request, self.now) if again is not None else None
                if following is not None:
                    number += 1
                    heapq.heappush(arrivals, (following.arrival, number, following))
            else:
                self.offer(heapq.heappop(arrivals)[2])
            self.look()

    def look(self) -> None:
        """Called after everything that happens; for those who want to watch, or to do something themselves."""

    def offer(self, request: Request) -> Entry:
        """A request comes now."""
        entry, decisions = self.core.offer(
            self.now,
            request.rank,
            request.tenant,
            request.slots,
            request.cost,
            expires=self.now + request.patience,
        )
        self._requests[entry] = request
        if entry.state is RUNNING:
            self._began(entry)
        elif entry.state is REFUSED:
            self.refused.append((request, entry.reason))
        self._note(decisions)
        return entry

    def withdraw(self, entry: Entry) -> None:
        """One that waits leaves."""
        self._note(self.core.withdraw(self.now, entry))

    def _note(self, decisions: Decisions) -> None:
        for entry in decisions.granted:
            self._began(entry)
        for entry in decisions.evicted:
            self.refused.append((self._requests[entry], entry.reason))

    def _began(self, entry: Entry) -> None:
        request = self._requests[entry]
        self.granted.append((request, entry))
        heapq.heappush(self._ends, (self.now + request.service, len(self.granted), entry))


def tokens(prompt: int, answer: int) -> float:
    """Cost of a request as the authors of the VTC charge it: an answer's token costs twice a prompt's."""
    return prompt + 2 * answer


def seconds(prompt: int, answer: int) -> float:
    """Service time of a model server: half a millisecond a prompt token, 20 ms an answer's token."""
    return 0.1 + 0.0005 * prompt + 0.02 * answer


def lmsys_arena() -> list[Request]:
    """1,500 requests of 27 tenants in ten minutes."""
    with (DATA / "lmsys_arena_27clients_10min.csv").open(newline="") as file:
        return [
            Request(
                arrival=float(row["arrival_s"]),
                tenant=row["tenant"],
                service=seconds(int(row["input_tokens"]), int(row["output_tokens"])),
                cost=tokens(int(row["input_tokens"]), int(row["output_tokens"])),
            )
            for row in csv.DictReader(file)
        ]


def azure_conversation() -> list[Request]:
    """2,000 requests without tenants in six minutes."""
    with (DATA / "azure_llm_conversation_first_2000.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [
        Request(
            arrival=(time - times[0]).total_seconds(),
            service=seconds(int(row["ContextTokens"]), int(row["GeneratedTokens"])),
            cost=tokens(int(row["ContextTokens"]), int(row["GeneratedTokens"])),
        )
        for time, row in zip(times, rows, strict=True)
    ]


def slots_for(requests: Sequence[Request], overload: float) -> int:
    """How many slots make the offered work *overload* times what they can do."""
    span = requests[-1].arrival - requests[0].arrival
    return max(1, round(sum(request.service for request in requests) / span / overload))
