"""The event loop's lag, on clocks we hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock

from admission.observability import lag as lag_module
from admission.observability.lag import LoopLag


class HandDrivenLoop:
    """Looks like an asyncio loop to the sampler; time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> SimpleNamespace:
        timer = (self.now + delay, callback)
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: self.timers.remove(timer))

    def fire(self, *, late: float) -> None:
        """Run the one timer, *late* seconds after it was due."""
        (timer,) = self.timers
        self.timers.clear()
        self.now = timer[0] + late
        timer[1]()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> HandDrivenLoop:
    loop = HandDrivenLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    monkeypatch.setattr(lag_module, "time", SimpleNamespace(monotonic=lambda: loop.now))
    return loop


def test_a_timer_that_fires_late_is_lag(loop: HandDrivenLoop) -> None:
    """Half a second late is half a second of lag, and the next sample is measured anew."""
    lag = LoopLag(interval=0.25)
    lag.start()
    loop.fire(late=0.5)
    loop.fire(late=0.0)
    assert lag.last == 0.0
    assert lag.snapshot().count == 2
    assert lag.snapshot().sum == pytest.approx(0.5)


def test_a_timer_that_fires_early_is_no_negative_lag(loop: HandDrivenLoop) -> None:
    """uvloop fires up to 0.34 ms early."""
    lag = LoopLag()
    lag.start()
    loop.fire(late=-0.0003)
    assert lag.snapshot().sum == 0.0


def test_starting_twice_samples_once(loop: HandDrivenLoop) -> None:
    """Every scrape may call `start`."""
    lag = LoopLag()
    lag.start()
    lag.start()
    assert len(loop.timers) == 1


def test_a_stopped_sampler_leaves_no_timer(loop: HandDrivenLoop) -> None:
    """After `stop` nothing is due; what was seen is kept, and it can be started again."""
    lag = LoopLag()
    lag.start()
    loop.fire(late=0.1)
    lag.stop()
    assert not loop.timers
    assert lag.snapshot().count == 1
    lag.start()
    assert len(loop.timers) == 1


def test_on_another_loop_it_starts_anew(loop: HandDrivenLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller made at import may be served by one loop after another."""
    lag = LoopLag()
    lag.start()
    second = HandDrivenLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: second)
    lag.start()
    assert not loop.timers
    assert len(second.timers) == 1


def test_without_a_loop_it_says_so() -> None:
    """There is nothing to sample in a plain script."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        LoopLag().start()


def test_it_samples_trio() -> None:
    """The same on trio: the clock jumps past the due time, and the difference is the lag."""
    clock = MockClock()
    lag = LoopLag(interval=0.25)

    async def main() -> None:
        lag.start()
        lag.start()
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(0.75)
        await trio.testing.wait_all_tasks_blocked()
        assert lag.snapshot().count == 1
        assert lag.last == pytest.approx(0.5)
        lag.stop()
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(10)
        await trio.testing.wait_all_tasks_blocked()
        assert lag.snapshot().count == 1

    trio.run(main, clock=clock)


@pytest.mark.parametrize("interval", [0, -1, 61])
def test_an_interval_out_of_range_is_refused(interval: float) -> None:
    """The error names the option, the value and the range."""
    with pytest.raises(ValueError, match=r"interval is .* at least 0.01 and at most 60"):
        LoopLag(interval=interval)
