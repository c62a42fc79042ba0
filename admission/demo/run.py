"""One run of the demo from the first line printed to the exit code."""

from __future__ import annotations

import asyncio
import importlib
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Protocol

import httpx2
import uvicorn
from rich.console import Console
from rich.live import Live

from admission.demo.report import disagreements, table
from admission.demo.traffic import PATIENCE, SHARES, Arrival, DemoError, Traffic, plan
from admission.types import Snapshot, within

LEAST_CAPACITY = 0.5
"""Requests per second the traffic is made for at least: a machine in trouble shall still see some."""


class Model(Protocol):
    """What the demo reads from the example's model."""

    name: str
    tokens: int
    """Completion tokens made so far."""


class Pool(Protocol):
    """What the demo reads from the example's controller."""

    def snapshot(self) -> Snapshot: ...


class _Server(uvicorn.Server):
    """uvicorn, except that a signal ends the server and not the process: there is a summary left to print.

    Args:
        on_drain: Called once, on the event loop, when a signal asks the server to end.
    """

    def __init__(self, config: uvicorn.Config, *, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._on_drain = on_drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._loop.call_soon_threadsafe(self._on_drain)
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


class Demo:
    """One run of the demo: a server, its traffic, and what is printed about them.

    Attributes:
        url: Where the server listens.
        problems: What went wrong, in sentences; to be read after `run`.
        interrupted: Whether a signal ended the run before everything asked for was done.
    """

    def __init__(self, *, host: str, port: int, once: bool, load: bool, seconds: float, out: Console) -> None:
        folder = examples_folder()
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))  # The server imports its model from beside it.
        self._example = importlib.import_module("chat_server")
        self._prompts = [
            line
            for line in (folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
            if line and not line.startswith("#")
        ]
        self._once, self._load, self._seconds, self._out = once, load, seconds, out
        self._socket = _listen(host, port)
        self.url = "http://{}:{}".format(*self._socket.getsockname()[:2])
        self.problems: list[str] = []
        self.interrupted = False

    async def run(self) -> None:
        """Serve, send the traffic, and stay up until a signal comes (with `once`: end)."""
        with self._socket:
            await self._run()

    async def _run(self) -> None:
        self._out.print("Loading the model …")
        try:
            model: Model = await asyncio.to_thread(self._example.SmolLM2)
        except RuntimeError as missing:
            raise DemoError(str(missing)) from missing
        app = self._example.create_app(model)
        server = _Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30),
            on_drain=lambda: self._out.print("Draining: what runs is finished, what waits is sent away."),
        )
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        try:
            while not server.started:
                if serving.done():
                    raise DemoError("the server did not start")
                await asyncio.sleep(0.01)
            self._out.print(f"Serving {model.name} on {self.url}\n")
            if self._load:
                await self._send_traffic(server, app.state.controller, model)
                self.interrupted = server.should_exit
            if not self._once and not server.should_exit:
                self._out.print(curl_lines(self.url), markup=False, highlight=False, soft_wrap=True)
                await serving
        finally:
            server.should_exit = True
            await serving

    async def _send_traffic(self, server: _Server, pool: Pool, model: Model) -> None:
        keys: dict[str, list[str]] = {tier: [] for tier in SHARES}
        for key, (_, tier) in self._example.KEYS.items():
            keys[tier].append(key)
        async with httpx2.AsyncClient(
            base_url=self.url, timeout=PATIENCE, limits=httpx2.Limits(max_connections=None)
        ) as client:
            traffic = Traffic(client)
            capacity = await traffic.measure(
                key=keys["enterprise"][0], prompt=self._prompts[0], slots=pool.snapshot().limit
            )
            await _idle(pool)
            before, tokens_before = pool.snapshot(), model.tokens
            arrivals = plan(
                capacity=max(capacity, LEAST_CAPACITY),
                seconds=self._seconds,
                prompts=self._prompts,
                keys=keys,
                rng=random.Random(135),
            )
            self._out.print(
                f"It serves about {capacity:.1f} requests/s. "
                f"Sending {len(arrivals)} in {self._seconds:.0f} s:\n"
                "a calm, a rush of twice what it can serve, a calm.\n"
            )
            await self._watch(server, pool, traffic, arrivals)
        await _idle(pool)
        after, took = pool.snapshot(), time.monotonic() - traffic.started
        self._out.print(table(after, traffic.tallies, elapsed=took, whole=True), "")
        self.problems += disagreements(before, after, traffic.tallies)
        counted = sum(tally.tokens for tally in traffic.tallies.values())
        if model.tokens - tokens_before != counted:
            self.problems.append(
                f"the model made {model.tokens - tokens_before} tokens, the clients were told of {counted}"
            )
        served = sum(tally.served for tally in traffic.tallies.values())
        sent = sum(tally.sent for tally in traffic.tallies.values())
        self._out.print(f"{served} of {sent} requests served, {counted} tokens in {took:.1f} s.")
        if not self.problems:
            self._out.print("Server and clients counted the same.\n")

    async def _watch(self, server: _Server, pool: Pool, traffic: Traffic, arrivals: list[Arrival]) -> None:
        """Send the traffic and show the table while it runs."""
        stopping = asyncio.Event()
        sending = asyncio.create_task(traffic.send_all(arrivals, stopping))
        live = Live(console=self._out, auto_refresh=False, transient=True) if self._out.is_terminal else None
        every = 0.25 if live else 10.0
        shown = time.monotonic()
        with live or nullcontext():
            while not sending.done():
                await asyncio.wait({sending}, timeout=0.25)
                if server.should_exit:
                    stopping.set()
                if time.monotonic() - shown < every:
                    continue
                shown = time.monotonic()
                picture = table(pool.snapshot(), traffic.tallies, elapsed=shown - traffic.started)
                if live:
                    live.update(picture, refresh=True)
                else:
                    self._out.print(picture, "")
        await sending


