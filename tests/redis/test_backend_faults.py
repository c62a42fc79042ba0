"""A shared pool when the way to its server is bad: what is lost is made up for, and nobody waits in vain.

Each test says what must be true in the end, and waits for it: nothing is timed. The lease is short, because what is
found by comparing is found a few times per lease.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest

from admission import AdmissionController, Evicted, Reason, Rejected, WaitTimeout
from admission.backends.redis import RedisPool, channel
from admission.policy.limit import Limit
from tests.controller.test_contract import Crowd, is_empty, peace, until
from tests.redis.proxy import Proxy
from tests.redis.test_backend import nothing_goes_on

pytestmark = pytest.mark.anyio

Reach = Callable[..., AdmissionController]
"""Makes a controller that reaches the pool by a URL of its own."""


@pytest.fixture
async def reach(namespace: str) -> AsyncIterator[Reach]:
    """Controllers of one pool, wherever it is reached; afterwards they leave."""
    made: list[AdmissionController] = []

    def reach(
        url: str,
        max_concurrency: int | Limit = 1,
        max_queue_size: int = 9,
        *,
        on_outage: str = "degrade",
        lease: float = 3.0,
        timeout: float = 0.5,
        max_wait: float | None = None,
        **options: object,
    ) -> AdmissionController:
        pool = RedisPool(url, namespace=namespace, on_outage=on_outage, lease=lease, timeout=timeout)  # type: ignore[arg-type]
        controller = AdmissionController(
            backend=pool,
            max_concurrency=max_concurrency,
            max_queue_size=max_queue_size,
            max_wait=max_wait,
            **options,  # type: ignore[arg-type]
        )
        made.append(controller)
        return controller

    yield reach
    for controller in made:
        await controller.aclose()
    nothing_goes_on()


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """Between a controller and the shared server."""
    with Proxy(int(redis_url.rpartition(":")[2])) as proxy:
        yield proxy


def state(controller: AdmissionController) -> str:
    """Of its circuit breaker."""
    link = controller.snapshot().link
    assert link is not None
    return link.state


async def is_cut_off(controller: AdmissionController) -> None:
    """Return once its breaker is open."""
    await until(lambda: state(controller) != "closed")


async def is_connected(controller: AdmissionController) -> None:
    """Return once its breaker is closed."""
    await until(lambda: state(controller) == "closed")


# ---------------------------------------------------------------------- what is lost


@pytest.mark.parametrize("silently", [False, True])
async def test_a_lost_reply_takes_no_second_slot(proxy: Proxy, reach: Reach, redis_url: str, silently: bool) -> None:
    """It was granted, but nobody heard: asked again, the pool says the same, and one slot is taken."""
    controller, other = reach(proxy.url), reach(redis_url)
    (await controller.acquire()).release()
    proxy.lose_every(2, "EVALSHA", silently=silently)
    for _ in range(4):
        permit = await controller.acquire()
        await other.refresh()
        assert other.in_flight == 1
        permit.release()
    proxy.lose_none()
    assert proxy.lost > 0
    await is_connected(controller)
    await is_empty(other)


async def test_under_lost_replies_everyone_is_served_once(proxy: Proxy, reach: Reach, redis_url: str) -> None:
    """Every third is lost: never more than the limit run, and every slot comes back."""
    controller, other = reach(proxy.url, 2, 0), reach(redis_url, 2, 0)
    running = most = done = 0

    async def work(whose: AdmissionController, number: int) -> None:
        nonlocal running, most, done
        async with whose.admit(tenant=f"{number % 3}"):
            running += 1
            most = max(most, running)
            await anyio.lowlevel.checkpoint()
            running -= 1
            done += 1

    proxy.lose_every(3, "EVALSHA")
    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(work, (controller, other)[number % 2], number)
    proxy.lose_none()
    assert done == 40
    assert proxy.lost > 0
    assert most <= 2 or controller.snapshot().link.failures > 2  # type: ignore[union-attr]  # An outage adds its share.
    await is_connected(controller)
    await until(lambda: not controller.tickets())
    await is_empty(other)


async def test_a_grant_whose_message_was_lost_is_found(proxy: Proxy, reach: Reach, redis_url: str) -> None:
    """Only the channel of messages is cut, just when the slot is freed: after subscribing again all is told anew."""
    controller, other = reach(proxy.url), reach(redis_url)
    held = await other.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("waits")
        await until(lambda: proxy.subscribed)
        assert proxy.cut(only_subscribed=True) == 1
        held.release()
        await crowd.granted("waits")
        crowd.release("waits")
    assert state(controller) == "closed"
    await is_empty(other)


async def test_a_message_lost_on_a_channel_that_stands_is_made_up_for(
    reach: Reach, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests differ: the process tells everything anew and hears what became of it."""
    monkeypatch.setattr(channel, "_tell", lambda callback, *message: None if message else callback())
    controller, other = reach(redis_url), reach(redis_url)
    held = await other.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("waits")
        held.release()
        await crowd.ended("waits")
        crowd.release("waits")
    link = controller.snapshot().link
    assert link is not None
    assert link.resyncs > 0
    await is_empty(other)


