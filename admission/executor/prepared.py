"""A task with its options, put together step by step and submitted as often as wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Unpack

from admission.executor.handle import Handle, ResultT
from admission.executor.options import SubmitOptions

if TYPE_CHECKING:
    from admission.executor.queued import QueuedExecutor


class PreparedTask(Generic[ResultT]):
    """What `executor.task(…)` returns. Frozen: each step gives a new one.

    report = executor.task(render).with_options(priority="low", timeout=60, retry=Retry.exponential())
    handle = await report.with_args("weekly", pages=3).submit()
    """

    __slots__ = ("_args", "_executor", "_options", "_task")

    def __init__(
        self,
        executor: QueuedExecutor[Any, Any],
        task: object,
        args: tuple[object, ...] = (),
        options: SubmitOptions[ResultT] | None = None,
    ) -> None:
        self._executor = executor
        self._task = task
        self._args = args
        self._options: SubmitOptions[ResultT] = {} if options is None else options

    def with_args(self, *args: object, **kwargs: object) -> PreparedTask[ResultT]:
        """The same task, called with these arguments.

        Raises:
            TypeError: Keyword arguments for an executor that wraps something: they have nobody to go to.
        """
        task = self._task
        if kwargs:
            if not self._executor.calls_tasks or not callable(task):
                raise TypeError("keyword arguments need an executor that calls the task itself: QueuedExecutor()")
            bound: Callable[..., object] = partial(task, **kwargs)
            task = bound
        return PreparedTask(self._executor, task, args, self._options)

    def with_options(self, **options: Unpack[SubmitOptions[ResultT]]) -> PreparedTask[ResultT]:
        """The same task with these options of `submit`, beside those it has."""
        return PreparedTask(self._executor, self._task, self._args, {**self._options, **options})

    async def submit(self) -> Handle[ResultT]:
        """Submit it; see `QueuedExecutor.submit`."""
        return await self._executor.submit(self._task, *self._args, **self._options)

    async def execute(self) -> ResultT:
        """Submit it and wait for its result; see `QueuedExecutor.execute`."""
        result: ResultT = await self._executor.execute(self._task, *self._args, **self._options)
        return result
