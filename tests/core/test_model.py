"""`Core` against the naive model: any sequence of operations gives the same decisions in the same order."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from admission.types import BackpressureMode, PriorityClass, Reason
from tests.core.lockstep import Lockstep
from tests.core.model import LINE, LOBBY, RUNNING

# Times, costs, weights and rates are small binary fractions, so that floats are exact in both.
quarters = st.integers(0, 12).map(lambda n: n / 4)
tenants = st.sampled_from(["ann", "bob", "cy"])
costs = st.sampled_from([1, 0, 0.5, 2, 5])


def plain_or(*values: object) -> st.SearchStrategy[dict[str, object]]:
    """Nothing said, or one of these sets of rules."""
    return st.sampled_from([{}, *values])


any_rules = st.builds(
    lambda *parts: {option: value for part in parts for option, value in part.items()},
    plain_or({"guaranteed": 0.05}, {"guaranteed": 0.2}),
    plain_or({"ceiling": 0.5}, {"ceiling": 0.7}),
    plain_or({"max_delay": 0.5}, {"max_delay": 2}),
    plain_or({"rate": 0.5}, {"rate": 2, "burst": 1}, {"rate": 4}, {"exempt": True}),
    plain_or({"max_queued": 1}, {"max_queued": 3}),
    plain_or({"weights": {"ann": 2.0}}, {"weights": {"bob": 4.0, "cy": 0.5}}),
    plain_or({"codel_target": 0.25}, {"codel_target": 0.5, "codel_interval": 0.5}),
)


class CoreMachine(RuleBasedStateMachine):
    """Every rule is one operation, done to both."""

    pool: Lockstep

    @initialize(
        classes=st.lists(any_rules, min_size=1, max_size=4),
        limit=st.integers(1, 5),
        max_queue_size=st.sampled_from([0, 1, 2, 3, 5]),
        mode=st.sampled_from(BackpressureMode),
        max_lobby_size=st.sampled_from([100, 0, 1, 3]),
        per_tenant=st.sampled_from([None, 1, 2]),
    )
    def a_pool(
        self,
        classes: list[dict[str, object]],
        limit: int,
        max_queue_size: int,
        mode: BackpressureMode,
        max_lobby_size: int,
        per_tenant: int | None,
    ) -> None:
        self.pool = Lockstep(
            limit=limit,
            classes=[PriorityClass(name=f"c{rank}", **rules) for rank, rules in enumerate(classes)],  # type: ignore[arg-type]
            max_queue_size=max_queue_size,
            mode=mode,
            max_lobby_size=max_lobby_size,
            max_queued_per_tenant=per_tenant,
        )

    def rank_of(self, rank: int | None) -> int | None:
        return None if rank is None else rank % len(self.pool.core.classes)

    @rule(
        rank=st.integers(0, 3),
        tenant=tenants,
        slots=st.sampled_from([1, 1, 1, 2, 3, 7]),
        cost=costs,
        patience=st.one_of(st.none(), quarters),
        expires_as=st.sampled_from([Reason.TIMEOUT, Reason.DEADLINE]),
        may_wait=st.sampled_from([True, True, True, False]),
    )
    def somebody_comes(
        self,
        rank: int,
        tenant: str,
        slots: int,
        cost: float,
        patience: float | None,
        expires_as: Reason,
        may_wait: bool,
    ) -> None:
        expires = math.inf if patience is None else self.pool.now + patience
        rank %= len(self.pool.core.classes)
        self.pool.offer(rank, tenant, slots, cost, expires, expires_as, may_wait=may_wait)

    @rule(ranks=st.lists(st.integers(0, 3), min_size=1, max_size=8), tenant=tenants, hot=st.booleans())
    def many_come(self, ranks: list[int], tenant: str, hot: bool) -> None:
        for rank in ranks:
            self.pool.offer(rank % len(self.pool.core.classes), tenant, by_hot_path=hot)

    @precondition(lambda self: self.pool.at(RUNNING))
    @rule(which=st.integers(0, 99), actual_cost=st.one_of(st.none(), costs), hot=st.booleans())
    def somebody_ends(self, which: int, actual_cost: float | None, hot: bool) -> None:
        running = self.pool.at(RUNNING)
        self.pool.release(running[which % len(running)], actual_cost, by_hot_path=hot)

    @precondition(lambda self: self.pool.at(LINE, LOBBY))
    @rule(which=st.integers(0, 99))
    def somebody_gives_up(self, which: int) -> None:
        waiting = self.pool.at(LINE, LOBBY)
        self.pool.withdraw(waiting[which % len(waiting)])

    @precondition(lambda self: self.pool.pairs)
    @rule(which=st.integers(0, 99))
    def somebody_gives_up_at_any_time(self, which: int) -> None:
        self.pool.withdraw(self.pool.pairs[which % len(self.pool.pairs)])

    @rule(seconds=quarters, rings=st.booleans())
    def time_passes(self, seconds: float, rings: bool) -> None:
        self.pool.wait(seconds, rings=rings)

    @rule(limit=st.integers(1, 6))
    def the_limit_changes(self, limit: int) -> None:
        self.pool.resize(limit)

    @rule(rank=st.one_of(st.none(), st.integers(0, 3)), ends=st.booleans())
    def a_pause(self, rank: int | None, ends: bool) -> None:
        if ends:
            self.pool.resume(self.rank_of(rank))
        else:
            self.pool.pause(self.rank_of(rank))

    @precondition(lambda self: len(self.pool.pairs) > 20)
    @rule()
    def a_drain(self) -> None:
        self.pool.close()

    @invariant()
    def nothing_differs(self) -> None:
        self.pool.check()

    @invariant()
    def what_people_are_told_makes_sense(self) -> None:
        core, now = self.pool.core, self.pool.now
        for entry, _ in self.pool.at(LINE, LOBBY):
            predicted = core.predicted_wait(entry, now)
            assert predicted is None or predicted >= 0
            assert core.held_back_by(entry, now) != "nothing"

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_every_ticket()
            self.pool.finish()


TestCoreAgreesWithTheModel = CoreMachine.TestCase
TestCoreAgreesWithTheModel.settings = settings(stateful_step_count=20)
