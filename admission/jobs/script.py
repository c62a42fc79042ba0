"""The words of the jobs' script: operations, answers, and how both are written.

Nothing here does any I/O. `jobs.lua` says what each operation does to the keys; this says how to ask and what is heard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from admission.jobs.types import BuryKind, JobState

ID_DIGITS = 24
"""Lower hex digits of a job's id, made by whoever enqueues it: so a lost reply is safe to ask for again."""

MOST_TAKEN = 256
"""Jobs one `take` brings at most."""

MOST_OPERATIONS = 1000
"""Operations one call may carry."""

PROCESS_DIGITS = 16
"""Hex digits that name a process."""

_MOST_BYTES = 4_000_000
"""Longest message that is looked at."""

_OF_POOL = ("st", "lease")

_KEYS = (
    *_OF_POOL,
    *(
        f"j:{name}"
        for name in (
            *("st", "job", "body", "res", "ready", "ring", "debt", "tag", "delayed", "taken"),
            *("dead", "done", "dedup", "procs", "hungry"),
        )
    ),
)

Word = str | int

Op = tuple[Word, ...]
"""One operation: a verb and its arguments. Made by the functions below, and only by them."""

Tenants = tuple[str, ...]


class Said(IntEnum):
    """An answer that is one word."""

    DONE = 1
    STALE = 2
    """Not done: the job was delivered again since, or is over."""
    UNKNOWN = 3
    """There is no such job."""
    FULL = 4
    """The queue has as many jobs as it may."""
    RUNNING = 5
    """A worker has it; that one is told."""


class Duplicate(NamedTuple):
    """A job was not taken in: its deduplication key is another one's."""

    id: str
    """Of that one."""


class Taken(NamedTuple):
    """One delivery of a job."""

    id: str
    delivery: int
    """With the id, the fence: what a later delivery made stale is refused."""
    attempt: int
    """The first is 1."""
    backs: int
    """How often it was handed back for want of a thread."""
    lost: int
    """How often it was delivered to a process that died with it."""
    rank: int
    tenant: str
    enqueued: float
    """Seconds since the epoch."""
    first_started: float
    """When its first attempt was delivered: now, for the first."""
    body: str


class Took(NamedTuple):
    """What a `take` brought."""

    jobs: Sequence[Taken]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A job as it is kept."""

    id: str
    state: JobState
    rank: int
    tenant: str
    attempt: int
    delivery: int
    enqueued: float
    due: float | None
    started: float | None
    ended: float | None
    position: int
    """1 + the queued jobs of its class and tenant before it; 0 unless it is queued."""
    kind: BuryKind | None
    error: str
    """JSON text of the last error; empty without one."""
    result: str
    """JSON text; empty unless it is done and a result is kept."""
    body: str
    """As it was put."""


class Page(NamedTuple):
    """Some of the jobs in one state."""

    records: Sequence[Record]
    next: str
    """Where to go on with `ls`; empty after the last page."""


class Here(NamedTuple):
    """What this process has by the server's word."""

    deliveries: Sequence[tuple[str, int]]
    """Ids, in order, with the latest delivery of each."""
    more: bool
    """Whether there are more after the last of them."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many a `purge` took, and whether there are more."""

    count: int
    more: bool


class ClassCount(NamedTuple):
    """Numbers of one class."""

    queued: int
    delayed: int
    running: int
    paused: bool
    oldest: float
    """Seconds since the epoch at which its first queued job was enqueued; 0 without one."""


class TenantCount(NamedTuple):
    """Numbers of one tenant in one class."""

    rank: int
    tenant: str
    queued: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The whole queue."""

    paused: bool
    dead: int
    kept: int
    workers: int
    counters: dict[str, int]
    """By name: enqueued, succeeded, failed, retried, handed_back, redelivered, dead, stale."""
    classes: tuple[ClassCount, ...]
    tenants: tuple[TenantCount, ...]


Answer = Said | Duplicate | Took | Record | Page | Here | Count | Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one call brought."""

    answers: Sequence[Answer]
    """One per operation, in their order."""
    told: Sequence[Message]
    """For the calling process itself."""
    now: float
    """Seconds since the epoch, by the server's clock."""
    ready: Sequence[int]
    """Queued jobs by rank; paused classes count 0."""
    next_due: float | None
    """Seconds until a delayed job is ready; None when there is none."""
    waiting: int
    """Tickets that wait in the shared pool, in line and lobby."""


