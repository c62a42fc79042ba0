"""The thread that keeps this process's lease, so that its slots stay its own while its event loop is busy.

A lease that the event loop renewed itself would be lost to one long computation; one that a thread renews whatever
happens would keep the slots of a process that hangs for good. So a thread renews, and watches the loop:

    event loop   tick … tick … tick … (blocked)
    thread       step · step · step · step · step · step     twelve in one time to live
                 renew       ·       renew        ·          every fourth, or every one until it succeeds
                                     no tick for `stall`:    no more renewals, until the loop ticks again

The silence of the loop is counted in the thread's own steps, not by the clock: of a process that was stopped and goes
on (SIGSTOP, a suspended machine) nobody can say that its loop hangs.

`stall` is twice the time to live unless said otherwise: a loop that long without a turn has let every request time out
anyway. Its slots are free one more time to live later. Whoever must have them back sooner sets it lower, and has to
know how long the longest computation on the loop takes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from admission.backends.redis.address import Address
from admission.backends.redis.exchange import Call, Exchange, Unreachable
from admission.backends.redis.server import Wire
from admission.errors import NotRunning
from admission.types import within

__all__ = ["Lease", "LeaseStatistics"]

logger = logging.getLogger("admission.redis")

STEPS = 12
"""Of the thread in one time to live."""

RENEW_EVERY = 4
"""Steps between renewals that succeed."""

MOMENT = 0.25
"""Seconds a renewal that is under way has to end when the lease is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStatistics:
    """How the lease stands."""

    renewals: int
    failures: int
    """Renewals that were tried in vain."""
    stalls: int
    """Times renewing was given up because the event loop had stopped."""
    age: float
    """Seconds since the last renewal was asked for that succeeded; inf before the first."""
    held: bool
    """Whether it cannot have run out yet."""
    running: bool
    """Whether the thread lives; False in a forked child, too."""


