"""One process of the benchmark of shared pools, on uvloop where there is one.

It is told on its standard input what to do, a line of JSON each, and answers with a line each; it ends when that is
closed, so it never outlives whoever started it. Every piece of work is announced as ready once its connections stand,
and begins at the instant (seconds of the machine's monotonic clock) the next line says: so that several begin as one.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypedDict

import redis.asyncio

from tests.benchmarks.measure import event_loops, run
from tests.benchmarks.redis_limiters import LIMITERS, Limiter

CEILING_SCRIPT = """
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
local first = redis.call('ZPOPMIN', KEYS[1])
redis.call('HSET', KEYS[2], first[1], first[2])
return first[1]
"""
"""What any queue in Redis does at least: one comes, the first goes, and it is written down who."""

CEILING_KEYS = ("{bench}:line", "{bench}:running")
CEILING_ARGUMENTS = ("1", "ticket")

_clock = time.perf_counter_ns


class Order(TypedDict):
    """What to do."""

    do: str
    who: str
    url: str
    namespace: str
    limit: int
    callers: int
    seconds: float
    count: int
    hold: float
    pause: float


def main() -> None:
    """Obey until standard input is closed."""
    factory = list(event_loops().values())[-1]
    for line in iter(sys.stdin.readline, ""):
        order: Order = json.loads(line)
        try:
            limiter = LIMITERS[order["who"]](order["url"], order["namespace"], order["limit"])
        except ImportError as error:
            say({"absent": f"cannot be imported here ({error})"})
            continue
        say(run(factory, WORK[order["do"]](limiter, order)))


def say(message: object) -> None:
    """One line of JSON."""
    print(json.dumps(message), flush=True)


async def ready() -> float:
    """When to begin."""
    say({"ready": True})
    begin = float(await asyncio.to_thread(sys.stdin.readline))
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    return begin


async def look(limiter: Limiter, order: Order) -> dict[str, Any]:
    """Whether it works here at all."""
    await limiter.open()
    await limiter.close()
    return {}


async def turn_over(limiter: Limiter, order: Order) -> dict[str, Any]:
    """Callers that take a slot and give it back, again and again: how often, and this process's CPU time for each."""
    await limiter.open()
    end = await ready() + order["seconds"]
    done = 0

    async def caller(number: int) -> None:
        nonlocal done
        while time.monotonic() < end:
            await limiter.release(await limiter.acquire(number))
            done += 1

    used = time.process_time()
    await asyncio.gather(*(caller(number) for number in range(order["callers"])))
    used = time.process_time() - used
    await limiter.close()
    return {"done": done, "cpu": used}


async def latency(limiter: Limiter, order: Order) -> dict[str, Any]:
    """Alone on the server: medians of single steps, in microseconds, all taken in turns."""
    client: Any = redis.asyncio.from_url(order["url"])
    sha = await client.script_load(CEILING_SCRIPT)
    await limiter.open()
    await ready()
    times: dict[str, list[int]] = {}

    async def timed(name: str, step: Callable[[], Awaitable[object]]) -> Any:
        begun = _clock()
        found = await step()
        times.setdefault(name, []).append(_clock() - begun)
        return found

    evaluate = partial(client.evalsha, sha, len(CEILING_KEYS), *CEILING_KEYS, *CEILING_ARGUMENTS)
    for _ in range(order["count"]):
        slot = await timed("acquire", partial(limiter.acquire, 0))
        await timed("release", partial(limiter.release, slot))
        # A release of ours is only on its way: let nothing measured overlap with it.
        await client.ping()
        await client.ping()
        await timed("evalsha", evaluate)
        await timed("ping", client.ping)
        await timed("task", partial(asyncio.create_task, _nothing()))
    await limiter.close()
    await client.aclose()
    return {name: statistics.median(found) / 1000 for name, found in times.items()}


async def _nothing() -> None:
    pass


async def hand_over(limiter: Limiter, order: Order) -> dict[str, Any]:
    """Take the only slot and give it back, in turns with another process: when it was got, and when given.

    Between the two, after a rest (*hold*) and before another, a bare round trip is timed (`bare`, in seconds).
    """
    client: Any = redis.asyncio.from_url(order["url"])
    sha = await client.script_load(CEILING_SCRIPT)
    await limiter.open()
    await ready()
    got, bare, given = [], [], []
    for _ in range(order["count"]):
        slot = await limiter.acquire(0)
        got.append(time.monotonic())
        await asyncio.sleep(order["hold"])
        asked = time.monotonic()
        await client.evalsha(sha, len(CEILING_KEYS), *CEILING_KEYS, *CEILING_ARGUMENTS)
        bare.append(time.monotonic() - asked)
        await asyncio.sleep(order["hold"])
        given.append(time.monotonic())
        await limiter.release(slot)
        if order["pause"]:  # Else the release and the next offer leave in one call.
            await asyncio.sleep(order["pause"])
    await limiter.close()
    await client.aclose()
    return {"got": got, "bare": bare, "given": given}


async def crowd(limiter: Limiter, order: Order) -> dict[str, Any]:
    """Stand *count* callers in line behind one that holds the only slot; leave when told to."""
    await limiter.open()
    slot = await limiter.acquire(0)
    waiting = [asyncio.create_task(_queue_up(limiter, number)) for number in range(order["count"])]
    # Their offers are sent in order, so whoever asks after them finds them all there.
    await asyncio.sleep(0)
    last = asyncio.create_task(_queue_up(limiter, order["count"]))
    await ready()
    for task in (*waiting, last):
        task.cancel()
    await asyncio.wait((*waiting, last))
    await limiter.release(slot)
    await limiter.close()
    return {}


async def _queue_up(limiter: Limiter, number: int) -> None:
    await limiter.acquire(number)


WORK: dict[str, Callable[[Limiter, Order], Coroutine[Any, Any, dict[str, Any]]]] = {
    "look": look,
    "turn over": turn_over,
    "latency": latency,
    "hand over": hand_over,
    "crowd": crowd,
}

if __name__ == "__main__":
    main()
