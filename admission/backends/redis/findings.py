"""What a server's own words and the time it takes mean for pools: numbers in, sentences out.

Nothing is asked here; `fitness` does that.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How a finding is meant."""

    OK = 0
    """As it should be."""
    NOTE = 1
    """Good to know: a promise is weaker, or a thing could not be looked at."""
    WARNING = 2
    """It will hurt some day."""
    UNFIT = 3
    """It does not work, or must not be relied on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence, or a few, about one side of a server."""

    level: Level
    about: str
    """What was looked at, in a word or two: "version", "memory", "persistence" …"""
    text: str
    server: str = ""
    """Which node of a cluster is meant; empty when there is only one server."""

    def __str__(self) -> str:
        where = f"{self.server}: " if self.server else ""
        return f"{where}{self.text}"


OLDEST = (6, 2)
OLDEST_CLUSTER = (7, 0)
"""The first with sharded channels, which is how a pool in a cluster wakes its processes."""

QUICK, SLOW = 0.002, 0.010
"""Seconds a round trip takes at most where all is well, and where it is only worth a note."""

FULL = 0.8
"""Share of `maxmemory` in use from which on it is time to act."""

CLOCKS = 1.0
"""Seconds by which two clocks may differ without a word."""


def parse_info(text: str) -> Mapping[str, str]:
    """The fields of an answer to INFO, by name."""
    lines = (line.partition(":") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value.strip() for name, _, value in lines}


def of_version(information: Mapping[str, str], *, clustered: bool) -> Iterator[Finding]:
    """Whether the server is new enough."""
    valkey = information.get("valkey_version")
    name = "Valkey" if valkey else "Redis"
    version = valkey or information.get("redis_version", "")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    oldest, why = (OLDEST_CLUSTER, " in a cluster") if clustered else (OLDEST, "")
    if not numbers:
        yield Finding(level=Level.NOTE, about="version", text="It does not tell its version.")
    elif numbers < oldest:
        needed = ".".join(map(str, oldest))
        text = f"{name} {version} is too old: pools need {needed} or newer{why}."
        yield Finding(level=Level.UNFIT, about="version", text=text)
    else:
        yield Finding(level=Level.OK, about="version", text=f"{name} {version}.")


def of_role(information: Mapping[str, str], *, clustered: bool) -> Iterator[Finding]:
    """Whether this is a server to write to, and one of the kind the URL names."""
    if information.get("role") == "slave":
        primary = f"{information.get('master_host')}:{information.get('master_port')}"
        text = (
            f"This is a replica, which takes no writes: name its primary, {primary}, or let Sentinels find it "
            "(redis+sentinel://)."
        )
        yield Finding(level=Level.UNFIT, about="role", text=text)
    is_cluster = information.get("cluster_enabled") == "1"
    if is_cluster and not clustered:
        text = "This is one node of a cluster, and a pool may be on another one: write redis+cluster:// in the URL."
        yield Finding(level=Level.UNFIT, about="cluster", text=text)
    if clustered and not is_cluster:
        text = "This is no node of a cluster: write redis:// in the URL."
        yield Finding(level=Level.UNFIT, about="cluster", text=text)
    if clustered and is_cluster:
        text = "One pool is one slot, so one pool is on one node: several pools spread over the cluster, one does not."
        yield Finding(level=Level.OK, about="cluster", text=text)


