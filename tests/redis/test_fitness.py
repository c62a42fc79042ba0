"""What `examine` says about real servers, and what it makes of numbers no server here would show."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from admission.backends.redis import findings
from admission.backends.redis.findings import (
    Finding,
    Level,
    of_clock,
    of_latency,
    of_memory,
    of_persistence,
    of_replication,
    of_rights,
    of_role,
    of_version,
    parse_info,
)
from admission.backends.redis.fitness import COMMANDS, examine
from tests.redis.conftest import PoolKeys
from tests.redis.proxy import Proxy
from tests.redis.servers import STARTERS, Certificates, Cluster, Server, debian_redis, sentinel, valkey

pytestmark = [pytest.mark.servers]

STEP = Path(findings.__file__).with_name("step.lua")


def look_at(url: str, *, namespace: str = "admission", deadline: float = 5.0) -> dict[str, Finding]:
    """The findings about one server, by what they are about: here there is one for each."""
    found = asyncio.run(examine(url, namespace=namespace, deadline=deadline, pings=10))
    assert len({finding.about for finding in found}) == len(found)
    return {finding.about: finding for finding in found}


def levels(found: dict[str, Finding]) -> dict[str, Level]:
    """Only how they are meant."""
    return {about: finding.level for about, finding in found.items()}


@pytest.fixture(params=sorted(STARTERS))
def kind(request: pytest.FixtureRequest) -> str:
    """Both kinds of server."""
    kind: str = request.param
    return kind


def test_a_server_as_it_should_be(kind: str) -> None:
    """Every side of it is looked at; alone it can only be told what its outage means."""
    with STARTERS[kind](aof=True, maxmemory="100mb") as server:
        found = look_at(server.url)
    assert levels(found) == {
        "version": Level.OK,
        "memory": Level.OK,
        "persistence": Level.OK,
        "replication": Level.NOTE,
        "latency": Level.OK,
        "clock": Level.OK,
        "rights": Level.OK,
    }
    assert found["version"].text.startswith("Valkey 9." if kind == "valkey" else "Redis 7.")
    assert re.search(r"takes [\d.]+ ms \(median of 10; the longest [\d.]+ ms\)", found["latency"].text)


def test_looking_leaves_nothing_behind(any_redis_url: str, pool_keys: PoolKeys) -> None:
    """The key on which the rights are tried is deleted again."""
    look_at(any_redis_url, namespace=pool_keys.namespace)
    assert pool_keys.present() == []


def test_a_server_that_evicts_is_unfit(kind: str) -> None:
    """A cache would throw away half a pool."""
    with STARTERS[kind](maxmemory="100mb", settings={"maxmemory-policy": "allkeys-lru"}) as server:
        found = look_at(server.url)
    assert found["memory"].level is Level.UNFIT
    assert "maxmemory-policy is allkeys-lru" in found["memory"].text
    assert "Set it to noeviction" in found["memory"].text


def test_a_replica_is_unfit_and_names_its_primary(kind: str) -> None:
    """It takes no writes; its primary is told what a failover may lose."""
    with STARTERS[kind]() as primary, STARTERS[kind](replica_of=primary) as replica:
        found = look_at(replica.url)
        assert found["role"].level is Level.UNFIT
        assert f"{primary.host}:{primary.port}" in found["role"].text
        assert "min-replicas-to-write" in look_at(primary.url)["replication"].text


def test_the_primary_is_looked_at_through_its_sentinel() -> None:
    """By the URL the pool will have."""
    with valkey() as primary, sentinel(primary, name="pool") as watch:
        found = look_at(f"redis+sentinel://{watch.host}:{watch.port}/pool")
    assert found["version"].level is Level.OK
    assert found["rights"].level is Level.OK


def test_every_primary_of_a_cluster_is_looked_at(redis_cluster: Cluster, pool_keys: PoolKeys) -> None:
    """Each by its address, the rights where the keys would be."""
    url = redis_cluster.url.replace("redis://", "redis+cluster://")
    found = asyncio.run(examine(url, namespace=pool_keys.namespace, deadline=5.0, pings=3))
    assert {finding.server for finding in found} == {f"{node.host}:{node.port}" for node in redis_cluster.nodes}
    assert all(finding.level < Level.WARNING for finding in found), [str(finding) for finding in found]
    assert [finding.level for finding in found if finding.about == "rights"] == [Level.OK]
    assert pool_keys.present() == []


def test_the_url_must_say_that_there_is_a_cluster(redis_cluster: Cluster) -> None:
    """Else a pool may be on a node nobody asked."""
    found = look_at(redis_cluster.url)
    assert found["cluster"].level is Level.UNFIT
    assert "write redis+cluster:// in the URL" in found["cluster"].text


def test_the_url_must_not_say_so_where_there_is_none(any_redis: Server) -> None:
    """A server by itself is no node."""
    found = look_at(any_redis.url.replace("redis://", "redis+cluster://"))
    assert found["cluster"].level is Level.UNFIT
    assert "write redis:// in the URL" in found["cluster"].text


def test_a_user_with_too_few_rights_is_told_the_line_that_gives_them(kind: str, namespace: str) -> None:
    """And with that line, nothing is missing any more."""
    few = f"user clerk on >secret ~{{{namespace}:* resetchannels +eval +evalsha +info +ping"
    with STARTERS[kind](users=["user default off", few], username="clerk", password="secret") as server:
        found = look_at(server.url, namespace=namespace)
        assert found["rights"].level is Level.UNFIT
        assert "refused TIME, DEL," in found["rights"].text
        assert "PUBLISH, SUBSCRIBE" in found["rights"].text
    enough = found["rights"].text.partition("ACL SETUSER clerk ")[2]
    users = ["user default off", f"user clerk on >secret resetchannels {enough}"]
    with STARTERS[kind](users=users, username="clerk", password="secret") as server:
        found = look_at(server.url, namespace=namespace)
        assert found["rights"].level is Level.OK
        assert found["version"].level is Level.OK
        assert look_at(server.url, namespace="elsewhere")["rights"].level is Level.UNFIT


def test_a_user_who_may_not_ask_is_looked_at_all_the_same(kind: str) -> None:
    """Without INFO and PING, what can be found out is."""
    users = ["user default off", "user clerk on >secret ~* &* +@all -info -config -ping"]
    with STARTERS[kind](users=users, username="clerk", password="secret") as server:
        found = look_at(server.url)
    assert levels(found) == {
        "information": Level.NOTE,
        "latency": Level.OK,
        "clock": Level.OK,
        "rights": Level.OK,
    }
    assert "secret" not in found["information"].text


def test_settings_that_may_not_be_read_are_not_needed(kind: str) -> None:
    """Many providers keep CONFIG to themselves."""
    users = ["user default off", "user clerk on >secret ~* &* +@all -config"]
    with STARTERS[kind](aof=True, users=users, username="clerk", password="secret") as server:
        found = look_at(server.url)
    assert found["persistence"].text == "It keeps an append-only file."


def test_a_server_over_tls_is_looked_at(tls: Certificates) -> None:
    """By its URL, as any client would."""
    with debian_redis(tls=tls) as server:
        assert look_at(server.url)["rights"].level is Level.OK


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_server_that_is_down_is_a_finding(scheme: str) -> None:
    """No traceback for who only asked."""
    with valkey() as server:
        url = server.url.replace("redis://", f"{scheme}://")
        server.kill()
        (finding,) = asyncio.run(examine(url))
    assert finding.level is Level.UNFIT
    assert "cannot be reached" in finding.text


def test_a_wrong_password_is_a_finding_that_does_not_show_it() -> None:
    """Only the user's name."""
    with valkey(settings={"requirepass": "right"}, password="right") as server:
        (finding,) = asyncio.run(examine(f"redis://:wrong@{server.host}:{server.port}"))
    assert finding.level is Level.UNFIT
    assert "wrong" not in finding.text


