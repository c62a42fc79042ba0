"""One pool behind several web servers: real processes, real HTTP, and a real Valkey between them."""

from __future__ import annotations

import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.running import Server, serving, two_free_ports, wait_until

pytestmark = pytest.mark.servers

APP = """\
import asyncio
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] != "/health":
        reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["GATE"]))
        writer.write(f"{os.getpid()} {scope['path']}\\n".encode())
        await reader.readline()
        writer.close()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
"""
"""Every request but one for its health goes to the gate and stays until the gate lets it out."""


@dataclass(frozen=True)
class Inside:
    """A request that runs."""

    pid: int
    path: str
    connection: socket.socket


class Gate:
    """Knows which requests run, in whatever process, and lets them go one by one."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.inside: list[Inside] = []
        self.most = 0
        self.pids: set[int] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # Closed.
            pid, _, path = connection.makefile("r").readline().strip().partition(" ")
            with self._changed:
                self.inside.append(Inside(int(pid), path, connection))
                self.most = max(self.most, len(self.inside))
                self.pids.add(int(pid))
                self._changed.notify_all()

    def wait_for(self, *paths: str) -> None:
        """Wait until all these run."""
        with self._changed:
            here = self._changed.wait_for(lambda: set(paths) <= {one.path for one in self.inside}, timeout=60)
        assert here, f"{paths} are not all inside: {self.inside}"

    def wait_for_one(self) -> Inside:
        """Wait until somebody runs."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.inside), timeout=60), "nobody came in"
            return self.inside[0]

    def let_out(self, path: str) -> None:
        """Let the request end."""
        with self._changed:
            (one,) = (one for one in self.inside if one.path == path)
            self.inside.remove(one)
        with one.connection:
            one.connection.sendall(b"\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=30)
        for one in self.inside:
            one.connection.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


class Web:
    """A running server, as its clients and its owner see it."""

    def __init__(self, server: Server, threads: ThreadPoolExecutor) -> None:
        self.server = server
        self.url = server.url
        self._threads = threads
        wait_until(self._listens, tries=100_000)  # Several processes are announced before the first of them listens.

    def _listens(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", timeout=60).status_code == 200
        except httpx2.ConnectError:
            return False

    def get(self, path: str, priority: str = "normal") -> Future[httpx2.Response]:
        """A request under way, on a connection of its own."""
        return self._threads.submit(httpx2.get, self.url + path, headers={"x-priority": priority}, timeout=60)

    def status(self) -> dict[str, Any]:
        """The pool, as one of its processes tells."""
        pool: dict[str, Any] = httpx2.get(f"{self.url}/-/admission/status", timeout=60).json()["pool"]
        return pool

    def burst(self, path: str) -> list[httpx2.Response]:
        """Several requests at once: with one after the other it might always be the same process that answers."""
        return [answer.result(timeout=60) for answer in [self.get(path) for _ in range(8)]]


@pytest.fixture
def start(tmp_path: Path, gate: Gate, threads: ThreadPoolExecutor) -> Any:
    """`with start("--workers", "1", NAME="value") as web:` a server in front of the gate."""
    numbers = iter(range(100))

    @contextmanager
    def starting(*arguments: str, **variables: str) -> Iterator[Web]:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        with serving(folder, APP, *arguments, variables={"GATE": str(gate.port), **variables}) as server:
            yield Web(server, threads)

    return starting


def test_processes_of_one_server_share_one_limit(start: Any, gate: Gate, redis_url: str, namespace: str) -> None:
    """Limit 1, two processes: never do two requests run, in whatever process, and both processes get to run some."""
    shared = ("--redis", redis_url, "--redis-namespace", namespace)
    with start("--processes", "2", "--workers", "1", *shared) as web:
        assert web.server.wait_for(rf"2 processes share pool 'default' in .*, namespace '{namespace}'\.")
        # Both are of the pool before the first request.
        wait_until(lambda: len(web.status()["processes"]) == 2, tries=300)
        pids: set[str] = set()
        wait_until(lambda: pids.update(answer.text for answer in web.burst("/health")) or len(pids) == 2, tries=300)

        for _ in range(20):
            answers = [web.get(f"/{number}") for number in range(10)]
            for left in reversed(range(10)):
                one = gate.wait_for_one()
                wait_until(lambda left=left: web.status()["queued"] == left)  # type: ignore[misc]  # Bound at once.
                shown = web.status()
                assert (shown["limit"], shown["in_flight"], len(gate.inside)) == (1, 1, 1)
                holders = {process["slots"] for process in shown["processes"]}
                assert holders == {0, 1}
                gate.let_out(one.path)
            assert [answer.result(timeout=60).status_code for answer in answers] == [200] * 10
            if gate.pids == {int(pid) for pid in pids}:
                break
        assert gate.pids == {int(pid) for pid in pids}
        assert gate.most == 1


def test_two_servers_serve_one_line_in_order(start: Any, gate: Gate, redis_url: str, namespace: str) -> None:
    """Who waits at one server goes before a lower class that came earlier to the other; each knows its own by `own`."""
    shared = ("--workers", "1", "--redis", redis_url, "--redis-namespace", namespace)
    with start(*shared) as first, start(*shared) as second:
        running = first.get("/running")
        gate.wait_for("/running")
        low = first.get("/low", "low")
        wait_until(lambda: second.status()["queued"] == 1)
        normal = second.get("/normal")
        wait_until(lambda: first.status()["queued"] == 2)
        told = {web: {process["own"]: process for process in web.status()["processes"]} for web in (first, second)}
        assert (told[first][True]["slots"], told[first][True]["waiting"]) == (1, 1)
        assert (told[second][True]["slots"], told[second][True]["waiting"]) == (0, 1)
        assert told[first][True]["process"] == told[second][False]["process"]
        assert [process["elected"] for process in told[first].values()].count(True) == 1
        assert told[first][True]["lease_left"] > 0
        gate.let_out("/running")
        gate.wait_for("/normal")
        gate.let_out("/normal")
        gate.wait_for("/low")
        gate.let_out("/low")
        assert [answer.result(timeout=60).status_code for answer in (running, normal, low)] == [200, 200, 200]
        assert normal.result().headers["x-queue-position"] == "1"
        assert gate.most == 1


def test_a_ticket_is_told_its_place_among_the_others_tickets(
    start: Any, gate: Gate, redis_url: str, namespace: str
) -> None:
    """A higher class at the other server moves it back: its page says so at once."""
    shared = ("--workers", "1", "--redis", redis_url, "--redis-namespace", namespace)
    with start(*shared) as first, start(*shared) as second:
        answers = [first.get("/running")]
        gate.wait_for("/running")
        answers.append(first.get("/low", "low"))
        wait_until(lambda: first.status()["queued"] == 1)
        dump = httpx2.get(f"{first.url}/-/admission/dump", timeout=60).json()
        (ticket,) = (shown["id"] for shown in dump["tickets"])
        page = f"{first.url}/-/admission/tickets/{ticket}"
        assert httpx2.get(page, timeout=60).json()["position"] == 1
        answers.append(second.get("/high", "low"))
        wait_until(lambda: first.status()["queued"] == 2)
        assert httpx2.get(page, timeout=60).json()["position"] == 1
        answers.append(second.get("/higher", "normal"))
        wait_until(lambda: first.status()["queued"] == 3)
        place = httpx2.get(page, timeout=60).json()
        assert (place["position"], place["state"]) == (2, "queued")
        # Behind one address the question may reach any of the processes.
        elsewhere = httpx2.get(page.replace(first.url, second.url), timeout=60).json()
        assert {**elsewhere, "waited": place["waited"], "eta": place["eta"]} == place
        for _ in range(4):
            gate.let_out(gate.wait_for_one().path)
        assert [answer.result(timeout=60).status_code for answer in answers] == [200] * 4
        assert httpx2.get(page, timeout=60).status_code == 404


def test_sigterm_drains_one_process_and_frees_its_slots(start: Any, gate: Gate, redis_url: str, namespace: str) -> None:
    """Its waiter is sent away, its running request ends in peace, its slot goes to the other server's waiter."""
    shared = ("--workers", "1", "--redis", redis_url, "--redis-namespace", namespace)
    with start(*shared) as first, start(*shared) as second:
        running = first.get("/running")
        gate.wait_for("/running")
        sent_away = first.get("/sent-away")
        wait_until(lambda: first.status()["queued"] == 1)
        stays = second.get("/stays")
        wait_until(lambda: second.status()["queued"] == 2)
        first.server.process.send_signal(signal.SIGTERM)
        assert sent_away.result(timeout=60).status_code == 503
        assert sent_away.result().headers["x-admission-reason"] == "evicted-draining"
        wait_until(lambda: second.status()["queued"] == 1)
        assert not running.done()
        assert not stays.done()
        gate.let_out("/running")
        assert running.result(timeout=60).status_code == 200
        gate.wait_for("/stays")
        first.server.process.wait(timeout=60)
        # It said goodbye: nobody had to wait for its lease of twelve seconds.
        assert [process["own"] for process in second.status()["processes"]] == [True]
        gate.let_out("/stays")
        assert stays.result(timeout=60).status_code == 200
        assert gate.most == 1


def test_the_slots_of_a_killed_process_come_back_with_its_lease(
    start: Any, gate: Gate, redis_url: str, namespace: str
) -> None:
    """kill -9: whoever waits at the other server is let in, and the dead one is no process of the pool any more."""
    shared = ("--workers", "1", "--redis", redis_url, "--redis-namespace", namespace)
    leased = {"ADMISSION_REDIS_LEASE": "2", "ADMISSION_REDIS_TIMEOUT": "0.6"}
    with start(*shared, **leased) as first, start(*shared, **leased) as second:
        lost = first.get("/lost")
        gate.wait_for("/lost")
        waits = second.get("/waits")
        wait_until(lambda: second.status()["queued"] == 1)
        first.server.process.kill()
        with pytest.raises(httpx2.TransportError):
            lost.result(timeout=60)
        gate.wait_for("/waits")
        assert [process["own"] for process in second.status()["processes"]] == [True]
        gate.let_out("/waits")
        assert waits.result(timeout=60).status_code == 200


def test_every_process_tells_of_the_same_pool_in_its_metrics(
    start: Any, gate: Gate, redis_url: str, namespace: str
) -> None:
    """The limit and the line are the pool's, at each port the same; grants are the process's and add up."""
    port = two_free_ports()
    options = ("--processes", "2", "--workers", "1", "--metrics-port", str(port))
    leased = {"ADMISSION_REDIS_LEASE": "2", "ADMISSION_REDIS_TIMEOUT": "0.6"}  # Looked at three times a lease.
    with start(*options, "--redis", redis_url, "--redis-namespace", namespace, **leased) as web:
        urls = web.server.metrics_urls(2)
        answers = [web.get("/running"), web.get("/waits")]
        gate.wait_for_one()

        def told(metric: str) -> list[float]:
            """The sample at each port."""
            lines = [line for url in urls for line in httpx2.get(url).text.splitlines()]
            return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"admission_{metric}")]

        for metric, value in (
            ('limit_slots{pool="default"}', 1.0),
            ('queue_size{pool="default",priority="all"}', 1.0),
            ('in_flight_slots{pool="default",priority="normal"}', 1.0),
            ('pool_processes{pool="default"}', 2.0),
            ('link_breaker{pool="default",state="closed"}', 1.0),
        ):
            wait_until(lambda metric=metric, value=value: told(metric) == [value, value])  # type: ignore[misc]
        assert sum(told('queue_requests_granted_total{pool="default",priority="normal"}')) == 1
        assert min(told('link_round_trip_seconds_count{pool="default"}')) > 0
        for _ in answers:
            gate.let_out(gate.wait_for_one().path)
        assert [answer.result(timeout=60).status_code for answer in answers] == [200, 200]
        assert sum(told('queue_requests_granted_total{pool="default",priority="normal"}')) == 2


