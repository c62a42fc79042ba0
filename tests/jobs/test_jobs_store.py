"""The way to the server: batches, lost answers, messages, outages, the end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from admission.backends.redis.site import RedisPool
from admission.errors import NotRunning, Unavailable
from admission.jobs import JobQueue, script
from admission.jobs.script import Answer, Bounds, Op, Said, Stats
from admission.jobs.store import HEAVY, JobStore
from tests.jobs.taking import Taker
from tests.redis.proxy import Proxy
from tests.redis.servers import Cluster, free_port

pytestmark = pytest.mark.anyio

FAR = RedisPool("redis://127.0.0.1:1", timeout=0.05)
"""Where nobody listens."""


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    """A network that misbehaves when told."""
    port = urlsplit(redis_url).port
    assert port is not None
    with Proxy(port) as between:
        yield between


@pytest.fixture
def proxied(proxy: Proxy, queue_site: RedisPool) -> RedisPool:
    """The test's queue, behind it."""
    return RedisPool(proxy.url, namespace=queue_site.namespace, timeout=2.0)


def put(body: str = "{}", **options: str) -> Op:
    """A job like most."""
    return script.put(secrets.token_hex(12), 2, "t", 1000, 0, options.get("dedup_key", ""), "", body)


async def queued(store: JobStore) -> int:
    """Jobs there are."""
    stats = await store.ask(script.stats())
    assert isinstance(stats, Stats)
    return sum(each.queued for each in stats.classes)


async def in_the_end(happened: Callable[[], object]) -> None:
    """Return once *happened()* is true; at most 30 s."""
    async with asyncio.timeout(30):
        while not happened():  # noqa: ASYNC110 - nobody says so.
            await asyncio.sleep(0.01)


async def test_what_is_asked_at_once_goes_out_together(queue_site: RedisPool) -> None:
    """And each hears its own answer."""
    store = JobStore(queue_site, "default", Bounds())
    ops = [put() for _ in range(50)]
    answers = await asyncio.gather(*(store.ask(op) for op in ops))
    assert answers == [Said.DONE] * len(ops)
    assert store._commit is not None
    assert store._commit.statistics.calls == 1
    assert store.reply is not None
    assert store.reply.ready[2] == 50
    await store.close()


async def test_lost_answers_make_no_second_job(proxy: Proxy, proxied: RedisPool) -> None:
    """They are asked for again with the same ids, one by one and in batches."""
    jobs = JobQueue(proxied)

    @jobs.task
    def send(n: int) -> None: ...

    async with jobs:
        proxy.lose_every(2, "EVALSHA")
        for number in range(6):
            await send.enqueue(number)
        enqueued = await jobs.enqueue_many([send.job(number) for number in range(1000)])
        proxy.lose_none()
        assert proxy.lost > 0
        assert len({job.id for job in enqueued}) == 1000
        stats = await jobs.stats()
        assert (stats.queued, stats.enqueued_total) == (1006, 1006)


async def test_an_answer_lost_in_silence_is_asked_for_again(proxy: Proxy, queue_site: RedisPool) -> None:
    """The connection stays open and mute: only the deadline of the call ends it."""
    store = JobStore(RedisPool(proxy.url, namespace=queue_site.namespace, timeout=0.2), "default", Bounds())
    assert await store.ask(script.tick()) is Said.DONE
    proxy.lose_every(1, "EVALSHA", silently=True)
    asked = asyncio.create_task(store.ask(put()))
    await in_the_end(lambda: proxy.lost)
    proxy.lose_none()
    assert await asked is Said.DONE
    assert await queued(store) == 1
    await store.close()


