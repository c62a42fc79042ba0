"""What was made of who asks: looked up for every request, worked out once by `classify`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the middleware needs to know about one request."""

    rank: int
    tenant: str
    cost: float | None = None
    slots: int = 1
    max_wait: float | None = None
    """Seconds; None is the class's setting."""
    retry: bool = False
    """An SDK sends it again."""
    expects_continue: bool = False
    """The client holds its upload back until it gets `100 Continue`."""
    plain: bool = field(init=False)
    """Nothing of the above asks for a closer look."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", not (self.retry or self.expects_continue))


@dataclass(frozen=True, slots=True)
class PathRule:
    """What the path alone says: a rank (None: nothing), cost, slots, max_wait. Remembers what fields mean here."""

    rank: int | None = None
    tenant: str | None = None
    cost: float | None = None
    slots: int = 1
    max_wait: float | None = None
    known: dict[tuple[bytes, ...], Verdict] = field(default_factory=dict, repr=False)
