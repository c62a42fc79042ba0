"""Log lines: what is written, how much of it, and that no name can forge one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from tickets import TICKET, ticket

from admission import AdmissionController, Rejected
from admission.events import Evicted, Granted, LimitChanged, Queued, Released
from admission.events import Rejected as RejectedEvent
from admission.observability.logging import JsonFormatter, LogObserver, TextFormatter, configure_logging, escape
from admission.types import Outcome, Reason

REFUSED = RejectedEvent(ticket=TICKET, reason=Reason.QUEUE_FULL)
ALL_EVENTS = (
    Queued(ticket=TICKET, position=3, predicted_wait=None),
    Granted(ticket=TICKET, waited=0.5),
    Released(ticket=TICKET, ran=1.5, outcome=Outcome.SUCCESS, actual_cost=17.0),
    REFUSED,
    Evicted(ticket=TICKET, reason=Reason.TIMEOUT, waited=30.0),
    LimitChanged(pool="default", old=8, new=9),
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What a logger of our own wrote; the root logger stays pytest's."""
    stream = io.StringIO()
    logger = logging.getLogger("admission.events")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.propagate = False
    yield stream
    logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def written(stream: io.StringIO, form: logging.Formatter, level: int, *events: object, **options: object) -> list[str]:
    logger = logging.getLogger("admission.events")
    logger.setLevel(level)
    logger.handlers[0].setFormatter(form)
    observer = LogObserver(**options)  # type: ignore[arg-type]
    for event in events:
        observer.observe(event)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def test_every_event_is_one_json_object(stream: io.StringIO) -> None:
    """At DEBUG the whole course of a ticket is there, with the event's numbers as numbers."""
    lines = [json.loads(line) for line in written(stream, JsonFormatter(), logging.DEBUG, *ALL_EVENTS)]
    assert [line["event"] for line in lines] == [
        "queued", "granted", "released", "rejected", "evicted", "limit-changed",
    ]  # fmt: skip
    assert lines[2] | {"time": ""} == {
        "time": "",
        "level": "DEBUG",
        "logger": "admission.events",
        "message": "a request ended",
        "event": "released",
        "pool": "default",
        "ticket": "t1",
        "priority": "high",
        "ran": 1.5,
        "outcome": "success",
        "cost": 17.0,
    }


def test_at_info_only_refusals_and_the_limit_are_written(stream: io.StringIO) -> None:
    """A healthy server writes nothing per request."""
    lines = [json.loads(line) for line in written(stream, JsonFormatter(), logging.INFO, *ALL_EVENTS)]
    assert [line["event"] for line in lines] == ["rejected", "evicted", "limit-changed"]


def test_text_is_one_line_with_the_fields_behind(stream: io.StringIO) -> None:
    """Made for eyes and grep."""
    (line,) = written(stream, TextFormatter(), logging.INFO, REFUSED)
    assert line.endswith(
        "INFO admission.events: a request was refused on arrival event=rejected pool=default ticket=t1 "
        "priority=high reason=rejected-queue-full"
    )


def test_tenants_are_named_only_on_request(stream: io.StringIO) -> None:
    """Who a customer is does not belong in every log."""
    assert "acme" not in "".join(written(stream, JsonFormatter(), logging.DEBUG, *ALL_EVENTS))
    assert "acme" in "".join(written(stream, JsonFormatter(), logging.DEBUG, *ALL_EVENTS, tenants=True))


HOSTILE = 'x\n2025-01-01T00:00:00.000Z ERROR root: forged\r\x1b[2J\u2028\u202e " = \x00'


@pytest.mark.parametrize("form", [TextFormatter(), JsonFormatter()])
def test_a_hostile_name_forges_no_line(stream: io.StringIO, form: logging.Formatter) -> None:
    """Newlines, escape sequences and text-direction marks arrive written out, on the same line."""
    event = RejectedEvent(ticket=ticket(tenant=HOSTILE), reason=Reason.QUEUE_FULL)
    (line,) = written(stream, form, logging.INFO, event, tenants=True)
    assert not any(character in line for character in "\n\r\x1b\u2028\u202e\x00")
    assert "forged" in line


def test_a_hostile_message_forges_no_line() -> None:
    """The formatters guard other loggers' records as well, uvicorn's access log among them."""
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "GET %s", (HOSTILE,), None)
    assert len(TextFormatter().format(record).splitlines()) == 1
    assert json.loads(JsonFormatter().format(record))["message"] == f"GET {HOSTILE}"


def test_a_traceback_cannot_pass_for_a_record() -> None:
    """Its lines are there, each behind a bar."""
    try:
        raise RuntimeError("2025-01-01T00:00:00.000Z\nERROR root: forged")
    except RuntimeError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it failed", None, (type(error), error, None))
    first, *rest = TextFormatter().format(record).splitlines()
    assert first.endswith("it failed")
    assert rest
    assert all(line.startswith("  | ") for line in rest)


def test_escape_leaves_other_letters_alone() -> None:
    """Only what steers a terminal or a parser is written out."""
    assert escape("naïve 漢字 \t\x9b") == r"naïve 漢字 \t\x9b"


def test_refusals_beyond_the_rate_are_counted_not_written(stream: io.StringIO) -> None:
    """Under overload the log says how much it left out, in the first line of the next second."""
    flood = [REFUSED] * 50
    later = RejectedEvent(ticket=ticket(arrival=101.0), reason=Reason.QUEUE_FULL)
    lines = written(stream, JsonFormatter(), logging.INFO, *flood, later, max_per_second=10)
    assert len(lines) == 11
    assert json.loads(lines[-1])["left_out"] == 40


def test_a_rate_below_one_is_refused() -> None:
    """The error names the option, the value and the range."""
    with pytest.raises(ValueError, match="max_per_second is 0: it must be at least 1"):
        LogObserver(max_per_second=0)


@pytest.mark.anyio
async def test_a_controller_tells_it(stream: io.StringIO) -> None:
    """The observer on a real pool: a request refused is a line written."""
    logging.getLogger("admission.events").setLevel(logging.INFO)
    controller = AdmissionController(max_concurrency=1, observers=[LogObserver()])
    permit = controller.acquire_nowait()
    with pytest.raises(Rejected):
        controller.acquire_nowait()
    permit.release()
    assert "refused on arrival" in stream.getvalue()


def test_configure_logging_writes_everything_in_one_form() -> None:
    """Every logger of the process ends in the one handler."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        for handler in root.handlers[:]:
            root.removeHandler(handler)  # Else they would be closed, and they are pytest's.
        configure_logging("json", stream=stream)
        logging.getLogger("somebody").warning("hello")
    finally:
        root.handlers[:], root.level = before
    assert json.loads(stream.getvalue())["logger"] == "somebody"
