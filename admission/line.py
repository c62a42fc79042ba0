"""The waiting line: classes and tenants, ordered by class rank, then start tag, then arrival.

One `ClassLine` holds the waiters of one class. Adding, removing, the next, the worst and the position of any
ticket each take O(log n): a `RankedList` of (start tag, arrival number). Nothing is left behind by a waiter that goes:
a starved class full of cancelled waiters would otherwise never be cleaned.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, Protocol

from admission.policy.fairness import Flow
from admission.ranked import RankedList
from admission.types import PriorityClass, Reason


class State(IntEnum):
    """Where a ticket is."""

    LOBBY = 0
    WAITING = 1
    RUNNING = 2
    DONE = 3
    """Ran and gave its slots back."""
    REFUSED = 4
    """Rejected or evicted; `Entry.reason` says which and why."""
    ASKED = 5
    """On its way to a pool that is kept elsewhere and has not answered yet; never in this process's own."""


class Waiter(Protocol):
    """Whoever wants to hear what becomes of an entry. The core carries it and never calls it."""

    def entered(self, entry: Entry) -> None:
        """The entry moved from the lobby into the line."""

    def decided(self, entry: Entry) -> None:
        """The entry runs now or is refused; called exactly once, must be quick and must not raise."""


# Bound to names: reading a member off its enum costs more than all else that is done with it.
LOBBY: Final[State] = State.LOBBY
WAITING: Final[State] = State.WAITING
RUNNING: Final[State] = State.RUNNING
DONE: Final[State] = State.DONE
REFUSED: Final[State] = State.REFUSED
ASKED: Final[State] = State.ASKED

WAITS: Final = (ASKED, WAITING, LOBBY)
"""Nothing is decided yet."""


class Entry:
    """A ticket as the pool keeps it while it waits and runs; `Ticket` is its frozen picture.

    The core alone writes to it, but for `waiter`, `outer` and `id`, which belong to the driver. What a ticket
    that ran at once never needs is set only when it has to wait: the hot path is short.
    """

    __slots__ = (
        "arrival",
        "charge",
        "correction",
        "cost",
        "expires",
        "expires_as",
        "flow",
        "granted_at",
        "id",
        "in_flight",
        "number",
        "outer",
        "pool",
        "position",
        "predicted",
        "rank",
        "reason",
        "slots",
        "start",
        "state",
        "timed",
        "waiter",
    )

    rank: int
    flow: Flow
    slots: int
    cost: float
    charge: int
    """What the tenant was charged, in tag units."""
    state: State
    arrival: float
    granted_at: float
    """Monotonic seconds; means nothing before the grant."""
    in_flight: int
    """Slots in use just after the grant."""
    position: int
    """On arrival; 0 means it ran at once."""

    id: str | None
    """Given when someone asks for it."""
    pool: object
    """Whose entry this is: the controller."""
    outer: Entry | None
    """The entry that was held around this one, in another pool."""

    number: int
    """Arrival number: breaks ties between start tags."""
    start: int
    """Start tag."""
    expires: float
    """Monotonic seconds at which it stops waiting."""
    expires_as: Reason
    timed: bool
    """Whether it stands in the core's deadline heap."""
    predicted: float | None
    """Seconds it was told it would wait, on arrival; None while no rate was known."""
    correction: float
    """The forecast's correction that was in it; 0.0 when it was another class's pace."""
    waiter: Waiter | None
    reason: Reason
    """Why it was refused."""

    @property
    def tenant(self) -> str:
        """Whose ticket it is."""
        return self.flow.tenant


class ClassLine:
    """The waiters of one class, in order of service; `Line` adds and removes.

    Args:
        by_age: Keep them by arrival as well: the oldest waiter need not be the next one. Only classes whose
            rules ask for the oldest need it.
    """

    __slots__ = ("arrivals", "order", "queued")

    def __init__(self, *, by_age: bool) -> None:
        self.order: RankedList[tuple[int, int, Entry]] = RankedList()
        # Ordered by number, not by entry: what moves up from the lobby may be older than what is in line already.
        self.arrivals: RankedList[tuple[int, Entry]] | None = RankedList() if by_age else None
        self.queued = 0
        """How many wait here."""

    def head(self) -> Entry:
        """Who is next. Raises IndexError on an empty line."""
        return self.order.first()[2]

    def worst(self) -> Entry:
        """Who would be last. Raises IndexError on an empty line."""
        return self.order.last()[2]

    def oldest(self) -> Entry:
        """Who has waited longest; O(n) unless kept by age. Raises IndexError or ValueError on an empty line."""
        if self.arrivals is not None:
            return self.arrivals.first()[1]
        return min(self.entries(), key=lambda entry: entry.number)

    def before(self, entry: Entry) -> int:
        """How many of this class stand before *entry*, which need not be in line."""
        return self.order.rank((entry.start, entry.number))

    def entries(self) -> list[Entry]:
        """All waiters in order of service: O(n), for people who look."""
        return [entry for _, _, entry in self.order]


class Line:
    """The waiters of all classes."""

    __slots__ = ("classes", "queued")

    def __init__(self, rules: Sequence[PriorityClass]) -> None:
        self.classes = tuple(ClassLine(by_age=c.max_delay is not None or c.codel_target is not None) for c in rules)
        self.queued = 0
        """How many wait, over all classes."""

    def add(self, entry: Entry) -> None:
        """Let *entry* wait."""
        line = self.classes[entry.rank]
        line.order.add((entry.start, entry.number, entry))
        if line.arrivals is not None:
            line.arrivals.add((entry.number, entry))
        line.queued += 1
        self.queued += 1

    def remove(self, entry: Entry) -> None:
        """Take *entry* out. Raises KeyError when it is not here."""
        line = self.classes[entry.rank]
        line.order.remove((entry.start, entry.number, entry))
        if line.arrivals is not None:
            line.arrivals.remove((entry.number, entry))
        line.queued -= 1
        self.queued -= 1

    def worst(self) -> Entry:
        """The waiter of the lowest class with the largest start tag. Raises IndexError on an empty line."""
        for line in reversed(self.classes):
            if line.queued:
                return line.worst()
        raise IndexError("nobody waits")

    def before(self, entry: Entry) -> tuple[int, int]:
        """The tickets before *entry*: of its own class by start tag, then arrival, and of the classes above it."""
        rank = entry.rank
        above = 0
        for line in self.classes[:rank]:
            above += line.queued
        return self.classes[rank].before(entry), above

    def entries(self) -> list[Entry]:
        """All waiters by class rank, then start tag, then arrival: O(n)."""
        return [entry for line in self.classes for entry in line.entries()]
