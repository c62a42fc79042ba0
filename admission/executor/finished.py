"""What `submit` returns for a task that is over already."""

from __future__ import annotations

from collections.abc import Mapping

from admission.executor.desk import Desk, Options
from admission.executor.handle import NO_METADATA, SUCCEEDED, Handle, ResultT
from admission.line import Entry


class Finished(Handle[ResultT]):
    """The handle of a task that succeeded before `submit` returned."""

    __slots__ = ("_desk", "_entry", "_options")

    def __init__(self, desk: Desk, entry: Entry, options: Options, result: ResultT) -> None:
        self._desk = desk
        self._entry = entry
        self._options = options
        self._result = result
        self._error = None
        self._status = SUCCEEDED

    @property
    def id(self) -> str:
        return self._desk.controller.id_of(self._entry)

    @property
    def position(self) -> int:
        return 0

    @property
    def estimated_wait(self) -> float | None:
        return 0.0

    @property
    def attempts(self) -> int:
        return 1

    @property
    def metadata(self) -> Mapping[str, object]:
        return self._options.metadata or NO_METADATA

    def cancel(self) -> bool:
        return False
