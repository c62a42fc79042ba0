"""Worker processes and who looks after them: one that dies is replaced, and signals are passed on."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence

from admission.cli.working import Assignment

_log = logging.getLogger("admission.jobs")

STEADY = 60.0
"""Seconds a process must have lived for its death to count as the first one."""

LONGEST_PAUSE = 30.0
"""Seconds between the death of a process and the next one, after many deaths in a row."""

LAST_WORD = 15.0
"""Seconds beyond the grace after which a process that has not ended is killed."""


class Processes:
    """As many processes as there are assignments, until SIGTERM or SIGINT.

    The first signal is passed on and stops them in order; the second ends them where they stand. The first death of a
    process is followed by another one at once, the next ones after 1, 2, 4, … seconds.
    """

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = assignments
        self._running: set[Process] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Return when all have ended, after a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._heard)
        async with asyncio.TaskGroup() as group:
            for assignment in self._assignments:
                group.create_task(self._keep(assignment))

    async def _keep(self, assignment: Assignment) -> None:
        """One process after the other."""
        now = asyncio.get_running_loop().time
        deaths = 0
        while not self._stopping.is_set():
            born = now()
            process = await self._start(assignment)
            code = await self._ended(process, assignment.plan.grace)
            self._running.discard(process)
            if self._stopping.is_set():
                return
            deaths = 1 if now() - born >= STEADY else deaths + 1
            pause = pause_after(deaths)
            _log.error("worker process %d ended (%s); another one starts in %g s", process.pid, _why(code), pause)
            await self._stopped_within(pause)

    async def _start(self, assignment: Assignment) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "admission.cli.working",
            assignment.to_json(),
            # It ends with this process, however that happens; see working.py.
            stdin=asyncio.subprocess.PIPE,
            # Ctrl-C goes to this process alone, which passes it on once.
            start_new_session=True,
        )
        self._running.add(process)
        if self._stopping.is_set():
            process.terminate()
        _log.info("worker process %d started", process.pid)
        return process

    async def _ended(self, process: Process, grace: float) -> int:
        """Its exit code; killed if it does not heed that it shall stop."""
        ended = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await asyncio.wait((ended,), timeout=grace + LAST_WORD)
            if not ended.done():
                _log.error("worker process %d does not stop: it is killed", process.pid)
                process.kill()
            return await ended
        finally:
            stopping.cancel()

    async def _stopped_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _heard(self) -> None:
        self._stopping.set()
        for process in self._running:
            if process.returncode is None:
                process.terminate()


def pause_after(deaths: int) -> float:
    """Seconds before the next process, after so many deaths in a row."""
    return 0.0 if deaths <= 1 else min(LONGEST_PAUSE, 2.0 ** min(deaths - 2, 10))


def _why(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
