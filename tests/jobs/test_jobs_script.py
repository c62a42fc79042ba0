"""What each operation of the jobs' script does, call by call on real servers, at a time the test sets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import redis

from admission.jobs import script
from admission.jobs.script import (
    Bounds,
    Count,
    Duplicate,
    Garbled,
    Here,
    Message,
    Op,
    Page,
    Record,
    Said,
    Script,
    Stats,
    Taken,
    Took,
)
from admission.jobs.types import BuryKind, JobState
from tests.jobs.jobs_model import ANN, BOB, CY, Shop
from tests.redis.conftest import PoolKeys
from tests.redis.servers import Cluster, Server, valkey

SECOND = 1_000_000


@pytest.fixture
def shop(redis_url: str, namespace: str) -> Iterator[Shop]:
    """Jobs of a pool; Ann and Bob have leases. Nothing of it is left afterwards."""
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        shop = Shop(client, namespace)
        shop.lives(ANN, BOB)
        yield shop
        shop.clear()


def tenants_of(jobs: Sequence[Taken]) -> str:
    """In the order of delivery."""
    return "".join(job.tenant for job in jobs)


def stats_of(shop: Shop) -> Stats:
    answer = shop.say(CY, script.stats())
    assert isinstance(answer, Stats)
    return answer


# ---------------------------------------------------------------------- intake


def test_job_put_twice_is_queued_once(shop: Shop) -> None:
    """A lost reply is safe to ask for again."""
    put = script.put("1" * 24, 3, "t", 1000, 0, "", "", "{}")
    assert shop.call(CY, put, put).answers == [Said.DONE] * 2
    assert shop.call(CY, put).answers == [Said.DONE]
    assert len(shop.take(ANN, 9)) == 1


@pytest.mark.parametrize("end", ["done", "buried", "cancelled"])
def test_deduplication_key_is_taken_until_its_job_has_ended(shop: Shop, end: str) -> None:
    """Queued, running, between two attempts: there is no second one. Afterwards there may be."""
    first = shop.put(dedup_key="k")
    second = script.put("2" * 24, 3, "t", 1000, 0, "k", "", "{}")
    assert shop.say(CY, second) == Duplicate(first)
    job = shop.take(ANN)[0]
    assert shop.say(CY, second) == Duplicate(first)
    assert shop.say(ANN, script.retry(job.id, 1, 10 * SECOND, "{}")) is Said.DONE
    assert shop.say(CY, second) == Duplicate(first)
    if end == "cancelled":
        assert shop.say(CY, script.cancel(first)) is Said.DONE
    else:
        shop.now += 10 * SECOND
        shop.take(ANN)
        ending = script.done(first, 2, "1", 0) if end == "done" else script.bury(first, 2, BuryKind.FAILED, "{}")
        assert shop.say(ANN, ending) is Said.DONE
    assert shop.say(CY, second) is Said.DONE


def test_full_queue_refuses_jobs_but_not_retries(shop: Shop) -> None:
    """Queued and delayed jobs count, running ones do not."""
    shop.bounds = Bounds(max_queue_size=2)
    shop.put()
    shop.put(delay_us=SECOND)
    third = script.put("3" * 24, 3, "t", 1000, 0, "", "", "{}")
    assert shop.say(CY, third) is Said.FULL
    job = shop.take(ANN)[0]
    assert shop.say(CY, third) is Said.DONE
    assert shop.say(ANN, script.retry(job.id, job.delivery, 0, "{}")) is Said.DONE
    assert stats_of(shop).classes[3].queued == 2


def test_delayed_job_is_ready_when_it_is_due(shop: Shop) -> None:
    """Not before; and every reply says how long that is."""
    id = shop.put(delay_us=2 * SECOND)
    reply = shop.call(ANN, script.take(3, 1))
    assert reply.answers == [Took([])]
    assert reply.next_due == 2.0
    assert shop.look(id).due == (shop.now + 2 * SECOND) / 1e6
    shop.now += 2 * SECOND
    assert [job.id for job in shop.take(ANN)] == [id]


# ---------------------------------------------------------------------- delivery


def test_jobs_of_a_tenant_are_delivered_as_they_came(shop: Shop) -> None:
    """First in, first out."""
    ids = [shop.put() for _ in range(20)]
    assert [job.id for job in shop.take(ANN, 7)] == ids[:7]
    assert [job.id for job in shop.take(BOB, 256)] == ids[7:]


def test_tenants_share_by_what_they_are_charged(shop: Shop) -> None:
    """Two with as many jobs, one with three times the weight: it is served three times as often."""
    for _ in range(40):
        shop.put(tenant="a", charge=1000)
        shop.put(tenant="b", charge=3000)
    order = tenants_of(shop.take(ANN, 24))
    assert (order.count("a"), order.count("b")) == (18, 6)


def test_newcomer_is_served_next_and_not_for_what_it_missed(shop: Shop) -> None:
    """Behind a long line of another tenant, each of its jobs takes turns."""
    for _ in range(50):
        shop.put(tenant="big")
    shop.take(ANN, 20)
    for _ in range(5):
        shop.put(tenant="small")
    order = [job.tenant for job in shop.take(ANN, 10)]
    assert order.count("small") == 5
    assert order[:2] == ["small", "big"] or order[:2] == ["big", "small"]


def test_take_by_batches_is_as_fair_as_one_by_one(shop: Shop) -> None:
    """The order is that of single takes."""
    for number in range(60):
        shop.put(tenant="abc"[number % 7 % 3], charge=1000 + 500 * (number % 4))
    single = [shop.take(ANN)[0].id for _ in range(60)]
    shop.say(ANN, script.leave())
    assert shop.say(ANN, script.purge(JobState.QUEUED, None, None)) == Count(60, False)
    shop.made = 0
    for number in range(60):
        shop.put(tenant="abc"[number % 7 % 3], charge=1000 + 500 * (number % 4))
    assert [job.id for job in shop.take(ANN, 60)] == single


def test_tenants_with_names_alike_are_served_by_name(shop: Shop) -> None:
    """To the last letter, as their bytes sort."""
    names = ["customer-b", "z", "customer-a", "customer", "é"]
    for tenant in names * 2:
        shop.put(tenant=tenant)
    assert [job.tenant for job in shop.take(ANN, 10)] == sorted(names) * 2


def test_assigned_tenants_come_first_and_then_those_to_steal_from(shop: Shop) -> None:
    """In fair order among each; others are left alone."""
    for tenant in "xyzxyz":
        shop.put(tenant=tenant)
    assert tenants_of(shop.take(ANN, 4, tenants=("z", "y"), steal=())) == "yzyz"
    for tenant in "yz":
        shop.put(tenant=tenant)
    assert tenants_of(shop.take(ANN, 2, tenants=("z",), steal=("y",))) == "zy"
    assert tenants_of(shop.take(ANN, 9, tenants=("z",), steal=None)) == "xx"


def test_process_without_a_lease_gets_nothing(shop: Shop) -> None:
    """What it took would be delivered again at once."""
    shop.put()
    assert shop.say(CY, script.take(3, 1)) is Said.STALE
    assert shop.say(CY, script.want((3,))) is Said.STALE
    assert shop.look("0" * 23 + "1").state is JobState.QUEUED


def test_paused_class_delivers_nothing(shop: Shop) -> None:
    """It takes jobs in, and says none is ready."""
    shop.put()
    shop.put(rank=0)
    reply = shop.call(CY, script.pause(3))
    assert reply.ready == [1, 0, 0, 0, 0, 0, 0, 0]
    assert not shop.take(ANN)
    assert shop.call(CY, script.pause(None)).ready == [0] * 8
    assert not shop.take(ANN, rank=0)
    shop.call(CY, script.resume(None), script.resume(3))
    assert len(shop.take(ANN)) == len(shop.take(ANN, rank=0)) == 1


def test_delivery_says_all_there_is_to_know(shop: Shop) -> None:
    """Attempts count failures, deliveries count takes, times are those of the server."""
    id = shop.put(tenant="tenant: one\0", body='"ä"')
    start = shop.now / 1e6
    assert shop.take(ANN) == [Taken(id, 1, 1, 0, 0, 3, "tenant: one\0", start, start, '"ä"')]
    shop.now += SECOND
    shop.call(ANN, script.retry(id, 1, 0, '{"error": "x"}'))
    assert shop.take(BOB) == [Taken(id, 2, 2, 0, 0, 3, "tenant: one\0", start, start, '"ä"')]
    shop.call(BOB, script.back(id, 2, 0, counted=True))
    assert shop.take(BOB) == [Taken(id, 3, 2, 1, 0, 3, "tenant: one\0", start, start, '"ä"')]


def test_job_handed_back_costs_its_tenant_nothing(shop: Shop) -> None:
    """It goes to where it was: next in turn."""
    for tenant in "aabb":
        shop.put(tenant=tenant)
    first = shop.take(ANN)[0]
    assert shop.say(ANN, script.back(first.id, 1, 0, counted=False)) is Said.DONE
    again = shop.take(ANN)[0]
    assert (again.id, again.attempt, again.backs) == (first.id, 1, 0)
    assert tenants_of(shop.take(ANN, 3)) == "bab"


# ---------------------------------------------------------------------- reports


@pytest.mark.parametrize("verb", ["done", "done and kept", "retry", "back", "bury"])
def test_report_of_a_stale_delivery_is_refused_and_counted(shop: Shop, verb: str) -> None:
    """Another delivery, another process, or a job that is over: nothing changes."""
    id = shop.put()
    shop.take(ANN)
    reports: dict[str, Callable[[int], Op]] = {
        "done": lambda delivery: script.done(id, delivery, "1", 0),
        "done and kept": lambda delivery: script.done(id, delivery, "1", 1000),
        "retry": lambda delivery: script.retry(id, delivery, 0, "{}"),
        "back": lambda delivery: script.back(id, delivery, 0, counted=True),
        "bury": lambda delivery: script.bury(id, delivery, BuryKind.FAILED, "{}"),
    }
    report = reports[verb]
    assert shop.say(BOB, report(1)) is Said.STALE
    assert shop.say(ANN, report(2)) is Said.STALE
    assert shop.look(id).state is JobState.RUNNING
    assert shop.call(ANN, report(1), report(1)).answers == [Said.DONE, Said.STALE]
    assert stats_of(shop).counters["stale"] == 3


def test_result_is_kept_for_its_time(shop: Shop) -> None:
    """Then nothing of the job is left."""
    id = shop.put(body='"b"')
    shop.take(ANN)
    shop.call(ANN, script.done(id, 1, '"r"', 5 * SECOND))
    record = shop.look(id)
    assert (record.state, record.result, record.body, record.error) == (JobState.DONE, '"r"', '"b"', "")
    shop.now += 5 * SECOND
    assert shop.say(CY, script.look(id)) is Said.UNKNOWN
    assert shop.left() == {"j:st"}


def test_dead_letter_says_why_and_is_requeued_as_if_new(shop: Shop) -> None:
    """Attempts, deliveries and errors start over."""
    id = shop.put()
    shop.take(ANN)
    shop.call(ANN, script.bury(id, 1, BuryKind.TIMEOUT, '{"error": "slow"}'))
    record = shop.look(id)
    assert (record.state, record.kind, record.error) == (JobState.DEAD, BuryKind.TIMEOUT, '{"error": "slow"}')
    assert shop.call(CY, script.requeue(id), script.requeue(id)).answers == [Said.DONE, Said.UNKNOWN]
    record = shop.look(id)
    assert (record.state, record.attempt, record.delivery, record.error) == (JobState.QUEUED, 0, 0, "")


def test_dead_letter_is_forgotten_after_its_time(shop: Shop) -> None:
    """So are its body and its error."""
    shop.bounds = Bounds(dead_ttl=2.0)
    id = shop.put()
    shop.take(ANN)
    shop.call(ANN, script.bury(id, 1, BuryKind.FAILED, "{}"))
    shop.now += 2 * SECOND
    shop.call(CY, script.tick())
    assert shop.left() == {"j:st"}


# ---------------------------------------------------------------------- death


def test_jobs_of_a_dead_process_are_delivered_again_first(shop: Shop) -> None:
    """Before those of its tenant that came later; the dead one's report is refused."""
    ids = [shop.put() for _ in range(3)]
    shop.take(ANN, 2)
    shop.dies(ANN)
    again = shop.take(BOB, 3)
    assert [job.id for job in again] == ids
    assert [job.delivery for job in again] == [2, 2, 1]
    assert shop.say(ANN, script.done(ids[0], 1, "1", 0)) is Said.STALE


