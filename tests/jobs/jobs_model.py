"""Durable jobs in plain Python, slow and obvious, and a machine that holds the script to the same answers.

The model keeps one dict of jobs and finds everything else by looking through it. The machine lets processes put, take,
report, ask, die and come back, in calls of one or more operations; after each it compares answers, messages and keys.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from admission.jobs import script
from admission.jobs.script import (
    Answer,
    Bounds,
    ClassCount,
    Count,
    Duplicate,
    Message,
    Op,
    Page,
    Record,
    Reply,
    Said,
    Script,
    Stats,
    Taken,
    TenantCount,
    Tenants,
    Took,
)
from admission.jobs.types import BuryKind, JobState

ANN, BOB, CY = "a" * 16, "b" * 16, "c" * 16
"""Processes. Cy is a client: it never has a lease."""

START = 1_700_000_000_000_000
LEASE = 20_000
"""Microseconds, as all times here."""


def us(time: int | None) -> float | None:
    """Seconds."""
    return None if time is None else time / 1e6


@dataclass
class Job:
    """One job."""

    id: str
    rank: int
    tenant: str
    charge: int
    number: int
    enqueued: int
    key: str
    watchers: list[str]
    body: str
    state: JobState = JobState.QUEUED
    failures: int = 0
    lost: int = 0
    delivery: int = 0
    backs: int = 0
    first: int | None = None
    started: int | None = None
    due: int | None = None
    ended: int | None = None
    expires: int = 0
    by: str = ""
    kind: BuryKind | None = None
    text: str = ""

    @property
    def live(self) -> bool:
        """Queued, delayed or running."""
        return self.state in (JobState.QUEUED, JobState.DELAYED, JobState.RUNNING)


@dataclass
class Model:
    """All jobs of a pool. Times are microseconds."""

    bounds: Bounds
    now: int = START
    jobs: dict[str, Job] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    passes: Counter[tuple[int, str]] = field(default_factory=Counter)
    virtual: Counter[int] = field(default_factory=Counter)
    paused: set[int | None] = field(default_factory=set)
    wants: dict[str, tuple[int, str, Tenants | None, Tenants | None]] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)
    number: int = 0
    fresh: Counter[int] = field(default_factory=Counter)
    told: dict[str, list[Message]] = field(default_factory=dict)

    def call(self, me: str, ops: Sequence[Op]) -> list[Answer]:
        """One call; what is told to whom stands in `told` afterwards."""
        self.fresh, self.told, self.me = Counter(), {}, me
        for job in list(self.jobs.values()):
            if not job.live and job.expires <= self.now:
                del self.jobs[job.id]
        for process in {job.by for job in self.of(JobState.RUNNING)} | set(self.wants):
            if not self.alive(process):
                self.wants.pop(process, None)
                self.strip(process, died=True)
        for job in self.of(JobState.DELAYED):
            if job.due is not None and job.due <= self.now:
                self.line_up(job)
        answers = [getattr(self, f"do_{op[0]}")(*op[1:]) for op in ops]
        self.wake()
        return [self.do_count() if answer is None else answer for answer in answers]

    # ------------------------------------------------------------------ what is there

    def of(self, state: JobState, rank: int | None = None, tenant: str | None = None) -> list[Job]:
        """In order of arrival."""
        found = [
            job
            for job in self.jobs.values()
            if job.state is state and rank in (None, job.rank) and tenant in (None, job.tenant)
        ]
        return sorted(found, key=lambda job: job.number)

    def alive(self, process: str) -> bool:
        return self.leases.get(process, 0) > self.now

    def tell(self, process: str, verb: str, about: str) -> None:
        self.told.setdefault(process, []).append(Message(verb, about))

    def is_paused(self, rank: int) -> bool:
        return None in self.paused or rank in self.paused

    def serves(self, rank: int, tenants: Tenants | None, steal: Tenants | None) -> bool:
        queued = self.of(JobState.QUEUED, rank)
        wanted = None if tenants is None or steal is None else {*tenants, *steal}
        return not self.is_paused(rank) and any(wanted is None or job.tenant in wanted for job in queued)

    # ------------------------------------------------------------------ what happens to a job

    def line_up(self, job: Job) -> None:
        account = job.rank, job.tenant
        if not self.of(JobState.QUEUED, *account):
            self.passes[account] = max(self.passes[account], self.virtual[job.rank])
        job.state, job.due, job.by = JobState.QUEUED, None, ""
        self.fresh[job.rank] += 1

    def line_up_later(self, job: Job, delay: int) -> None:
        if delay:
            job.state, job.due, job.by = JobState.DELAYED, self.now + delay, ""
        else:
            self.line_up(job)

    def rest(self, rank: int) -> None:
        if not self.of(JobState.QUEUED, rank) and not self.of(JobState.RUNNING, rank):
            self.virtual[rank] = 0
            for account in [account for account in self.passes if account[0] == rank]:
                del self.passes[account]

    def end(self, job: Job, state: JobState | None, text: str = "", ttl: int = 0) -> None:
        for watcher in job.watchers:
            self.tell(watcher, "end", job.id)
        job.watchers = []
        if state is None:
            del self.jobs[job.id]
        else:
            job.failures += 1
            job.state, job.text, job.ended, job.expires, job.by = state, text, self.now, self.now + ttl, ""
        self.rest(job.rank)

    def die(self, job: Job, kind: BuryKind, text: str) -> None:
        job.kind = kind
        self.numbers["dead"] += 1
        self.end(job, JobState.DEAD, text, round(self.bounds.dead_ttl * 1e6))

    def strip(self, process: str, *, died: bool) -> None:
        for job in sorted(self.of(JobState.RUNNING), key=lambda job: job.id):
            if job.by != process:
                continue
            if not died:
                self.refund(job)
                self.line_up(job)
                self.numbers["handed_back"] += 1
                continue
            job.lost += 1
            if job.lost > self.bounds.most_deliveries:
                text = f'{{"error": "Killed: the process that ran it died, {job.lost} times", "traceback": ""}}'
                self.die(job, BuryKind.KILLED, text)
            else:
                self.line_up(job)
                self.numbers["redelivered"] += 1

    def refund(self, job: Job) -> None:
        account = job.rank, job.tenant
        self.passes[account] = max(0, self.passes[account] - job.charge)
        if job.failures + job.lost == 0:
            job.first = None

    def wake(self) -> None:
        for process, (_, ranks, tenants, steal) in sorted(self.wants.items(), key=lambda item: item[1][0]):
            for rank in map(int, ranks):
                left = min(self.fresh[rank], len(self.of(JobState.QUEUED, rank)))
                if left and self.serves(rank, tenants, steal):
                    self.fresh[rank] = left - 1
                    del self.wants[process]
                    self.tell(process, "wake", str(rank))
                    break

    # ------------------------------------------------------------------ operations

    def holder_of(self, key: str) -> Job | None:
        return next((job for job in self.jobs.values() if key and job.key == key and job.live), None)

    def full(self) -> bool:
        waiting = len(self.of(JobState.QUEUED)) + len(self.of(JobState.DELAYED))
        return 0 < self.bounds.max_queue_size <= waiting

    def do_follow(self, id: str, how: str, body: str) -> Answer:
        return self.do_put(id, how, body, follows=True)

    def do_put(self, id: str, how: str, body: str, *, follows: bool = False) -> Answer:
        delay, watcher, rank, charge, length, text = how.split(" ", 5)
        key, tenant = text[: int(length)], text[int(length) :]
        other = self.holder_of(key)
        if id in self.jobs:
            return Said.DONE
        if other:
            return Duplicate(other.id)
        if self.full() and not follows:
            return Said.FULL
        self.number += 1
        self.numbers["enqueued"] += 1
        watchers = [] if watcher == "-" else [watcher]
        job = Job(
            id, int(rank), tenant, int(charge), self.number, self.now, key, watchers, body, state=JobState.CANCELLED
        )
        self.jobs[id] = job
        self.line_up_later(job, int(delay))
        return Said.DONE

    def do_take(self, rank: int, count: int, tenants: str, steal: str) -> Answer:
        if not self.alive(self.me):
            return Said.STALE
        jobs: list[Taken] = []
        for words in (tenants, steal):
            names = _names(words)
            while len(jobs) < count and not self.is_paused(rank):
                heads = {job.tenant: job for job in reversed(self.of(JobState.QUEUED, rank))}
                ring = [(self.passes[rank, tenant], tenant) for tenant in heads if names is None or tenant in names]
                if not ring:
                    break
                first, tenant = min(ring)
                self.virtual[rank] = max(self.virtual[rank], first)
                self.passes[rank, tenant] += heads[tenant].charge
                jobs.append(self.deliver(heads[tenant]))
        return Took(jobs)

    def deliver(self, job: Job) -> Taken:
        job.state, job.by, job.started, job.delivery = JobState.RUNNING, self.me, self.now, job.delivery + 1
        job.first = job.first or self.now
        attempt, times = job.failures + 1, (job.enqueued / 1e6, job.first / 1e6)
        return Taken(job.id, job.delivery, attempt, job.backs, job.lost, job.rank, job.tenant, *times, job.body)

    def report(self, id: str, delivery: int, what: Callable[[Job], None]) -> Said:
        job = self.jobs.get(id)
        if job and job.state is JobState.RUNNING and (job.by, job.delivery) == (self.me, delivery):
            what(job)
            return Said.DONE
        self.numbers["stale"] += 1
        return Said.STALE

    def do_done(self, id: str, delivery: int, result: str, ttl: int) -> Answer:
        def succeed(job: Job) -> None:
            self.numbers["succeeded"] += 1
            self.end(job, JobState.DONE if ttl else None, result, ttl)

        return self.report(id, delivery, succeed)

    def do_retry(self, id: str, delivery: int, delay: int, error: str) -> Answer:
        def fail(job: Job) -> None:
            self.numbers.update(("failed", "retried"))
            job.failures, job.text = job.failures + 1, error
            self.line_up_later(job, delay)
            self.rest(job.rank)

        return self.report(id, delivery, fail)

    def do_back(self, id: str, delivery: int, delay: int, counted: int) -> Answer:
        def hand(job: Job) -> None:
            self.numbers["handed_back"] += 1
            job.backs += counted
            self.refund(job)
            self.line_up_later(job, delay)
            self.rest(job.rank)

        return self.report(id, delivery, hand)

    def do_bury(self, id: str, delivery: int, kind: str, error: str) -> Answer:
        def fail(job: Job) -> None:
            self.numbers["failed"] += kind in ("failed", "timeout", "permanent", "bad-result")
            self.die(job, BuryKind(kind), error)

        return self.report(id, delivery, fail)

    def do_want(self, ranks: str, tenants: str, steal: str) -> Answer:
        if not self.alive(self.me):
            return Said.STALE
        for rank in map(int, ranks):
            if self.serves(rank, _names(tenants), _names(steal)):
                self.wants.pop(self.me, None)
                self.tell(self.me, "wake", str(rank))
                return Said.DONE
        self.number += 1
        self.wants[self.me] = self.number, ranks, _names(tenants), _names(steal)
        return Said.DONE

    def do_cancel(self, id: str) -> Answer:
        job = self.jobs.get(id)
        if job is None or not job.live:
            return Said.UNKNOWN
        if job.state is JobState.RUNNING:
            self.tell(job.by, "cancel", id)
            return Said.RUNNING
        self.end(job, None)
        return Said.DONE

    def do_look(self, id: str, watcher: str) -> Answer:
        job = self.jobs.get(id)
        if job is None:
            return Said.UNKNOWN
        if job.live and watcher and watcher not in job.watchers:
            job.watchers.append(watcher)
        return self.record(job)

    def do_requeue(self, id: str) -> Answer:
        job = self.jobs.get(id)
        if job is None or job.state is not JobState.DEAD:
            return Said.UNKNOWN
        if self.full():
            return Said.FULL
        self.number += 1
        key = "" if self.holder_of(job.key) else job.key
        fresh = Job(job.id, job.rank, job.tenant, job.charge, self.number, self.now, key, [], job.body)
        self.jobs[id] = replace(fresh, state=JobState.CANCELLED)
        self.line_up(self.jobs[id])
        return Said.DONE

    def do_drop(self, id: str) -> Answer:
        job = self.jobs.get(id)
        if job is None or job.live:
            return Said.UNKNOWN
        self.end(job, None)
        return Said.DONE

    def do_purge(self, state: str, rank: int | str, tenant: str) -> Answer:
        jobs = self.matching(state, rank, tenant)
        for job in jobs:
            self.end(job, None)
        return Count(len(jobs), False)

    def do_pause(self, rank: int | str) -> Answer:
        self.paused.add(None if rank == "-" else int(rank))
        return Said.DONE

    def do_resume(self, rank: int | str) -> Answer:
        self.paused.discard(None if rank == "-" else int(rank))
        for one in range(8) if rank == "-" else [int(rank)]:
            self.fresh[one] = len(self.of(JobState.QUEUED, one))
        return Said.DONE

    def do_leave(self) -> Answer:
        self.wants.pop(self.me, None)
        self.strip(self.me, died=False)
        return Said.DONE

    def do_tick(self) -> Answer:
        return Said.DONE

    def do_stats(self) -> None:
        return None

    # ------------------------------------------------------------------ questions

    def matching(self, state: str, rank: int | str, tenant: str) -> list[Job]:
        return self.of(JobState(state), None if rank == "-" else int(rank), None if tenant == "*" else tenant[1:])

    def record(self, job: Job) -> Record:
        done, queued = job.state is JobState.DONE, job.state is JobState.QUEUED
        return Record(
            id=job.id,
            state=job.state,
            rank=job.rank,
            tenant=job.tenant,
            attempt=job.failures + (job.state is JobState.RUNNING),
            delivery=job.delivery,
            enqueued=job.enqueued / 1e6,
            due=us(job.due),
            started=us(job.started),
            ended=us(job.ended),
            position=1 + self.of(job.state, job.rank, job.tenant).index(job) if queued else 0,
            kind=job.kind if job.state is JobState.DEAD else None,
            error="" if done else job.text,
            result=job.text if done else "",
            body=job.body,
        )

    def do_count(self) -> Stats:
        """At the end of the call."""
        counters = ("enqueued", "succeeded", "failed", "retried", "handed_back", "redelivered", "dead", "stale")
        tenants = []
        for rank, tenant in {(job.rank, job.tenant) for job in self.jobs.values()}:
            queued, running = (len(self.of(s, rank, tenant)) for s in (JobState.QUEUED, JobState.RUNNING))
            if queued + running:
                tenants.append(TenantCount(rank, tenant, queued, running))
        return Stats(
            paused=None in self.paused,
            dead=len(self.of(JobState.DEAD)),
            kept=len(self.of(JobState.DONE)),
            workers=len({job.by for job in self.of(JobState.RUNNING)} | set(self.wants)),
            counters={name: self.numbers[name] for name in counters},
            classes=tuple(map(self.class_count, range(8))),
            tenants=tuple(sorted(tenants, key=lambda t: (-t.queued - t.running, t.rank, t.tenant.encode()))),
        )

    def class_count(self, rank: int) -> ClassCount:
        queued, delayed, running = (
            self.of(state, rank) for state in (JobState.QUEUED, JobState.DELAYED, JobState.RUNNING)
        )
        oldest = min((job.enqueued for job in queued), default=0) / 1e6
        return ClassCount(len(queued), len(delayed), len(running), rank in self.paused, oldest)


def _names(words: str) -> Tenants | None:
    return None if words == "*" else tuple(words.split("\n")[1:])


# ---------------------------------------------------------------------- the script


class Shop:
    """The jobs of one pool on a server, call by call at a time the test sets. Messages wait in lists to be read."""

    def __init__(
        self, client: redis.Redis, namespace: str, *, bounds: Bounds | None = None, source: str = Script.source
    ) -> None:
        self.client = client
        self.script = Script(namespace, "p")
        self.bounds = bounds or Bounds()
        self.run = client.register_script(source)
        self.now = START
        self.made = 0

    def call(self, process: str, *ops: Op) -> Reply:
        """One call."""
        keys, argv = self.script.call(self.bounds, process, ops, now_us=self.now)
        # A list instead of a channel: nothing is lost, and it can be read at any time.
        return self.script.parse(self.run(keys, ["RPUSH" if word == "PUBLISH" else word for word in argv]))

    def put(self, rank: int = 3, tenant: str = "t", *, charge: int = 1000, **more: Any) -> str:
        """Queue a job; returns its id."""
        self.made += 1
        id = f"{self.made:024x}"
        words: dict[str, Any] = {"delay_us": 0, "dedup_key": "", "watcher": "", "body": f'{{"n": {self.made}}}'} | more
        assert self.call(CY, script.put(id, rank, tenant, charge, **words)).answers == [Said.DONE]
        return id

    def take(self, process: str, count: int = 1, rank: int = 3, **whose: Any) -> Sequence[Taken]:
        """Deliver some jobs."""
        answer = self.call(process, script.take(rank, count, **whose)).answers[0]
        assert isinstance(answer, Took), answer
        return answer.jobs

    def say(self, process: str, op: Op) -> Answer:
        """One operation."""
        return self.call(process, op).answers[0]

    def look(self, id: str) -> Record:
        """The job. It must be there."""
        answer = self.say(CY, script.look(id))
        assert isinstance(answer, Record), answer
        return answer

    def lives(self, *processes: str, until: int | None = None) -> None:
        """They have a lease."""
        ends = self.now + 10**12 if until is None else until
        self.client.zadd(self.script.keys[1], dict.fromkeys(processes, ends))

    def dies(self, *processes: str) -> None:
        """Their leases are gone."""
        self.client.zrem(self.script.keys[1], *processes)

    def mail(self, process: str) -> list[Message]:
        """What it was told since, by other processes' calls."""
        pipe = self.client.pipeline()
        pipe.lrange(self.script.channel(process), 0, -1)
        pipe.delete(self.script.channel(process))
        return [message for text in pipe.execute()[0] for message in self.script.parse_message(text)]

    def key(self, name: str) -> str:
        """`job` for `{…}j:job`."""
        return next(key for key in self.script.keys if key.endswith(f"}}j:{name}"))

    def left(self) -> set[str]:
        """Last parts of the keys there are."""
        return {key.rpartition("}")[2] for key in self.script.keys[2:] if self.client.exists(key)}

    def clear(self) -> None:
        """Nothing is left."""
        self.client.delete(*self.script.keys, *map(self.script.channel, (ANN, BOB, CY)))


