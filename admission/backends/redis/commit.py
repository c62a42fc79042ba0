"""Group commit: whatever callers ask for while a call is under way goes out together with the next one.

There is no timer: with one caller a batch is one operation and leaves at once, and the busier the process, the larger
the batches. So the number of round trips is bounded by their length, not by the number of requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from admission.backends.redis.exchange import Unreachable
from admission.backends.redis.script import Answer, Op, Reply

__all__ = ["MOST_CALLS", "MOST_OPERATIONS", "CommitStatistics", "Committer", "Heard"]

logger = logging.getLogger("admission.redis")

T = TypeVar("T")

MOST_OPERATIONS = 256
"""Operations one call carries: the script blocks its server meanwhile."""

MOST_CALLS = 2
"""Calls under way at once: the next batch is on the wire while the server works on the last."""

RETRY_AFTER = 0.05
"""Seconds until a failed batch is tried again, unless the breaker has opened."""

Heard = Callable[[Answer], None]
"""Told the answer to one operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStatistics:
    """What was sent so far."""

    calls: int
    operations: int
    waiting: int
    """Operations that wait for a call now."""
    largest: int
    """Operations in the largest batch so far."""


class Committer:
    """Gathers operations and sends them in batches. Belongs to one asyncio loop.

    Args:
        call: Sends one batch. Raises `Unreachable`; the batch is then tried again, in front of all else, so every
            operation must do no harm when it is done twice.
        replied: Told what a reply says besides the answers, before those are told.
    """

    def __init__(self, call: Callable[[Sequence[Op]], Awaitable[Reply]], replied: Callable[[Reply], None]) -> None:
        self._call = call
        self._replied = replied
        # Two lines: what frees capacity goes before what needs it, so that a release and the next offer of this
        # process are one hop. As dictionaries, which keep order and let an unsent operation be taken back.
        self._first: dict[Op, Heard | None] = {}
        self._then: dict[Op, Heard | None] = {}
        self._calls = 0
        """Under way."""
        self._due = False
        self._held_up = False
        """A call has failed and is about to be made again, or it is suspended."""
        self._suspended = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._made = self._sent = self._largest = 0

    def send(self, op: Op, heard: Heard | None = None, *, first: bool = False) -> None:
        """Have *op* done with the next call, and *heard* told its answer."""
        line = self._first if first else self._then
        if op in line:  # Said twice before it left, like two looks, or pause, resume and pause: the last word counts.
            heard = _both(line.pop(op), heard)
        line[op] = heard
        if not self._due and not self._held_up and self._calls < MOST_CALLS:
            # Not at once: what this iteration of the loop has to say goes together.
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def unsend(self, op: Op) -> bool:
        """Take *op* back; False when it has left already."""
        try:
            del self._then[op]
        except KeyError:
            return False
        return True

    def suspend(self) -> None:
        """The other side is gone: forget what it has not answered, and send nothing until `resume`."""
        self._suspended = self._held_up = True
        self._clear()

    def resume(self) -> None:
        """The other side is back: send what has gathered."""
        self._suspended = self._held_up = False
        self._flush()

    async def drain(self) -> None:
        """Wait until all is answered, however often it has to be tried, or `suspend`. It may take for ever."""
        while (self._first or self._then or self._tasks) and not self._suspended:
            if not self._tasks:
                self.resume()
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Send nothing more."""
        self.suspend()
        for task in self._tasks:
            task.cancel()

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a call and none is under way."""
        return not (self._calls or self._first or self._then)

    @property
    def statistics(self) -> CommitStatistics:
        """What was sent so far."""
        waiting = len(self._first) + len(self._then)
        return CommitStatistics(calls=self._made, operations=self._sent, waiting=waiting, largest=self._largest)

    def _flush(self) -> None:
        self._due = False
        while self._calls < MOST_CALLS and not self._held_up and (self._first or self._then):
            batch = self._next_batch()
            self._calls += 1
            self._made += 1
            self._sent += len(batch)
            self._largest = max(self._largest, len(batch))
            task = asyncio.get_running_loop().create_task(self._commit(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> dict[Op, Heard | None]:
        """The oldest operations, those that free capacity first."""
        if len(self._first) + len(self._then) <= MOST_OPERATIONS:
            batch = _joined(self._first, self._then)
            self._clear()
            return batch
        batch = dict(islice(self._first.items(), MOST_OPERATIONS))
        for op in batch:
            del self._first[op]
        more = list(islice(self._then, MOST_OPERATIONS - len(batch)))
        for op in more:
            batch[op] = _both(batch.get(op), self._then.pop(op))
        return batch

    def _clear(self) -> None:
        self._first.clear()
        self._then.clear()

    def _try_again(self) -> None:
        if not self._suspended:
            self.resume()

    async def _commit(self, batch: dict[Op, Heard | None]) -> None:
        try:
            reply = await self._call(list(batch))
        except Exception as error:
            if not isinstance(error, Unreachable):
                logger.exception("a call to the shared pool failed in a way that should not happen")
            if not self._suspended:
                self._first = _joined(batch, self._first)
                self._held_up = True
                asyncio.get_running_loop().call_later(RETRY_AFTER, self._try_again)
            return
        finally:
            self._calls -= 1
        # The next batch first: it travels while the answers are told.
        self._flush()
        _tell(self._replied, reply)
        for heard, answer in zip(batch.values(), reply.answers, strict=True):
            if heard is not None:
                _tell(heard, answer)


def _tell(heard: Callable[[T], None], news: T) -> None:
    """Call it; what it raises must not keep the others from hearing."""
    try:
        heard(news)
    except Exception:
        logger.exception("%r failed on what the shared pool answered", heard)


def _both(one: Heard | None, other: Heard | None) -> Heard | None:
    if one is None or other is None:
        return one or other

    def heard(answer: Answer) -> None:
        _tell(one, answer)
        _tell(other, answer)

    return heard


def _joined(before: dict[Op, Heard | None], after: dict[Op, Heard | None]) -> dict[Op, Heard | None]:
    """All of them in order; what stands in both comes as late as it was said last, and both hear the answer."""
    joined = {**before, **after}
    if len(joined) < len(before) + len(after):
        joined = {op: heard for op, heard in before.items() if op not in after}
        for op, heard in after.items():
            joined[op] = _both(before.get(op), heard)
    return joined
