"""Whatever stands in the queue, nothing runs but registered tasks with arguments that fit, and the worker lives on.

A queue is as trustworthy as whoever may write to its server; a worker trusts nothing in it.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
from typing import Any

import httpx
import pytest
import redis

from admission import Retry
from admission.errors import BadArguments, PayloadTooLarge, UnknownTask
from admission.jobs import BuryKind, JobState, script
from tests.jobs.workshop import Shop, shop

__all__ = ["shop"]

pytestmark = pytest.mark.anyio

BAD, UNKNOWN = BuryKind.BAD_ARGUMENTS, BuryKind.UNKNOWN_TASK

PICKLE = pickle.dumps(os.system)

DEPTH = 100_000


def body(args: object = None, **more: object) -> str:
    """The body of a job of the good task, if its arguments are good."""
    return json.dumps({"task": "good", "args": {"number": 1} if args is None else args, **more})


def option(**options: object) -> str:
    """A job with options of its own."""
    return body(options=options)


UNREADABLE = {
    "nothing": ("", UNKNOWN),
    "not JSON": ("}{", UNKNOWN),
    "a number": ("17", UNKNOWN),
    "a list": ("[]", UNKNOWN),
    "null": ("null", UNKNOWN),
    "a pickle as text": (PICKLE.decode("latin-1"), UNKNOWN),
    "a pickle in base64": (base64.b64encode(PICKLE).decode(), UNKNOWN),
    "a control character": ("\x80\x04\x95", UNKNOWN),
    "no task": ('{"args":{}}', UNKNOWN),
    "deep brackets": ("[" * DEPTH, UNKNOWN),
    "balanced deep brackets": ("[" * DEPTH + "]" * DEPTH, UNKNOWN),
    "deep objects": ('{"task":' * DEPTH, UNKNOWN),
}

UNKNOWN_TASKS = {
    f"task {name!r:.40}": (json.dumps({"task": name, "args": {}}), UNKNOWN)
    for name in (
        "missing",
        "os.system",
        "__import__",
        "tests.jobs.test_jobs_hostile:good",
        "builtins.eval",
        "good\n",
        "good ",
        "GOOD",
        "g\x00od",
        "../good",
        "",
        "x" * 100_000,
        None,
        17,
        ["good"],
        {"good": "good"},
    )
}

MISFITS = {
    "no arguments": ('{"task":"good"}', BAD),
    "a missing argument": (body({}), BAD),
    "an extra argument": (body({"number": 1, "shell": "sh"}), BAD),
    "an argument of another type": (body({"number": "one"}), BAD),
    "a null": (body({"number": None}), BAD),
    "a list of arguments": (body([1]), BAD),
    "text for arguments": (body("number=1"), BAD),
    "an argument that is deep": ('{"task":"good","args":{"number":' + "[" * DEPTH + "}", BAD),
    "NaN": (body({"number": float("nan")}), BAD),
    "an infinity": (body({"number": float("inf")}), BAD),
    "a huge exponent": ('{"task":"good","args":{"number":1e999999}}', BAD),
    "a dunder": (body({"__class__": "x", "number": 1}), BAD),
    "a field beside": (body(__reduce__=["os.system", ["true"]]), BAD),
    "the task twice": ('{"task":"good","task":"os.system","args":{"number":1}}', BAD),
    "half of it": (body()[:-1], UNKNOWN),
    "something after it": (body() + "{}", UNKNOWN),
    "options that are a list": (body(options=[1]), BAD),
    "metadata that is text": (body(metadata="x"), BAD),
    "an unknown option": (option(function="os.system"), BAD),
    "a negative timeout": (option(timeout=-1), BAD),
    "no time at all": (option(timeout=0), BAD),
    "a timeout of text": (option(timeout="1"), BAD),
    "a timeout that is no number": (option(timeout=float("nan")), BAD),
    "an endless timeout": (option(timeout=float("inf")), BAD),
    "a billion attempts": (option(retry={"max_attempts": 10**9}), BAD),
    "retries of text": (option(retry="exponential"), BAD),
    "retry on a dotted path": (option(retry={"max_attempts": 2, "retry_on": ["os.system"]}), BAD),
    "an option of a retry there is not": (option(retry={"function": "os.system"}), BAD),
    "a negative delay": (option(retry={"max_attempts": 2, "delays": [-1]}), BAD),
    "an infinite cost": (option(cost=float("inf")), BAD),
    "a cost of text": (option(cost="1"), BAD),
    "a callback there is not": (option(on_success="os.system"), BAD),
    "a callback that is a list": (option(on_success=["good"]), BAD),
    "a callback that is an object": (option(on_failure={"task": "good"}), BAD),
    "a name to store as that is a list": (option(store_as=["x"]), BAD),
    "a name to store as with a line break": (option(store_as="x\ny"), BAD),
}

CORPUS = {**UNREADABLE, **UNKNOWN_TASKS, **MISFITS}


class Runs:
    """The tasks of a shop, and what was called."""

    def __init__(self, shop: Shop) -> None:
        self.called: list[object] = []

        @shop.queue.task
        async def good(number: int) -> int:
            self.called.append(number)
            return number

        @shop.queue.task
        def plain(number: int) -> int:
            self.called.append(number)
            return number

        self.good = good
        self.plain = plain


@pytest.fixture
def runs(shop: Shop) -> Runs:
    """Two tasks, async and not."""
    return Runs(shop)


async def write(shop: Shop, bodies: dict[str, str]) -> None:
    """Put jobs straight into the queue, ids and bodies as given."""
    rank = shop.queue.default_rank
    await shop.queue.put_all([script.put(id, rank, "", 1000, 0, "", "", text) for id, text in bodies.items()])


def numbered(names: dict[str, Any]) -> dict[str, str]:
    """An id for each."""
    return {f"{number:024x}": name for number, name in enumerate(names, 1)}


async def test_nothing_of_the_corpus_runs_and_the_worker_lives_on(
    shop: Shop, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a dead letter of the right kind, after one delivery; good jobs before and after it run."""
    monkeypatch.setattr(os, "system", lambda command: runs.called.append(command))
    before = set(sys.modules)
    ids = numbered(CORPUS)
    first = await runs.good.enqueue(1)
    await write(shop, {id: CORPUS[name][0] for id, name in ids.items()})
    async with shop.worker(workers=3):
        last = await runs.plain.enqueue(2)
        assert (await first.result(30), await last.result(30)) == (1, 2)
        letters = await shop.letters(len(CORPUS))
        assert await (await runs.good.enqueue(3)).result(30) == 3
    assert {ids[letter.id]: letter.kind for letter in letters} == {name: kind for name, (_, kind) in CORPUS.items()}
    assert {letter.deliveries for letter in letters} == {1}
    assert sorted(map(str, runs.called)) == ["1", "2", "3"]
    assert {name for name in set(sys.modules) - before if name.startswith(("tests", "os"))} == set()


