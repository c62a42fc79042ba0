"""Worker processes of the chaos run, all forked from one that has its imports behind it: so a new one works at once.

`python -m tests.chaos.jobs_worker JOURNAL URL NAMESPACE LEASE BROKEN` obeys one line of its standard input after the
other (`start N`, `kill N`, `stop N`, `cont N`) and answers each; when that is closed, its workers are told to end, and
so does it. A worker whose parent has died ends too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

from admission import Retry
from admission.backends.redis import RedisPool
from admission.jobs import JobQueue
from admission.jobs.run import current_job
from admission.jobs.worker import Worker
from tests.chaos.jobs_broken import BROKEN
from tests.chaos.journal import Journal, Kind

POOL = "jobs"

PLACES = 16
"""Jobs a worker may have at once."""

SLOTS = 80
"""Of the pool: those of dead processes are taken until their leases have run out."""

GRACE = 5.0
"""Seconds jobs have to end when a worker stops."""


class Boom(Exception):
    """What the first attempt of some jobs raises."""


def queue(url: str, namespace: str, lease: float) -> JobQueue:
    """The queue, as all who share it make it. A job may lose its process as often as it likes."""
    site = RedisPool(url, namespace=namespace, lease=lease, timeout=lease / 5)
    return JobQueue(site, pool=POOL, max_deliveries=1000, max_queue_size=0)


def register(jobs: JobQueue, journal: Journal | None = None, number: int = 0) -> None:
    """The tasks. Each returns by which delivery it was done, and says in the journal what really happened."""

    def begin(fails: bool) -> str:
        job = current_job()
        assert job is not None
        assert journal is not None
        name = f"{job.id}:{job.delivery}"
        journal.write(number, Kind.BEGIN, name)
        if fails and job.attempt == 1:
            raise Boom(f"attempt {job.attempt} of job {job.id}")
        return name

    def end(name: str) -> int:
        assert journal is not None
        journal.write(number, Kind.END, name)
        return int(name.partition(":")[2])

    retry = Retry.fixed(0.05, max_attempts=1000)

    @jobs.task(retry=retry)
    async def work(milliseconds: int, fails: bool = False) -> int:
        name = begin(fails)
        await asyncio.sleep(milliseconds / 1000)
        return end(name)

    @jobs.task(retry=retry)
    def work_in_thread(milliseconds: int, fails: bool = False) -> int:
        name = begin(fails)
        time.sleep(milliseconds / 1000)
        return end(name)


class Nursery:
    """Forks workers, and ends them."""

    def __init__(self, journal: Path, url: str, namespace: str, lease: float) -> None:
        self._journal = journal
        self._url = url
        self._namespace = namespace
        self._lease = lease
        self._pids: dict[int, int] = {}
        self._alive, self._keeps_alive = os.pipe()
        """The workers read from the one, and hear of this process's end: nobody else has the other."""

    def obey(self, line: str) -> str:
        """Do what it says; the answer."""
        verb, _, name = line.partition(" ")
        number = int(name)
        if verb == "start":
            self._start(number)
        elif verb == "kill":
            pid = self._pids.pop(number)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        else:
            os.kill(self._pids[number], {"stop": signal.SIGSTOP, "cont": signal.SIGCONT}[verb])
        return "done"

    def end(self) -> list[str]:
        """Tell all to end, and wait until they have. What was wrong with that."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGTERM)
        codes = {number: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for number, pid in self._pids.items()}
        return [f"worker {number} ended with {code}" for number, code in codes.items() if code]

    def _start(self, number: int) -> None:
        pid = os.fork()
        if pid:
            self._pids[number] = pid
            return
        code = 1
        try:
            os.close(self._keeps_alive)
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            asyncio.run(self._live(number))
            code = 0
        except BaseException:
            logging.exception("worker %d has failed", number)
        finally:
            os._exit(code)

    async def _live(self, number: int) -> None:
        jobs = queue(self._url, self._namespace, self._lease)
        register(jobs, Journal(self._journal), number)
        worker = Worker(jobs, workers=PLACES, threads=4, grace=GRACE, max_concurrency=SLOTS, name=f"worker{number}")
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_reader(self._alive, os._exit, 1)
        await worker.run(stop)
        await jobs.aclose()


def main() -> None:
    """Obey until standard input is closed."""
    journal, url, namespace, lease, broken = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    if broken:
        BROKEN[broken]()
    nursery = Nursery(Path(journal), url, namespace, float(lease))
    for line in sys.stdin:
        print(nursery.obey(line.strip()), flush=True)
    wrong = nursery.end()
    for sentence in wrong:
        print(sentence, flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