def test_job_that_kills_its_process_three_times_is_delivered_once_more_to_be_buried(shop: Shop) -> None:
    """Whoever gets it then is told; should that process die of it as well, it is buried without another word."""
    id = shop.put()
    for delivery in (1, 2, 3, 4):
        (taken,) = shop.take(ANN)
        assert (taken.delivery, taken.lost) == (delivery, delivery - 1)
        shop.dies(ANN)
        shop.call(CY, script.tick())
        shop.lives(ANN)
    record = shop.look(id)
    assert (record.state, record.kind) == (JobState.DEAD, BuryKind.KILLED)
    assert record.error == '{"error": "Killed: the process that ran it died, 4 times", "traceback": ""}'


def test_attempts_that_fail_and_jobs_handed_back_do_not_count_as_deaths(shop: Shop) -> None:
    """Only deliveries nobody came back from do."""
    id = shop.put()
    for delivery in range(1, 4):
        shop.take(ANN)
        shop.call(ANN, script.retry(id, delivery, 0, "{}"))
    shop.take(ANN)
    shop.dies(ANN)
    assert [job.delivery for job in shop.take(BOB)] == [5]


def test_lease_that_ran_out_is_none(shop: Shop) -> None:
    """It need not have been taken away."""
    id = shop.put()
    shop.lives(ANN, until=shop.now + SECOND)
    shop.take(ANN)
    shop.now += SECOND
    shop.call(CY, script.tick())
    assert shop.look(id).state is JobState.QUEUED


