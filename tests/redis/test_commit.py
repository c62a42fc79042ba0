"""Group commit: what is asked for while a call is under way goes out together with the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from admission.backends.redis.commit import MOST_CALLS, MOST_OPERATIONS, Committer, Heard
from admission.backends.redis.exchange import Unreachable
from admission.backends.redis.script import Op

pytestmark = pytest.mark.anyio


@dataclass
class Echo:
    """What a reply is to the committer: an answer for each operation."""

    answers: list[Op]


@dataclass
class Server:
    """Answers each call with its own operations, when it is told to."""

    batches: list[list[Op]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    failing: int = 0
    failure: type[Exception] = Unreachable

    async def call(self, ops: Sequence[Op]) -> Echo:
        """One batch."""
        self.batches.append(list(ops))
        await self.open.wait()
        if self.failing:
            self.failing -= 1
            raise self.failure("gone")
        return Echo(list(ops))


async def turns() -> None:
    """Let what was begun come to its end; what has failed waits longer than that for its next try."""
    for _ in range(20):
        await asyncio.sleep(0)


def committer(server: Server) -> Committer:
    return Committer(server.call, lambda reply: None)  # type: ignore[arg-type]


async def test_what_one_iteration_of_the_loop_asks_for_leaves_in_one_call() -> None:
    """Nothing is sent at once: a hundred requests that were read together are one batch."""
    server = Server()
    server.open.set()
    commit, heard = committer(server), []
    for number in range(100):
        commit.send(f"offer {number}", heard.append)  # type: ignore[arg-type]
    await commit.drain()
    assert server.batches == [[f"offer {number}" for number in range(100)]]
    assert heard == server.batches[0]


async def test_a_batch_grows_while_calls_are_under_way() -> None:
    """Two calls at most, however many callers: the rest gathers."""
    server = Server()
    commit = committer(server)
    for number in range(10):
        commit.send(f"offer {number}")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [len(batch) for batch in server.batches] == [1] * MOST_CALLS
    server.open.set()
    await commit.drain()
    assert [len(batch) for batch in server.batches] == [1] * MOST_CALLS + [10 - MOST_CALLS]


async def test_a_call_carries_no_more_than_it_may_and_nothing_is_left_behind() -> None:
    """The script blocks its server: a burst is cut into portions, each in order."""
    server = Server()
    server.open.set()
    commit = committer(server)
    for number in range(2 * MOST_OPERATIONS + 1):
        commit.send(f"offer {number}")
    await commit.drain()
    assert [len(batch) for batch in server.batches] == [MOST_OPERATIONS, MOST_OPERATIONS, 1]
    assert [op for batch in server.batches for op in batch] == [f"offer {n}" for n in range(2 * MOST_OPERATIONS + 1)]
    assert commit.statistics.largest == MOST_OPERATIONS


async def test_what_frees_capacity_stands_before_what_needs_it() -> None:
    """So a release and the next offer of one process are one hop."""
    server = Server()
    server.open.set()
    commit = committer(server)
    commit.send("offer 1")
    commit.send("release 2", first=True)
    await commit.drain()
    assert server.batches == [["release 2", "offer 1"]]


async def test_an_offer_withdrawn_before_it_left_costs_nothing() -> None:
    """Afterwards it is too late to take it back."""
    server = Server()
    server.open.set()
    commit = committer(server)
    commit.send("offer 1")
    assert commit.unsend("offer 1")
    commit.send("offer 2")
    await commit.drain()
    assert server.batches == [["offer 2"]]
    assert not commit.unsend("offer 2")


async def test_a_failed_batch_goes_again_before_all_else() -> None:
    """Nothing is lost and nothing overtakes it."""
    server = Server(failing=1)
    server.open.set()
    commit, heard = committer(server), []
    commit.send("offer 1", heard.append)  # type: ignore[arg-type]
    await turns()
    assert heard == []
    commit.send("offer 2", heard.append)  # type: ignore[arg-type]
    commit.resume()
    await commit.drain()
    assert server.batches == [["offer 1"], ["offer 1", "offer 2"]]
    assert heard == ["offer 1", "offer 2"]


async def test_a_call_that_keeps_failing_unforeseen_is_tried_again_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else a mistake fills the log twenty times a second. The next one after a success is logged again."""
    server = Server(failing=3, failure=AttributeError)
    server.open.set()
    commit = committer(server)
    commit.send("offer 1")
    await commit.drain()
    assert server.batches == [["offer 1"]] * 4
    assert caplog.text.count("AttributeError: gone") == 1
    server.failing = 1
    commit.send("offer 2")
    await commit.drain()
    assert caplog.text.count("AttributeError: gone") == 2


async def test_what_was_said_last_is_done_last() -> None:
    """An operation that is asked for again before it left stands where it was said last, not first."""
    server = Server()
    server.open.set()
    commit = committer(server)
    for op in ("pause", "resume", "pause"):
        commit.send(op)
    await commit.drain()
    assert server.batches == [["resume", "pause"]]


