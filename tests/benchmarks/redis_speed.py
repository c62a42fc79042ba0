"""A pool shared through Redis: calls a second over several processes, and what one call takes.

    4 workers, each a process with uvloop ──▶ one server ◀── redis-benchmark: what the server could do at most

Everything takes turns on the same server in the same run. Only ratios count: on two cores the server, the workers and
the generator share what there is.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from tests.benchmarks.builds import PURE, THIS
from tests.benchmarks.measure import interleaved, lower_quartile, paired_ratio, upper_quartile
from tests.benchmarks.redis_limiters import LEASES, LIMITERS, OURS
from tests.benchmarks.redis_program import program_for
from tests.benchmarks.redis_worker import CEILING_ARGUMENTS, CEILING_KEYS, CEILING_SCRIPT, Order
from tests.benchmarks.report import Report
from tests.redis.servers import Server, debian_program, start_server, wait_until

PROCESSES = 4
CALLERS = 64
"""In each process; all of them busy all the time."""

PIPELINE = 16
CLIENTS = 50
"""Of redis-benchmark: its own default."""

MOST_TRIES = 5
"""Runs of two processes until one hands over to the other."""

CONTENDED = "admission, a slot for every fourth caller"
BUSY = "admission, no rest: asks again in the same call"
CEILING = f"redis-benchmark, EVALSHA, pipeline {PIPELINE}"

_ORDER: Order = {
    "do": "look",
    "who": OURS,
    "url": "",
    "namespace": "",
    "limit": PROCESSES * CALLERS,
    "callers": CALLERS,
    "seconds": 0.0,
    "count": 0,
    "hold": 0.0,
    "pause": 0.0,
}


@dataclass(frozen=True, slots=True)
class Burst:
    """What some seconds of full load found."""

    rate: float
    """Acquires + releases in pairs, or calls, per second."""
    client_cpu: float | None
    """Microseconds of the workers' CPU time for each; None where they are not ours."""
    server_cpu: float


class Crew:
    """The worker processes, and the server they all ask."""

    def __init__(self, workers: Mapping[str, Sequence[subprocess.Popen[str]]], server: Server) -> None:
        self.workers = workers
        """By the build they have: `PURE`, and `OURS` where that is another."""
        self.server = server

    @property
    def builds(self) -> Sequence[str]:
        """Ours to be measured: the best build, and the pure one where it is another."""
        return [OURS, PURE] if OURS in self.workers else [OURS]

    @property
    def size(self) -> int:
        """How many processes work at once."""
        return len(self.workers[PURE])

    def work(
        self, order: Mapping[str, object], *, processes: int = 1, meanwhile: Callable[[str], object] | None = None
    ) -> list[dict[str, Any]]:
        """Have *order* done by so many processes at once: the answer of each.

        Args:
            meanwhile: Called with the namespace once all are ready, and before they are told to begin.
        """
        namespace = f"bench-{uuid.uuid4().hex[:8]}"
        who = order["who"]
        chosen = self.workers[OURS if who == OURS and OURS in self.workers else PURE][:processes]
        full_order = {**_ORDER, "url": self.server.url, "namespace": namespace, **order}
        full_order["who"] = OURS if who == PURE else who
        for worker in chosen:
            self._tell(worker, json.dumps(full_order))
        heard = [self._hear(worker) for worker in chosen]
        if order["do"] == "look":
            return heard
        for said in heard:
            if "ready" not in said:
                raise RuntimeError(f"{order['who']} could not {order['do']}: {said.get('absent', said)}")
        if meanwhile is not None:
            meanwhile(namespace)
        begin = time.monotonic() + 0.1
        for worker in chosen:
            self._tell(worker, str(begin))
        found = [self._hear(worker) for worker in chosen]
        self.server.ask("FLUSHALL")
        return found

    def server_cpu(self) -> float:
        """Seconds of CPU time the server has used."""
        told = self.server.info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])

    @staticmethod
    def _tell(worker: subprocess.Popen[str], line: str) -> None:
        assert worker.stdin is not None
        worker.stdin.write(f"{line}\n")
        worker.stdin.flush()

    @staticmethod
    def _hear(worker: subprocess.Popen[str]) -> dict[str, Any]:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError("a worker of the benchmark ended; what it said of that is above")
        found: dict[str, Any] = json.loads(line)
        return found


def measure_redis(report: Report) -> None:
    """Throughput over processes, then the steps of one call, then what a waiter costs the server."""
    with crew(report) as found:
        _measure_rate(report, found)
        _measure_latency(report, found)
        _measure_hand_over(report, found)
        _measure_memory(report, found)


