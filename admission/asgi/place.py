"""One request's place in line, left at once when its client goes."""

from __future__ import annotations

from admission.asgi.verdict import Verdict
from admission.controller import AdmissionController
from admission.line import REFUSED, RUNNING, Entry
from admission.types import Outcome, Reason
from admission.waker import Waker


class Place:
    """Waits for a slot. A `Waiter`, as the controller calls it.

    `enter` (or `wait`, which does it as well) runs in the request's task, `leave` wherever the client's leaving is
    noticed. A slot that is granted in the instant the client leaves goes to the next in line.
    """

    def __init__(self, controller: AdmissionController, verdict: Verdict) -> None:
        self._controller = controller
        self._verdict = verdict
        self._waker: Waker | None = None
        self._decided = False
        self._left = False
        self.entry: Entry | None = None
        """Set by `enter`."""

    def enter(self) -> Entry:
        """Get in line.

        Raises:
            Rejected: Refused on arrival.
        """
        verdict = self._verdict
        self._waker = self._controller.bind().waker()
        if verdict.max_wait is None:
            entry = self._controller.enqueue(self, verdict.rank, verdict.tenant, verdict.slots, verdict.cost)
        else:
            entry = self._controller.enqueue(
                self, verdict.rank, verdict.tenant, verdict.slots, verdict.cost, max_wait=verdict.max_wait
            )
        self.entry = entry
        return entry

    async def wait(self) -> Entry | None:
        """The running entry, for `give_back`; or None when the client has left.

        Raises:
            Rejected, Evicted: Refused; carries reason, retry_after and position.
        """
        entry = self.entry or self.enter()
        if entry.state not in (RUNNING, REFUSED):
            assert self._waker is not None
            try:
                await self._waker.wait()
            except BaseException:
                self._controller.withdraw(entry, Reason.CANCELLED)
                raise
        self._decided = True
        self.entry = None  # Which knows this place: else both would wait for the garbage collector.
        if self._left:
            return None
        if entry.state is RUNNING:
            return entry
        raise self._controller.refusal(entry)

    def leave(self) -> None:
        """The client has gone: give the place up now. Does nothing once `wait` has returned."""
        if self.entry is not None and not self._decided and not self._left:
            self._left = True
            self._controller.withdraw(self.entry, Reason.DISCONNECT)
            assert self._waker is not None
            self._waker.wake()

    def settle(self, outcome: Outcome = Outcome.IGNORED) -> None:
        """For one that was served without regard to what became of its place: give back whatever it has."""
        if self.entry is not None and self.entry.state is RUNNING:
            self._controller.finish(self.entry, outcome)
        elif self.entry is not None:
            self._controller.withdraw(self.entry, Reason.CANCELLED)

    def entered(self, entry: Entry) -> None:
        """From the lobby into the line: all the same to a client."""

    def decided(self, entry: Entry) -> None:
        """Let the request go on."""
        assert self._waker is not None
        self._waker.wake()