def test_a_frozen_server_is_a_finding_in_time() -> None:
    """The deadline bounds it."""
    with valkey() as server:
        server.freeze()
        (finding,) = asyncio.run(examine(server.url, deadline=0.2))
    assert finding.level is Level.UNFIT
    assert "did not answer within 0.2 s" in finding.text


def test_a_connection_lost_while_looking_is_a_finding() -> None:
    """What was found until then would not tell whether it fits."""
    with valkey() as server, Proxy(server.port) as proxy:
        proxy.lose_every(1, "TIME")
        (finding,) = asyncio.run(examine(proxy.url))
    assert finding.level is Level.UNFIT


def test_a_slow_way_is_a_warning_with_its_numbers() -> None:
    """Measured, not believed."""
    with valkey() as server, Proxy(server.port) as proxy:
        proxy.delay(0.02)
        found = look_at(proxy.url)
    assert found["latency"].level is Level.WARNING


def test_no_pings_is_no_measurement() -> None:
    """The option is named with its value and its range."""
    with pytest.raises(ValueError, match="pings is 0: it must be 1 or more"):
        asyncio.run(examine("redis://127.0.0.1", pings=0))


def test_every_command_of_the_script_is_tried() -> None:
    """A right the script needs and nobody tried would be missed in production."""
    used = set(re.findall(r"\bp?call\('([A-Z]+)'", STEP.read_text(encoding="utf-8")))
    assert used - {"TIME"} <= set(COMMANDS)


