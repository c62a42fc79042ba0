"""`Core`, one rule at a time: what the model says in general, said here in particular."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from admission.core import Core
from admission.line import DONE, LOBBY, REFUSED, RUNNING, WAITING, Entry
from admission.policy.fairness import KEPT_FLOWS
from admission.policy.limit import AimdLimit, FixedLimit
from admission.types import DEFAULT_CLASSES, BackpressureMode, Outcome, PriorityClass, Reason, Sample

HIGH, LOW = 0, 1
TWO = (PriorityClass(name="high"), PriorityClass(name="low"))


def make(limit: int = 1, classes: Sequence[PriorityClass] = TWO, **options: object) -> Core:
    return Core(limit=FixedLimit(limit), classes=classes, **options)  # type: ignore[arg-type]


def come(core: Core, rank: int = HIGH, tenant: str = "", now: float = 0, **options: object) -> Entry:
    return core.offer(now, rank, tenant, **options)[0]  # type: ignore[arg-type]


# ---------------------------------------------------------------------- slots


def test_a_free_slot_is_granted_at_once() -> None:
    """Nobody waits while a slot is free."""
    core = make(limit=2)
    assert [come(core).state for _ in range(3)] == [RUNNING, RUNNING, WAITING]
    assert core.in_use == 2


def test_a_released_slot_is_granted_before_release_returns() -> None:
    """Held at the grant: between release and resumption nobody else can take it."""
    core = make()
    first, second = come(core), come(core)
    decisions = core.release(1, first)
    assert decisions.granted == [second]
    assert second.state is RUNNING
    assert core.in_use == 1
    assert core.try_start(1, HIGH, "", 1, 1) is None


def test_a_second_release_is_an_error_and_frees_nothing() -> None:
    """The core is strict; `Permit` is what makes a second release harmless."""
    core = make()
    entry = come(core)
    core.release(0, entry)
    with pytest.raises(ValueError, match="DONE"):
        core.release(0, entry)
    assert core.in_use == 0


def test_a_cancelled_grantee_passes_its_slot_on() -> None:
    """`withdraw` of a ticket that was granted in the same instant serves the next."""
    core = make()
    first, second, third = come(core), come(core), come(core)
    core.release(0, first)
    assert core.withdraw(0, second).granted == [third]
    assert core.in_use == 1


def test_withdrawing_what_is_over_changes_nothing() -> None:
    """Cancellation may come at any time."""
    core = make()
    entry = come(core)
    core.release(0, entry)
    assert not any(core.withdraw(0, entry))
    assert entry.state is DONE


def test_a_head_that_does_not_fit_stops_everyone_behind_it() -> None:
    """Nothing smaller overtakes a wide ticket, or it would never run."""
    core = make(limit=2)
    running = come(core)
    wide, small, other = come(core, tenant="a", slots=2), come(core, tenant="b"), come(core, LOW)
    assert (wide.state, small.state, other.state) == (WAITING, WAITING, WAITING)
    core.release(0, running)
    assert (wide.state, small.state, other.state) == (RUNNING, WAITING, WAITING)


def test_a_wide_head_is_not_passed_over_because_its_own_class_runs() -> None:
    """A ceiling of 1 is no ceiling: a lower class may not slip past a head that waits for the pool's own limit."""
    core = make(limit=4)
    for _ in range(3):
        come(core)
    wide, low = come(core, slots=2), come(core, LOW)
    assert (wide.state, low.state) == (WAITING, WAITING)
    assert core.held_back_by(wide, 0) == "pool-limit"


def test_a_ticket_wider_than_the_pool_runs_alone() -> None:
    """Otherwise it would wait for ever, or the pool would have to refuse it."""
    core = make(limit=2)
    running, wide = come(core), come(core, slots=5)
    core.release(0, running)
    assert wide.state is RUNNING
    assert come(core).state is WAITING


def test_a_ticket_wider_than_its_class_may_ever_hold_is_refused() -> None:
    """A ceiling is a hard cap."""
    core = make(limit=4, classes=(PriorityClass(name="batch", ceiling=0.5),))
    refused = come(core, slots=3)
    assert (refused.state, refused.reason) == (REFUSED, Reason.TOO_WIDE)
    assert come(core, slots=2).state is RUNNING


def test_an_exempt_class_runs_whatever_the_load_and_is_counted() -> None:
    """Health checks get through a full, paused pool; others do not get their slots."""
    core = make(classes=(PriorityClass(name="probe", exempt=True), PriorityClass(name="low")))
    come(core, LOW)
    core.pause(0)
    assert come(core, HIGH, slots=3).state is RUNNING
    assert core.in_use == 4