def of_memory(information: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the server may throw our keys away, and whether it has room."""
    policy = information.get("maxmemory_policy")
    limit, used = int(information.get("maxmemory", 0)), int(information.get("used_memory", 0))
    if policy is None:
        yield Finding(
            level=Level.NOTE, about="memory", text="It does not tell its maxmemory-policy: see to noeviction."
        )
        return
    if policy != "noeviction":
        if limit:
            text = (
                f"maxmemory-policy is {policy}: when memory runs out, the server throws away part of a pool, its "
                "limit or its jobs. Set it to noeviction, and keep caches on another server."
            )
            yield Finding(level=Level.UNFIT, about="memory", text=text)
            return
        text = (
            f"maxmemory-policy is {policy}. Without maxmemory that does nothing yet; set it to noeviction before "
            "somebody sets maxmemory."
        )
        yield Finding(level=Level.WARNING, about="memory", text=text)
    if limit and used > FULL * limit:
        text = (
            f"{used / limit:.0%} of maxmemory ({_size(limit)}) is in use. When it is full, newcomers get what "
            "`on_outage` says, while slots are still given back."
        )
        yield Finding(level=Level.WARNING, about="memory", text=text)
    elif limit and policy == "noeviction":
        text = f"It evicts nothing, and {_size(used)} of {_size(limit)} are in use."
        yield Finding(level=Level.OK, about="memory", text=text)
    elif policy == "noeviction":
        text = (
            f"It evicts nothing, and {_size(used)} are in use. There is no maxmemory: if the machine runs out of "
            "memory, the kernel kills it."
        )
        yield Finding(level=Level.NOTE, about="memory", text=text)


def of_persistence(information: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Finding]:
    """What is left after the server was killed."""
    if information.get("aof_last_write_status", "ok") != "ok":
        text = "It cannot write its append-only file and refuses every change: look at its disk, and at its log."
        yield Finding(level=Level.UNFIT, about="persistence", text=text)
    elif information.get("rdb_last_bgsave_status", "ok") != "ok":
        text = (
            "Its last snapshot failed. Unless stop-writes-on-bgsave-error is off, it refuses every change until one "
            "succeeds: look at its disk, and at its log."
        )
        yield Finding(level=Level.WARNING, about="persistence", text=text)
    if information.get("aof_enabled") == "1":
        yield _of_append_only_file(settings.get("appendfsync"))
    elif "aof_enabled" not in information:
        text = (
            "It does not tell whether it keeps an append-only file, without which a crash loses the order of the line, "
            "and durable jobs."
        )
        yield Finding(level=Level.NOTE, about="persistence", text=text)
    else:
        left = "goes back to its last snapshot" if settings.get("save") else "is empty"
        text = (
            f"It keeps no append-only file: after a crash it {left}. Processes claim again what they hold and who "
            "waits, so requests get over that; the order of the line and what tenants had used are lost, and durable "
            "jobs with them. Where that is too much, set appendonly yes."
        )
        yield Finding(level=Level.NOTE, about="persistence", text=text)


def _of_append_only_file(fsync: str | None) -> Finding:
    if fsync == "no":
        text = (
            "It keeps an append-only file, but appendfsync is no: a crash of the machine loses what the kernel had not "
            "written, half a minute or so. Set it to everysec."
        )
        return Finding(level=Level.WARNING, about="persistence", text=text)
    lost = {"always": "loses nothing that was answered", "everysec": "loses a second at most"}.get(fsync or "")
    text = "It keeps an append-only file" + (f": a crash of the machine {lost}." if lost else ".")
    return Finding(level=Level.OK, about="persistence", text=text)


def of_replication(
    information: Mapping[str, str], settings: Mapping[str, str], *, clustered: bool
) -> Iterator[Finding]:
    """What a failover may lose, if there can be one."""
    if information.get("role") == "slave":
        return
    replicas = int(information.get("connected_slaves", 0))
    wanted = int(settings.get("min-replicas-to-write", 0))
    good = int(information.get("min_slaves_good_slaves", replicas))
    if wanted > good:
        text = f"min-replicas-to-write is {wanted}, and {good} are in step: it refuses every change until more are."
        yield Finding(level=Level.UNFIT, about="replication", text=text)
    elif not replicas:
        missing = "this node of the cluster" if clustered else "it"
        text = f"It has no replica: while {missing} is down, `on_outage` decides."
        yield Finding(level=Level.NOTE, about="replication", text=text)
    else:
        many = "1 replica" if replicas == 1 else f"{replicas} replicas"
        text = (
            f"It has {many}. After a failover the last grants may be missing: the limit may then be exceeded by as "
            "many slots, until the processes that hold them have claimed them and enough came back."
        )
        if not wanted and settings:
            text += " min-replicas-to-write 1 keeps a primary that is cut off from granting on by itself."
        yield Finding(level=Level.OK if wanted else Level.NOTE, about="replication", text=text)


def of_latency(times: Sequence[float]) -> Finding:
    """How long a round trip takes, from here: every request pays for two at most, one to get in and one to get out."""
    ordered = sorted(times)
    median, worst = statistics.median(ordered), ordered[-1]
    numbers = f"A round trip takes {_duration(median)} (median of {len(ordered)}; the longest {_duration(worst)})."
    if median <= QUICK:
        return Finding(level=Level.OK, about="latency", text=numbers)
    advice = "Every request waits for one before it runs, so the server belongs near the processes that share the pool."
    return Finding(level=Level.NOTE if median <= SLOW else Level.WARNING, about="latency", text=f"{numbers} {advice}")


def of_clock(ahead: float) -> Iterator[Finding]:
    """What it means that its clock is *ahead* of ours by so many seconds."""
    if abs(ahead) <= CLOCKS:
        yield Finding(level=Level.OK, about="clock", text="Its clock and this machine's agree.")
        return
    text = (
        f"Its clock is {_duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this machine's. Pools go by the "
        "server's alone, so that harms nothing but the comparison of logs."
    )
    yield Finding(level=Level.NOTE, about="clock", text=text)


def of_rights(denied: Sequence[str], *, user: str, namespace: str, clustered: bool) -> Iterator[Finding]:
    """What follows from the commands that were refused."""
    if not denied:
        text = f"The user {user!r} may do everything a pool needs."
        yield Finding(level=Level.OK, about="rights", text=text)
        return
    shown = f"{{{namespace}:*"
    sharded = " +spublish +ssubscribe +sunsubscribe +cluster" if clustered else ""
    text = (
        f"The user {user!r} is refused {', '.join(denied)} on the pools' keys or channels. This gives it all that is "
        f"needed: ACL SETUSER {user} ~{shown} &{shown} +@read +@write +@connection +eval +evalsha +time "
        f"+publish +subscribe +unsubscribe{sharded} +info"
    )
    yield Finding(level=Level.UNFIT, about="rights", text=text)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
