"""An error as a job keeps it: JSON for people, of bounded size. Nothing is ever made an exception again from it."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from pydantic_core import from_json, to_json

from admission.errors import AdmissionError, Rejected, TaskTimeout
from admission.types import Reason

__all__ = ["Failure", "Killed", "Outran", "Starved", "describe", "failure_of"]

MOST_ERROR = 1000
"""Characters of an error's text that are kept."""

MOST_TRACEBACK = 16_000
"""Characters of a traceback that are kept: its end, where the error was raised."""


class Outran(TaskTimeout):
    """The attempt itself took too long; a `TimeoutError` of the function is an error like others."""


class Starved(Rejected):
    """No thread was free, as often as a job may come back for one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.BUSY)


class Killed(AdmissionError):
    """As many processes died with a job as it may take with it."""

    def __init__(self, lost: int) -> None:
        super().__init__(f"the process that ran it died, {'once' if lost == 1 else f'{lost} times'}")


class Failure(NamedTuple):
    """What is kept of an error."""

    error: str
    """In one line: its type, and what it says."""
    traceback: str
    """Empty where there is none."""


def failure_of(error: BaseException) -> Failure:
    """What to keep of *error*."""
    said = " ".join(str(error).split())
    kind = type(error).__name__
    lines = "".join(traceback.format_exception(error)) if error.__traceback__ is not None else ""
    return Failure((f"{kind}: {said}" if said else kind)[:MOST_ERROR], lines[-MOST_TRACEBACK:])


def describe(failure: Failure) -> str:
    """The JSON text that travels with `retry` and `bury`."""
    return to_json({"error": failure.error, "traceback": failure.traceback}).decode()


def read(text: str) -> Failure:
    """What `describe` wrote; other text is taken for the error itself."""
    try:
        data = from_json(text) if text else {}
    except ValueError:
        data = text
    if isinstance(data, dict):
        return Failure(str(data.get("error", "")), str(data.get("traceback", "")))
    return Failure(str(data)[:MOST_ERROR], "")
