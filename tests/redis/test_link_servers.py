"""The link to servers that are more than a port: TLS, users, sockets, Sentinels, clusters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from admission.backends.redis.link import Link, TimedOut, Unreachable, Wire
from tests.redis.scripts import COUNT, ECHO, NOTE, until
from tests.redis.servers import (
    STARTERS,
    Certificates,
    Cluster,
    Server,
    certificates,
    cluster,
    debian_redis,
    free_port,
    sentinel,
)

pytestmark = pytest.mark.anyio


async def in_the_end(call: Callable[[], Awaitable[Wire]]) -> Wire:
    """Its answer, once it has one; at most 60 s."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except Unreachable:
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def secure(tls: Certificates) -> Iterator[Server]:
    """A server that speaks TLS and nothing else."""
    with debian_redis(tls=tls) as server:
        yield server


async def test_tls_server_is_known_by_its_authority(secure: Server) -> None:
    """Calls and messages both go over TLS."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    subscribed = asyncio.Event()
    async with Link(secure.url, deadline=20.0) as link:
        assert await link.run(ECHO, [], ["secret"]) == b"secret"
        task = asyncio.create_task(link.listen("news", heard.put_nowait, subscribed.set))
        async with asyncio.timeout(30):
            await subscribed.wait()
            secure.ask("PUBLISH", "news", "secret")
            assert await heard.get() == b"secret"
        task.cancel()
        await asyncio.wait([task])


async def test_stranger_is_not_taken_for_the_server(secure: Server, tmp_path: Path) -> None:
    """A certificate of another authority, or none that is trusted, ends the call."""
    other = certificates(tmp_path).authority
    for url in (f"rediss://127.0.0.1:{secure.port}?ssl_ca_certs={other}", f"rediss://127.0.0.1:{secure.port}"):
        async with Link(url, deadline=20.0) as link:
            with pytest.raises(Unreachable, match=r"cannot be reached: .*certificate verify failed"):
                await link.run(ECHO, [], [])


async def test_server_may_ask_for_a_certificate(secure: Server, tls: Certificates) -> None:
    """The link has one where the URL names it."""
    with secure.client() as admin:
        admin.execute_command("CONFIG", "SET", "tls-auth-clients", "yes")
        try:
            own = f"{secure.url}&ssl_certfile={tls.certificate}&ssl_keyfile={tls.key}"
            async with Link(own, deadline=20.0) as link:
                assert await link.run(ECHO, [], ["known"]) == b"known"
            async with Link(secure.url, deadline=20.0) as link:
                with pytest.raises(Unreachable):
                    await link.run(ECHO, [], ["unknown"])
        finally:
            admin.execute_command("CONFIG", "SET", "tls-auth-clients", "no")


async def test_frozen_tls_server_is_given_up_in_time(secure: Server) -> None:
    """In the middle of a call, and of the handshake."""
    async with Link(secure.url, deadline=0.5) as link:
        await in_the_end(lambda: link.run(ECHO, [], ["warm"]))
        secure.freeze()
        try:
            with pytest.raises(TimedOut):
                await link.run(ECHO, [], ["on the old connection"])
            with pytest.raises(TimedOut):
                await link.run(ECHO, [], ["on a new one"])
        finally:
            secure.thaw()
        assert await in_the_end(lambda: link.run(ECHO, [], ["after"])) == b"after"


async def test_user_may_do_what_its_rules_say(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password and a forbidden key are told apart, and no password is shown."""
    caplog.set_level(logging.DEBUG)
    users = ["user default off", "user admission on >s3cret/@? ~ns:* &* +@all", "user admin on >admin ~* &* +@all"]
    with debian_redis(users=users, username="admin", password="admin") as server:
        place = f"127.0.0.1:{server.port}"
        async with Link(f"redis://admission:s3cret%2F%40%3F@{place}", deadline=20.0) as link:
            assert await link.run(COUNT, ["ns:key"], []) == 1
            with pytest.raises(Unreachable, match="key"):
                await link.run(COUNT, ["other"], [])
            assert "s3cret" not in repr(link)
        async with Link(f"redis://admission:wr0ng@{place}", deadline=20.0, failures=1) as link:
            with pytest.raises(Unreachable, match="invalid username-password") as refused:
                await link.run(COUNT, ["ns:key"], [])
            assert "wr0ng" not in str(refused.value)
        async with Link(f"redis://{place}", deadline=20.0) as link:
            with pytest.raises(Unreachable, match="Authentication required"):
                await link.run(COUNT, ["ns:key"], [])
    for secret in ("s3cret", "wr0ng"):
        assert secret not in caplog.text