async def test_who_asks_a_server_that_is_not_there_hears_so() -> None:
    """In bounded time, with the reason; and nothing is left to be sent."""
    store = JobStore(FAR, "default", Bounds())
    with pytest.raises(
        Unavailable, match=r"of pool 'default' gave no answer within 0\.15 s: redis://127\.0\.0\.1:1 (cannot be|did)"
    ):
        await store.ask(put())
    with pytest.raises(Unavailable, match="gave no answer"):
        await store.ask_all([put() for _ in range(300)])
    for answer in (store.get("x"), store.set("x", b"1", 1)):
        with pytest.raises(Unavailable, match="asked in vain"):
            await answer
    assert store._commit is not None
    assert store._commit.statistics.waiting == 0
    await store.close()


async def test_who_gives_up_is_not_asked_for_again(proxy: Proxy, proxied: RedisPool) -> None:
    """What has not left yet never does."""
    store = JobStore(proxied, "default", Bounds())
    await store.ask(script.tick())
    proxy.refuse()
    proxy.cut()
    asked = asyncio.create_task(store.ask(put()))
    await in_the_end(lambda: store._last_failure is not None)
    asked.cancel()
    await asyncio.wait([asked])
    proxy.welcome()
    assert await queued(store) == 0
    await store.close()


async def test_what_is_sent_is_tried_until_it_is_answered(proxy: Proxy, proxied: RedisPool) -> None:
    """However long the server is away; nobody waits for it."""
    store = JobStore(proxied, "default", Bounds())
    proxy.refuse()
    heard: list[Answer] = []
    store.send(put(), heard.append)
    await in_the_end(lambda: store._last_failure is not None)
    assert heard == []
    proxy.welcome()
    async with asyncio.timeout(30):
        await store.drain()
    assert heard == [Said.DONE]
    await store.close()


async def test_a_process_is_told_when_its_jobs_are_ready(queue_site: RedisPool) -> None:
    """By a message, without asking."""
    told: asyncio.Queue[script.Message] = asyncio.Queue()
    subscribed = asyncio.Event()
    client = JobStore(queue_site, "default", Bounds())
    async with Taker(queue_site) as taker, asyncio.timeout(30):
        taker.store.on_told, taker.store.on_subscribed = told.put_nowait, subscribed.set
        taker.store.listen()
        taker.store.listen()
        await subscribed.wait()
        assert await taker.store.ask(script.want((2,), None)) is Said.DONE
        await client.ask(put())
        assert await told.get() == ("wake", "2")
        await client.close()


async def test_a_new_subscription_is_told_of(proxy: Proxy, proxied: RedisPool) -> None:
    """Messages may have been lost until then."""
    subscribed: asyncio.Queue[None] = asyncio.Queue()
    store = JobStore(proxied, "default", Bounds())
    store.on_subscribed = lambda: subscribed.put_nowait(None)
    store.listen()
    async with asyncio.timeout(30):
        await subscribed.get()
        proxy.cut(only_subscribed=True)
        await subscribed.get()
    await store.close()


async def test_every_reply_is_told(queue_site: RedisPool) -> None:
    """Those of batches too."""
    replies: list[script.Reply] = []
    store = JobStore(queue_site, "default", Bounds())
    store.on_reply = replies.append
    await store.ask(put())
    await store.ask_all([put() for _ in range(600)])
    assert sorted(len(reply.answers) for reply in replies) == [1, 88, 256, 256]
    assert store.reply is replies[-1]
    await store.close()


async def test_heavy_jobs_travel_a_few_at_a_time(queue_site: RedisPool) -> None:
    """A call stays small enough for its deadline, and one that is too heavy goes alone."""
    store = JobStore(queue_site, "default", Bounds())
    replies: list[script.Reply] = []
    store.on_reply = replies.append
    heavy = "x" * (60 * HEAVY)
    assert len(await asyncio.gather(*(store.ask(put(heavy)) for _ in range(9)))) == 9
    assert max(len(reply.answers) for reply in replies) == 4
    replies.clear()
    assert len(await store.ask_all([put(heavy) if number % 40 == 0 else put() for number in range(400)])) == 400
    assert max(len(reply.answers) for reply in replies) < 200
    assert await store.ask(put("x" * (300 * HEAVY)))
    assert await queued(store) == 410
    await store.close()


