"""Durable jobs that do nothing: enqueued a second, and done a second by one worker process, beside other queues.

    a process of each contender, by turns: enqueue ──▶ one server ──▶ one worker: take, run, report

All turns are on the same server in the same run. Peers are measured in an environment of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from tests.benchmarks import jobs_worker
from tests.benchmarks.builds import PURE, ROOT, THIS, Build, Twin, twin
from tests.benchmarks.jobs_worker import CONTENDERS, KEPT, OURS
from tests.benchmarks.measure import interleaved, lower_quartile, paired_ratio, upper_quartile
from tests.benchmarks.redis_program import program_for
from tests.benchmarks.report import Report
from tests.redis.servers import Server, start_server

PEERS = tuple(name for name in CONTENDERS if name not in (OURS, KEPT))


@dataclass(frozen=True, slots=True)
class Phase:
    """Enqueueing, or working off."""

    rate: float
    """Jobs a second."""
    client_cpu: float
    """Microseconds of the process's CPU time for each."""
    server_cpu: float


@dataclass(frozen=True, slots=True)
class Turn:
    """Both, one after the other."""

    enqueued: Phase
    done: Phase


def measure_jobs(report: Report) -> None:
    """Enqueue and work off, all in turns; what of it is the client's and what the server's CPU time."""
    plan = report.plan
    program = program_for(report)
    with start_server(program) as server:
        version = server.info("server").get("valkey_version") or server.info("server")["redis_version"]
        report.begin(
            "jobs",
            f"{program.name} {version} on the loopback interface, nothing written to disk; async jobs that do "
            "nothing; one process enqueues them, then works them off; uvloop",
        )
        with _processes(report) as found:
            contenders: dict[str, Callable[[], Turn]] = {}
            for name, (who, process) in found.items():
                count = plan.scaled(2_000, 200) if who in PEERS else plan.scaled(50_000, 2_000)
                contenders[name] = partial(_turn, server, process, who, count)
            turns = interleaved(contenders, plan.rounds)
    _tell(
        report,
        "enqueue, in batches where there are any",
        {name: [t.enqueued for t in all_] for name, all_ in turns.items()},
    )
    _tell(
        report, "take, run, report: one worker process", {name: [t.done for t in all_] for name, all_ in turns.items()}
    )
    report.note(
        "admission: 10 tenants, retries, timeouts, leases, counters, permits of a pool; timed until the server has "
        "heard of the last end. Peers: their fastest settings, no results kept, timed until the last job has run."
    )
    _claim(report, turns)


def _tell(report: Report, title: str, phases: Mapping[str, Sequence[Phase]]) -> None:
    ours = [phase.rate for phase in phases[OURS]]
    rows = [
        (
            name,
            upper_quartile([phase.rate for phase in all_]),
            paired_ratio(ours, [phase.rate for phase in all_]),
            lower_quartile([phase.client_cpu for phase in all_]),
            lower_quartile([phase.server_cpu for phase in all_]),
        )
        for name, all_ in phases.items()
    ]
    report.table(f"{title}; CPU time for each", ("who", "jobs/s", "ours ÷", "client µs", "server µs"), rows)


def _claim(report: Report, turns: Mapping[str, Sequence[Turn]]) -> None:
    enqueued = {name: [turn.enqueued.rate for turn in all_] for name, all_ in turns.items()}
    done = {name: [turn.done.rate for turn in all_] for name, all_ in turns.items()}
    report.at_least("jobs: enqueued in batches", upper_quartile(enqueued[OURS]), 100_000, "/s")
    report.at_least("jobs: complete cycles of one worker process", upper_quartile(done[OURS]), 25_000, "/s")
    for what, rates in ("enqueued", enqueued), ("cycles", done):
        peers = [name for name in PEERS if name in rates]
        if peers:
            best = max(peers, key=lambda name: upper_quartile(rates[name]))
            report.at_least(
                f"jobs: {what}, admission ÷ {best}, the best peer", paired_ratio(rates[OURS], rates[best]), 5.0
            )


def _turn(server: Server, process: Twin, who: str, count: int) -> Turn:
    try:
        return Turn(
            _phase(server, partial(process.call, jobs_worker.enqueue, who, server.url, count)),
            _phase(server, partial(process.call, jobs_worker.work, who, server.url, count)),
        )
    finally:
        server.ask("FLUSHALL")


def _phase(server: Server, call: Callable[[], jobs_worker.Spent]) -> Phase:
    before = _server_cpu(server)
    spent = call()
    used, done = _server_cpu(server) - before, spent["done"]
    return Phase(done / spent["seconds"], spent["cpu"] / done * 1e6, used / done * 1e6)


def _server_cpu(server: Server) -> float:
    """Seconds of CPU time the server has used."""
    told = server.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


@contextmanager
def _processes(report: Report) -> Iterator[dict[str, tuple[str, Twin]]]:
    """By the name in the tables: the contender's name, and its process. Those that cannot take part are reported."""
    plan = report.plan
    with ExitStack() as stack:
        found: dict[str, tuple[str, Twin]] = {}

        def enter(name: str, who: str, build: Build) -> None:
            process = stack.enter_context(twin(build))
            why = process.call(jobs_worker.absent, who)
            if why:
                report.missing(name, why)
            else:
                found[name] = who, process

        enter(OURS, OURS, plan.compiled or THIS)
        if plan.compiled is not None:
            enter(PURE, OURS, THIS)
        enter(KEPT, KEPT, plan.compiled or THIS)
        for who in PEERS:
            if plan.peers is None:
                report.missing(who, "no environment of the peers was given: --peers; ./dev bench makes one")
            else:
                enter(who, who, Build(str(plan.peers.absolute() / "bin" / "python"), ROOT))
        yield found