async def test_what_the_process_does_not_know_of_is_given_back(reach: Reach, redis_url: str) -> None:
    """A ticket that was forgotten here still holds a slot there: comparing finds it."""
    controller, other = reach(redis_url), reach(redis_url)
    permit = await controller.acquire()
    claims = controller._backend._claims  # type: ignore[attr-defined]
    claim = claims.by_id.pop(permit.id)
    assert claim is not None
    (await other.acquire()).release()
    claims.by_id[permit.id] = claim
    permit.release()
    await is_empty(other)


async def test_late_answers_are_ignored(proxy: Proxy, reach: Reach, redis_url: str) -> None:
    """What was held up until its asker had given up is delivered after all: nothing comes of it."""
    controller, other = reach(proxy.url, on_outage="closed"), reach(redis_url)
    (await controller.acquire()).release()
    await peace(controller)
    proxy.hold()
    with pytest.raises((WaitTimeout, Rejected)):
        await controller.acquire(max_wait=0.05)
    proxy.let_go()
    await is_connected(controller)
    permit = await other.acquire()
    permit.release()
    await is_empty(other)
    await is_empty(controller)


# ---------------------------------------------------------------------- outages


async def test_degraded_each_process_lets_in_its_share(proxy: Proxy, reach: Reach, redis_url: str) -> None:
    """Of two processes half the limit; what runs goes on and counts; afterwards the limit is that of all again."""
    controller, other = reach(proxy.url, 4), reach(redis_url, 4)
    ours, theirs = await controller.acquire(), await other.acquire()
    await peace(other, controller)
    assert len(controller.snapshot().processes) == 2
    proxy.hold()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        for name in ("first", "second", "third"):
            tasks.start_soon(crowd._acquire, name, {})
        await is_cut_off(controller)
        await until(lambda: controller.limit == 2)
        await until(lambda: len(crowd.permits) == 1)
        waiter = controller.tickets()[0]
        assert controller.explain(waiter.id).held_back_by == "outage"  # type: ignore[union-attr]
        assert controller.position(waiter.id) == 1
        ours.release()
        await until(lambda: len(crowd.permits) == 2)
        proxy.let_go()
        await is_connected(controller)
        await crowd.ended("first", "second", "third")
        await peace(controller, other)
        await until(lambda: controller.limit == 4)
        for name in list(crowd.permits):
            crowd.release(name)
    theirs.release()
    await is_empty(controller)
    await is_empty(other)


async def test_open_lets_everyone_in(proxy: Proxy, reach: Reach, redis_url: str) -> None:
    """Beyond the limit; afterwards nothing is started until the work has drained to it."""
    controller, other = reach(proxy.url, 1, on_outage="open"), reach(redis_url, 1)
    held = await controller.acquire()
    proxy.hold()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        for number in range(5):
            tasks.start_soon(crowd._acquire, f"{number}", {})
        await until(lambda: len(crowd.permits) == 5)
        proxy.let_go()
        await is_connected(controller)
        others = Crowd(other, tasks)
        await until(lambda: controller.snapshot().link.over_limit == 5)  # type: ignore[union-attr]
        await others.comes("waits")
        assert other.in_flight == 6
        held.release()
        crowd.release(*(f"{number}" for number in range(4)))
        await peace(controller, other)
        assert not others.permits
        crowd.release("4")
        await others.granted("waits")
        others.release("waits")
    await is_empty(other)


async def test_closed_turns_everyone_away_but_who_runs(proxy: Proxy, reach: Reach, redis_url: str) -> None:
    """Newcomers and waiters hear that the pool cannot be reached, and when to return."""
    controller, other = reach(proxy.url, 1, on_outage="closed"), reach(redis_url, 1)
    held = await controller.acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        await crowd.comes("waits")
        proxy.hold()
        tasks.start_soon(crowd._acquire, "comes", {})
        await crowd.ended("waits", "comes")
        for error in crowd.errors.values():
            assert isinstance(error, Rejected)
            assert error.reason is Reason.UNAVAILABLE
            assert error.retry_after is not None
        with pytest.raises(Rejected):
            await controller.acquire(max_wait=0)
        assert not held.released
        proxy.let_go()
        await is_connected(controller)
        others = Crowd(other, tasks)
        await others.comes("theirs")
        assert not others.permits
        held.release()
        await others.granted("theirs")
        others.release("theirs")
    await is_empty(controller)
    await is_empty(other)