async def test_the_corpus_can_be_looked_at_and_thrown_away(shop: Shop, runs: Runs) -> None:
    """In the queue and among the dead letters; requeued, it fails in the same way."""
    ids = numbered(CORPUS)
    await write(shop, {id: CORPUS[name][0] for id, name in ids.items()})
    assert len(await shop.queue.ls(state=JobState.QUEUED, limit=1000)) == len(CORPUS)
    async with shop.worker():
        letters = await shop.letters(len(CORPUS))
        for letter in letters[:5]:
            await shop.queue.dead.requeue(letter.id)
        await shop.letters(len(CORPUS))
    for letter in letters:
        assert len(letter.arguments) <= 1000
        assert len(letter.error) <= 1000
    assert await shop.queue.purge(state=JobState.DEAD) == len(CORPUS)
    assert runs.called == []


@pytest.mark.parametrize(
    "raw",
    [b"\x80\x04\x95\x1d", b"\xff\xfe", PICKLE, b"\x00", b'{"task":"good","args":{"number":"\xff"}}', b"\xed\xa0\x80"],
)
async def test_bytes_that_are_no_text_are_a_dead_letter(
    shop: Shop, runs: Runs, redis_url: str, namespace: str, raw: bytes
) -> None:
    """Written past the script, which never looks at them; the replies that tell of others too must still be read."""
    await write(shop, {"a" * 24: body(), "b" * 24: body()})
    with redis.Redis.from_url(redis_url) as client:
        client.hset(f"{{{namespace}:{shop.queue.pool}}}j:body", "a" * 24, raw)  # type: ignore[arg-type]
    assert len(await shop.queue.ls()) == 2
    async with shop.worker(workers=1):
        (letter,) = await shop.letters(1)
        assert await (await runs.good.enqueue(2)).result(30) == 2
    assert letter.kind in (BAD, UNKNOWN)
    assert runs.called == [1, 2]