async def test_a_closed_store_says_so(proxy: Proxy, proxied: RedisPool) -> None:
    """Also to who waits just then; closing takes no longer than the server may."""
    site = RedisPool(proxied.url, namespace=proxied.namespace, timeout=0.2)
    store = JobStore(site, "default", Bounds())
    await store.ask(script.tick())
    proxy.hold()
    asked = asyncio.create_task(store.ask(put()))
    await in_the_end(lambda: asked.done() or not store._commit or not store._commit.idle)
    async with asyncio.timeout(30):
        await store.close()
        with pytest.raises(NotRunning, match="closed"):
            await asked
    proxy.let_go()
    for act in (store.ask(put()), store.ask_all([put()] * 300), store.get("x")):
        with pytest.raises(NotRunning, match="closed"):
            await act
    with pytest.raises(NotRunning):
        store.send(put())
    await store.close()


async def test_what_was_sent_before_the_end_still_goes(queue_site: RedisPool) -> None:
    """Closing waits for it."""
    heard: list[Answer] = []
    store = JobStore(queue_site, "default", Bounds())
    store.send(put(), heard.append)
    await store.close()
    assert len(heard) == 1


async def test_a_store_belongs_to_one_event_loop(queue_site: RedisPool) -> None:
    """Another one is refused by name."""
    store = JobStore(queue_site, "default", Bounds())
    await store.ask(script.tick())

    def elsewhere() -> None:
        async def ask() -> None:
            await store.ask(script.tick())

        asyncio.run(ask())

    with pytest.raises(NotRunning, match="another event loop"):
        await asyncio.to_thread(elsewhere)
    await store.close()


async def test_each_kind_of_server_keeps_jobs(any_redis_url: str, namespace: str) -> None:
    """Valkey and Redis alike; nothing is left but the books."""
    site = RedisPool(any_redis_url, namespace=namespace, timeout=4.0)
    jobs = JobQueue(site)

    @jobs.task
    def send(n: int) -> None: ...

    async with jobs, Taker(site) as taker:
        job = await send.enqueue(1)
        await taker.succeed(await taker.take_one(), "2")
        assert await job.result(30) == 2
        assert await jobs.purge(state="done") == 1
        await taker.store.ask(script.leave())
        lease = taker.store.script.value_key("").replace("j:kv:", "lease")
        await taker.store._command("DEL", lease)
        await jobs.store._command("DEL", taker.store.script.value_key("").replace("j:kv:", "j:st"))


async def test_a_cluster_keeps_jobs(redis_cluster: Cluster, namespace: str) -> None:
    """All keys of a pool are in one slot, and messages go by its node."""
    site = RedisPool(redis_cluster.url.replace("redis://", "redis+cluster://"), namespace=namespace, timeout=4.0)
    jobs = JobQueue(site)

    @jobs.task
    def send(n: int) -> None: ...

    async with jobs, Taker(site) as taker:
        job = await send.enqueue(1)
        waiting = asyncio.create_task(job.result(30))
        await in_the_end(lambda: job.id in jobs.endings._waiting)
        await taker.succeed(await taker.take_one(), "2")
        assert await waiting == 2
        await jobs.push("x", [1])
        assert await jobs.pull("x") == [1]
        await jobs.purge(state="done")
        key = taker.store.script.value_key
        for last in ("lease", "j:st", "j:kv:x"):
            await taker.store._command("DEL", key("").replace("j:kv:", last))


async def test_a_queue_waits_out_a_server_that_comes_later(namespace: str) -> None:
    """Nothing is connected before it is needed."""
    port = free_port()
    jobs = JobQueue(RedisPool(f"redis://127.0.0.1:{port}", namespace=namespace, timeout=0.05))
    async with jobs:
        assert jobs.store.reply is None
        with pytest.raises(Unavailable):
            await jobs.stats()
