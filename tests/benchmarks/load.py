"""Load: `wrk` where it is installed, else a small generator of our own, in a process of its own like `wrk`.

The generator costs about as much for a request as the server does, so that throughput is half its own; the server's CPU
time for each request, the figure that counts, is the same.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from tests.benchmarks.measure import event_loops, run
from tests.benchmarks.traffic import CURL, KEYS, raw_request

ROOT = Path(__file__).parents[2]

_LUA = """
local requests, number = {{}}, 0
local keys = {{ {keys} }}

function init()
    for i, key in ipairs(keys) do
        local headers = {{ {headers} }}
        headers["Authorization"] = "Bearer " .. key
        requests[i] = wrk.format("GET", "/v1/chat/completions", headers)
    end
end

function request()
    number = number + 1
    return requests[number % #requests + 1]
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one burst of load found."""

    answers: int
    """Complete responses."""
    refused: int
    """Of these, with another status than 2xx or 3xx."""
    seconds: float

    @property
    def rate(self) -> float:
        """Useful responses per second."""
        return (self.answers - self.refused) / self.seconds


Generator = Callable[[int, int, float], Load]
"""Port, connections, seconds → what came back."""


@contextmanager
def generator() -> Iterator[tuple[str, Generator]]:
    """The load generator there is, and its name."""
    wrk = shutil.which("wrk")
    if wrk is None:
        yield "the built-in generator (wrk is not installed; apt-get install wrk gives throughput that counts)", _own
        return
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "requests.lua")
        keys = ", ".join(f'"{key}"' for key in KEYS)
        headers = ", ".join(f'["{name.decode()}"] = "{value.decode()}"' for name, value in CURL)
        script.write_text(_LUA.format(keys=keys, headers=headers))

        def run_wrk(port: int, connections: int, seconds: float) -> Load:
            return _wrk(wrk, script, port, connections, seconds)

        yield "wrk", run_wrk


def _wrk(wrk: str, script: Path, port: int, connections: int, seconds: float) -> Load:
    whole = max(1, round(seconds))  # It takes whole seconds.
    command = [wrk, "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "30s", "-s", str(script)]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", done.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if found is None or rate is None:
        raise RuntimeError(f"wrk said something else than expected: {done.stdout!r}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    answers = int(found[1])
    # The time it prints has two digits; that behind its rate is exact.
    return Load(answers, int(refused[1]) if refused else 0, answers / float(rate[1]) if answers else seconds)


def _own(port: int, connections: int, seconds: float) -> Load:
    command = [sys.executable, "-m", "tests.benchmarks.load", str(port), str(connections), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


class Connection(asyncio.Protocol):
    """Sends a request, reads the answer to its end, sends the next."""

    def __init__(self, requests: list[bytes], number: int) -> None:
        self._requests = requests
        self._number = number
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.answers = 0
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Look whether that was all of an answer."""
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if length is None:
            raise ValueError(f"an answer without content-length: {head!r}")
        if len(body) >= int(length[1]):
            self.answers += 1
            self.refused += head[9:10] not in b"23"
            self._buffer = b""
            self._ask()

    def close(self) -> None:
        """No more."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _ask(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._number += 1
            self._transport.write(self._requests[self._number % len(self._requests)])


def _same(connection: Connection) -> Connection:
    return connection


async def generate(port: int, connections: int, seconds: float) -> Load:
    """Keep *connections* busy for *seconds*."""
    loop = asyncio.get_running_loop()
    requests = [raw_request(number, CURL) for number in range(len(KEYS))]
    begun = time.monotonic()
    opened = [Connection(requests, number) for number in range(connections)]
    for connection in opened:
        await loop.create_connection(partial(_same, connection), "127.0.0.1", port)
    await asyncio.sleep(seconds)
    passed = time.monotonic() - begun
    for connection in opened:
        connection.close()
    return Load(sum(c.answers for c in opened), sum(c.refused for c in opened), passed)


def main() -> None:
    """`python -m tests.benchmarks.load PORT CONNECTIONS SECONDS`."""
    port, connections, seconds = sys.argv[1:]
    load = run(list(event_loops().values())[-1], generate(int(port), int(connections), float(seconds)))
    print(json.dumps({"answers": load.answers, "refused": load.refused, "seconds": load.seconds}))


if __name__ == "__main__":
    main()
