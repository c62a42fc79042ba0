"""Which jobs a worker takes next, and when it looks.

    reply, grant, end of a job, wake-up, timer ──▶ look: for each class, highest first:
        wanted   = min(ready jobs, places left)
        permits  = idle ones; what is missing is asked of the pool, what is too much goes back to it
        take     = as many jobs as there are idle permits

There is no loop that asks: whatever may change the answer calls `look_soon`, and many causes in one turn of the event
loop are one look. A worker that finds nothing has the server wake it, and polls slowly in case that is lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from admission.jobs import script
from admission.jobs.script import MOST_TAKEN, Answer, Here, Message, Reply, Said, Taken, Tenants, Took
from admission.jobs.tender import ClassTender, Tender
from admission.line import Entry

if TYPE_CHECKING:
    from admission.controller import AdmissionController
    from admission.jobs.store import JobStore

POLL = 1.0
"""Seconds between looks that nothing calls for, the longest; chance takes up to a quarter off."""

NO_LEASE = 0.05
"""Seconds until a take is tried again that came before this process's lease stood, or after it was lost."""

FRESH = 0.01
"""Seconds for which a reply says which classes have jobs; then the server is asked before anything is taken."""


class Arrivals(Protocol):
    """Whoever runs what was taken. It hands the permit to `Intake.ended` when the place is free again."""

    def arrived(self, taken: Taken, entry: Entry, line: ClassTender) -> None:
        """A job, and the permit it runs under."""

    def has(self, id: str, delivery: int) -> bool:
        """Whether that delivery of a job arrived, and has not ended."""


