"""The asyncio tasks in which async jobs run.

A job that never waits ends in its first step, in the task that was looking for work: it costs no task, no timer and no
turn of the loop. One that waits keeps the task it began in, so that timeouts and task groups it opened belong to the
task that runs the rest of it; another one then looks after the others.

    push ──▶ ready ──▶ the hand that seeks: first step ──▶ over: the next one
                                                   └─────▶ it waits: another hand seeks, this one stays with it
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextvars import Context
from typing import Protocol

from admission.executor.stepping import Steps, go_on

BREATH = 0.001
"""Seconds after which a hand whose jobs never wait lets the rest of the loop run: reports and the next take then leave,
and the server works while the jobs do. By a clock that goes on during a turn, which that of uvloop does not."""

Suspended = tuple[Steps, Context, object]
"""A coroutine that waits, the context it runs in, and what it waits for."""


class Work(Protocol):
    """A coroutine to run."""

    def begin(self, hand: Hand) -> Suspended | None:
        """Take the first step. None: it is over, and everything was said about it. Never raises."""

    def end(self, result: object) -> None:
        """It returned."""

    def broke(self, error: BaseException) -> None:
        """It raised."""

    def lost(self) -> None:
        """The task it ran in was cancelled by somebody else, most likely because the loop ends."""


class Hand:
    """One task, which runs one coroutine after the other."""

    __slots__ = ("_hands", "_sleep", "interrupted", "task")

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._sleep: asyncio.Future[None] | None = None
        self.interrupted = False
        """It was cancelled for the sake of its coroutine, and ends with that: a cancelled task is not used again."""
        self.task: asyncio.Task[None]

    def interrupt(self) -> None:
        """Cancel the running coroutine where it waits."""
        self.interrupted = True
        self.task.cancel()

    def rouse(self) -> None:
        """Let it look for work."""
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def live(self) -> None:
        """Run what is ready until told to end, or cancelled."""
        hands = self._hands
        ready, now = hands.ready, time.monotonic
        breath = now() + BREATH
        while not self.interrupted:
            while ready:
                work = ready.popleft()
                suspended = work.begin(self)
                if suspended is None:
                    if now() >= breath:
                        await asyncio.sleep(0)
                        breath = now() + BREATH
                    continue
                hands.leaves_seeking(self)
                await self._stay_with(work, *suspended)
                del work, suspended
                if self.interrupted:
                    return
                breath = now() + BREATH
            hands.leaves_seeking(self)
            if hands.closed:
                return
            self._sleep = hands.loop.create_future()
            hands.resting.append(self)
            await self._sleep

    async def _stay_with(self, work: Work, coroutine: Steps, context: Context, waits_for: object) -> None:
        try:
            result = await go_on(coroutine, context, waits_for)
        except GeneratorExit:  # The loop was closed with this hand in it: nothing can be done any more.
            raise
        except asyncio.CancelledError as error:
            if not self.interrupted and self.task.cancelling():
                work.lost()
                raise
            work.broke(error)
        except BaseException as error:
            work.broke(error)
        else:
            work.end(result)


class Hands:
    """All hands of a worker on the running asyncio loop. There are as many as coroutines waited at once."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.ready: deque[Work] = deque()
        """Not begun yet. Invariant: empty, or a hand seeks."""
        self.resting: list[Hand] = []
        self.closed = False
        self._name = name
        self._seeker: Hand | None = None
        self._all: set[Hand] = set()

    @property
    def size(self) -> int:
        """Hands there are."""
        return len(self._all)

    def push(self, work: Work) -> None:
        """Have a coroutine run, soon."""
        self.ready.append(work)
        if self._seeker is None:
            self._call()

    def leaves_seeking(self, hand: Hand) -> None:
        """A hand has something else to do, or nothing is ready."""
        if self._seeker is hand:
            self._seeker = None
        if self.ready and self._seeker is None:
            self._call()

    def dismiss(self) -> None:
        """Send the hands home: those that rest now, the others after what they run."""
        self.closed = True
        for hand in self.resting:
            hand.rouse()
        self.resting.clear()

    def _call(self) -> None:
        """Have a hand seek: the one that rests for the shortest time, or a new one."""
        if self.resting:
            hand = self.resting.pop()
            hand.rouse()
        else:
            hand = Hand(self)
            self._all.add(hand)
            # Not by the loop's factory, which may be an eager one: a hand begins on its own turn.
            name = f"admission job {self._name}"
            hand.task = asyncio.Task(hand.live(), loop=self.loop, name=name, context=Context())
            hand.task.add_done_callback(lambda _: self._gone(hand))
        self._seeker = hand

    def _gone(self, hand: Hand) -> None:
        self._all.discard(hand)
        if hand in self.resting:
            self.resting.remove(hand)
        if not self.loop.is_closed():
            self.leaves_seeking(hand)