class Message(NamedTuple):
    """What a process is told."""

    verb: str
    """wake: jobs of a class are ready. end: a job it asked for has ended. cancel: a job it runs shall stop."""
    about: str
    """A rank, or the id of a job."""


class Garbled(ValueError):
    """What was received is no reply or message of this script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What travels with every call: of two callers that differ, each is right about its own call."""

    max_queue_size: int = 100_000
    """Jobs queued and delayed; 0 is unlimited."""
    most_deliveries: int = 3
    dead_ttl: float = 7 * 86400.0
    """Seconds a dead letter is kept."""


# ---------------------------------------------------------------------- operations


def put(id: str, rank: int, tenant: str, charge: int, delay_us: int, dedup_key: str, watcher: str, body: str) -> Op:
    """Take in a job: DONE, also when it is known already; `Duplicate`, or FULL.

    Args:
        charge: What fairness charges its tenant on delivery: thousandths of cost / weight.
        delay_us: Microseconds until it is ready.
        dedup_key: While a job with this key is queued, delayed or running, there is no second one. Empty: none.
        watcher: A process that is told when it has ended. Empty: none.
        body: Opaque here.
    """
    return put_like(how(rank, tenant, charge, delay_us, dedup_key, watcher), id, body)


def how(rank: int, tenant: str, charge: int, delay_us: int = 0, dedup_key: str = "", watcher: str = "") -> str:
    """All of a `put` but the id and the body, in one word: made once for many, and taken apart once a call."""
    return f"{delay_us} {watcher or '-'} {rank} {charge} {len(dedup_key.encode())} {dedup_key}{tenant}"


def put_like(how: str, id: str, body: str) -> Op:
    """`put`, as `how` says."""
    return "put", id, how, body


def follow(how: str, id: str, body: str) -> Op:
    """`put_like`, for what comes of a job that has run: it is taken in also where the queue is full, so never FULL."""
    return "follow", id, how, body


def take(rank: int, count: int, tenants: Tenants | None = None, steal: Tenants | None = ()) -> Op:
    """Deliver jobs of one class to this process: `Took`, maybe empty; or STALE while it has no lease.

    Args:
        count: 1 to `MOST_TAKEN`.
        tenants: Only theirs, the first in fair order. None: of every tenant.
        steal: Of whom to take where those have nothing. None: of every tenant; empty: of nobody.
    """
    return "take", rank, count, _names(tenants), _names(steal)


def want(ranks: Sequence[int], tenants: Tenants | None = None, steal: Tenants | None = ()) -> Op:
    """Have this process told `wake RANK` once, when a job that it would take becomes ready, or at once if one is.

    DONE, or STALE: without a lease it could not take it.
    """
    return "want", "".join(map(str, ranks)), _names(tenants), _names(steal)


def done(id: str, delivery: int, result: str, ttl_us: int) -> Op:
    """It succeeded. DONE or STALE.

    Args:
        result: JSON text.
        ttl_us: Microseconds the result is kept; 0: not at all.
    """
    return "done", id, delivery, result, ttl_us


def retry(id: str, delivery: int, delay_us: int, error: str) -> Op:
    """The attempt failed, and another one is due after the delay. DONE or STALE."""
    return "retry", id, delivery, delay_us, error


def back(id: str, delivery: int, delay_us: int, *, counted: bool) -> Op:
    """Hand it back: it was not run, so there was no attempt. DONE or STALE.

    Args:
        counted: Whether it is counted in `Taken.backs`: for want of a thread, not because this process stops.
    """
    return "back", id, delivery, delay_us, 1 if counted else 0


def bury(id: str, delivery: int, kind: BuryKind, error: str) -> Op:
    """It failed for good: to the dead letters. DONE or STALE."""
    return "bury", id, delivery, kind.value, error


def cancel(id: str) -> Op:
    """Take it out of the queue: DONE. RUNNING when a worker has it, which is told. UNKNOWN."""
    return "cancel", id


def look(id: str, watcher: str = "") -> Op:
    """A `Record`, or UNKNOWN.

    Args:
        watcher: A process that is told `end ID` once it has ended, if it has not yet. Empty: none.
    """
    return "look", id, watcher


