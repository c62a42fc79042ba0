"""What the core keeps about one class: its rules' accounts, its line, what it has counted."""

from __future__ import annotations

from admission.line import ClassLine
from admission.policy.fairness import FairQueueing
from admission.policy.forecast import Pace
from admission.policy.shares import Share
from admission.policy.shedding import CoDel
from admission.statistics import ClassStatistics
from admission.types import PriorityClass


class ClassState:
    """One class of a pool. The core alone writes to it."""

    __slots__ = ("codel", "fair", "line", "lobby", "pace", "rank", "rules", "share", "statistics")

    def __init__(self, rules: PriorityClass, rank: int, limit: int, line: ClassLine, lobby: ClassLine) -> None:
        self.rules = rules
        self.rank = rank
        self.line = line
        self.lobby = lobby
        self.share = Share(rules, rank, limit)
        self.fair = FairQueueing(rules.weights)
        self.pace = Pace()
        self.codel = None if rules.codel_target is None else CoDel(rules.codel_target, rules.codel_interval)
        self.statistics = ClassStatistics()

    def at_rest(self) -> bool:
        """Whether nothing of this class waits or runs."""
        return not (self.share.held or self.line.queued or self.lobby.queued)

    def head_slots(self) -> int:
        """Slots the next of this class needs."""
        return self.line.order.first()[2].slots

    def oldest_arrival(self) -> float:
        """When the oldest waiter of this class arrived."""
        return self.line.oldest().arrival
