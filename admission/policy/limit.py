"""How many slots may be in use at once: fixed, or learnt from finished requests.

A limit reads no clock and starts nothing; it learns from `Sample`s alone. `IGNORED` samples (cancelled work) teach
nothing. All of them grow only while at least half the limit is in use: an idle server proves nothing about a larger
limit.

`AimdLimit`      additive increase, multiplicative decrease on drops (Chiu and Jain 1989; the way of TCP Reno)
`GradientLimit`  compares a short with a long average of the time a request takes (Gradient2 of Netflix)
`VegasLimit`     estimates the queue inside the backend from its least time (Brakmo and Peterson 1995, TCP Vegas)
`WindowedLimit`  a decorator: gathers samples over a time and gives the limit inside one typical sample

Known weakness of the adaptive ones: they believe that a slower answer means a fuller backend. Where answers differ
in length by nature, feed them the time to first byte, widen the window, or use `AimdLimit` with a timeout.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

from admission.types import Outcome, Sample, within


@runtime_checkable
class Limit(Protocol):
    """How many slots may be in use at once."""

    @property
    def slots(self) -> int:
        """The limit now, at least 1. Reading it changes nothing."""

    def observe(self, sample: Sample) -> None:
        """Learn from one finished request; time spent queued is not counted."""


class FixedLimit:
    """Always the same number of slots."""

    def __init__(self, slots: int) -> None:
        """Args: slots: at least 1."""
        _whole("max_concurrency", slots)
        self._slots = slots

    @property
    def slots(self) -> int:
        """The limit, as given."""
        return self._slots

    def observe(self, sample: Sample) -> None:
        """Learns nothing."""

    def __repr__(self) -> str:
        return f"FixedLimit({self._slots})"


class _Adaptive:
    """A real-valued estimate between two bounds."""

    def __init__(self, *, initial: int, least: int, most: int) -> None:
        _whole("least", least)
        _whole("most", most, least)
        _whole("initial", initial, least, most)
        self._least, self._most = least, most
        self._estimate = float(initial)

    @property
    def slots(self) -> int:
        """The estimate, rounded down."""
        return int(self._estimate)

    def _set(self, estimate: float) -> None:
        self._estimate = min(max(estimate, self._least), self._most)

    def _loaded(self, sample: Sample) -> bool:
        return sample.in_flight * 2 >= self._estimate

    def __repr__(self) -> str:
        return f"{type(self).__name__}(slots={self.slots}, least={self._least}, most={self._most})"


class AimdLimit(_Adaptive):
    """One more slot per limit's worth of successes, a tenth fewer at each drop.

    Args:
        initial, least, most: Slots to start with and to stay within.
        backoff: Factor applied at a drop, 0.5 … 1 (below 1).
        timeout: Seconds after which a success counts as a drop. None: only real drops do.
    """

    def __init__(
        self,
        *,
        initial: int = 16,
        least: int = 1,
        most: int = 1000,
        backoff: float = 0.9,
        timeout: float | None = None,
    ) -> None:
        super().__init__(initial=initial, least=least, most=most)
        if not 0.5 <= backoff < 1:
            raise ValueError(f"backoff is {backoff!r}: it must be at least 0.5 and below 1")
        within("timeout", timeout, 0, above_low=True)
        self._backoff, self._timeout = backoff, timeout

    def observe(self, sample: Sample) -> None:
        """Shrink on a drop, grow a little on a success under load."""
        if sample.outcome is Outcome.IGNORED:
            return
        late = self._timeout is not None and sample.rtt > self._timeout
        if sample.outcome is Outcome.DROPPED or late:
            self._set(self._estimate * self._backoff)
        elif self._loaded(sample):
            self._set(self._estimate + 1 / self._estimate)


class GradientLimit(_Adaptive):
    """Gradient2: shrinks when answers get slower than they used to be, else probes upwards by a small queue.

        gradient = clamp(tolerance x long rtt / rtt, 0.5, 1)
        limit    = (1 - smoothing) x limit + smoothing x (limit x gradient + queue)

    Args:
        initial, least, most: Slots to start with and to stay within.
        tolerance: How much slower than the long average still counts as unloaded, at least 1.
        queue: Slots of queueing it allows itself, the step by which it grows.
        smoothing: Weight of one sample, above 0 … 1.
        long_window: Samples the long average looks back on.
    """

    def __init__(
        self,
        *,
        initial: int = 20,
        least: int = 1,
        most: int = 1000,
        tolerance: float = 1.5,
        queue: int = 4,
        smoothing: float = 0.2,
        long_window: int = 600,
    ) -> None:
        super().__init__(initial=initial, least=least, most=most)
        within("tolerance", tolerance, 1)
        within("smoothing", smoothing, 0, 1, above_low=True)
        _whole("queue", queue)
        _whole("long_window", long_window)
        self._tolerance, self._queue, self._smoothing = tolerance, queue, smoothing
        self._long_window = long_window
        self._long, self._seen = 0.0, 0

    def observe(self, sample: Sample) -> None:
        """Compare this sample's time with the long average."""
        if sample.outcome is Outcome.IGNORED:
            return
        if sample.outcome is Outcome.DROPPED:
            self._set(self._estimate * (1 - self._smoothing / 2))
            return
        rtt = max(sample.rtt, 1e-6)
        self._seen += 1
        self._long += (rtt - self._long) / min(self._seen, self._long_window)
        # After a long overload the long average is far above what is normal: let it sink faster.
        if self._long > 2 * rtt:
            self._long *= 0.95
        if not self._loaded(sample):
            return
        gradient = min(1.0, max(0.5, self._tolerance * self._long / rtt))
        target = self._estimate * gradient + self._queue
        self._set(self._estimate + self._smoothing * (target - self._estimate))


