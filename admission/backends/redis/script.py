"""The one Lua script of a shared pool, and the words spoken with it.

    operations ─▶ Script.call ─▶ (KEYS, ARGV) ─▶ step.lua ─▶ reply   ─▶ Script.parse ─▶ Reply
                                                        └──▶ message ─▶ Script.parse_message ─▶ decisions

An operation is a few words, made by the functions of this module and by nothing else; making and parsing them is on the
hot path of every request. All of them may be sent twice: an id that is known answers its present state, and a
fence names one grant.

Times on the wire are whole microseconds and charges whole tag units (`policy.fairness`); what is parsed is in seconds.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from admission.backends.base import PoolRules
from admission.policy.shares import MICRO
from admission.types import MAX_CLASSES, BackpressureMode, PriorityClass, Reason

__all__ = [
    "MOST_OPERATIONS",
    "Answer",
    "ClassLook",
    "Decision",
    "Fence",
    "Garbled",
    "Kind",
    "Look",
    "Op",
    "Page",
    "Place",
    "ProcessLook",
    "Reply",
    "Script",
    "SharedRules",
    "TenantLook",
    "beat",
    "close",
    "digest",
    "hold",
    "leave",
    "look",
    "mine",
    "offer",
    "pause",
    "position",
    "release",
    "reopen",
    "resize",
    "resume",
    "withdraw",
]

MOST_OPERATIONS = 1000
"""Operations one call may carry."""

PROCESS_DIGITS = 16
"""Hex digits that name a process, and begin the ids of its tickets."""

_ID = re.compile(rf"[0-9a-f]{{{PROCESS_DIGITS}}}:[0-9a-f]{{1,16}}")

_DIGEST_MODULUS = 2**52

_MOST_BYTES = 4_000_000
"""Longest message that is looked at: a thousand decisions are far shorter."""

Word = str | int

Op = tuple[Word, ...]
"""One operation: a verb and its arguments. Made by the functions below, and only by them."""

Fence = tuple[int, int]
"""(epoch, number) of a grant: later grants compare greater, also after the server has lost some."""


class Kind(IntEnum):
    """What was decided about a ticket."""

    GRANTED = 1
    """It runs; `fence` names the grant."""
    WAITING = 2
    """In line."""
    LOBBY = 3
    ENTERED = 4
    """It has moved from the lobby into the line."""
    REFUSED = 5
    """`reason` says whether it was rejected or evicted."""
    DONE = 6
    """The operation was done."""
    STALE = 7
    """Not done: the fence is that of another grant."""
    GONE = 8
    """There is no such ticket any more. Told, not asked for: its slots were given to others."""
    MORE = 9
    """Done in part: send it again."""


class Decision(NamedTuple):
    """What became of a ticket."""

    id: str
    """Empty in an answer: answers stand in the order of the operations."""
    kind: Kind
    reason: Reason | None = None
    fence: Fence | None = None
    position: int = 0
    predicted: float | None = None
    """Seconds it will wait; of a refused one, seconds a newcomer of its class would. None while no rate is known."""
    in_use: int = 0
    """Slots in use just after the grant."""


class Place(NamedTuple):
    """Where a ticket stands now."""

    position: int
    """0: it runs."""
    predicted: float | None
    held_back_by: str
    """The rule that binds it, by name."""
    rank: int
    tenant: str
    waited: float | None
    """Seconds since it came; None when it runs."""


class Page(NamedTuple):
    """Some of the tickets the pool has of this process."""

    ids: Sequence[str]
    next: str
    """Where to go on with `mine`; empty after the last page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLook:
    """One class of the pool."""

    in_use: int
    running: int
    queued: int
    lobby: int
    cap: int
    paused: bool
    credit: float
    """Slots' worth of guaranteed starts it may claim next."""
    oldest_wait: float
    """Seconds. Without a rule that asks for the oldest waiter: of the next hundred."""
    predicted_wait: float | None
    """Seconds a newcomer would wait; None while no rate is known."""
    held_back_by: str | None
    """The rule that keeps its head from running now; None with an empty line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLook:
    """One tenant of one class."""

    rank: int
    tenant: str
    running: int
    queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLook:
    """One process that shares the pool."""

    process: str
    slots: int
    """Slots its tickets hold."""
    running: int
    waiting: int
    lease_left: float
    """Seconds; at 0 or below its slots are about to be given to others."""
    joined: float
    """When it came, in seconds of the pool's clock: the least is the eldest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The whole pool, for people and metrics."""

    paused: bool
    closed: bool
    drain_rate: float | None
    """Grants per second while someone waits; None while unknown."""
    classes: tuple[ClassLook, ...]
    tenants: tuple[TenantLook, ...]
    """The busiest."""
    tenants_active: int
    processes: tuple[ProcessLook, ...]


