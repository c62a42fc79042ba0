"""uvicorn (h11, httptools), hypercorn and granian, each as a process of its own on the loopback interface."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.redis.servers import free_port

pytestmark = [pytest.mark.servers, pytest.mark.slow]

HERE = Path(__file__).parent
PATIENCE = 20.0
"""Seconds after which something that must happen is taken not to happen. Nothing here is timed."""

# hypercorn without worker processes: otherwise the signal ends in its parent process, and no app ever hears of it.
SERVERS = {
    "uvicorn-h11": ["uvicorn", "held_app:app", "--http", "h11", "--port", "{port}"],
    "uvicorn-httptools": ["uvicorn", "held_app:app", "--http", "httptools", "--port", "{port}"],
    "hypercorn": [
        "hypercorn",
        "held_app:app",
        "--bind",
        "127.0.0.1:{port}",
        "--graceful-timeout",
        "30",
        "--workers",
        "0",
    ],
    "granian": ["granian", "held_app:app", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"],
}


class Server:
    """A running server process."""

    def __init__(self, name: str, held_until: Path) -> None:
        self.held_until = held_until
        self.port = free_port()
        module, *arguments = (part.format(port=self.port) for part in SERVERS[name])
        path = os.pathsep.join([str(HERE), str(HERE.parent.parent.parent)])
        environment = {**os.environ, "HOLD_UNTIL": str(held_until), "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=HERE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        self.process.kill()
        raise AssertionError(f"the server did not start:\n{self.process.communicate()[0].decode()}")

    def release(self) -> None:
        """Let `/hold` go on."""
        self.held_until.touch()

    def stop(self) -> str:
        """End it, by force if it must be; its output."""
        self.release()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.communicate(timeout=PATIENCE)[0].decode()
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.communicate()[0].decode()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Each server in turn."""
    running = Server(request.param, tmp_path / "go-on")
    yield running
    output = running.stop()
    assert "Traceback" not in output, output


class Connection:
    """One HTTP/1.1 request on a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def leave(self) -> None:
        """Close the socket without a word."""
        self._writer.close()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status, *fields = head.split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += await self._reader.readexactly(size)
                await self._reader.readexactly(2)
        else:
            body = await self._reader.readexactly(int(headers["content-length"]))
        self._writer.close()
        await self._writer.wait_closed()
        return int(status.split()[1]), headers, body


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Fails rather than hangs."""
    async with asyncio.timeout(PATIENCE):
        yield


async def call(server: Server, path: str, body: bytes | None = None, *, send: bool = True) -> Connection:
    """Begin a request; its answer is asked for later."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if body is not None:
        head += f"Content-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"\r\n" + (body or b"" if send else b""))
    await writer.drain()
    return Connection(reader, writer)


async def pool_of(server: Server) -> dict[str, object]:
    status, _, body = await (await call(server, "/-/admission/status")).answer()
    assert status == 200
    shown: dict[str, object] = json.loads(body)["pool"]
    return shown


async def until(server: Server, **wanted: object) -> None:
    """Wait until the pool looks as wanted."""
    seen: dict[str, object] = {}
    try:
        async with in_time():
            while any(seen.get(name) != value for name, value in wanted.items()):
                await asyncio.sleep(0.002)
                seen = await pool_of(server)
    except TimeoutError:
        shown = {name: seen.get(name) for name in wanted}
        raise AssertionError(f"the pool is {shown}, not {wanted}") from None


def test_a_client_that_leaves_the_line_frees_its_place(server: Server) -> None:
    """Seen through the status page, with and without a body."""

    async def main() -> None:
        running = await call(server, "/hold")
        await until(server, in_flight=1)
        for body in (None, b"x" * 1000, b"x" * 200_000):
            waiting = await call(server, "/hold", body)
            await until(server, queued=1)
            await asyncio.sleep(0.05)  # For the rest of the body: its end is what makes the leaving visible.
            left = time.perf_counter()
            waiting.leave()
            await until(server, queued=0)
            print(f"place free {1000 * (time.perf_counter() - left):.1f} ms after the client left")
        server.release()
        status, headers, _ = await running.answer()
        assert status == 200
        assert headers["x-queue-position"] == "0"

    asyncio.run(main())


def test_bodies_of_those_who_waited_arrive_whole(server: Server) -> None:
    """Small ones, large ones, and one beyond what the spool takes."""

    async def main() -> None:
        running = await call(server, "/hold")
        await until(server, in_flight=1)
        sizes = [0, 1, 65_536, 900_000, 3_000_000]
        calls: list[asyncio.Task[tuple[int, dict[str, str], bytes]]] = []
        for size in sizes:
            calls.append(asyncio.ensure_future(_whole(server, b"x" * size)))
        await until(server, queued=len(sizes))
        server.release()
        assert (await running.answer())[0] == 200
        async with in_time():
            answers = await asyncio.gather(*calls)
        assert [(status, int(body)) for status, _, body in answers] == [(200, size) for size in sizes]

    asyncio.run(main())


async def _whole(server: Server, body: bytes) -> tuple[int, dict[str, str], bytes]:
    return await (await call(server, "/echo", body)).answer()


def test_sigterm_answers_the_line_and_lets_running_work_finish(server: Server) -> None:
    """A hundred wait, one runs: a hundred clean 503, one 200, and the process ends."""

    async def main() -> None:
        running = await call(server, "/hold", b"12345")
        await until(server, in_flight=1)
        waiting = [await call(server, "/hold", b"x" * 10) for _ in range(100)]
        await until(server, queued=100)
        begun = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        async with in_time():
            answers = await asyncio.gather(*(connection.answer() for connection in waiting))
        print(f"the line was answered {1000 * (time.perf_counter() - begun):.1f} ms after SIGTERM")
        assert {status for status, _, _ in answers} == {503}
        assert {headers["x-admission-reason"] for _, headers, _ in answers} == {"evicted-draining"}
        server.release()
        async with in_time():
            assert (await running.answer())[::2] == (200, b"5")

    asyncio.run(main())
    assert server.process.wait(PATIENCE) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_refused_upload_still_gets_its_answer(server: Server) -> None:
    """The refusal comes while 1.8 MB are under way; the client, which only reads when it has sent all, sees the 429."""

    async def main() -> None:
        running = await call(server, "/hold")
        await until(server, in_flight=1)
        waiting = [await call(server, "/hold") for _ in range(200)]
        await until(server, queued=200)
        async with in_time():
            status, headers, _ = await _whole(server, b"x" * 1_800_000)
        assert status == 429
        assert headers["x-admission-reason"] == "rejected-queue-full"
        for connection in waiting:
            connection.leave()
        await until(server, queued=0)
        server.release()
        assert (await running.answer())[0] == 200

    asyncio.run(main())