async def test_socket_in_the_file_system() -> None:
    """With a database of its own."""
    with debian_redis(settings={"unixsocket": "redis.sock"}) as server:
        path = server.directory / "redis.sock"
        async with Link(f"unix://{path}?db=2&client_name=pool", deadline=20.0) as link:
            assert await link.run(COUNT, ["key"], []) == 1
            assert "name=pool" in server.ask("CLIENT", "LIST")
        assert server.ask("DBSIZE") == 0
        assert server.info("keyspace")["db2"]["keys"] == 1


@pytest.fixture(params=sorted(STARTERS))
def watched(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Server, Server]]:
    """A primary, its replica and a Sentinel that watches both under the name "pool"."""
    start = STARTERS[request.param]
    with start() as primary, start(replica_of=primary) as replica, sentinel(primary, down_after=0.5) as watcher:
        yield primary, replica, watcher


async def test_promoted_replica_is_found_again(watched: tuple[Server, Server, Server]) -> None:
    """By calls, and by the channel, after the primary has died; a Sentinel that is gone is passed over."""
    primary, replica, watcher = watched
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    subscribed: asyncio.Queue[None] = asyncio.Queue()
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{watcher.port}/pool"
    async with Link(url, longest_pause=0.5) as link:
        listening = asyncio.create_task(link.listen("news", heard.put_nowait, lambda: subscribed.put_nowait(None)))
        async with asyncio.timeout(60):
            await subscribed.get()
            assert await in_the_end(lambda: link.run(COUNT, ["key"], [])) == 1
            await until(lambda: replica.ask("GET", "key") == "1")
            primary.kill()
            assert await in_the_end(lambda: link.run(COUNT, ["key"], [])) == 2
            assert replica.ask("GET", "key") == "2"
            await subscribed.get()
            replica.ask("PUBLISH", "news", "promoted")
            assert await heard.get() == b"promoted"
        listening.cancel()
        await asyncio.wait([listening])


async def test_demoted_primary_is_left(watched: tuple[Server, Server, Server]) -> None:
    """It lives on as a replica, and its connections with it: an error that says so is the sign to look again."""
    primary, replica, watcher = watched
    async with Link(f"redis+sentinel://127.0.0.1:{watcher.port}/pool", longest_pause=0.5) as link:
        assert await in_the_end(lambda: link.run(COUNT, ["key"], [])) == 1
        await until(lambda: replica.ask("GET", "key") == "1")
        replica.ask("REPLICAOF", "NO", "ONE")
        primary.ask("REPLICAOF", replica.host, replica.port)
        watcher.ask("SENTINEL", "REMOVE", "pool")
        watcher.ask("SENTINEL", "MONITOR", "pool", replica.host, replica.port, 1)
        assert await in_the_end(lambda: link.run(COUNT, ["key"], [])) == 2
        assert replica.ask("GET", "key") == "2"


async def test_unknown_service_is_named(watched: tuple[Server, Server, Server]) -> None:
    """The Sentinels answer, and know of no such primary."""
    *_, watcher = watched
    async with Link(f"redis+sentinel://127.0.0.1:{watcher.port}/other", deadline=20.0) as link:
        with pytest.raises(Unreachable, match="No master found for 'other'"):
            await link.run(ECHO, [], [])


def cluster_url(joined: Cluster) -> str:
    """Where the link finds it."""
    return f"redis+cluster://127.0.0.1:1,127.0.0.1:{joined.nodes[0].port}"


async def test_every_slot_of_a_cluster_is_reached(redis_cluster: Cluster) -> None:
    """From one node that is known, past one that is not there."""
    async with Link(cluster_url(redis_cluster), deadline=20.0) as link:
        assert link.sharded
        keys = [f"{{pool{number}}}" for number in range(12)]
        for key in keys:
            assert await link.run(ECHO, [key], [key]) == key.encode()
        assert len({redis_cluster.node_of(key).port for key in keys}) == 3