class Lease:
    """Renews one lease from a daemon thread, over a connection of its own, while the event loop turns.

    Args:
        url: See `Address`.
        beat: Makes the call that renews the lease. It is called *in the thread*.
        heard: Told the answer to each renewal, on the event loop; what it raises is logged.
        ttl: Seconds the lease lives. The same as in the call that *beat* makes.
        stall: Seconds without a turn of the event loop after which the lease is left to run out. None: twice *ttl*.
        deadline: Seconds one renewal may take.

    Raises:
        ValueError: The URL is none, or an option is outside its range; the message names it, its value and the range.
    """

    def __init__(
        self,
        url: str | Address,
        *,
        beat: Callable[[], Call],
        heard: Callable[[Wire], None],
        ttl: float,
        stall: float | None = None,
        deadline: float = 1.0,
    ) -> None:
        within("ttl", ttl, 0, above_low=True)
        within("stall", stall, ttl / STEPS)
        within("deadline", deadline, 0, above_low=True)
        self.address = url if isinstance(url, Address) else Address.parse(url)
        self._beat = beat
        self._heard = heard
        self._ttl = ttl
        self._step = ttl / STEPS
        self._patience = math.ceil((2 * ttl if stall is None else stall) / self._step)
        """Steps without a turn of the loop."""
        self._deadline = deadline
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Event
        self._ending = False
        # Each is written by one side only: the loop …
        self._turns = 0
        self._timer: asyncio.TimerHandle | None = None
        # … and the thread.
        self._turns_seen = -1
        self._still = 0
        """Steps since the loop was last seen to turn."""
        self._failing_since: float | None = None
        self._renewed_at = -math.inf
        self._renewals = self._failures = self._stalls = 0
        self._inside: tuple[asyncio.AbstractEventLoop, asyncio.Task[None], asyncio.Event] | None = None

    @property
    def statistics(self) -> LeaseStatistics:
        """How it stands. May be read from any thread."""
        age = time.monotonic() - self._renewed_at
        return LeaseStatistics(
            renewals=self._renewals,
            failures=self._failures,
            stalls=self._stalls,
            age=age,
            held=age < self._ttl,
            running=self._thread is not None and self._thread.is_alive(),
        )

    def start(self) -> None:
        """Begin to renew, and to watch the running event loop.

        Raises:
            NotRunning: It was started before, perhaps by the process this one was forked from.
        """
        if self._thread is not None or os.getpid() != self._pid:
            raise NotRunning(f"the lease at {self.address} was started before: make a new one")
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._turn()
        self._thread = threading.Thread(target=self._live, name="admission-lease", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop renewing and end the thread; the lease itself runs out by itself. It may be called again.

        A renewal that is under way gets a moment: cut off, it might still be done, later than all that is said next.
        In a forked child, which has no such thread, this does nothing.
        """
        if self._thread is None or os.getpid() != self._pid:
            return
        self._ending = True
        if self._timer is not None:
            self._timer.cancel()
        if self._inside is not None:
            loop, task, ending = self._inside
            with suppress(RuntimeError, TimeoutError):  # The loop is closed: the thread has ended just now.
                loop.call_soon_threadsafe(ending.set)
                async with asyncio.timeout(MOMENT):
                    await self._ended.wait()
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
        try:
            async with asyncio.timeout(self._deadline + 1.0):
                await self._ended.wait()
        except TimeoutError:  # It looks up a name, which cannot be cut short. It renews nothing more.
            logger.warning("the thread of the lease at %s did not end in time", self.address)
        else:
            self._thread.join()

    def _turn(self) -> None:
        """The event loop has come round."""
        self._turns += 1
        self._timer = self._loop.call_later(self._step / 2, self._turn)

    def _hear(self, answer: Wire) -> None:
        if self._ending:
            return
        try:
            self._heard(answer)
        except Exception:
            logger.exception("%r failed on the answer to a renewal", self._heard)

    # What follows runs in the thread.

    def _live(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                asyncio.run(self._renew_until_ended())
        finally:
            self._on_loop(self._ended.set)

    async def _renew_until_ended(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        ending = asyncio.Event()
        self._inside = (asyncio.get_running_loop(), task, ending)
        exchange = Exchange(self.address, deadline=self._deadline)
        steps_left = 0
        try:
            while not (self._ending or self._loop.is_closed()):
                if not self._loop_turns():
                    steps_left = 0  # As soon as it turns again.
                elif steps_left > 0:
                    steps_left -= 1
                else:
                    renewed = await self._renew(exchange)
                    steps_left = RENEW_EVERY - 1 if renewed else 0
                # Jittered, or processes that were started together renew together for ever.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._step * random.uniform(0.8, 1.0)):
                        await ending.wait()
        finally:
            await exchange.close()

    def _loop_turns(self) -> bool:
        """Whether the event loop has had a turn lately."""
        turns = self._turns
        if turns != self._turns_seen:
            if self._still >= self._patience:
                logger.warning("the event loop turns again: the lease at %s is renewed", self.address)
            self._turns_seen = turns
            self._still = 0
            return True
        self._still += 1
        if self._still == self._patience:
            self._stalls += 1
            logger.error(
                "the event loop has had no turn for about %.3g s: the lease at %s, which runs out in %.3g s, is not "
                "renewed until it has one",
                self._patience * self._step,
                self.address,
                self._left(),
            )
        return self._still < self._patience

    async def _renew(self, exchange: Exchange) -> bool:
        asked = time.monotonic()
        try:
            answer = await exchange.run(self._beat())
        except Exception as error:
            self._failed(error, asked)
            return False
        late = not self._held_at(asked)
        self._renewed_at = asked
        self._renewals += 1
        if self._failing_since is not None:
            ran_out = ", after it had run out" if late else ""
            failed_for = asked - self._failing_since
            logger.warning("the lease at %s is renewed again after %.3g s%s", self.address, failed_for, ran_out)
            self._failing_since = None
        self._on_loop(self._hear, answer)
        return True

    def _failed(self, error: Exception, now: float) -> None:
        self._failures += 1
        if self._failing_since is not None:
            return
        self._failing_since = now
        unexpected = None if isinstance(error, Unreachable) else error
        text = "the lease cannot be renewed: %s; it runs out in %.3g s"
        logger.warning(text, error, self._left(), exc_info=unexpected)

    def _held_at(self, now: float) -> bool:
        return now - self._renewed_at < self._ttl

    def _left(self) -> float:
        """Seconds until it runs out; 0 if it has, or was never held."""
        return max(0.0, self._renewed_at + self._ttl - time.monotonic())

    def _on_loop(self, callback: Callable[..., None], *data: Wire) -> None:
        with suppress(RuntimeError):  # The event loop is closed: nobody is there to be told.
            self._loop.call_soon_threadsafe(callback, *data)
