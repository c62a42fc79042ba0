"""Everything at once, in random order: whatever happens to tasks, no slot, worker or handle is lost."""

from __future__ import annotations

import random

import anyio
import anyio.lowlevel
import pytest
from gates import at_rest, eventually

from admission.errors import AdmissionError
from admission.executor import QueuedExecutor
from admission.policy.retry import Retry

pytestmark = pytest.mark.anyio

TASKS = 400


class Storm:
    """Random tasks, randomly interrupted."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.running = 0
        self.most = 0
        self.executor = QueuedExecutor(
            max_workers=3,
            max_queue_size=20,
            backpressure_mode=self.dice.choice(["reject", "block"]),
            worker_idle=0.001,
            max_wait=self.dice.choice([None, 0.005, 10]),
        )

    async def task(self, steps: int, end: str) -> str:
        """Waits some steps, then ends one way or another."""
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            if end == "forever":
                await anyio.sleep_forever()
            if end == "raise":
                raise OSError("storm")
            if end == "scoped":
                with anyio.move_on_after(0):
                    await anyio.sleep_forever()
            if end == "group":
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.lowlevel.checkpoint)
            if end == "swallow":
                try:
                    await anyio.sleep_forever()
                except BaseException:
                    return end
            if end == "nested":
                return await self.executor.execute(self.nested, steps)
            return end
        finally:
            self.running -= 1

    async def nested(self, steps: int) -> str:
        """Runs on the slot of the task that submitted it."""
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        return "nested"

    async def one(self) -> None:
        """Submit a task and do something with its handle."""
        dice = self.dice
        end = dice.choice(["return", "raise", "scoped", "group", "nested", "forever", "swallow"])
        endless = end in ("forever", "swallow")
        timeout = dice.choice([0.0005, 0.002]) if endless or dice.random() < 0.2 else None
        retry = dice.choice([None, Retry.fixed(0), Retry.fixed(0.001)])
        try:
            handle = await self.executor.submit(
                self.task, dice.randrange(3), end, timeout=timeout, retry=retry, priority=dice.choice(["high", "low"])
            )
        except AdmissionError:
            return
        for _ in range(dice.randrange(4)):
            await anyio.lowlevel.checkpoint()
        if dice.random() < 0.4:
            handle.cancel()
        try:
            if dice.random() < 0.2:
                with anyio.move_on_after(0.001):
                    await handle
                handle.cancel()
            await handle
        except (AdmissionError, OSError):
            return


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_lost_in_a_storm(seed):
    """Grants, cancels, timeouts, retries, nested tasks and refusals in every order that chance finds."""
    storm = Storm(seed)
    executor = storm.executor
    async with executor.lifespan(drain_timeout=10):
        async with anyio.create_task_group() as group:
            for _ in range(TASKS):
                group.start_soon(storm.one)
                if storm.dice.random() < 0.3:
                    await anyio.lowlevel.checkpoint()
        crew = executor._shop.crew
        assert crew is not None
        # A worker that has just ended a task still looks for the next one.
        await eventually(lambda: at_rest(executor) and storm.running == 0 and crew.seeking == 0)
        status = executor.get_status()
        assert status.active_workers == 0
        assert status.retrying == 0
        ended = status.completed + status.failed + status.timed_out + status.cancelled
        assert ended <= status.submitted + status.completed  # Nested tasks are submitted, too.
        assert storm.most <= 3
        assert not crew.ready
    assert executor._shop.crew is None
