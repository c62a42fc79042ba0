"""What only a shared pool has: owners, leases, fences, resync, holds, messages, rules that travel, keys that vanish."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from admission.backends.redis import script
from admission.backends.redis.script import Decision, Garbled, Kind, Look, Page, Place, Script, SharedRules
from admission.types import BackpressureMode, PriorityClass, Reason
from tests.redis.pools import ANN, BOB, CY, LEASE, SharedPool, offer, rules_of
from tests.redis.servers import Cluster, Server, valkey


@pytest.fixture
def client(any_redis: Server) -> Iterator[redis.Redis]:
    """A connection to each kind of server in turn."""
    with any_redis.client(protocol=2) as client:
        yield client


@pytest.fixture
def pool(client: redis.Redis, any_redis_url: str, namespace: str) -> Iterator[SharedPool]:
    """Two slots; Ann and Bob have leases, Cy is a stranger. Consistent afterwards, and empty once all have left."""
    pool = SharedPool(client, namespace)
    pool.beats(ANN, BOB)
    yield pool
    pool.check()
    pool.leave(ANN, BOB, CY)
    pool.check()


def decided(id: str, kind: Kind, reason: Reason | None = None) -> Decision:
    """What `Decision`s are compared by here."""
    return Decision(id, kind, reason)


def plain(decisions: list[Decision]) -> list[Decision]:
    """Without what `decided` does not say."""
    return [decided(each.id, each.kind, each.reason) for each in decisions]


class TestWhoIsTold:
    """Answers go to whoever called, decisions about other tickets to their processes."""

    def test_newcomer_with_a_free_slot_runs_at_once(self, pool: SharedPool) -> None:
        """The answer says so, with a fence and the slots in use."""
        answer = pool.ask(ANN, offer(f"{ANN}:1"))
        assert answer.kind is Kind.GRANTED
        assert answer.in_use == 1
        assert answer.fence[1] == 1

    def test_newcomer_with_no_free_slot_waits_at_its_position(self, pool: SharedPool) -> None:
        """Lower classes stand behind."""
        pool.call(ANN, offer(f"{ANN}:1"), offer(f"{ANN}:2"), offer(f"{ANN}:3", rank=3))
        assert pool.ask(BOB, offer(f"{BOB}:4")).position == 1
        assert pool.ask(BOB, script.position(f"{ANN}:3")).position == 2

    def test_grant_to_another_process_is_published_to_it_alone(self, pool: SharedPool) -> None:
        """The releasing process is not told."""
        first = pool.call(ANN, offer(f"{ANN}:1"), offer(f"{ANN}:2"), offer(f"{ANN}:3")).answers[0]
        pool.call(BOB, offer(f"{BOB}:4", rank=0))
        assert isinstance(first, Decision)
        assert first.fence is not None
        assert not pool.call(ANN, script.release(f"{ANN}:1", first.fence)).told
        assert plain(pool.mail(BOB)) == [decided(f"{BOB}:4", Kind.GRANTED)]
        assert not pool.mail(ANN)

    def test_grant_to_another_ticket_of_the_caller_is_in_the_reply(self, pool: SharedPool) -> None:
        """No message to oneself."""
        answers = pool.call(ANN, offer(f"{ANN}:1"), offer(f"{ANN}:2"), offer(f"{ANN}:3")).answers
        assert isinstance(answers[0], Decision)
        assert answers[0].fence is not None
        reply = pool.call(ANN, script.release(f"{ANN}:1", answers[0].fence))
        assert plain(list(reply.told)) == [decided(f"{ANN}:3", Kind.GRANTED)]
        assert not pool.mail(ANN)

    def test_one_call_sends_each_process_one_message(self, pool: SharedPool) -> None:
        """However many of its tickets it is about."""
        pool.call(ANN, offer(f"{ANN}:1", slots=2), script.pause(None))
        pool.call(BOB, *(offer(f"{BOB}:{n}") for n in range(2, 6)))
        pool.call(CY, *(offer(f"{CY}:{n}") for n in range(6, 8)))
        pool.call(ANN, script.withdraw(f"{ANN}:1", Reason.CANCELLED), script.resize(9), script.resume(None))
        assert pool.client.llen(pool.script.channel(BOB)) == 1
        assert pool.client.llen(pool.script.channel(CY)) == 1
        assert [each.id for each in pool.mail(BOB)] == [f"{BOB}:{n}" for n in range(2, 6)]

    def test_message_goes_out_on_the_channel_of_the_process(self, client: redis.Redis, pool: SharedPool) -> None:
        """By PUBLISH, as whoever subscribed hears it."""
        pool.call(BOB, offer(f"{BOB}:1", slots=2), offer(f"{BOB}:2"))
        channel = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        with channel:
            channel.subscribe(pool.script.channel(BOB))
            channel.get_message(timeout=5)
            keys, arguments = pool.script.call(
                pool.shared, ANN, [script.withdraw(f"{BOB}:1", Reason.CANCELLED)], now_us=pool.now
            )
            client.eval(Script.source, len(keys), *keys, *arguments)
            message = channel.get_message(timeout=5)
        assert message is not None
        assert plain(pool.script.parse_message(message["data"])) == [
            decided(f"{BOB}:1", Kind.GONE),
            decided(f"{BOB}:2", Kind.GRANTED),
        ]

    def test_pushed_out_waiter_hears_why_and_what_a_newcomer_would_wait(
        self, client: redis.Redis, any_redis_url: str, namespace: str
    ) -> None:
        """Its process needs both for the refusal."""
        pool = SharedPool(client, namespace, limit=1, rules=rules_of(max_queue_size=1))
        pool.beats(ANN, BOB)
        pool.call(ANN, offer(f"{ANN}:1"))
        pool.call(BOB, offer(f"{BOB}:2", rank=3))
        pool.now += 1000
        pool.call(ANN, offer(f"{ANN}:3"))
        (decision,) = pool.mail(BOB)
        assert (decision.kind, decision.reason) == (Kind.REFUSED, Reason.PRIORITY)
        pool.leave(ANN, BOB)

    def test_waiter_that_moves_up_from_the_lobby_hears_of_it(
        self, client: redis.Redis, any_redis_url: str, namespace: str
    ) -> None:
        """ENTERED: it waits in line now."""
        rules = rules_of(max_queue_size=1, mode=BackpressureMode.BLOCK)
        pool = SharedPool(client, namespace, limit=1, rules=rules)
        pool.beats(ANN, BOB)
        pool.call(ANN, offer(f"{ANN}:1"), offer(f"{ANN}:2"))
        assert pool.ask(BOB, offer(f"{BOB}:3")).kind is Kind.LOBBY
        pool.check()
        pool.call(ANN, script.withdraw(f"{ANN}:2", Reason.DISCONNECT))
        assert plain(pool.mail(BOB)) == [decided(f"{BOB}:3", Kind.ENTERED)]
        pool.leave(ANN, BOB)


class TestDoneTwice:
    """A reply may be lost: every operation may come again."""

    def test_offer_of_a_running_ticket_answers_its_grant(self, pool: SharedPool) -> None:
        """The same fence, and no second slot."""
        first, second = (pool.ask(ANN, offer(f"{ANN}:1")) for _ in range(2))
        assert first.fence == second.fence
        assert pool.check().pool["in_use"] == 1

    def test_offer_of_a_waiting_ticket_answers_its_place(self, pool: SharedPool) -> None:
        """It keeps the place it has."""
        pool.call(ANN, *(offer(f"{ANN}:{n}") for n in range(1, 5)))
        assert pool.ask(ANN, offer(f"{ANN}:4")).position == 2
        assert pool.check().pool["queued"] == 2

    def test_second_release_finds_nothing_to_release(self, pool: SharedPool) -> None:
        """GONE; the slots are counted once."""
        fence = pool.ask(ANN, offer(f"{ANN}:1")).fence
        release = script.release(f"{ANN}:1", fence)
        assert [pool.ask(ANN, release).kind for _ in range(2)] == [Kind.DONE, Kind.GONE]
        assert pool.check().pool["in_use"] == 0

    def test_ticket_withdrawn_and_offered_again_in_one_call_is_a_newcomer(self, pool: SharedPool) -> None:
        """Wherever it was before."""
        pool.call(ANN, *(offer(f"{ANN}:{n}", patience=5_000) for n in range(1, 4)))
        for id in (f"{ANN}:1", f"{ANN}:3"):
            reply = pool.call(ANN, script.withdraw(id, Reason.CANCELLED), offer(id))
            assert [answer.kind for answer in reply.answers if isinstance(answer, Decision)] == [
                Kind.DONE,
                Kind.WAITING,
            ]
            pool.check()

    def test_offer_and_release_twice_in_one_call_count_once(self, pool: SharedPool) -> None:
        """Also before anything was written."""
        reply = pool.call(ANN, offer(f"{ANN}:1"), offer(f"{ANN}:1"))
        assert reply.answers[0] == reply.answers[1]
        assert pool.check().pool["in_use"] == 1

    def test_withdrawal_of_a_stranger_does_nothing(self, pool: SharedPool) -> None:
        """GONE: an offer that never arrived may be withdrawn."""
        assert pool.ask(ANN, script.withdraw(f"{ANN}:9", Reason.CANCELLED)).kind is Kind.GONE
        assert pool.ask(ANN, script.position(f"{ANN}:9")).kind is Kind.GONE


class TestFences:
    """A grant is named by (epoch, number)."""

    def test_release_with_the_fence_of_another_grant_is_refused(self, pool: SharedPool) -> None:
        """STALE: the slots stay with whoever has them now."""
        epoch, number = pool.ask(ANN, offer(f"{ANN}:1")).fence
        assert pool.ask(ANN, script.release(f"{ANN}:1", (epoch, number + 7))).kind is Kind.STALE
        assert pool.ask(ANN, script.release(f"{ANN}:1", (epoch - 1, number))).kind is Kind.STALE
        assert pool.check().pool["in_use"] == 1

    def test_later_grants_have_greater_fences(self, pool: SharedPool) -> None:
        """Whoever got them."""
        fences = [pool.ask(ANN, offer(f"{ANN}:1")).fence, pool.ask(BOB, offer(f"{BOB}:2")).fence]
        pool.call(ANN, offer(f"{ANN}:3"))
        fences.append(pool.call(ANN, script.release(f"{ANN}:1", fences[0])).told[0].fence)
        assert fences == sorted(set(fences))

    def test_process_that_saw_a_later_fence_begins_a_new_epoch(self, pool: SharedPool) -> None:
        """The server has lost grants: it must not issue their fences again, and asks who holds what."""
        before = pool.call(ANN, offer(f"{ANN}:1"))
        reply = pool.call(ANN, offer(f"{ANN}:2"), seen=(before.epoch, before.fence + 1))
        assert reply.resync
        assert reply.epoch > before.epoch
        answer = reply.answers[0]
        assert isinstance(answer, Decision)
        assert answer.fence is not None
        assert answer.fence > (before.epoch, before.fence + 1)

    def test_everyone_who_saw_the_old_epoch_is_asked_to_resync(self, pool: SharedPool) -> None:
        """Once: whoever has seen the new one is not asked."""
        before = pool.call(ANN, offer(f"{ANN}:1"))
        after = pool.call(ANN, seen=(before.epoch, before.fence + 1))
        assert pool.call(BOB, seen=(before.epoch, before.fence)).resync
        assert not pool.call(BOB, seen=(after.epoch, after.fence)).resync

    def test_release_with_a_fence_from_the_future_begins_a_new_epoch(self, pool: SharedPool) -> None:
        """It proves the loss as well."""
        reply = pool.call(ANN, offer(f"{ANN}:1"))
        later = pool.call(ANN, script.release(f"{ANN}:9", (reply.epoch, reply.fence + 5)))
        assert later.epoch > reply.epoch

    def test_fence_of_an_old_epoch_still_releases_its_grant(self, pool: SharedPool) -> None:
        """The grant was never lost."""
        reply = pool.call(ANN, offer(f"{ANN}:1"))
        fence = (reply.epoch, reply.fence)
        pool.call(BOB, seen=(reply.epoch, reply.fence + 3))
        assert pool.ask(ANN, script.release(f"{ANN}:1", fence)).kind is Kind.DONE


class TestLeases:
    """One lease per process."""

    def test_slots_of_a_process_whose_lease_ran_out_go_to_others(self, pool: SharedPool) -> None:
        """With the next call of anyone."""
        pool.call(ANN, offer(f"{ANN}:1"), offer(f"{ANN}:2"))
        pool.now += LEASE // 2
        pool.beats(BOB)
        assert pool.ask(BOB, offer(f"{BOB}:3")).kind is Kind.WAITING
        pool.now += LEASE // 2 + 1
        reply = pool.call(BOB)
        assert plain(list(reply.told)) == [decided(f"{BOB}:3", Kind.GRANTED)]
        assert plain(pool.mail(ANN)) == [decided(f"{ANN}:1", Kind.GONE), decided(f"{ANN}:2", Kind.GONE)]
        assert pool.check().ids("running") == {f"{BOB}:3"}

    def test_waiters_of_a_process_whose_lease_ran_out_leave(self, pool: SharedPool) -> None:
        """The next one in line is not kept waiting by them."""
        pool.call(BOB, offer(f"{BOB}:1", slots=2))
        pool.call(ANN, offer(f"{ANN}:2", rank=0), offer(f"{ANN}:3", rank=0, patience=10**9))
        pool.now += LEASE // 2
        pool.beats(BOB)
        pool.now += LEASE // 2 + 1
        pool.call(BOB)
        assert plain(pool.mail(ANN)) == [
            decided(f"{ANN}:2", Kind.REFUSED, Reason.DISCONNECT),
            decided(f"{ANN}:3", Kind.REFUSED, Reason.DISCONNECT),
        ]
        assert pool.check().ids("line") == set()

    def test_process_that_renews_keeps_what_it_has(self, pool: SharedPool) -> None:
        """For as long as it does."""
        pool.call(ANN, offer(f"{ANN}:1"))
        for _ in range(5):
            pool.now += LEASE - 1
            pool.beats(ANN, BOB)
        assert pool.check().ids("running") == {f"{ANN}:1"}

    def test_late_beat_saves_what_nobody_has_taken_yet(self, pool: SharedPool) -> None:
        """Nobody was there to reap it."""
        pool.call(ANN, offer(f"{ANN}:1"))
        pool.now += 3 * LEASE
        pool.beats(ANN)
        assert pool.check().ids("running") == {f"{ANN}:1"}

    def test_nothing_is_granted_to_a_process_whose_lease_ran_out_in_between(self, pool: SharedPool) -> None:
        """It is passed over in the very call that frees the slots, even if the reaper has not come to it."""
        others = [f"{number:016x}" for number in range(10)]
        pool.call(BOB, offer(f"{BOB}:1", slots=2))
        for other in others:
            pool.beats(other)
            pool.call(other, offer(f"{other}:1"))
        pool.now += LEASE // 2
        pool.beats(BOB)
        pool.call(BOB, offer(f"{BOB}:2"))
        pool.now += LEASE // 2 + 1
        told = pool.call(BOB, script.withdraw(f"{BOB}:1", Reason.CANCELLED)).told
        assert plain(list(told)) == [decided(f"{BOB}:2", Kind.GRANTED)]
        pool.call(BOB)
        pool.call(BOB)
        assert pool.check().ids("line", "running") == {f"{BOB}:2"}
        pool.leave(*others)

    def test_many_tickets_of_a_dead_process_are_reaped_in_portions(self, pool: SharedPool) -> None:
        """No call is held up by all of them; a few calls later none is left."""
        pool.call(ANN, script.resize(1000), *(offer(f"{ANN}:{n:x}") for n in range(600)))
        pool.now += LEASE + 1
        pool.beats(BOB)
        left = len(pool.check().ids("running"))
        assert 0 < left < 600
        for _ in range(4):
            pool.call(BOB)
            pool.check()
        assert not pool.check().tickets

    def test_whoever_asks_for_slots_before_its_first_beat_gets_a_lease(self, pool: SharedPool) -> None:
        """Nothing is ever held by a process nobody watches."""
        pool.call(CY, offer(f"{CY}:1"))
        pool.check()
        pool.now += 16_000_000
        pool.beats(BOB)
        assert not pool.check().ids("running")

    def test_process_that_was_taken_for_dead_is_asked_to_resync(self, pool: SharedPool) -> None:
        """It hears of it with its next call."""
        seen = pool.call(ANN, offer(f"{ANN}:1"))
        pool.now += LEASE + 1
        pool.beats(BOB)
        assert pool.call(ANN, seen=(seen.epoch, seen.fence)).resync

    def test_goodbye_gives_everything_back_at_once(self, pool: SharedPool) -> None:
        """And tells the others."""
        pool.call(ANN, offer(f"{ANN}:1", slots=2), offer(f"{ANN}:2"))
        pool.call(BOB, offer(f"{BOB}:3"))
        assert pool.ask(ANN, script.leave()).kind is Kind.DONE
        assert plain(pool.mail(BOB)) == [decided(f"{BOB}:3", Kind.GRANTED)]
        assert pool.check().ids("running", "line") == {f"{BOB}:3"}

    def test_long_goodbye_says_that_there_is_more(self, pool: SharedPool) -> None:
        """It is repeated until it is done."""
        for start in (0, 600):
            pool.call(ANN, *(offer(f"{ANN}:{n:x}") for n in range(start, start + 600)))
        kinds = [pool.ask(ANN, script.leave()).kind for _ in range(2)]
        assert kinds == [Kind.MORE, Kind.DONE]
        assert not pool.check().tickets


class TestResync:
    """The pool and a process compare what the process has."""

    def test_equal_digests_need_no_resync(self, pool: SharedPool) -> None:
        """Waiters and runners are both in it."""
        pool.call(ANN, *(offer(f"{ANN}:{n:x}f0a1") for n in range(1, 5)))
        digest = script.digest(
            [f"{ANN}:3f0a1", f"{ANN}:4f0a1"],
            [f"{ANN}:1f0a1", f"{ANN}:2f0a1"],
        )
        assert not pool.call(ANN, script.beat(LEASE, digest)).resync

    @pytest.mark.parametrize(
        ("waiting", "running"),
        [("34", "1"), ("4", "12"), ("3", "124"), ("345", "12"), ("", "1234"), ("", "")],
        ids=["lost runner", "lost waiter", "unheard grant", "unknown waiter", "all granted", "nothing"],
    )
    def test_different_digest_asks_for_a_resync(self, pool: SharedPool, waiting: str, running: str) -> None:
        """Also when only the state of one ticket differs."""
        pool.call(ANN, *(offer(f"{ANN}:{n}") for n in range(1, 5)))
        digest = script.digest([f"{ANN}:{n}" for n in waiting], [f"{ANN}:{n}" for n in running])
        assert pool.call(ANN, script.beat(LEASE, digest)).resync

    def test_beat_without_a_digest_compares_nothing(self, pool: SharedPool) -> None:
        """The thread that renews the lease knows no tickets."""
        pool.call(ANN, offer(f"{ANN}:1"))
        assert not pool.call(ANN, script.beat(LEASE, None)).resync

    def test_tickets_of_a_process_are_listed_in_pages(self, pool: SharedPool) -> None:
        """Its own, and no one else's."""
        pool.call(BOB, offer(f"{BOB}:1"))
        ids = {f"{ANN}:{n:x}" for n in range(1200)}
        for start in (0, 600):
            pool.call(ANN, *(offer(f"{ANN}:{n:x}") for n in range(start, start + 600)))
        first = pool.ask(ANN, script.mine())
        assert isinstance(first, Page)
        second = pool.ask(ANN, script.mine(first.next))
        assert {*first.ids, *second.ids} == ids
        assert len(first.ids) == 1000
        assert second.next == ""
        while pool.ask(ANN, script.leave()).kind is Kind.MORE:
            pool.check()

    def test_listing_all_corrects_the_counts_of_the_process(self, pool: SharedPool) -> None:
        """Or it would be asked to resync for ever."""
        pool.call(ANN, offer(f"{ANN}:1"), offer(f"{ANN}:2", slots=3))
        pool.client.hset(pool.key("proc"), ANN, "7 7 7 7 7")
        pool.ask(ANN, script.mine())
        assert not pool.call(ANN, script.beat(LEASE, script.digest([f"{ANN}:2"], [f"{ANN}:1"]))).resync


