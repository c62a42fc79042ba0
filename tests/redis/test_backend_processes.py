"""Real processes that share a pool: order between them, and what becomes of it when one dies, hangs or leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import anyio
import pytest

from tests.controller.test_contract import PATIENCE, until
from tests.redis.remote import Remote

pytestmark = pytest.mark.anyio

Start = Callable[..., Remote]


@pytest.fixture
def anyio_backend() -> str:
    """The test only watches; of the processes every other one runs on uvloop."""
    return "asyncio"


@pytest.fixture
def start(redis_url: str, namespace: str) -> Iterator[Start]:
    """Starts processes; afterwards they leave the pool."""
    started: list[Remote] = []
    with ExitStack() as stack:

        def start(**options: object) -> Remote:
            options = {"lease": 2.0, "timeout": 0.6, "use_uvloop": len(started) % 2 == 1, **options}
            started.append(stack.enter_context(Remote(redis_url, namespace, **options)))
            return started[-1]

        yield start


async def becomes(remote: Remote, name: str, what: str = "granted") -> None:
    """Return once that is so."""
    await until(lambda: name in remote.became)
    assert remote.became[name] == what


async def stands(remote: Remote, **wanted: int) -> None:
    """Return once the pool is seen like this."""
    with anyio.fail_after(PATIENCE):
        while True:
            remote.look()
            await until(lambda: remote.seen)
            if wanted.items() <= remote.seen.items():
                return
            await anyio.sleep(0.02)


async def test_processes_take_turns_in_one_line(start: Start) -> None:
    """First come, first served, wherever."""
    one, two, three = start(), start(), start()
    one.comes("held")
    await becomes(one, "held")
    for place, (remote, name) in enumerate([(two, "first"), (three, "second"), (one, "third")], start=1):
        remote.comes(name)
        await stands(remote, queued=place)
    one.release("held")
    await becomes(two, "first")
    assert not three.order
    two.release("first")
    await becomes(three, "second")
    assert one.order == ["held"]
    three.release("second")
    await becomes(one, "third")


async def test_slots_of_a_killed_process_come_back(start: Start) -> None:
    """Within its lease, and so do its places in line."""
    one, two = start(max_concurrency=2), start(max_concurrency=2)
    for name in ("first", "second"):
        one.comes(name)
        await becomes(one, name)
    one.comes("waits")
    await stands(one, queued=1)
    two.comes("theirs")
    await stands(two, in_flight=2, queued=2)
    one.kill()
    await becomes(two, "theirs")
    await stands(two, in_flight=1, queued=0, processes=1)


async def test_what_a_process_holds_is_free_when_it_leaves(start: Start) -> None:
    """At once, not after its lease."""
    one, two = start(lease=60.0), start()
    one.comes("held")
    await becomes(one, "held")
    two.comes("waits")
    await stands(two, queued=1)
    one.close()
    await becomes(two, "waits")
    await until(lambda: one.closed)


async def test_a_process_that_hung_past_its_lease_counts_again(start: Start) -> None:
    """Its slot went to another: it runs on above the limit, is told so, and nothing starts until that has drained."""
    one, two = start(), start()
    one.comes("ours")
    await becomes(one, "ours")
    two.comes("theirs")
    two.comes("theirs too")
    await stands(two, queued=2)
    one.pause()
    await until(lambda: two.order)
    one.go_on()
    await stands(one, in_flight=2, over_limit=1, queued=1)
    two.release(two.order[0])
    await stands(two, in_flight=1, queued=1)
    assert len(two.order) == 1
    one.release("ours")
    await until(lambda: len(two.order) == 2)
    await stands(one, in_flight=1, queued=0, over_limit=0)


async def test_waiters_of_a_process_that_hung_do_not_wait_for_ever(start: Start) -> None:
    """They lost their places with the lease: they are told so or stand in line again."""
    one, two = start(), start()
    two.comes("held")
    await becomes(two, "held")
    one.comes("waits")
    await stands(two, queued=1)
    one.pause()
    await stands(two, queued=0)
    one.go_on()
    await until(lambda: "waits" in one.became or one.seen.get("queued") or one.look())
    two.release("held")
    await until(lambda: one.became.get("waits") in ("granted", "evicted-disconnect"))
    await stands(two, queued=0)


async def test_what_a_hanging_process_released_too_late_is_refused(start: Start) -> None:
    """Its slots were another's already: the account of nobody is settled twice."""
    one, two = start(), start()
    one.comes("ours")
    await becomes(one, "ours")
    one.pause()
    two.comes("theirs")
    await becomes(two, "theirs")
    one.release("ours")
    one.go_on()
    await stands(one, in_flight=1)
    two.comes("waits")
    await stands(two, in_flight=1, queued=1)
    two.release("theirs")
    await becomes(two, "waits")


async def test_a_hundred_come_and_go_in_three_processes(start: Start) -> None:
    """Everyone is served, none twice, however they are mixed."""
    remotes = [start(max_concurrency=4) for _ in range(3)]
    for number in range(100):
        remotes[number % 3].comes(f"{number}", tenant=f"{number % 5}")
    served = 0
    with anyio.fail_after(PATIENCE):
        while served < 100:
            held = [(remote, name) for remote in remotes for name, what in list(remote.became.items()) if what]
            assert len(held) <= 4
            for remote, name in held:
                remote.release(name)
                served += 1
            await anyio.sleep(0.002)
    assert sorted(int(name) for remote in remotes for name in remote.order) == list(range(100))
    await stands(remotes[0], in_flight=0, queued=0)