Answer = Decision | Place | Page | Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one call brought."""

    answers: Sequence[Answer]
    """One per operation, in their order."""
    told: Sequence[Decision]
    """About other tickets of the calling process, in order; later than any answer that says otherwise."""
    now: float
    """Seconds of the pool's clock."""
    epoch: int
    fence: int
    """Number of the latest grant."""
    in_use: int
    limit: int
    queued: int
    lobby: int
    next_event: float | None
    """Seconds until time alone decides something, if anyone calls then; None when nothing is due."""
    resync: bool
    """The process and the pool disagree on what the process has: it should say what it holds."""
    version: int
    """Of the rules in force: above the caller's own when a newer process has brought others."""
    repaired: int
    """Slots by which the counters were found wrong, and corrected."""


class Garbled(ValueError):
    """What was received is no reply or message of this script."""


# ---------------------------------------------------------------------- rules


class SharedRules:
    """The rules of a pool as they travel with every call. Of two that differ, the higher version wins.

    Args:
        rules: What the pool is to be; its `limit` is not read.
        limit: Slots that may be in use, when these rules come into force. `resize` changes it later.
        version: At least 1.

    Raises:
        ValueError: An argument is outside its range.
    """

    __slots__ = ("encoded", "limit", "rules", "version")

    def __init__(self, rules: PoolRules, *, limit: int, version: int) -> None:
        if not 1 <= version < 2**53:
            raise ValueError(f"version is {version}: it must be at least 1 and below 2**53")
        if not 1 <= limit < 2**31:
            raise ValueError(f"limit is {limit}: it must be at least 1 and below 2**31")
        if not 1 <= len(rules.classes) <= MAX_CLASSES:
            raise ValueError(f"{len(rules.classes)} classes: there must be 1 to {MAX_CLASSES}")
        self.rules = rules
        self.limit = limit
        self.version = version
        pool = _named(
            limit=limit,
            max_queue_size=rules.max_queue_size,
            block=1 if rules.mode is BackpressureMode.BLOCK else None,
            max_lobby_size=rules.max_lobby_size,
            max_queued_per_tenant=rules.max_queued_per_tenant,
            refuse_hopeless=1 if rules.refuse_hopeless else None,
        )
        self.encoded: tuple[Word, ...] = (version, pool, len(rules.classes), *map(_encoded_class, rules.classes))
        """The pool's rules, and those of its classes by rank; only what differs from a plain one is said."""


def _encoded_class(rules: PriorityClass) -> str:
    interval = allowance = target = codel_interval = None
    if rules.rate is not None:
        burst = rules.burst if rules.burst is not None else max(1, math.floor(rules.rate))
        interval = 1e6 / rules.rate
        allowance = (burst - 1) * interval
    if rules.codel_target is not None:
        target = _microseconds(rules.codel_target)
        codel_interval = 10 * target if rules.codel_interval is None else _microseconds(rules.codel_interval)
    return _named(
        guaranteed=round(rules.guaranteed * MICRO) or None,
        ceiling=rules.ceiling if rules.ceiling < 1 else None,
        max_delay=None if rules.max_delay is None else _microseconds(rules.max_delay),
        start_interval=interval,
        start_allowance=allowance,
        max_queued=rules.max_queued,
        codel_target=target,
        codel_interval=codel_interval,
        exempt=1 if rules.exempt else None,
    )


def _named(**values: float | None) -> str:
    return " ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


# ---------------------------------------------------------------------- operations


def offer(
    id: str,
    rank: int,
    tenant: str,
    slots: int,
    charge: int,
    expires_in_us: int | None,
    expires_as: Reason,
    may_wait: bool,
) -> Op:
    """Take in a newcomer: GRANTED, WAITING, LOBBY or REFUSED. One that is known answers its present state.

    Args:
        id: `<process>:<hex digits>`, with 16 hex digits for the process.
        charge: `Flow.charge(cost)`.
        expires_in_us: Microseconds until it stops waiting, as *expires_as*. None: never.
        may_wait: False refuses it (BUSY) unless it can run at once.
    """
    patience = "-" if expires_in_us is None else expires_in_us
    return "offer", id, f"{rank}:{tenant}", slots, charge, patience, expires_as._value_, 1 if may_wait else 0


def release(id: str, fence: Fence, difference: int = 0) -> Op:
    """A running ticket ended: DONE, STALE (it runs under another fence) or GONE.

    Args:
        difference: Actual charge - estimated charge.
    """
    return "release", id, f"{fence[0]}:{fence[1]}", difference


def withdraw(id: str, reason: Reason) -> Op:
    """The ticket goes, wherever it is: a waiter leaves, a running one gives its slots back. DONE or GONE."""
    return "withdraw", id, reason.value