class TestHold:
    """What a process really holds counts, whatever the pool believes."""

    def test_lost_permit_counts_again_even_above_the_limit(self, pool: SharedPool) -> None:
        """It runs: not counting it would not stop it."""
        pool.call(BOB, offer(f"{BOB}:1"), offer(f"{BOB}:2"))
        answer = pool.ask(ANN, script.hold(f"{ANN}:9", (1, 1), 2, "t", 3, 1000))
        assert answer.kind is Kind.GRANTED
        assert pool.check().pool["in_use"] == 5

    def test_nothing_is_granted_until_the_excess_has_drained(self, pool: SharedPool) -> None:
        """Releases first only bring the pool back to its limit."""
        held = [pool.ask(ANN, script.hold(f"{ANN}:{n}", (1, n), 2, "t", 1, 1000)).fence for n in range(4)]
        assert pool.ask(BOB, offer(f"{BOB}:9")).kind is Kind.WAITING
        for number, fence in enumerate(held[:2]):
            pool.call(ANN, script.release(f"{ANN}:{number}", fence))
            assert not pool.mail(BOB)
        pool.call(ANN, script.release(f"{ANN}:2", held[2]))
        assert plain(pool.mail(BOB)) == [decided(f"{BOB}:9", Kind.GRANTED)]

    def test_hold_of_what_the_pool_knows_to_run_changes_nothing(self, pool: SharedPool) -> None:
        """It answers the fence the pool has."""
        fence = pool.ask(ANN, offer(f"{ANN}:1")).fence
        assert pool.ask(ANN, script.hold(f"{ANN}:1", fence, 2, "t", 1, 1000)).fence == fence
        assert pool.check().pool["in_use"] == 1

    def test_hold_of_what_the_pool_believes_to_wait_takes_it_out_of_line(self, pool: SharedPool) -> None:
        """Its grant was lost in a failover."""
        pool.call(ANN, offer(f"{ANN}:1", slots=2), offer(f"{ANN}:2", patience=5_000))
        assert pool.ask(ANN, script.hold(f"{ANN}:2", (1, 5), 2, "t", 1, 1000)).kind is Kind.GRANTED
        found = pool.check()
        assert found.ids("running") == {f"{ANN}:1", f"{ANN}:2"}
        assert found.pool["in_use"] == 3

    def test_held_ticket_gets_a_fence_of_its_own(self, pool: SharedPool) -> None:
        """The old one may name another's grant by now."""
        fence = pool.ask(ANN, offer(f"{ANN}:1")).fence
        pool.now += LEASE + 1
        pool.beats(BOB)
        renewed = pool.ask(ANN, script.hold(f"{ANN}:1", fence, 2, "t", 1, 1000)).fence
        assert renewed > fence
        assert pool.ask(ANN, script.release(f"{ANN}:1", fence)).kind is Kind.STALE
        assert pool.ask(ANN, script.release(f"{ANN}:1", renewed)).kind is Kind.DONE

    def test_what_a_process_let_in_by_itself_may_be_held(self, pool: SharedPool) -> None:
        """It never had a fence."""
        assert pool.ask(ANN, script.hold(f"{ANN}:1", None, 2, "t", 1, 1000)).kind is Kind.GRANTED

    def test_release_of_what_the_pool_believes_to_wait_takes_it_out_of_line(self, pool: SharedPool) -> None:
        """Its grant was lost, and the work is over by now."""
        pool.call(ANN, offer(f"{ANN}:1", slots=2), offer(f"{ANN}:2"))
        assert pool.ask(ANN, script.release(f"{ANN}:2", (10**7, 3))).kind is Kind.DONE
        assert pool.check().ids("line", "running") == {f"{ANN}:1"}

    def test_held_tickets_use_no_tokens_of_the_start_rate(
        self, client: redis.Redis, any_redis_url: str, namespace: str
    ) -> None:
        """They started before: a failover must not shut the class for as long as they would take."""
        rules = rules_of(classes=[PriorityClass(name="c", rate=1, burst=2)])
        pool = SharedPool(client, namespace, limit=50, rules=rules)
        pool.call(ANN, *(script.hold(f"{ANN}:{n:x}", (1, n), 0, "t", 1, 1000) for n in range(30)))
        assert pool.ask(ANN, offer(f"{ANN}:ff", rank=0)).kind is Kind.GRANTED
        pool.leave(ANN)


