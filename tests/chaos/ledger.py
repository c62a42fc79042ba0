"""Who may run: the promise of a shared pool, checked against the journal record by record.

At every instant the number running, over all processes, is at most

    limit + lost + alone

`lost` are permits that the pool had to take for free though their work went on: those of a process that was stopped
or cut off past its lease (the pool itself says which, in a message to that process), and those a promoted replica had
not heard of. They are excused until one lease after the fault has healed. `alone` are those a process let in by itself
while it could not reach the pool; of them each process has at most its share, counted together with whatever else it
runs. They are excused until one lease after that process could reach the pool again: not by the faults that were
meant, for on a busy machine a server may be out of reach without one.

Neither is excused an instant longer: by then every process has told the pool what it holds, and the pool has granted
nothing until that had drained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.journal import Kind, Record

NEVER = 1 << 62


@dataclass(slots=True)
class Run:
    """One permit's work."""

    server: int
    ticket: str
    began: int
    alone: bool


class Ledger:
    """Who runs now, and what was wrong with it.

    Args:
        limit: Of the pool.
        share: What one process may run in all while it goes alone.
        lease: Seconds.
    """

    def __init__(self, limit: int, share: int, lease: float) -> None:
        self.limit = limit
        self.share = share
        self._lease = round(lease * 1e9)
        self.running: dict[str, Run] = {}
        self.wrong: list[str] = []
        """What broke the promise, in sentences."""
        self.began: Counter[int] = Counter()
        """Grants of the pool whose work began, by server."""
        self.alone = 0
        """Work begun alone."""
        self.most = 0
        """Highest number running, until `reset`."""
        self.most_excused = 0
        """Highest number by which the limit was exceeded, until `reset`."""
        self.excused_until = 0
        """Nanoseconds. Until then work that is lost does not count."""
        self.strict_seen = 0
        """Grants of the pool since then, while nothing was excused."""
        self.unprovoked = 0
        """Times a process was cut off though no fault was about."""
        self._lost: dict[str, int] = {}
        self._alone_until: dict[int, int] = {}
        """Nanoseconds until which what a server let in alone is excused; `NEVER` while it is cut off."""

    def lose(self, tickets: Iterable[str], at: int) -> None:
        """These permits were taken for free at that time, and their work may go on."""
        for ticket in tickets:
            self._lost.setdefault(ticket, at)

    def read(self, records: Iterable[Record]) -> None:
        """Take in what the journal says next."""
        for record in records:
            if record.kind is Kind.BEGIN:
                self._begin(record)
            elif record.kind is Kind.END:
                self.running.pop(record.ticket, None)
            elif record.kind is Kind.CUT_OFF:
                self._alone_until[record.server] = NEVER
                self.unprovoked += record.at >= self.excused_until
            elif record.kind is Kind.REJOINED:
                self._alone_until[record.server] = record.at + self._lease
            else:
                self.running = {t: run for t, run in self.running.items() if run.server != record.server}

    def reset(self) -> None:
        """Begin a new tick."""
        self.most = len(self.running)
        self.most_excused = 0

    def running_on(self, server: int) -> list[Run]:
        """What one process runs."""
        return [run for run in self.running.values() if run.server == server]

    def excused(self, at: int) -> int:
        """How many of those that run are lost or alone, and may still be."""
        return sum(self._excuses(run, at) for run in self.running.values())

    def _excuses(self, run: Run, at: int) -> bool:
        if run.alone:
            return at < self._alone_until.get(run.server, 0)
        return self._lost.get(run.ticket, NEVER) <= at < self.excused_until

    def _begin(self, record: Record) -> None:
        at, server, ticket = record.at, record.server, record.ticket
        if ticket in self.running:
            self._accuse(f"ticket {ticket} began to run twice")
        self.running[ticket] = Run(server, ticket, at, record.alone)
        total = len(self.running)
        self.most = max(self.most, total)
        self.most_excused = max(self.most_excused, total - self.limit)
        if record.alone:
            self.alone += 1
            self._begin_alone(at, server)
        else:
            self.began[server] += 1
        excused = self.excused(at)
        if total - excused > self.limit:
            self._accuse(f"{total} run, {excused} of them excused: the limit is {self.limit}")
        self.strict_seen += not (excused or record.alone or at < self.excused_until)

    def _begin_alone(self, at: int, server: int) -> None:
        here = len(self.running_on(server))
        if here > self.share:
            self._accuse(f"server {server} runs {here} alone: its share is {self.share}")
        if at >= self._alone_until.get(server, 0):
            self._accuse(f"server {server} let one in alone, and was not cut off")

    def _accuse(self, what: str) -> None:
        self.wrong.append(what)
