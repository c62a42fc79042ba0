"""The controller for callers that block: threads, scripts, synchronous web workers.

    with controller.sync() as c:
        with c.admit(tenant="acme"):
            ...

If the controller runs on an event loop in another thread, calls cross over to it; otherwise a loop of its own is
started in a thread for the length of the `with` block.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from anyio.from_thread import start_blocking_portal

from admission.errors import NotRunning
from admission.permit import Permit
from admission.types import UNSET, Priority
from admission.waker import Loop

if TYPE_CHECKING:
    from admission.controller import AdmissionController

T = TypeVar("T")


class SyncController:
    """Blocking twins of the controller's methods, safe to call from any thread but the loop's own."""

    def __init__(self, controller: AdmissionController) -> None:
        self._controller = controller
        self._loop: Loop | None = None
        self._stack = ExitStack()

    def __enter__(self) -> SyncController:
        loop = self._controller.loop
        if loop is not None and loop.is_current():
            raise NotRunning("sync() was entered on the controller's own event loop, where blocking would never end")
        if loop is None or not loop.is_running():
            portal = self._stack.enter_context(start_blocking_portal(name="admission"))
            loop = portal.call(self._controller.bind)
            # Connections to a shared pool belong to the loop, which ends with this block.
            self._stack.callback(portal.call, self._controller.aclose)
        self._loop = loop
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop = None
        self._stack.__exit__(kind, error, trace)

    def acquire(
        self,
        *,
        priority: Priority | str | None = None,
        tenant: str = "",
        slots: int = 1,
        cost: float | None = None,
        max_wait: float | None = None,
    ) -> Permit:
        """Block until there is a permit. Arguments and errors as `AdmissionController.acquire`.

        *max_wait* None means the class's setting here: a thread that waits for ever is never what was meant.
        """
        wait = UNSET if max_wait is None else max_wait

        async def acquire() -> Permit:
            return await self._controller.acquire(
                priority=priority, tenant=tenant, slots=slots, cost=cost, max_wait=wait
            )

        return self._run(acquire)

    @contextmanager
    def admit(
        self,
        *,
        priority: Priority | str | None = None,
        tenant: str = "",
        slots: int = 1,
        cost: float | None = None,
        max_wait: float | None = None,
    ) -> Iterator[Permit]:
        """`with c.admit(…) as permit:` waits, runs the block and releases."""
        permit = self.acquire(priority=priority, tenant=tenant, slots=slots, cost=cost, max_wait=max_wait)
        with permit:
            yield permit

    def drain(self, grace: float | None = None) -> bool:
        """As `AdmissionController.drain`."""

        async def drain() -> bool:
            return await self._controller.drain(grace)

        return self._run(drain)

    def _run(self, function: Callable[[], Coroutine[object, object, T]]) -> T:
        if self._loop is None:
            raise NotRunning("use it inside `with controller.sync() as c:`")
        if self._loop.is_current():
            raise NotRunning("a blocking call on the controller's own event loop would never end; await it instead")
        return self._loop.run(function)