class TestRules:
    """They travel with every call, under a version."""

    def test_newer_rules_hold_for_everyone(self, pool: SharedPool) -> None:
        """Whoever still has the old ones obeys, and can see it."""
        newer = SharedRules(rules_of(max_queue_size=1), limit=1, version=2)
        pool.call(ANN, rules=newer)
        reply = pool.call(BOB, *(offer(f"{BOB}:{n}") for n in range(3)))
        assert [answer.kind for answer in reply.answers if isinstance(answer, Decision)] == [
            Kind.GRANTED,
            Kind.WAITING,
            Kind.REFUSED,
        ]
        assert (reply.version, reply.limit) == (2, 1)

    def test_older_rules_do_not_come_back(self, pool: SharedPool) -> None:
        """Also not with an offer."""
        pool.call(ANN, script.resize(5), rules=SharedRules(rules_of(), limit=1, version=9))
        assert pool.call(BOB, offer(f"{BOB}:1")).limit == 5

    def test_server_that_has_lost_everything_works_with_the_next_call(self, pool: SharedPool) -> None:
        """As a promoted empty replica must. The process that knew more is asked to say what it holds."""
        before = pool.call(ANN, offer(f"{ANN}:1"))
        pool.client.delete(*pool.script.keys)
        pool.now += 5
        reply = pool.call(ANN, offer(f"{ANN}:2"), seen=(before.epoch, before.fence))
        assert reply.resync
        assert reply.epoch > before.epoch
        assert (
            pool.ask(ANN, script.hold(f"{ANN}:1", (before.epoch, before.fence), 2, "t", 1, 1000)).kind is Kind.GRANTED
        )
        assert pool.check().pool["in_use"] == 2

    def test_class_only_an_older_process_knows_is_served_last_and_plainly(self, pool: SharedPool) -> None:
        """Until it is empty."""
        pool.call(ANN, rules=SharedRules(rules_of(classes=[PriorityClass(name="only")]), limit=1, version=5))
        answers = pool.call(
            ANN, offer(f"{ANN}:1", rank=3), offer(f"{ANN}:2", rank=3), offer(f"{ANN}:3", rank=0)
        ).answers
        assert [answer.position for answer in answers if isinstance(answer, Decision)] == [0, 1, 1]

    def test_class_that_begins_to_ask_for_its_oldest_serves_those_who_wait_already(self, pool: SharedPool) -> None:
        """They were not kept by age; nothing is left behind when they go."""
        pool.call(ANN, *(offer(f"{ANN}:{n}", rank=3) for n in range(1, 6)))
        plain_rules = SharedRules(rules_of(classes=[PriorityClass(name=f"c{n}") for n in range(4)]), limit=2, version=2)
        pool.call(ANN, *(offer(f"{ANN}:{n}", rank=3) for n in range(6, 8)), rules=plain_rules)
        aged = [PriorityClass(name=f"c{n}", codel_target=0.001, max_delay=0.0) for n in range(4)]
        pool.now += 1_000_000
        pool.call(ANN, rules=SharedRules(rules_of(classes=aged), limit=4, version=3))
        pool.check()

    @pytest.mark.parametrize(
        ("limit", "version", "message"),
        [(0, 1, "limit is 0"), (1, 0, "version is 0"), (1, 2**53, "version is 9007199254740992")],
    )
    def test_rules_outside_their_range_are_refused(self, limit: int, version: int, message: str) -> None:
        """The error names the option and its value."""
        with pytest.raises(ValueError, match=message):
            SharedRules(rules_of(), limit=limit, version=version)


