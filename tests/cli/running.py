"""`admission serve` as a process of its own, for tests that speak to it over the loopback interface."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import admission


class Server:
    """A running `admission serve`, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self.lines.append("(ended)")
            self._changed.notify_all()

    def wait_for(self, pattern: str, count: int = 1) -> list[re.Match[str]]:
        """Wait until so many lines match."""
        found: list[re.Match[str]] = []

        def enough() -> bool:
            found[:] = [match for line in self.lines if (match := re.search(pattern, line))]
            return len(found) >= count or self.lines[-1:] == ["(ended)"]

        with self._changed:
            self._changed.wait_for(enough, timeout=60)
        assert len(found) >= count, "".join(self.lines)
        return found

    @property
    def url(self) -> str:
        return self.wait_for(r"running on (http://127.0.0.1:\d+)")[0].group(1)

    def metrics_urls(self, count: int = 1) -> set[str]:
        return {match.group(1) for match in self.wait_for(r"metrics on (http://127.0.0.1:\d+/metrics)", count)}

    def close(self) -> None:
        self.process.stderr.close() if self.process.stderr else None


@contextmanager
def serving(
    folder: Path, code: str, *arguments: str, app: str = "served:app", variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server of *code* on a free port; it is ended by its id when the block ends."""
    (folder / "served.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("ADMISSION_")}
    environment |= {"PYTHONPATH": str(Path(admission.__file__).parents[1]), **(variables or {})}
    process = subprocess.Popen(
        [sys.executable, "-c", "from admission.cli import main; main()", "serve", app, "--port", "0", *arguments],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    server = Server(process)
    try:
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        server._reader.join(timeout=30)
        server.close()


def wait_until(condition: Callable[[], object], tries: int = 3000) -> None:
    """Ask until it is so; each try is a request of its own, so nothing is slept through."""
    for _ in range(tries):
        if condition():
            return
    raise AssertionError("it never became true")


def two_free_ports() -> int:
    """The first of two neighbouring ports that nobody listens on now."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
        return port
    raise AssertionError("no two neighbouring ports are free")
