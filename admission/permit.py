"""The right to run, handed back exactly once; and who holds one in the present context."""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, cast

from admission.line import DONE, RUNNING, Entry
from admission.types import Outcome, Ticket

if TYPE_CHECKING:
    from admission.controller import AdmissionController

_held: ContextVar[Entry | None] = ContextVar("admission_held", default=None)


class Permit:
    """The right to run one request. Hand it back exactly once.

    `async with` (or `with`) does so: a clean exit is a success; a `TimeoutError` or `OSError` counts as dropped by an
    overloaded backend; every other exception and cancellation is ignored, which teaches the limit nothing.

    Releasing a second time does nothing. Releasing takes no await, so cancellation cannot get in between; from another
    thread it crosses to the event loop by itself.
    """

    __slots__ = ("_controller", "_entry", "_first_byte_at", "_nested", "_token")

    def __init__(self, controller: AdmissionController, entry: Entry, *, nested: bool = False) -> None:
        self._controller = controller
        self._entry = entry
        self._nested = nested
        self._first_byte_at: float | None = None
        self._token: Token[Entry | None] | None = None

    def __repr__(self) -> str:
        state = "nested" if self._nested else self._entry.state.name.lower()
        return f"<Permit of pool {self._controller.name!r}, class {self.priority!r}, {state}>"

    @property
    def id(self) -> str:
        """The ticket's id."""
        return self._controller.id_of(self._entry)

    @property
    def ticket(self) -> Ticket:
        """A frozen picture of the ticket."""
        return self._controller.ticket_of(self._entry)

    @property
    def priority(self) -> str:
        """Name of the class."""
        return self._controller.classes[self._entry.rank].name

    @property
    def tenant(self) -> str:
        """Whose ticket it is."""
        return self._entry.tenant

    @property
    def waited(self) -> float:
        """Seconds in line."""
        return self._entry.granted_at - self._entry.arrival

    @property
    def position(self) -> int:
        """Position on arrival; 0 means it ran at once."""
        return self._entry.position

    @property
    def entry(self) -> Entry:
        """The pool's record of the ticket."""
        return self._entry

    @property
    def nested(self) -> bool:
        """Whether it rides on a permit of the same pool that is held further out, and holds no slot itself."""
        return self._nested

    @property
    def released(self) -> bool:
        """Whether the slots were given back."""
        return self._entry.state is not RUNNING

    def first_byte(self) -> None:
        """The answer has begun: for a stream, the adaptive limit learns from the time to here. Once is enough."""
        if self._first_byte_at is None:
            self._first_byte_at = self._controller.now()

    def release(self, *, outcome: Outcome = Outcome.SUCCESS, actual_cost: float | None = None) -> None:
        """Give the slots back and settle the account. Only the first call has an effect.

        Args:
            outcome: What the limit shall learn.
            actual_cost: What it really cost, at least 0; None when the estimate stands.

        Raises:
            ValueError: *actual_cost* is negative.
        """
        if self._nested or self._entry.state is DONE:
            return
        rtt = None if self._first_byte_at is None else self._first_byte_at - self._entry.granted_at
        self._controller.release_from_anywhere(self._entry, outcome, actual_cost, rtt)

    async def __aenter__(self) -> Permit:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def __enter__(self) -> Permit:
        self._token = hold(self._entry)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            unhold(self._token)
            self._token = None
        self.release(outcome=outcome_of(error))


def outcome_of(error: BaseException | None) -> Outcome:
    """What a limit shall learn from work that ended like this."""
    if error is None:
        return Outcome.SUCCESS
    if isinstance(error, TimeoutError | OSError):
        return Outcome.DROPPED
    return Outcome.IGNORED


def hold(entry: Entry) -> Token[Entry | None]:
    """Make *entry* the one held in this context, until `unhold`."""
    outer = _held.get()
    # Only a running one: contexts are inherited from requests long gone, which would otherwise form an endless chain.
    entry.outer = outer if outer is not None and outer is not entry and outer.state is RUNNING else None
    return _held.set(entry)


unhold = _held.reset

hold_for_task = _held.set
"""`hold` without an `unhold`, for a request that has a task of its own: an entry that is over does not count anyway."""


def held_entry(pool: str | None = None) -> Entry | None:
    """The innermost running entry held in this context, of this pool or of any; None when there is none.

    An entry that was released does not count, so a background task that outlives its request asks for itself.
    """
    entry = _held.get()
    while entry is not None:
        if entry.state is RUNNING and (pool is None or controller_of(entry).name == pool):
            return entry
        entry = entry.outer
    return None


def controller_of(entry: Entry) -> AdmissionController:
    """The controller whose entry this is."""
    return cast("AdmissionController", entry.pool)


def current_ticket() -> Ticket | None:
    """The ticket the present request or task runs under; None outside of one."""
    permit = current_permit()
    return None if permit is None else permit.ticket


def current_permit(pool: str | None = None) -> Permit | None:
    """The permit held in this context, of this pool or of any; None when there is none.

    It is the real one: releasing it here with the actual cost settles the account, and the end of the request then
    does nothing more.
    """
    entry = held_entry(pool)
    return None if entry is None else Permit(controller_of(entry), entry)