class TestAudit:
    """Slots in use change only together with an entry; beats count again, a portion at a time."""

    def test_sound_pool_is_left_alone(self, pool: SharedPool) -> None:
        """Nothing is repaired."""
        pool.call(ANN, offer(f"{ANN}:1"), offer(f"{ANN}:2"), offer(f"{ANN}:3"))
        assert pool.call(ANN, script.beat(LEASE, None)).repaired == 0

    def test_slots_nobody_holds_are_found_and_freed(self, pool: SharedPool) -> None:
        """The next in line runs with the call after."""
        pool.call(ANN, offer(f"{ANN}:1", slots=2))
        pool.call(BOB, offer(f"{BOB}:2"))
        pool.client.hdel(pool.key("d"), f"{ANN}:1")
        assert pool.call(ANN, script.beat(LEASE, None)).repaired == 2
        pool.call(ANN)
        assert plain(pool.mail(BOB)) == [decided(f"{BOB}:2", Kind.GRANTED)]
        pool.client.delete(pool.key("f"))
        pool.ask(ANN, script.mine())
        pool.ask(BOB, script.leave())
        pool.beats(ANN)

    def test_large_pool_is_recounted_over_several_beats(self, pool: SharedPool) -> None:
        """What changes meanwhile, before or behind the walk, is no error."""
        pool.call(ANN, script.resize(2000), *(offer(f"{ANN}:{n:x}", slots=1 + n % 3) for n in range(400)))
        pool.call(BOB, *(offer(f"{BOB}:{n:x}", slots=2) for n in range(400)))
        assert pool.call(ANN, script.beat(LEASE, None)).repaired == 0
        assert pool.client.hexists(pool.key("st"), "audit")
        gone = [*range(0, 100), *range(390, 400)]
        pool.call(ANN, *(script.withdraw(f"{ANN}:{n:x}", Reason.CANCELLED) for n in gone))
        pool.call(BOB, *(script.withdraw(f"{BOB}:{n:x}", Reason.CANCELLED) for n in gone))
        pool.call(ANN, *(offer(f"{ANN}:{n:x}", slots=2) for n in (0, 5, 0xFFF)))
        assert [pool.call(ANN, script.beat(LEASE, None)).repaired for _ in range(2)] == [0, 0]
        assert not pool.client.hexists(pool.key("st"), "audit")
        pool.check()

    def test_large_pool_that_has_lost_slots_is_repaired(self, pool: SharedPool) -> None:
        """By as many as were lost."""
        pool.call(ANN, script.resize(2000), *(offer(f"{ANN}:{n:x}") for n in range(400)))
        pool.client.hdel(pool.key("d"), *(f"{ANN}:{n:x}" for n in range(10, 30)))
        assert sum(pool.call(ANN, script.beat(LEASE, None)).repaired for _ in range(3)) == 20
        pool.ask(ANN, script.mine())
        assert pool.contents().pool["in_use"] == 380
        pool.ask(ANN, script.leave())
        pool.beats(BOB)

    @pytest.mark.parametrize("name", ["st", "d", "own", "lease", "proc", "w", "old", "due", "f", "debt"])
    def test_pool_survives_the_loss_of_any_key(self, pool: SharedPool, name: str) -> None:
        """An eviction policy may take one: the pool answers on, and is sound again once all have left."""
        pool.call(
            ANN,
            offer(f"{ANN}:1"),
            *(offer(f"{ANN}:{n}", rank=3 - n % 2, patience=10**8, tenant=str(n)) for n in range(2, 9)),
        )
        reply = pool.call(BOB, *(offer(f"{BOB}:{n}", rank=3, tenant=str(n)) for n in range(8)))
        pool.client.delete(pool.key(name))
        seen = (reply.epoch, reply.fence)
        for process in (BOB, ANN) * 2:
            pool.now += 31_000_000  # Everyone in the last class is overdue.
            pool.call(process, script.beat(LEASE * 10, None), seen=seen)
            pool.call(process, offer(f"{process}:a"), offer(f"{process}:b", may_wait=False), script.look(), seen=seen)
            pool.call(process, script.withdraw(f"{process}:a", Reason.CANCELLED), script.mine(), seen=seen)
        for process in (ANN, BOB):
            pool.ask(process, script.leave())
        pool.beats(CY)
        assert not pool.check().tickets