def test_process_that_leaves_gives_its_jobs_back(shop: Shop) -> None:
    """At once, and nothing is counted but the delivery."""
    shop.put()
    shop.take(ANN)
    shop.call(ANN, script.leave())
    job = shop.take(BOB)[0]
    assert (job.delivery, job.attempt, job.backs) == (2, 1, 0)


def test_many_jobs_of_a_dead_process_come_back_in_portions(shop: Shop) -> None:
    """A thousand a call; none is lost."""
    ids = {f"{number:024x}" for number in range(1500)}
    for some in (sorted(ids)[:750], sorted(ids)[750:]):
        shop.call(CY, *(script.put(id, 3, "t", 1000, 0, "", "", "{}") for id in some))
    for _ in range(6):
        shop.take(ANN, 256)
    shop.dies(ANN)
    assert shop.call(CY, script.tick()).ready[3] == 1000
    assert shop.call(CY, script.tick()).ready[3] == 1500
    shop.call(CY, script.purge(JobState.QUEUED, None, None), script.purge(JobState.QUEUED, None, None))
    assert shop.left() == {"j:st"}


def test_process_that_missed_a_reply_asks_what_it_runs(shop: Shop) -> None:
    """In pages; nothing of another process is among it."""
    shop.call(CY, *(script.put(f"{n:024x}", 3, "t", 1000, 0, "", "", "{}") for n in range(300)))
    shop.take(BOB, 10)
    mine = sorted(job.id for _ in range(2) for job in shop.take(ANN, 256))
    first = shop.say(ANN, script.here())
    assert isinstance(first, Here)
    last = shop.say(ANN, script.here(first.deliveries[-1][0]))
    assert isinstance(last, Here)
    assert (first.more, last.more) == (True, False)
    assert [*first.deliveries, *last.deliveries] == [(id, 1) for id in mine]
    assert shop.say(CY, script.here()) == Here([], False)


