"""The controller for threads: `controller.sync()`."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio.to_thread
import pytest

from admission import AdmissionController, NotRunning, Permit, Rejected, current_ticket


def test_a_script_without_a_loop_gets_one_for_the_length_of_the_block() -> None:
    """Blocking twins of `acquire` and `admit`."""
    controller = AdmissionController(max_concurrency=1)
    with controller.sync() as blocking:
        with blocking.admit(tenant="acme") as permit:
            ticket = current_ticket()
            assert ticket is not None
            assert ticket.tenant == "acme"
        permit = blocking.acquire(max_wait=0)  # What the block gave back has crossed over before this.
        with pytest.raises(Rejected):
            blocking.acquire(max_wait=0)
        permit.release()
        assert blocking.drain()
    with pytest.raises(NotRunning):
        blocking.acquire()


def test_threads_share_one_slot() -> None:
    """Never two inside; whoever waits is woken by a release in another thread."""
    controller = AdmissionController(max_concurrency=1, max_queue_size=0)
    inside = threading.Semaphore(1)
    visits: list[int] = []

    def visit(name: int) -> None:
        for _ in range(10):
            with blocking.admit(tenant=str(name)):
                assert inside.acquire(blocking=False), "two threads hold the one slot"
                visits.append(name)
                inside.release()

    with controller.sync() as blocking, ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(visit, name) for name in range(4)]:
            done.result(timeout=30)
    assert len(visits) == 40


@pytest.mark.anyio
async def test_a_thread_crosses_to_the_loop_that_runs() -> None:
    """One pool for both: the thread waits for the slot that a coroutine holds."""
    controller = AdmissionController(max_concurrency=1)
    held = await controller.acquire()

    def work() -> Permit:
        with controller.sync() as blocking:
            return blocking.acquire()

    async with anyio.create_task_group() as tasks:
        got: list[Permit] = []

        async def call() -> None:
            got.append(await anyio.to_thread.run_sync(work))

        tasks.start_soon(call)
        while not controller.queued:  # The thread comes when it comes.
            await anyio.lowlevel.checkpoint()
        held.release()
    assert controller.in_flight == 1
    got[0].release()


def test_blocking_on_the_loop_itself_is_an_error() -> None:
    """It would never end."""

    async def main() -> None:
        async with AdmissionController() as controller:
            with pytest.raises(NotRunning), controller.sync():
                pass

    asyncio.run(main())