class TestKeys:
    """What is kept is bounded by who waits, runs and lives; and vanishes by itself."""

    def test_every_key_has_a_time_to_live(self, pool: SharedPool) -> None:
        """An abandoned pool is gone after a day; `check` looks at all keys there are."""
        rules = [PriorityClass(name=f"c{n}", max_delay=5) for n in range(4)]
        newer = SharedRules(rules_of(classes=rules), limit=2, version=2)
        for n in range(1, 5):
            pool.call(CY, offer(f"{CY}:{n}", patience=10_000, tenant=f"t{n}"), rules=newer)
            pool.check()
        pool.call(CY, script.withdraw(f"{CY}:1", Reason.CANCELLED), rules=newer)
        pool.check()

    def test_nothing_of_tickets_and_tenants_is_left_when_all_have_ended(self, pool: SharedPool) -> None:
        """Only the pool's own counters and the processes with their leases."""
        for n in range(40):
            pool.call(ANN, offer(f"{ANN}:{n:x}", tenant=f"t{n}", patience=5_000))
        pool.call(ANN, *(script.withdraw(f"{ANN}:{n:x}", Reason.CANCELLED) for n in range(40)))
        left = {key.rpartition("}")[2] for key in pool.script.keys if pool.client.exists(key)}
        assert left == {"st", "lease", "proc"}

    def test_debts_of_absent_tenants_are_bounded(self, pool: SharedPool) -> None:
        """A client with many names fills no memory, and the largest debts are remembered longest."""
        pool.call(ANN, offer(f"{ANN}:0", tenant="steady"))
        for start in range(1, 2000, 200):
            numbers = range(start, start + 200)
            replies = pool.call(ANN, *(offer(f"{ANN}:{n:x}", tenant=f"t{n}", charge=n * 1000) for n in numbers)).answers
            assert len(replies) == 200
            pool.call(ANN, script.resize(1000))
            fences = [pool.ask(ANN, offer(f"{ANN}:{n:x}")).fence for n in numbers]
            pool.call(ANN, *(script.release(f"{ANN}:{n:x}", f) for n, f in zip(numbers, fences, strict=True)))
            pool.check()
        assert 512 <= pool.client.zcard(pool.key("debt")) <= 1024
        assert pool.client.hexists(pool.key("f"), "2:t2000")
        assert not pool.client.hexists(pool.key("f"), "2:t1")

    def test_waiters_that_give_up_leave_no_deadline_behind(self, pool: SharedPool) -> None:
        """A starved class full of leavers keeps no memory."""
        pool.call(ANN, offer(f"{ANN}:0", slots=2))
        for n in range(1, 50):
            pool.call(ANN, offer(f"{ANN}:{n:x}", patience=10**9))
            pool.call(ANN, script.withdraw(f"{ANN}:{n:x}", Reason.CANCELLED))
        assert not pool.client.exists(pool.key("due"))

    def test_names_with_braces_are_refused(self) -> None:
        """They would break the cluster's hash tag."""
        with pytest.raises(ValueError, match="must not contain braces"):
            Script("name}space", "pool")

    def test_all_keys_of_a_pool_are_in_one_slot(self, redis_cluster: Cluster, namespace: str) -> None:
        """On a cluster a call reaches one node, and messages go by SPUBLISH."""
        this = Script(namespace, "pool")
        slots = {redis_cluster.nodes[0].ask("CLUSTER", "KEYSLOT", key) for key in (*this.keys, this.channel(ANN))}
        assert len(slots) == 1
        shared = SharedRules(rules_of(), limit=1, version=1)
        node = redis_cluster.node_of(this.keys[0])
        with node.client(protocol=2) as client:

            def call(process: str, *ops: script.Op) -> script.Reply:
                keys, arguments = this.call(shared, process, ops, sharded=True)
                return this.parse(client.eval(this.source, len(keys), *keys, *arguments))

            call(BOB, script.beat(LEASE, None), offer(f"{BOB}:1"), offer(f"{BOB}:2"))
            call(ANN, script.withdraw(f"{BOB}:1", Reason.CANCELLED))
            answer = call(BOB, script.position(f"{BOB}:2"), script.leave()).answers[0]
            assert answer == Place(0, 0.0, "nothing", 2, "t", None)
            client.delete(this.keys[0])


