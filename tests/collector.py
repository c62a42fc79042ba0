"""What is left for the garbage collector, and what should not be.

What refers to itself in a circle is kept until a collection, which stops the server the longer the more it has to look
through: under load that is a pause in everybody's stream.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable

import anyio

Scene = Callable[[list[object]], Awaitable[None]]
"""Something that happens, with pools and executors of its own. Those it keeps in the list: they refer to themselves."""


async def found_by_the_collector(scene: Scene) -> list[str]:
    """Objects of ours that *scene* left behind, by type, after it has happened once before."""
    kept: list[object] = []
    await scene(kept)  # What is made once stays.
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await scene(kept)
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        kinds = [type(thing) for thing in gc.garbage]
        return sorted(kind.__qualname__ for kind in kinds if kind.__module__.startswith("admission."))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