def test_resizing_down_takes_nothing_from_who_runs_and_up_serves_at_once() -> None:
    """A lowered limit is reached by attrition, a raised one is used in the same instant."""
    core = make(limit=2)
    first, second, third, fourth = (come(core) for _ in range(4))
    core.resize(0, FixedLimit(1))
    assert not core.release(0, first).granted
    assert core.release(0, second).granted == [third]
    assert core.resize(0, FixedLimit(3)).granted == [fourth]


# ---------------------------------------------------------------------- order


def test_the_higher_class_is_served_first() -> None:
    """Rank decides when nothing bends it."""
    core = make()
    running, low, high = come(core), come(core, LOW), come(core, HIGH)
    assert core.release(0, running).granted == [high]
    assert core.release(0, high).granted == [low]


def test_an_overdue_class_goes_before_every_other() -> None:
    """`max_delay` bounds starvation: whoever waited that long is next, whatever the ranks say."""
    core = make(classes=(PriorityClass(name="high"), PriorityClass(name="low", max_delay=5)))
    running, low = come(core), come(core, LOW)
    come(core, HIGH)
    assert core.release(5, running).granted == [low]


def test_of_several_overdue_classes_the_longest_waiting_goes_first() -> None:
    """Oldest first, not highest first."""
    classes = [PriorityClass(name=name, max_delay=1) for name in ("a", "b")]
    core = make(classes=classes)
    running, old, _ = come(core), come(core, LOW, now=1), come(core, HIGH, now=2)
    assert core.release(9, running).granted == [old]


def test_position_counts_those_before_by_class_then_tag_then_arrival() -> None:
    """1 is next, 0 runs."""
    core = make()
    running = come(core)
    low, second, first = come(core, LOW), come(core, HIGH, "a"), come(core, HIGH, "b")
    assert [core.position(entry) for entry in (running, second, first, low)] == [0, 1, 2, 3]
    assert low.position == 1, "what it was told on arrival does not change"


# ---------------------------------------------------------------------- bounds


def test_a_full_line_rejects() -> None:
    """REJECT mode: nobody in line gives way to an equal."""
    core = make(max_queue_size=1)
    come(core), come(core)
    refused = come(core)
    assert (refused.state, refused.reason, refused.position) == (REFUSED, Reason.QUEUE_FULL, 2)


def test_a_full_line_of_lower_classes_gives_way() -> None:
    """Push-out: the worst of the lowest class goes, in BLOCK mode too."""
    for mode in BackpressureMode:
        core = make(max_queue_size=2, mode=mode)
        come(core)
        kept, worst = come(core, LOW), come(core, LOW)
        high = come(core, HIGH)
        assert (high.state, kept.state, worst.state) == (WAITING, WAITING, REFUSED)
        assert worst.reason is Reason.PRIORITY


def test_the_flooder_loses_its_place_first() -> None:
    """Inside a class a newcomer pushes out the last of a tenant with more waiters than its own."""
    core = make(max_queue_size=3)
    come(core, tenant="flood")
    flood = [come(core, tenant="flood") for _ in range(3)]
    modest = come(core, tenant="modest")
    assert modest.state is WAITING
    assert [entry.state for entry in flood] == [WAITING, WAITING, REFUSED]
    assert flood[-1].reason is Reason.FAIRNESS
    assert come(core, tenant="modest").reason is Reason.QUEUE_FULL, "two against two: nobody has more"


def test_whoever_can_run_at_once_is_not_refused_for_a_full_line() -> None:
    """The line may be full of a class that is held back."""
    core = make(limit=2, max_queue_size=1)
    core.pause(0, LOW)
    come(core, LOW)
    assert come(core, HIGH).state is RUNNING


def test_the_lobby_moves_up_when_there_is_room_in_line() -> None:
    """BLOCK mode: callers wait for room in the line, ordered as the line is."""
    core = make(max_queue_size=1, mode=BackpressureMode.BLOCK, max_lobby_size=2)
    running, waiting = come(core), come(core)
    low, high = come(core, LOW), come(core, HIGH)
    assert (low.state, high.state, come(core).reason) == (LOBBY, LOBBY, Reason.QUEUE_FULL)
    decisions = core.release(0, running)
    assert (decisions.granted, decisions.entered) == ([waiting], [high])
    assert (core.position(high), core.position(low)) == (1, 2)


