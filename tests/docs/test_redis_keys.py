"""The page about the keys of a shared pool says what the script does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest
import redis
from fences import ROOT

from admission import BackpressureMode, FixedLimit, PriorityClass
from admission.backends.base import PoolRules
from admission.backends.redis import script
from admission.backends.redis.script import Script, SharedRules
from admission.types import Reason
from tests.redis.servers import valkey

PAGE = (ROOT / "docs" / "reference" / "redis-keys.md").read_text("utf-8")

PROCESS = "0123456789abcdef"

RULES = PoolRules(
    name="chat",
    limit=FixedLimit(1),
    classes=(PriorityClass(name="only", max_delay=10),),
    max_queue_size=2,
    mode=BackpressureMode.BLOCK,
    max_lobby_size=1,
    max_queued_per_tenant=None,
    refuse_hopeless=False,
)


def documented() -> dict[str, str]:
    """Key → type, from the table."""
    return dict(re.findall(r"^\| `(\w+)` \| (hash|zset) \|", PAGE, re.MULTILINE))


class Pool:
    """A pool that one process uses, and someone who looks at it from outside."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._script = Script("prod", "chat")
        self._rules = SharedRules(RULES, limit=1, version=1)
        self.key = {name: key for name, key in zip(documented(), self._script.keys, strict=True)}

    def step(self, *ops: script.Op) -> Sequence[script.Answer]:
        """What the script answers to these operations."""
        keys, arguments = self._script.call(self._rules, PROCESS, ops)
        return self._script.parse(self._client.eval(Script.source, len(keys), *keys, *arguments)).answers

    def kinds(self) -> dict[str, str]:
        """Of each key, what the server says it is."""
        return {name: self._client.type(key).decode() for name, key in self.key.items()}

    def record(self, name: str, field: str) -> str:
        """A field of a hash."""
        return self._client.hget(self.key[name], field).decode()


@pytest.fixture
def pool() -> Iterator[Pool]:
    """On a server with nothing else in it: a ticket that runs, two in line, one in the lobby."""
    with valkey() as running, running.client() as client:
        used = Pool(client)
        used.step(script.beat(10_000_000, None), offer(1, "greedy"), *(offer(n, "modest") for n in (2, 3, 4)))
        yield used


def offer(number: int, tenant: str) -> script.Op:
    """A newcomer that waits for a minute at most."""
    return script.offer(f"{PROCESS}:{number}", 0, tenant, 1, 1000, 60_000_000, Reason.TIMEOUT, True)


def test_every_key_is_in_the_table_in_the_order_of_the_script() -> None:
    """None is missing and none is invented; the head of the script says the same."""
    prefix = "{prod:chat}"
    assert [f"{prefix}{key}" for key in documented()] == list(Script("prod", "chat").keys)
    assert re.findall(r"^--   (\w+) +(HASH|ZSET) ", Script.source, re.MULTILINE) == [
        (key, kind.upper()) for key, kind in documented().items()
    ]


def test_every_key_has_the_type_in_the_table(pool: Pool) -> None:
    """In a pool in which someone runs, waits, stands in the lobby, and has left with more used than the others."""
    granted = script.hold(f"{PROCESS}:1", None, 0, "greedy", 1, 1000)
    (found,) = pool.step(granted)
    assert isinstance(found, script.Decision)
    assert found.fence is not None
    pool.step(script.release(f"{PROCESS}:1", found.fence, 50_000))
    assert pool.kinds() == documented()


def test_tickets_are_written_as_shown(pool: Pool) -> None:
    """One that runs and one that waits."""
    assert re.fullmatch(r"running 1 \d+:1 \d+ 0:greedy", pool.record("d", f"{PROCESS}:1"))
    waits = pool.record("d", f"{PROCESS}:2")
    assert re.fullmatch(r"line 1 1000 \d+ 2 \d+ \d+ evicted-timeout .* 0:modest", waits)
    assert pool.record("d", f"{PROCESS}:4").startswith("lobby 1 ")
    assert pool.record("st", "pool").startswith("in_use=1 limit=1 queued=2 lobby=1 ")


def test_an_idle_pool_leaves_the_keys_the_page_names(pool: Pool) -> None:
    """With its process there, and after it has left."""
    pool.step(*(script.withdraw(f"{PROCESS}:{number}", Reason.CANCELLED) for number in (4, 3, 2, 1)))
    assert left(pool) == {"st", "lease", "proc"}
    pool.step(script.leave())
    assert left(pool) == {"st"}


def left(pool: Pool) -> set[str]:
    """The keys there are."""
    return {name for name, kind in pool.kinds().items() if kind != "none"}
