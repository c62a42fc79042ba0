"""HTTP load on every server, from clients on real sockets, in a thread of its own.

Clients send one request after another on one connection: tenants, classes and work are drawn, and a few leave before
they have an answer. A request that has none when its deadline is long past is hung; time during which its server was
stopped does not count.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from tests.chaos.server import MAX_WAIT

CLIENTS = 12
"""For each server."""

WORK = (20, 80)
"""Milliseconds one request works."""

LEAVES = 0.06
"""Share of requests whose client goes away, unless it is answered at once."""

PATIENCE = 2.5
"""Seconds past its deadline at which a request is hung: machines are busy."""

ANSWERS = ("200", "429", "503", "left", "died", "hung", "strange")
"""What becomes of a request. The last two are violations; "died" is with a server that was killed."""


@dataclass(eq=False)
class Target:
    """A server process, as clients see it."""

    number: int
    port: int
    doomed: bool = False
    """It is about to be killed, or was."""
    halts: list[tuple[float, float | None]] = field(default_factory=list)
    """From when until when it was stopped."""

    def halt(self) -> None:
        """It is being stopped."""
        self.halts.append((time.monotonic(), None))

    def go_on(self) -> None:
        """It goes on."""
        self.halts[-1] = (self.halts[-1][0], time.monotonic())

    def halted(self, since: float) -> float:
        """Seconds it was stopped since then."""
        now = time.monotonic()
        return sum(max(0.0, (now if end is None else end) - max(begin, since)) for begin, end in self.halts)


@dataclass(eq=False)
class Asked:
    """A request that has no answer yet."""

    target: Target
    since: float
    allowed: float
    writer: asyncio.StreamWriter
    hung: bool = False

    @property
    def overdue(self) -> bool:
        """Whether it should have been answered long ago."""
        spent = time.monotonic() - self.since
        return spent > self.allowed and spent - self.target.halted(self.since) > self.allowed


class Load:
    """The clients.

    Args:
        targets: The server of each place; None while there is none. Replaced from outside.
        timeout: Seconds a call to the pool may take, which comes on top of the deadline.
    """

    def __init__(self, targets: list[Target | None], seed: int, timeout: float) -> None:
        self.targets = targets
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        """What a client was told, or was not told, in sentences."""
        self._seed = seed
        self._timeout = timeout
        self._asked: set[Asked] = set()
        self._ending = False
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more, and return once what was sent is answered or hung."""
        self._ending = True
        self._thread.join(MAX_WAIT + PATIENCE + 60)
        if self._thread.is_alive():
            raise TimeoutError("the clients did not end")

    def hold(self, place: int, count: int, seconds: float) -> None:
        """Have *count* requests of the highest class work that long on the server of that place."""

        def begin() -> None:
            for number in range(count):
                self._spawn(self._one(place, Random(number), round(seconds * 1000)))

        self._loop.call_soon_threadsafe(begin)

    @property
    def total(self) -> int:
        """Requests that have ended."""
        return sum(self.answers.values())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._all())
        self._loop.close()

    async def _all(self) -> None:
        for place in range(len(self.targets)):
            for number in range(CLIENTS):
                self._spawn(self._client(place, Random(f"{self._seed}:{place}:{number}")))
        watch = asyncio.ensure_future(self._watch())
        while self._tasks:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        watch.cancel()
        await asyncio.wait([watch])

    def _spawn(self, client: object) -> None:
        task = self._loop.create_task(client)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.wrong.append(f"a client failed: {task.exception()!r}")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            for asked in self._asked:
                if asked.overdue and not asked.hung:
                    asked.hung = True
                    asked.writer.transport.abort()

    async def _client(self, place: int, dice: Random) -> None:
        while not self._ending:
            target = self.targets[place]
            if target is None or target.doomed:
                await asyncio.sleep(0.02)
                continue
            await self._visit(target, dice)

    async def _one(self, place: int, dice: Random, work: int) -> None:
        """One long request, tried until it is let in."""
        while not self._ending:
            target = self.targets[place]
            if target is None or target.doomed:
                return
            connection = await self._connect(target)
            if connection is None:
                return
            answer = await self._ask(target, connection, "holder", "critical", work, None)
            connection[1].close()
            if answer not in ("429", "503"):
                return
            await asyncio.sleep(0.05)

    async def _connect(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            return await asyncio.open_connection("127.0.0.1", target.port)
        except OSError as error:
            if not target.doomed:
                await asyncio.sleep(0.1)  # It may be dying this instant.
            if not target.doomed:
                self._count("strange", f"server {target.number} takes no connection: {error}")
            return None

    async def _visit(self, target: Target, dice: Random) -> None:
        """Requests on one connection, until it ends."""
        connection = await self._connect(target)
        if connection is None:
            return
        answer = ""
        while not self._ending and answer in ("", "200", "429", "503"):
            tenant = f"tenant{int(dice.random() ** 2 * 12)}"
            priority = dice.choices(("critical", "normal", "low"), (1, 3, 2))[0]
            leaves = dice.uniform(0.0, 0.3) if dice.random() < LEAVES else None
            answer = await self._ask(target, connection, tenant, priority, dice.randint(*WORK), leaves)
            await asyncio.sleep(dice.uniform(0.0, 0.02) if answer == "200" else dice.uniform(0.05, 0.2))
        connection[1].transport.abort()

    async def _ask(
        self,
        target: Target,
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        tenant: str,
        priority: str,
        work: int,
        leaves: float | None,
    ) -> str:
        """What became of one request."""
        reader, writer = connection
        allowed = MAX_WAIT + work / 1000 + 2 * self._timeout + PATIENCE
        asked = Asked(target, time.monotonic(), allowed, writer)
        self._asked.add(asked)
        headers = f"Host: chaos\r\nX-Tenant-Id: {tenant}\r\nX-Priority: {priority}\r\n"
        writer.write(f"GET /work?{work} HTTP/1.1\r\n{headers}\r\n".encode())
        detail = ""
        try:
            async with asyncio.timeout(leaves):
                answer, detail = await _read(reader)
        except TimeoutError:
            answer = "left"
        except (OSError, asyncio.IncompleteReadError) as error:
            if not (asked.hung or target.doomed):
                await asyncio.sleep(0.1)
            answer = "hung" if asked.hung else "died" if target.doomed else "strange"
            detail = f"{error!r} from server {target.number} after {time.monotonic() - asked.since:.1f} s"
        finally:
            self._asked.discard(asked)
        if answer not in ANSWERS:
            answer, detail = "strange", f"{answer} {detail}"
        elif asked.overdue and not target.doomed:
            answer, detail = (
                "hung",
                f"{answer} from server {target.number} after {time.monotonic() - asked.since:.1f} s",
            )
        self._count(answer, detail)
        return answer

    def _count(self, answer: str, detail: str) -> None:
        self.answers[answer] += 1
        if answer in ("hung", "strange"):
            self.wrong.append(f"a request was {answer}: {detail}"[:300])


async def _read(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Status and body of one answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next((line for line in head.split("\r\n") if line.startswith("content-length:")), ":0")
    body = await reader.readexactly(int(length.partition(":")[2]))
    status = head.split(" ", 2)[1]
    if status in ("429", "503") and "\r\nretry-after:" not in head:
        return "strange", f"a {status} without Retry-After: {body[:100]!r}"
    return status, body.decode(errors="replace")