WHO = st.sampled_from([ANN, ANN, BOB, CY])
RANKS = st.sampled_from([0, 3])
TENANTS = st.sampled_from(["x", "y", "x:1", ""])
WHOSE = st.sampled_from([None, None, (), ("x",), ("y", "x:1", "y"), ("",)])
STATES = st.sampled_from([JobState.QUEUED, JobState.DELAYED, JobState.RUNNING, JobState.DEAD, JobState.DONE])
DELAYS = st.sampled_from([0, 0, 0, 50, 3000])
SOME = st.integers(0, 99)


class Jobs(RuleBasedStateMachine):
    """Every rule adds an operation to a call, or something happens to a process."""

    client: redis.Redis
    namespace: str
    source = Script.source

    @initialize(size=st.sampled_from([0, 4, 100]), most=st.integers(1, 3))
    def a_queue(self, size: int, most: int) -> None:
        bounds = Bounds(max_queue_size=size, most_deliveries=most, dead_ttl=0.005)
        self.shop = Shop(self.client, self.namespace, bounds=bounds, source=self.source)
        self.shop.clear()
        self.model = Model(bounds)
        self.waiting: list[Op] = []
        self.caller = ANN
        self.lives(ANN)
        self.lives(BOB)

    def add(self, who: str, *ops: Op, more: bool = False) -> None:
        """To the call of that process; sent unless more is to come."""
        if who != self.caller:
            self.send()
        self.caller = who
        self.waiting.extend(ops)
        if not more:
            self.send()

    def send(self) -> None:
        """Compare the script's answers with the model's."""
        ops, self.waiting = self.waiting, []
        if not ops:
            return
        reply = self.shop.call(self.caller, *ops)
        assert list(reply.answers) == self.model.call(self.caller, ops)
        assert sorted(reply.told) == sorted(self.model.told.pop(self.caller, []))
        for process, messages in self.model.told.items():
            assert sorted(self.shop.mail(process)) == sorted(messages)
        for rank, ready in enumerate(reply.ready):
            assert ready == (0 if self.model.is_paused(rank) else len(self.model.of(JobState.QUEUED, rank)))
        dues = [job.due for job in self.model.of(JobState.DELAYED) if job.due]
        assert reply.next_due == ((min(dues) - self.model.now) / 1e6 if dues else None)

    def some(self, jobs: Sequence[Job], which: int) -> Job | None:
        return jobs[which % len(jobs)] if jobs else None

    # ------------------------------------------------------------------ what happens

    @rule(
        who=WHO,
        rank=RANKS,
        tenants=st.lists(TENANTS, min_size=1, max_size=4),
        charge=st.sampled_from([500, 1000, 3000]),
        delay=DELAYS,
        key=st.sampled_from(["", "", "k", "a key"]),
        watcher=st.sampled_from(["", "", CY]),
        more=st.booleans(),
    )
    def jobs_come(
        self, who: str, rank: int, tenants: list[str], charge: int, delay: int, key: str, watcher: str, more: bool
    ) -> None:
        for tenant in tenants:
            self.shop.made += 1
            id = f"{self.shop.made:024x}"
            self.add(who, script.put(id, rank, tenant, charge, delay, key, watcher, f"[{id}]"), more=True)
        self.add(who, more=more)

    @rule(who=WHO, rank=RANKS, tenant=TENANTS, delay=DELAYS, more=st.booleans())
    def a_job_follows(self, who: str, rank: int, tenant: str, delay: int, more: bool) -> None:
        self.shop.made += 1
        id = f"{self.shop.made:024x}"
        self.add(who, script.follow(script.how(rank, tenant, 1000, delay), id, f"[{id}]"), more=more)

    @rule(which=SOME)
    def a_put_comes_again(self, which: int) -> None:
        if job := self.some(list(self.model.jobs.values()), which):
            self.add(CY, script.put(job.id, job.rank, job.tenant, job.charge, 0, job.key, "", job.body))

    @rule(
        who=WHO,
        rank=RANKS,
        count=st.sampled_from([1, 2, 3, 256]),
        whose=WHOSE,
        steal=WHOSE,
        renewed=st.sampled_from([True, True, False]),
        more=st.booleans(),
    )
    def jobs_are_taken(
        self, who: str, rank: int, count: int, whose: Tenants | None, steal: Tenants | None, renewed: bool, more: bool
    ) -> None:
        if renewed and who != CY:
            self.lives(who)
        self.add(who, script.take(rank, count, whose, steal), more=more)

    @rule(
        which=SOME,
        how=st.sampled_from(["done", "keep", "retry", "back", "counted", "bury", "stale", "thief"]),
        delay=DELAYS,
        twice=st.booleans(),
        more=st.booleans(),
    )
    def a_job_is_reported(self, which: int, how: str, delay: int, twice: bool, more: bool) -> None:
        job = self.some(self.model.of(JobState.RUNNING), which)
        if job is None:
            return
        reports = {
            "done": script.done(job.id, job.delivery, "1", 0),
            "keep": script.done(job.id, job.delivery, '"r"', 4000),
            "retry": script.retry(job.id, job.delivery, delay, '{"error": "e"}'),
            "back": script.back(job.id, job.delivery, delay, counted=False),
            "counted": script.back(job.id, job.delivery, delay, counted=True),
            "bury": script.bury(job.id, job.delivery, BuryKind.FAILED, '{"error": "b"}'),
            "stale": script.done(job.id, job.delivery - 1, "1", 0),
            "thief": script.done(job.id, job.delivery, "1", 0),
        }
        by = next(p for p in (ANN, BOB) if p != job.by) if how == "thief" else job.by
        self.add(by, *[reports[how]] * (1 + twice), more=more)

    @rule(
        who=WHO,
        which=SOME,
        what=st.sampled_from([script.cancel, script.requeue, script.drop, script.look]),
        more=st.booleans(),
    )
    def a_job_is_named(self, who: str, which: int, what: Callable[[str], Op], more: bool) -> None:
        job = self.some(list(self.model.jobs.values()), which)
        self.add(who, what(job.id if job else "f" * 24), more=more)

    @rule(which=SOME, watcher=st.sampled_from([ANN, CY]))
    def a_job_is_watched(self, which: int, watcher: str) -> None:
        if job := self.some([job for job in self.model.jobs.values() if job.live], which):
            self.add(CY, script.look(job.id, watcher))

    @rule(who=WHO, ranks=st.sampled_from([(0,), (3,), (0, 3), (3, 0)]), whose=WHOSE, steal=WHOSE, more=st.booleans())
    def more_is_wanted(
        self, who: str, ranks: tuple[int, ...], whose: Tenants | None, steal: Tenants | None, more: bool
    ) -> None:
        self.add(who, script.want(ranks, whose, steal), more=more)

    @rule(
        state=st.sampled_from([JobState.QUEUED, JobState.DELAYED, JobState.DEAD, JobState.DONE]),
        rank=st.none() | RANKS,
        tenant=st.none() | TENANTS,
    )
    def jobs_are_purged(self, state: JobState, rank: int | None, tenant: str | None) -> None:
        self.add(CY, script.purge(state, rank, tenant))

    @rule(rank=st.none() | RANKS, stop=st.booleans(), more=st.booleans())
    def somebody_pauses(self, rank: int | None, stop: bool, more: bool) -> None:
        self.add(CY, script.pause(rank) if stop else script.resume(rank), more=more)

    @rule(who=st.sampled_from([ANN, BOB]))
    def a_process_leaves(self, who: str) -> None:
        self.add(who, script.leave())

    @rule(time=st.sampled_from([1, 50, 3000, LEASE]))
    def time_passes(self, time: int) -> None:
        self.send()
        self.model.now += time
        self.shop.now += time

    @rule(who=st.sampled_from([ANN, BOB]))
    def lives(self, who: str) -> None:
        self.send()
        self.model.leases[who] = self.model.now + LEASE
        self.shop.lives(who, until=self.model.now + LEASE)

    @rule(who=st.sampled_from([ANN, BOB]))
    def dies(self, who: str) -> None:
        self.send()
        self.model.leases.pop(who, None)
        self.shop.dies(who)

    @rule(state=STATES, rank=st.none() | RANKS, tenant=st.none() | TENANTS, count=st.integers(1, 3))
    def jobs_are_listed(self, state: JobState, rank: int | None, tenant: str | None, count: int) -> None:
        self.send()
        self.model.call(CY, [])
        found: list[Record] = []
        after = ""
        for _ in range(1 + len(self.model.jobs)):
            page = self.shop.say(CY, script.ls(state, rank, tenant, after, count))
            assert isinstance(page, Page)
            found += page.records
            after = page.next
            if not after:
                break
        expected = map(self.model.record, self.model.of(state, rank, tenant))
        assert sorted(found, key=lambda record: record.id) == sorted(expected, key=lambda record: record.id)
        assert not any(map(self.shop.mail, (ANN, BOB)))

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def the_keys_agree(self) -> None:
        """Everything that is kept follows from the jobs."""
        if not hasattr(self, "model") or self.waiting:
            return
        model, pipe, key = self.model, self.client.pipeline(), self.shop.key
        for name in ("job", "body", "res", "tag", "dedup", "procs", "hungry"):
            pipe.hgetall(key(name))
        for name in ("ready", "ring", "debt", "delayed", "taken", "dead", "done"):
            pipe.zrange(key(name), 0, -1)
        jobs, bodies, results, tag, dedup, procs, hungry, *lines = pipe.execute()
        assert {id.decode(): record.split(b" ")[0].decode() for id, record in jobs.items()} == {
            id: job.state.value for id, job in model.jobs.items()
        }
        assert set(bodies) == set(jobs)
        assert {id.decode() for id in results} == {id for id, job in model.jobs.items() if job.text}
        assert {k.decode(): id.decode() for k, id in dedup.items()} == {
            job.key: job.id for job in model.jobs.values() if job.key and job.live
        }
        assert {name.decode() for name in hungry} == set(model.wants)
        runs = Counter(job.by for job in model.of(JobState.RUNNING))
        assert {name.decode(): value.decode() for name, value in procs.items()} == {
            name: f"{runs[name]} {int(name in model.wants)}" for name in {*runs, *model.wants}
        }
        states = (JobState.QUEUED, None, None, JobState.DELAYED, JobState.RUNNING, JobState.DEAD, JobState.DONE)
        for state, members in zip(states, lines, strict=True):
            assert state is None or len(members) == len(model.of(state)), state
        accounts, ring, debt = {}, set(), set()
        for (rank, tenant), tag_value in model.passes.items():
            queued, running = (len(model.of(s, rank, tenant)) for s in (JobState.QUEUED, JobState.RUNNING))
            member = f"{rank}:{tag_value:016d}:{tenant}"
            if queued:
                ring.add(member)
            elif not running and tag_value > model.virtual[rank]:
                debt.add(member)
            if queued or running or member in debt:
                accounts[f"{rank}:{tenant}"] = f"{tag_value} {queued} {running}"
        assert {k.decode(): value.decode() for k, value in tag.items()} == accounts
        assert {member.decode() for member in lines[1]} == ring
        assert {member.decode() for member in lines[2]} == debt

    def teardown(self) -> None:
        """Everybody is done; nothing is left but the numbers."""
        if not hasattr(self, "model"):
            return
        self.send()
        self.add(CY, script.stats())
        self.add(CY, script.resume(None), script.resume(0), script.resume(3))
        self.model.now += LEASE * 10
        self.shop.now = self.model.now
        self.lives(ANN)
        for _ in range(20):
            for rank in (0, 3):
                self.add(ANN, script.take(rank, 256))
            self.add(
                ANN,
                *(script.done(job.id, job.delivery, "", 0) for job in self.model.of(JobState.RUNNING)),
                script.leave(),
            )
        self.model.now += LEASE * 10
        self.shop.now = self.model.now
        self.add(ANN, script.leave())
        self.the_keys_agree()
        assert self.shop.left() == {"j:st"}, "keys are left"
        assert self.client.hlen(self.shop.key("st")) == 1, "numbers of classes are left"
        self.shop.clear()