class TestMemory:
    """What a server without free memory still does."""

    def test_full_server_refuses_newcomers_and_takes_slots_back(self) -> None:
        """Whole calls: what is refused has changed nothing; releases and leases need no memory."""
        with valkey(maxmemory="3mb") as server, server.client(protocol=2) as client:
            pool = SharedPool(client, "full")
            pool.beats(ANN)
            fence = pool.ask(ANN, offer(f"{ANN}:1")).fence
            before = pool.check()
            _fill(client)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                pool.call(ANN, offer(f"{ANN}:2"))
            assert pool.check() == before
            assert pool.ask(ANN, script.beat(LEASE, None)).kind is Kind.DONE
            assert pool.ask(ANN, script.release(f"{ANN}:1", fence)).kind is Kind.DONE
            assert pool.check().pool["in_use"] == 0


def _fill(client: redis.Redis) -> None:
    for number in range(10_000):
        try:
            client.set(f"filler{number}", b"x" * 1000)
        except redis.exceptions.OutOfMemoryError:
            return
    raise AssertionError("10 MB fit into 3")


class TestLook:
    """The whole pool, for people and metrics."""

    def test_look_shows_classes_tenants_and_processes(self, pool: SharedPool) -> None:
        """As they stand at the end of the call."""
        pool.call(ANN, offer(f"{ANN}:1", tenant="acme", slots=2))
        pool.call(BOB, offer(f"{BOB}:2", tenant="acme"), offer(f"{BOB}:3", tenant="zeta"), offer(f"{BOB}:4", rank=0))
        pool.now += 2_000_000
        look = pool.call(ANN, script.look(2), script.pause(3)).answers[0]
        assert isinstance(look, Look)
        assert [(each.in_use, each.running, each.queued) for each in look.classes] == [
            (0, 0, 1),
            (0, 0, 0),
            (2, 1, 2),
            (0, 0, 0),
        ]
        assert look.classes[3].paused
        assert look.classes[2].oldest_wait == 2.0
        assert [each.held_back_by for each in look.classes] == ["pool-limit", None, "higher-class", None]
        assert [(each.tenant, each.running, each.queued) for each in look.tenants] == [("acme", 1, 1), ("t", 0, 1)]
        assert look.tenants_active == 3
        assert [(each.process, each.slots, each.waiting, each.lease_left) for each in look.processes] == [
            (ANN, 2, 0, 8.0),
            (BOB, 0, 3, 8.0),
        ]
        assert not look.paused
        assert not look.closed

    def test_eldest_process_is_the_one_that_joined_first(self, pool: SharedPool) -> None:
        """And stays so while it renews."""
        pool.now += 10
        pool.beats(CY)
        pool.beats(ANN)
        look = pool.ask(BOB, script.look())
        joined = {each.process: each.joined for each in look.processes}
        assert joined[ANN] == joined[BOB] < joined[CY]


