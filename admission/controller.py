"""The only place that waits: callers ask for a permit, and sleep until the pool decides.

The pool itself (order, limits, fairness) is the backend's. Here are wakers, timeouts, cancellation, drain, and the
checks of what a caller may ask.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Sequence

from admission.announcer import Announcer
from admission.backends.base import Backend, PoolRules, PoolSite, State, Waiter
from admission.backends.memory import MemoryBackend
from admission.backends.redis import RedisPool
from admission.errors import AdmissionError, NotRunning, Refusal, refusal
from admission.events import Observer
from admission.line import DONE, REFUSED, RUNNING, WAITS, Entry
from admission.permit import Permit, held_entry
from admission.policy.limit import FixedLimit, Limit
from admission.policy.shedding import retry_after
from admission.portal import SyncController
from admission.types import (
    DEFAULT_CLASSES,
    MAX_CLASSES,
    MAX_TENANT_BYTES,
    UNSET,
    BackpressureMode,
    Outcome,
    Priority,
    PriorityClass,
    Reason,
    Snapshot,
    Ticket,
    TicketStatus,
    Unset,
    within,
)
from admission.waker import Loop, Waker, running_loop


class AdmissionController:
    """One pool: lets in as many as the limit bears, and makes the rest wait or turns them away.

        async with AdmissionController(max_concurrency=8) as controller:
            async with controller.admit(priority=Priority.HIGH, tenant="acme"):
                ...

    It starts by itself on first use and needs no background task; `async with` adds the drain at the end. It belongs
    to one event loop at a time. It is *not* a lock: a limit may be exceeded by exempt classes and after `resize`.

    Args:
        max_concurrency: Slots, or a `Limit` that learns how many.
        max_queue_size: Tickets in line at most; 0 is unlimited.
        backpressure_mode: What a full line does: REJECT raises `QueueFull`, BLOCK lets the caller wait for room.
        max_wait: Seconds a ticket waits at most, if neither its class nor the call says otherwise. None: for ever.
        classes: The classes, highest rank first, 1 to 8. None: critical, high, normal, low.
        backend: Where the pool is kept. None: in this process. A URL (`redis://…`, `valkey://…`, `embedded`), or a
            `RedisPool` with options of its own: shared by every process that names the same pool there.
        name: The pool's name in metrics and logs; pools of one name share one slot when nested.
        default_priority: Class of callers that name none. None: "normal", or the middle class.
        max_lobby_size: Callers that wait for room in the line at most (BLOCK).
        max_queued_per_tenant: Waiters one tenant may have in one class. None: as many as fit.
        refuse_hopeless: Refuse on arrival whoever would wait longer than it can.
        retry_after: Seconds a refusal says while no rate is known, 1 … 30.
        top_tenants: Tenants a `snapshot` shows at most.
        observers: Told of every event. Each costs time on every request; metrics need none.

    Raises:
        ValueError: An option is outside its range; the message names it, the value and the range.
    """

    def __init__(
        self,
        *,
        max_concurrency: int | Limit = 8,
        max_queue_size: int = 100,
        backpressure_mode: BackpressureMode | str = BackpressureMode.REJECT,
        max_wait: float | None = 30.0,
        classes: Sequence[PriorityClass] | None = None,
        backend: Backend | PoolSite | str | None = None,
        name: str = "default",
        default_priority: Priority | str | None = None,
        max_lobby_size: int = 10_000,
        max_queued_per_tenant: int | None = None,
        refuse_hopeless: bool = False,
        retry_after: float = 5.0,
        top_tenants: int = 20,
        observers: Sequence[Observer] = (),
    ) -> None:
        within("max_queue_size", max_queue_size, 0)
        within("max_wait", max_wait, 0)
        within("max_lobby_size", max_lobby_size, 0)
        within("max_queued_per_tenant", max_queued_per_tenant, 1)
        within("retry_after", retry_after, 1, 30)
        within("top_tenants", top_tenants, 0)
        if not name:
            raise ValueError("name is '': a pool needs a name")
        self.name = name
        self.classes = _checked_classes(classes)
        self.max_wait = max_wait
        self._rank_by_name = {rules.name: rank for rank, rules in enumerate(self.classes)}
        self._max_waits = tuple(max_wait if c.max_wait is None else c.max_wait for c in self.classes)
        self.default_rank = self._default_rank(default_priority)
        self._backend = _backend(
            backend,
            PoolRules(
                name=name,
                limit=_as_limit(max_concurrency),
                classes=self.classes,
                max_queue_size=max_queue_size,
                mode=_as_mode(backpressure_mode),
                max_lobby_size=max_lobby_size,
                max_queued_per_tenant=max_queued_per_tenant,
                refuse_hopeless=refuse_hopeless,
            ),
        )
        self._backend.adopt(self)
        self._retry_after = retry_after
        self._top_tenants = top_tenants
        self.observers = tuple(observers)
        self._announcer = Announcer(self, self.observers) if observers else None
        self.start_at = self._backend.try_start if self._announcer is None else self._start_and_tell
        """`try_start` with nothing around it: `(now, rank, tenant, slots, cost)`, all of which must be right."""
        self.finish_at = self._backend.try_finish if self._announcer is None else _never_finishes
        """`finish` of a success at this time, if that is all there is to do: `(now, entry)`. False: call `finish`."""
        self._loop: Loop | None = None
        self.now = self._first_now
        """Monotonic seconds of the pool's event loop."""
        self._id_prefix = secrets.token_hex(6)
        self._ids = 0
        self._by_id: dict[str, Entry] = {}
        self._draining = False
        self._idle: list[Waker] = []

    def __repr__(self) -> str:
        backend = self._backend
        load = f"{backend.in_flight}/{backend.limit} in flight, {backend.queued} queued"
        return f"<AdmissionController {self.name!r}: {load}>"

    # ------------------------------------------------------------------ the public way in

    def admit(
        self,
        *,
        priority: Priority | str | None = None,
        tenant: str = "",
        slots: int = 1,
        cost: float | None = None,
        max_wait: float | Unset | None = UNSET,
        deadline: float | None = None,
    ) -> Admit:
        """`async with controller.admit(…) as permit:` waits, runs the block and releases. Arguments as `acquire`."""
        return Admit(self, self.rank_of(priority), tenant, slots, cost, max_wait, deadline)

    async def acquire(
        self,
        *,
        priority: Priority | str | None = None,
        tenant: str = "",
        slots: int = 1,
        cost: float | None = None,
        max_wait: float | Unset | None = UNSET,
        deadline: float | None = None,
    ) -> Permit:
        """Wait in line and return a `Permit`.

        If cancelled while waiting, the place is given up; a slot granted in that same instant goes to the next in
        line, never lost. Inside a permit of the same pool no second slot is taken.

        Args:
            priority: Class by `Priority` or by name. None: the pool's default.
            tenant: Whoever shares the class fairly with others; at most 128 bytes.
            slots: Slots it holds while it runs.
            cost: What fairness charges the tenant; settle it with `release(actual_cost=…)`. None: as *slots*.
            max_wait: Seconds. Unset: the class's setting; None: no end; 0: now or never.
            deadline: Monotonic seconds (`controller.now()`) after which it need not run any more.

        Raises:
            QueueFull: Refused on arrival; `retry_after` says when to return.
            Rejected: Refused on arrival for another `reason`.
            WaitTimeout: Queued, but no slot came in time.
            Evicted: Queued, then pushed out or shed.
            Closed: The controller is draining.
            ValueError: An argument is outside its range.
        """
        return await self._acquire(self.rank_of(priority), tenant, slots, cost, max_wait, deadline)

    def acquire_nowait(
        self,
        *,
        priority: Priority | str | None = None,
        tenant: str = "",
        slots: int = 1,
        cost: float | None = None,
    ) -> Permit:
        """A `Permit` at this instant, or `Rejected`. Never waits. Arguments and errors as `acquire`.

        Raises:
            AdmissionError: The pool is shared, and cannot answer without a wait: `await acquire(max_wait=0)`.
        """
        if self._backend.answers_later:
            raise AdmissionError(
                f"pool {self.name!r} is shared with other processes, and answers later: use `await acquire(max_wait=0)`"
            )
        rank = self.rank_of(priority)
        outer = held_entry(self.name)
        if outer is not None:
            return Permit(self, outer, nested=True)
        return Permit(self, self.enqueue(None, rank, tenant, slots, cost, max_wait=0))

    async def _acquire(
        self,
        rank: int,
        tenant: str,
        slots: int,
        cost: float | None,
        max_wait: float | Unset | None,
        deadline: float | None,
    ) -> Permit:
        outer = held_entry(self.name)
        if outer is not None:
            return Permit(self, outer, nested=True)
        loop = self.bind()
        sleeper = Sleeper(loop.waker())
        entry = self.enqueue(sleeper, rank, tenant, slots, cost, max_wait=max_wait, deadline=deadline)
        if entry.state is not RUNNING:
            try:
                await sleeper.waker.wait()
            except BaseException:
                self.withdraw(entry)
                raise
            if entry.state is not RUNNING:
                raise self.refusal(entry)
        return Permit(self, entry)

    # ------------------------------------------------------------------ the seam for middleware and executor

    def try_start(self, rank: int, tenant: str = "", slots: int = 1, cost: float | None = None) -> Entry | None:
        """An entry that runs, if it may at this instant without overtaking anyone; else None, and nothing has changed.

        The hot path: arguments are not checked. Hand the entry to `finish` exactly once.
        """
        return self.start_at(self.now(), rank, tenant, slots, slots if cost is None else cost)

    def enqueue(
        self,
        waiter: Waiter | None,
        rank: int,
        tenant: str = "",
        slots: int = 1,
        cost: float | None = None,
        *,
        max_wait: float | Unset | None = UNSET,
        deadline: float | None = None,
    ) -> Entry:
        """Take a newcomer in: its entry runs (then *waiter* was told already) or waits (then *waiter* is told later).

        The entry must come back through `finish` once it runs, or `withdraw` before.

        Raises:
            Rejected, QueueFull, Closed: Refused on arrival; *waiter* is not told.
            ValueError: An argument is outside its range.
        """
        if slots != 1 and (slots < 1 or slots != int(slots)):
            raise ValueError(f"slots is {slots!r}: it must be a whole number, at least 1")
        if cost is None:
            cost = slots
        elif not 0 <= cost < math.inf:
            raise ValueError(f"cost is {cost!r}: it must be a number, at least 0")
        if len(tenant) > MAX_TENANT_BYTES // 4 and len(tenant.encode()) > MAX_TENANT_BYTES:
            raise ValueError(f"tenant {tenant[:32]!r}… has {len(tenant.encode())} bytes: at most {MAX_TENANT_BYTES}")
        now = self.now()
        if max_wait is UNSET:
            max_wait = self._max_waits[rank]
        elif max_wait is not None and not max_wait >= 0:
            raise ValueError(f"max_wait is {max_wait!r}: it must be at least 0, or None")
        expires, expires_as = math.inf if max_wait is None else now + max_wait, Reason.TIMEOUT
        if deadline is not None and deadline < expires:
            expires, expires_as = deadline, Reason.DEADLINE
        may_wait = max_wait is None or max_wait > 0
        if may_wait:
            self.bind()
        entry = self._backend.offer(
            now,
            rank,
            tenant,
            slots,
            cost,
            expires=expires if may_wait or expires_as is Reason.DEADLINE else math.inf,
            expires_as=expires_as,
            may_wait=may_wait,
            waiter=waiter if self._announcer is None else self._announcer.waiter(waiter),
        )
        if self._announcer is not None:
            self._announcer.offered(entry)
        if entry.state is RUNNING:
            if waiter is not None:
                waiter.decided(entry)
        elif entry.state is REFUSED:
            raise self.refusal(entry)
        return entry

    def finish(
        self,
        entry: Entry,
        outcome: Outcome = Outcome.SUCCESS,
        actual_cost: float | None = None,
        rtt: float | None = None,
    ) -> None:
        """A running entry ended: its slots go to whoever is next, before this returns.

        Args:
            actual_cost: What it really cost; None when the estimate stands.
            rtt: Seconds the limit learns from; None: the whole time since the grant.

        Raises:
            ValueError: The entry does not run.
        """
        now = self.now()
        if entry.id is not None:
            self._by_id.pop(entry.id, None)
        try:
            if self._announcer is None:
                self._backend.release(now, entry, outcome, actual_cost, rtt)
            else:
                # The others' grants are told after the release that made room for them.
                with self._announcer.after():
                    self._backend.release(now, entry, outcome, actual_cost, rtt)
                    self._announcer.released(entry, now, outcome, actual_cost)
        finally:
            if self._idle:
                self._wake_idle()

    def withdraw(self, entry: Entry, reason: Reason = Reason.CANCELLED) -> None:
        """Give a place up, in whatever state; a slot granted in the same instant goes to the next in line."""
        was = entry.state
        if was is RUNNING:
            self.finish(entry, Outcome.IGNORED)
            return
        self._backend.withdraw(self.now(), entry, reason)
        if entry.id is not None and entry.state is not State.RUNNING:
            self._by_id.pop(entry.id, None)
        if self._announcer is not None and was in WAITS:
            self._announcer.withdrawn(entry)
        if self._idle:
            self._wake_idle()

    def permit(self, entry: Entry) -> Permit:
        """The permit of a running entry."""
        return Permit(self, entry)

    def refusal(self, entry: Entry) -> Refusal:
        """The exception for an entry that was refused."""
        if entry.id is not None:
            self._by_id.pop(entry.id, None)
        return refusal(
            entry.reason,
            pool=self.name,
            priority=self.classes[entry.rank].name,
            slots=entry.slots,
            waited=self.now() - entry.arrival,
            retry_after=self.retry_after(entry.rank),
            position=entry.position or None,
        )

    def retry_after(self, rank: int) -> int:
        """Whole seconds, jittered, after which a newcomer of this class may come back: 1 … 30."""
        predicted = self._backend.predicted_newcomer_wait(rank, self.now())
        return retry_after(predicted, self._retry_after, random.random())

    def position_of(self, entry: Entry) -> int:
        """1 + the tickets before it; 0 when it runs or is gone."""
        return self._backend.position(entry)

    def predicted_wait_of(self, entry: Entry) -> float | None:
        """Seconds it will go on waiting; None while no rate is known."""
        return self._backend.predicted_wait(entry, self.now())

    def rank_of(self, priority: Priority | str | None) -> int:
        """The rank of a class. Raises ValueError naming the classes there are."""
        if priority is None:
            return self.default_rank
        if isinstance(priority, Priority):
            name = priority.name.lower()
            rank = self._rank_by_name.get(name)
            # Pools with classes of their own names: the four priorities mean the first four ranks.
            if rank is None and priority < len(self.classes):
                return int(priority)
        else:
            rank = self._rank_by_name.get(priority)
        if rank is None:
            known = ", ".join(self._rank_by_name)
            raise ValueError(f"priority is {priority!r}: the classes of pool {self.name!r} are {known}")
        return rank

    # ------------------------------------------------------------------ questions

    @property
    def draining(self) -> bool:
        """Whether newcomers are refused because the pool is closing."""
        return self._draining

    @property
    def limit(self) -> int:
        """Slots that may be in use now."""
        return self._backend.limit

    @property
    def observer_errors(self) -> int:
        """Exceptions that observers raised; each was logged."""
        return 0 if self._announcer is None else self._announcer.errors

    @property
    def process(self) -> str:
        """What a shared pool calls this process: new with every start. Empty where the pool is this process's own."""
        return self._backend.process

    @property
    def waiting(self) -> int:
        """Tickets of this process that wait."""
        return self._backend.waiting

    @property
    def in_flight(self) -> int:
        """Slots in use."""
        return self._backend.in_flight

    @property
    def queued(self) -> int:
        """Tickets waiting."""
        return self._backend.queued

    @property
    def cut_off(self) -> bool:
        """Whether a shared pool is out of reach just now: this process then admits alone, as `on_outage` says."""
        return self._backend.cut_off

    def snapshot(self) -> Snapshot:
        """The pool at this instant, frozen."""
        return self._backend.snapshot(self.now(), self.name, self._top_tenants)

    def position(self, ticket_id: str) -> int | None:
        """Position of a ticket: 0 while it runs; None when it is unknown or gone."""
        entry = self._by_id.get(ticket_id)
        return None if entry is None else self._backend.position(entry)

    def explain(self, ticket_id: str) -> TicketStatus | None:
        """Position, wait to go and *why it waits* of a ticket; None when it is unknown or gone.

        In a shared pool, of the last time it was asked for: `await look_up(…)` asks now.
        """
        entry = self._by_id.get(ticket_id)
        if entry is None:
            return None
        now, ticket = self.now(), self.ticket_of(entry)
        return TicketStatus(
            id=ticket.id,
            priority=ticket.priority,
            tenant=ticket.tenant,
            running=ticket.running,
            waited=ticket.waited,
            position=self._backend.position(entry),
            predicted_wait=self._backend.predicted_wait(entry, now),
            held_back_by=self._backend.held_back_by(entry, now),
        )

    async def look_up(self, ticket_id: str) -> TicketStatus | None:
        """`explain`, after asking a shared pool, which knows the tickets of all its processes."""
        entry = self._by_id.get(ticket_id)
        if entry is None:
            return await self._backend.find(ticket_id)
        await self.refresh(entry)
        return self.explain(ticket_id)

    def tickets(self, most: int = 1000) -> list[Ticket]:
        """Waiting tickets in order of service, at most so many: for dumps."""
        return [self.ticket_of(entry) for entry in self._backend.entries(most)]

    def id_of(self, entry: Entry) -> str:
        """The entry's public id, under which `position` and `explain` find it. Not to be guessed."""
        if entry.id is None:
            self._ids += 1
            entry.id = f"{self._id_prefix}{secrets.token_hex(2)}{self._ids:x}"
        # A shared pool gives its entries ids of its own: they are found from when someone asks, like the others.
        if entry.state not in (DONE, REFUSED):
            self._by_id[entry.id] = entry
        return entry.id

    def ticket_of(self, entry: Entry) -> Ticket:
        """A frozen picture of an entry."""
        ran = entry.state in (RUNNING, DONE)
        timed = entry.position > 0 and entry.expires != math.inf
        return Ticket(
            id=self.id_of(entry),
            pool=self.name,
            priority=self.classes[entry.rank].name,
            tenant=entry.tenant,
            slots=entry.slots,
            cost=entry.cost,
            arrival=entry.arrival,
            deadline=entry.expires if timed else None,
            position=entry.position,
            waited=(entry.granted_at if ran else self.now()) - entry.arrival,
            running=entry.state is RUNNING,
        )

    # ------------------------------------------------------------------ steering

    def resize(self, max_concurrency: int | Limit) -> None:
        """From now on so many slots. Running work keeps what it has."""
        self._backend.resize(self.now(), _as_limit(max_concurrency))
        if self._announcer is not None:
            self._announcer.watch_limit()

    def pause(self, priority: Priority | str | None = None) -> None:
        """Start nothing more, or nothing more of one class; newcomers go on waiting."""
        self._backend.pause(self.now(), None if priority is None else self.rank_of(priority))

    def resume(self, priority: Priority | str | None = None) -> None:
        """Take a pause back."""
        self._backend.resume(self.now(), None if priority is None else self.rank_of(priority))

    def start_draining(self) -> None:
        """Evict everyone who waits and refuse newcomers, at once; running work goes on. Call it on the loop.

        In a shared pool this concerns the tickets of this controller alone.
        """
        if not self._draining:
            self._draining = True
            self._backend.close(self.now())

    def reopen(self) -> None:
        """Take newcomers in again after a drain; nothing in a pool that is open."""
        if self._draining:
            self._draining = False
            self._backend.reopen()

    async def drain(self, grace: float | None = None) -> bool:
        """`start_draining`, then wait until running work has ended; True when it all did.

        Args:
            grace: Seconds to wait at most. None: as long as it takes.
        """
        within("grace", grace, 0)
        self.start_draining()
        loop = self.bind()
        until = math.inf if grace is None else loop.now() + grace
        while self._backend.held and loop.now() < until:
            waker = loop.waker()
            self._idle.append(waker)
            timer = None if until == math.inf else loop.call_at(until, waker.wake)
            try:
                await waker.wait()
            finally:
                if timer is not None:
                    timer.cancel()
                if waker in self._idle:
                    self._idle.remove(waker)
        return not self._backend.held

    async def __aenter__(self) -> AdmissionController:
        self.reopen()
        self.bind()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of connections to a shared pool, and of the place in it; the next use begins anew.

        Nothing in a pool of this process. Work that still runs goes on; its slots are free for the others.
        """
        await self._backend.stop()

    async def refresh(self, entry: Entry | None = None) -> None:
        """Ask a shared pool how it stands, and where *entry* does: what is said of them is then of this instant.

        Nothing in a pool of this process.
        """
        if self._backend.answers_later:
            self.bind()
            await self._backend.refresh(entry)

    def sync(self) -> SyncController:
        """`with controller.sync() as c: c.acquire(…)`: blocking twins for threads."""
        return SyncController(self)

    # ------------------------------------------------------------------ inside

    def release_from_anywhere(
        self, entry: Entry, outcome: Outcome, actual_cost: float | None, rtt: float | None
    ) -> None:
        """`finish` an entry at most once, crossing over from other threads."""
        if actual_cost is not None and not 0 <= actual_cost < math.inf:
            raise ValueError(f"actual_cost is {actual_cost!r}: it must be a number, at least 0")

        loop = self._loop
        if loop is None or loop.is_current():
            if entry.state is RUNNING:
                self.finish(entry, outcome, actual_cost, rtt)
            return

        def finish() -> None:
            if entry.state is RUNNING:
                self.finish(entry, outcome, actual_cost, rtt)

        try:
            loop.call_soon_threadsafe(finish)
        except NotRunning:
            # The loop is over, so nothing runs beside us: the account is settled here.
            finish()

    @property
    def loop(self) -> Loop | None:
        """The event loop it belongs to; None before the first use."""
        return self._loop

    def bind(self) -> Loop:
        """The running loop, to which the controller belongs from now on.

        Raises:
            NotRunning: No loop runs here, or tickets wait or run on another one.
        """
        loop = self._loop
        if loop is not None and loop.is_current():
            return loop
        new = running_loop()
        if loop is not None and (self._backend.held or self._backend.waiting):
            raise NotRunning(
                f"pool {self.name!r} belongs to another event loop, on which {self._backend.held} slots are in "
                f"use and {self._backend.waiting} tickets wait; use one controller per loop, or `controller.sync()` "
                "from threads"
            )
        self._backend.start(new)  # May refuse a loop.
        self._loop = new
        self.now = new.now
        return new

    def _start_and_tell(self, now: float, rank: int, tenant: str, slots: int, cost: float) -> Entry | None:
        entry = self._backend.try_start(now, rank, tenant, slots, cost)
        if entry is not None and self._announcer is not None:
            self._announcer.offered(entry)
        return entry

    def _first_now(self) -> float:
        """The clock until a loop is bound: the running loop's, or where none runs, the one asyncio goes by."""
        try:
            return self.bind().now()
        except NotRunning:
            return time.monotonic()

    def _wake_idle(self) -> None:
        if not self._backend.held:
            idle, self._idle = self._idle, []
            for waker in idle:
                waker.wake()

    def _default_rank(self, default: Priority | str | None) -> int:
        if default is not None:
            return self.rank_of(default)
        return self._rank_by_name.get("normal", (len(self.classes) - 1) // 2)


class Admit:
    """What `AdmissionController.admit` returns: waits on entry, releases on exit."""

    __slots__ = ("_controller", "_permit", "_wishes")

    def __init__(
        self,
        controller: AdmissionController,
        rank: int,
        tenant: str,
        slots: int,
        cost: float | None,
        max_wait: float | Unset | None,
        deadline: float | None,
    ) -> None:
        self._controller = controller
        self._wishes = (rank, tenant, slots, cost, max_wait, deadline)
        self._permit: Permit | None = None

    async def __aenter__(self) -> Permit:
        self._permit = await self._controller._acquire(*self._wishes)
        return self._permit.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.__exit__(None, error, None)


class Sleeper:
    """A waiter that is a sleeping coroutine."""

    __slots__ = ("waker",)

    def __init__(self, waker: Waker) -> None:
        self.waker = waker

    def entered(self, entry: Entry) -> None:
        """Room in the line is no reason to get up."""

    def decided(self, entry: Entry) -> None:
        """Get up and look."""
        self.waker.wake()


def _never_finishes(now: float, entry: Entry) -> bool:
    """The `finish_at` of a pool that has more to do: its observers want to know."""
    return False


def _backend(given: Backend | PoolSite | str | None, rules: PoolRules) -> Backend:
    if given is None:
        return MemoryBackend.of(rules)
    if isinstance(given, str):
        given = RedisPool(given)
    return given.open_pool(rules) if isinstance(given, PoolSite) else given


def _as_limit(value: int | Limit) -> Limit:
    return value if isinstance(value, Limit) else FixedLimit(value)


def _as_mode(value: BackpressureMode | str) -> BackpressureMode:
    try:
        return BackpressureMode(value)
    except ValueError:
        modes = " or ".join(repr(mode.value) for mode in BackpressureMode)
        raise ValueError(f"backpressure_mode is {value!r}: it must be {modes}") from None


def _checked_classes(classes: Sequence[PriorityClass] | None) -> tuple[PriorityClass, ...]:
    rules = DEFAULT_CLASSES if classes is None else tuple(classes)
    if not 1 <= len(rules) <= MAX_CLASSES:
        raise ValueError(f"classes has {len(rules)} entries: it must have 1 to {MAX_CLASSES}")
    names = [c.name for c in rules]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"classes has two entries named {name!r}: names must differ")
    total = sum(c.guaranteed for c in rules)
    if total > 1 + 1e-9:
        raise ValueError(f"classes guarantee {total:g} in all: shares must add up to at most 1")
    return rules
