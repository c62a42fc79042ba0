"""Retry policies: pure data that answers "how long until the next try, if any"."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from admission.errors import PermanentError, QueueFull, TaskTimeout
from admission.policy.retry import Retry
from admission.types import Reason


class FlakyBackend(Exception):
    """An error of a user's own."""


def test_none_never_retries():
    """One attempt is all there is."""
    assert Retry.none().delay_for(1, 0.5) is None


def test_fixed_waits_the_same_before_every_retry():
    """Three attempts have two waits between them."""
    retry = Retry.fixed(2.0, max_attempts=3)
    assert [retry.delay_for(attempt, 0.9) for attempt in (1, 2, 3)] == [2.0, 2.0, None]


def test_exponential_grows_up_to_its_bound():
    """Each wait is twice the one before, until `max_delay`."""
    retry = Retry.exponential(max_attempts=6, base=1.0, factor=2.0, max_delay=5.0, jitter=0.0)
    assert [retry.delay_for(attempt) for attempt in range(1, 7)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]


def test_exponential_stays_at_its_bound_where_floats_end():
    """factor^9998 is no float; the wait still is `max_delay`."""
    assert Retry.exponential(max_attempts=10_000, factor=10.0, max_delay=7.0).delay_for(9_999) == 7.0


def test_custom_uses_the_given_delays():
    """As many retries as delays."""
    retry = Retry.custom([0.1, 5.0])
    assert [retry.delay_for(attempt) for attempt in (1, 2, 3)] == [0.1, 5.0, None]


def test_no_custom_delays_mean_no_retry():
    """An empty list is a policy of one attempt."""
    assert Retry.custom([]).delay_for(1) is None


@given(
    attempt=st.integers(1, 50),
    random=st.floats(0, 1),
    jitter=st.floats(0, 1),
    base=st.floats(0, 100),
    factor=st.floats(1, 10),
    max_delay=st.floats(0, 100),
)
def test_jitter_only_shortens(attempt, random, jitter, base, factor, max_delay):
    """No draw makes a wait longer than `max_delay`, nor shorter than its share allows."""
    retry = Retry(max_attempts=51, base=base, factor=factor, max_delay=max_delay, jitter=jitter)
    longest = retry.delay_for(attempt, 0.0)
    drawn = retry.delay_for(attempt, random)
    assert drawn is not None
    assert longest is not None
    assert longest * (1 - jitter) <= drawn <= longest <= max_delay


def test_total_timeout_forbids_a_retry_that_would_begin_too_late():
    """9 s have passed and the wait is 2 s: past the 10 s that were allowed."""
    retry = Retry.fixed(2.0, max_attempts=9, total_timeout=10.0)
    assert not retry.would_exceed(8.0, 1)
    assert retry.would_exceed(8.1, 1)
    assert retry.next_delay(ValueError(), attempt=1, elapsed=9.0, random=0.0) is None


def test_without_total_timeout_nothing_exceeds_it():
    """The default is attempts alone."""
    assert not Retry.fixed(2.0).would_exceed(1e9, 1)


def test_only_named_errors_are_retried():
    """`retry_on` takes exception types, subclasses included."""
    retry = Retry.fixed(1.0, retry_on=[OSError])
    assert retry.next_delay(ConnectionError(), attempt=1, elapsed=0.0, random=0.0) == 1.0
    assert retry.next_delay(ValueError(), attempt=1, elapsed=0.0, random=0.0) is None


def test_a_permanent_error_is_never_retried():
    """Even where `retry_on` covers every exception."""
    assert not Retry.fixed(1.0).covers(PermanentError("no such model"))


def test_timeouts_and_refusals_are_retried_unless_excluded():
    """They are exceptions like others."""
    assert Retry.fixed(1.0).covers(TaskTimeout("too slow"))
    assert Retry.fixed(1.0).covers(QueueFull("full", reason=Reason.QUEUE_FULL))


def test_cancellation_is_never_retried():
    """Cancellation is no Exception, so no `retry_on` reaches it."""
    assert not Retry.fixed(1.0).covers(KeyboardInterrupt())


@pytest.mark.parametrize(
    "retry",
    [
        Retry.none(),
        Retry.fixed(1.5, max_attempts=7),
        Retry.exponential(total_timeout=60, retry_on=[OSError, TaskTimeout, FlakyBackend]),
        Retry.custom([0, 1, 2.5], jitter=0.25),
    ],
)
def test_a_policy_survives_json(retry):
    """`from_dict(to_dict())` is the same policy, with a user's own errors named."""
    assert Retry.from_dict(json.loads(json.dumps(retry.to_dict())), errors=[FlakyBackend]) == retry


def test_an_unknown_error_name_is_refused_not_imported():
    """A message cannot make this process import anything."""
    data = Retry.none().to_dict() | {"retry_on": ["os.system"]}
    with pytest.raises(ValueError, match=r"retry_on is 'os\.system': it must be a built-in exception"):
        Retry.from_dict(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_attempts": 0}, r"max_attempts\n.*greater than or equal to 1.*input_value=0"),
        ({"base": -1}, r"base\n.*greater than or equal to 0.*input_value=-1"),
        ({"factor": 0.5}, r"factor\n.*greater than or equal to 1.*input_value=0.5"),
        ({"jitter": 2}, r"jitter\n.*less than or equal to 1.*input_value=2"),
        ({"total_timeout": 0}, r"total_timeout\n.*greater than 0.*input_value=0"),
        ({"delays": [1, -2]}, r"delays\[1\] is -2.0: it must be at least 0"),
        ({"retry_on": [3]}, r"retry_on"),
        ({"max_atempts": 3}, r"max_atempts\n.*not permitted"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_range(options, message):
    """So that a config file's author can mend it."""
    with pytest.raises(ValidationError, match=message):
        Retry(**options)


def test_questions_out_of_range_are_refused():
    """Attempts count from 1, and chance lies in 0 … 1."""
    with pytest.raises(ValueError, match="attempt is 0"):
        Retry.none().delay_for(0)
    with pytest.raises(ValueError, match=r"random is 1\.5"):
        Retry.none().delay_for(1, 1.5)


def test_a_policy_is_frozen():
    """It may be shared by thousands of tasks."""
    with pytest.raises(ValidationError, match="frozen"):
        Retry.none().max_attempts = 5
