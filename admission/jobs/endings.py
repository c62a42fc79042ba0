"""Waiting for the end of jobs: the server tells who asked; in case that is lost, they look again from time to time."""

from __future__ import annotations

import asyncio
from collections import deque

from admission.jobs import script
from admission.jobs.script import Message, Record, Stats
from admission.jobs.store import JobStore
from admission.jobs.types import JobState

__all__ = ["Endings", "Pace"]

LOOK_AGAIN = 1.0
"""Seconds after which whoever waits for a job looks again, unasked."""

PACE_WINDOW = 30.0
"""Seconds over which the pace of a queue is seen."""

SHORTEST_SIGHT = 0.1
"""Seconds between two looks that tell a pace."""

_ENDED = (JobState.DONE, JobState.DEAD, JobState.CANCELLED)


class Endings:
    """Who waits for which job, on one store."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._waiting: dict[str, set[asyncio.Event]] = {}
        store.on_told = self._told
        store.on_subscribed = self._rouse_all

    async def ended(self, id: str, timeout: float | None) -> Record | None:
        """The job once it has ended; None when there is no such job.

        Raises:
            TimeoutError: It has not ended within *timeout* seconds.
            Unavailable: The server does not answer.
        """
        self._store.listen()
        told = asyncio.Event()
        self._waiting.setdefault(id, set()).add(told)
        try:
            async with asyncio.timeout(timeout):
                return await self._look_until_ended(id, told)
        except TimeoutError:
            raise TimeoutError(f"job {id} has not ended within {timeout:g} s") from None
        finally:
            waiting = self._waiting[id]
            waiting.discard(told)
            if not waiting:
                del self._waiting[id]

    async def _look_until_ended(self, id: str, told: asyncio.Event) -> Record | None:
        look = script.look(id, self._store.process)
        while True:
            told.clear()
            record = await self._store.ask(look)
            if not isinstance(record, Record):
                return None
            if record.state in _ENDED:
                return record
            await _told_or_later(told)

    def _told(self, message: Message) -> None:
        if message.verb == "end":
            self._rouse(message.about)

    def _rouse(self, id: str) -> None:
        for told in self._waiting.get(id, ()):
            told.set()

    def _rouse_all(self) -> None:
        for id in self._waiting:
            self._rouse(id)


async def _told_or_later(told: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK_AGAIN):
            await told.wait()
    except TimeoutError:
        return


class Pace:
    """How fast jobs end, as seen from the numbers of a queue that are asked for anyway."""

    def __init__(self) -> None:
        self._sights: deque[tuple[float, int]] = deque()

    def saw(self, stats: Stats, now: float) -> None:
        """The numbers of the queue at *now*, in seconds of any clock that runs on."""
        ended = stats.counters["succeeded"] + stats.counters["dead"]
        sights = self._sights
        while sights and (now - sights[0][0] > PACE_WINDOW or ended < sights[0][1]):
            sights.popleft()
        if not sights or now - sights[-1][0] >= SHORTEST_SIGHT:
            sights.append((now, ended))

    @property
    def rate(self) -> float | None:
        """Jobs per second; None while it is unknown, or nothing ends."""
        if len(self._sights) < 2:
            return None
        (since, before), (now, after) = self._sights[0], self._sights[-1]
        return (after - before) / (now - since) if after > before else None
