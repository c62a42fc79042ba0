"""What an application may have called when its worker starts, stops, or has run a job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

from admission.jobs.run import CurrentJob

__all__ = ["Hooks"]

logger = logging.getLogger("admission.jobs")

P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Plain functions, called on the event loop; they must be quick. What one raises is logged, and changes nothing.

    Args:
        on_start, on_stop: Of the worker.
        on_task_success: Given the job and the seconds it ran.
        on_task_failure: Given the job, the error, the seconds, and whether there is no other attempt.
    """

    on_start: Callable[[], object] | None = None
    on_stop: Callable[[], object] | None = None
    on_task_success: Callable[[CurrentJob, float], object] | None = None
    on_task_failure: Callable[[CurrentJob, BaseException, float, bool], object] | None = None

    def started(self) -> None:
        """The worker takes jobs."""
        if self.on_start is not None:
            _isolated(self.on_start)

    def stopped(self) -> None:
        """The worker has no more jobs."""
        if self.on_stop is not None:
            _isolated(self.on_stop)

    def succeeded(self, job: CurrentJob, seconds: float) -> None:
        """An attempt was a success."""
        if self.on_task_success is not None:
            _isolated(self.on_task_success, job, seconds)

    def failed(self, job: CurrentJob, error: BaseException, seconds: float, *, final: bool) -> None:
        """An attempt was none."""
        if self.on_task_failure is not None:
            _isolated(self.on_task_failure, job, error, seconds, final)


def _isolated(hook: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    try:
        hook(*args, **kwargs)
    except Exception:
        logger.exception("hook %r failed; the job is not concerned", hook)
