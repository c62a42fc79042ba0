"""Durable jobs while their workers are killed: `./dev chaos jobs [--jobs 10000] [--workers 3] [--every 0.25] …`.

Jobs of several tenants and classes, short and long, async and in threads, some of which fail the first time. Until all
are done, a random worker process is killed every so often, and another one started in its place. One at a time is
stopped instead until its lease has run out and its jobs run elsewhere. Then it goes on, and what it says is stale.

The server writes every change to its append-only file, and syncs it before it answers: what it has acknowledged is
there after a restart (`--restart` kills it in the middle).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from admission.errors import AdmissionError
from admission.jobs import JobQueue, JobState, JobStats
from tests.chaos.jobs_broken import BROKEN, script_of
from tests.chaos.jobs_worker import GRACE, PLACES, POOL, queue, register
from tests.chaos.journal import Kind, Reader
from tests.chaos.keys import Keys
from tests.redis.servers import STARTERS, Server

ROOT = Path(__file__).parents[2]

TENANTS = 5

LONG = 600
"""Milliseconds one job in 50 takes: it is under way when what was said of its last delivery arrives."""

LOOK = 0.05
"""Seconds between two looks at the journal."""

BOOKKEEPING = ("st", "j:st")
"""Last parts of keys that stay while a queue is known."""

SHOWN = 10
"""Violations shown in full."""


class Crew:
    """The worker processes, by number: no two of a run have the same."""

    def __init__(self, directory: Path, server: Server, namespace: str, lease: float, broken: str) -> None:
        self.alive: list[int] = []
        self.log = directory / "workers.log"
        self._numbers = 0
        arguments = [str(directory / "journal"), server.url, namespace, str(lease), broken]
        with self.log.open("wb") as log:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.jobs_worker", *arguments],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # A Ctrl+C at the run is not the workers': the run ends them.
            )

    def start(self) -> None:
        """One more."""
        self._say("start", self._numbers)
        self.alive.append(self._numbers)
        self._numbers += 1

    def kill(self, number: int) -> None:
        """`kill -9`, and a new one in its place."""
        self.alive.remove(number)
        self._say("kill", number)
        self.start()

    def stop(self, number: int) -> None:
        """Have it stand still in the middle of whatever it does."""
        self._say("stop", number)

    def go_on(self, number: int) -> None:
        """End that."""
        self._say("cont", number)

    def end(self, patience: float) -> list[str]:
        """End all politely. What was wrong with that."""
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.close()
        try:
            self._nursery.wait(patience)
        except subprocess.TimeoutExpired:
            return [f"the workers did not end within {patience:g} s"]
        return self._nursery.stdout.read().splitlines()

    def close(self) -> None:
        """End whatever still runs: without their parent, workers end by themselves, unless they stand still."""
        if self._nursery.poll() is None:
            for number in self.alive:
                with suppress(BrokenPipeError, RuntimeError, ValueError):  # Its input is closed: all were told to end.
                    self._say("cont", number)
            self._nursery.kill()
        self._nursery.wait()
        for pipe in (self._nursery.stdin, self._nursery.stdout):
            if pipe is not None:
                pipe.close()

    def _say(self, verb: str, number: int) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(f"{verb} {number}\n")
        self._nursery.stdin.flush()
        if self._nursery.stdout.readline() != "done\n":
            raise RuntimeError(f"the parent of the workers has ended: {self.log.read_text()[-2000:]}")


class Ledger:
    """What really ran, by the journal."""

    def __init__(self, path: Path) -> None:
        self.begun: Counter[str] = Counter()
        """Of every delivery (id:delivery), how often it was begun."""
        self.ended: set[str] = set()
        """Deliveries that got to their end."""
        self.completed: Counter[str] = Counter()
        """Of every job, how many of its deliveries did."""
        self._reader = Reader(path)

    def read(self) -> int:
        """Take in what is new; says how much that was."""
        found = 0
        for record in self._reader.news():
            found += 1
            if record.kind is Kind.BEGIN:
                self.begun[record.ticket] += 1
            elif record.kind is Kind.END:
                self.ended.add(record.ticket)
                self.completed[record.ticket.partition(":")[0]] += 1
        return found

    @property
    def duplicates(self) -> int:
        """Completions beyond the first of each job."""
        return self.completed.total() - len(self.completed)

    def close(self) -> None:
        """Read no more."""
        self._reader.close()


class Run:
    """One run, and what was found."""

    def __init__(self, options: argparse.Namespace, seed: int, directory: Path) -> None:
        self.options = options
        self.dice = Random(seed)
        self.wrong: list[tuple[str, str]] = []
        self.kills = self.stops = self.restarts = 0
        self.seconds = 0.0
        self.stats: JobStats | None = None
        self.namespace = f"chaos{os.getpid()}"
        self.server: Server = STARTERS[options.kind](aof=True)
        self.ledger = Ledger(directory / "journal")
        self.crew = Crew(directory, self.server, self.namespace, options.lease, options.broken)
        self._frozen: int | None = None
        self._half = asyncio.Event()
        """Set when half of the jobs have run."""

    def close(self) -> None:
        """End everything."""
        self.crew.close()
        self.ledger.close()
        self.server.close()

    async def run(self, say: Callable[[str], None]) -> None:
        """Enqueue, kill until all is done, and compare."""
        jobs = queue(self.server.url, self.namespace, self.options.lease)
        register(jobs)
        try:
            ids = await self._enqueue(jobs)
            say(f"{len(ids):,} jobs are queued")
            began = time.monotonic()
            await self._torment(jobs, ids)
            self.seconds = time.monotonic() - began
            await self._compare(jobs, ids)
        finally:
            await jobs.aclose()

    async def _torment(self, jobs: JobQueue, ids: Sequence[str]) -> None:
        """Let workers work, and make faults until all is done."""
        for _ in range(self.options.workers):
            self.crew.start()
        faults = [asyncio.create_task(self._kill()), asyncio.create_task(self._freeze())]
        if self.options.restart:
            faults.append(asyncio.create_task(self._restart()))
        try:
            await self._until_done(jobs, ids)
        finally:
            for fault in faults:
                fault.cancel()
            ends = await asyncio.gather(*faults, return_exceptions=True)
            if self._frozen is not None:
                self.crew.go_on(self._frozen)
        for end in ends:
            if isinstance(end, Exception):
                raise RuntimeError("a fault could not be made") from end

    # ------------------------------------------------------------------ the jobs

    async def _enqueue(self, jobs: JobQueue) -> list[str]:
        made = []
        for number in range(self.options.jobs):
            name = "work_in_thread" if number % 10 == 7 else "work"
            prepared = jobs.tasks[name].with_options(
                tenant=f"tenant-{self.dice.randrange(TENANTS)}",
                priority=self.dice.choice(jobs.classes).name,
                dedup_key=f"job-{number}" if number % 20 == 2 else None,
            )
            milliseconds = LONG if number % 50 == 9 else self.dice.randint(5, 40)
            made.append(prepared.job(milliseconds, fails=number % 10 == 3))
        return [job.id for job in await jobs.enqueue_many(made)]

    async def _until_done(self, jobs: JobQueue, ids: Sequence[str]) -> None:
        """Until the queue is empty; or too long, or nothing has happened for too long."""
        options, began = self.options, time.monotonic()
        heard = began
        while True:
            await asyncio.sleep(LOOK)
            now = time.monotonic()
            if self.ledger.read():
                heard = now
            if len(self.ledger.completed) > len(ids) / 2:
                self._half.set()
            if len(self.ledger.completed) == len(ids) or now - heard > 2 * options.lease:
                # All have run. Or what is left will never; or it is delayed, or comes back when a lease has run out.
                with suppress(AdmissionError):
                    stats = await jobs.stats()
                    if not stats.queued + stats.delayed + stats.running:
                        self.ledger.read()
                        return
            left = len(ids) - len(self.ledger.completed)
            if now - heard > options.patience:
                self._found("stalled", f"nothing has run for {options.patience:g} s, and {left:,} jobs are left")
                return
            if now - began > options.bound:
                self._found("stalled", f"not done within {options.bound:g} s: {left:,} jobs are left")
                return

    # ------------------------------------------------------------------ the faults

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self.options.every)
            chosen = self.dice.choice([number for number in self.crew.alive if number != self._frozen])
            self.crew.kill(chosen)
            self.kills += 1

    async def _freeze(self) -> None:
        lease = self.options.lease
        while True:
            await asyncio.sleep(lease / 2)
            self._frozen = self.crew.alive[0]  # The oldest: it has jobs, and its lease stands.
            self.crew.stop(self._frozen)
            self.stops += 1
            await asyncio.sleep(lease + 0.15)
            self.crew.go_on(self._frozen)
            self._frozen = None

    async def _restart(self) -> None:
        await self._half.wait()
        await asyncio.to_thread(self.server.restart, politely=False)
        self.restarts += 1

    # ------------------------------------------------------------------ what must hold

    async def _compare(self, jobs: JobQueue, ids: Sequence[str]) -> None:
        self.stats = await jobs.stats()
        for id in ids:
            if id not in self.ledger.completed:
                self._found("lost", f"job {id} never got to its end")
        for name, times in self.ledger.begun.items():
            if times > 1:
                self._found("twice", f"delivery {name} was begun {times} times")
        for record in await jobs.records(JobState.DONE, None, None, None):
            name = f"{record.id}:{record.delivery}"
            if record.result != str(record.delivery):
                self._found("stale", f"{name} was done by what an earlier delivery said: {record.result}")
            elif name not in self.ledger.ended:
                self._found("unfounded", f"{name} is done, and never got to its end")
        if self.stats.dead:
            self._found("dead", f"{self.stats.dead} jobs are among the dead letters")
        if not self.wrong and self.stats.succeeded_total != len(ids):
            self._found("miscounted", f"{self.stats.succeeded_total} of {len(ids)} jobs are said to be done")
        if self.wrong:
            return
        await jobs.purge(state=JobState.DONE)
        # The workers that are left have the pool forget those that were killed last.
        await asyncio.sleep(2 * self.options.lease)
        for sentence in await asyncio.to_thread(self.crew.end, 2 * GRACE):
            self._found("hung", sentence)
        self._look_for_keys()
        if "Traceback" in self.crew.log.read_text():
            self._found("traceback", self.crew.log.read_text().partition("Traceback")[2][:2000])

    def _look_for_keys(self) -> None:
        keys = Keys(self.server, self.namespace, POOL)
        try:
            for key in keys.client.scan_iter(match=f"*{self.namespace}*", count=1000):
                if key.rpartition("}")[2] not in BOOKKEEPING:
                    self._found("leaked", str(key))
        finally:
            keys.close()

    def _found(self, kind: str, what: str) -> None:
        self.wrong.append((kind, what))

    # ------------------------------------------------------------------ what is told

    def report(self, seed: int) -> dict[str, object]:
        """For programs."""
        stats = self.stats
        return {
            "seed": seed,
            "jobs": self.options.jobs,
            "kills": self.kills,
            "stops": self.stops,
            "restarts": self.restarts,
            "deliveries": self.ledger.begun.total(),
            "duplicates": self.ledger.duplicates,
            "lost": sum(kind == "lost" for kind, _ in self.wrong),
            "redelivered": stats.redelivered_total if stats else None,
            "stale": stats.stale_total if stats else None,
            "seconds": round(self.seconds, 1),
            "violations": [{"kind": kind, "what": what} for kind, what in self.wrong],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code: 0 when nothing went wrong."""
    options = _options(arguments)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    say = (lambda _: None) if options.json else _say
    say(f"seed {seed}, {options.broken or 'the real build'} on {options.kind}, appendfsync always")
    with _directory(options.keep) as directory, script_of(options.broken):
        run = Run(options, seed, directory)
        try:
            asyncio.run(run.run(say))
        finally:
            run.close()
    report = run.report(seed)
    if options.json:
        print(json.dumps(report, indent=2))
        return 1 if run.wrong else 0
    for kind, what in run.wrong[:SHOWN]:
        print(f"VIOLATION {kind}: {what}")
    print(
        f"{run.options.jobs:,} jobs, {run.kills} workers killed, {run.stops} stopped past their lease, "
        f"{run.restarts} restarts of the server: {report['deliveries']:,} deliveries begun, "
        f"{report['redelivered']} came back from the dead, {report['duplicates']:,} duplicates, "
        f"{report['lost']} lost, {report['stale']} stale reports refused, {len(run.wrong)} violations; "
        f"{run.seconds:.1f} s"
    )
    return 1 if run.wrong else 0


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Where the journal and the log are written."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="admission-chaos-") as directory:
        yield Path(directory)