# ---------------------------------------------------------------------- who is told


def test_one_process_is_woken_for_one_job(shop: Shop) -> None:
    """Whoever asked first, once."""
    shop.call(ANN, script.want((0, 3)))
    shop.call(BOB, script.want((3,)))
    shop.put()
    assert shop.mail(ANN) == [Message("wake", "3")]
    assert shop.mail(BOB) == []
    shop.put()
    assert shop.mail(BOB) == [Message("wake", "3")]
    shop.put()
    assert shop.mail(ANN) == shop.mail(BOB) == []


def test_process_is_woken_only_for_what_it_would_take(shop: Shop) -> None:
    """Its tenants, and those it steals from."""
    shop.call(ANN, script.want((3,), ("x",), ("y",)))
    shop.put(tenant="z")
    assert shop.mail(ANN) == []
    shop.put(tenant="y")
    assert shop.mail(ANN) == [Message("wake", "3")]


def test_process_is_told_at_once_when_something_is_ready(shop: Shop) -> None:
    """In the reply."""
    shop.put()
    reply = shop.call(ANN, script.want((0, 3)))
    assert reply.told == [Message("wake", "3")]
    assert shop.left().isdisjoint({"j:hungry", "j:procs"})


def test_job_that_comes_back_wakes_somebody(shop: Shop) -> None:
    """So does one that gets due, and the end of a pause."""
    id = shop.put()
    shop.take(ANN)
    shop.call(BOB, script.want((3,)))
    shop.dies(ANN)
    shop.call(CY, script.tick())
    assert shop.mail(BOB) == [Message("wake", "3")]
    shop.take(BOB)
    shop.call(BOB, script.retry(id, 2, SECOND, "{}"))
    shop.call(BOB, script.want((3,)))
    shop.now += SECOND
    shop.call(CY, script.tick())
    assert shop.mail(BOB) == [Message("wake", "3")]
    shop.call(CY, script.pause(3))
    assert shop.call(BOB, script.want((3,))).told == []
    shop.call(CY, script.resume(3))
    assert shop.mail(BOB) == [Message("wake", "3")]