def run_demo(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    once: bool = False,
    load: bool = True,
    seconds: float = 60.0,
    out: Console | None = None,
) -> int:
    """Run the demo and return its exit code.

    0: all went well. 1: the demo could not run, nothing was served, or server and clients counted
    differently. 130: interrupted before the traffic was through.

    Args:
        host: Address to serve on.
        port: Port to serve on; 0 takes a free one.
        once: End after the traffic.
        load: Send traffic; without it the demo only serves.
        seconds: Length of the traffic, at least 1.
        out: Where to print. None: standard output.

    Raises:
        ValueError: An option is outside its range.
    """
    within("seconds", seconds, 1)
    within("port", port, 0, 65535)
    try:
        if once and not load:
            raise DemoError("--once ends it after the traffic and --no-load sends none: choose one of them")
        demo = Demo(host=host, port=port, once=once, load=load, seconds=seconds, out=out or Console())
        asyncio.run(demo.run())
    except DemoError as error:
        print(f"admission demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # Before the server was up, and so before there was anything to drain.
        return 130
    for problem in demo.problems:
        print(f"admission demo: {problem}", file=sys.stderr)
    if demo.problems:
        return 1
    return 130 if demo.interrupted else 0


def examples_folder() -> Path:
    """The folder with `chat_server.py`: inside the installed package, or beside it in a checkout.

    Raises:
        DemoError: Neither is there.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "_examples", package.parent / "examples"):
        if (folder / "chat_server.py").is_file():
            return folder
    raise DemoError(f"examples/chat_server.py is missing: {package} is neither a whole checkout nor a whole wheel")


def curl_lines(url: str) -> str:
    """Commands to try by hand against the server at *url*."""
    return f"""\
Ctrl-C drains and ends. Meanwhile, try:

  curl {url}/v1/chat/completions \\
    -H 'Authorization: Bearer sk-demo-acme' \\
    -d '{{"messages": [{{"role": "user", "content": "Name three rivers."}}],
         "max_tokens": 32}}'

  curl -iN {url}/v1/chat/completions \\
    -H 'Authorization: Bearer sk-demo-ann' \\
    -d '{{"messages": [{{"role": "user", "content": "Tell me a story."}}],
         "max_tokens": 200, "stream": true}}'

  curl {url}/metrics
"""


async def _idle(pool: Pool) -> None:
    """Return once no slot is held: a permit comes back just after the client has read the last byte."""
    for _ in range(500):
        if not pool.snapshot().in_flight:
            return
        await asyncio.sleep(0.01)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise DemoError(f"cannot listen on {host} port {port}: {error.strerror}. Try another --port") from error