def hold(id: str, fence: Fence | None, rank: int, tenant: str, slots: int, charge: int) -> Op:
    """This ticket runs, whatever the pool believes: it counts, also above the limit. GRANTED, maybe under a new fence.

    Args:
        fence: The one it was granted under; None when this process let it in by itself.
    """
    epoch, number = fence or (0, 0)
    return "hold", id, f"{epoch}:{number}", f"{rank}:{tenant}", slots, charge


def is_id(text: str) -> bool:
    """Whether *text*, which a client may have sent, is the id of a ticket."""
    return _ID.fullmatch(text) is not None


def position(id: str) -> Op:
    """Where it stands: a `Place`, or GONE."""
    return "position", id


def resize(limit: int) -> Op:
    """From now on there are *limit* slots, for every process."""
    return "resize", limit


def pause(rank: int | None) -> Op:
    """Start nothing more of one class, or of any, in every process."""
    return "pause", "-" if rank is None else rank


def resume(rank: int | None) -> Op:
    """Take a pause back."""
    return "resume", "-" if rank is None else rank


def close() -> Op:
    """Drain the whole pool: evict all waiters of every process, refuse newcomers."""
    return ("close",)


def reopen() -> Op:
    """Take newcomers in again."""
    return ("reopen",)


def beat(ttl_us: int, digest: int | None) -> Op:
    """Renew the lease of this process; and recount a portion of the pool.

    Args:
        ttl_us: Microseconds from now at which it ends, unless renewed.
        digest: See `digest`: when the pool's own differs, the reply says `resync`. None: not compared.
    """
    return "beat", ttl_us, "-" if digest is None else digest


def look(tenants: int = 20) -> Op:
    """The whole pool, with its busiest tenants: a `Look`, as it stands at the end of the call."""
    return "look", tenants


def leave() -> Op:
    """Goodbye: all this process has is given back, its lease ends. DONE, or MORE."""
    return ("leave",)


def mine(after: str = "") -> Op:
    """The tickets the pool has of this process: a `Page`, as they are at the end of the call."""
    return "mine", after


def digest(waiting: Iterable[str], running: Iterable[str]) -> int:
    """The fingerprint of the tickets a process has, by id: those in line or lobby, and those that run."""
    total = sum(map(_mark, waiting)) + 2 * sum(map(_mark, running))
    return total % _DIGEST_MODULUS


def _mark(id: str) -> int:
    number = int(id[PROCESS_DIGITS + 1 :][-6:], 16)
    return number * number + 1


# ---------------------------------------------------------------------- calls