def test_a_newcomer_does_not_overtake_the_lobby() -> None:
    """Found by the fuzzer: the place it wins by pushing someone out is for whoever of its tenant came before."""
    core = make(max_queue_size=1, mode=BackpressureMode.BLOCK)
    come(core, tenant="flood", cost=5)
    worst, first = come(core, tenant="flood"), come(core, tenant="modest")
    come(core, tenant="flood"), come(core, tenant="flood")
    assert (worst.state, first.state) == (WAITING, LOBBY)
    second, decisions = core.offer(0, HIGH, "modest")
    assert (decisions.evicted, decisions.entered) == ([worst], [first])
    assert (first.state, second.state, second.position) == (WAITING, LOBBY, 2)


def test_a_rejected_newcomer_leaves_its_tenant_as_it_was() -> None:
    """Found by the model: a refused ticket, however dear, must not put the tenant's next one further back."""
    core = make(max_queue_size=2)
    come(core, tenant="b")
    come(core, tenant="a")
    come(core, LOW, tenant="z")
    core.offer(0, HIGH, "a", cost=1000, may_wait=False)
    assert core.offer(0, HIGH, "a", cost=1000, expires=0)[0].reason is Reason.HOPELESS
    again, other = come(core, tenant="a"), come(core, tenant="b", cost=2)
    assert again.start == 1000
    assert (core.position(again), other.state) == (2, REFUSED)


def test_a_tenant_has_no_more_waiters_than_its_own_cap() -> None:
    """Idle clients of one tenant cannot squat in the line."""
    core = make(max_queued_per_tenant=1)
    come(core, tenant="a"), come(core, tenant="a")
    assert come(core, tenant="a").reason is Reason.TENANT_FULL
    assert come(core, tenant="b").state is WAITING


def test_the_hopeless_are_refused_on_arrival() -> None:
    """Who would wait longer than it can is told so at once; without a known rate nobody is."""
    core = make(refuse_hopeless=True)
    running = come(core)
    waiting = [come(core, expires=100) for _ in range(4)]
    for entry in waiting:
        core.release(core_time := entry.number * 10.0, running)
        running = entry
    assert come(core, now=core_time, expires=core_time + 5).reason is Reason.HOPELESS
    assert come(core, now=core_time, expires=core_time + 20).state is WAITING


# ---------------------------------------------------------------------- time


def test_waiting_ends_at_its_time() -> None:
    """`expire` evicts with the reason that was given."""
    core = make()
    come(core)
    waits, until = come(core, expires=2), come(core, expires=3, expires_as=Reason.DEADLINE)
    assert core.next_event(0) == 2
    assert core.expire(3).evicted == [waits, until]
    assert (waits.reason, until.reason) == (Reason.TIMEOUT, Reason.DEADLINE)
    assert core.next_event(3) == math.inf


def test_work_whose_deadline_has_passed_is_never_started() -> None:
    """A blocked event loop fires timers late: the deadline is looked at again when the turn comes."""
    core = make()
    running, late, next_one = come(core), come(core, expires=2), come(core)
    decisions = core.release(5, running)
    assert (decisions.evicted, decisions.granted) == ([late], [next_one])


def test_the_start_rate_lets_go_by_itself() -> None:
    """A class held back by its rate runs when the token comes, without anyone being released."""
    core = make(limit=9, classes=(PriorityClass(name="slow", rate=2, burst=1),))
    assert [come(core).state for _ in range(3)] == [RUNNING, WAITING, WAITING]
    assert core.next_event(0) == 0.5
    assert len(core.expire(0.5).granted) == 1
    assert core.next_event(0.5) == 1.0


def test_a_standing_line_is_shed_by_age() -> None:
    """CoDel: the shortest wait of an interval was above the target, so whoever waits longer than twice that goes."""
    core = make(classes=(PriorityClass(name="c", codel_target=1, codel_interval=5),))
    running, *waiting = (come(core, now=float(n)) for n in range(5))
    core.expire(core.next_event(4))
    assert [entry.state for entry in waiting] == [REFUSED, REFUSED, REFUSED, REFUSED]
    assert {entry.reason for entry in waiting} == {Reason.CODEL}
    assert running.state is RUNNING


