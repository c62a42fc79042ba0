"""Refusals a client can act on."""

from __future__ import annotations

import json

import pytest

from admission.asgi.responses import CODES, Refusals, retry_headers, wants_problem
from admission.errors import Closed, Evicted, QueueFull, Rejected, WaitTimeout
from admission.types import Reason

FULL = QueueFull("full", reason=Reason.QUEUE_FULL, retry_after=3.2, position=12)


def headers_of(refusals: Refusals, refusal: Rejected | Evicted, **request: str) -> dict[str, str]:
    answer = refusals.answer(refusal, [(k.encode(), v.encode()) for k, v in request.items()])
    return {name.decode(): value.decode() for name, value in answer.headers}


def test_openai_clients_find_code_and_type() -> None:
    """`{"error": {"message", "type", "param", "code"}}`, and nothing beside it."""
    answer = Refusals().answer(FULL)
    error = json.loads(answer.body)
    assert answer.status == 429
    assert error["error"].keys() == {"message", "type", "param", "code"}
    assert error["error"]["code"] == "queue_full"
    assert error["error"]["type"] == "rate_limit_error"
    assert "Position in line: 12" in error["error"]["message"]


def test_a_problem_is_sent_where_it_is_asked_for() -> None:
    """RFC 9457, by `Accept` or by option."""
    accept = [(b"accept", b"application/problem+json, text/plain;q=0.5")]
    for answer in (Refusals().answer(FULL, accept), Refusals(format="problem").answer(FULL)):
        problem = json.loads(answer.body)
        assert (b"content-type", b"application/problem+json") in answer.headers
        assert problem["status"] == 429
        assert problem["type"] == "about:blank"
        assert problem["reason"] == "rejected-queue-full"
        assert problem["position"] == 12
    assert (b"content-type", b"application/json") in Refusals(format="openai").answer(FULL, accept).headers


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (b"application/json", False),
        (b"*/*", False),
        (b"application/problem+json;q=0", False),
        (b"application/problem+json;q=0.0", False),
        (b"Application/Problem+JSON", True),
        (b"application/json, application/problem+json", True),
    ],
)
def test_accept_is_read_as_it_is_meant(accept: bytes, wanted: bool) -> None:
    """Whoever names the type gets it, unless with quality 0."""
    assert wants_problem([(b"accept", accept)]) is wanted


def test_going_away_is_503_and_worth_a_retry() -> None:
    """Another replica may take it."""
    draining = Closed("bye", reason=Reason.DRAINING, retry_after=2.0)
    answer = Refusals().answer(draining)
    assert answer.status == 503
    assert json.loads(answer.body)["error"]["type"] == "server_error"
    assert headers_of(Refusals(), draining)["retry-after"] == "2"


def test_a_pool_that_cannot_be_reached_is_503_and_worth_a_retry() -> None:
    """It says nothing about load, and another replica or a later moment may do."""
    away = Rejected("away", reason=Reason.UNAVAILABLE, retry_after=2.0)
    answer = Refusals().answer(away)
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["code"], error["type"]) == (503, "pool_unavailable", "server_error")
    assert headers_of(Refusals(), away)["retry-after"] == "2"
    assert Refusals(draining=502).answer(away).status == 502


def test_statuses_are_options() -> None:
    """Some gateways want 503 for everything."""
    assert Refusals(contended=503).answer(FULL).status == 503
    assert Refusals(draining=502).answer(Closed("bye", reason=Reason.DRAINING)).status == 502


@pytest.mark.parametrize(("seconds", "whole", "ms"), [(0.0, "1", "50"), (3.2, "4", "3200"), (1000.0, "60", "60000")])
def test_retry_after_is_whole_seconds_and_at_most_a_minute(seconds: float, whole: str, ms: str) -> None:
    """Older SDKs do not come back at all when told more."""
    assert retry_headers(seconds) == [(b"retry-after", whole.encode()), (b"retry-after-ms", ms.encode())]


def test_only_a_pointless_retry_is_forbidden() -> None:
    """`x-should-retry: false` when coming back cannot help, and then no time to come back at."""
    wide = Rejected("too wide", reason=Reason.TOO_WIDE)
    assert headers_of(Refusals(), wide)["x-should-retry"] == "false"
    assert "retry-after" not in headers_of(Refusals(), wide)
    late = WaitTimeout("late", reason=Reason.TIMEOUT, retry_after=1.0)
    assert "x-should-retry" not in headers_of(Refusals(), late)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_code_and_a_full_answer(reason: Reason) -> None:
    """None is missing, and every body says its length."""
    assert reason in CODES
    answer = Refusals().answer(Evicted("gone", reason=reason))
    assert dict(answer.headers)[b"content-length"] == str(len(answer.body)).encode()
    assert dict(answer.headers)[b"x-admission-reason"] == reason.value.encode()
    assert b"connection" not in dict(answer.headers)
