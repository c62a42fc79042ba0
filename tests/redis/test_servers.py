"""The servers the other tests rely on: they start, hold still, die and come back as told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.redis import servers
from tests.redis.conftest import PoolKeys
from tests.redis.servers import (
    STARTERS,
    Certificates,
    Cluster,
    Missing,
    Server,
    cluster,
    debian_redis,
    sentinel,
    wait_until,
)

pytestmark = [pytest.mark.servers]


@pytest.fixture(params=sorted(STARTERS))
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of server."""
    kind: str = request.param
    return kind


@pytest.fixture
def server(kind: str) -> Iterator[Server]:
    """A server of each kind that the test may treat as badly as it likes."""
    with STARTERS[kind]() as server:
        yield server


def test_a_server_answers_as_soon_as_it_is_handed_over(server: Server, kind: str) -> None:
    """Readiness is a PING answered."""
    assert server.ask("PING") is True
    assert server.kind == kind


def test_both_kinds_are_what_they_say(any_redis: Server) -> None:
    """The shared server of each kind is a Valkey and a Redis."""
    assert ("valkey_version" in any_redis.info("server")) is (any_redis.kind == "valkey")


def test_a_closed_server_leaves_no_process_and_no_directory(kind: str) -> None:
    """What a test starts is gone when its block ends."""
    with STARTERS[kind]() as server:
        pid, directory = server.pid, server.directory
        assert directory.exists()
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_without_aof_a_restart_forgets(server: Server) -> None:
    """The servers keep nothing unless a test asks for it."""
    server.ask("SET", "kept", "no")
    server.restart()
    assert server.ask("GET", "kept") is None


def test_aof_survives_a_power_cut_on_the_same_port(kind: str) -> None:
    """What was answered is there again after a kill."""
    with STARTERS[kind](aof=True) as server:
        port = server.port
        server.ask("SET", "kept", "yes")
        server.restart(politely=False)
        assert server.ask("GET", "kept") == "yes"
        assert server.port == port


def test_a_frozen_server_accepts_but_does_not_answer(server: Server) -> None:
    """That is what a deadline has to bound; once thawed it goes on."""
    server.freeze()
    with pytest.raises(redis.TimeoutError), server.client(socket_timeout=0.2) as client:
        client.execute_command("PING")
    server.thaw()
    assert server.ask("PING") is True


def test_a_killed_server_refuses_connections(server: Server) -> None:
    """Nothing listens any more."""
    server.kill()
    with pytest.raises(redis.ConnectionError):
        server.ask("PING")
    assert not server.running


def test_a_full_server_refuses_writes(kind: str) -> None:
    """`maxmemory` without eviction ends in an error, not in lost keys."""
    with STARTERS[kind](maxmemory="3mb") as server:
        server.ask("EVAL", "for n = 1, 100 do redis.call('SET', n, string.rep('x', 100000)) end", 0)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            server.ask("SET", "one more", "1")


def test_a_replica_holds_what_its_primary_wrote_before(kind: str) -> None:
    """It is handed over in step."""
    with STARTERS[kind]() as primary:
        primary.ask("SET", "kept", "yes")
        with STARTERS[kind](replica_of=primary) as replica:
            assert replica.ask("GET", "kept") == "yes"


def test_an_acl_file_decides_who_may_do_what(kind: str) -> None:
    """The server's own client logs in; a stranger is refused."""
    users = ["user default off", "user clerk on >secret ~{mine:* +@read +@write +@connection +info"]
    with STARTERS[kind](users=users, username="clerk", password="secret") as server:
        server.ask("SET", "{mine:x}", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            server.ask("SET", "theirs", "1")
        with pytest.raises(redis.exceptions.AuthenticationError), server.client(username=None, password=None) as other:
            other.execute_command("GET", "{mine:x}")


def test_a_tls_server_speaks_nothing_else(tls: Certificates) -> None:
    """Its URL names the authority to trust, and a plain connection gets nowhere."""
    with debian_redis(tls=tls) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping() is True
        with pytest.raises(redis.ConnectionError), server.client(ssl=False) as plain:
            plain.ping()


@pytest.mark.parametrize("kind", ["redis"])
def test_redis_joins_into_a_cluster(kind: str) -> None:
    """Three masters share all slots."""
    with cluster(3, kind=kind) as joined, joined.client() as client:
        assert client.set("{a}x", "1") is True
        assert joined.node_of("{a}x").ask("GET", "{a}x") == "1"


def test_the_shared_cluster_spreads_keys_over_its_nodes(redis_cluster: Cluster, pool_keys: PoolKeys) -> None:
    """Every key is on the node that its slot belongs to, and only there."""
    pool_keys.may_stay("*")
    used = set()
    with redis_cluster.client() as client:
        for number in range(30):
            key = f"{{{pool_keys.namespace}:{number}}}"
            client.set(key, "1")
            node = redis_cluster.node_of(key)
            used.add(node)
            assert node.ask("EXISTS", key) == 1
            client.delete(key)
    assert used == set(redis_cluster.nodes)


def test_a_sentinel_promotes_the_replica_of_a_frozen_primary(kind: str) -> None:
    """It finds the replica by itself and points clients at it."""
    with (
        STARTERS[kind]() as primary,
        STARTERS[kind](replica_of=primary) as replica,
        sentinel(primary, name="pool", down_after=0.5) as watch,
    ):
        assert watch.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "pool") == [primary.host, str(primary.port)]
        primary.freeze()
        wait_until(lambda: _role(replica) == "master", "the replica to be promoted")
        wait_until(
            lambda: watch.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "pool")[1] == str(replica.port),
            "the sentinel to say so",
        )


def test_a_missing_redis_server_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never a skip."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(servers, "_UNPACKED", tmp_path)
    with pytest.raises(Missing, match="apt-get install redis-server"):
        debian_redis()


def test_a_server_that_cannot_start_shows_its_log(kind: str) -> None:
    """A wrong configuration is told in the server's own words."""
    with pytest.raises(RuntimeError, match="did not start"):
        STARTERS[kind](settings={"maxmemory-policy": "whatever"})


def test_a_key_left_behind_is_found(redis_url: str, pool_keys: PoolKeys) -> None:
    """The check after every test sees tickets, not bookkeeping."""
    tag = f"{{{pool_keys.namespace}:pool}}"
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{tag}:st", "1")
        client.set(f"{tag}:d", "1")
        assert pool_keys.leaked() == [f"{tag}:d"]
        client.delete(f"{tag}:d", f"{tag}:st")


def test_waiting_in_vain_is_bounded() -> None:
    """And says what it waited for."""
    with pytest.raises(TimeoutError, match="for the moon"):
        wait_until(lambda: False, "the moon", patience=0.05)


def _role(server: Server) -> str | None:
    """Of a server that closes its connections when it is promoted: None in that instant."""
    try:
        return str(server.info("replication")["role"])
    except redis.ConnectionError:
        return None