class VegasLimit(_Adaptive):
    """Vegas: keeps the backend's own queue between a few and twice a few requests.

        queue = limit x (1 - least rtt / rtt)
        below alpha: grow by log10(limit);  above beta: shrink by as much;  alpha = 3 log10, beta = 6 log10

    Args:
        initial, least, most: Slots to start with and to stay within.
        probe_every: Samples, in multiples of the limit, after which the least rtt is measured anew: backends change.
    """

    def __init__(self, *, initial: int = 20, least: int = 1, most: int = 1000, probe_every: int = 30) -> None:
        super().__init__(initial=initial, least=least, most=most)
        _whole("probe_every", probe_every)
        self._probe_every = probe_every
        self._least_rtt = math.inf
        self._since_probe = 0

    def observe(self, sample: Sample) -> None:
        """Estimate the queue inside the backend and step towards the band."""
        if sample.outcome is Outcome.IGNORED:
            return
        step = max(1.0, math.log10(self._estimate))
        if sample.outcome is Outcome.DROPPED:
            self._set(self._estimate - step)
            return
        rtt = max(sample.rtt, 1e-6)
        self._since_probe += 1
        if rtt < self._least_rtt or self._since_probe >= self._probe_every * self._estimate:
            self._least_rtt, self._since_probe = rtt, 0
            return
        if not self._loaded(sample):
            return
        queue = self._estimate * (1 - self._least_rtt / rtt)
        if queue < 3 * step:
            self._set(self._estimate + step)
        elif queue > 6 * step:
            self._set(self._estimate - step)


class WindowedLimit:
    """Gives *inner* one sample per window: the mean rtt, the most in flight, dropped if any of them was.

    Single requests are noise; a window of them is a measurement.

    Args:
        inner: The limit that learns.
        window: Seconds a window lasts at least.
        least_samples: Samples a window has at least; it stays open until then.
    """

    def __init__(self, inner: Limit, *, window: float = 1.0, least_samples: int = 10) -> None:
        within("window", window, 0, above_low=True)
        _whole("least_samples", least_samples)
        self._inner, self._window, self._least_samples = inner, window, least_samples
        self._began: float | None = None
        self._count, self._total, self._most, self._dropped = 0, 0.0, 0, False

    @property
    def slots(self) -> int:
        """The inner limit."""
        return self._inner.slots

    def observe(self, sample: Sample) -> None:
        """Add the sample to the window; close the window when it is long and full enough."""
        if sample.outcome is Outcome.IGNORED:
            return
        if self._began is None or sample.now < self._began:  # Another event loop's clock may count from elsewhere.
            self._began = sample.now
        self._count += 1
        self._total += sample.rtt
        self._most = max(self._most, sample.in_flight)
        self._dropped = self._dropped or sample.outcome is Outcome.DROPPED
        if self._count >= self._least_samples and sample.now - self._began >= self._window:
            outcome = Outcome.DROPPED if self._dropped else Outcome.SUCCESS
            rtt, most = self._total / self._count, self._most
            self._began = None
            self._count, self._total, self._most, self._dropped = 0, 0.0, 0, False
            self._inner.observe(Sample(rtt=rtt, in_flight=most, outcome=outcome, now=sample.now))

    def __repr__(self) -> str:
        return f"WindowedLimit({self._inner!r}, window={self._window})"


def _whole(option: str, value: int, least: int = 1, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{option} is {value!r}: it must be a whole number")
    within(option, value, least, most)
