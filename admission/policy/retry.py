"""When a failed task is tried again.

After failed attempt *n* (the first is 1) the wait is

    min(max_delay, base * factor^(n - 1)) * (1 - jitter * random)

or, for a custom policy, the *n*-th of the given delays. Jitter only shortens, so a bound stays a bound. A policy
knows no clock and rolls no dice: elapsed seconds and a random number in 0 … 1 are arguments.

Known weakness: every client that backs off on its own still adds to an overload. Bound it with `total_timeout`,
and let errors that no repetition can heal be `PermanentError`.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_serializer, field_validator

from admission import errors
from admission.errors import PermanentError

MAX_ATTEMPTS = 10_000


class Retry(BaseModel):
    """How often, and after which waits, a failed task is tried again. Frozen data.

    Build one with `Retry.none()`, `Retry.fixed()`, `Retry.exponential()` or `Retry.custom()`. A `PermanentError`
    is never retried, whatever the policy.

    Args:
        max_attempts: Starts in all, the first one included; 1 to 10,000. 1 means no retry.
        base: Seconds to wait after the first failure.
        factor: Each wait is this many times the one before; 1 or more.
        max_delay: Seconds no wait exceeds.
        jitter: Share of each wait that chance may take away, 0 … 1.
        delays: Waits by hand, in seconds; `base`, `factor` and `max_delay` then mean nothing.
        total_timeout: Seconds after the first start within which a retry must begin. None: no such bound.
        retry_on: Exception types worth another try.

    Raises:
        pydantic.ValidationError: (a ValueError) names the option, the value and the allowed range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    max_attempts: int = Field(default=1, ge=1, le=MAX_ATTEMPTS)
    base: FiniteFloat = Field(default=0.0, ge=0)
    factor: FiniteFloat = Field(default=1.0, ge=1)
    max_delay: FiniteFloat = Field(default=0.0, ge=0)
    jitter: FiniteFloat = Field(default=0.0, ge=0, le=1)
    delays: tuple[float, ...] | None = None
    total_timeout: FiniteFloat | None = Field(default=None, gt=0)
    retry_on: tuple[type[Exception], ...] = (Exception,)

    @field_validator("delays")
    @classmethod
    def _delays_are_seconds(cls, delays: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for index, delay in enumerate(delays or ()):
            if not 0 <= delay < float("inf"):
                raise ValueError(f"delays[{index}] is {delay!r}: it must be at least 0 and finite")
        return delays

    @field_serializer("retry_on")
    def _names_of_errors(self, retry_on: tuple[type[Exception], ...]) -> list[str]:
        return [kind.__name__ for kind in retry_on]

    # --- ways to build one

    @classmethod
    def none(cls) -> Retry:
        """One attempt, no retry."""
        return cls()

    @classmethod
    def fixed(
        cls,
        delay: float,
        *,
        max_attempts: int = 3,
        jitter: float = 0.0,
        total_timeout: float | None = None,
        retry_on: Iterable[type[Exception]] = (Exception,),
    ) -> Retry:
        """The same *delay* (seconds) before every retry."""
        return cls(
            max_attempts=max_attempts,
            base=delay,
            max_delay=delay,
            jitter=jitter,
            total_timeout=total_timeout,
            retry_on=tuple(retry_on),
        )

    @classmethod
    def exponential(
        cls,
        *,
        max_attempts: int = 3,
        base: float = 0.5,
        factor: float = 2.0,
        max_delay: float = 30.0,
        jitter: float = 0.5,
        total_timeout: float | None = None,
        retry_on: Iterable[type[Exception]] = (Exception,),
    ) -> Retry:
        """Waits that grow by *factor* from *base* up to *max_delay* seconds, spread out by chance."""
        return cls(
            max_attempts=max_attempts,
            base=base,
            factor=factor,
            max_delay=max_delay,
            jitter=jitter,
            total_timeout=total_timeout,
            retry_on=tuple(retry_on),
        )

    @classmethod
    def custom(
        cls,
        delays: Sequence[float],
        *,
        jitter: float = 0.0,
        total_timeout: float | None = None,
        retry_on: Iterable[type[Exception]] = (Exception,),
    ) -> Retry:
        """These *delays* in seconds, one before each retry: as many retries as there are delays."""
        return cls(
            max_attempts=len(delays) + 1,
            delays=tuple(delays),
            jitter=jitter,
            total_timeout=total_timeout,
            retry_on=tuple(retry_on),
        )

    # --- what an executor asks

    def covers(self, error: BaseException) -> bool:
        """Whether this kind of error is worth another try at all."""
        return isinstance(error, self.retry_on) and not isinstance(error, PermanentError)

    def delay_for(self, attempt: int, random: float = 0.0) -> float | None:
        """Seconds to wait after failed *attempt* (the first is 1); None when that was the last.

        Args:
            random: A number in 0 … 1. With 0 the answer is the longest wait the jitter allows.
        """
        if attempt < 1:
            raise ValueError(f"attempt is {attempt!r}: it must be at least 1")
        if not 0 <= random <= 1:
            raise ValueError(f"random is {random!r}: it must be at least 0 and at most 1")
        if attempt >= self.max_attempts:
            return None
        return self._full_delay(attempt) * (1 - self.jitter * random)

    def would_exceed(self, elapsed: float, attempt: int, random: float = 0.0) -> bool:
        """Whether the retry after failed *attempt* would begin later than `total_timeout`.

        Args:
            elapsed: Seconds since the task was first started.
        """
        delay = self.delay_for(attempt, random)
        return self.total_timeout is not None and delay is not None and elapsed + delay > self.total_timeout

    def next_delay(self, error: BaseException, *, attempt: int, elapsed: float, random: float) -> float | None:
        """Seconds until the next attempt; None when *error* is final. All the other questions in one."""
        if not self.covers(error) or self.would_exceed(elapsed, attempt, random):
            return None
        return self.delay_for(attempt, random)

    def _full_delay(self, attempt: int) -> float:
        if self.delays is not None:
            return self.delays[attempt - 1] if attempt <= len(self.delays) else self.delays[-1]
        try:
            return min(self.max_delay, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            return self.max_delay

    # --- as plain data

    def to_dict(self) -> dict[str, object]:
        """This policy as JSON-ready data; exception types by their names."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, object], *, errors: Iterable[type[Exception]] = ()) -> Retry:
        """The policy that `to_dict` wrote.

        Nothing is imported because a message says so: exception names are looked up among Python's own, this
        project's, and *errors*.

        Raises:
            ValueError: An exception name is unknown; pydantic's error for any other bad value.
        """
        known = _known_errors(errors)
        fields = dict(data)
        names = fields.pop("retry_on", ["Exception"])
        if not isinstance(names, list | tuple):
            raise ValueError(f"retry_on is {names!r}: it must be a list of names of exceptions")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"retry_on is {unknown[0]!r}: it must be a built-in exception or one given in `errors`")
        return cls.model_validate({**fields, "retry_on": tuple(known[name] for name in names)})


def _known_errors(extra: Iterable[type[Exception]]) -> dict[str, type[Exception]]:
    rooms = (*vars(builtins).values(), *vars(errors).values(), *extra)
    return {kind.__name__: kind for kind in rooms if isinstance(kind, type) and issubclass(kind, Exception)}
