"""Random interleavings of whole callers on a real event loop, against the real `AdmissionController`.

Callers are asyncio tasks that acquire, and entries of the seam that the middleware uses. Between two turns of the loop
any number of things happen: slots are released, whoever was granted one in that same turn is cancelled, the clock
jumps past deadlines before their timer rings, the limit changes. After every step the pool's accounts are compared with
what the callers really hold.
"""

from __future__ import annotations

import asyncio
import math
from random import Random

from admission.backends.memory import MemoryBackend
from admission.controller import AdmissionController
from admission.core import Core
from admission.errors import AdmissionError
from admission.line import RUNNING, WAITING, Entry
from admission.permit import Permit
from admission.policy.fairness import KEPT_FLOWS
from admission.policy.limit import FixedLimit
from admission.types import BackpressureMode, Outcome, PriorityClass, Reason
from tests.fuzz.virtual import VirtualLoop

ROUNDS = 50
"""Interleavings a pool lives through: what leaks in one is found in a later one."""

POOLS: tuple[tuple[PriorityClass, ...], ...] = (
    (PriorityClass(name="only"),),
    (PriorityClass(name="high"), PriorityClass(name="low", max_delay=1.0)),
    (PriorityClass(name="high", ceiling=0.5), PriorityClass(name="low", guaranteed=0.3)),
    (
        PriorityClass(name="high", max_queued=2, weights={"t1": 2.0}),
        PriorityClass(name="low", guaranteed=0.2, ceiling=0.7),
        PriorityClass(name="probe", exempt=True),
    ),
)


class Caller:
    """Someone who waits at the seam, as the middleware does: no task, only a `Waiter`."""

    __slots__ = ("decisions", "entry", "pool")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.entry: Entry | None = None
        self.decisions = 0

    def entered(self, entry: Entry) -> None:
        """Still waiting."""

    def decided(self, entry: Entry) -> None:
        """Told once, and never that it runs before it does."""
        self.decisions += 1
        assert self.decisions == 1, "disorder: a waiter was told twice"
        if entry.state is RUNNING:
            self.pool.holds(entry)
            self.pool.callers.append(entry)


