"""How a task is run: as a coroutine on the loop, in a thread of the executor's own, or in a `concurrent.futures` pool.

| given | runs |
|---|---|
| an object with `execute(task)`, or a callable: `async def` | on the event loop |
| the same, not async | in the executor's own threads |
| either kind with `pool=ProcessPoolExecutor(…)` | there; must not be async |

A `Runner` only begins a task; the worker that asked waits for its end. Threads are the executor's own: the pool that
everybody shares has 40 of them, and 40 slow model calls would starve health checks and static files.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextvars import Context
from types import CoroutineType, FunctionType

_CO_COROUTINE = inspect.CO_COROUTINE


class OnLoop:
    """Calls an async callable; its coroutine runs on the event loop, and needs nothing but the worker."""

    __slots__ = ("call",)

    inline = True

    def __init__(self, call: Callable[..., object]) -> None:
        self.call = call

    def begin(self, context: Context, args: Sequence[object]) -> Coroutine[object, object, object]:
        """The coroutine of one attempt, not yet started."""
        coroutine = self.call(*args)
        if type(coroutine) is not CoroutineType and not isinstance(coroutine, Coroutine):
            raise TypeError(f"{self.call!r} returned {type(coroutine).__name__}: it must return a coroutine")
        return coroutine

    def exhausted(self) -> bool:
        """Never: the event loop has room for every coroutine."""
        return False


class InThread:
    """Calls a function in one of the executor's threads, with the submitter's context variables."""

    __slots__ = ("call", "threads")

    inline = False

    def __init__(self, call: Callable[..., object], threads: Threads) -> None:
        self.call = call
        self.threads = threads

    def begin(self, context: Context, args: Sequence[object]) -> Future[object]:
        """The future of one attempt. Waits for a free thread inside the pool, never here."""
        return self.threads.submit(context, self.call, args)

    def exhausted(self) -> bool:
        """Whether no thread is free now."""
        return self.threads.exhausted()


class InPool:
    """Calls a function in a `concurrent.futures` pool; context variables do not cross into other processes."""

    __slots__ = ("call", "pool")

    inline = False

    def __init__(self, call: Callable[..., object], pool: Pool) -> None:
        self.call = call
        self.pool = pool

    def begin(self, context: Context, args: Sequence[object]) -> Future[object]:
        """The future of one attempt. Raises BrokenExecutor when the pool is broken and cannot be rebuilt."""
        return self.pool.submit(self.call, args)

    def exhausted(self) -> bool:
        """Whether no worker is free: not known of a pool that is somebody else's."""
        return False


Runner = OnLoop | InThread | InPool


class Pool:
    """A `concurrent.futures` executor that is rebuilt when it breaks.

    One killed worker process breaks a whole `ProcessPoolExecutor`. Given as a factory, the pool is then made anew; the
    tasks it took down get `BrokenExecutor`, and whether they run again is up to their retry policies, because
    they may have run half. A ready-made executor cannot be rebuilt, and is not shut down here either.

    Args:
        pool: A function that makes the executor, or an executor. Processes should be *spawned*
            (`mp_context=multiprocessing.get_context("spawn")`): a fork copies locks that other threads hold.
    """

    def __init__(self, pool: Executor | Callable[[], Executor]) -> None:
        self._factory = None if isinstance(pool, Executor) else pool
        self._executor = pool if isinstance(pool, Executor) else None

    def submit(self, call: Callable[..., object], args: Sequence[object]) -> Future[object]:
        """Run *call* there. Raises BrokenExecutor when it is broken and cannot be rebuilt."""
        executor = self._current()
        try:
            future = executor.submit(call, *args)
        except BrokenExecutor:
            if self._factory is None:
                raise
            self._discard(executor)
            executor = self._current()
            future = executor.submit(call, *args)
        future.add_done_callback(functools.partial(self._inspect, executor))
        return future

    def close(self) -> None:
        """Let the executor go, if it was made here; running calls end by themselves."""
        if self._factory is not None and self._executor is not None:
            self._discard(self._executor)

    def _current(self) -> Executor:
        if self._executor is None:
            assert self._factory is not None
            self._executor = self._factory()
        return self._executor

    def _inspect(self, executor: Executor, future: Future[object]) -> None:
        # Runs in a thread of the executor's. Only forgets it: shutting it down here would wait for this very thread.
        if future.cancelled() or self._factory is None or self._executor is not executor:
            return
        if isinstance(future.exception(), BrokenExecutor):
            self._executor = None

    def _discard(self, executor: Executor) -> None:
        if self._executor is executor:
            self._executor = None
        executor.shutdown(wait=False, cancel_futures=True)


class Threads:
    """A bounded pool of threads with a count of the busy ones.

    A thread is busy until its function really ends, whoever still waits for it.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.found_exhausted = 0
        """How often a task found no free thread."""
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[Future[object]] = set()

    @property
    def busy(self) -> int:
        """Functions running or waiting for a thread."""
        return len(self._running)

    def exhausted(self) -> bool:
        """Whether no thread is free now; counted when so."""
        if len(self._running) < self.size:
            return False
        self.found_exhausted += 1
        return True

    def submit(self, context: Context, call: Callable[..., object], args: Sequence[object]) -> Future[object]:
        """Run *call* in a thread inside *context*."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.size, thread_name_prefix=f"admission-{self._name}")
        future: Future[object] = self._pool.submit(context.run, call, *args)
        self._running.add(future)
        future.add_done_callback(self._running.discard)  # A set's add and discard are atomic.
        return future

    def close(self) -> None:
        """Take no more; idle threads end now, busy ones when their function does."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


def callable_of(executor: object) -> Callable[..., object]:
    """What runs a task: `executor.execute`, or *executor* itself.

    Raises:
        TypeError: It is neither.
    """
    execute: object = getattr(executor, "execute", None)
    if callable(execute):
        return execute
    if callable(executor):
        return executor
    raise TypeError(f"executor is {executor!r}: it must be a callable, or an object with execute(task)")


def is_async(call: Callable[..., object]) -> bool:
    """Whether calling *call* gives a coroutine. Sees through `functools.partial` and async `__call__`."""
    if type(call) is FunctionType:  # The common case, ten times faster than the general question.
        return bool(call.__code__.co_flags & _CO_COROUTINE)
    if inspect.iscoroutinefunction(call):
        return True
    while isinstance(call, functools.partial):
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


def check_task(task: object) -> Callable[..., object]:
    """*task* as something to call, for an executor that wraps nothing.

    Raises:
        TypeError: It cannot be called; with a hint for a coroutine object, which could run only once.
    """
    if callable(task):
        return task
    hint = ""
    if inspect.iscoroutine(task):
        hint = ": submit the function itself, submit(fetch, url), not what it returned"
        task.close()
    raise TypeError(f"a task must be a callable, not {type(task).__name__}{hint}")