async def test_a_body_that_is_gone_is_a_dead_letter(shop: Shop, runs: Runs, redis_url: str, namespace: str) -> None:
    """Evicted, or deleted by hand."""
    await write(shop, {"a" * 24: body(), "b" * 24: body()})
    with redis.Redis.from_url(redis_url) as client:
        client.hdel(f"{{{namespace}:{shop.queue.pool}}}j:body", "a" * 24)
    async with shop.worker(workers=1):
        (letter,) = await shop.letters(1)
        assert await (await runs.good.enqueue(2)).result(30) == 2
    assert letter.kind is UNKNOWN
    assert runs.called == [1, 2]


# ---------------------------------------------------------------------- at enqueue


async def test_a_payload_of_100_mb_is_refused_with_the_limit(shop: Shop, runs: Runs) -> None:
    """Nothing of it is sent."""

    @shop.queue.task
    async def keep(text: str) -> None:
        runs.called.append(text)

    with pytest.raises(
        PayloadTooLarge, match=r"104,8\d\d,\d\d\d bytes: it must be at most 1,048,576 \(max_payload_bytes\)"
    ):
        await keep.enqueue("x" * (100 * 1024 * 1024))
    assert (await shop.queue.stats()).enqueued_total == 0


async def test_a_payload_of_100_mb_over_http_is_refused_with_the_limit(shop: Shop, runs: Runs) -> None:
    """Whatever length it declares; it is not gathered in memory."""

    async def flood() -> Any:
        for _ in range(100):
            yield b" " * 1024 * 1024

    transport = httpx.ASGITransport(shop.queue.asgi(tasks=["good"]))
    async with httpx.AsyncClient(transport=transport, base_url="http://jobs") as client:
        response = await client.post("/good", content=flood(), headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert "1,048,576" in response.text
        good = await client.post("/good", json={"number": 1})
        assert good.status_code == 202
    assert (await shop.queue.stats()).enqueued_total == 1


@pytest.mark.parametrize(
    "args",
    [{}, {"number": "one"}, {"number": 1, "shell": "sh"}, {"number": [[]]}, {"number": float("nan")}, {"number": None}],
)
async def test_arguments_that_do_not_fit_are_refused_at_enqueue(shop: Shop, runs: Runs, args: dict[str, Any]) -> None:
    """By name; nothing is stored."""
    with pytest.raises(BadArguments, match=r"task 'good': .*(number|shell)"):
        await runs.good.enqueue(**args)
    assert (await shop.queue.stats()).enqueued_total == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"delay": -1}, "delay is -1"),
        ({"delay": float("inf")}, "delay is inf"),
        ({"delay": 1e300}, "delay is 1e"),
        ({"cost": -1}, "cost is -1"),
        ({"tenant": "a\nb"}, "tenant is .*control characters"),
        ({"tenant": "x" * 1000}, "tenant is .*1000 bytes"),
        ({"dedup_key": "\x00"}, "dedup_key is .*control characters"),
        ({"priority": "root"}, "priority is 'root'"),
        ({"store_as": "../x\n"}, "store_as is .*control characters"),
        ({"metadata": {"x": float("nan")}}, "metadata has NaN"),
        ({"metadata": {"x": object()}}, "metadata cannot be written"),
    ],
)
async def test_absurd_options_are_refused_at_enqueue(
    shop: Shop, runs: Runs, options: dict[str, Any], said: str
) -> None:
    """By name; nothing is stored."""
    with pytest.raises((ValueError, BadArguments), match=said):
        await runs.good.with_options(**options).enqueue(1)
    assert (await shop.queue.stats()).enqueued_total == 0


async def test_a_billion_attempts_and_unknown_callbacks_are_refused(shop: Shop, runs: Runs) -> None:
    """Before anything is stored."""
    with pytest.raises(ValueError, match="max_attempts"):
        Retry.fixed(max_attempts=10**9, delay=1)
    with pytest.raises(UnknownTask, match=r"on_success is 'os\.system'"):
        runs.good.with_options(on_success="os.system")
    assert (await shop.queue.stats()).enqueued_total == 0