def two_want_one_job(machine: Jobs) -> None:
    """Only one of them is told."""
    machine.more_is_wanted(ANN, (3,), None, None, more=False)
    machine.more_is_wanted(BOB, (3,), None, None, more=False)
    machine.jobs_come(CY, 3, ["x"], 1000, 0, "", "", more=False)
    machine.the_keys_agree()


def a_dead_one_has_the_key_of_another(machine: Jobs) -> None:
    """It goes, and the key stays with the other."""
    for _ in range(2):
        machine.jobs_come(CY, 0, ["x"], 1000, 0, "k", "", more=False)
        machine.jobs_are_taken(ANN, 0, 1, None, None, renewed=True, more=False)
        machine.a_job_is_reported(0, "bury", 0, twice=False, more=False)
    machine.jobs_come(CY, 0, ["x"], 1000, 0, "k", "", more=False)
    machine.jobs_are_purged(JobState.DEAD, None, None)
    machine.the_keys_agree()


def one_kills_whoever_gets_it(machine: Jobs) -> None:
    """As often as it may, and the one that should bury it, too."""
    machine.jobs_come(CY, 0, ["x"], 1000, 0, "", "", more=False)
    for _ in range(4):
        machine.jobs_are_taken(ANN, 0, 1, None, None, renewed=True, more=False)
        machine.dies(ANN)
    machine.the_keys_agree()


