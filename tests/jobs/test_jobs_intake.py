"""When a worker looks, and what it says of itself: with a server whose answers the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from admission import AdmissionController
from admission.jobs import script
from admission.jobs.intake import Arrivals, Intake
from admission.jobs.script import Answer, Message, Op, Reply, Said
from admission.jobs.store import JobStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """An intake belongs to an asyncio loop."""
    return "asyncio"


class HeldServer:
    """A store to which nobody answers until the test does."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.failing = False
        self.unanswered = 0
        self.asked: list[tuple[Op, Callable[[Answer], None]]] = []

    def send(self, op: Op, answered: Callable[[Answer], None]) -> None:
        self.asked.append((op, answered))

    def about(self, verb: str) -> list[Op]:
        """What is under way of that kind."""
        return [op for op, _ in self.asked if op[0] == verb]

    def answers(self, intake: Intake, verb: str, ready: list[int]) -> None:
        """The oldest operation of that kind is done, and so many jobs are ready then."""
        (place, answered), *_ = [(n, answered) for n, (op, answered) in enumerate(self.asked) if op[0] == verb]
        del self.asked[place]
        self.reply = Reply(answers=[Said.DONE], told=[], now=0.0, ready=ready, next_due=None, waiting=0)
        intake.heard(self.reply)
        answered(Said.DONE)


def an_intake(server: HeldServer, pool: AdmissionController) -> Intake:
    """With four places, for everybody's jobs."""
    nobody = cast(Arrivals, None)  # No job arrives.
    return Intake(cast(JobStore, server), pool, nobody, places=4, tenants=None, steal=None)


async def turns() -> None:
    """Let everything happen that is due."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_wanted_is_said_anew_only_after_the_answer_to_the_word_before() -> None:
    """Of two under way the older one may arrive last, and then nobody wakes this worker for what it wants now."""
    server = HeldServer()
    pool = AdmissionController(max_concurrency=1)
    held = await pool.acquire()
    intake = an_intake(server, pool)
    intake.open()
    server.answers(intake, "tick", [0, 0, 1, 0])
    await turns()
    assert server.about("want") == [script.want([0, 1, 3], None, None)]
    intake.told(Message("wake", "3"))
    server.answers(intake, "tick", [0, 0, 0, 0])
    await turns()
    assert len(server.about("want")) == 1
    server.answers(intake, "want", [0, 0, 0, 0])
    await turns()
    assert server.about("want") == [script.want([0, 1, 2, 3], None, None)]
    intake.close()
    held.release()


async def test_nothing_is_taken_on_a_permit_of_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the pool is out of reach jobs wait, from the instant in which it is known."""
    server = HeldServer()
    pool = AdmissionController(max_concurrency=1)
    intake = an_intake(server, pool)
    intake.open()
    server.answers(intake, "tick", [0, 0, 1, 0])
    await asyncio.sleep(0)
    assert pool.in_flight == 1
    monkeypatch.setattr(pool._backend, "cut_off", True, raising=False)
    await turns()
    assert (server.about("take"), pool.in_flight) == ([], 0)
    monkeypatch.undo()
    intake.look_soon()
    await turns()
    assert server.about("take") == [script.take(2, 1, None, None)]
    intake.close()
