"""What a process of the benchmark of jobs does: enqueue so many jobs that do nothing, then work them off.

Called by name in processes of several environments (`builds.Twin`), so nothing here imports admission or a peer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Protocol, TypedDict

from tests.benchmarks.measure import event_loops, run

PATIENCE = 30.0
"""Seconds after which a turn is ended: then what was done until then counts. Some peers leave jobs lying for longer."""

OURS = "admission"
KEPT = "admission, results kept"

CONTENDERS: Mapping[str, tuple[str, str]] = {
    OURS: ("tests.benchmarks.jobs_ours", "Ours"),
    KEPT: ("tests.benchmarks.jobs_ours", "OursKept"),
    "taskiq, stream": ("tests.benchmarks.jobs_peers", "Taskiq"),
    "taskiq, list": ("tests.benchmarks.jobs_peers", "TaskiqList"),
    "saq": ("tests.benchmarks.jobs_peers", "Saq"),
    "arq": ("tests.benchmarks.jobs_peers", "Arq"),
    "streaq": ("tests.benchmarks.jobs_peers", "Streaq"),
    "dramatiq": ("tests.benchmarks.jobs_peers", "Dramatiq"),
}
"""Where each is, by name."""


class Tally:
    """Counts the jobs that have run; says when and at what CPU time the first began and the last ended."""

    def __init__(self, expected: int, loop: asyncio.AbstractEventLoop) -> None:
        self.expected = expected
        self.done = 0
        self.began = (0.0, 0.0)
        self.ended = (0.0, 0.0)
        self._all_done = asyncio.Event()
        self._loop = loop
        self._turn = threading.Lock()

    def count(self) -> None:
        """One job has run. May be called on any thread."""
        with self._turn:
            if not self.done:
                self.began = now()
            self.done += 1
            if self.done == self.expected:
                self.ended = now()
                self._loop.call_soon_threadsafe(self._all_done.set)

    async def all_done(self) -> None:
        """Return once the last job has run."""
        await self._all_done.wait()


class Queue(Protocol):
    """A queue of jobs in Redis, with one task, which does nothing but count."""

    def __init__(self, url: str) -> None:
        """Raises ImportError where it is not installed."""

    async def open(self) -> None:
        """Be ready to enqueue: connected, and scripts loaded."""

    async def enqueue(self, count: int) -> None:
        """Enqueue so many jobs; on return the server has them all."""

    async def close(self) -> None:
        """Let go of what `open` made."""

    async def work(self, tally: Tally) -> None:
        """Be one worker process until the tally is complete. May set `tally.ended` later than the last job's end."""


class Spent(TypedDict):
    """What one turn took, in seconds."""

    seconds: float
    cpu: float
    """Of this process."""
    done: int


def now() -> tuple[float, float]:
    """The clock, and this process's CPU time, in seconds."""
    return time.perf_counter(), time.process_time()


def absent(who: str) -> str:
    """Why it cannot take part in this environment; empty when it can."""
    logging.disable(logging.CRITICAL)  # What peers say of their own start and stop.
    try:
        _contender(who)("redis://127.0.0.1:1")
    except ImportError as error:
        return f"cannot be imported here ({error})"
    return ""


def enqueue(who: str, url: str, count: int) -> Spent:
    """Enqueue *count* jobs over connections that stand."""
    return _run(_enqueue(_contender(who)(url), count))


def work(who: str, url: str, count: int) -> Spent:
    """Work off the *count* jobs that are there, from the start of the first to the end of the last."""
    return _run(_work(_contender(who)(url), count))


async def _enqueue(queue: Queue, count: int) -> Spent:
    await queue.open()
    began = now()
    async with asyncio.timeout(PATIENCE):
        await queue.enqueue(count)
    ended = now()
    await queue.close()
    return _spent(began, ended, count)


async def _work(queue: Queue, count: int) -> Spent:
    tally = Tally(count, asyncio.get_running_loop())
    try:
        async with asyncio.timeout(PATIENCE):
            await queue.work(tally)
    except TimeoutError:
        if not tally.done:
            raise RuntimeError(f"none of {count:,} jobs was done in {PATIENCE:g} s") from None
        return _spent(tally.began, now(), tally.done)
    return _spent(tally.began, tally.ended, count)


def _spent(began: tuple[float, float], ended: tuple[float, float], count: int) -> Spent:
    return {"seconds": ended[0] - began[0], "cpu": ended[1] - began[1], "done": count}


def _run(turn: object) -> Spent:
    gc.collect()
    # uvloop where there is one.
    return run(list(event_loops().values())[-1], turn)  # type: ignore[arg-type]


def _contender(who: str) -> Callable[[str], Queue]:
    module, name = CONTENDERS[who]
    found: Callable[[str], Queue] = getattr(import_module(module), name)
    return found
