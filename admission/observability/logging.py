"""Log lines for what happens in a pool, as text or as one JSON object a line.

    configure_logging("json")
    controller = AdmissionController(observers=[LogObserver()])

`LogObserver` turns events into records of the logger `admission.events`: refusals and changes of the limit at
INFO, the course of every ticket at DEBUG. An overloaded server must not spend its time writing about it, so
at most `max_per_second` refusals are written; the next line says how many were left out.

Names come from clients. Both formatters escape control characters, so that no name can forge a line or drive
a terminal. Tenants are left out unless asked for; keys, tokens and headers never reach an event.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import IO, Literal

from admission.events import Event, Evicted, Granted, LimitChanged, Queued, Rejected, Released
from admission.types import Ticket, within

LOGGER = "admission.events"

Fields = dict[str, str | int | float | None]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, line separators and the marks that reorder text on a terminal."""


class LogObserver:
    """An observer that writes events to a logger.

    Args:
        logger: None takes `admission.events`.
        tenants: Whether lines name the tenant.
        max_per_second: Refusals written per second at most, by the pool's clock.

    Raises:
        ValueError: *max_per_second* is below 1.
    """

    def __init__(
        self, logger: logging.Logger | None = None, *, tenants: bool = False, max_per_second: int = 20
    ) -> None:
        within("max_per_second", max_per_second, 1)
        self._logger = logger if logger is not None else logging.getLogger(LOGGER)
        self._tenants = tenants
        self._max_per_second = max_per_second
        self._second = -1
        self._written = 0
        self._left_out = 0

    def observe(self, event: Event) -> None:
        """Write *event*, if the logger's level and the rate allow it."""
        level = logging.INFO if isinstance(event, Rejected | Evicted | LimitChanged) else logging.DEBUG
        if not self._logger.isEnabledFor(level):
            return
        fields: Fields = {"event": type(event).__name__.lower()}
        if isinstance(event, LimitChanged):
            fields |= {"event": "limit-changed", "pool": event.pool, "old": event.old, "new": event.new}
        else:
            if level == logging.INFO and not self._may_write(_when(event)):
                return
            fields |= self._of_ticket(event.ticket) | _of_event(event)
            if self._left_out and level == logging.INFO:
                fields["left_out"] = self._left_out
                self._left_out = 0
        self._logger.log(level, _sentence(event), extra={"fields": fields})

    def _of_ticket(self, ticket: Ticket) -> Fields:
        fields: Fields = {"pool": ticket.pool, "ticket": ticket.id, "priority": ticket.priority}
        if self._tenants:
            fields["tenant"] = ticket.tenant
        return fields

    def _may_write(self, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._written = int(now), 0
        if self._written >= self._max_per_second:
            self._left_out += 1
            return False
        self._written += 1
        return True


def _when(event: Queued | Granted | Released | Rejected | Evicted) -> float:
    # An observer has no clock; the ticket carries the pool's.
    return event.ticket.arrival + (event.waited if isinstance(event, Evicted) else 0.0)


def _of_event(event: Queued | Granted | Released | Rejected | Evicted) -> Fields:
    match event:
        case Queued():
            return {"position": event.position, "predicted_wait": event.predicted_wait}
        case Granted():
            return {"waited": event.waited}
        case Released():
            return {"ran": event.ran, "outcome": event.outcome.value, "cost": event.actual_cost}
        case Rejected():
            return {"reason": event.reason.value}
        case Evicted():
            return {"reason": event.reason.value, "waited": event.waited}


def _sentence(event: Event) -> str:
    match event:
        case Queued():
            return "a request entered the line"
        case Granted():
            return "a request was let in"
        case Released():
            return "a request ended"
        case Rejected():
            return "a request was refused on arrival"
        case Evicted():
            return "a request left the line without being let in"
        case LimitChanged():
            return "the limit changed"


def escape(text: str) -> str:
    r"""*text* with its control characters written out, such as `\n` or `\x1b`."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


class TextFormatter(logging.Formatter):
    """One line a record, such as `2025-01-31T12:00:00.000Z INFO admission.events: the limit changed old=8
    new=9`.

    Tracebacks follow on lines that begin with `  | `, so that none of their lines can pass for a record.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line per record."""
        pairs = "".join(f" {name}={_text_value(value)}" for name, value in _fields_of(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {escape(record.getMessage())}{pairs}"
        return "\n".join([line, *(f"  | {escape(part)}" for part in self._trace(record).splitlines())])

    def _trace(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info else ""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line per record, in ASCII."""
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in _fields_of(record).items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(
    form: Literal["text", "json"] = "text", *, level: int | str = logging.INFO, stream: IO[str] | None = None
) -> None:
    """Write every record of this process in one form to *stream* (None: standard error).

    Handlers that were there before are removed.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _fields_of(record: logging.LogRecord) -> Fields:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _text_value(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None:
        return "-"
    text = escape(str(value))
    return json.dumps(text, ensure_ascii=False) if not text or any(c in ' ="' for c in text) else text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
