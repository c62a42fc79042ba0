"""Keeps one private Valkey running for as long as any process uses it: itself a process, on the standard library alone.

    python keeper.py DIRECTORY PROGRAM

It returns once the server answers and leaves a keeper behind in the background. Who is alive is told by three locks in
the directory, which the kernel lifts when their holder ends, however it ends:

- `users.lock` is shared by everyone who uses the server. A keeper that gets it alone knows that nobody is left: it
  stops the server, and holds the lock meanwhile, so that a newcomer waits for the end and then starts afresh.
- `keeper.lock` is held by the keeper: there is one at most.
- `server.lock` is inherited by the server. While it is taken, no second server may open the same data.

A keeper that finds a server running (its own keeper was killed) adopts it. A server that dies while it is used is
started again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

USERS, KEEPER, SERVER = "users.lock", "keeper.lock", "server.lock"
SOCKET, LOG = "valkey.sock", "valkey.log"

PATIENCE = 30.0
"""Seconds the server has to begin to answer, and to end."""

_PERIOD = 0.5
"""Seconds between two looks at who is left."""


def lock(path: Path, *, shared: bool = False) -> int | None:
    """The descriptor that holds the lock on *path*, or None if others do. Close it to give the lock back."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def answers(path: Path) -> bool:
    """Whether a server behind the socket at *path* says that it is ready."""
    return _ask(path, b"PING\r\n").startswith(b"+PONG")


def wait_for(happened: Callable[[], bool]) -> bool:
    """Whether it has happened within `PATIENCE`."""
    give_up = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def _ask(path: Path, command: bytes) -> bytes:
    """The beginning of the answer; nothing where there is none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(command)
            return connection.recv(64)
        except OSError:
            return b""


class NotReady(Exception):
    """The server does not answer; the message says why, as far as it is known."""


class _Server:
    """The server of *directory*: started here, or found running."""

    def __init__(self, directory: Path, program: str) -> None:
        self._directory = directory
        self._program = program
        self._child: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Return once it answers, starting it where none runs.

        Raises:
            NotReady: It ended, or does not answer in time.
        """
        held = lock(self._directory / SERVER)
        if held is not None:
            try:
                self._start(held)
            finally:
                os.close(held)  # From here on it is the server's alone.
        if not wait_for(lambda: answers(self._directory / SOCKET) or self._ended()):
            raise NotReady(f"it does not answer within {PATIENCE:g} s")
        if self._ended():
            raise NotReady("it ended at once")

    def lives(self) -> bool:
        """Whether its process is there, be it busy."""
        self._ended()  # So that a child that ended is no zombie: its lock would be free, its process not.
        held = lock(self._directory / SERVER)
        if held is None:
            return True
        os.close(held)
        return False

    def stop(self) -> None:
        """End it politely: what it was told is on disk afterwards."""
        if self._child is None:
            _ask(self._directory / SOCKET, b"SHUTDOWN\r\n")
            wait_for(lambda: not self.lives())
            return
        self._child.terminate()
        try:
            self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _ended(self) -> bool:
        return self._child is not None and self._child.poll() is not None

    def _start(self, held: int) -> None:
        directory = str(self._directory)
        settings = {
            "port": "0",  # Nobody reaches it over a network.
            "unixsocket": str(self._directory / SOCKET),
            "unixsocketperm": "700",
            "dir": directory,
            "logfile": str(self._directory / LOG),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        self._child = subprocess.Popen(
            [self._program, *words],
            cwd=directory,
            pass_fds=[held],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _note(held, self._child.pid)


def _note(descriptor: int, pid: int) -> None:
    """Write who holds a lock into its file, for people who look."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def keep(directory: Path, program: str, ready: Callable[[], None]) -> None:
    """Keep the server running until nobody uses it any more, then stop it. Say *ready* once it answers.

    Raises:
        NotReady: It did not start.
    """
    held = _take_over(directory)
    if held is None:
        ready()
        return
    _note(held, os.getpid())
    server = _Server(directory, program)
    server.ensure()
    ready()
    try:
        while (alone := lock(directory / USERS)) is None:
            time.sleep(_PERIOD)
            if not server.lives():
                _start_again(server)
    except FileNotFoundError:
        alone = None  # The directory was deleted, so nobody finds the server any more.
    server.stop()
    os.close(held)  # Before the newcomers are let in: one of them brings the next keeper.
    if alone is not None:
        os.close(alone)


def _take_over(directory: Path) -> int | None:
    """The lock of the directory's keeper; None when another keeper has it and its server answers."""
    held: list[int] = []

    def settled() -> bool:
        descriptor = lock(directory / KEEPER)
        if descriptor is not None:
            held.append(descriptor)
        return descriptor is not None or answers(directory / SOCKET)

    if not wait_for(settled):
        raise NotReady(f"it does not answer within {PATIENCE:g} s")
    return held[0] if held else None


def _start_again(server: _Server) -> None:
    try:
        server.ensure()
    except NotReady:  # Its own log says why; the next look tries again, for as long as anybody waits for it.
        time.sleep(_PERIOD)


def _live_in_the_background(directory: Path) -> None:
    """Hold on to nothing of whoever started this, and end with the users alone, not with their terminal or service."""
    os.chdir(directory)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _carry_on)


def _carry_on(number: int, frame: FrameType | None) -> None:
    """A handler, where ignoring the signal would be inherited by the server."""


def main(directory: Path, program: str) -> int:
    """Leave a keeper behind in the background; 0 once the server answers, else 1 after saying why not."""
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        with os.fdopen(told) as words:
            word = words.read()
        if word != _READY:
            print(word or "its keeper ended", file=sys.stderr)
        return int(word != _READY)
    os.close(told)

    def say(word: str) -> None:
        os.write(tell, word.encode())
        os.close(tell)

    try:
        _live_in_the_background(directory)
        keep(directory, program, ready=lambda: say(_READY))
    except (NotReady, OSError) as error:
        say(str(error))
        return 1
    return 0


_READY = "ready"

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
