"""The options of executors and of tasks, as types: for every signature that passes them on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Generic, Literal, Protocol, TypedDict

from typing_extensions import TypeVar

from admission.controller import AdmissionController
from admission.executor.handle import ResultT
from admission.policy.limit import Limit
from admission.policy.retry import Retry
from admission.types import BackpressureMode, Priority, PriorityClass, Unset

_Task = TypeVar("_Task", contravariant=True)
_Result = TypeVar("_Result", covariant=True)


class ExecutesAsync(Protocol[_Task, _Result]):
    """A model, say, with `async def execute(self, task)`: runs on the event loop."""

    def execute(self, task: _Task, /) -> Awaitable[_Result]:
        """Run *task*."""


class Executes(Protocol[_Task, _Result]):
    """The same with a plain `def`: runs in a thread."""

    def execute(self, task: _Task, /) -> _Result:
        """Run *task*."""


class SubmitOptions(TypedDict, Generic[ResultT], total=False):
    """What `QueuedExecutor.submit` takes beside the task; see there."""

    priority: Priority | str | None
    tenant: str | None
    cost: float | None
    slots: int
    max_wait: float | Unset | None
    deadline: float | None
    timeout: float | Unset | None
    retry: Retry | None
    metadata: Mapping[str, object] | None
    on_success: Callable[[ResultT], object] | None
    on_failure: Callable[[BaseException], object] | None
    on_timeout: Callable[[], object] | None


class ExecutorOptions(TypedDict, total=False):
    """What `QueuedExecutor` takes beside the executor; see there."""

    max_workers: int | Limit | None
    min_workers: int
    max_queue_size: int | None
    backpressure_mode: BackpressureMode | str | None
    max_wait: float | Unset | None
    classes: Sequence[PriorityClass] | None
    controller: AdmissionController | None
    name: str | None
    timeout: float | None
    retry: Retry | None
    pool: Executor | Callable[[], Executor] | None
    thread_pool_size: int | None
    on_thread_pool_exhausted: Literal["wait", "retry-later"]
    actual_cost: Callable[..., float] | None
    worker_idle: float
    max_dead_letters: int
