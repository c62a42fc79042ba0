"""Sending the line away the moment the process is told to stop.

Servers wait for running requests before they tell the app that it is over (`lifespan.shutdown`). Requests in line count
as running there, so the signal has to be heard where it arrives. The server's own handler is kept and called
as well: this one only adds to it.

hypercorn with worker processes (its default) keeps the signal in the parent process: there the line is drained by
`controller.drain()`, by `max_wait`, or not at all. With `--workers 0`, and on uvicorn and granian, it is heard.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from admission.errors import NotRunning
from admission.waker import Loop, running_loop

Handler = Callable[[int, FrameType | None], object]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHook:
    """Calls *on_stop* on the event loop when SIGTERM or SIGINT arrives, before the handler that was there.

    `install` it on the event loop, once the server runs. A signal that nobody handles is left alone: there the
    process ends at once and nothing can be drained.
    """

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._loop: Loop | None = None
        self._chained: dict[int, Handler] = {}
        # One bound method, so that `uninstall` can tell whether the handler in place is still this one.
        self._handler: Handler = self._handle

    def install(self) -> bool:
        """Hook in. False where no signal can be heard: outside the main thread, or with nobody handling them."""
        if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGTERM)):
            # A handler of SIGINT alone is an event loop's or a debugger's: no server is in charge.
            return False
        self._loop = running_loop()
        for number in SIGNALS:
            there = signal.getsignal(number)
            # Python's own SIGINT handler raises KeyboardInterrupt, which ends the loop that would have to drain.
            if callable(there) and there is not signal.default_int_handler and number not in self._chained:
                self._chained[number] = there
                signal.signal(number, self._handler)
        return bool(self._chained)

    def uninstall(self) -> None:
        """Put back what was there, unless someone has hooked in after us (then ours goes on passing calls on)."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, there in list(self._chained.items()):
            if signal.getsignal(number) is self._handler:
                signal.signal(number, there)
                del self._chained[number]
        self._loop = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A signal handler runs between any two bytecodes, also in the midst of a grant: the pool is touched only
        # from the loop, in its own time.
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._on_stop)
            except NotRunning:
                self._loop = None  # It is closed: there is no line any more.
        self._chained[number](number, frame)


def server_connection_limit(receive: object) -> int | None:
    """uvicorn's `--limit-concurrency`, if *receive* is uvicorn's and it is set; else None."""
    try:
        protocol = receive.__self__.transport.get_protocol()  # type: ignore[attr-defined]
        limit = protocol.limit_concurrency
    except (AttributeError, NotImplementedError):
        return None
    return limit if isinstance(limit, int) else None
