"""Where an executor works: on which event loop, with which workers; how it opens and how it closes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from admission.controller import AdmissionController
from admission.errors import Closed, NotRunning
from admission.executor.assignment import Assignment
from admission.executor.callbacks import Callbacks
from admission.executor.crew import Crew
from admission.executor.desk import Desk
from admission.executor.handle import TaskStatus
from admission.executor.loops import Sleep, work_loop
from admission.executor.status import Tally
from admission.runners import Pool, Threads
from admission.types import Reason

CLEANUP_GRACE = 1.0
"""Seconds a drain leaves the coroutines it had to cancel for their cleaning up."""

Bury = Callable[[Assignment[Any], TaskStatus, BaseException], None]


class Shop:
    """The parts of an executor that belong to one event loop, made when it opens there.

    It opens by itself, closes with a drain, and may then be opened again, on another loop too.
    """

    def __init__(
        self,
        controller: AdmissionController,
        *,
        name: str,
        threads: Threads,
        pool: Pool | None,
        least: int,
        idle_after: float,
        threads_later: bool,
        actual_cost: Callable[..., float] | None,
        bury: Bury,
    ) -> None:
        self.tally = Tally()
        self.closing = False
        """It was drained, or is being drained: nothing is taken in but nested tasks."""
        self.desk: Desk | None = None
        self.crew: Crew | None = None
        self._controller = controller
        self._name = name
        self._threads = threads
        self._pool = pool
        self._least = least
        self._idle_after = idle_after
        self._threads_later = threads_later
        self._actual_cost = actual_cost
        self._bury = bury
        self._callbacks: Callbacks | None = None
        self._emptied: Sleep | None = None

    def opened(self) -> tuple[Desk, Crew]:
        """The desk and the crew on the running event loop.

        Raises:
            Closed: It was drained, and not started again.
            NotRunning: No event loop runs here, or it works on another one that has not ended.
        """
        desk, crew = self.desk, self.crew
        if desk is not None and crew is not None and desk.loop.is_current():
            return desk, crew
        if self.closing:
            raise Closed(f"executor {self._name!r} was drained", reason=Reason.DRAINING)
        loop = work_loop()
        if desk is not None and not desk.loop.is_over():
            raise NotRunning(f"executor {self._name!r} works on another event loop; use one executor per loop")
        self._controller.bind()
        self._callbacks = Callbacks(loop, self.tally, self._something_ended)
        self.crew = crew = Crew(loop, self.tally, name=self._name, least=self._least, idle_after=self._idle_after)
        self.desk = desk = Desk(
            controller=self._controller,
            loop=loop,
            crew=crew,
            tally=self.tally,
            actual_cost=self._actual_cost,
            threads_later=self._threads_later,
            call_back=self._callbacks.call,
            bury=self._bury,
            open=set(),
            emptied=self._something_ended,
        )
        return desk, crew

    async def drain(self, timeout: float | None) -> bool:
        """Wait until all tasks and callbacks have ended, evict the rest after *timeout* seconds, and close."""
        self.closing = True
        desk, crew = self.desk, self.crew
        if desk is None or crew is None:
            return True
        if not desk.loop.is_current():
            raise NotRunning(f"executor {self._name!r} works on another event loop: drain it there")
        with anyio.move_on_after(timeout):
            await self._all_ended(desk)
        in_time = self._at_rest(desk)
        if not in_time:
            for assignment in list(desk.open):
                assignment.evict()
            with anyio.move_on_after(CLEANUP_GRACE):
                await self._all_ended(desk)
        crew.close()
        if self.desk is desk:
            self.desk = self.crew = None
        self._threads.close()
        if self._pool is not None:
            self._pool.close()
        return in_time

    def _at_rest(self, desk: Desk) -> bool:
        return not desk.open and (self._callbacks is None or not self._callbacks.pending)

    async def _all_ended(self, desk: Desk) -> None:
        while not self._at_rest(desk):
            self._emptied = desk.loop.sleep()
            await self._emptied

    def _something_ended(self) -> None:
        desk, sleep = self.desk, self._emptied
        if sleep is not None and desk is not None and self._at_rest(desk):
            self._emptied = None
            desk.loop.rouse(sleep)
