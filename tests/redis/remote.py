"""A real process with a share in a pool, told what to do by a test line by line.

with Remote(url, namespace, max_concurrency=2) as remote:
    remote.comes("first", tenant="acme")
    await until(lambda: remote.became.get("first") == "granted")
    remote.pause()                      # SIGSTOP: it hangs, as with its whole machine
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import uvloop

from admission import AdmissionController, AdmissionError, Permit, PriorityClass
from admission.backends.redis import RedisPool
from admission.errors import Refusal

ROOT = Path(__file__).parents[2]


class Remote:
    """The test's end. It may be used from any loop or thread.

    Attributes:
        became: What became of each name: "granted", or the reason of its refusal.
        order: Names in the order in which they were granted.
        seen: How the pool stands, as it was told last: in_flight, queued, limit, over_limit, resyncs, state.
    """

    def __init__(self, url: str, namespace: str, **options: Any) -> None:
        self.became: dict[str, str] = {}
        self.order: list[str] = []
        self.seen: dict[str, Any] = {}
        self.closed = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.redis.remote", json.dumps([url, namespace, options])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def comes(self, name: str, **wishes: Any) -> None:
        """Somebody acquires there."""
        self._say("acquire", name=name, wishes=wishes)

    def release(self, name: str, actual_cost: float | None = None) -> None:
        """Somebody gives the slots back."""
        self.became.pop(name)
        self._say("release", name=name, actual_cost=actual_cost)

    def cancel(self, name: str) -> None:
        """Somebody goes, waiting or not."""
        self._say("cancel", name=name)

    def look(self) -> None:
        """Have `seen` brought up to date."""
        self.seen = {}
        self._say("look")

    def close(self) -> None:
        """It leaves the pool in order."""
        self._say("close")

    def pause(self) -> None:
        """It stops in its tracks."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """It goes on after `pause`."""
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """It is gone without a word."""
        self._process.kill()
        self._process.wait(30)

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self.go_on()
            self._process.stdin.close()  # It closes its pool and ends.
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        else:
            self._process.stdin.close()
        self._reader.join(30)
        self._process.stdout.close()

    def _say(self, verb: str, **words: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": verb, **words}) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news = json.loads(line)
            if "name" in news:
                if news["became"] == "granted":
                    self.order.append(news["name"])
                self.became[news["name"]] = news["became"]
            elif "closed" in news:
                self.closed = True
            else:
                self.seen = news


class _Process:
    """The other end."""

    def __init__(self, url: str, namespace: str, options: dict[str, Any]) -> None:
        site = {name: options.pop(name) for name in ("lease", "timeout", "on_outage") if name in options}
        options = {"max_concurrency": 1, "max_queue_size": 0, "max_wait": None, **options}
        if "classes" in options:
            options["classes"] = [PriorityClass(**rules) for rules in options["classes"]]
        self.controller = AdmissionController(backend=RedisPool(url, namespace=namespace, **site), **options)
        self.permits: dict[str, Permit] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Do what the lines say, until there are no more."""
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            words = json.loads(line)
            await getattr(self, words.pop("do"))(**words)
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        for permit in self.permits.values():
            permit.release()
        await self.controller.aclose()

    async def acquire(self, name: str, wishes: dict[str, Any]) -> None:
        self.tasks[name] = asyncio.create_task(self._acquire(name, wishes))

    async def _acquire(self, name: str, wishes: dict[str, Any]) -> None:
        try:
            self.permits[name] = await self.controller.acquire(**wishes)
        except Refusal as refusal:
            say(name=name, became=refusal.reason.value)
        except AdmissionError as error:
            say(name=name, became=repr(error))
        else:
            say(name=name, became="granted")

    async def release(self, name: str, actual_cost: float | None) -> None:
        self.permits.pop(name).release(actual_cost=actual_cost)

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()

    async def look(self) -> None:
        await self.controller.refresh()
        snapshot = self.controller.snapshot()
        link = snapshot.link
        assert link is not None
        say(
            in_flight=snapshot.in_flight,
            queued=snapshot.queued,
            limit=snapshot.limit,
            processes=len(snapshot.processes),
            over_limit=link.over_limit,
            resyncs=link.resyncs,
            state=link.state,
        )

    async def close(self) -> None:
        await self.controller.aclose()
        say(closed=True)


def say(**words: Any) -> None:
    """Tell the test."""
    print(json.dumps(words), flush=True)


def main(url: str, namespace: str, options: dict[str, Any]) -> None:
    """Run the other end, on asyncio's own loop or uvloop's."""
    factory = uvloop.new_event_loop if options.pop("use_uvloop", False) else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_Process(url, namespace, options).run())


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
