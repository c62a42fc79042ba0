"""Who takes jobs under one process's name: workers that share a controller share its name, too.

What the server believes of a process it believes of all of them. So only one that is alone may compare notes with it,
and only the last one may say goodbye.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from admission.jobs import script
from admission.jobs.store import PATIENCE, JobStore

__all__ = ["come", "is_alone", "leave"]

_takers: Counter[str] = Counter()
"""How many there are, by the process's name in the pool."""


def come(process: str) -> None:
    """One more takes jobs. It must `leave` in the end."""
    _takers[process] += 1


def is_alone(process: str) -> bool:
    """Whether nobody else takes jobs under this name."""
    return _takers[process] == 1


async def leave(store: JobStore) -> bool:
    """Say the last reports, and the last taker says goodbye. False: that was not heard in time.

    The goodbye goes when all else is answered: two calls may be under way at once, and what overtakes it would be said
    by a process that is there again.
    """
    process = store.process
    _takers[process] -= 1
    is_last = not _takers[process]
    if is_last:
        del _takers[process]
    try:
        async with asyncio.timeout(PATIENCE * store.site.timeout):
            await store.drain()
            if is_last:
                store.send(script.leave())
                await store.drain()
    except TimeoutError:
        return False
    return True