def test_dead_process_is_not_woken_instead_of_a_living_one(shop: Shop) -> None:
    """What it wanted is forgotten with its lease."""
    shop.call(ANN, script.want((3,)))
    shop.call(BOB, script.want((3,)))
    shop.dies(ANN)
    shop.put()
    assert shop.mail(ANN) == []
    assert shop.mail(BOB) == [Message("wake", "3")]


@pytest.mark.parametrize("end", ["done", "buried", "cancelled", "killed"])
def test_whoever_watches_is_told_the_end_once(shop: Shop, end: str) -> None:
    """Also who began to watch later."""
    shop.bounds = Bounds(most_deliveries=1)
    id = shop.put(watcher=CY)
    shop.call(BOB, script.look(id, BOB), script.look(id, BOB))
    if end == "cancelled":
        reply = shop.call(CY, script.cancel(id), script.cancel(id))
        assert reply.answers == [Said.DONE, Said.UNKNOWN]
    else:
        shop.take(ANN)
        if end == "killed":
            shop.dies(ANN)
            shop.call(CY, script.tick())
            shop.lives(ANN)
            shop.take(ANN)
            shop.dies(ANN)
        ending = script.done(id, 1, "1", 0) if end == "done" else script.bury(id, 1, BuryKind.FAILED, "{}")
        reply = shop.call(CY if end == "killed" else ANN, script.tick() if end == "killed" else ending)
    assert shop.mail(BOB) == [Message("end", id)]
    assert [*shop.mail(CY), *reply.told] == [Message("end", id)]


def test_cancelling_a_running_job_tells_its_process(shop: Shop) -> None:
    """It decides what becomes of it."""
    id = shop.put()
    shop.take(ANN)
    assert shop.say(CY, script.cancel(id)) is Said.RUNNING
    assert shop.mail(ANN) == [Message("cancel", id)]
    assert shop.look(id).state is JobState.RUNNING


# ---------------------------------------------------------------------- questions


def test_position_counts_jobs_of_the_same_tenant_before_it(shop: Shop) -> None:
    """From 1; those of others, and who runs, do not count."""
    ids = [shop.put() for _ in range(3)]
    shop.put(tenant="u")
    shop.take(ANN)
    assert [shop.look(id).position for id in ids] == [0, 1, 2]
    shop.call(CY, script.cancel(ids[1]))
    assert shop.look(ids[2]).position == 1


def test_listing_pages_through_one_state(shop: Shop) -> None:
    """All of them, once; filters narrow it."""
    ids = [shop.put(tenant="ab"[number % 2]) for number in range(7)]
    shop.put(rank=0, tenant="a")
    found: list[Record] = []
    after = ""
    for _ in range(5):
        page = shop.say(CY, script.ls(JobState.QUEUED, 3, None, after, 2))
        assert isinstance(page, Page)
        found += page.records
        after = page.next
        if not after:
            break
    assert sorted(record.id for record in found) == ids
    page = shop.say(CY, script.ls(JobState.QUEUED, 3, "b", "", 256))
    assert isinstance(page, Page)
    assert [record.id for record in page.records] == ids[1::2]


