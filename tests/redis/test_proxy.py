"""The misbehaving network: each fault happens exactly as told, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.redis.conftest import PoolKeys
from tests.redis.proxy import Frames, Proxy, command_of
from tests.redis.servers import Server, valkey, wait_until

pytestmark = [pytest.mark.servers]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server to stand behind the proxy; ADMISSION_TEST_REDIS_URL may name one a plain TCP proxy cannot reach."""
    with valkey() as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy that so far does nothing wrong."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def client(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[redis.Redis]:
    """A client behind the proxy that tries nothing twice and soon gives up."""
    with redis.Redis(
        port=proxy.port, protocol=request.param, socket_timeout=0.3, retry=Retry(NoBackoff(), 0), decode_responses=True
    ) as client:
        yield client


@pytest.fixture
def counter(server: Server, pool_keys: PoolKeys) -> Iterator[str]:
    """A key to count in, gone after the test."""
    yield pool_keys.namespace
    server.ask("DEL", pool_keys.namespace)


def test_everything_passes_until_told_otherwise(client: redis.Redis, counter: str) -> None:
    """Also what is larger than any buffer on the way, and several commands at once."""
    large = "x" * 3_000_000
    client.set(counter, large)
    assert client.get(counter) == large
    with client.pipeline(transaction=False) as pipeline:
        for number in range(500):
            pipeline.echo(str(number))
        assert pipeline.execute() == [str(number) for number in range(500)]


def test_every_third_reply_is_lost_though_its_command_was_carried_out(
    client: redis.Redis, proxy: Proxy, counter: str, server: Server
) -> None:
    """The connection is cut in its stead, so that no later reply passes for it."""
    proxy.lose_every(3, "INCRBY")
    heard: list[int | None] = []
    for _ in range(9):
        try:
            heard.append(int(client.incr(counter)))
        except redis.ConnectionError:
            heard.append(None)
    assert heard == [1, 2, None, 4, 5, None, 7, 8, None]
    assert server.ask("GET", counter) == "9"
    assert proxy.lost == 3


def test_a_lost_reply_in_a_pipeline_takes_the_later_ones_with_it(
    client: redis.Redis, proxy: Proxy, counter: str, server: Server
) -> None:
    """However the replies were packed, the count is of replies."""
    proxy.lose_every(2, "INCRBY")
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(3):
            pipeline.incr(counter)
        with pytest.raises(redis.ConnectionError):
            pipeline.execute()
    assert server.ask("GET", counter) == "3"


def test_a_silent_loss_ends_in_the_clients_own_deadline(client: redis.Redis, proxy: Proxy, counter: str) -> None:
    """The connection stays open and mute; the client's next one works."""
    proxy.lose_every(1, "INCRBY", silently=True)
    with pytest.raises(redis.TimeoutError):
        client.incr(counter)
    proxy.lose_none()
    assert client.incr(counter) == 2


def test_a_cut_breaks_every_connection_once(client: redis.Redis, proxy: Proxy) -> None:
    """New ones are taken in again."""
    cut_off = client.connection_pool.get_connection()
    assert proxy.cut() == 1
    with pytest.raises(redis.ConnectionError):
        cut_off.read_response()
    cut_off.disconnect()
    assert client.ping() is True
    assert proxy.accepted == 2


def test_only_what_has_subscribed_is_cut(client: redis.Redis, proxy: Proxy, namespace: str) -> None:
    """The connection for commands never notices."""
    client.ping()
    with client.pubsub() as listening:
        listening.subscribe(namespace)
        wait_until(lambda: listening.get_message(timeout=0.1), "the word that it is subscribed")
        assert proxy.subscribed == 1
        assert proxy.cut(only_subscribed=True) == 1
        assert proxy.subscribed == 0
        with pytest.raises(redis.ConnectionError):
            listening.connection.read_response()
        assert client.ping() is True
        assert proxy.accepted == 2


