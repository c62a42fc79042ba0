"""The process's executor for whoever has none of their own."""

from __future__ import annotations

from collections.abc import Callable

from admission.executor.queued import QueuedExecutor

_default: QueuedExecutor[Callable[..., object], object] | None = None


def default_executor() -> QueuedExecutor[Callable[..., object], object]:
    """An executor with all defaults: `await default_executor().submit(fetch, url)`.

    The same one every time; but a new event loop gets a new one, and so does whoever asks after it was drained.
    """
    global _default
    if _default is None or not _default.takes_tasks_here():
        _default = QueuedExecutor(name="default-executor")
    return _default
