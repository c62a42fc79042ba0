"""A queue in front of a model, in one process and without a web server.

    python examples/executor_basics.py

Two workers, a dozen prompts of three tenants: the paying one goes first, the others share what is left, a flaky call
is tried again, and one that takes too long is cut off.
"""

from __future__ import annotations

import asyncio

from admission import Priority, QueuedExecutor, Retry, TaskTimeout


class Model:
    """Stands for anything with an `execute(task)`: a client of a model server, an engine in this process …"""

    def __init__(self) -> None:
        self.calls = 0

    async def execute(self, prompt: str) -> str:
        """Answer *prompt*; some calls fail, as models do."""
        self.calls += 1
        if self.calls in (3, 7):
            raise ConnectionError("the model hung up")
        await asyncio.sleep(0.02 if "novel" not in prompt else 60)
        return prompt.upper()


async def main() -> None:
    """Submit, wait, look."""
    executor = QueuedExecutor(
        executor=Model(),
        max_workers=2,
        max_queue_size=100,
        retry=Retry.exponential(max_attempts=4, base=0.01, retry_on=[ConnectionError]),
    )
    async with executor.lifespan(drain_timeout=10):  # Ends when everything that was taken in has ended.
        free = await executor.submit_many([f"free {n}" for n in range(4)], tenant="ann", priority=Priority.LOW)
        also_free = await executor.submit_many([f"also free {n}" for n in range(4)], tenant="bob", priority="low")
        paid = await executor.submit("paid", tenant="acme", priority=Priority.HIGH, timeout=5)
        print(f"paid stands at {paid.position}, the last free one at {also_free[-1].position}")
        print(await paid)
        for handle in [*free, *also_free]:
            print(await handle, "" if handle.attempts == 1 else f"({handle.attempts} attempts)")
        try:
            await executor.execute("write a novel", timeout=0.05, retry=Retry.none())
        except TaskTimeout as error:
            print(error)
        status = executor.get_status()
        print(f"{status.completed} done, {status.retried} retried, {status.timed_out} timed out")
        print(f"waited {status.average_wait_time_ms:.0f} ms on average, success rate {status.success_rate:.0%}")
        for letter in executor.dead_letters.list():
            print(f"dead letter {letter.id}: {letter.error}")


if __name__ == "__main__":
    asyncio.run(main())