def test_codel_never_rings_for_nothing() -> None:
    """At the time it names there is something to do; 50.6 + 1.8 - 50.6 is less than 1.8, and would ring for ever."""
    core = make(classes=(PriorityClass(name="c", codel_target=0.9, codel_interval=0.5),))
    come(core, now=50.6)
    come(core, now=50.6)
    now = 50.6
    for _ in range(10):
        due = core.next_event(now)
        if due == math.inf:
            break
        assert due > now
        core.expire(due)
        now = due
    assert core.line.queued == 0


def test_nothing_is_left_in_the_deadline_heap_of_who_went() -> None:
    """Ten thousand callers that give up leave no tombstones."""
    core = make()
    come(core)
    for _ in range(10_000):
        core.withdraw(0, come(core, expires=1e9))
    assert len(core._deadlines) < 200


# ---------------------------------------------------------------------- steering


def test_a_paused_pool_starts_nothing_and_a_resumed_one_everything() -> None:
    """Newcomers wait meanwhile."""
    core = make(limit=2)
    core.pause(0)
    first, second = come(core), come(core)
    assert core.held_back_by(first, 0) == "paused"
    assert core.resume(0).granted == [first, second]


def test_a_paused_class_holds_nobody_else_back() -> None:
    """Its waiters are passed over."""
    core = make()
    core.pause(0, HIGH)
    high = come(core, HIGH)
    assert come(core, LOW).state is RUNNING
    assert core.held_back_by(high, 0) == "class-paused"


def test_pausing_a_class_lets_go_whom_its_wide_head_held_up() -> None:
    """Found by the fuzzer: a paused class is passed over, and so is its claim to the free slots."""
    core = make(limit=3)
    come(core), come(core)
    wide, low = come(core, slots=2), come(core, LOW)
    assert core.pause(0, HIGH).granted == [low]
    assert wide.state is WAITING


def test_closing_evicts_who_waits_and_refuses_newcomers() -> None:
    """Running work goes on."""
    core = make(max_queue_size=1, mode=BackpressureMode.BLOCK)
    running, waiting, parked = come(core), come(core), come(core)
    assert core.close(0).evicted == [waiting, parked]
    assert waiting.reason is Reason.EVICTED_DRAINING
    assert come(core).reason is Reason.DRAINING
    assert running.state is RUNNING


# ---------------------------------------------------------------------- learning


class Scripted:
    """A limit that follows orders."""

    def __init__(self) -> None:
        self.slots = 2
        self.samples: list[Sample] = []

    def observe(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.slots += 1


def test_a_limit_learns_from_each_release_and_what_it_learns_is_used_at_once() -> None:
    """Time in line is not counted; a given rtt goes before the whole time."""
    limit = Scripted()
    core = Core(limit=limit, classes=TWO)
    first = core.try_start(0, HIGH, "", 1, 1)
    second, third, fourth = come(core), come(core), come(core)
    assert first is not None
    decisions = core.release(3, first, Outcome.DROPPED)
    assert decisions.granted == [third, fourth]
    assert core.limit == 3
    core.release(4, second, rtt=0.25)
    assert limit.samples == [
        Sample(rtt=3, in_flight=1, outcome=Outcome.DROPPED, now=3),
        Sample(rtt=0.25, in_flight=2, outcome=Outcome.SUCCESS, now=4),
    ]


def test_a_limit_that_begins_to_learn_ignores_what_ran_before() -> None:
    """A fixed limit notes no load; replacing it under running work must not fail their release."""
    core = make(limit=1)
    running = core.try_start(0, HIGH, "", 1, 1)
    waiting = come(core)
    assert running is not None
    core.resize(0, AimdLimit(initial=1))
    assert core.release(1, running).granted == [waiting]


# ---------------------------------------------------------------------- state


def test_tenants_that_are_gone_are_forgotten() -> None:
    """A million tenants leave nothing: neither those that ran nor those that were refused or gave up."""
    core = make(classes=DEFAULT_CLASSES, max_queue_size=1)
    for number in range(5_000):
        running = come(core, rank=2, tenant=f"runs {number}")
        waiting = come(core, rank=2, tenant=f"gives up {number}")
        come(core, rank=2, tenant=f"is refused {number}")
        core.withdraw(0, waiting)
        core.release(0, running)
    assert len(core.classes[2].fair.flows) <= KEPT_FLOWS + 1


def test_a_class_that_never_rests_forgets_too() -> None:
    """One long job keeps the busy period open: debts of absent tenants are bounded all the same."""
    core = make(limit=2)
    come(core, tenant="long")
    for number in range(5_000):
        core.release(0, come(core, tenant=f"t{number}", cost=number))
    assert len(core.classes[HIGH].fair.flows) < 3_000
