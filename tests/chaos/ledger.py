"""Who may run: the promise of a shared pool, checked against the journal record by record.

At every instant the number running, over all processes, is at most

    limit + lost + alone

`lost` are permits that the pool had to take for free though their work went on: those of a process that was stopped
or cut off past its lease (the pool itself says which, in a message to that process), and those a promoted replica had
not heard of. `alone` are those a process let in by itself while it could not reach the pool; of them each process has
at most its share, counted together with whatever else it runs.

Both are excused until one lease after the fault has healed, and not an instant longer: by then every process has told
the pool what it holds, and the pool has granted nothing until that had drained.
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
    """

    def __init__(self, limit: int, share: int) -> None:
        self.limit = limit
        self.share = share
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
        """Nanoseconds. Until then work that is lost or alone does not count."""
        self.strict_seen = 0
        """Grants of the pool since then."""
        self._lost: dict[str, int] = {}

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
        """How many of those that run are lost or alone."""
        return sum(run.alone or self._lost.get(run.ticket, NEVER) <= at for run in self.running.values())

    def _begin(self, record: Record) -> None:
        at, server, ticket = record.at, record.server, record.ticket
        if ticket in self.running:
            self._accuse(at, f"ticket {ticket} began to run twice")
        self.running[ticket] = Run(server, ticket, at, record.alone)
        total = len(self.running)
        self.most = max(self.most, total)
        self.most_excused = max(self.most_excused, total - self.limit)
        if record.alone:
            self.alone += 1
            here = len(self.running_on(server))
            if here > self.share:
                self._accuse(at, f"server {server} runs {here} alone: its share is {self.share}")
        else:
            self.began[server] += 1
        if at < self.excused_until:
            excused = self.excused(at)
            if total - excused > self.limit:
                self._accuse(at, f"{total} run, {excused} of them excused: the limit is {self.limit}")
            return
        self.strict_seen += not record.alone
        if total > self.limit:
            long = "" if not self.excused(at) else f", {self.excused(at)} of them excused for longer than one lease"
            self._accuse(at, f"{total} run{long}: the limit is {self.limit}")

    def _accuse(self, at: int, what: str) -> None:
        self.wrong.append(what)
