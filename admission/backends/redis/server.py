"""What stands behind an address: one server, a primary that Sentinels know, or the nodes of a cluster.

redis-py makes the connections: it logs in, speaks TLS, asks Sentinels for the primary, follows a cluster's MOVED and
ASK. Two of its habits are left aside here. It sends a command again after an error, which is for the caller to decide;
and its general way of running a command costs more than the round trip. So one server is asked over connections held
here, and the time limit is the caller's.

A connection whose answer was not read, for whatever reason, is closed: the late answer must not be taken for that of
the next question.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from admission.backends.redis.address import Address, Kind
from admission.errors import AdmissionError

try:
    from hiredis import pack_command
    from redis.asyncio import RedisCluster
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
    from redis.asyncio.connection import Connection as TcpConnection
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import (
        Sentinel,
        SentinelConnectionPool,
        SentinelManagedConnection,
        SentinelManagedSSLConnection,
    )
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as ConnectionFailed
    from redis.exceptions import NoScriptError, ReadOnlyError, RedisClusterException, RedisError, ResponseError
    from redis.exceptions import TimeoutError as TooSlow
except ImportError as absent:
    raise AdmissionError(
        'a shared pool needs the packages redis and hiredis. Install them with: pip install "admission[redis]"'
    ) from absent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FAILURES",
    "Connection",
    "ConnectionFailed",
    "NoScriptError",
    "Ordered",
    "ReadOnlyError",
    "ResponseError",
    "Server",
    "TooSlow",
    "Wire",
    "Word",
    "send",
    "server_at",
]

Word: TypeAlias = str | bytes | int | float
"""What a command is made of."""

Wire: TypeAlias = "bytes | int | list[Wire] | None"
"""What a server answers."""

FAILURES = (RedisError, RedisClusterException, OSError)
"""What asking a server raises when it fails. `ResponseError` among them is an answer."""


class Connection(Protocol):
    """What is used of redis-py's connections."""

    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool = False) -> None: ...
    async def can_read(self) -> bool: ...
    async def send_packed_command(self, command: bytes, check_health: bool = True) -> None: ...
    async def read_response(self, *, timeout: float | None = None) -> Wire: ...


class Ordered(Protocol):
    """A way to ask on which no call overtakes another: several may be under way, and the first is done first."""

    async def call(self, command: Sequence[Word]) -> Wire:
        """As `Server.call`. When one fails, those under way behind it fail as well."""

    async def close(self) -> None:
        """Ask no more this way. Nothing may be under way."""


class Server(Protocol):
    """Whom to ask.

    Attributes:
        sharded: Whether it is a cluster: messages then go over sharded channels.
    """

    sharded: bool

    async def call(self, command: Sequence[Word]) -> Wire:
        """The answer to *command*. Raises one of `FAILURES`."""

    def in_order(self) -> Ordered:
        """A way of its own for calls of which none may overtake another."""

    def line(self, channel: str) -> AbstractAsyncContextManager[Connection]:
        """A connection of its own, not yet connected, to whoever passes on what is published on *channel*."""

    async def forget(self) -> None:
        """Something failed: close idle connections, and find out anew who is to be asked."""

    async def close(self) -> None:
        """Close everything."""


def server_at(address: Address, *, deadline: float) -> Server:
    """Who stands behind *address*. Nothing is connected yet.

    Args:
        deadline: Seconds the caller gives a call: inside it, several Sentinels or nodes may have to be asked.
    """
    if address.kind is Kind.CLUSTER:
        return _Cluster(address, deadline)
    if address.kind is Kind.SENTINEL:
        return _Watched(address, deadline)
    return _Single(_maker(address))


_pack = cast("Callable[[tuple[Word, ...]], bytes]", pack_command)
"""Of hiredis: a call may have thousands of words. (Its type says it takes one.)"""


async def send(connection: Connection, *command: Word) -> None:
    """Send *command*, and read no answer."""
    await connection.send_packed_command(_pack(tuple(command)), check_health=False)