def walk(machine: Jobs, seed: int, *, steps: int = 150) -> None:
    """Take the machine through a random trace, with many jobs in every state: quick, and not shrunk."""
    choose = random.Random(seed)

    def some(*values: Any) -> Any:
        return choose.choice(values)

    def whose() -> Tenants | None:
        names: Tenants | None = some(None, None, None, (), ("x",), ("y", "x:1", "y"))
        return names

    def come() -> None:
        tenants = choose.choices(["x", "y", "x:1", ""], k=choose.randint(1, 5))
        machine.jobs_come(
            who(), rank(), tenants, some(500, 1000, 3000), delay(), some("", "", "", "k", "l"), some("", CY), more()
        )

    def take() -> None:
        machine.jobs_are_taken(
            some(ANN, ANN, BOB, CY), rank(), some(1, 2, 5), whose(), whose(), choose.random() < 0.8, more()
        )

    def report() -> None:
        how = some("done", "keep", "retry", "retry", "back", "counted", "bury", "stale", "thief")
        machine.a_job_is_reported(number(), how, delay(), some(False, False, True), more())

    def name() -> None:
        machine.a_job_is_named(
            who(), number(), some(script.cancel, script.requeue, script.requeue, script.drop, script.look), more()
        )

    def dies() -> None:
        machine.dies(some(ANN, BOB))

    def who() -> str:
        return str(some(ANN, BOB, CY))

    def rank() -> int:
        return int(some(0, 3, 3))

    def delay() -> int:
        return int(some(0, 0, 0, 50, 3000))

    def more() -> bool:
        return choose.random() < 0.3

    def number() -> int:
        return choose.randrange(100)

    often = [come, come, take, take, take, report, report, report, report, name]
    rarely: list[Callable[[], None]] = [
        dies,
        lambda: machine.time_passes(some(1, 50, 3000)),
        lambda: machine.time_passes(some(1, 50, 3000)),
        lambda: machine.a_put_comes_again(number()),
        lambda: machine.a_job_follows(who(), rank(), some("x", "y"), delay(), more()),
        lambda: machine.a_job_is_watched(number(), some(ANN, CY)),
        lambda: machine.more_is_wanted(some(ANN, BOB), some((0,), (3,), (0, 3)), whose(), whose(), more()),
        lambda: machine.more_is_wanted(some(ANN, BOB), some((0,), (3,), (0, 3)), whose(), whose(), more()),
        lambda: machine.somebody_pauses(some(None, 0, 3), stop=choose.random() < 0.3, more=more()),
        lambda: machine.somebody_pauses(some(None, 0, 3), stop=False, more=more()),
        lambda: machine.a_process_leaves(some(ANN, BOB)),
    ]
    ends = JobState.QUEUED, JobState.DELAYED, JobState.DEAD, JobState.DONE
    machine.a_queue(some(0, 4, 10), some(1, 2, 3))
    two_want_one_job(machine)
    a_dead_one_has_the_key_of_another(machine)
    one_kills_whoever_gets_it(machine)
    for step in range(steps):
        if step % 40 == 39:
            machine.jobs_are_purged(some(*ends), some(None, 3), some(None, "x"))
        some(*often, *often, *rarely)()
        machine.the_keys_agree()
    machine.teardown()
