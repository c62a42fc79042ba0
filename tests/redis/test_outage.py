"""The pool of one process during an outage: its share counts everything that runs here, wherever it was granted."""

from __future__ import annotations

import pytest

from admission.backends.base import PoolRules
from admission.backends.redis.claims import Claim
from admission.backends.redis.outage import Standby
from admission.line import RUNNING, WAITING, Entry
from admission.policy.fairness import Flow
from admission.policy.limit import FixedLimit
from admission.types import BackpressureMode, Outcome, PriorityClass, Reason
from admission.waker import running_loop

pytestmark = pytest.mark.anyio

RULES = PoolRules(
    name="default",
    limit=FixedLimit(8),
    classes=(PriorityClass(name="normal"),),
    max_queue_size=10,
    mode=BackpressureMode.REJECT,
    max_lobby_size=0,
    max_queued_per_tenant=None,
    refuse_hopeless=False,
)


class Alone:
    """A pool of two slots, and claims on it."""

    def __init__(self) -> None:
        self.granted: list[str] = []
        self.standby = Standby(RULES, 2, running_loop(), None, self.decided, self.entered)
        self._claims = 0

    def claim(self) -> Claim:
        """One that waits in the shared pool, or holds slots of it."""
        self._claims += 1
        entry = Entry()
        entry.rank, entry.flow, entry.slots, entry.cost = 0, Flow("", 1.0), 1, 1
        entry.expires, entry.expires_as = float("inf"), Reason.TIMEOUT
        return Claim(f"{self._claims}", entry, may_wait=True)

    def waits(self) -> Claim:
        """One that waits here, or runs if there is room."""
        claim = self.claim()
        self.standby.take(0.0, claim)
        return claim

    def ends(self, claim: Claim) -> None:
        """It gives its slot back."""
        self.standby.release(0.0, claim, Outcome.SUCCESS, None)

    def entered(self, claim: Claim) -> None:
        """There is no lobby."""
        raise AssertionError(claim)

    def decided(self, claim: Claim) -> None:
        """A waiter was told."""
        assert claim.inner is not None
        assert claim.inner.state is RUNNING
        self.granted.append(claim.id)


async def test_shared_permits_take_up_the_share_first() -> None:
    """Three go on where there is room for two: the first newcomer runs when two have ended."""
    alone = Alone()
    held = [alone.claim() for _ in range(3)]
    alone.standby.holds(0.0, held)
    newcomer = alone.waits()
    alone.ends(held[0])
    assert not alone.granted
    alone.ends(held[1])
    assert alone.granted == [newcomer.id]


async def test_a_grant_heard_of_late_ends_the_wait_here() -> None:
    """The shared pool had granted it before the outage: it runs on that pool's slot, and its end is that slot's."""
    alone = Alone()
    first, second, late = alone.waits(), alone.waits(), alone.waits()
    assert late.inner is not None
    assert late.inner.state is WAITING
    alone.standby.passes(0.0, late)
    assert late.inner is None
    alone.ends(late)
    waiter = alone.waits()
    alone.ends(first)
    assert alone.granted == [waiter.id]
    alone.ends(second)


async def test_a_grant_heard_of_late_takes_the_next_room_there_is() -> None:
    """It made three run where two may: whoever waits goes on waiting until two of them have ended."""
    alone = Alone()
    first, second, late, waiter = alone.waits(), alone.waits(), alone.waits(), alone.waits()
    alone.standby.passes(0.0, late)
    alone.ends(first)
    assert not alone.granted
    alone.ends(second)
    assert alone.granted == [waiter.id]
    alone.ends(late)
    alone.ends(waiter)
