"""Slots of the shared pool, asked for on behalf of jobs.

A job needs a permit like any request, and only a permit in hand lets a worker take one. So the pool orders jobs against
online requests by its own rules, an idle pool is used in full, and no job that was taken waits for capacity.

    ask ──▶ (line of the pool) ──▶ idle ──▶ use ──▶ a job runs ──▶ end ──▶ used ──▶ idle again
                                    └──▶ release                   │         └────▶ release: somebody waits
                                                                   └──▶ release: it was no short one
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from admission.controller import AdmissionController
from admission.errors import Refusal
from admission.line import RUNNING, Entry
from admission.policy.retry import Retry
from admission.types import Outcome

TENANT = "jobs"
"""Whose tickets they are in the pool: between their own tenants the queue is fair itself."""

MOST_ASKED = 32
"""Tickets of one class that wait in the pool at once, while they are granted soon."""

LONG = 1.0
"""Seconds after which a wait is a long one; an eighth of the class's `max_delay` if that is less."""

SHORT = 0.005
"""Seconds: only after jobs as short as that is a permit kept. What is known of who waits is a round trip old, so after
a longer one it is released in any case: then the next in line has its turn, and a round trip is nothing."""

BACKOFF = Retry.exponential(max_attempts=10_000, base=0.05, factor=2.0, max_delay=1.0, jitter=0.5)
"""How a class comes back that the pool has turned away."""


Used = tuple[Entry, Outcome, float]
"""A permit whose job has ended, how, and after how many seconds."""


class Appetite:
    """How many tickets of one class wait in the pool at once: so many as are granted soon, and one at least.

    So jobs take few places in the line of a pool that has no room for them, and what gets overdue there is one ticket,
    not as many together as the pool has slots: with `max_delay` a backlog has one start in that time, not all starts.

    Args:
        max_delay: That of the class, in seconds.
    """

    __slots__ = ("long", "most")

    def __init__(self, max_delay: float | None) -> None:
        self.long = LONG if max_delay is None else min(LONG, max_delay / 8)
        """Seconds after which a wait is a long one."""
        self.most = MOST_ASKED

    def granted(self, waited: float) -> None:
        """A ticket was granted after so many seconds."""
        if waited < self.long:
            self.most = min(2 * self.most, MOST_ASKED)

    def waits(self, waited: float) -> None:
        """The oldest ticket has waited so many seconds until now."""
        if waited >= self.long:
            self.most = 1


class Wish:
    """One ticket in the pool's line."""

    __slots__ = ("entry", "line", "since")

    def __init__(self, line: ClassTender, now: float) -> None:
        self.line = line
        self.since = now
        self.entry: Entry | None = None

    def entered(self, entry: Entry) -> None:
        """Room in the line is nothing to act on."""

    def decided(self, entry: Entry) -> None:
        """Granted, or turned away."""
        entry.waiter = None
        self.line.decided(self, entry)