class Intake:
    """Takes jobs for which there is a place and a permit. Belongs to the running asyncio loop.

    Args:
        places: Jobs that may be here at once.
        tenants: Only theirs. None: everybody's.
        steal: Whose jobs to take when those have none. None: everybody's.
        alone: Whether nobody else takes jobs in the name of this process.
    """

    def __init__(
        self,
        store: JobStore,
        controller: AdmissionController,
        arrivals: Arrivals,
        *,
        places: int,
        tenants: Tenants | None,
        steal: Tenants | None,
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        self.tender = Tender(controller, self.look_soon)
        self.occupied = 0
        """Places with a job."""
        self.taken = 0
        """Jobs that came, since the start."""
        self._store = store
        self._controller = controller
        self._arrivals = arrivals
        self.places = places
        """It may be changed at any time; then `look_soon`."""
        self._tenants = tenants
        self._steal = steal
        self._alone = alone
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._due = False
        classes = len(controller.classes)
        self._under_way: list[list[Entry] | None] = [None] * classes
        """By class, the permits for which a take is under way. One at a time: two equal ones would be one."""
        self._dry = [False] * classes
        """Classes whose ready jobs, if there are any, are none that this worker takes."""
        self._hints = [0] * classes
        """Jobs that were announced and not seen yet."""
        self._awaited: frozenset[int] = frozenset()
        """Classes for which the server wakes this process, once."""
        self._wanting = False
        """Whether the server has not answered yet to the latest word about them."""
        self._unsure = False
        """The reply to a take may be lost. Nothing is taken until that is cleared up."""
        self._asking = False
        self._unanswered = 0
        self._pause_until = 0.0
        self._heard_at = 0.0
        self._poll_timer: asyncio.TimerHandle | None = None
        self._due_timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Take jobs from now on."""
        self._open = True
        self._poll()

    def close(self) -> None:
        """Take no more. What still arrives is handed back at once."""
        self._open = False
        for timer in (self._poll_timer, self._due_timer):
            if timer is not None:
                timer.cancel()
        self.tender.close()
        self._release_under_way()

    @property
    def is_open(self) -> bool:
        """Whether it takes jobs."""
        return self._open

    @property
    def sleeps(self) -> bool:
        """Whether the server is to wake this process for every class."""
        return len(self._awaited) == len(self._dry)

    # ------------------------------------------------------------------ causes to look

    def look_soon(self) -> None:
        """Something may have changed."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._look)

    def heard(self, reply: Reply) -> None:
        """What every reply of the server says."""
        self._heard_at = self._loop.time()
        self.tender.heard()
        if self._store.unanswered != self._unanswered:
            self._unanswered = self._store.unanswered
            self._unsure = True
        self.look_soon()

    def told(self, message: Message) -> None:
        """`wake`: jobs of a class are ready."""
        rank = int(message.about)
        self._awaited = frozenset()
        if self._open and rank < len(self._dry):
            self._dry[rank] = False
            self._hints[rank] = 1
            self._ask_server()
            self.look_soon()

    def messages_lost(self) -> None:
        """A wake-up may have been missed, and so may the reply to a take."""
        if self._open:
            self._unsure = True
            self._look_afresh()

    def ended(self) -> None:
        """A place is free; its permit went back to the tender."""
        self.occupied -= 1
        if not self._open:  # A thread that outlived its worker.
            self.tender.close()
        self.look_soon()

    def _poll(self) -> None:
        self._poll_timer = self._loop.call_later(POLL * (1 - random.random() / 4), self._poll)
        self._look_afresh()

    def _look_afresh(self) -> None:
        """Believe nothing that was heard before."""
        if self._open:
            self._awaited, self._dry = frozenset(), [False] * len(self._dry)
            self._ask_server()
            self.look_soon()

    def _ask_server(self) -> None:
        self._store.send(script.tick(), self._ticked)

    def _ticked(self, answer: Answer) -> None:
        self._hints = [0] * len(self._hints)  # They are among the ready jobs of this reply, or gone.

    # ------------------------------------------------------------------ the look

    def _look(self) -> None:
        self._due = False
        reply = self._store.reply
        if not self._open or reply is None or self._loop.time() < self._pause_until:
            return
        if self._store.failing or self._controller.cut_off:  # Then its permits are of this process alone.
            self.tender.close()
            self._release_under_way()
            return
        if self._unsure:
            self._clear_up()
            return
        if self._loop.time() > self._heard_at + FRESH:
            self._ask_server()  # Higher classes may have jobs that were not heard of while all places were taken.
            return
        tender = self.tender
        gives_way = tender.others_wait(reply.waiting)
        coming = sum([len(entries) for entries in self._under_way if entries])
        free = max(0, self.places - self.occupied - coming)
        empty: list[int] = []
        for line in tender.classes:
            rank = line.rank
            ready = self._ready(reply, rank)
            wanted = min(ready, free)
            free -= wanted
            if gives_way:
                line.release_used()
            else:
                line.keep(wanted)
            line.release_idle(wanted)
            if self._under_way[rank] is None and line.idle:
                self._take(line)
                wanted -= len(self._under_way[rank] or ())
            missing = wanted - len(line.idle)
            line.ask(missing)
            gives_way = gives_way or missing > 0  # What a lower class has used may be what this one waits for.
            if ready == 0:
                empty.append(rank)
        tender.has_asked()
        if self._wanting:  # Two words under way may overtake each other, and the older one would stand.
            pass
        elif free == 0:
            if self._awaited:  # Who has no place must not be woken in the stead of somebody who has.
                self._want(())
        elif not self._awaited.issuperset(empty):
            self._want(empty)
        if free > 0 and reply.next_due is not None:
            self._look_when_due(reply.next_due)

    def _ready(self, reply: Reply, rank: int) -> int:
        """Jobs of a class that may be had, less those that are on their way here."""
        if self._dry[rank] or rank >= len(reply.ready):
            return 0
        ready = max(reply.ready[rank], self._hints[rank])
        return max(0, ready - len(self._under_way[rank] or ()))

    def _take(self, line: ClassTender) -> None:
        entries = [line.use() for _ in range(min(len(line.idle), MOST_TAKEN))]
        self._under_way[line.rank] = entries
        op = script.take(line.rank, len(entries), self._tenants, self._steal)
        self._store.send(op, partial(self._took, line))

    def _took(self, line: ClassTender, answer: Answer) -> None:
        rank = line.rank
        entries, self._under_way[rank] = self._under_way[rank] or [], None
        jobs: Sequence[Taken] = ()
        if isinstance(answer, Took):
            jobs = answer.jobs
            self._dry[rank] = not jobs
        elif answer is Said.STALE:
            self._no_lease()
        self.taken += len(jobs)
        for taken in jobs:
            if entries and self._open:
                self.occupied += 1
                self._arrivals.arrived(taken, entries.pop(), line)
            else:  # It came too late: its permit went back to the pool during an outage, or the worker stops.
                self._store.send(script.back(taken.id, taken.delivery, 0, counted=False))
        for entry in entries:
            if self._open:
                line.unused(entry)
            else:
                line.release(entry)
        self.look_soon()

    def _want(self, ranks: Sequence[int]) -> None:
        """Be woken for the classes of which there is nothing now; at once, if there is by then."""
        self._awaited, self._wanting = frozenset(ranks), True
        self._store.send(script.want(ranks, self._tenants, self._steal), self._wanted)

    def _wanted(self, answer: Answer) -> None:
        self._wanting = False
        if answer is Said.STALE:
            self._awaited = frozenset()
            self._no_lease()

    def _no_lease(self) -> None:
        """Take nothing before the lease of this process can stand."""
        self._pause_until = self._loop.time() + NO_LEASE
        self._loop.call_later(NO_LEASE, self._look_afresh)

    def _look_when_due(self, seconds: float) -> None:
        """A delayed job is ready then, and only a call makes it so."""
        when = self._loop.time() + seconds
        timer = self._due_timer
        if timer is not None:
            if timer.when() <= when + 0.001:
                return
            timer.cancel()
        self._due_timer = self._loop.call_at(when + 0.001, self._came_due)

    def _came_due(self) -> None:
        self._due_timer = None
        self._ask_server()

    # ------------------------------------------------------------------ what the server believes

    def _clear_up(self) -> None:
        """Hand back what was delivered here, and never arrived: the reply to a take was lost, and it was repeated."""
        if not self._alone():  # Nobody here knows what the others of this process have.
            self._unsure = False
            self.look_soon()
        elif not self._asking and all(entries is None for entries in self._under_way):
            self._asking = True
            self._store.send(script.here(), self._compare)

    def _compare(self, answer: Answer) -> None:
        assert isinstance(answer, Here)
        for id, delivery in answer.deliveries:
            # What has just ended here was reported before this, and is stale by then.
            if not self._arrivals.has(id, delivery):
                self._store.send(script.back(id, delivery, 0, counted=False))
        if answer.more:
            self._store.send(script.here(answer.deliveries[-1][0]), self._compare)
        else:
            self._unsure = self._asking = False
            self.look_soon()

    def _release_under_way(self) -> None:
        """No permit waits for an answer that may be long in coming."""
        for line, entries in zip(self.tender.classes, self._under_way, strict=True):
            while entries:
                line.release(entries.pop())