class Script:
    """The script, for one pool.

    Args:
        namespace: Put before every key.
        pool: Name of the pool. Neither may contain a brace: together they are the cluster's hash tag.

    Raises:
        ValueError: One of them contains a brace.
    """

    source: ClassVar[str] = Path(__file__).with_name("step.lua").read_text(encoding="utf-8")
    sha: ClassVar[str] = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    __slots__ = ("_prefix", "keys")

    def __init__(self, namespace: str, pool: str) -> None:
        if any(brace in namespace + pool for brace in "{}"):
            raise ValueError(f"namespace {namespace!r}, pool {pool!r}: they must not contain braces")
        self._prefix = f"{{{namespace}:{pool}}}"
        self.keys: tuple[str, ...] = tuple(
            f"{self._prefix}{name}" for name in ("st", "d", "own", "lease", "proc", "w", "old", "due", "f", "debt")
        )

    def channel(self, process: str) -> str:
        """Where decisions about tickets of that process are published."""
        return f"{self._prefix}to:{process}"

    def call(
        self,
        rules: SharedRules,
        process: str,
        ops: Sequence[Op],
        *,
        sharded: bool = False,
        seen: Fence | None = None,
        now_us: int | None = None,
    ) -> tuple[Sequence[str], Sequence[Word]]:
        """KEYS and ARGV of one call.

        Args:
            process: 16 hex digits, new with every start.
            ops: Done in this order.
            sharded: The server is a cluster: publish by SPUBLISH.
            seen: The latest (epoch, fence) this process has heard of. A pool that is behind it has lost something,
                begins a new epoch and asks for a resync.
            now_us: The time, for tests. None: the server's.

        Raises:
            ValueError: There are too many operations, or *process* is no name for one.
        """
        if len(ops) > MOST_OPERATIONS:
            raise ValueError(f"{len(ops)} operations in one call: there may be {MOST_OPERATIONS}")
        if len(process) != PROCESS_DIGITS:
            raise ValueError(f"process is {process!r}: it must be {PROCESS_DIGITS} hex digits")
        epoch, fence = seen or (0, 0)
        time = "-" if now_us is None else now_us
        publish = "SPUBLISH" if sharded else "PUBLISH"
        return self.keys, [process, time, publish, epoch, fence, *rules.encoded, *chain.from_iterable(ops)]

    def parse(self, reply: object) -> Reply:
        """The reply of the script.

        Raises:
            Garbled: It is no reply of this script.
        """
        fields: Any = reply  # Whatever is wrong with it shows below.
        try:
            now, epoch, fence, in_use, limit, queued, lobby, due, resync, version, repaired, answers, told = fields
            return Reply(
                answers=[_answer(answer) for answer in answers],
                told=[_told(line) for line in told],
                now=now / 1e6,
                epoch=epoch,
                fence=fence,
                in_use=in_use,
                limit=limit,
                queued=queued,
                lobby=lobby,
                next_event=None if due < 0 else max(0, due - now) / 1e6,
                resync=resync == 1,
                version=version,
                repaired=repaired,
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise Garbled(f"no reply of the pool's script: {reply!r:.200}") from error

    def parse_message(self, message: bytes) -> list[Decision]:
        """What another process's call has decided about tickets of this one.

        Raises:
            Garbled: It is no message of this script.
        """
        if len(message) > _MOST_BYTES:
            raise Garbled(f"a message of {len(message)} bytes: there may be {_MOST_BYTES}")
        try:
            return [_told(line) for line in message.split(b"\n")]
        except (ValueError, KeyError, IndexError) as error:
            raise Garbled(f"no message of the pool's script: {message!r:.200}") from error


_REASONS = {reason.value.encode(): reason for reason in Reason}

_PLAIN = {kind.value: Decision("", kind) for kind in (Kind.DONE, Kind.STALE, Kind.GONE, Kind.MORE)}

_PLACE, _PAGE, _LOOK = 10, 11, 12

# Bound to names: reading a member off its enum costs more than all else that is done with it.
_GRANTED, _ENTERED, _REFUSED, _GONE = Kind.GRANTED, Kind.ENTERED, Kind.REFUSED, Kind.GONE
_WAITS = {Kind.WAITING.value: Kind.WAITING, Kind.LOBBY.value: Kind.LOBBY}


def _answer(answer: Any) -> Answer:
    if answer.__class__ is int:
        return _PLAIN[answer]
    kind = answer[0]
    if kind == 1:
        _, epoch, number, in_use = answer
        return Decision("", _GRANTED, None, (epoch, number), 0, None, in_use)
    if kind == 5:
        _, reason, position, predicted = answer
        return Decision("", _REFUSED, _REASONS[reason], None, position, _seconds(predicted))
    if kind == _PLACE:
        _, position, predicted, binding, key, waited = answer
        rank, _, tenant = key.partition(b":")
        return Place(position, _seconds(predicted), binding.decode(), int(rank), tenant.decode(), _seconds(waited))
    if kind == _PAGE:
        _, after, ids = answer
        return Page([id.decode() for id in ids], after.decode())
    if kind == _LOOK:
        return _look(answer)
    _, position, predicted = answer
    return Decision("", _WAITS[kind], None, None, position, _seconds(predicted))


def _told(line: bytes) -> Decision:
    kind, id, *more = line.split(b" ")
    if kind == b"1":
        epoch, number, in_use = more
        return Decision(id.decode(), _GRANTED, None, (int(epoch), int(number)), 0, None, int(in_use))
    if kind == b"5":
        reason, predicted = more
        return Decision(id.decode(), _REFUSED, _REASONS[reason], None, 0, _seconds(int(predicted)))
    return Decision(id.decode(), {b"4": _ENTERED, b"8": _GONE}[kind])


def _seconds(microseconds: int) -> float | None:
    return None if microseconds < 0 else microseconds / 1e6


def _look(answer: Any) -> Look:
    _, paused, closed, drain, classes, tenants, active, processes = answer
    return Look(
        paused=paused == 1,
        closed=closed == 1,
        drain_rate=float(drain) if drain else None,
        classes=tuple(map(_class_look, classes)),
        tenants=tuple(
            TenantLook(rank=rank, tenant=tenant.decode(), running=running, queued=queued)
            for rank, tenant, running, queued in tenants
        ),
        tenants_active=active,
        processes=tuple(
            ProcessLook(
                process=name.decode(),
                slots=slots,
                running=running,
                waiting=waiting,
                lease_left=left / 1e6,
                joined=joined / 1e6,
            )
            for name, slots, running, waiting, left, joined in processes
        ),
    )


def _class_look(answer: Any) -> ClassLook:
    in_use, running, queued, lobby, cap, paused, credit, oldest_wait, predicted, binding = answer
    return ClassLook(
        in_use=in_use,
        running=running,
        queued=queued,
        lobby=lobby,
        cap=cap,
        paused=paused == 1,
        credit=credit / MICRO,
        oldest_wait=oldest_wait / 1e6,
        predicted_wait=_seconds(predicted),
        held_back_by=binding.decode() or None,
    )
