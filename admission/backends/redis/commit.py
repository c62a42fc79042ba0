"""Group commit: whatever callers ask for while a call is under way goes out together with the next one.

There is no timer: with one caller a batch is one operation and leaves at once, and the busier the process, the larger
the batches. So the number of round trips is bounded by their length, not by the number of requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeAlias, TypeVar, cast

from admission.backends.redis.exchange import Unreachable

__all__ = ["MOST_CALLS", "MOST_OPERATIONS", "RETRY_AFTER", "Batch", "CommitStatistics", "Committer", "Heard"]

logger = logging.getLogger("admission.redis")

T = TypeVar("T")
Answer = TypeVar("Answer")
Op = TypeVar("Op")
Reply = TypeVar("Reply", bound="Batch")

MOST_OPERATIONS = 256
"""Operations one call carries: the script blocks its server meanwhile."""

MOST_CALLS = 2
"""Calls under way at once: the next batch is on the wire while the server works on the last."""

RETRY_AFTER = 0.05
"""Seconds until a failed batch is tried again, unless the breaker has opened."""

Heard: TypeAlias = Callable[[Answer], None]
"""Told the answer to one operation."""


class Batch(Protocol):
    """What the committer has to know of a reply."""

    @property
    def answers(self) -> Sequence[object]:
        """One per operation, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStatistics:
    """What was sent so far."""

    calls: int
    operations: int
    waiting: int
    """Operations that wait for a call now."""
    largest: int
    """Operations in the largest batch so far."""


