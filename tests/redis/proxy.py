"""A misbehaving network between a client and a Redis server, on a thread of its own.

It understands RESP well enough to know which reply answers which command, so a test can say *lose every third answer
to EVALSHA* and get exactly that, however the bytes were packed. What goes wrong is decided by counters, never by dice.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"
_PATIENCE = 10.0
"""Seconds within which the proxy's own thread must have done what it was told."""

_QUEUED = 64
"""Chunks a held or delayed direction takes in before it stops reading: then the sender's buffers fill, as in life."""


class Frames:
    """Cuts a stream of RESP (2 or 3) into its outermost values, however the bytes come in."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._seen = 0
        """Bytes of the value under way that were understood already."""
        self._missing = 1
        """Inner values it still needs; 1 at the start stands for the value itself."""

    def feed(self, data: bytes) -> list[bytes]:
        """The values that *data* completes."""
        self._bytes += data
        complete = []
        while self._step():
            if self._missing == 0:
                complete.append(bytes(self._bytes[: self._seen]))
                del self._bytes[: self._seen]
                self._seen, self._missing = 0, 1
        return complete

    def _step(self) -> bool:
        """Take in one header, and the text it announces; False when bytes are missing for that."""
        end = self._bytes.find(b"\r\n", self._seen)
        if end < 0:
            return False
        kind = chr(self._bytes[self._seen])
        after = end + 2
        inner = 0
        if kind in "$=!*~>%|":
            size = max(int(self._bytes[self._seen + 1 : end]), -1)
            if kind in "$=!":
                after += size + 2 if size >= 0 else 0
                if after > len(self._bytes):
                    return False
            elif kind in "%|":
                inner = 2 * size + (kind == "|")  # Attributes stand before the value they describe.
            else:
                inner = max(size, 0)
        self._seen = after
        self._missing += inner - 1
        return True


def command_of(frame: bytes) -> str:
    """The name of the command that *frame* sends, in capitals."""
    words = frame.split(b"\r\n")
    name = words[2] if frame.startswith(b"*") and len(words) > 2 else frame.split()[0] if frame.split() else b""
    return name.decode(errors="replace").upper()


class Losses:
    """Which replies get lost: every *n*-th one to *commands*, counted over all connections."""

    def __init__(self, every: int, commands: frozenset[str], silently: bool) -> None:
        self.commands = commands
        self.silently = silently
        self._every = every
        self._counted = 0

    def hits(self, command: str) -> bool:
        """Whether the reply to *command* that is due now is one of them."""
        if self.commands and command not in self.commands:
            return False
        self._counted += 1
        return self._counted % self._every == 0


class Proxy:
    """Listens on a port of its own and passes everything on to a server, until told otherwise.

    Attributes:
        port: Where clients connect, on 127.0.0.1.
        commands: How often each command passed, by name.
        accepted: Connections taken in so far.
        lost: Replies lost so far, though their commands were carried out.
    """

    def __init__(self, server_port: int, *, server_host: str = HOST) -> None:
        self.port = 0
        self.commands: Counter[str] = Counter()
        self.accepted = 0
        self.lost = 0
        self.losses: Losses | None = None
        self.latency = 0.0
        self._server = (server_host, server_port)
        self._pairs: set[_Pair] = set()
        self._welcoming = True
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """What to give a client instead of the server's own URL."""
        return f"redis://{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """Connections open now."""
        return self._do(lambda: len(self._pairs))

    @property
    def subscribed(self) -> int:
        """Those of them that have subscribed to something."""
        return self._do(lambda: sum(pair.subscribed for pair in self._pairs))

    def lose_every(self, n: int, *commands: str, silently: bool = False) -> None:
        """From now on lose each *n*-th reply to *commands* (none named: to any): carried out, but never heard of.

        Args:
            silently: The connection stays open and mute, so that only a deadline ends the wait; otherwise it is cut.
        """
        wanted = frozenset(name.upper() for name in commands)
        self._do(lambda: setattr(self, "losses", Losses(n, wanted, silently)))

    def lose_none(self) -> None:
        """End what `lose_every` began. Connections that went mute stay so."""
        self._do(lambda: setattr(self, "losses", None))

    def cut(self, *, only_subscribed: bool = False) -> int:
        """Break the connections there are, or only those that have subscribed; returns how many those were."""

        def break_them() -> int:
            chosen = [pair for pair in self._pairs if pair.subscribed or not only_subscribed]
            for pair in chosen:
                pair.abort()
            self._pairs.difference_update(chosen)
            return len(chosen)

        return self._do(break_them)

    def refuse(self) -> None:
        """From now on break every new connection at once."""
        self._do(lambda: setattr(self, "_welcoming", False))

    def welcome(self) -> None:
        """Take new connections in again."""
        self._do(lambda: setattr(self, "_welcoming", True))

    def hold(self) -> None:
        """Stop all traffic; connections stay open, and new ones are accepted and held too."""
        self._do(self._flowing.clear)

    def let_go(self) -> None:
        """End what `hold` began: what was held is delivered now, in order."""
        self._do(self._flowing.set)

    def lead_to(self, server_port: int) -> None:
        """Pass new connections on to that server; those there are stay where they are."""
        self._do(lambda: setattr(self, "_server", (self._server[0], server_port)))

    def delay(self, seconds: float) -> None:
        """Deliver every reply and message that much later; 0 ends it."""
        self._do(lambda: setattr(self, "latency", seconds))

    def start(self) -> Proxy:
        """Listen; returns itself."""
        self._thread.start()
        if not self._ready.wait(_PATIENCE):
            raise TimeoutError("the proxy did not start to listen")
        return self

    def close(self) -> None:
        """Break every connection and stop listening."""
        self._do(self._over.set)
        self._thread.join(_PATIENCE)

    def __enter__(self) -> Proxy:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, work: Callable[[], T]) -> T:
        """Run *work* on the proxy's thread and return what it does: afterwards it is in force."""

        async def there() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(_PATIENCE)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        listener = await asyncio.start_server(self._connected, HOST, 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        listener.close()
        for _ in range(3):  # Who was accepted in this very turn of the loop gets to `_connected`, and away from there.
            await asyncio.sleep(0)
        for pair in self._pairs:
            pair.abort()
        pumps = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._over.is_set() or not self._welcoming:
            writer.transport.abort()
            return
        try:
            server = await asyncio.open_connection(*self._server)
        except OSError:  # The server is down: its clients find out as they would without a proxy.
            writer.transport.abort()
            return
        pair = _Pair(self, (reader, writer), server)
        if self._over.is_set():
            pair.abort()
            return
        self._pairs.add(pair)
        try:
            await pair.pump()
        finally:
            self._pairs.discard(pair)

    async def flow(self) -> None:
        """Return when traffic may pass."""
        await self._flowing.wait()


class _Pair:
    """One client's connection and the one made to the server for it."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.subscribed = False
        self._proxy = proxy
        self._client_reader, self._client = client
        self._server_reader, self._server = server
        self._unanswered: deque[str] = deque()
        self._mute = False
        self._resp3 = False
        self._tasks: list[asyncio.Task[None]] = []

    async def pump(self) -> None:
        """Pass bytes both ways until one side ends."""
        ways: list[Coroutine[Any, Any, None]] = [
            self._pass(self._client_reader, self._server, self._asked, delayed=False),
            self._pass(self._server_reader, self._client, self._answered, delayed=True),
        ]
        self._tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def abort(self) -> None:
        """Break both connections at once; what was not delivered never is."""
        for writer in (self._client, self._server):
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        inspect: Callable[[bytes], bytes | None],
        *,
        delayed: bool,
    ) -> None:
        chunks: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_QUEUED)
        delivery = asyncio.ensure_future(self._deliver(chunks, writer))
        frames = Frames()
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(65_536):
                kept = [inspect(frame) for frame in frames.feed(data)]
                passed = b"".join(frame for frame in kept if frame is not None)
                due = loop.time() + (self._proxy.latency if delayed else 0.0)
                if passed:
                    await chunks.put((due, passed))
                if None in kept:  # A reply is lost, and its connection with it.
                    break
            await chunks.put((loop.time(), None))
            await delivery
        except OSError:  # Broken from outside: the same end as a clean one.
            return
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)

    async def _deliver(self, chunks: asyncio.Queue[tuple[float, bytes | None]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await chunks.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await self._proxy.flow()
            if data is None:
                return
            writer.write(data)
            await writer.drain()

    def _asked(self, frame: bytes) -> bytes:
        name = command_of(frame)
        self._proxy.commands[name] += 1
        self._resp3 = self._resp3 or (name == "HELLO" and b"\r\n3\r\n" in frame)
        if name.endswith("SUBSCRIBE"):
            self.subscribed = self.subscribed or not name.endswith("UNSUBSCRIBE")
        else:
            self._unanswered.append(name)
        return frame

    def _answered(self, frame: bytes) -> bytes | None:
        """What of *frame* goes on; None: nothing, and the connection ends here."""
        if self._mute:
            return b""  # What came after a lost reply must not pass for it.
        # A message, or the word that one is subscribed, is no reply to a command. RESP 3 marks those, and in RESP 2
        # a connection that has subscribed asks for nothing else.
        if frame.startswith(b">") or (self.subscribed and not self._resp3):
            return frame
        name = self._unanswered.popleft() if self._unanswered else ""
        losses = self._proxy.losses
        if losses is None or not losses.hits(name):
            return frame
        self._proxy.lost += 1
        self._mute = True
        return b"" if losses.silently else None
