"""A web app at 90 % of its capacity, without and with a backlog of jobs on the same pool.

    the same requests, by turns:   web app alone | and a worker process | and a worker in the web app's process

Requests come whether or not earlier ones have been answered, as clients do. Each waits for its slot, then for so many
seconds of work; how long it waited for the slot is what the web app itself says.

What others take of the processor meanwhile is capacity that the web app does not have, and at 90 % a little less of it
is a much longer line. On a machine that is not idle, give the run precedence: `chrt -f 10 ./dev bench shared`.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from types import TracebackType
from typing import TypeVar

from admission import AdmissionController, Snapshot
from admission.jobs import JobQueue
from admission.types import DEFAULT_CLASSES
from tests.benchmarks.builds import ROOT
from tests.benchmarks.measure import event_loops, interleaved, run
from tests.benchmarks.redis_program import program_for
from tests.benchmarks.report import Report
from tests.benchmarks.shared_app import POOL, queue_at
from tests.redis.servers import Server, start_server

T = TypeVar("T")

LIMIT = 8
"""As many slots as a pool has whose owner says nothing."""

SERVICE = 0.05
"""Seconds of work of a request on average; exponentially distributed, as those of jobs. Long enough that what a
hand-over takes on two cores, a millisecond, is little beside it: at 90 % a hundredth more is a tenth more wait. Short
enough for many rushes in a round: p99 is made of the worst few.
"""

JOB = SERVICE
"""Seconds of a job on average, unless a setting says otherwise: as long as requests, on whom short ones are easier.
Requests leave them a tenth of the slots, which is twice the starts that they are sure of.
"""

LOAD = 0.9
"""Of what the web app can do alone."""

JOBS = 5_000

LOW = "low"
GUARANTEED = next(rules.guaranteed for rules in DEFAULT_CLASSES if rules.name == LOW)


@dataclass(frozen=True, slots=True)
class Site:
    """A pool and the processes that share it."""

    parts: tuple[str, ...]
    """The web app's first."""
    guaranteed: float = GUARANTEED
    """Share of the starts that the class of the jobs has for certain."""


APART = Site(("web", "worker"))
TOGETHER = Site(("both",))
NOTHING_SURE = Site(("web", "worker"), guaranteed=0.0)


@dataclass(frozen=True, slots=True)
class Setting:
    """What goes on at a site besides requests."""

    site: Site
    job: float = JOB
    """Seconds a job takes on average; 0: there are none."""


ALONE = "no jobs"
BESIDE = "jobs in a worker process"
INSIDE = "jobs in the web app's process"
JUDGED = (BESIDE, INSIDE)
SETTINGS: Mapping[str, Setting] = {
    ALONE: Setting(APART, job=0),
    BESIDE: Setting(APART),
    INSIDE: Setting(TOGETHER),
}
FURTHER: Mapping[str, Setting] = {
    "worker process, jobs half as long as requests": Setting(APART, job=SERVICE / 2),
    "worker process, nothing guaranteed": Setting(NOTHING_SURE),
}
"""To see what makes the difference; not in a quick run."""

CALLERS = 4 * LIMIT
"""At once, while it is found out what the web app can do."""

LOOK = 0.05
"""Seconds between two looks at the pool under load."""
SHARP_LOOK = 0.01
"""… and after it."""
MOST_LOOKS = 1_000
"""After it."""