class Committer(Generic[Op, Answer, Reply]):
    """Gathers operations of one script and sends them in batches. Belongs to one asyncio loop.

    Args:
        call: Sends one batch. Raises `Unreachable`; the batch is then tried again, in front of all else, so every
            operation must do no harm when it is done twice.
        replied: Told what a reply says besides the answers, before those are told.
        weigh: How many ordinary operations one is as heavy as, at least 1: a call carries `MOST_OPERATIONS` of them
            together, or a single one that is heavier. None: all are ordinary.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Op]], Awaitable[Reply]],
        replied: Callable[[Reply], None],
        *,
        weigh: Callable[[Op], int] | None = None,
    ) -> None:
        self._call = call
        self._replied = replied
        self._weigh = weigh
        # Two lines: what frees capacity goes before what needs it, so that a release and the next offer of this
        # process are one hop. As dictionaries, which keep order and let an unsent operation be taken back.
        self._first: dict[Op, Heard[Answer] | None] = {}
        self._then: dict[Op, Heard[Answer] | None] = {}
        self._under_way: list[dict[Op, Heard[Answer] | None]] = []
        """Batches that were sent and are not answered."""
        self._due = False
        self._held_up = False
        """A call has failed and is about to be made again, or it is suspended."""
        self._suspended = False
        self._puzzled = False
        """The log says already that calls fail for no reason of the link."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._made = self._sent = self._largest = 0

    def send(self, op: Op, heard: Heard[Answer] | None = None, *, first: bool = False) -> None:
        """Have *op* done with the next call, and *heard* told its answer."""
        line = self._first if first else self._then
        if op in line:  # Said twice before it left, like two looks, or pause, resume and pause: the last word counts.
            heard = _both(line.pop(op), heard)
        line[op] = heard
        if not self._due and not self._held_up and len(self._under_way) < MOST_CALLS:
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

    def forget(self, op: Op, heard: Heard[Answer]) -> None:
        """Do not send *op* (again), unless somebody else than *heard* wants it too. It may have been done."""
        for line in (self._first, self._then):
            if line.get(op) is heard:
                del line[op]
        for batch in self._under_way:
            if batch.get(op) is heard:
                batch[op] = _nobody

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

    async def answered(self, timeout: float) -> None:
        """Wait until the calls that are under way now are answered or have failed, at most *timeout* seconds.

        The next one goes over another connection, and could overtake them.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    def cancel(self) -> None:
        """Send nothing more."""
        self.suspend()
        for task in self._tasks:
            task.cancel()

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a call and none is under way."""
        return not (self._under_way or self._first or self._then)

    @property
    def statistics(self) -> CommitStatistics:
        """What was sent so far."""
        waiting = len(self._first) + len(self._then)
        return CommitStatistics(calls=self._made, operations=self._sent, waiting=waiting, largest=self._largest)

    def _flush(self) -> None:
        self._due = False
        while len(self._under_way) < MOST_CALLS and not self._held_up and (self._first or self._then):
            batch = self._next_batch()
            self._under_way.append(batch)
            self._made += 1
            self._sent += len(batch)
            self._largest = max(self._largest, len(batch))
            task = asyncio.get_running_loop().create_task(self._commit(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> dict[Op, Heard[Answer] | None]:
        """The oldest operations, those that free capacity first."""
        if self._weigh is None and len(self._first) + len(self._then) <= MOST_OPERATIONS:
            everything = _joined(self._first, self._then)
            self._clear()
            return everything
        batch: dict[Op, Heard[Answer] | None] = {}
        room = MOST_OPERATIONS
        for line in (self._first, self._then):
            chosen, room = self._fitting(line, room)
            for op in chosen:
                batch[op] = _both(batch.get(op), line.pop(op))
        return batch

    def _fitting(self, line: Iterable[Op], room: int) -> tuple[list[Op], int]:
        """The operations at the head of *line* that fit, and the room they leave."""
        if self._weigh is None:
            chosen = list(islice(line, room))
            return chosen, room - len(chosen)
        chosen = []
        for op in line:
            weight = self._weigh(op)
            # One that is too heavy by itself goes alone.
            if weight > room and not (room == MOST_OPERATIONS and not chosen):
                return chosen, 0
            chosen.append(op)
            room -= weight
            if room <= 0:
                return chosen, 0
        return chosen, room

    def _clear(self) -> None:
        self._first.clear()
        self._then.clear()

    def _try_again(self) -> None:
        if not self._suspended:
            self.resume()

    async def _commit(self, batch: dict[Op, Heard[Answer] | None]) -> None:
        try:
            reply = await self._call(list(batch))
        except Exception as error:
            if not isinstance(error, Unreachable) and not self._puzzled:
                self._puzzled = True
                again = f"it is tried again every {RETRY_AFTER:g} s, and the log is silent until one succeeds"
                logger.exception("a call to the server failed in a way that should not happen; %s", again)
            if not self._suspended:
                self._first = _joined({op: heard for op, heard in batch.items() if heard is not _nobody}, self._first)
                self._held_up = True
                asyncio.get_running_loop().call_later(RETRY_AFTER, self._try_again)
            return
        finally:
            self._under_way = [other for other in self._under_way if other is not batch]
        self._puzzled = False
        # The next batch first: it travels while the answers are told.
        self._flush()
        _tell(self._replied, reply)
        answers = cast("Sequence[Answer]", reply.answers)
        for heard, answer in zip(batch.values(), answers, strict=True):
            if heard is not None:
                _tell(heard, answer)


def _nobody(answer: object) -> None:
    """Hears the answer to what was forgotten while its call was under way."""


def _tell(heard: Callable[[T], None], news: T) -> None:
    """Call it; what it raises must not keep the others from hearing."""
    try:
        heard(news)
    except Exception:
        logger.exception("%r failed on what the server answered", heard)


def _both(one: Heard[Answer] | None, other: Heard[Answer] | None) -> Heard[Answer] | None:
    if one is None or other is None:
        return one or other

    def heard(answer: Answer) -> None:
        _tell(one, answer)
        _tell(other, answer)

    return heard


def _joined(
    before: dict[Op, Heard[Answer] | None], after: dict[Op, Heard[Answer] | None]
) -> dict[Op, Heard[Answer] | None]:
    """All of them in order; what stands in both comes as late as it was said last, and both hear the answer."""
    joined = {**before, **after}
    if len(joined) < len(before) + len(after):
        joined = {op: heard for op, heard in before.items() if op not in after}
        for op, heard in after.items():
            joined[op] = _both(before.get(op), heard)
    return joined