def ls(state: JobState, rank: int | None, tenant: str | None, after: str, count: int) -> Op:
    """A `Page` of the jobs in one state: queued, delayed, running, dead or done.

    Args:
        rank, tenant: Only these. None: all.
        after: The `next` of the page before; empty for the first.
        count: 1 to 256 jobs looked at; fewer may match.
    """
    return "ls", state.value, "-" if rank is None else rank, "*" if tenant is None else f"={tenant}", after, count


def here(after: str = "") -> Op:
    """`Here`: the jobs that this process runs, as far as the server knows; for whoever missed the reply to a take.

    Args:
        after: The last id of the page before; empty for the first.
    """
    return "here", after


def requeue(id: str) -> Op:
    """A dead letter is queued again, as if new: DONE, UNKNOWN or FULL."""
    return "requeue", id


def drop(id: str) -> Op:
    """A dead letter or a kept result goes: DONE or UNKNOWN."""
    return "drop", id


def purge(state: JobState, rank: int | None, tenant: str | None) -> Op:
    """A portion of the jobs in one state (queued, delayed, dead or done) goes: `Count`."""
    return "purge", state.value, "-" if rank is None else rank, "*" if tenant is None else f"={tenant}"


def pause(rank: int | None) -> Op:
    """Deliver nothing more of one class, or of any. DONE."""
    return "pause", "-" if rank is None else rank


def resume(rank: int | None) -> Op:
    """Take a pause back. DONE."""
    return "resume", "-" if rank is None else rank


def stats() -> Op:
    """`Stats`, as things stand at the end of the call."""
    return ("stats",)


def leave() -> Op:
    """Goodbye: what this process still has is delivered again at once, uncounted. DONE."""
    return ("leave",)


def tick() -> Op:
    """Nothing but what every call does first: due jobs get ready, dead processes' jobs come back. DONE."""
    return ("tick",)


def _names(tenants: Tenants | None) -> str:
    return "*" if tenants is None else "\n".join(("=", *tenants))


# ---------------------------------------------------------------------- calls