class _Single:
    """One server, over connections of which each has one call under way."""

    sharded = False

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make = make
        self._idle: list[Connection] = []
        self._closed = False

    async def call(self, command: Sequence[Word]) -> Wire:
        connection = await self.connection()
        try:
            await connection.send_packed_command(_pack(tuple(command)), check_health=False)
            answer = await connection.read_response()
        except ResponseError:
            await self.put_back(connection)  # An error is an answer, and it was read.
            raise
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        await self.put_back(connection)
        return answer

    def in_order(self) -> Ordered:
        return _Pipeline(self)

    @asynccontextmanager
    async def line(self, channel: str) -> AsyncIterator[Connection]:
        connection = self._make()
        try:
            yield connection
        finally:
            await connection.disconnect(nowait=True)

    async def forget(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        self._closed = True
        await self.forget()

    async def put_back(self, connection: Connection) -> None:
        """It is asked nothing any more, and all answers were read."""
        if self._closed:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)

    async def connection(self) -> Connection:
        """One that is connected; the last used first, so that those not needed stay idle."""
        while self._idle:
            connection = self._idle.pop()
            if await _usable(connection):
                return connection
            await connection.disconnect(nowait=True)
        connection = self._make()
        try:
            await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection


class _Pipeline:
    """One connection of a server, with several calls under way: a server reads a connection from its beginning.

    Over two connections the later of two calls is done first where it is the shorter one and arrives while the server
    is busy.
    """

    def __init__(self, server: _Single) -> None:
        self._server = server
        self._connection: Connection | None = None
        # Both let in by turns. Whoever has sent is at the other one before the next may send.
        self._sending = asyncio.Lock()
        self._reading = asyncio.Lock()

    async def call(self, command: Sequence[Word]) -> Wire:
        packed = _pack(tuple(command))
        async with self._sending:
            connection = self._connection
            if connection is None:
                connection = self._connection = await self._server.connection()
            try:
                await connection.send_packed_command(packed, check_health=False)
            except BaseException:
                await self._drop(connection)
                raise
        try:
            async with self._reading:
                return await connection.read_response()
        except ResponseError:  # An error is an answer, and it was read.
            raise
        except BaseException:
            await self._drop(connection)
            raise

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._server.put_back(connection)

    async def _drop(self, connection: Connection) -> None:
        """An answer on it was not read: those behind it fail, and the next call begins anew."""
        if self._connection is connection:
            self._connection = None
        await connection.disconnect(nowait=True)


async def _usable(connection: Connection) -> bool:
    """Whether the other side has neither closed it nor sent what nobody asked for."""
    try:
        return not await connection.can_read()
    except FAILURES:
        return False


class _Watched(_Single):
    """The primary that Sentinels know under a name. They are asked whenever a connection is made."""

    def __init__(self, address: Address, deadline: float) -> None:
        # One Sentinel that is gone must leave time to ask the next one, and then the primary.
        patience = deadline / (len(address.hosts) + 1)
        login = {"username": address.sentinel_username, "password": address.sentinel_password}
        self._sentinel: Sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(address.hosts),
            sentinel_kwargs={
                **_PLAIN,
                **login,
                **_tls(address),
                "socket_timeout": patience,
                "socket_connect_timeout": patience,
            },
        )
        options = {**_connection(address), **_tls(address)}
        options["connection_class"] = _SecureWatched if options.pop("ssl", False) else _PlainWatched
        self._pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            address.service, self._sentinel, **options
        )
        super().__init__(cast("Callable[[], Connection]", self._pool.make_connection))

    async def close(self) -> None:
        await super().close()
        await self._sentinel.aclose()