def the(found: Iterator[Finding] | Sequence[Finding]) -> Finding:
    """The only one."""
    (finding,) = found
    return finding


@pytest.mark.parametrize(
    ("version", "clustered", "level"),
    [
        ("6.2.0", False, Level.OK),
        ("6.0.16", False, Level.UNFIT),
        ("5.0.7", False, Level.UNFIT),
        ("10.1", False, Level.OK),
        ("6.2.14", True, Level.UNFIT),
        ("7.0.0", True, Level.OK),
        ("", False, Level.NOTE),
    ],
)
def test_versions(version: str, clustered: bool, level: Level) -> None:
    """6.2 at least, and 7.0 for sharded messages in a cluster."""
    found = the(of_version({"redis_version": version}, clustered=clustered))
    assert found.level is level
    assert version in found.text


def test_a_valkey_is_known_by_its_own_version() -> None:
    """It also shows one of Redis, for old clients."""
    assert (
        the(of_version({"redis_version": "7.2.4", "valkey_version": "8.1.0"}, clustered=False)).text == "Valkey 8.1.0."
    )


@pytest.mark.parametrize(
    ("information", "level", "said"),
    [
        (
            {"maxmemory_policy": "noeviction", "maxmemory": "1000", "used_memory": "900"},
            Level.WARNING,
            "90% of maxmemory",
        ),
        ({"maxmemory_policy": "noeviction", "maxmemory": "0", "used_memory": "900"}, Level.NOTE, "no maxmemory"),
        ({"maxmemory_policy": "volatile-ttl", "maxmemory": "0"}, Level.WARNING, "noeviction before"),
        ({"maxmemory_policy": "volatile-ttl", "maxmemory": "9"}, Level.UNFIT, "volatile-ttl"),
        ({}, Level.NOTE, "does not tell"),
        (
            {"maxmemory_policy": "noeviction", "maxmemory": str(4 * 2**30), "used_memory": str(2**30)},
            Level.OK,
            "1.0 GiB of 4.0 GiB",
        ),
    ],
)
def test_memory(information: dict[str, str], level: Level, said: str) -> None:
    """Evict nothing, and have room."""
    found = the(of_memory(information))
    assert found.level is level
    assert said in found.text


@pytest.mark.parametrize(
    ("information", "settings", "level", "said"),
    [
        ({"aof_enabled": "1"}, {"appendfsync": "always"}, Level.OK, "loses nothing"),
        ({"aof_enabled": "1"}, {"appendfsync": "everysec"}, Level.OK, "a second at most"),
        ({"aof_enabled": "1"}, {"appendfsync": "no"}, Level.WARNING, "appendfsync is no"),
        ({"aof_enabled": "0"}, {"save": "3600 1"}, Level.NOTE, "goes back to its last snapshot"),
        ({"aof_enabled": "0"}, {"save": ""}, Level.NOTE, "is empty"),
        ({}, {}, Level.NOTE, "does not tell"),
    ],
)
def test_persistence(information: dict[str, str], settings: dict[str, str], level: Level, said: str) -> None:
    """What a crash leaves of a pool."""
    found = the(of_persistence(information, settings))
    assert found.level is level
    assert said in found.text