async def test_everyone_who_asks_the_same_is_told() -> None:
    """Before it left, and when a failed batch goes again together with the next one."""
    server = Server(failing=1)
    server.open.set()
    commit, heard = committer(server), []

    def listener(name: str) -> Heard:
        return lambda answer: heard.append(name)

    commit.send("look", listener("first"))
    commit.send("look", listener("second"))
    await turns()
    commit.send("look", listener("third"))
    commit.resume()
    await commit.drain()
    assert server.batches == [["look"], ["look"]]
    assert heard == ["first", "second", "third"]


async def test_a_listener_that_fails_keeps_nobody_else_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""
    server = Server()
    server.open.set()
    commit, heard = committer(server), []

    def fails(answer: object) -> None:
        raise ValueError("no")

    commit.send("offer 1", fails)
    commit.send("offer 2", heard.append)  # type: ignore[arg-type]
    await commit.drain()
    assert heard == ["offer 2"]
    assert "failed on what the server answered" in caplog.text


async def test_drain_tries_again_at_once_and_as_often_as_it_takes() -> None:
    """What is said last, before the connection is closed, must not be lost to a failure just before."""
    server = Server(failing=3)
    server.open.set()
    commit, heard = committer(server), []
    commit.send("offer 1")
    await turns()
    commit.send("leave", heard.append)  # type: ignore[arg-type]
    await commit.drain()
    assert heard == ["leave"]
    assert server.batches == [["offer 1"], *[["offer 1", "leave"]] * 3]


async def test_drain_ends_when_the_other_side_is_gone() -> None:
    """Then nothing is sent any more."""
    server = Server()
    commit = committer(server)
    commit.send("offer 1")
    await turns()
    draining = asyncio.ensure_future(commit.drain())
    await turns()
    commit.suspend()
    server.failing = 1
    server.open.set()
    await draining
    assert server.batches == [["offer 1"]]


async def test_who_wants_the_calls_under_way_answered_waits_for_those_alone() -> None:
    """Not for what is said meanwhile; and no longer than it will."""
    server = Server()
    commit = committer(server)
    await commit.answered(60.0)
    commit.send("release")  # type: ignore[arg-type]
    await turns()
    await commit.answered(0.0)
    waiting = asyncio.create_task(commit.answered(60.0))
    await turns()
    assert not waiting.done()
    server.open.set()
    await turns()
    server.open.clear()
    commit.send("said later")  # type: ignore[arg-type]
    await waiting
    assert not commit.idle
    server.open.set()
    await commit.drain()


async def test_heavy_operations_travel_in_smaller_batches() -> None:
    """They weigh as much as many; one that is too heavy for any batch goes alone, and none is overtaken."""
    server = Server()
    server.open.set()
    weights = {"light": 1, "heavy": MOST_OPERATIONS // 2, "huge": 2 * MOST_OPERATIONS}
    commit = Committer(server.call, lambda reply: None, weigh=lambda op: weights[op.split()[0]])  # type: ignore[arg-type, var-annotated, attr-defined]
    said = ["light 1", "heavy 1", "heavy 2", "huge 1", "light 2", "light 3", "heavy 3"]
    for op in said:
        commit.send(op)
    await commit.drain()
    assert server.batches == [said[:2], said[2:3], said[3:4], said[4:]]


async def test_what_is_forgotten_is_not_tried_again() -> None:
    """Unless somebody else asked for the same."""
    server = Server(failing=1)
    server.open.set()
    commit, mine, others = committer(server), [], []
    commit.send("offer 1", mine.append)  # type: ignore[arg-type]
    commit.send("offer 2", others.append)  # type: ignore[arg-type]
    await turns()
    commit.send("offer 3", listener := mine.append)  # type: ignore[arg-type]
    commit.forget("offer 3", listener)
    commit.forget("offer 2", listener)
    commit.forget("offer 1", next(iter(commit._first.values())))  # type: ignore[arg-type]
    commit.resume()
    await commit.drain()
    assert server.batches == [["offer 1", "offer 2"], ["offer 2"]]
    assert (mine, others) == ([], ["offer 2"])


async def test_what_is_forgotten_while_its_call_is_under_way_is_not_tried_again_either() -> None:
    """The call fails after whoever asked has given up."""
    server = Server(failing=1)
    commit, heard = committer(server), []
    listener = heard.append
    commit.send("offer 1", listener)  # type: ignore[arg-type]
    commit.send("offer 2", listener)  # type: ignore[arg-type]
    await turns()
    commit.forget("offer 1", listener)  # type: ignore[arg-type]
    server.open.set()
    await commit.drain()
    assert server.batches == [["offer 1", "offer 2"], ["offer 2"]]
    assert heard == ["offer 2"]
    assert commit.idle