async def test_what_was_said_during_an_outage_holds_afterwards(proxy: Proxy, reach: Reach, redis_url: str) -> None:
    """Pause and resize: here at once, and for everybody when the server is back."""
    controller, other = reach(proxy.url, 2), reach(redis_url, 2)
    controller.pause("low")
    await peace(controller, other)
    await peace(controller)
    proxy.hold()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(controller, tasks)
        tasks.start_soon(crowd._acquire, "low", {"priority": "low"})
        await is_cut_off(controller)
        controller.pause()
        tasks.start_soon(crowd._acquire, "normal", {})
        controller.resize(3)
        await peace(controller)
        assert not crowd.permits
        proxy.let_go()
        await is_connected(controller)
        await until(lambda: controller.limit == 3)
        await until(lambda: controller.snapshot().paused)
        await peace(other)
        assert other.snapshot().paused
        assert other.snapshot().of("low").paused
        assert other.limit == 3
        controller.resume()
        await crowd.granted("normal")
        controller.resume("low")
        await crowd.granted("normal", "low")
        crowd.release("normal", "low")
    await is_empty(other)


async def test_the_log_says_each_transition_once(proxy: Proxy, reach: Reach, caplog: pytest.LogCaptureFixture) -> None:
    """Not once per request."""
    caplog.set_level(logging.WARNING, "admission.redis")
    controller = reach(proxy.url, 1, on_outage="closed")
    (await controller.acquire()).release()
    await peace(controller)
    proxy.hold()
    with pytest.raises(Rejected):
        await controller.acquire()
    for _ in range(50):
        with pytest.raises(Rejected):
            await controller.acquire()
    proxy.let_go()
    await is_connected(controller)
    (await controller.acquire()).release()
    said = [record.getMessage() for record in caplog.records]
    assert sum("breaker" in line and "is open" in line for line in said) == 1
    assert sum("breaker" in line and "closed again" in line for line in said) == 1
    assert len(said) < 10
    await is_empty(controller)


@pytest.mark.parametrize("on_outage", ["degrade", "open", "closed"])
async def test_whatever_happens_to_the_link_nothing_is_lost(
    proxy: Proxy, reach: Reach, redis_url: str, caplog: pytest.LogCaptureFixture, on_outage: str
) -> None:
    """Fault after fault under load, with people that give up: everyone is answered, and in the end nothing is held."""
    here, also = (reach(proxy.url, 3, 6, on_outage=on_outage, lease=1.5, timeout=0.25) for _ in range(2))
    there = reach(redis_url, 3, 6, lease=1.5, timeout=0.25)
    over = False
    served = refused = 0

    async def client(number: int) -> None:
        nonlocal served, refused
        controller, turn = (here, also, there)[number % 3], number
        while not over:
            turn += 7
            try:
                with anyio.move_on_after(0.03 if turn % 5 == 0 else 20) as scope:
                    wishes = {"tenant": f"{turn % 3}", "priority": ("high", "low", "normal")[turn % 3]}
                    async with controller.admit(**wishes, max_wait=(None, 0.0, 0.2)[turn % 3]) as permit:
                        await anyio.sleep(0.001 * (turn % 4))
                        permit.release(actual_cost=turn % 4)
                    served += 1
                assert not (scope.cancelled_caught and turn % 5), "somebody waited in vain"
            except (Rejected, Evicted):
                refused += 1
                await anyio.sleep(0.005)

    async def break_it() -> None:
        nonlocal over
        for fault, mend in (
            (proxy.cut, proxy.welcome),
            (proxy.hold, proxy.let_go),
            (lambda: proxy.lose_every(2, "EVALSHA"), proxy.lose_none),
            (lambda: proxy.cut(only_subscribed=True), proxy.welcome),
            (lambda: (proxy.refuse(), proxy.cut()), proxy.welcome),
            (lambda: proxy.lose_every(3, "EVALSHA", silently=True), proxy.lose_none),
            (lambda: (proxy.hold(), proxy.cut()), proxy.let_go),
        ):
            fault()
            await anyio.sleep(0.9)  # Long enough for a breaker to open; nothing depends on it.
            mend()
            before = served
            await until(lambda: state(here) == state(also) == "closed" and served > before + 20)  # noqa: B023
        over = True

    async with anyio.create_task_group() as tasks:
        for number in range(18):
            tasks.start_soon(client, number)
        tasks.start_soon(break_it)
    assert refused > 0
    for controller in (here, also, there):
        await is_connected(controller)
    await until(lambda: not any(controller.tickets() for controller in (here, also, there)))
    with anyio.fail_after(20):  # What was done, but never heard of, is found by comparing.
        while True:
            await there.refresh()
            if (there.in_flight, there.queued) == (0, 0):
                break
            await anyio.sleep(0.05)
    wrong = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not wrong