def test_messages_are_no_replies_and_are_never_lost(client: redis.Redis, proxy: Proxy, namespace: str) -> None:
    """The counter counts answers to commands alone."""
    proxy.lose_every(1, "INCRBY")
    with client.pubsub() as listening:
        listening.subscribe(namespace)
        wait_until(lambda: listening.get_message(timeout=0.1), "the word that it is subscribed")
        for number in range(5):
            client.publish(namespace, str(number))
        heard: list[str] = []

        def listen() -> bool:
            message = listening.get_message(timeout=0.1)
            if message is not None:
                heard.append(message["data"])
            return len(heard) == 5

        wait_until(listen, "five messages")
    assert heard == ["0", "1", "2", "3", "4"]


def test_held_traffic_is_delivered_later_in_order(client: redis.Redis, proxy: Proxy, counter: str) -> None:
    """While held, nothing answers, new connections included; afterwards what was sent is carried out."""
    client.ping()
    proxy.hold()
    with pytest.raises(redis.TimeoutError):
        client.incr(counter)
    with pytest.raises(redis.RedisError):  # On a connection of its own: the last one is given up.
        client.incr(counter)
    proxy.let_go()
    wait_until(lambda: client.get(counter) is not None, "the held command to be carried out")


def test_a_connection_can_be_cut_while_it_is_held(client: redis.Redis, proxy: Proxy) -> None:
    """What was held is never delivered."""
    cut_off = client.connection_pool.get_connection()
    proxy.hold()
    cut_off.send_command("ECHO", "x")
    assert proxy.cut() == 1
    proxy.let_go()
    with pytest.raises(redis.ConnectionError):
        cut_off.read_response()
    cut_off.disconnect()


def test_delayed_replies_arrive(proxy: Proxy, client: redis.Redis) -> None:
    """A delay longer than the client's patience is a timeout; without one all is well again."""
    proxy.delay(5.0)
    with pytest.raises(redis.TimeoutError):
        client.ping()
    proxy.delay(0.01)
    assert client.ping() is True
    proxy.delay(0.0)
    assert client.ping() is True


def test_new_connections_can_be_refused(proxy: Proxy, client: redis.Redis) -> None:
    """Those that stand go on."""
    client.ping()
    proxy.refuse()
    assert client.ping() is True
    proxy.cut()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError):
            client.ping()
    proxy.welcome()
    assert client.ping() is True


def test_a_server_that_is_down_looks_down() -> None:
    """The proxy accepts, finds nobody behind it and hangs up."""
    with valkey() as gone, Proxy(gone.port) as proxy:
        gone.kill()
        with (
            redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0)) as client,
            pytest.raises(redis.ConnectionError),
        ):
            client.ping()
        assert proxy.connections == 0


def test_commands_are_counted_by_name(proxy: Proxy, client: redis.Redis) -> None:
    """So a test can say that something went over the wire once."""
    client.echo("PING")
    assert proxy.commands["ECHO"] == 1
    assert proxy.commands["PING"] == 0


_VALUES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":12\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$4\r\n\r\n$9\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"%1\r\n+key\r\n*2\r\n:1\r\n:2\r\n",
    b"~1\r\n$1\r\na\r\n",
    b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nd\r\n",
    b"|1\r\n+ttl\r\n:3\r\n$1\r\na\r\n",
    b"=5\r\ntxt:a\r\n",
]


@given(values=st.lists(st.sampled_from(_VALUES), max_size=8), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_values_are_cut_apart_however_they_were_packed(values: list[bytes], sizes: list[int]) -> None:
    """Any stream of values, in pieces of any size, comes out value by value."""
    stream, frames, out, turn = b"".join(values), Frames(), [], 0
    while stream:
        size = sizes[turn % len(sizes)]
        out += frames.feed(stream[:size])
        stream, turn = stream[size:], turn + 1
    assert out == values


@pytest.mark.parametrize(
    ("frame", "name"),
    [(b"*2\r\n$7\r\nevalsha\r\n$1\r\na\r\n", "EVALSHA"), (b"ping\r\n", "PING"), (b"\r\n", "")],
)
def test_a_command_is_known_by_its_name(frame: bytes, name: str) -> None:
    """In the usual form and typed by hand."""
    assert command_of(frame) == name