class _Cluster:
    """The nodes of a cluster. A key is asked of the node that has its slot."""

    sharded = True

    def __init__(self, address: Address, deadline: float) -> None:
        self._cluster = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
            **{
                **_connection(address),
                **_tls(address),
                # A node that is gone must leave time to ask another one.
                "socket_timeout": deadline / 2,
                "socket_connect_timeout": deadline / 3,
            },
        )
        connection_class = _Secure if address.tls else _Plain
        self._cluster.connection_kwargs["connection_class"] = connection_class
        for node in self._cluster.startup_nodes:
            node.connection_class = connection_class
        self._astray = False
        """Whether who has which slot may have changed."""

    async def call(self, command: Sequence[Word]) -> Wire:
        await self._find()
        return cast(Wire, await self._cluster.execute_command(*command))

    def in_order(self) -> Ordered:
        return _OneByOne(self)

    @asynccontextmanager
    async def line(self, channel: str) -> AsyncIterator[Connection]:
        await self._find()
        node = self._cluster.get_node_from_key(channel)
        if node is None:
            raise ConnectionFailed(f"no node of the cluster has the slot of the channel {channel!r}")
        connection = node.acquire_connection()
        try:
            await connection.disconnect(nowait=True)
            yield cast(Connection, connection)
        finally:
            await connection.disconnect(nowait=True)
            node.release(connection)

    async def forget(self) -> None:
        self._astray = True

    async def close(self) -> None:
        await self._cluster.aclose()

    async def _find(self) -> None:
        await self._cluster.initialize()
        if self._astray:
            await self._cluster.nodes_manager.initialize()
            self._astray = False


class _OneByOne:
    """Calls of a cluster, each after the answer to the last: redis-py sends each over a connection of its choice."""

    def __init__(self, cluster: _Cluster) -> None:
        self._cluster = cluster
        self._turn = asyncio.Lock()

    async def call(self, command: Sequence[Word]) -> Wire:
        async with self._turn:
            return await self._cluster.call(command)

    async def close(self) -> None:
        pass


class _Abrupt(AbstractConnection):
    """Closes at once where redis-py closes without waiting.

    There it is after an error, or with an answer outstanding. A farewell would go to someone who does not answer: with
    TLS it is waited for in the background for half a minute, and what was not sent yet would still be sent.
    """

    __slots__ = ()

    async def disconnect(
        self,
        nowait: bool = False,
        error: Exception | None = None,
        failure_count: int | None = None,
        health_check_failed: bool = False,
    ) -> None:
        if nowait and self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(nowait, error, failure_count, health_check_failed)


class _Plain(_Abrupt, TcpConnection):
    pass


class _Secure(_Abrupt, SSLConnection):
    pass


class _Local(_Abrupt, UnixDomainSocketConnection):
    pass


class _PlainWatched(_Abrupt, SentinelManagedConnection):
    pass


class _SecureWatched(_Abrupt, SentinelManagedSSLConnection):
    pass


_PLAIN: Mapping[str, Any] = {
    "protocol": 2,  # Neither pushed replies nor a handshake that old servers lack: they are of no use here.
    "driver_info": None,  # No CLIENT SETINFO, which costs a round trip and a permission.
    "retry": Retry(NoBackoff(), 0),
}


def _connection(address: Address) -> dict[str, Any]:
    """What every connection to a server is made with: no time limit, since the caller has one for the whole call."""
    return {
        **_PLAIN,
        "username": address.username,
        "password": address.password,
        "db": address.db,
        "client_name": address.options.get("client_name"),
        "socket_timeout": None,
        "socket_connect_timeout": None,
    }


def _tls(address: Address) -> dict[str, Any]:
    given = {name: value for name, value in address.options.items() if name.startswith("ssl_")}
    return {"ssl": True, **given} if address.tls else {}


def _maker(address: Address) -> Callable[[], Connection]:
    options = _connection(address)
    if address.kind is Kind.SOCKET:
        return lambda: cast(Connection, _Local(path=address.path, **options))
    host, port = address.hosts[0]
    if not address.tls:
        return lambda: cast(Connection, _Plain(host=host, port=port, **options))
    secure = {name: value for name, value in _tls(address).items() if name != "ssl"}
    return lambda: cast(Connection, _Secure(host=host, port=port, **secure, **options))
