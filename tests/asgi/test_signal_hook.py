"""The line is sent away by the signal itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import anyio
import pytest
from scripted import Gate, Visitor, guarded, settle

from admission.asgi.shutdown import SignalHook, server_connection_limit

pytestmark = pytest.mark.anyio


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """A server's own SIGTERM handler, and what it has heard."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGTERM, before)


async def test_sigterm_drains_the_line_and_reaches_the_server(heard: list[int]) -> None:
    """Whoever waits gets 503 at once; the server's own handler is called as ever; running work goes on."""
    gate = Gate()
    pool = guarded(gate)
    running, waiting, over = Visitor(), Visitor(), anyio.Event()

    async def wait() -> None:
        await waiting.call(pool)
        over.set()

    async with anyio.create_task_group() as group:
        group.start_soon(running.call, pool)
        await settle()
        group.start_soon(wait)
        await settle()
        signal.raise_signal(signal.SIGTERM)
        with anyio.fail_after(10):
            await over.wait()
        assert heard == [signal.SIGTERM]
        assert waiting.status == 503
        gate.open()
    assert running.status == 200
    pool._hook.uninstall()


async def test_it_puts_back_what_was_there(heard: list[int]) -> None:
    """Unless another hook came later: then ours only passes calls on."""
    there = signal.getsignal(signal.SIGTERM)
    drained: list[bool] = []
    hook = SignalHook(lambda: drained.append(True))
    assert hook.install()
    assert hook.install()
    hook.uninstall()
    assert signal.getsignal(signal.SIGTERM) is there
    hook.install()
    later = SignalHook(lambda: None)
    later.install()
    hook.uninstall()
    signal.raise_signal(signal.SIGTERM)
    await settle()
    assert heard == [signal.SIGTERM]
    assert drained == []
    later.uninstall()


async def test_a_signal_nobody_handles_is_left_alone() -> None:
    """The process ends at once there; and tests and scripts keep their Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert not SignalHook(lambda: None).install()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_a_connection_limit_below_the_pool_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn's `--limit-concurrency` counts idle sockets and would answer health checks with 503."""

    class Transport:
        def get_protocol(self) -> object:
            return type("HttpToolsProtocol", (), {"limit_concurrency": 10})()

    class Cycle(Visitor):
        transport = Transport()

    gate = Gate()
    gate.open()
    visitor = Cycle()
    assert server_connection_limit(visitor.receive) == 10
    assert server_connection_limit(print) is None
    await visitor.call(guarded(gate))
    assert "--limit-concurrency is 10" in caplog.text