def test_purge_goes_on_where_it_stopped(shop: Shop) -> None:
    """Also when the first thousand are all of another tenant."""
    for tenant in ("a", "b"):
        puts = [script.put(f"{tenant}{n:023x}", 3, tenant, 1000, SECOND, "", "", "{}") for n in range(1000)]
        shop.call(CY, *puts)
        shop.now += 1
    purge = script.purge(JobState.DELAYED, None, "b")
    assert shop.call(CY, purge, purge, purge).answers == [Count(0, True), Count(1000, True), Count(0, False)]
    assert stats_of(shop).classes[3].delayed == 1000


def test_reply_says_who_waits_in_the_pool(shop: Shop) -> None:
    """Line and lobby; without a pool nobody."""
    assert shop.call(CY, script.tick()).waiting == 0
    shop.client.hset(shop.script.keys[0], "pool", "in_use=1 limit=1 queued=4 lobby=2 running=1 paused=0")
    assert shop.call(CY, script.tick()).waiting == 6


# ---------------------------------------------------------------------- what is kept, and where


def test_nothing_is_left_when_all_is_over(shop: Shop) -> None:
    """Done, buried, cancelled, retried: the numbers of the queue stay, and no more."""
    for number in range(40):
        shop.put(
            tenant=f"t{number % 5}", rank=number % 3, dedup_key=f"k{number}", watcher=CY, delay_us=SECOND * (number % 2)
        )
    shop.now += SECOND
    for rank in range(3):
        for job in shop.take(ANN, 256, rank=rank):
            shop.call(ANN, script.retry(job.id, 1, 0, "{}"))
        for number, job in enumerate(shop.take(ANN, 256, rank=rank)):
            if number % 2:
                shop.call(ANN, script.done(job.id, job.delivery, "1", SECOND))
            else:
                shop.call(ANN, script.bury(job.id, job.delivery, BuryKind.FAILED, "{}"))
    shop.call(ANN, script.want((0, 1, 2)), script.leave())
    shop.now += SECOND
    shop.call(CY, script.purge(JobState.DEAD, None, None))
    assert shop.left() == {"j:st"}
    assert shop.client.hkeys(shop.key("st")) == [b"queue"]


def test_a_class_remembers_the_passes_of_a_thousand_absent_tenants(shop: Shop) -> None:
    """While it is busy; those that are least ahead are forgotten."""
    shop.put(tenant="busy")
    shop.take(ANN)
    for start in range(0, 2000, 500):
        ids = [f"{start + n:024x}" for n in range(1000, 1500)]
        shop.call(CY, *(script.put(id, 3, f"t{id}", 1000, 0, "", "", "{}") for id in ids))
        jobs = [job for _ in range(2) for job in shop.take(ANN, 256)]
        shop.call(ANN, *(script.done(job.id, job.delivery, "1", 0) for job in jobs))
    assert shop.client.zcard(shop.key("debt")) == 1024
    assert shop.client.hlen(shop.key("tag")) == 1025


def test_full_server_refuses_jobs_and_lets_them_end(namespace: str) -> None:
    """What is put is refused whole, before anything is written; reports and takes go through."""
    with valkey() as server, server.client(protocol=2) as client:
        shop = Shop(client, namespace)
        shop.lives(ANN)
        ids = [shop.put() for _ in range(2)]
        shop.take(ANN)
        before = client.hgetall(shop.key("st"))
        client.config_set("maxmemory", 1)
        shop.now += SECOND
        with pytest.raises(redis.exceptions.OutOfMemoryError, match="not allowed"):
            shop.put()
        assert client.hgetall(shop.key("st")) == before
        assert shop.call(ANN, script.done(ids[0], 1, "1", 0), script.take(3, 1)).answers[0] is Said.DONE
        assert shop.look(ids[1]).state is JobState.RUNNING


def test_time_never_goes_back(shop: Shop) -> None:
    """A clock that was set back stands still."""
    shop.put(delay_us=SECOND)
    shop.now -= 3600 * SECOND
    reply = shop.call(CY, script.tick())
    assert reply.now == (shop.now + 3600 * SECOND) / 1e6
    assert reply.next_due == 1.0


def test_server_gives_the_time(shop: Shop) -> None:
    """Whatever the caller's clock says."""
    keys, argv = shop.script.call(Bounds(), CY, [script.tick()])
    seconds, micros = shop.client.time()
    assert shop.script.parse(shop.run(keys, argv)).now >= seconds + micros / 1e6


