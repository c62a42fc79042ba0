"""The servers: one Redis or Valkey, and so many server processes, each behind a proxy of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.broken import VARIABLE
from tests.chaos.journal import Journal, Kind
from tests.chaos.load import Target
from tests.redis.proxy import Proxy
from tests.redis.servers import STARTERS, Server

ROOT = Path(__file__).parents[2]

STARTS_WITHIN = 60.0
"""Seconds a server process has to say its port, and to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is put to the test.

    Args:
        kind: Of server: "valkey" or "redis".
        broken: Name of a deliberately broken build; empty: the real one.
    """

    processes: int = 4
    limit: int = 8
    lease: float = 2.0
    timeout: float = 0.4
    on_outage: str = "degrade"
    kind: str = "valkey"
    broken: str = ""

    @property
    def share(self) -> int:
        """Slots one process may use in all while it goes alone."""
        shares = {"degrade": max(1, self.limit // self.processes), "open": 1 << 30, "closed": 0}
        return shares[self.on_outage]


@dataclass(eq=False)
class Member:
    """One server process."""

    place: int
    target: Target
    process: subprocess.Popen[bytes]
    proxy: Proxy
    log: Path
    lost_since: int | None = None
    """Nanoseconds from when the pool may take its permits for free: it is stopped or cut off past its lease."""

    @property
    def number(self) -> int:
        """No other process of the run has it."""
        return self.target.number

    def stop(self) -> None:
        """Have it stand still in the middle of whatever it does."""
        self.target.halt()
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End that."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.target.go_on()


class Arena:
    """All of them.

    Attributes:
        members: Those that live.
        targets: The same as clients see them.
    """

    def __init__(self, setting: Setting, directory: Path) -> None:
        self.setting = setting
        self.directory = directory
        self.namespace = f"chaos{os.getpid()}"
        self.journal = Journal(directory / "journal")
        self.redis: Server = STARTERS[setting.kind](aof=True)
        self.targets: list[Target | None] = [None] * setting.processes
        self.members: list[Member] = []
        self.logs: list[Path] = []
        self._numbers = 0

    def start(self) -> None:
        """Start every server process."""
        begun = [self._spawn(place) for place in range(self.setting.processes)]
        self.members = [self._join(*one) for one in begun]
        self.targets[:] = [member.target for member in self.members]

    def kill(self, member: Member) -> None:
        """`kill -9`; what it ran is over."""
        member.target.doomed = True
        member.process.kill()
        self.bury(member)

    def bury(self, member: Member) -> None:
        """It has ended, or is about to: note so, and clear away."""
        member.target.doomed = True
        self.targets[member.place] = None
        self.members.remove(member)
        member.process.wait(STARTS_WITHIN)
        self.journal.write(member.number, Kind.DEAD)
        member.proxy.close()
        _close_pipes(member.process)

    def replace(self, member: Member) -> Member:
        """Start a new process where that one was."""
        new = self._join(*self._spawn(member.place))
        self.members.append(new)
        self.targets[member.place] = new.target
        return new

    def end(self) -> list[str]:
        """End every server process politely. What was wrong with that, in sentences."""
        for member in self.members:
            member.target.doomed = True
            if member.process.stdin is not None:
                member.process.stdin.close()
        wrong = []
        for member in self.members:
            try:
                code = member.process.wait(STARTS_WITHIN)
            except subprocess.TimeoutExpired:
                wrong.append(f"server {member.number} did not end")
                member.process.kill()
                member.process.wait()
            else:
                if code:
                    wrong.append(f"server {member.number} ended with {code}: {_tail(member.log)}")
            member.proxy.close()
            _close_pipes(member.process)
        self.members = []
        return wrong

    def close(self) -> None:
        """End whatever still runs."""
        for member in self.members:
            if member.process.poll() is None:
                member.process.kill()
            member.process.wait()
            member.proxy.close()
            _close_pipes(member.process)
        self.redis.close()
        self.journal.close()

    def tracebacks(self) -> list[str]:
        """Errors nobody expected, out of the logs of all processes."""
        return [f"{log.name}: {_tail(log, 'Traceback')}" for log in self.logs if "Traceback" in log.read_text()]

    def crashed(self) -> list[Member]:
        """Those that have ended by themselves."""
        return [member for member in self.members if member.process.poll() is not None]

    def _spawn(self, place: int) -> tuple[int, int, Proxy, subprocess.Popen[bytes], Path]:
        setting, number = self.setting, self._numbers
        self._numbers += 1
        proxy = Proxy(self.redis.port).start()
        log = self.directory / f"server{number}.log"
        self.logs.append(log)
        options = {
            "namespace": self.namespace,
            "limit": setting.limit,
            "lease": setting.lease,
            "timeout": setting.timeout,
            "on-outage": setting.on_outage,
            "loop": "asyncio" if number % 2 else "uvloop",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.chaos.server"),
                    *(str(number), str(self.directory / "journal"), proxy.url),
                    *arguments,
                ],
                cwd=ROOT,
                env={**os.environ, VARIABLE: setting.broken},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # A Ctrl+C at the run is not the servers': the run ends them.
            )
        return place, number, proxy, process, log

    def _join(self, place: int, number: int, proxy: Proxy, process: subprocess.Popen[bytes], log: Path) -> Member:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], STARTS_WITHIN)
        line = process.stdout.readline() if ready else b""
        if not line:
            process.kill()
            process.wait()
            raise RuntimeError(f"server {number} did not start:\n{log.read_text()}")
        return Member(place, Target(number, int(line)), process, proxy, log)


def standing_still(member: Member) -> bool:
    """Whether the kernel has stopped it."""
    stat = Path(f"/proc/{member.process.pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "T"


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _tail(log: Path, after: str = "") -> str:
    text = log.read_text(errors="replace")
    found = text.rfind(after)
    return text[found:][:2000] if after else text[-2000:]