def test_an_embedded_server_is_shared_by_the_processes(start: Any, gate: Gate) -> None:
    """`--redis embedded` and nothing installed: two processes, one limit."""
    with (
        tempfile.TemporaryDirectory(prefix="adm-") as state,
        start("--processes", "2", "--workers", "1", "--redis", "embedded", XDG_STATE_HOME=state) as web,
    ):
        wait_until(lambda: len(web.status()["processes"]) == 2, tries=300)
        answers = [web.get(f"/{number}") for number in range(6)]
        for left in reversed(range(6)):
            one = gate.wait_for_one()
            wait_until(lambda left=left: web.status()["queued"] == left)  # type: ignore[misc]  # Bound at once.
            gate.let_out(one.path)
        assert [answer.result(timeout=60).status_code for answer in answers] == [200] * 6
        assert gate.most == 1


@pytest.mark.parametrize(
    ("on_outage", "statuses"), [("closed", [503, 503]), ("degrade", [200, 429]), ("open", [200, 200])]
)
def test_a_server_that_cannot_be_reached_does_what_on_outage_says(
    start: Any, gate: Gate, on_outage: str, statuses: list[int]
) -> None:
    """Limit 1, and two requests at once that may not wait: one gets in, everyone does, or no one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = ("--workers", "1", "--max-wait", "0", "--on-outage", on_outage)
    with start(*options, "--redis", f"redis://127.0.0.1:{port}") as web:
        wait_until(lambda: web.status()["link"]["state"] == "open")
        answers = []
        for number, status in enumerate(statuses):
            answers.append(web.get(f"/{number}"))
            if status == 200:
                gate.wait_for(f"/{number}")
            else:
                assert answers[-1].result(timeout=60).status_code == status
        for number, status in enumerate(statuses):
            if status == 200:
                gate.let_out(f"/{number}")
        assert [answer.result(timeout=60).status_code for answer in answers] == statuses
        if on_outage == "closed":
            assert answers[0].result().json()["error"]["code"] == "pool_unavailable"