RESAMPLES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What the web app is asked in one round."""

    settling: int
    """Those at its beginning do not count: the line is still growing into what it will be."""
    arrivals: Sequence[float]
    """Seconds from the beginning."""
    services: Sequence[float]
    """Seconds of work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one round found."""

    waits: Sequence[float]
    """Milliseconds, of each request that counts."""
    done: float = 0.0
    """Jobs a second, while requests came."""
    unused: float = 0.0
    """Share of the slots that nobody held then, though jobs were waiting."""
    takeover: float = 0.0
    """Seconds from the answer to the last request until jobs had all slots."""


def measure_shared(report: Report) -> None:
    """What online requests feel of jobs, and jobs of online requests."""
    plan = report.plan
    settings = SETTINGS if plan.quick else {**SETTINGS, **FURTHER}
    report.begin(
        "shared",
        f"a web app (uvicorn) and {JOBS:,} jobs of class {LOW}, which has {GUARANTEED:.0%} of the starts for certain, "
        f"in one pool of {LIMIT} slots; requests at random times, of {SERVICE * 1000:g} ms on average, jobs of "
        f"{JOB * 1000:g} ms unless said otherwise",
    )
    with (
        start_server(program_for(report)) as server,
        _running(server, [each.site for each in settings.values()]) as found,
    ):
        slot_time = _run(_saturate(found[APART].port, exponential(random.Random(0), plan.scaled(800, 100), SERVICE)))
        rate = LOAD * LIMIT / slot_time
        report.note(
            f"A request takes a slot for {slot_time * 1000:.1f} ms, so capacity is {LIMIT / slot_time:.0f} a second; "
            f"{LOAD:.0%} of it come, {rate:.0f} a second."
        )
        rounds = plan.scaled(max(1, plan.rounds // 3), 1)
        drawn = [draw(seed, plan.scaled(600, 20), plan.scaled(8_000, 60), rate) for seed in range(rounds)]
        turns = interleaved(
            {
                name: partial(_turn, server.url, found[setting.site], setting, iter(drawn))
                for name, setting in settings.items()
            },
            rounds,
            warm_up=0,
        )
    _tell(report, turns, settings, LIMIT / slot_time)


def draw(seed: int, settling: int, counted: int, rate: float) -> Requests:
    """The requests of one round; the same for the same *seed*."""
    chance = random.Random(seed)
    gaps = exponential(chance, settling + counted, 1 / rate)
    return Requests(
        settling=settling,
        arrivals=list(accumulate(gaps)),
        services=exponential(chance, settling + counted, SERVICE),
    )


def exponential(chance: random.Random, count: int, mean: float) -> list[float]:
    """So many draws, whose mean is exactly this one: a round is at 90 %, not at what chance makes of it."""
    drawn = [chance.expovariate(1.0) for _ in range(count)]
    factor = mean / statistics.fmean(drawn)
    return [factor * each for each in drawn]


# ---------------------------------------------------------------------- one round


async def _saturate(port: int, services: Sequence[float]) -> float:
    """Seconds for which a request of average work takes a slot, while so many callers ask that none is ever free."""
    left = iter(services)
    ends: list[float] = []
    loop = asyncio.get_running_loop()
    async with Clients(port) as clients, asyncio.TaskGroup() as group:
        await clients.warm_up()

        async def call() -> None:
            for service in left:
                await clients.ask(service)
                ends.append(loop.time())

        for _ in range(CALLERS):
            group.create_task(call())
    # From the first round of the slots to the last: before and after it they are not all taken.
    steady = ends[LIMIT : -2 * LIMIT]
    return LIMIT * (steady[-1] - steady[0]) / (len(steady) - 1)


def _turn(url: str, place: Place, setting: Setting, rounds: Iterator[Requests]) -> Turn:
    return _run(_play(url, place, setting, next(rounds)))


async def _play(url: str, place: Place, setting: Setting, requests: Requests) -> Turn:
    """Enqueue the jobs, let the requests come, and see how it goes on without them."""
    async with Clients(place.port) as clients:
        await clients.warm_up()
        if not setting.job:
            return Turn(waits=await clients.send(requests))
        jobs, background = queue_at(url, place.namespace, setting.site.guaranteed)
        pool = AdmissionController(backend=replace(jobs.site, joins=True), name=POOL, classes=jobs.classes)
        async with jobs, pool:
            lengths = exponential(random.Random(JOBS), JOBS, setting.job)
            await jobs.enqueue_many([background.job(seconds) for seconds in lengths])
            watch = Watch(jobs, pool)
            looking = asyncio.create_task(watch.look_on())
            try:
                waits = await clients.send(requests, settled=watch.begin)
            finally:
                looking.cancel()
            await watch.end()
            takeover = await watch.takeover()
            await watch.clear()
            return Turn(waits=waits, done=watch.done, unused=watch.unused, takeover=takeover)


class Watch:
    """Looks at the pool and at the queue of jobs."""

    def __init__(self, jobs: JobQueue, pool: AdmissionController) -> None:
        self.done = 0.0
        self._jobs = jobs
        self._pool = pool
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._done_before = 0
        self._free: list[int] = []

    @property
    def unused(self) -> float:
        """Share of the slots that nobody held while jobs were waiting."""
        return statistics.fmean(self._free) / LIMIT if self._free else 0.0

    async def look_on(self) -> None:
        """Look again and again until cancelled."""
        while True:
            snapshot = await self._look()
            if snapshot.of(LOW).queued:
                self._free.append(max(0, LIMIT - snapshot.in_flight))
            await asyncio.sleep(LOOK)

    async def begin(self) -> None:
        """What has been until now does not count."""
        self._done_before, self._began = (await self._jobs.stats()).succeeded_total, self._clock()
        self._free.clear()

    async def end(self) -> None:
        """The last request was answered just now."""
        ended = self._clock()
        stats = await self._jobs.stats()
        if stats.queued < LIMIT:
            raise RuntimeError(f"only {stats.queued} of {JOBS:,} jobs are left: what was measured was no backlog")
        self.done = (stats.succeeded_total - self._done_before) / (ended - self._began)
        self._began = ended

    async def takeover(self) -> float:
        """Seconds since then until jobs have all slots."""
        for _ in range(MOST_LOOKS):
            if (await self._look()).of(LOW).in_flight >= LIMIT:
                return self._clock() - self._began
            await asyncio.sleep(SHARP_LOOK)
        raise RuntimeError(f"jobs did not take all slots in {self._clock() - self._began:.0f} s")

    async def clear(self) -> None:
        """Throw the other jobs away, and let those that run end."""
        await self._jobs.purge(state="queued")
        for _ in range(MOST_LOOKS):
            if not (await self._jobs.stats()).running:
                return
            await asyncio.sleep(SHARP_LOOK)
        raise RuntimeError("jobs go on that should have ended long ago")

    async def _look(self) -> Snapshot:
        await self._pool.refresh()
        return self._pool.snapshot()


async def nothing() -> None:
    """What is to be done when nothing is."""


_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
_WAITED = re.compile(rb"(?i)x-queue-wait-ms: *(\d+)")


class Clients:
    """As many connections as there are requests on the way; each is kept for those that follow."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, writer in self._idle:
            writer.close()

    async def ask(self, service: float) -> float:
        """Have the web app work for so many seconds; milliseconds that this waited for its slot."""
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"GET /online?seconds=%.6f HTTP/1.1\r\nhost: bench\r\n\r\n" % service)
        head = await reader.readuntil(b"\r\n\r\n")
        length, waited = _LENGTH.search(head), _WAITED.search(head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None or waited is None:
            raise RuntimeError(f"the web app said something else than expected: {head!r}")
        await reader.readexactly(int(length[1]))
        self._idle.append((reader, writer))
        return float(waited[1])

    async def warm_up(self) -> None:
        """Have connections, and the web app one to its server."""
        await asyncio.gather(*[self.ask(0.0) for _ in range(2 * LIMIT)])

    async def send(
        self, requests: Requests, settled: Callable[[], Coroutine[object, object, None]] = nothing
    ) -> list[float]:
        """Ask everything at its time, whatever has been answered by then; call *settled* when it begins to count.

        Returns milliseconds, of each request that counts.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            asked: list[asyncio.Task[float]] = []
            for number, (arrival, service) in enumerate(zip(requests.arrivals, requests.services, strict=True)):
                if number == requests.settling:
                    group.create_task(settled())
                await asyncio.sleep(began + arrival - loop.time())
                asked.append(group.create_task(self.ask(service)))
        return [task.result() for task in asked[requests.settling :]]


def _run(turn: Coroutine[object, object, T]) -> T:
    return run(list(event_loops().values())[-1], turn)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a site is."""

    namespace: str
    port: int
    """Of the web app."""


@contextmanager
def _running(server: Server, sites: Iterable[Site]) -> Iterator[Mapping[Site, Place]]:
    """All processes of the sites. Those of a site that is not measured just now have nothing to do."""
    with ExitStack() as stack:
        started: dict[Site, tuple[str, list[subprocess.Popen[str]]]] = {}
        for number, site in enumerate(dict.fromkeys(sites)):
            namespace = f"site-{number}"
            options = [server.url, namespace, str(LIMIT), str(site.guaranteed)]
            started[site] = namespace, [stack.enter_context(_process([part, *options])) for part in site.parts]
        yield {site: Place(namespace, _ready(processes)) for site, (namespace, processes) in started.items()}


@contextmanager
def _process(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.benchmarks.shared_app", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()  # It then ends by itself.


def _ready(processes: Sequence[subprocess.Popen[str]]) -> int:
    """The port of the first, once all are ready."""
    ports: list[int] = []
    for process in processes:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("a process ended before it was ready; see its error above")
        ports.append(json.loads(line)["port"])
    return ports[0]


# ---------------------------------------------------------------------- what came of it


def _tell(
    report: Report, turns: Mapping[str, Sequence[Turn]], settings: Mapping[str, Setting], capacity: float
) -> None:
    waits = {name: [turn.waits for turn in found] for name, found in turns.items()}
    ratios = {name: p99(pooled(found)) / p99(pooled(waits[ALONE])) for name, found in waits.items()}
    report.table(
        "what requests wait for a slot, ms",
        ("", "median", "p99", "p99 ÷ no jobs", "90 % sure"),
        [
            (name, statistics.median(pooled(found)), p99(pooled(found)), ratios[name], interval(found, waits[ALONE]))
            for name, found in waits.items()
        ],
    )
    guaranteed = {name: setting.site.guaranteed * capacity for name, setting in settings.items()}
    report.table(
        "how jobs get on",
        ("", "jobs/s", "sure of /s", "idle slots", "all slots after s"),
        [
            (
                name,
                statistics.median(turn.done for turn in turns[name]),
                guaranteed[name],
                f"{statistics.fmean(turn.unused for turn in turns[name]):.1%}",
                max(turn.takeover for turn in turns[name]),
            )
            for name, setting in settings.items()
            if setting.job
        ],
    )
    report.note(
        "Jobs/s: done while requests came. Sure of: the guaranteed share of all starts. Idle: in nobody's hands while "
        "jobs were waiting. All slots after: from the last answer to a request until jobs had every slot, at worst.\n"
        f"In theory (M/M/{LIMIT}) jobs as long as requests make p99 1.08 times as long if they never go first: instead "
        "of 70 requests in 100 all have to wait for some slot to come free, and who waits, waits no longer than before."
    )
    for name in JUDGED:
        report.at_most(f"shared: p99 wait of requests, {name} ÷ {ALONE}", ratios[name], 1.2)
    worst = min(turn.done / guaranteed[name] for name in JUDGED for turn in turns[name])
    report.at_least("shared: jobs done ÷ their guaranteed share, at worst", worst, 1.0)
    longest = max(turn.takeover for name in JUDGED for turn in turns[name])
    report.at_most("shared: until jobs have all slots after the last request", longest, 1.0, "s")


def pooled(rounds: Sequence[Sequence[float]]) -> list[float]:
    """All rounds as one."""
    return [wait for waits in rounds for wait in waits]


def p99(waits: Sequence[float]) -> float:
    """What one in a hundred exceeds."""
    return statistics.quantiles(waits, n=100, method="inclusive")[98]


def interval(waits: Sequence[Sequence[float]], base: Sequence[Sequence[float]]) -> str:
    """Where the ratio of both p99 lies for 90 % of all choices of as many rounds among these, with repetition."""
    chance = random.Random(0)
    ratios = []
    for _ in range(RESAMPLES):
        chosen = chance.choices(range(len(waits)), k=len(waits))
        ratios.append(p99(pooled([waits[n] for n in chosen])) / p99(pooled([base[n] for n in chosen])))
    cuts = statistics.quantiles(ratios, n=20)
    return f"{cuts[0]:.2f} … {cuts[-1]:.2f}"