def test_messages_are_published(shop: Shop) -> None:
    """On the channel of the process, a line each."""
    shop.call(ANN, script.want((3,)))
    with shop.client.pubsub() as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(shop.script.channel(ANN))
        assert channel.get_message(timeout=10.0)
        keys, argv = shop.script.call(
            Bounds(), CY, [script.put("1" * 24, 3, "t", 1000, 0, "", "", "{}")], now_us=shop.now
        )
        shop.run(keys, argv)
        message = channel.get_message(timeout=10.0)
        assert message
        assert shop.script.parse_message(message["data"]) == [Message("wake", "3")]


def test_jobs_live_in_one_slot_of_a_cluster(redis_cluster: Cluster, namespace: str, pool_keys: PoolKeys) -> None:
    """All keys have one hash tag and are declared; messages go by SPUBLISH."""
    jobs = Script(namespace, "p")
    with redis_cluster.client() as client:
        client.zadd(jobs.keys[1], {ANN: 2**52})
        ops = [
            script.put("1" * 24, 3, "t", 1000, 0, "k", CY, "{}"),
            script.take(3, 1),
            script.done("1" * 24, 1, "1", 0),
            script.want((3,)),
            script.leave(),
        ]
        keys, argv = jobs.call(Bounds(), ANN, ops, sharded=True)
        reply = jobs.parse(client.eval(Script.source, len(keys), *keys, *argv))
        assert reply.answers[2:] == [Said.DONE] * 3
        client.delete(*jobs.keys)


def test_processes_that_take_at_once_share_the_jobs(shop: Shop, redis_url: str) -> None:
    """Each job goes to one of them."""
    shop.call(CY, *(script.put(f"{n:024x}", 3, "t", 1000, 0, "", "", "{}") for n in range(300)))
    taken: list[str] = []

    def work(name: str) -> None:
        with redis.Redis.from_url(redis_url, protocol=2) as client:
            mine = Shop(client, "x")
            mine.script, mine.run = shop.script, client.register_script(Script.source)
            for _ in range(50):
                taken.extend(job.id for job in mine.take(name, 4))

    threads = [threading.Thread(target=work, args=(name,)) for name in (ANN, BOB)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 300


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize("reply", [None, [], [1, 2], [0, [], -1, 0, [99], []], [0, [], -1, 0, [[7]], [b"x"]], b"x"])
def test_what_is_no_reply_is_garbled(reply: object) -> None:
    """Never an error of another kind."""
    with pytest.raises(Garbled):
        Script("n", "p").parse(reply)


@pytest.mark.parametrize("message", [b"", b"wake", b"sleep 3", b"end a b", b"x" * 4_000_001])
def test_what_is_no_message_is_garbled(message: bytes) -> None:
    """Nor is a long one looked at."""
    with pytest.raises(Garbled):
        Script("n", "p").parse_message(message)


def test_unknown_operation_is_refused_before_anything_is_done(shop: Shop) -> None:
    """Nothing of the whole call."""
    with pytest.raises(redis.exceptions.ResponseError, match="not an operation on jobs: dance"):
        shop.call(CY, script.put("1" * 24, 3, "t", 1000, 0, "", "", "{}"), ("dance",))
    assert shop.left() == set()


def test_calls_are_checked() -> None:
    """Braces would break the hash tag, and a process has 16 digits."""
    with pytest.raises(ValueError, match="must not contain braces"):
        Script("n{", "p")
    with pytest.raises(ValueError, match="there may be 1000"):
        Script("n", "p").call(Bounds(), ANN, [script.tick()] * 1001)
    with pytest.raises(ValueError, match="must be 16 hex digits"):
        Script("n", "p").call(Bounds(), "x", [script.tick()])


def test_jobs_work_on_each_kind_of_server(any_redis: Server, any_redis_url: str, namespace: str) -> None:
    """One job from end to end."""
    with any_redis.client(protocol=2) as client:
        shop = Shop(client, namespace)
        shop.lives(ANN)
        id = shop.put()
        assert [job.id for job in shop.take(ANN)] == [id]
        assert shop.call(ANN, script.done(id, 1, "1", 0), script.leave()).answers == [Said.DONE, Said.DONE]
        assert shop.left() == {"j:st"}
        shop.clear()
