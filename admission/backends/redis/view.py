"""The shared pool as this process last heard of it: from every reply a little, from a look all of it."""

from __future__ import annotations

from admission.backends.base import PoolRules
from admission.backends.redis.claims import Claims
from admission.backends.redis.script import Answer, ClassLook, Look, ProcessLook, Reply
from admission.policy.shares import Share
from admission.types import ClassSnapshot, LinkSnapshot, ProcessSnapshot, Snapshot, TenantSnapshot


class View:
    """What is known. Nothing here asks."""

    def __init__(self, rules: PoolRules) -> None:
        self._rules = rules
        self.limit = rules.limit.slots
        self.in_use = 0
        self.queued = 0
        """In line and lobby."""
        self._lobby = 0
        self._look: Look | None = None
        # Two calls may be under way, so a reply may come after a later one. By epoch and time of the pool's clock:
        self._said = self._latest = self._looked = (0, 0.0)
        """Of the reply at hand, of the latest there was, and of the latest that brought a look."""
        self._newcomer_waits: list[float | None] = [None] * len(rules.classes)

    @property
    def processes(self) -> int:
        """How many share the pool, at least 1."""
        return 1 if self._look is None else max(1, len(self._look.processes))

    @property
    def elected(self) -> str | None:
        """The process whose adaptive limit holds for all: the eldest."""
        return None if self._look is None else _eldest(self._look.processes)

    @property
    def paused(self) -> list[int | None]:
        """What is paused: classes by rank, None for the whole pool."""
        if self._look is None:
            return []
        whole: list[int | None] = [None] if self._look.paused else []
        known = self._look.classes[: len(self._rules.classes)]
        return whole + [rank for rank, found in enumerate(known) if found.paused]

    def heard(self, reply: Reply) -> None:
        """Every reply says a little, before its answers are told."""
        self._said = (reply.epoch, reply.now)
        if self._said < self._latest:
            return
        self._latest = self._said
        self.limit = reply.limit
        self.in_use = reply.in_use
        self.queued = reply.queued + reply.lobby
        self._lobby = reply.lobby

    def heard_wait(self, rank: int, predicted: float | None) -> None:
        """A refusal says what a newcomer of that class would wait."""
        self._newcomer_waits[rank] = predicted

    def looked(self, answer: Answer) -> None:
        """The answer to a look."""
        assert isinstance(answer, Look)
        if self._said < self._looked:
            return
        self._looked = self._said
        self._look = answer
        for rank, found in enumerate(answer.classes[: len(self._newcomer_waits)]):
            self._newcomer_waits[rank] = found.predicted_wait

    def newcomer_wait(self, rank: int) -> float | None:
        """Seconds a newcomer of this class would wait; None while no rate is known."""
        return self._newcomer_waits[rank]

    def snapshot(
        self,
        name: str,
        process: str,
        claims: Claims,
        *,
        limit: int,
        in_flight: int,
        queued: int,
        top_tenants: int,
        draining: bool,
        link: LinkSnapshot | None,
    ) -> Snapshot:
        """The pool as known, with what *process* has counted of its own *claims*."""
        look, rules = self._look, self._rules
        names = [rules.name for rules in self._rules.classes]
        tenants = () if look is None else look.tenants
        return Snapshot(
            pool=name,
            mode=rules.mode,
            limit=limit,
            in_flight=in_flight,
            queued=queued - self._lobby,
            lobby=self._lobby,
            max_queue_size=rules.max_queue_size,
            paused=look is not None and look.paused,
            draining=draining,
            drain_rate=None if look is None else look.drain_rate,
            classes=tuple(self._class_snapshot(rank, claims) for rank in range(len(rules.classes))),
            tenants=tuple(
                TenantSnapshot(
                    tenant=found.tenant, priority=names[found.rank], running=found.running, queued=found.queued
                )
                for found in tenants[:top_tenants]
                if found.rank < len(names)
            ),
            tenants_active=0 if look is None else look.tenants_active,
            processes=() if look is None else tuple(_processes(look.processes, process)),
            link=link,
        )

    def _class_snapshot(self, rank: int, claims: Claims) -> ClassSnapshot:
        rules = self._rules.classes[rank]
        look = self._class_look(rank)
        running, waiting = claims.running[rank], claims.waiting[rank]
        return ClassSnapshot(
            name=rules.name,
            rank=rank,
            rules=rules,
            in_flight=look.in_use,
            running=look.running,
            queued=look.queued,
            lobby=look.lobby,
            slot_cap=look.cap,
            paused=look.paused,
            credit=look.credit,
            oldest_wait=look.oldest_wait,
            predicted_wait=self._newcomer_waits[rank],
            held_back_by=look.held_back_by,
            **claims.statistics[rank].totals(running=running, waiting=waiting),
        )

    def _class_look(self, rank: int) -> ClassLook:
        if self._look is not None and rank < len(self._look.classes):
            return self._look.classes[rank]
        return ClassLook(
            in_use=0,
            running=0,
            queued=0,
            lobby=0,
            cap=Share(self._rules.classes[rank], rank, self.limit).cap,
            paused=False,
            credit=0.0,
            oldest_wait=0.0,
            predicted_wait=None,
            held_back_by=None,
        )


def _eldest(processes: tuple[ProcessLook, ...]) -> str | None:
    alive = [found for found in processes if found.lease_left > 0]
    return min(alive, key=lambda found: (found.joined, found.process)).process if alive else None


def _processes(processes: tuple[ProcessLook, ...], own: str) -> list[ProcessSnapshot]:
    elected = _eldest(processes)
    return [
        ProcessSnapshot(
            process=found.process,
            slots=found.slots,
            waiting=found.waiting,
            lease_left=found.lease_left,
            elected=found.process == elected,
            own=found.process == own,
        )
        for found in processes
    ]