class Script:
    """The script, for the jobs of one pool.

    Args:
        namespace: Put before every key.
        pool: Name of the pool. Neither may contain a brace: together they are the cluster's hash tag.

    Raises:
        ValueError: One of them contains a brace.
    """

    source: ClassVar[str] = Path(__file__).with_name("jobs.lua").read_text(encoding="utf-8")
    sha: ClassVar[str] = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    __slots__ = ("_prefix", "keys")

    def __init__(self, namespace: str, pool: str) -> None:
        if any(brace in namespace + pool for brace in "{}"):
            raise ValueError(f"namespace {namespace!r}, pool {pool!r}: they must not contain braces")
        self._prefix = f"{{{namespace}:{pool}}}"
        self.keys: tuple[str, ...] = tuple(f"{self._prefix}{name}" for name in _KEYS)

    def channel(self, process: str) -> str:
        """Where messages for that process are published."""
        return f"{self._prefix}j:to:{process}"

    def value_key(self, name: str) -> str:
        """Where a value that tasks pass on is kept, outside the script."""
        return f"{self._prefix}j:kv:{name}"

    def call(
        self, bounds: Bounds, process: str, ops: Sequence[Op], *, sharded: bool = False, now_us: int | None = None
    ) -> tuple[Sequence[str], Sequence[Word]]:
        """KEYS and ARGV of one call.

        Args:
            process: 16 hex digits; its lease in the pool says whether it lives.
            ops: Done in this order.
            sharded: The server is a cluster: publish by SPUBLISH.
            now_us: The time, for tests. None: the server's.

        Raises:
            ValueError: There are too many operations, or *process* is no name for one.
        """
        if len(ops) > MOST_OPERATIONS:
            raise ValueError(f"{len(ops)} operations in one call: there may be {MOST_OPERATIONS}")
        if len(process) != PROCESS_DIGITS:
            raise ValueError(f"process is {process!r}: it must be {PROCESS_DIGITS} hex digits")
        time = "-" if now_us is None else now_us
        publish = "SPUBLISH" if sharded else "PUBLISH"
        config = bounds.max_queue_size, bounds.most_deliveries, round(bounds.dead_ttl * 1e6)
        words: list[Word] = [process, time, publish, *config]
        for verb, alike in groupby(ops, _VERB):
            arguments = [op[1:] for op in alike]
            words += verb, len(arguments), *chain.from_iterable(arguments)
        return self.keys, words

    def parse(self, reply: object) -> Reply:
        """The reply of the script. Raises Garbled."""
        fields: Any = reply  # Whatever is wrong with it shows below.
        try:
            now, ready, due, waiting, answers, told = fields
            return Reply(
                answers=[_answer(answer) for answer in answers],
                told=[_message(line) for line in told],
                now=now / 1e6,
                ready=ready,
                next_due=None if due < 0 else max(0, due - now) / 1e6,
                waiting=waiting,
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise Garbled(f"no reply of the jobs' script: {reply!r:.200}") from error

    def parse_message(self, message: bytes) -> list[Message]:
        """What this process is told. Raises Garbled."""
        if len(message) > _MOST_BYTES:
            raise Garbled(f"a message of {len(message)} bytes: there may be {_MOST_BYTES}")
        try:
            return [_message(line) for line in message.split(b"\n")]
        except (ValueError, KeyError) as error:
            raise Garbled(f"no message of the jobs' script: {message!r:.200}") from error


_VERB = itemgetter(0)

_SAID = {said.value: said for said in Said}

_STATES = {state.value.encode(): state for state in JobState}

_VERBS = {b"wake": "wake", b"end": "end", b"cancel": "cancel"}

_COUNTERS = ("enqueued", "succeeded", "failed", "retried", "handed_back", "redelivered", "dead", "stale")

_DUPLICATE, _TOOK, _RECORD, _PAGE, _COUNT, _HERE = 6, 7, 8, 9, 10, 12


def _answer(answer: Any) -> Answer:
    if answer.__class__ is int:
        return _SAID[answer]
    kind = answer[0]
    if kind == _DUPLICATE:
        return Duplicate(answer[1].decode())
    if kind == _TOOK:
        return Took(_taken(answer))
    if kind == _RECORD:
        return _record(answer)
    if kind == _PAGE:
        _, after, records = answer
        return Page([_record(record) for record in records], after.decode())
    if kind == _HERE:
        deliveries = [(answer[i].decode(), answer[i + 1]) for i in range(2, len(answer), 2)]
        return Here(deliveries, answer[1] == 1)
    if kind == _COUNT:
        _, count, more = answer
        return Count(count, more == 1)
    return _stats(answer)


def _taken(answer: Any) -> list[Taken]:
    rank = answer[1]
    jobs = []
    for i in range(2, len(answer), 2):
        id, delivery, attempt, backs, lost, enqueued, first, tenant = _text(answer[i]).split(" ", 7)
        counts = int(delivery), int(attempt), int(backs), int(lost)
        jobs.append(Taken(id, *counts, rank, tenant, int(enqueued) / 1e6, int(first) / 1e6, _body(answer[i + 1])))
    return jobs


def _text(written: bytes) -> str:
    """Whatever is written there by whomever: one job that is no text must not cost the reply about all others."""
    return written.decode(errors="replace")


def _body(written: bytes) -> str:
    """The same, but what is no text must not become another job: it is shown, and is no JSON."""
    try:
        return written.decode()
    except UnicodeDecodeError:
        return repr(written)


def _message(line: bytes) -> Message:
    verb, about = line.split(b" ")
    return Message(_VERBS[verb], about.decode())


def _seconds(text: bytes) -> float | None:
    return None if text == b"-" else int(text) / 1e6


def _record(answer: Any) -> Record:
    _, id, state, rank, tenant, attempt, delivery, enqueued, due, started, ended, position, kind, result, body = answer
    known = _STATES[state]
    text = _text(result)
    return Record(
        id=id.decode(),
        state=known,
        rank=rank,
        tenant=_text(tenant),
        attempt=attempt,
        delivery=delivery,
        enqueued=int(enqueued) / 1e6,
        due=_seconds(due),
        started=_seconds(started),
        ended=_seconds(ended),
        position=position,
        kind=BuryKind(kind.decode()) if kind else None,
        error="" if known is JobState.DONE else text,
        result=text if known is JobState.DONE else "",
        body=_body(body),
    )


def _stats(answer: Any) -> Stats:
    _, paused, dead, kept, workers, counters, classes, tenants = answer
    return Stats(
        paused=paused == 1,
        dead=dead,
        kept=kept,
        workers=workers,
        counters=dict(zip(_COUNTERS, counters, strict=True)),
        classes=tuple(
            ClassCount(queued, delayed, running, closed == 1, oldest / 1e6)
            for queued, delayed, running, closed, oldest in classes
        ),
        tenants=tuple(TenantCount(rank, _text(tenant), queued, running) for rank, tenant, queued, running in tenants),
    )