def _say(text: str) -> None:
    print(text, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.jobs", description="Workers run durable jobs while they are killed one by one."
    )
    parser.add_argument("--jobs", type=int, default=10_000, help="how many (%(default)s)")
    parser.add_argument("--workers", type=int, default=3, help=f"processes, with {PLACES} jobs at once (%(default)s)")
    parser.add_argument("--every", type=float, default=0.25, help="seconds between two kills (%(default)s)")
    parser.add_argument("--restart", action="store_true", help="kill and restart the server in the middle")
    parser.add_argument("--seed", type=int, help="of what is drawn; printed at the start")
    parser.add_argument("--lease", type=float, default=1.0, help="seconds, of the workers (%(default)s)")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds without any progress (%(default)s)")
    parser.add_argument("--bound", type=float, default=300.0, help="seconds in all (%(default)s)")
    parser.add_argument("--kind", choices=sorted(STARTERS), default="redis", help="of server (%(default)s)")
    parser.add_argument("--broken", choices=sorted(BROKEN), default="", help="a deliberately broken build")
    parser.add_argument("--keep", type=Path, help="a new directory for the journal and the workers' log")
    parser.add_argument("--json", action="store_true", help="the report, for programs")
    options = parser.parse_args(arguments)
    if options.jobs < 1 or options.workers < 2:
        parser.error("there must be a job, and two workers: one of them may be stopped")
    return options


if __name__ == "__main__":
    sys.exit(main())
