"""Durable jobs in the room that requests leave, in one process.

    python examples/jobs_worker.py                          # with a private Valkey of this user (extra `embedded`)
    python examples/jobs_worker.py redis://localhost:6379   # or with one that is there

A shop with four slots. Receipts are printed in the background, a tenant's thousand as well as another's one; meanwhile
requests of customers come, and go first.
"""

from __future__ import annotations

import asyncio
import sys

from admission import AdmissionController, Priority, RedisPool, Retry
from admission.errors import JobFailed
from admission.jobs import JobQueue, Worker, current_job

site = RedisPool(sys.argv[1] if len(sys.argv) > 1 else "embedded", namespace="example")
jobs = JobQueue(site, pool="shop")


@jobs.task(priority=Priority.LOW, timeout=5)
async def print_receipt(order: int) -> str:
    """What takes a while and can wait."""
    await asyncio.sleep(0.002)
    return f"receipt {order}"


@jobs.task(retry=Retry.fixed(0.05, max_attempts=3))
async def charge(order: int) -> str:
    """What may fail, and is tried again."""
    job = current_job()
    assert job is not None
    if order < 0:
        raise ValueError(f"there is no order {order}")
    if job.attempt == 1:
        raise ConnectionError("the bank does not answer")
    return f"order {order} charged at attempt {job.attempt}"


async def main() -> None:
    """Enqueue, work, look."""
    controller = AdmissionController(backend=site, name="shop", max_concurrency=4)
    async with controller, jobs:
        many = await jobs.enqueue_many(
            [print_receipt.with_options(tenant="globex").job(order) for order in range(1000)]
        )
        one = await print_receipt.enqueue(1, tenant="acme")
        async with Worker(jobs, workers=50, controller=controller) as worker:
            print(f"acme has {await one.result(timeout=60)!r}; globex waits for {(await jobs.stats()).queued} more")

            async with controller.admit(priority=Priority.HIGH, tenant="acme"):
                print(f"a customer is let in while {(await jobs.stats()).queued} jobs wait")

            print(await (await charge.enqueue(7)).result(timeout=60))
            failed = await charge.enqueue(-1)
            try:
                await failed.result(timeout=60)
            except JobFailed as error:
                print(f"dead after {error.attempts} attempts: {error.error}")
            await jobs.dead.purge(failed.id)

            await many[-1].result(timeout=60)
            status = worker.status()
            print(f"{status.succeeded} jobs done, {status.retried} tried again, {status.buried} dead")


if __name__ == "__main__":
    asyncio.run(main())