def test_a_disk_that_refuses_is_told_besides() -> None:
    """The server then refuses changes, or soon will."""
    broken = list(of_persistence({"aof_enabled": "1", "aof_last_write_status": "err"}, {}))
    assert [finding.level for finding in broken] == [Level.UNFIT, Level.OK]
    failed = list(of_persistence({"aof_enabled": "0", "rdb_last_bgsave_status": "err"}, {"save": "3600 1"}))
    assert [finding.level for finding in failed] == [Level.WARNING, Level.NOTE]


@pytest.mark.parametrize(
    ("information", "settings", "level", "said"),
    [
        ({"connected_slaves": "0"}, {}, Level.NOTE, "no replica"),
        ({"connected_slaves": "1"}, {"min-replicas-to-write": "0"}, Level.NOTE, "min-replicas-to-write 1 keeps"),
        ({"connected_slaves": "2"}, {"min-replicas-to-write": "1"}, Level.OK, "2 replicas"),
        ({"connected_slaves": "2"}, {}, Level.NOTE, "may then be exceeded"),
        ({"connected_slaves": "1"}, {"min-replicas-to-write": "2"}, Level.UNFIT, "refuses every change"),
        (
            {"connected_slaves": "1", "min_slaves_good_slaves": "0"},
            {"min-replicas-to-write": "1"},
            Level.UNFIT,
            "and 0 are in step",
        ),
    ],
)
def test_replication(information: dict[str, str], settings: dict[str, str], level: Level, said: str) -> None:
    """What a failover may lose."""
    found = the(of_replication({"role": "master", **information}, settings, clustered=False))
    assert found.level is level
    assert said in found.text


def test_a_primary_by_itself_needs_no_word_about_its_role() -> None:
    """Nor about clusters."""
    assert list(of_role({"role": "master", "cluster_enabled": "0"}, clustered=False)) == []


@pytest.mark.parametrize(
    ("milliseconds", "level"),
    [(0.1, Level.OK), (2, Level.OK), (5, Level.NOTE), (11, Level.WARNING), (3000, Level.WARNING)],
)
def test_latency(milliseconds: float, level: Level) -> None:
    """One slow answer among many quick ones is shown, and counts for nothing."""
    times = [milliseconds / 1000] * 5 + [4.0]
    found = of_latency(times)
    assert found.level is level
    assert "(median of 6; the longest 4 s)" in found.text


@pytest.mark.parametrize(
    ("ahead", "level", "said"),
    [(0.2, Level.OK, "agree"), (90.0, Level.NOTE, "90 s ahead of"), (-2.5, Level.NOTE, "2.5 s behind")],
)
def test_clocks(ahead: float, level: Level, said: str) -> None:
    """Only the server's counts."""
    found = the(of_clock(ahead))
    assert found.level is level
    assert said in found.text


def test_rights_in_a_cluster_include_sharded_channels() -> None:
    """And the client's looking around."""
    found = the(of_rights(["SPUBLISH"], user="clerk", namespace="here", clustered=True))
    assert "ACL SETUSER clerk ~{here:* &{here:* " in found.text
    assert "+spublish +ssubscribe" in found.text


def test_information_is_read_by_name() -> None:
    """Headings and empty lines aside."""
    assert parse_info("# Server\r\nredis_version:7.0.15\r\n\r\n# Memory\r\nmaxmemory:0\r\nexecutable:/a:b\r\n") == {
        "redis_version": "7.0.15",
        "maxmemory": "0",
        "executable": "/a:b",
    }


def test_a_finding_names_its_node() -> None:
    """Where there is more than one."""
    finding = Finding(level=Level.OK, about="version", text="Valkey 9.1.", server="10.0.0.1:6379")
    assert str(finding) == "10.0.0.1:6379: Valkey 9.1."