class TestTime:
    """One clock, which never goes back."""

    def test_clock_that_is_set_back_stands_still(self, pool: SharedPool) -> None:
        """Nothing that has waited gets younger."""
        before = pool.call(ANN).now
        pool.now -= 500_000
        assert pool.call(ANN).now == before

    def test_server_clock_is_used_unless_one_is_given(
        self, client: redis.Redis, namespace: str, any_redis: Server
    ) -> None:
        """Microseconds of TIME."""
        pool = SharedPool(client, namespace)
        keys, arguments = pool.script.call(pool.shared, ANN, [script.leave()])
        said = client.time()
        reply = pool.script.parse(client.eval(Script.source, len(keys), *keys, *arguments))
        assert reply.now >= said[0] + said[1] / 1e6

    def test_reply_says_when_time_alone_decides_something(self, pool: SharedPool) -> None:
        """The earliest deadline, in seconds from now."""
        pool.call(ANN, offer(f"{ANN}:1", slots=2))
        assert pool.call(ANN, offer(f"{ANN}:2", patience=3_000_000)).next_event == 3.0
        assert pool.call(ANN, offer(f"{ANN}:3", patience=1_500_000)).next_event == 1.5
        pool.now += 1_500_000
        reply = pool.call(BOB)
        assert plain(pool.mail(ANN)) == [decided(f"{ANN}:3", Kind.REFUSED, Reason.TIMEOUT)]
        assert reply.next_event == 1.5


