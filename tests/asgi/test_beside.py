"""Something that goes on beside a request lasts as long as the request, on every event loop."""

from __future__ import annotations

import anyio
import pytest
from scripted import settle

from admission.asgi.beside import beside

pytestmark = pytest.mark.anyio


class Work:
    """Goes on until cancelled."""

    def __init__(self) -> None:
        self.begun = False
        self.over = False

    async def __call__(self) -> None:
        self.begun = True
        try:
            await anyio.sleep_forever()
        finally:
            self.over = True


async def test_the_block_has_the_result_and_ends_the_work() -> None:
    """Work that would never end is cancelled with the block's return."""
    work = Work()

    async def block() -> int:
        await settle()
        assert work.begun
        return 42

    assert await beside(work, block) == 42
    await settle()
    assert work.over


async def test_what_the_block_raises_comes_out_as_it_was() -> None:
    """Not as a group of one."""
    work = Work()

    async def block() -> None:
        await settle()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await beside(work, block)
    await settle()
    assert work.over


async def test_a_cancelled_block_takes_the_work_with_it() -> None:
    """Nothing goes on when the request is over."""
    work = Work()
    with anyio.CancelScope() as scope:

        async def block() -> None:
            await settle()
            scope.cancel()
            await anyio.sleep_forever()

        await beside(work, block)
    await settle()
    assert scope.cancelled_caught
    assert work.over


async def test_a_block_that_is_done_at_once_never_starts_the_work() -> None:
    """Or starts it only to cancel it; in no case is anything left behind."""
    work = Work()

    async def block() -> None:
        return

    await beside(work, block)
    await settle()
    assert work.over is work.begun
