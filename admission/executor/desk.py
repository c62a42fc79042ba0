"""What the tasks of one executor have in common, and what one of them was given."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from admission.controller import AdmissionController
from admission.executor.loops import WorkLoop
from admission.executor.status import Tally
from admission.policy.retry import Retry
from admission.types import UNSET, Unset

if TYPE_CHECKING:
    from admission.executor.assignment import Assignment
    from admission.executor.handle import TaskStatus

logger = logging.getLogger("admission.executor")

Place = tuple[int, str, int, float | None]
"""Rank, tenant, slots and cost (None: as slots) of a task."""


@dataclass(slots=True)
class Options:
    """What `submit` was given beside the task and its place in line."""

    timeout: float | None = None
    max_wait: float | Unset | None = UNSET
    deadline: float | None = None
    retry: Retry | None = None
    metadata: Mapping[str, object] | None = None
    on_success: Callable[..., object] | None = None
    on_failure: Callable[[BaseException], object] | None = None
    on_timeout: Callable[[], object] | None = None


class Crew(Protocol):
    """The workers, as an assignment sees them."""

    def push(self, assignment: Assignment[Any]) -> None:
        """Let a worker begin it; it holds its permit."""


class Worker(Protocol):
    """The worker that runs an assignment."""

    def interrupt(self) -> None:
        """Cancel the running coroutine where it waits."""


@dataclass(slots=True, kw_only=True)
class Desk:
    """What all assignments of an executor share."""

    controller: AdmissionController
    loop: WorkLoop
    crew: Crew
    tally: Tally
    actual_cost: Callable[..., float] | None
    threads_later: bool
    """A task that finds no free thread gives its slot back and returns later."""
    call_back: Callable[..., None]
    bury: Callable[[Assignment[Any], TaskStatus, BaseException], None]
    """Keep a task that failed for good as a dead letter."""
    open: set[Assignment[Any]]
    """Every task whose slot or fate is still open."""
    emptied: Callable[[], None]
    """Called when `open` becomes empty."""

    def cost_of(self, result: object) -> float | None:
        """What *result* really cost; None when the estimate stands."""
        if self.actual_cost is None:
            return None
        try:
            cost = float(self.actual_cost(result))
            if 0 <= cost < math.inf:
                return cost
            raise ValueError(f"actual_cost returned {cost!r}: it must be a number, at least 0")
        except Exception:
            self.tally.callback_errors += 1
            logger.exception("the actual cost of a task is unknown; the estimate stands")
            return None
