"""The link to Redis: calls that end in time, a circuit breaker before them, and messages pushed the other way.

run ──▶ breaker ──▶ EVALSHA within one deadline ──▶ answer | Unreachable
          │ open: a task of the link probes, everyone else is told `Unreachable` at once
listen ──▶ SUBSCRIBE on a connection of its own ──▶ heard(message), subscribed() after every (re)connect
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from admission.backends.redis.address import Address
from admission.backends.redis.breaker import Breaker, BreakerState
from admission.backends.redis.channel import Channel
from admission.backends.redis.exchange import Call, Exchange, Script, ServerError, TimedOut, Unreachable
from admission.backends.redis.server import Ordered, Wire, Word
from admission.errors import NotRunning
from admission.statistics import Histogram
from admission.types import HistogramSnapshot, within

__all__ = [
    "ROUND_TRIPS",
    "BreakerState",
    "Call",
    "Link",
    "LinkStatistics",
    "Ordered",
    "Script",
    "ServerError",
    "TimedOut",
    "Unreachable",
    "Wire",
    "Word",
]

logger = logging.getLogger("admission.redis")

ROUND_TRIPS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper edges for the seconds of a round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatistics:
    """What a link has seen so far."""

    round_trips: int
    """Calls that were answered."""
    seconds: HistogramSnapshot
    """How long they took."""
    failures: int
    """Calls that were not answered, or with an error. Those the breaker turned away are not among them."""
    timeouts: int
    """Failures because time ran out."""
    turned_away: int
    """Calls not made because the breaker was open."""
    reconnects: int
    """Times a call was answered after one had failed, and times a channel was subscribed again."""
    breaker: BreakerState
    opened: int
    """Times the breaker opened."""
    listening: bool
    """Whether every channel listened to is subscribed now; False without one."""


class Link:
    """The way to one Redis, for one asyncio loop: that of its first use.

    Connects on first use, and again by itself. How many calls are under way at once is its caller's business.

    Args:
        url: See `Address`.
        deadline: Seconds one call may take, with connecting and all. When the loop was blocked meanwhile, an answer
            that has arrived is still taken.
        failures: Calls in a row that must fail until the breaker opens.
        budget: Seconds; an answer that took longer counts as a failure. None: half of *deadline*.
        first_pause, longest_pause: Seconds until an open breaker probes, doubled after each probe that failed.
        quiet: Seconds without a message after which a channel asks whether the server is there at all.
        probe: What to send as a probe: something harmless that shows the pool can be served. None: an empty script.
        on_change: Told every new state of the breaker, on the loop; what it raises is logged.

    Raises:
        ValueError: The URL is none, or an option is outside its range; the message names it, its value and the range.
    """

    def __init__(
        self,
        url: str | Address,
        *,
        deadline: float = 1.0,
        failures: int = 3,
        budget: float | None = None,
        first_pause: float = 0.1,
        longest_pause: float = 5.0,
        quiet: float = 5.0,
        probe: Callable[[], Call] | None = None,
        on_change: Callable[[BreakerState], None] | None = None,
    ) -> None:
        within("deadline", deadline, 0, above_low=True)
        within("quiet", quiet, 0, above_low=True)
        self.address = url if isinstance(url, Address) else Address.parse(url)
        self._exchange = Exchange(self.address, deadline=deadline)
        self._breaker = Breaker(
            failures=failures,
            budget=deadline / 2 if budget is None else budget,
            first_pause=first_pause,
            longest_pause=longest_pause,
        )
        self._quiet = quiet
        self._probe = probe
        self._on_change = on_change
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prober: asyncio.Task[None] | None = None
        self._channels: list[Channel] = []
        self._closed = False
        self._failing = False
        """Whether the last call failed."""
        self._seconds = Histogram(ROUND_TRIPS)
        self._failures = self._timeouts = self._turned_away = self._recoveries = self._opened = 0

    @property
    def state(self) -> BreakerState:
        """Of the breaker."""
        return self._breaker.state

    @property
    def sharded(self) -> bool:
        """Whether the server is a cluster, where messages go by SPUBLISH."""
        return self._exchange.server.sharded

    @property
    def statistics(self) -> LinkStatistics:
        """What was seen so far."""
        return LinkStatistics(
            round_trips=self._seconds.count,
            seconds=self._seconds.snapshot(),
            failures=self._failures,
            timeouts=self._timeouts,
            turned_away=self._turned_away,
            reconnects=self._recoveries + sum(channel.resubscriptions for channel in self._channels),
            breaker=self._breaker.state,
            opened=self._opened,
            listening=bool(self._channels) and all(channel.subscribed for channel in self._channels),
        )

    def in_order(self) -> Ordered:
        """A way for `run` on which no call overtakes another. Whoever asks for it closes it."""
        return self._exchange.server.in_order()

    async def run(self, script: Script, keys: Sequence[Word], argv: Sequence[Word], way: Ordered | None = None) -> Wire:
        """What *script* answers, called with *keys* and *argv*.

        If cancelled, or out of time, its connection is closed, so that no one reads the late answer.

        Raises:
            Unreachable: No answer within the deadline, or the breaker is open.
            ServerError: The server answered with an error.
            NotRunning: The link is closed, or belongs to another event loop.
        """
        self._check()
        if not self._breaker.closed:
            self._turned_away += 1
            raise Unreachable(f"{self.address} is not asked: the circuit breaker is {self._breaker.state}")
        asked = time.monotonic()
        try:
            answer = await self._exchange.run(Call(script, keys, argv), way)
        except Unreachable as error:
            self._count_failure(error, time.monotonic())
            raise
        self._count_answer(time.monotonic(), asked)
        return answer

    async def ask(self, *command: Word) -> Wire:
        """What the server answers to one command, outside the breaker and the counts. On a cluster it needs a key.

        Raises:
            Unreachable, ServerError, NotRunning: As in `run`.
        """
        self._check()
        return await self._exchange.ask(*command)

    async def listen(self, channel: str, heard: Callable[[bytes], None], subscribed: Callable[[], None]) -> None:
        """Pass every message on *channel* to *heard*, until cancelled or the link is closed.

        A connection that broke, or does not answer, is made anew after a jittered pause. *subscribed* is called every
        time the subscription stands: what was published before that is lost, so ask for what was missed. What the two
        raise is logged.

        Raises:
            NotRunning: As in `run`.
        """
        self._check()
        origin, exchange = str(self.address), self._exchange
        listening = Channel(exchange.server, origin, channel, deadline=exchange.deadline, quiet=self._quiet)
        self._channels.append(listening)
        try:
            await listening.listen(heard, subscribed)
        finally:
            self._channels.remove(listening)
            self._recoveries += listening.resubscriptions

    async def close(self) -> None:
        """Close every connection and end every `listen`. A call under way closes its own. It may be called again."""
        self._closed = True
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait([self._prober])
            self._prober = None
        for channel in self._channels:
            await channel.end()
        await self._exchange.close()

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Link to {self.address}, {self._breaker.state}>"

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise NotRunning(f"the link to {self.address} belongs to another event loop, where it was used before")
        if self._closed:
            raise NotRunning(f"the link to {self.address} is closed")

    def _count_answer(self, now: float, asked: float) -> None:
        seconds = now - asked
        self._seconds.observe(seconds)
        if self._failing:
            self._failing = False
            self._recoveries += 1
        was_closed = self._breaker.closed
        self._breaker.succeeded(now, seconds)
        if was_closed and not self._breaker.closed:
            self._open(f"the last answer took {seconds:.3g} s")

    def _count_failure(self, error: Unreachable, now: float) -> None:
        self._failing = True
        self._failures += 1
        self._timeouts += isinstance(error, TimedOut)
        was_closed = self._breaker.closed
        self._breaker.failed(now)
        if was_closed and not self._breaker.closed:
            self._open(str(error))

    def _open(self, reason: str) -> None:
        self._opened += 1
        logger.warning("the circuit breaker to %s is open, calls fail at once: %s", self.address, reason)
        if not self._closed:
            self._prober = asyncio.get_running_loop().create_task(self._probe_until_closed())
        self._tell()

    async def _probe_until_closed(self) -> None:
        breaker = self._breaker
        while not breaker.closed:
            await asyncio.sleep(breaker.probe_at - time.monotonic())
            if not breaker.probe(time.monotonic()):  # Timers may be a little early.
                continue
            self._tell()
            asked = time.monotonic()
            if await self._probed():
                breaker.probe_succeeded(time.monotonic(), time.monotonic() - asked)
            else:
                breaker.probe_failed(time.monotonic())
            if breaker.closed:
                away = time.monotonic() - breaker.opened_at
                logger.warning("the circuit breaker to %s is closed again after %.1f s", self.address, away)
            self._tell()

    async def _probed(self) -> bool:
        """Whether a probe was answered."""
        try:
            await self._exchange.run(_NOTHING if self._probe is None else self._probe())
        except Unreachable as error:
            logger.debug("a probe failed: %s", error)
            return False
        except Exception:  # Of who makes probes: without an answer the breaker would stay open for good.
            logger.exception("a probe could not be made")
            return False
        return True

    def _tell(self) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(self._breaker.state)
        except Exception:
            logger.exception("%r failed on a new state of the circuit breaker", self._on_change)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lua:
    source: str
    sha: str


_NOTHING = Call(_Lua(source="return 1", sha="e0e1f9fabfc9d4800c877a703b823ac0578ff8db"), (), ())
"""Shows that scripts run, also where only writing is held up."""
