"""Taking turns: every contender once a round, and what is left of the noise after that."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

EventLoopFactory = Callable[[], asyncio.AbstractEventLoop]


def event_loops() -> dict[str, EventLoopFactory]:
    """The event loops there are, by name."""
    loops: dict[str, EventLoopFactory] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop
    except ImportError:
        return loops
    return loops | {"uvloop": uvloop.new_event_loop}


def run(factory: EventLoopFactory, coroutine: Coroutine[object, object, T]) -> T:
    """Run *coroutine* on a new event loop."""
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)


def interleaved(contenders: Mapping[K, Callable[[], T]], rounds: int, *, warm_up: int = 1) -> dict[K, list[T]]:
    """What every contender returned, round by round, without the first *warm_up* rounds.

    Each round goes through all of them, and starts with another one than the round before: whoever comes first
    always, or last, would have something that the others have not.
    """
    results: dict[K, list[T]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            result = contenders[name]()
            if number >= warm_up:
                results[name].append(result)
    return results


async def cpu_microseconds(work: Awaitable[object], count: int) -> float:
    """CPU time of this process for each of the *count* things that *work* does."""
    begun = time.process_time_ns()
    await work
    return (time.process_time_ns() - begun) / count / 1000


def lower_quartile(values: Sequence[float]) -> float:
    """The typical good round: noise only ever adds time, so the lower half is the more truthful one."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def upper_quartile(values: Sequence[float]) -> float:
    """The same for rates."""
    return -lower_quartile([-value for value in values])


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of *value* ÷ *base*."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))