class Pool:
    """One controller, its callers, and what they really hold."""

    def __init__(self, random: Random, kind: type[Core], controller: type[AdmissionController]) -> None:
        pick = random.choice
        self.random = random
        self.base = pick((1, 1, 2, 3))
        self.rules = pick(POOLS)
        self.core = kind(
            limit=FixedLimit(self.base),
            classes=self.rules,
            max_queue_size=pick((0, 1, 2, 4)),
            mode=pick((BackpressureMode.REJECT, BackpressureMode.BLOCK)),
            max_lobby_size=pick((1, 100)),
            max_queued_per_tenant=pick((None, None, 2)),
        )
        self.controller = controller(classes=self.rules, backend=MemoryBackend(self.core), max_wait=None)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.exempt = [rank for rank, rules in enumerate(self.rules) if rules.exempt]
        self.tasks: list[asyncio.Task[None]] = []
        self.permits: list[Permit] = []
        self.callers: list[Entry] = []
        """Running entries of the seam."""
        self.waiting: list[Entry] = []
        """Entries of the seam that were waiting when last looked at."""
        self.held = 0
        """Slots that callers know to hold."""
        self.in_use = 0
        """Slots in use but by exempt classes, at the last look."""
        self.class_held = [0] * len(self.rules)
        self.turns = 0
        """Turns of the loop so far."""
        self.last_number: dict[tuple[int, str], int] = {}
        self.tenants = ["t0", "t1"]
        self.cancelled = self.granted = self.timed_out = self.refused = 0

    # ------------------------------------------------------------------ callers

    def holds(self, entry: Entry) -> None:
        """A caller knows now that it holds a permit."""
        assert entry.state is RUNNING
        assert entry.position == 0 or entry.granted_at < entry.expires, "late: work was started after its deadline"
        self.held += entry.slots
        self.granted += 1

    async def task(self, rank: int, tenant: str, slots: int, cost: float | None, max_wait: float | None) -> None:
        """Acquire, and leave the permit to the driver."""
        since, began = self.loop.clock, self.turns
        try:
            permit = await self.controller._acquire(rank, tenant, slots, cost, max_wait, None)
        except AdmissionError as error:
            self.refused_with(error, since, max_wait)
            return
        entry = permit.entry
        self.holds(entry)
        self.permits.append(permit)
        if self.turns > began:
            # A tenant's tickets are served in the order they came. Whoever was granted before its own first turn is
            # over is seen here before those that were granted with it and have yet to wake.
            key = rank, tenant
            assert entry.number > self.last_number.get(key, 0), (
                "disorder: a tenant's later ticket went before its earlier one"
            )
            self.last_number[key] = entry.number

    async def block(self, rank: int, tenant: str, slots: int, max_wait: float | None, turns: int) -> None:
        """`async with`: hold it for some turns of the loop, or until cancelled."""
        since = self.loop.clock
        try:
            async with self.controller.admit(
                priority=self.rules[rank].name, tenant=tenant, slots=slots, max_wait=max_wait
            ) as permit:
                self.holds(permit.entry)
                try:
                    for _ in range(turns):
                        await asyncio.sleep(0)
                finally:
                    self.held -= slots
        except AdmissionError as error:
            self.refused_with(error, since, max_wait)

    def refused_with(self, error: AdmissionError, since: float, max_wait: float | None) -> None:
        self.refused += 1
        if isinstance(error, TimeoutError):
            assert max_wait is not None
            assert self.loop.clock >= since + max_wait, "late: it timed out too early"
            self.timed_out += 1

    def enqueue(self, rank: int, tenant: str, slots: int, max_wait: float | None) -> None:
        """At the seam."""
        caller = Caller(self)
        try:
            entry = self.controller.enqueue(caller, rank, tenant, slots, max_wait=max_wait)
        except AdmissionError:
            assert not caller.decisions
            self.refused += 1
            return
        if entry.state is not RUNNING:
            self.waiting.append(entry)

    # ------------------------------------------------------------------ steps

    def come(self) -> None:
        """Somebody comes, in one of four ways."""
        random = self.random
        chance = random.random()
        rank = int(random.random() * len(self.rules))
        tenant = self.tenants[chance < 0.5]
        slots = 1 if random.random() < 0.85 else 2 + (random.random() < 0.3)
        max_wait = None if random.random() < 0.5 else (0, 0.25, 0.5, 1.0)[int(random.random() * 4)]
        create = self.loop.create_task
        how = random.random()
        if how < 0.5:
            cost = None if chance < 0.7 else chance * 4
            self.tasks.append(create(self.task(rank, tenant, slots, cost, max_wait)))
        elif how < 0.7:
            self.tasks.append(create(self.block(rank, tenant, slots, max_wait, int(chance * 5))))
        elif how < 0.9:
            self.enqueue(rank, tenant, slots, max_wait)
        else:
            entry = self.controller.try_start(rank, tenant, slots)
            if entry is not None:
                self.held += slots
                self.granted += 1
                self.callers.append(entry)

    def end(self) -> None:
        """Somebody ends; sometimes it says so twice."""
        random = self.random
        if self.permits and (not self.callers or random.random() < 0.6):
            permit = self.permits.pop(int(random.random() * len(self.permits)))
            self.held -= permit.entry.slots
            outcome = Outcome.SUCCESS if random.random() < 0.8 else Outcome.IGNORED
            permit.release(outcome=outcome, actual_cost=None if random.random() < 0.7 else 2 * random.random())
            if random.random() < 0.2:
                permit.release()
        elif self.callers:
            entry = self.callers.pop(int(random.random() * len(self.callers)))
            self.held -= entry.slots
            self.controller.finish(entry)

    def cancel(self) -> None:
        """Somebody is cancelled: a task in whatever state, or an entry of the seam."""
        random = self.random
        if self.tasks and random.random() < 0.75:
            # The oldest is the most likely to have been granted a slot in this very turn.
            place = 0 if random.random() < 0.5 else int(random.random() * len(self.tasks))
            self.tasks[place].cancel()
            self.cancelled += 1
        elif self.waiting:
            entry = self.waiting.pop(int(random.random() * len(self.waiting)))
            self.withdraw(entry)
            self.cancelled += 1

    def withdraw(self, entry: Entry) -> None:
        if entry in self.callers:
            self.callers.remove(entry)
            self.held -= entry.slots
        self.controller.withdraw(entry, Reason.DISCONNECT)

    def steer(self) -> None:
        """Resize, pause, resume, or let time pass."""
        random, controller = self.random, self.controller
        chance = random.random()
        if chance < 0.35:
            controller.resize(1 + int(random.random() * 4))
        elif chance < 0.7:
            self.loop.clock += 0.5 + random.random()
        elif chance < 0.82:
            controller.pause(None if random.random() < 0.5 else self.rules[0].name)
        else:
            controller.resume(None if random.random() < 0.5 else self.rules[0].name)

    # ------------------------------------------------------------------ checks

    def check(self) -> None:
        """The accounts, after every step."""
        core = self.core
        in_use, classes = core.in_use, core.classes
        assert self.held <= in_use, f"over-granted: callers hold {self.held} slots, the pool knows of {in_use}"
        for rank in self.exempt:
            in_use -= classes[rank].share.held
        if in_use > core.limit and in_use > self.in_use:
            running = sum(f.running for state in classes for f in state.fair.flows.values() if not state.rules.exempt)
            assert running == 1, f"over-granted: {in_use} slots of {core.limit} in use"
        self.in_use = in_use
        if len(classes) > 1:
            for rank, state in enumerate(classes):
                held = state.share.held
                if held > self.class_held[rank] and state.rules.ceiling < 1:
                    cap = max(1, math.floor(state.rules.ceiling * core.limit + 1e-9))
                    # A ticket that became wider than the ceiling while it waited runs alone in its class.
                    if held > cap:
                        running = sum(flow.running for flow in state.fair.flows.values())
                        assert running == 1, f"over-granted: class {rank} holds {held} slots, its ceiling is {cap}"
                self.class_held[rank] = held
        if core.line.queued:
            if core.in_use < core.limit:
                assert not self.somebody_could_run(), "stuck: a slot is free and a waiter could have it"
            most = core.max_queue_size
            assert not most or core.line.queued <= most, "unbounded: the line is longer than its bound"
        if core.lobby.queued:
            assert not self.somebody_could_enter(), "stuck: there is room in the line and someone in the lobby"

    def somebody_could_run(self) -> bool:
        """Whether, by the plainest reading of the rules, some head should be running."""
        core = self.core
        if core.paused:
            return False
        free = core.limit - core.in_use
        needs = []
        for state in core.classes:
            share = state.share
            if not state.line.queued or share.paused:
                continue
            slots = state.line.head().slots
            if state.rules.ceiling < 1 and share.held and share.held + slots > share.cap:
                continue
            needs.append(slots)
        return bool(needs) and (max(needs) <= free or not core.in_use)

    def somebody_could_enter(self) -> bool:
        core = self.core
        if 0 < core.max_queue_size <= core.line.queued:
            return False
        return any(
            state.lobby.queued and (state.rules.max_queued is None or state.line.queued < state.rules.max_queued)
            for state in core.classes
        )

    def tidy(self) -> None:
        """Forget tasks that ended and entries that were decided; failures of tasks come out here."""
        if self.tasks:
            done = [task for task in self.tasks if task.done()]
            for task in done:
                self.tasks.remove(task)
                if not task.cancelled():
                    task.result()
        if self.waiting:
            self.waiting = [entry for entry in self.waiting if entry.state <= WAITING]

    # ------------------------------------------------------------------ one interleaving

    async def interleave(self, number: int) -> None:
        """A dozen random steps, then everything must come to an end by itself."""
        random = self.random
        self.tenants = [f"t{number % 997}", "t1"]
        for _ in range(12):
            chance = random.random()
            if chance < 0.38:
                self.come()
            elif chance < 0.55:
                self.end()
            elif chance < 0.68:
                self.cancel()
            elif chance < 0.80:
                self.steer()
            else:
                await self.turn(1)
            self.check()
        await self.come_to_an_end()

    async def come_to_an_end(self) -> None:
        """No more pauses, a slot for one at least, and everyone who holds one gives it back."""
        controller, core = self.controller, self.core
        if self.random.random() < 0.3:
            self.loop.clock += 1.0
        await self.turn(3)
        late = [entry for entry in core.line.entries() if entry.expires <= self.loop.clock]
        assert not late, "late: a waiter was left in line past its deadline"
        controller.resume()
        self.check()
        controller.resume(self.rules[0].name)
        self.check()
        if self.random.random() < 0.5:
            controller.resize(self.base)
        self.check()
        for _ in range(60):
            if self.permits or self.callers:
                self.end()
                self.check()
            elif self.tasks or self.waiting:
                await self.turn(1)
            else:
                break
        assert not self.tasks, f"stuck: {len(self.tasks)} tasks never came to an end"
        assert not self.waiting, "stuck: entries of the seam wait for ever"
        assert not core.in_use, f"lost: {core.in_use} slots"
        assert not core.line.queued, "stuck: someone is left in line"
        assert not core.lobby.queued, "stuck: someone is left in the lobby"
        self.state_is_bounded()
        self.held = 0
        self.in_use = 0
        controller.resize(self.base)

    async def turn(self, times: int) -> None:
        """Let the loop turn."""
        for _ in range(times):
            self.turns += 1
            await asyncio.sleep(0)
            self.tidy()
            self.check()

    def state_is_bounded(self) -> None:
        """Nothing is kept of callers that are gone."""
        core = self.core
        for state in core.classes:
            flows = state.fair.flows
            assert len(flows) <= KEPT_FLOWS + 2, f"unbounded: {len(flows)} tenants are remembered"
            for flow in flows.values():
                assert not flow.waiting, "unbounded: a tenant's waiter that is gone still counts"
                assert not flow.running, "unbounded: a tenant's work that is gone still counts"
            assert not state.share.held, "lost: a class holds slots that nobody holds"
            assert state.share.credit(core.starts) <= 0, "disorder: a class keeps credit over an empty line"
        assert not self.controller._by_id, "unbounded: tickets that are gone can still be looked up"


async def _batch(
    random: Random, first: int, count: int, kind: type[Core], controller: type[AdmissionController], totals: Totals
) -> None:
    pool = Pool(random, kind, controller)
    try:
        for number in range(first, first + count):
            await pool.interleave(number)
            totals.interleavings += 1
    finally:
        for task in pool.tasks:
            task.cancel()
        totals.add(pool)


class Totals:
    """What happened in a run."""

    def __init__(self) -> None:
        self.interleavings = self.granted = self.cancelled = self.timed_out = self.refused = 0

    def add(self, pool: Pool) -> None:
        """One more pool."""
        self.granted += pool.granted
        self.cancelled += pool.cancelled
        self.timed_out += pool.timed_out
        self.refused += pool.refused


def run_batch(
    seed: int,
    batch: int,
    totals: Totals,
    count: int = ROUNDS,
    kind: type[Core] = Core,
    controller: type[AdmissionController] = AdmissionController,
) -> None:
    """*count* interleavings of one pool. Raises AssertionError at the first that goes wrong."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(_batch(Random(f"{seed}:{batch}"), batch * ROUNDS, count, kind, controller, totals))
    finally:
        loop.close()
