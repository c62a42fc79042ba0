"""One run: faults one after another under load, and everything that is checked meanwhile and at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.chaos.arena import Arena, Member, Setting
from tests.chaos.journal import Reader, Record
from tests.chaos.keys import Keys
from tests.chaos.ledger import NEVER, Ledger
from tests.chaos.load import Load
from tests.chaos.server import POOL

SLACK = 2.0
"""Seconds a busy machine may add to whatever must happen in time."""

PROBED_WITHIN = 6.0
"""Seconds after which a breaker that is open has probed again, at the latest."""


class Found(Exception):
    """The first violation of a brief run."""


WRONGS = (
    "over-granted",
    "hung",
    "lost permits",
    "leaked keys",
    "stalled",
    "crashed",
    "raised",
)
"""Kinds of violation."""


@dataclass(slots=True, kw_only=True)
class Tick:
    """What one fault did."""

    number: int
    fault: str
    answers: Counter[str] = field(default_factory=Counter)
    most: int = 0
    """Highest number running at once."""
    over: int = 0
    """Of these, above the limit, and declared."""
    lost: int = 0
    """Permits the pool took for free, their work going on."""
    alone: int = 0
    """Requests let in by a process on its own."""
    again: float = 0.0
    """Seconds from the end of the fault until every process was granted work again."""
    seconds: float = 0.0
    wrong: int = 0


class Run:
    """A run of one setting.

    Args:
        directory: Where journal and logs are written.
        brief: Raise `Found` at the first violation.

    Attributes:
        wrong: Kind and description of every violation.
        ticks: What the faults did.
    """

    def __init__(self, setting: Setting, seed: int, directory: Path, *, brief: bool = False) -> None:
        self.setting = setting
        self._brief = brief
        self.arena = Arena(setting, directory)
        self.keys = Keys(self.arena.redis, self.arena.namespace, POOL)
        self.load = Load(self.arena.targets, seed, setting.timeout)
        self.ledger = Ledger(setting.limit, setting.share, setting.lease)
        self.dice = Random(seed)
        self.wrong: list[tuple[str, str]] = []
        self.ticks: list[Tick] = []
        self.deaf = False
        """The server cannot be asked at the moment: what the journal says is judged later."""
        self._reader = Reader(directory / "journal")
        self._unread: list[Record] = []
        self._processes: dict[str, int] = {}
        """Server by the name its backend has in the pool."""
        self._lost_seen: set[str] = set()
        self._told = [0, 0]

    # ------------------------------------------------------------------ the course of it

    def start(self) -> None:
        """Start everything, and wait until every process is granted work."""
        self.arena.start()
        self.load.start()
        if not self._work_everywhere(STARTED_WITHIN):
            self.blame("stalled", "not every process was granted work at the start")
        self.hear_of_each_other()

    def tick(self, name: str, strike: Callable[[Run, Random], None]) -> Tick:
        """Have one fault happen, and everything recover from it."""
        tick = Tick(number=len(self.ticks) + 1, fault=name)
        began, answers, wrong = time.monotonic(), self.load.answers.copy(), len(self.wrong)
        lost, alone = len(self._lost_seen), self.ledger.alone
        self.ledger.excused_until = NEVER
        self.ledger.reset()
        strike(self, self.dice)
        healed = time.monotonic()
        if not self._work_everywhere(self.setting.lease + PROBED_WITHIN + SLACK):
            self.blame("stalled", f"after {name} not every process was granted work again")
        tick.again = time.monotonic() - healed
        tick.lost, tick.alone = len(self._lost_seen) - lost, self.ledger.alone - alone
        self._settle(name, exceeded=tick.lost + tick.alone > 0)
        for member in self.arena.members:
            member.lost_since = None
        tick.answers = self.load.answers - answers
        tick.most, tick.over = self.ledger.most, max(0, self.ledger.most_excused)
        tick.seconds = time.monotonic() - began
        tick.wrong = len(self.wrong) - wrong
        self.ticks.append(tick)
        return tick

    def finish(self) -> None:
        """End the load, then the processes, and see what is left."""
        self.load.stop()
        self.observe()
        if not self.until(lambda: self.keys.books().empty and not self.ledger.running, self.setting.lease + SLACK):
            left = f"{len(self.ledger.running)} run, and the pool says {self.keys.books()}"
            self.blame("lost permits", f"one lease after the load ended {left}")
        self._no_dead_holds_a_lease("the end of the load")
        for what in self.arena.end():
            self.blame("crashed", what)
        for what in self.keys.leaked():
            self.blame("leaked keys", what)
        for what in self.arena.tracebacks():
            self.blame("raised", what)

    def close(self) -> None:
        """End whatever still runs."""
        self.keys.close()
        self.arena.close()
        self._reader.close()

    # ------------------------------------------------------------------ what faults use

    def until(self, happened: Callable[[], object], within: float) -> bool:
        """Go on watching until *happened()* is true; False if it was not within so many seconds."""
        give_up = time.monotonic() + within
        while not happened():
            if time.monotonic() > give_up:
                return False
            time.sleep(0.02)
            self.observe()
        return True

    def wait(self, seconds: float) -> None:
        """Go on watching for so long."""
        self.until(lambda: False, seconds)

    def hear_of_each_other(self) -> None:
        """Have every process know how many they are: each looks at the pool three times in a lease.

        Until then a share of the limit is one of the processes there were before.
        """
        if not self.until(lambda: len(self.keys.books().processes) == len(self.arena.members), SLACK + PROBED_WITHIN):
            self.blame("stalled", "not every process has a lease")
        self.wait(self.setting.lease / 2)

    def hold_slots(self, member: Member, count: int) -> None:
        """Have work run on *member* that lasts for several leases; return once some does."""
        self.load.hold(member.place, count, HOLDS * self.setting.lease)
        if not self.until(lambda: self.holders(member) > 0, 2 * self.setting.lease + SLACK):
            self.blame("stalled", f"server {member.number} was not granted work of the highest class")

    def holders(self, member: Member) -> int:
        """How much of what it runs takes long."""
        young = time.monotonic_ns() - 300_000_000
        return sum(run.began < young for run in self.ledger.running_on(member.number))

    def process_of(self, member: Member) -> str:
        """The name its backend has in the pool."""
        return next(name for name, number in reversed(self._processes.items()) if number == member.number)

    def blame(self, kind: str, what: str) -> None:
        """Note a violation."""
        self.wrong.append((kind, what))
        if self._brief:
            raise Found(what)

    def observe(self) -> None:
        """Take in what has happened since the last time, in an order in which it can be judged."""
        self._unread.extend(self._reader.news())
        for record in self._unread:
            if record.ticket:
                self._processes[record.ticket[:16]] = record.server
        for member in self.arena.crashed():
            self.blame("crashed", f"server {member.number} ended by itself: {member.log.read_text()[-2000:]}")
            self.arena.bury(member)
            self.arena.replace(member)
        if self.deaf:
            return
        # What was published before now is heard before what ran until now is judged.
        self.keys.hear()
        self._hear_of_losses()
        self.ledger.read(self._unread)
        self._unread.clear()
        self._collect("over-granted", self.ledger.wrong, 0)
        self._collect("hung", self.load.wrong, 1)

    # ------------------------------------------------------------------ inside

    def _collect(self, kind: str, found: list[str], place: int) -> None:
        news, self._told[place] = found[self._told[place] :], len(found)
        for what in news:
            self.blame(kind, what)

    def _hear_of_losses(self) -> None:
        members = {member.number: member for member in self.arena.members}
        for ticket, at in list(self.keys.lost.items()):
            if ticket in self._lost_seen:
                continue
            member = members.get(self._processes.get(ticket[:16], -1))
            if member is None or member.target.doomed:
                continue  # It was killed: nothing of it goes on.
            self._lost_seen.add(ticket)
            if member.lost_since is None:
                self.blame("over-granted", f"server {member.number} lives, and its permit {ticket} was taken")
            else:
                self.ledger.lose([ticket], min(at, member.lost_since))

    def lose_unknown_to(self, keys: Keys) -> None:
        """Whatever runs and that pool has not heard of is lost."""
        known = keys.running()
        lost = [run.ticket for run in self.ledger.running.values() if not run.alone and run.ticket not in known]
        self._lost_seen.update(lost)
        self.ledger.lose(lost, time.monotonic_ns())

    def _work_everywhere(self, within: float) -> bool:
        """Whether every process is granted work from now on."""
        self.observe()
        before = self.ledger.began.copy()
        return self.until(
            lambda: all(self.ledger.began[member.number] > before[member.number] for member in self.arena.members),
            within,
        )

    def _settle(self, name: str, *, exceeded: bool) -> None:
        """One lease later nothing is excused any more."""
        self.observe()
        self.ledger.strict_seen = 0
        lease = round(self.setting.lease * 1e9) if exceeded else 0
        self.ledger.excused_until = time.monotonic_ns() + lease
        self._no_dead_holds_a_lease(name)
        if not self.until(lambda: self.ledger.strict_seen >= SETTLED, self.setting.lease * 2 + SLACK):
            self.blame("stalled", f"a lease after {name} there was hardly any work")

    def _no_dead_holds_a_lease(self, after: str) -> None:
        living = len(self.arena.members)
        if not self.until(lambda: len(self.keys.books().processes) == living, self.setting.lease + SLACK):
            leases = self.keys.books().processes
            self.blame("lost permits", f"{len(leases)} processes have a lease one lease after {after}, {living} live")


STARTED_WITHIN = 30.0

HOLDS = 3.0
"""Leases that a long request lasts: more than any declared overshoot may."""

SETTLED = 12
"""Grants that are looked at without excuse after each fault."""
