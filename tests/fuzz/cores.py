"""Random operations on `Core`, side by side with the naive model."""

from __future__ import annotations

import math
from random import Random

from admission.core import Core
from admission.types import BackpressureMode, PriorityClass, Reason
from tests.core.lockstep import Lockstep
from tests.core.model import LINE, LOBBY, RUNNING

TENANTS = ("ann", "bob", "cy", "dee")


def some_rules(random: Random, rank: int) -> PriorityClass:
    """A class with a few rules; times, rates and weights are binary fractions, so that floats are exact."""
    options: dict[str, object] = {}
    chance, pick = random.random, random.choice
    if chance() < 0.3:
        options["guaranteed"] = pick((0.05, 0.2))
    if chance() < 0.3:
        options["ceiling"] = pick((0.5, 0.7))
    if chance() < 0.3:
        options["max_delay"] = pick((0.5, 2))
    if chance() < 0.15:
        options["rate"] = pick((0.5, 2, 4))
        options["burst"] = pick((None, 1, 2))
    if chance() < 0.2:
        options["max_queued"] = pick((1, 2, 3))
    if chance() < 0.2:
        options["weights"] = {"ann": 2.0, "bob": 0.5}
    if chance() < 0.1:
        options["codel_target"] = pick((0.25, 0.5))
        options["codel_interval"] = pick((0.5, None))
    if chance() < 0.05:
        options["exempt"] = True
    return PriorityClass(name=f"c{rank}", **options)  # type: ignore[arg-type]


def some_pool(random: Random, kind: type[Core]) -> Lockstep:
    """A small pool: what goes wrong, goes wrong with few slots and few waiters."""
    pick = random.choice
    return Lockstep(
        limit=pick((1, 2, 3, 4)),
        classes=[some_rules(random, rank) for rank in range(pick((1, 2, 3)))],
        max_queue_size=pick((0, 0, 1, 2, 4)),
        mode=pick(tuple(BackpressureMode)),
        max_lobby_size=pick((0, 2, 100)),
        max_queued_per_tenant=pick((None, None, None, 2)),
        kind=kind,
    )


def interleave(random: Random, kind: type[Core] = Core, steps: int = 16) -> None:
    """One random history of one small pool. Raises AssertionError where core and model differ."""
    pool = some_pool(random, kind)
    for _ in range(steps):
        step(random, pool)
        pool.check()
    pool.check_every_ticket()
    pool.finish()


def step(random: Random, pool: Lockstep) -> None:
    """One random operation."""
    chance, pick = random.random(), random.choice
    ranks = len(pool.core.classes)
    if chance < 0.45:
        rank = random.randrange(ranks)
        slots = 1 if random.random() < 0.8 else pick((2, 3, 6))
        cost = 1 if random.random() < 0.6 else pick((0, 0.5, 2, 5))
        expires = math.inf if random.random() < 0.6 else pool.now + pick((0, 0.25, 0.5, 1, 2))
        expires_as = pick((Reason.TIMEOUT, Reason.DEADLINE))
        hot = expires == math.inf and random.random() < 0.5
        may_wait = hot or random.random() < 0.95
        pool.offer(rank, pick(TENANTS), slots, cost, expires, expires_as, may_wait=may_wait, by_hot_path=hot)
    elif chance < 0.65:
        if running := pool.at(RUNNING):
            pool.release(pick(running), pick((None, None, 0, 1, 3)), by_hot_path=random.random() < 0.5)
    elif chance < 0.78:
        if pairs := pool.at(LINE, LOBBY, RUNNING):
            pool.withdraw(pick(pairs))
    elif chance < 0.90:
        pool.wait(pick((0, 0.25, 0.5, 1, 2)), rings=random.random() < 0.7)
    elif chance < 0.95:
        pool.resize(pick((1, 2, 3, 4, 5)))
    elif chance < 0.995:
        rank = pick((None, *range(ranks)))
        if random.random() < 0.35:
            pool.pause(rank)
        else:
            pool.resume(rank)
    else:
        pool.close()