async def test_cluster_that_forgot_the_script_is_told_it(redis_cluster: Cluster) -> None:
    """Each node keeps its own."""
    async with Link(cluster_url(redis_cluster), deadline=20.0) as link:
        await link.run(ECHO, ["{pool}"], ["before"])
        redis_cluster.node_of("{pool}").ask("SCRIPT", "FLUSH")
        assert await link.run(ECHO, ["{pool}"], ["after"]) == b"after"


async def test_calls_of_a_cluster_are_done_in_order(redis_cluster: Cluster, namespace: str) -> None:
    """A short one stays behind a long one there, too."""
    key, lengths = f"{{{namespace}}}:kv:seen", [20_000, 1, 5_000, 1, 1]
    async with Link(cluster_url(redis_cluster), deadline=20.0) as link:
        way = link.in_order()
        calls = (link.run(NOTE, [key], [length, *range(length)], way) for length in lengths)
        assert await asyncio.gather(*calls) == [1, 2, 3, 4, 5]
        await way.close()
    node = redis_cluster.node_of(key)
    assert node.ask("LRANGE", key, 0, -1) == [str(length) for length in lengths]
    node.ask("DEL", key)


async def test_sharded_messages_arrive(redis_cluster: Cluster) -> None:
    """They are published on the node that has the channel's slot."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    subscribed = asyncio.Event()
    async with Link(cluster_url(redis_cluster), deadline=20.0) as link:
        listening = asyncio.create_task(link.listen("{pool}:news", heard.put_nowait, subscribed.set))
        async with asyncio.timeout(30):
            await subscribed.wait()
            redis_cluster.node_of("{pool}:news").ask("SPUBLISH", "{pool}:news", "sharded")
            assert await heard.get() == b"sharded"
        listening.cancel()
        await asyncio.wait([listening])


async def test_slot_that_moves_is_followed() -> None:
    """By calls and by the channel."""
    key = "{pool}:news"
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    subscribed: asyncio.Queue[None] = asyncio.Queue()
    with cluster(3) as joined:
        source = joined.node_of(key)
        target = next(node for node in joined.nodes if node is not source)
        async with Link(cluster_url(joined), deadline=20.0) as link:
            listening = asyncio.create_task(link.listen(key, heard.put_nowait, lambda: subscribed.put_nowait(None)))
            async with asyncio.timeout(60):
                await subscribed.get()
                assert await link.run(ECHO, [key], ["before"]) == b"before"
                slot = source.ask("CLUSTER", "KEYSLOT", key)
                name = target.ask("CLUSTER", "MYID")
                for node in (target, source, *joined.nodes):
                    node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
                assert await in_the_end(lambda: link.run(ECHO, [key], ["after"])) == b"after"
                await subscribed.get()
                target.ask("SPUBLISH", key, "moved")
                assert await heard.get() == b"moved"
            listening.cancel()
            await asyncio.wait([listening])


@pytest.mark.slow
async def test_promoted_replica_of_a_cluster_is_found() -> None:
    """After the node that had the slot has died."""
    own = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-port": str(free_port())}
    with cluster(3, settings={"cluster-node-timeout": "1000"}) as joined, STARTERS["valkey"](settings=own) as spare:
        key = "{pool}"
        owner = joined.node_of(key)
        await join_as_replica(spare, owner)
        async with Link(cluster_url(joined), longest_pause=0.5) as link:
            assert await in_the_end(lambda: link.run(COUNT, [key], [])) == 1
            assert owner.ask("WAIT", 1, 10_000) == 1
            owner.kill()
            joined.nodes.remove(owner)
            assert await in_the_end(lambda: link.run(COUNT, [key], [])) == 2
            assert spare.ask("GET", key) == "2"


async def join_as_replica(spare: Server, owner: Server) -> None:
    """Have *spare* follow *owner*, and all of its cluster know."""
    bus = owner.ask("CONFIG", "GET", "cluster-port")["cluster-port"]
    name = owner.ask("CLUSTER", "MYID")
    spare.ask("CLUSTER", "MEET", owner.host, owner.port, bus)
    await until(lambda: name in str(spare.ask("CLUSTER", "NODES")))
    await until(lambda: "cluster_state:ok" in str(spare.ask("CLUSTER", "INFO")))
    spare.ask("CLUSTER", "REPLICATE", name)
    await until(lambda: spare.info("replication").get("master_link_status") == "up")
    await until(lambda: "slave" in str(owner.ask("CLUSTER", "NODES")))