class ClassTender:
    """The permits of one class. See `Tender`."""

    __slots__ = (
        "_appetite",
        "_asked",
        "_changed",
        "_controller",
        "_loop",
        "_refusals",
        "_timer",
        "_waiting",
        "idle",
        "rank",
        "used",
    )

    def __init__(self, controller: AdmissionController, rank: int, changed: Callable[[], None]) -> None:
        self.rank = rank
        self.idle: deque[Entry] = deque()
        """Granted, and without a job."""
        self.used: list[Used] = []
        """Their job has ended, and nothing is said yet of what becomes of them."""
        self._controller = controller
        self._changed = changed
        self._asked: dict[Wish, None] = {}
        """In the order in which they came."""
        self._appetite = Appetite(controller.classes[rank].max_delay)
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.TimerHandle | None = None
        """Rings when the oldest of several may have waited for long."""
        self._refusals = 0
        """In a row."""
        self._timer: asyncio.TimerHandle | None = None
        """Set while it keeps away from the pool."""

    @property
    def asked(self) -> int:
        """Tickets that wait."""
        return len(self._asked)

    def ask(self, wanted: int) -> None:
        """From now on so many tickets wait, but for the bound and a refusal's time out."""
        wanted = min(wanted, self._appetite.most)
        while len(self._asked) > wanted:
            wish, _ = self._asked.popitem()  # The latest: those before it have waited longer.
            self._withdraw(wish)
        for _ in range(wanted - len(self._asked)):  # One by one: while cut off, the pool may decide at once.
            if self._timer is not None:
                break
            wish = Wish(self, self._loop.time())
            self._asked[wish] = None
            try:
                wish.entry = self._controller.enqueue(wish, self.rank, TENANT, max_wait=None)
            except Refusal:
                self._asked.pop(wish, None)
                self._back_off()
        if len(self._asked) > 1 and self._waiting is None:
            oldest = next(iter(self._asked)).since
            self._waiting = self._loop.call_at(oldest + self._appetite.long, self._look_at_oldest)

    def decided(self, wish: Wish, entry: Entry) -> None:
        """The pool's word on a ticket."""
        if wish not in self._asked:  # Withdrawn in the same instant: the next one's turn.
            self.release(entry)
            return
        del self._asked[wish]
        if entry.state is RUNNING:
            self._refusals = 0
            self.idle.append(entry)
            self._appetite.granted(self._loop.time() - wish.since)
        else:
            self._back_off()
        self._changed()

    def use(self) -> Entry:
        """An idle permit, for a job. Hand it to `end`, or to `unused`."""
        return self.idle.popleft()

    def unused(self, entry: Entry) -> None:
        """No job came for it."""
        if entry.state is RUNNING:
            self.idle.append(entry)

    def end(self, entry: Entry, outcome: Outcome, ran: float) -> None:
        """Its job has ended after *ran* seconds. It may have released the permit by itself: then nothing is left."""
        if entry.state is RUNNING:
            if ran > SHORT:
                self._controller.finish(entry, outcome, rtt=ran)
            else:
                self.used.append((entry, outcome, ran))

    def keep(self, most: int) -> None:
        """What jobs have left is for other jobs, so that at most so many are idle; the rest is released."""
        used = self.used
        while used and len(self.idle) < most:
            self.idle.append(used.pop()[0])
        self.release_used()

    def release_used(self) -> None:
        """What jobs have left is for whoever is next in the pool."""
        used, self.used = self.used, []
        for entry, outcome, ran in used:
            if entry.state is RUNNING:
                # The limit learns from the last job alone: a permit that was kept is older than any job.
                self._controller.finish(entry, outcome, rtt=ran)

    def release_idle(self, keep: int) -> None:
        """At most so many are idle from now on."""
        while len(self.idle) > keep:
            self.release(self.idle.pop())

    def release(self, entry: Entry) -> None:
        """Give a slot back that no job used."""
        if entry.state is RUNNING:
            self._controller.finish(entry, Outcome.IGNORED)

    def close(self) -> None:
        """Wait for nothing, and keep nothing idle."""
        for timer in (self._timer, self._waiting):
            if timer is not None:
                timer.cancel()
        self._timer = self._waiting = None
        asked, self._asked = self._asked, {}
        for wish in asked:
            self._withdraw(wish)
        self.release_used()
        self.release_idle(0)

    def _withdraw(self, wish: Wish) -> None:
        if wish.entry is not None:
            wish.entry.waiter = None
            self._controller.withdraw(wish.entry)

    def _look_at_oldest(self) -> None:
        """If it has waited for long, the others leave; else look again when it will have."""
        self._waiting = None
        if self._asked:
            self._appetite.waits(self._loop.time() - next(iter(self._asked)).since)
            self.ask(len(self._asked))

    def _back_off(self) -> None:
        if self._timer is None:
            self._refusals += 1
            delay = BACKOFF.delay_for(min(self._refusals, 10), random.random())
            assert delay is not None
            self._timer = self._loop.call_later(delay, self._come_back)

    def _come_back(self) -> None:
        self._timer = None
        self._changed()


class Tender:
    """The permits that a worker holds, class by class, and its tickets in the pool's line.

    It is no pool of its own: a permit without a job is released at once, and one whose job has ended stays only while
    nobody else waits for a slot. Belongs to the running asyncio loop.

    Args:
        controller: The pool, bound to that loop.
        changed: Called when a permit has come or a time out is over. Must be quick: look later.
    """

    def __init__(self, controller: AdmissionController, changed: Callable[[], None]) -> None:
        self._controller = controller
        self.classes = tuple(ClassTender(controller, rank, changed) for rank in range(len(controller.classes)))
        self._most_asked = 0
        """Since the latest reply."""
        self._asked_before = 0, 0
        """The same of the two replies before it."""

    @property
    def asked(self) -> int:
        """Tickets that wait in the pool."""
        return sum([line.asked for line in self.classes])

    @property
    def idle(self) -> int:
        """Permits without a job."""
        return sum([len(line.idle) + len(line.used) for line in self.classes])

    def has_asked(self) -> None:
        """The classes have asked for what they want now."""
        self._most_asked = max(self._most_asked, self.asked)

    def heard(self) -> None:
        """A reply has come that says how many tickets wait in the pool."""
        self._asked_before = self._most_asked, self._asked_before[0]
        self._most_asked = self.asked

    def others_wait(self, waiting: int) -> bool:
        """Whether somebody else wants a slot: of another process, or a request of this one.

        Args:
            waiting: Tickets that wait in the pool, as last heard from the server.
        """
        asked = self.asked
        # The server may have counted tickets of this worker's own that were granted while it answered. Its call left
        # before the reply to the one before it came, because two are under way at once.
        return waiting > max(self._most_asked, *self._asked_before) or self._controller.waiting > asked

    def close(self) -> None:
        """Leave the pool's line, and release what is idle; what runs comes back through `end`."""
        for line in self.classes:
            line.close()