class TestWords:
    """What is no word of the script is refused on both sides."""

    def test_unknown_operation_is_an_error_and_changes_nothing(self, pool: SharedPool) -> None:
        """Also behind good ones."""
        with pytest.raises(redis.exceptions.ResponseError, match="not an operation of a pool: bogus"):
            pool.call(ANN, offer(f"{ANN}:1"), ("bogus", 1))
        with pytest.raises(redis.exceptions.ResponseError, match="not an operation of a pool"):
            pool.call(ANN, offer(f"{ANN}:1"), ("release", f"{ANN}:1"))
        assert not pool.check().tickets

    @pytest.mark.parametrize("tenant", ["", " ", "a b", "x=y", "new\nline", "2:t", "ünï", "\0", "%d", "never"])
    def test_tenant_may_be_any_text(self, pool: SharedPool, tenant: str) -> None:
        """It is one word of its own, and the last of a record."""
        pool.call(ANN, *(offer(f"{ANN}:{n}", tenant=tenant, rank=3) for n in range(4)))
        look = pool.ask(ANN, script.look())
        assert [(each.tenant, each.running, each.queued) for each in look.tenants] == [(tenant, 2, 2)]
        pool.call(ANN, *(script.withdraw(f"{ANN}:{n}", Reason.CANCELLED) for n in range(4)))
        assert not pool.check().tickets

    @pytest.mark.parametrize("reply", [None, 1, [], [1, 2], [0] * 13, [*[0] * 11, [b"?"], []], [*[0] * 11, [], [b"?"]]])
    def test_what_is_no_reply_is_said_to_be_garbled(self, reply: object) -> None:
        """Instead of an error from deep inside."""
        with pytest.raises(Garbled, match="no reply of the pool's script"):
            Script("n", "p").parse(reply)

    @pytest.mark.parametrize("message", [b"", b"1", b"9 x", b"1 id 2", b"5 id because 1", b"1 id a b c", b"4 \xff"])
    def test_what_is_no_message_is_said_to_be_garbled(self, message: bytes) -> None:
        """Anyone who may publish can send one."""
        with pytest.raises(Garbled):
            Script("n", "p").parse_message(message)

    def test_too_long_a_message_is_not_looked_at(self) -> None:
        """A thousand decisions are far shorter."""
        with pytest.raises(Garbled, match="4000001 bytes"):
            Script("n", "p").parse_message(b"x" * 4_000_001)

    def test_too_many_operations_are_refused(self) -> None:
        """The script blocks its server meanwhile."""
        shared = SharedRules(rules_of(), limit=1, version=1)
        with pytest.raises(ValueError, match="1001 operations in one call"):
            Script("n", "p").call(shared, ANN, [script.look()] * 1001)
        with pytest.raises(ValueError, match="16 hex digits"):
            Script("n", "p").call(shared, "short", [])
