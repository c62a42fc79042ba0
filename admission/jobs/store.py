"""The jobs of one pool on a server: what is asked goes out in batches, and what is told comes in by a channel.

    ask, send ─▶ Committer ─▶ one call of the script ─▶ answers
                                     └──▶ published ─▶ on_told, of the processes it concerns

The server holds the truth. A message is a hint, and may be lost: whoever waits for one looks again when `on_subscribed`
is called, and from time to time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from admission.backends.redis.commit import MOST_CALLS, MOST_OPERATIONS, RETRY_AFTER, Committer
from admission.backends.redis.link import BreakerState, Link, Ordered, ServerError, Unreachable
from admission.backends.redis.site import RedisPool
from admission.errors import NotRunning, Unavailable
from admission.jobs.script import Answer, Bounds, Message, Op, Reply, Script

if TYPE_CHECKING:
    from admission.backends.redis.embedded import Embedded

__all__ = ["JobStore"]

logger = logging.getLogger("admission.jobs")

PATIENCE = 3
"""Timeouts of the server that whoever asks waits: a lost answer is asked for again."""

HEAVY = 16_384
"""Bytes of a job that weigh as much as one more operation: so a batch stays below 4 MiB, whatever jobs are like."""


class JobStore:
    """The jobs of one pool on a server. Belongs to one asyncio loop; connects on first use.

    Args:
        site: The server. Its `on_outage` means nothing here: jobs are kept there and nowhere else.
        pool: Name of the pool whose capacity the jobs share.
        bounds: What travels with every call.
        process: The name whose lease in the pool says whether whoever takes jobs lives. None: a new one, without a
            lease: it can ask for anything, but what it takes is delivered again at once.
    """

    def __init__(self, site: RedisPool, pool: str, bounds: Bounds, *, process: str | None = None) -> None:
        self.site = site
        self.pool = pool
        self.bounds = bounds
        self.process = secrets.token_hex(8) if process is None else process
        self.script = Script(site.namespace, pool)
        self.reply: Reply | None = None
        """The latest."""
        self.on_told: Callable[[Message], None] | None = None
        """Told every message for this process, pushed or in a reply."""
        self.on_reply: Callable[[Reply], None] | None = None
        """Told every reply, after its messages and before its answers."""
        self.on_subscribed: Callable[[], None] | None = None
        """Messages may have been lost until now."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: Link | None = None
        self._commit: Committer[Op, Answer, Reply] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._embedded: Embedded | None = None
        self._asks: set[_Ask] = set()
        self.unanswered = 0
        """Calls that brought no answer: what they did is not known, and they were made again."""
        self.failing = False
        """Whether the latest call brought no answer, whatever it was about."""
        self._last_failure: Unreachable | None = None
        self._closed = False

    # ------------------------------------------------------------------ operations

    async def ask(self, op: Op) -> Answer:
        """What the server answers to one operation.

        Raises:
            Unavailable: No answer within `PATIENCE` times the site's timeout, or the server has no memory left.
            NotRunning: The store is closed, or belongs to another event loop.
        """
        (answer,) = await self._ask_portion((op,))
        return answer

    async def ask_all(self, ops: Iterable[Op]) -> list[Answer]:
        """What the server answers to many, in their order.

        More than fit into a call are no matter of groups: they go out in calls of their own, `MOST_CALLS` at once, of
        which none overtakes another. *ops* are drawn for each call when there is one to make: while the server works,
        the next ones are made.

        Raises:
            Unavailable, NotRunning: As in `ask`. Some of them may have been done.
        """
        portions = _portions(ops)
        first, second = next(portions, ()), next(portions, None)
        if second is None:
            return await self._ask_portion(first)
        self._connect()
        assert self._link is not None
        way = self._link.in_order()
        answers: list[Sequence[Answer]] = []
        to_go = chain((first, second), portions)

        async def ask_in_turn() -> None:
            for portion in to_go:
                index = len(answers)
                answers.append(())
                answers[index] = await self._call_until_answered(portion, way)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(MOST_CALLS):
                    group.create_task(ask_in_turn())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures.exceptions[0].__cause__
        finally:
            await way.close()
        return list(chain.from_iterable(answers))

    async def _call_until_answered(self, ops: Sequence[Op], way: Ordered) -> Sequence[Answer]:
        """One call, made again for as long as whoever asks waits."""
        patience = PATIENCE * self.site.timeout
        tired = time.monotonic() + patience
        while True:
            if self._closed:
                raise NotRunning(f"the job store of pool {self.pool!r} is closed")
            try:
                reply = await self._call(ops, way)
            except Unreachable as error:
                if _without_memory(error):
                    raise self._unavailable("has no memory left") from error
                if time.monotonic() >= tired:
                    raise self._unavailable(f"gave no answer within {patience:g} s") from error
                await asyncio.sleep(RETRY_AFTER)
            else:
                self._replied(reply)
                return reply.answers

    def send(self, op: Op, heard: Callable[[Answer], None] | None = None) -> None:
        """Have *op* done, in order, tried again until it is, and *heard* told the answer. Never waits.

        Raises:
            NotRunning: As in `ask`.
        """
        self._connect().send(op, heard)

    async def _ask_portion(self, ops: Sequence[Op]) -> list[Answer]:
        commit = self._connect()
        ask = _Ask(asyncio.get_running_loop(), len(ops))
        listeners = [partial(ask.heard, index) for index in range(len(ops))]
        for op, heard in zip(ops, listeners, strict=True):
            commit.send(op, heard)
        self._asks.add(ask)
        patience = PATIENCE * self.site.timeout
        try:
            async with asyncio.timeout(patience):
                return await ask.answers
        except TimeoutError:
            raise self._unavailable(f"gave no answer within {patience:g} s") from self._last_failure
        finally:
            self._asks.discard(ask)
            if ask.left:
                for op, heard in zip(ops, listeners, strict=True):
                    commit.forget(op, heard)

    def _unavailable(self, what: str) -> Unavailable:
        why = "" if self._last_failure is None else f": {self._last_failure}"
        return Unavailable(f"the server of the jobs of pool {self.pool!r} {what}{why}")

    # ------------------------------------------------------------------ messages

    def listen(self) -> None:
        """Listen to what this process is told, from now on. `on_subscribed` says when it does.

        Raises:
            NotRunning: As in `ask`.
        """
        self._connect()
        if self._listening is None and self._link is not None:
            channel = self.script.channel(self.process)
            self._listening = asyncio.get_running_loop().create_task(
                self._link.listen(channel, self._heard, self._subscribed)
            )

    def _heard(self, message: bytes) -> None:
        if self.on_told is not None:
            for told in self.script.parse_message(message):
                self.on_told(told)

    def _subscribed(self) -> None:
        if self.on_subscribed is not None:
            self.on_subscribed()

    # ------------------------------------------------------------------ kept values

    async def get(self, name: str) -> bytes | None:
        """The value that is kept under *name*, or None.

        Raises:
            Unavailable: The server cannot be reached.
        """
        answer = await self._command("GET", self.script.value_key(name))
        return answer if isinstance(answer, bytes) else None

    async def set(self, name: str, value: bytes, ttl: float) -> None:
        """Keep *value* under *name* for *ttl* seconds.

        Raises:
            Unavailable: The server cannot be reached, or has no memory left.
        """
        await self._command("SET", self.script.value_key(name), value, "PX", max(1, round(ttl * 1e3)))

    async def _command(self, *words: str | bytes | int) -> object:
        self._connect()
        assert self._link is not None
        try:
            return await self._link.ask(*words)
        except Unreachable as error:
            raise Unavailable(f"the server of the jobs of pool {self.pool!r} was asked in vain: {error}") from error

    # ------------------------------------------------------------------ from first use to the end

    async def drain(self) -> None:
        """Wait until everything is answered that was sent, however long it takes."""
        if self._commit is not None:
            await self._commit.drain()

    async def close(self) -> None:
        """Send what was not sent yet, if the server can be reached in time, and close the connections.

        It takes at most a few times the site's timeout. It may be called again; whoever asks then gets `NotRunning`.
        """
        self._closed = True
        commit, link, listening = self._commit, self._link, self._listening
        if commit is None or link is None:
            return
        self._commit = self._listening = None
        try:
            async with asyncio.timeout(self.site.timeout):
                await commit.drain()
        except TimeoutError:
            logger.warning("pool %r: what was said last about jobs was not answered in time", self.pool)
        finally:
            commit.cancel()
            self._fail(NotRunning(f"the job store of pool {self.pool!r} was closed"))
            self._link = None
            await link.close()
            if listening is not None:
                listening.cancel()
                await asyncio.wait([listening])
            if self._embedded is not None:
                self._embedded.close()
                self._embedded = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop it belongs to; None before its first use."""
        return self._loop

    def _connect(self) -> Committer[Op, Answer, Reply]:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise NotRunning(f"the jobs of pool {self.pool!r} were used on another event loop before")
        if self._closed:
            raise NotRunning(f"the job store of pool {self.pool!r} is closed")
        if self._commit is None:
            self._link = Link(self._server_url(), deadline=self.site.timeout)
            self._commit = Committer(self._call, self._replied, weigh=_weight)
        return self._commit

    def _server_url(self) -> str:
        if self.site.url != "embedded":
            return self.site.url
        from admission.backends.redis.embedded import embedded

        if self._embedded is None:
            self._embedded = embedded()  # Takes a moment where no other process has started it.
        return self._embedded.url

    # ------------------------------------------------------------------ calls and their replies

    async def _call(self, ops: Sequence[Op], way: Ordered | None = None) -> Reply:
        link = self._link
        if link is None:
            raise Unreachable("the connection was closed")
        keys, arguments = self.script.call(self.bounds, self.process, ops, sharded=link.sharded)
        asked = link.state is BreakerState.CLOSED
        try:
            answer = await link.run(self.script, keys, arguments, way)
        except Unreachable as error:
            if asked or self._last_failure is None:  # What opened the breaker says more than that it is open.
                self._last_failure = error
            self.unanswered += 1
            self.failing = not _without_memory(error)  # Then only what puts is refused.
            if _without_memory(error):
                self._fail(self._unavailable("has no memory left"))
            raise
        self.failing = False
        return self.script.parse(answer)

    def _replied(self, reply: Reply) -> None:
        self.reply = reply
        self._last_failure = None
        if self.on_told is not None:
            for told in reply.told:
                self.on_told(told)
        if self.on_reply is not None:
            self.on_reply(reply)

    def _fail(self, error: Exception) -> None:
        """Tell everyone who waits for an answer that none is to be had."""
        for ask in list(self._asks):
            ask.fail(error)


class _Ask:
    """Somebody who waits for the answers to some operations."""

    __slots__ = ("_said", "answers", "left")

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.answers: asyncio.Future[list[Answer]] = loop.create_future()
        self.left = count
        """Answers not heard yet."""
        self._said: list[Answer | None] = [None] * count
        if not count:
            self.answers.set_result([])

    def heard(self, index: int, answer: Answer) -> None:
        if self._said[index] is None:
            self._said[index] = answer
            self.left -= 1
            if not self.left and not self.answers.done():
                self.answers.set_result([said for said in self._said if said is not None])

    def fail(self, error: Exception) -> None:
        if not self.answers.done():
            self.answers.set_exception(error)


def _portions(ops: Iterable[Op]) -> Iterator[Sequence[Op]]:
    """As many at a time as one call carries."""
    portion: list[Op] = []
    room = MOST_OPERATIONS
    for op in ops:
        weight = _weight(op)
        if weight > room and portion:
            yield portion
            portion, room = [], MOST_OPERATIONS
        portion.append(op)
        room -= weight
    if portion:
        yield portion


def _without_memory(error: Unreachable) -> bool:
    # Its code, OOM, is not always the first word: scripts have codes of their own before it. The text is the same.
    return isinstance(error, ServerError) and "when used memory > 'maxmemory'" in str(error)


def _weight(op: Op) -> int:
    """Of an operation with a body, or a result or an error, which may be long."""
    text = op[3] if op[0] == "done" else op[-1]
    return 1 + len(text) // HEAVY if isinstance(text, str) else 1