@contextmanager
def crew(report: Report) -> Iterator[Crew]:
    """A server, announced, and processes that have their imports behind them."""
    program = program_for(report)
    processes = report.plan.scaled(PROCESSES, 2)
    with start_server(program) as server:
        version = server.info("server").get("valkey_version") or server.info("server")["redis_version"]
        report.begin(
            "redis",
            f"{program.name} {version} on the loopback interface, nothing written to disk; "
            f"{processes} processes with {CALLERS} callers each, uvloop",
        )
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        builds = {PURE: THIS} if report.plan.compiled is None else {PURE: THIS, OURS: report.plan.compiled}
        workers = {
            name: [
                subprocess.Popen(
                    [build.python, "-m", "tests.benchmarks.redis_worker"],
                    cwd=build.root,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for _ in range(processes)
            ]
            for name, build in builds.items()
        }
        try:
            yield Crew(workers, server)
        finally:
            for worker in chain.from_iterable(workers.values()):
                _end(worker)


def _end(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.close()
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    worker.stdout.close()


# ---------------------------------------------------------------------- calls a second


def _measure_rate(report: Report, crew: Crew) -> None:
    plan, everyone = report.plan, crew.size * CALLERS
    seconds = 0.2 if plan.quick else 2.0
    contenders: dict[str, Callable[[], Burst]] = {}
    ceiling = _ceiling(report, crew, plan.scaled(400_000, 20_000))
    if ceiling is not None:
        contenders[CEILING] = ceiling
    for build in crew.builds:
        contenders[build] = partial(_turn_over, crew, build, everyone, seconds)
    contenders[CONTENDED] = partial(_turn_over, crew, OURS, everyone // 4, seconds)
    for name in LIMITERS:
        if name == OURS:
            continue
        found = crew.work({"do": "look", "who": name}, processes=crew.size)[0]
        if "absent" in found:
            report.missing(name, found["absent"])
        else:
            contenders[name] = partial(_turn_over, crew, name, everyone, seconds)
    bursts = interleaved(contenders, plan.rounds)
    rates = {name: [burst.rate for burst in found] for name, found in bursts.items()}
    base = rates.get(CEILING)
    rows = [
        (
            name,
            upper_quartile(rates[name]),
            None if base is None else paired_ratio(rates[name], base),
            None if name == CEILING else lower_quartile([burst.client_cpu or 0.0 for burst in found]),
            lower_quartile([burst.server_cpu for burst in found]),
        )
        for name, found in bursts.items()
    ]
    columns = ("who", "pairs/s", "÷ ceiling", "client µs", "server µs")
    report.table("acquire + release, all processes together; CPU time for each pair", columns, rows)
    report.note("The ceiling is calls a second of a script of ZADD, ZPOPMIN and HSET: its row counts calls, not pairs.")
    report.at_least(f"redis: acquire + release, {crew.size} processes", upper_quartile(rates[OURS]), 20_000, "/s")
    if base is not None:
        ratio = paired_ratio([2 * rate for rate in rates[OURS]], base)
        report.at_least("redis: operations (an acquire, a release) ÷ EVALSHA calls at pipeline 16", ratio, 0.15)
    for name in LIMITERS:
        if name in rates and name != OURS:
            report.note(f"admission ÷ {name}: {paired_ratio(rates[OURS], rates[name]):.1f}")


def _turn_over(crew: Crew, who: str, limit: int, seconds: float) -> Burst:
    before = 0.0

    def note(_: str) -> None:
        nonlocal before
        before = crew.server_cpu()

    order = {"do": "turn over", "who": who, "limit": limit, "seconds": seconds}
    found = crew.work(order, processes=crew.size, meanwhile=note)
    done = sum(answer["done"] for answer in found)
    used = sum(answer["cpu"] for answer in found)
    return Burst(done / seconds, used / done * 1e6, (crew.server_cpu() - before) / done * 1e6)


def _ceiling(report: Report, crew: Crew, calls: int) -> Callable[[], Burst] | None:
    """What redis-benchmark gets out of the server; None without it."""
    server = crew.server
    path = debian_program().path.with_name("redis-benchmark") if server.kind == "redis" else None
    if path is None or not path.exists():
        report.missing(CEILING, "there is no redis-benchmark here (Debian: apt-get install redis-tools)")
        return None
    program = debian_program()

    def measure() -> Burst:
        sha = str(server.ask("SCRIPT", "LOAD", CEILING_SCRIPT))
        command = [str(path), "-h", server.host, "-p", str(server.port), "-n", str(calls), "-c", str(CLIENTS)]
        command += ["-P", str(PIPELINE), "--csv", "EVALSHA", sha, str(len(CEILING_KEYS))]
        before = crew.server_cpu()
        done = subprocess.run(
            [*command, *CEILING_KEYS, *CEILING_ARGUMENTS],
            env={**os.environ, **program.environment},
            capture_output=True,
            text=True,
            check=True,
        )
        used = crew.server_cpu() - before
        # Its last line: "the command","calls a second","…
        rate = float(done.stdout.strip().splitlines()[-1].split('","')[1])
        return Burst(rate, None, used / calls * 1e6)

    return measure


# ---------------------------------------------------------------------- one call


def _measure_latency(report: Report, crew: Crew) -> None:
    plan = report.plan
    count = plan.scaled(1000, 50)
    contenders = [name for name in LIMITERS if name not in report.absent]
    found = interleaved({name: partial(_latency, crew, name, count) for name in contenders}, plan.rounds)
    ours = {step: [times[step] for times in found[OURS]] for step in found[OURS][0]}
    bare = ours["evalsha"]
    rows: list[tuple[str, float, float | None]] = [
        ("create_task + await", lower_quartile(ours["task"]), paired_ratio(ours["task"], bare)),
        ("PING, redis-py", lower_quartile(ours["ping"]), paired_ratio(ours["ping"], bare)),
        ("EVALSHA of the same three commands, redis-py", lower_quartile(bare), 1.0),
    ]
    for name in contenders:
        acquire = [times["acquire"] for times in found[name]]
        beside = [times["evalsha"] for times in found[name]]
        rows.append((f"acquire, {name}", lower_quartile(acquire), paired_ratio(acquire, beside)))
    report.table("alone on the server, medians", ("what", "µs", "÷ EVALSHA"), rows)
    ratio = paired_ratio(ours["acquire"], bare)
    report.at_most("redis: uncontended acquire ÷ one bare EVALSHA round trip, p50", ratio, 2.5)


def _latency(crew: Crew, who: str, count: int) -> dict[str, float]:
    found: dict[str, float] = crew.work({"do": "latency", "who": who, "count": count})[0]
    return found


def _measure_hand_over(report: Report, crew: Crew) -> None:
    plan = report.plan
    found = interleaved(
        {
            OURS: partial(_hand_over, crew, OURS, plan.scaled(150, 10), hold=0.002, pause=0.001),
            BUSY: partial(_hand_over, crew, OURS, plan.scaled(500, 10), hold=0.0, pause=0.0),
        },
        plan.rounds,
    )
    if LEASES not in report.absent:
        # Whoever asks again without a place in line would lose each race against the one that just gave back.
        found[LEASES] = [
            _hand_over(crew, LEASES, plan.scaled(20, 3), hold=0.04, pause=0.16) for _ in range(plan.scaled(3, 1))
        ]
    rows = []
    for name, times in found.items():
        ratio = paired_ratio([wait for wait, _ in times], [bare for _, bare in times])
        rows.append((name, lower_quartile([wait for wait, _ in times]), ratio))
        if name == OURS:
            report.at_most("redis: wake-up after a remote release ÷ one bare EVALSHA round trip, p50", ratio, 3.0)
    columns = ("who", "µs", "÷ EVALSHA")
    report.table("from a release in one process to the waiter's going on in another, medians", columns, rows)
    report.note("The bare round trips are made between the turns, after the same rest. LiteLLM's limiter never waits.")


def _hand_over(crew: Crew, who: str, count: int, *, hold: float, pause: float) -> tuple[float, float]:
    """Median microseconds from a release to the other's wake-up; and of the bare round trips between."""
    order = {"do": "hand over", "who": who, "limit": 1, "count": count, "hold": hold, "pause": pause}
    for _ in range(MOST_TRIES):
        first, second = crew.work(order, processes=2)
        waits = [*_waits(first["got"], second["given"]), *_waits(second["got"], first["given"])]
        if waits:
            return statistics.median(waits) * 1e6, statistics.median([*first["bare"], *second["bare"]]) * 1e6
    raise RuntimeError(f"{who}: in {MOST_TRIES} runs of {count} turns, one process was done before the other began")


def _waits(got: Sequence[float], given: Sequence[float]) -> list[float]:
    """Of every slot that was got: how long before, the other process had given it."""
    found = []
    for moment, before in zip(got[1:], got, strict=False):
        place = bisect_right(given, moment)
        if place and given[place - 1] > before:  # Else it was the same process's turn twice.
            found.append(moment - given[place - 1])
    return found


# ---------------------------------------------------------------------- what a waiter costs


def _measure_memory(report: Report, crew: Crew) -> None:
    count = report.plan.scaled(10_000, 200)
    before = after = 0

    def weigh(namespace: str) -> None:
        nonlocal after
        key = f"{{{namespace}:default}}w"
        wait_until(lambda: crew.server.ask("ZCARD", key) > count, f"{count:,} callers to stand in line")
        after = int(crew.server.info("memory")["used_memory"])

    crew.work({"do": "look", "who": OURS})  # So that the script is loaded, and the server's own buffers are there.
    before = int(crew.server.info("memory")["used_memory"])
    crew.work({"do": "crowd", "who": OURS, "limit": 1, "count": count}, meanwhile=weigh)
    size = (after - before) / count
    report.table("memory of the server", ("what", "bytes"), [(f"a waiting ticket, of {count:,}", size)])
