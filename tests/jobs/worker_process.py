"""A worker in a process of its own, for tests to kill, stop and let go on.

with WorkerProcess(url, namespace) as process:
    await until(lambda: process.began)      # What it runs, by the names that jobs were given.
    process.kill()                          # SIGKILL
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

from admission.backends.redis import RedisPool
from admission.jobs import JobQueue
from admission.jobs.run import current_job
from admission.jobs.worker import Worker

ROOT = Path(__file__).parents[2]

LEASE = 2.0


class WorkerProcess:
    """The test's end.

    Attributes:
        began: Names of the jobs it has begun, each with its delivery.
        status: Its numbers, as it told them last.
    """

    def __init__(self, url: str, namespace: str, *, use_uvloop: bool = False, **options: Any) -> None:
        self.began: list[tuple[str, int]] = []
        self.status: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.worker_process", json.dumps([url, namespace, use_uvloop, options])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def open_gate(self) -> None:
        """Let its jobs end."""
        self._say("open")

    def look(self) -> None:
        """Have `status` brought up to date."""
        self.status = {}
        self._say("look")

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

    def close(self) -> None:
        """It stops in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self.is_alive:
            self.go_on()
            self._process.stdin.close()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        else:
            self._process.stdin.close()
        self._reader.join(30)
        self._process.stdout.close()

    def _say(self, verb: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(verb + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news = json.loads(line)
            if "began" in news:
                self.began.append((news["began"], news["delivery"]))
            else:
                self.status = news


def queue_of(url: str, namespace: str, gate: asyncio.Event | None = None, **options: Any) -> JobQueue:
    """The queue both ends know. A client needs no gate."""
    jobs = JobQueue(RedisPool(url, namespace=namespace, lease=LEASE, timeout=0.6), **options)

    @jobs.task
    async def wait(name: str) -> str:
        begun(name)
        if gate is not None:
            await gate.wait()
        return f"{name} in {os.getpid()}"

    @jobs.task(on_failure="mourn")
    def die(name: str) -> None:
        begun(name)
        os.kill(os.getpid(), signal.SIGKILL)

    @jobs.task
    def mourn(ending: dict[str, Any]) -> None:
        begun(f"{ending['task']} {ending['outcome']}: {ending['error']}")

    return jobs


def begun(name: str) -> None:
    """Tell the test."""
    job = current_job()
    assert job is not None
    print(json.dumps({"began": name, "delivery": job.delivery}), flush=True)


async def serve(url: str, namespace: str, options: dict[str, Any]) -> None:
    """The other end: work until there are no more lines to read."""
    gate = asyncio.Event()
    jobs = queue_of(url, namespace, gate)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with Worker(jobs, **{"workers": 4, "threads": 2, "grace": 0.0, **options}) as worker:
        while line := await lines.readline():
            if line.strip() == b"open":
                gate.set()
            else:
                status = worker.status()
                print(
                    json.dumps({"succeeded": status.succeeded, "stale": status.stale, "taken": status.taken}),
                    flush=True,
                )


def main(url: str, namespace: str, use_uvloop: bool, options: dict[str, Any]) -> None:
    """Run the other end, on asyncio's own loop or uvloop's."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if use_uvloop else None) as runner:
        runner.run(serve(url, namespace, options))


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
