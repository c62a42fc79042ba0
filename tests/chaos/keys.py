"""What the pool's keys say, read from the server directly, past everything that is broken on purpose."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from admission.backends.redis.script import Kind, Script
from tests.redis.servers import Server

BOOKKEEPING = ("st",)
"""Last parts of keys that stay while a pool is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The pool's own books."""

    in_use: int
    waiting: int
    """In line and lobby."""
    tickets: int
    """Entries in `d`."""
    processes: Sequence[str]
    """Those that have a lease."""

    @property
    def empty(self) -> bool:
        """Whether nobody runs or waits."""
        return self.in_use == self.waiting == self.tickets == 0


class Keys:
    """The keys of one pool, and what is published about lost permits."""

    def __init__(self, server: Server, namespace: str, pool: str) -> None:
        self.server = server
        self._namespace = namespace
        self._script = Script(namespace, pool)
        names = ("st", "d", "own", "lease", "proc", "w", "old", "due", "f", "debt")
        self._keys = dict(zip(names, self._script.keys, strict=True))
        self._told: redis.client.PubSub | None = None
        self._client: redis.Redis | None = None
        self.lost: dict[str, int] = {}
        """Tickets whose slots were given to others, and when that was heard."""
        self.attach(server)

    def attach(self, server: Server) -> None:
        """Look at this server from now on; called again when its connections were broken."""
        self.close()
        self.server = server
        self._client = server.client(decode_responses=True)
        self._told = server.client().pubsub()
        self._told.psubscribe(self._script.channel("*").replace("[", r"\["))
        self._told.get_message(timeout=5.0)

    def close(self) -> None:
        """Look no more."""
        if self._told is not None:
            self._told.close()
        if self._client is not None:
            self._client.close()

    @property
    def client(self) -> redis.Redis:
        """A connection of this side's own."""
        assert self._client is not None
        return self._client

    def hear(self) -> None:
        """Take in everything published until now: when this returns, nothing older is missing."""
        assert self._told is not None
        self._told.ping("now")
        while True:
            message = self._told.get_message(timeout=5.0)
            if message is None:
                raise TimeoutError(f"{self.server} did not answer a PING on the channel")
            if message["type"] == "pong":
                return
            if message["type"] == "pmessage":
                for decision in self._script.parse_message(message["data"]):
                    if decision.kind is Kind.GONE:
                        self.lost.setdefault(decision.id, time.monotonic_ns())

    def books(self) -> Books:
        """As they stand."""
        pipe = self.client.pipeline(transaction=True)
        pipe.hmget(self._keys["st"], "in_use", "queued", "lobby")
        pipe.hlen(self._keys["d"])
        pipe.zrange(self._keys["lease"], 0, -1)
        (in_use, queued, lobby), tickets, processes = pipe.execute()
        return Books(
            in_use=int(in_use or 0),
            waiting=int(queued or 0) + int(lobby or 0),
            tickets=tickets,
            processes=processes,
        )

    def running(self) -> set[str]:
        """Ids of the tickets the pool takes for running."""
        return {id for id, record in self.client.hgetall(self._keys["d"]).items() if record.startswith("running")}

    def lease_ends(self, process: str) -> float | None:
        """Seconds until the lease of a process ends; None when it has none."""
        ends = self.client.zscore(self._keys["lease"], process)
        if ends is None:
            return None
        seconds, microseconds = self.client.time()
        return float(ends) / 1e6 - seconds - microseconds / 1e6

    def leaked(self) -> list[str]:
        """Keys of the pool that are left, but for its bookkeeping; and the beginning of what is in them."""
        found = self.client.scan_iter(match=f"*{self._namespace}*", count=1000)
        return [self._shown(key) for key in sorted(found) if key.rpartition("}")[2] not in BOOKKEEPING]

    def _shown(self, key: str) -> str:
        read = {"hash": self.client.hgetall, "zset": lambda key: self.client.zrange(key, 0, -1, withscores=True)}
        return f"{key}: {read[self.client.type(key)](key)!s:.200}"
