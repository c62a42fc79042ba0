"""`admission worker` and `admission jobs`, on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest
import redis
from click.testing import CliRunner, Result

import admission
from admission import RedisPool
from admission.cli.commands import cli
from admission.cli.processes import LONGEST_PAUSE, pause_after
from admission.cli.queue import find_queue
from admission.cli.worker_plan import WorkerPlan, planned
from admission.config import SettingsError
from admission.jobs import JobQueue
from tests.cli.running import Server
from tests.redis.conftest import PoolKeys

T = TypeVar("T")

CODE = """\
import asyncio, os, time
from admission import RedisPool
from admission.jobs import JobQueue

jobs = JobQueue(RedisPool(os.environ["SHOP_REDIS"], namespace=os.environ["SHOP_NAMESPACE"]), max_deliveries=2)
none = JobQueue("redis://localhost")
number = 7

@jobs.task
async def greet(name: str) -> str:
    if not name:
        raise RuntimeError("nobody \\x1b[31mthere")
    return f"hello {name}"

@jobs.task(priority="low")
async def forever() -> None:
    print("begun", file=__import__("sys").stderr, flush=True)
    await asyncio.Event().wait()

@jobs.task
def stuck() -> None:
    print("begun", file=__import__("sys").stderr, flush=True)
    time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("ADMISSION_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class Shop:
    """An application with tasks, and the command line beside it."""

    def __init__(self, url: str, namespace: str, folder: Path) -> None:
        self.url = url
        self.namespace = namespace
        self.folder = folder
        self.server = ("--redis", url, "--namespace", namespace)
        self.environment = {"SHOP_REDIS": url, "SHOP_NAMESPACE": namespace}
        (folder / "shop.py").write_text(CODE)
        self.queue = self.of_code()

    def of_code(self) -> JobQueue:
        """The queue of the application, as this process has it."""
        queue = JobQueue(RedisPool(self.url, namespace=self.namespace), max_deliveries=2)

        async def nothing(name: str = "") -> None: ...

        for task, priority in (("greet", "normal"), ("forever", "low"), ("stuck", "normal")):
            queue.task(name=task, priority=priority)(nothing)
        return queue

    def asked(self, ask: Callable[[JobQueue], Awaitable[T]]) -> T:
        async def asking() -> T:
            async with self.queue:
                return await ask(self.queue)

        return asyncio.run(asking())

    def enqueue(self, task: str, *arguments: object, **options: object) -> str:
        """The id of a new job."""

        async def ask(queue: JobQueue) -> str:
            return (await queue.tasks[task].with_options(**options).enqueue(*arguments)).id

        return self.asked(ask)

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(cli, ["jobs", *self.server, *words])

    def json(self, *words: str) -> object:
        result = self.run(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    @contextmanager
    def working(self, *words: str) -> Iterator[Server]:
        """`admission worker …` as a process of its own, ended by its id."""
        process = subprocess.Popen(
            [sys.executable, "-c", "from admission.cli import main; main()", "worker", *words],
            cwd=self.folder,
            env={**os.environ, **self.environment, "PYTHONPATH": str(Path(admission.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.close()  # As in a container or a cron job: an end of input means nothing.
        server = Server(process)
        try:
            yield server
        finally:
            for _ in range(2):  # The first asks, the second insists.
                if process.poll() is None:
                    process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            server._reader.join(timeout=30)
            server.close()

    def result(self, id: str) -> object:
        """What a job returned."""
        return self.asked(lambda queue: queue.job(id).result(timeout=60))


@pytest.fixture
def shop(redis_url: str, namespace: str, pool_keys: PoolKeys, tmp_path: Path) -> Iterator[Shop]:
    pool_keys.may_stay("*")  # Jobs are there to stay; the namespace is the test's own.
    yield Shop(redis_url, namespace, tmp_path)
    with redis.Redis.from_url(redis_url) as client:
        for key in pool_keys.present():
            client.delete(key)


# ---------------------------------------------------------------------- admission jobs


def test_jobs_are_listed_in_the_order_in_which_they_are_served(shop: Shop) -> None:
    """With class, tenant and age; delayed ones are a list of their own; --limit says that there is more."""
    first = shop.enqueue("greet", "ann", tenant="acme")
    second = shop.enqueue("greet", "bob", tenant="acme")
    later = shop.enqueue("greet", "eve", delay=1000.0)
    lines = shop.run("ls").output.splitlines()
    assert lines[0].split() == ["id", "task", "class", "tenant", "attempts", "age"]
    assert [line.split()[:5] for line in lines[1:]] == [
        [first, "greet", "normal", "acme", "0"],
        [second, "greet", "normal", "acme", "0"],
    ]
    assert [job["id"] for job in shop.json("ls", "--state", "delayed")] == [later]
    assert "The first 1. There may be more: --limit shows them." in shop.run("ls", "--limit", "1").output
    assert shop.run("ls", "--tenant", "globex").output == "No queued jobs.\n"
    assert shop.run("ls", "--priority", "low").output == "No queued jobs.\n"


def test_one_job_is_shown_with_all_that_is_known(shop: Shop) -> None:
    """Times as people read them; numbers in JSON."""
    id = shop.enqueue("greet", "ann", metadata={"order": 7})
    told = shop.run("show", id).output
    assert f"id           {id}\n" in told
    assert "state        queued\n" in told
    assert 'metadata     {"order": 7}\n' in told
    assert " UTC\n" in told
    assert shop.json("show", id)["position"] == 1


def test_a_queued_job_is_cancelled_once(shop: Shop) -> None:
    """The second time there is no such job, and the exit code says so."""
    id = shop.enqueue("greet", "ann")
    assert shop.run("cancel", id).output == f"Job {id} is cancelled.\n"
    again = shop.run("cancel", id)
    assert again.exit_code == 1
    assert f"Error: there is no job {id}" in again.output


def test_jobs_are_thrown_away_only_with_yes(shop: Shop) -> None:
    """Without it nothing happens; with it the tenant's jobs are gone and no others."""
    for tenant in ("acme", "acme", "globex"):
        shop.enqueue("greet", "ann", tenant=tenant)
    asked = shop.run("purge", "--state", "queued", "--tenant", "acme")
    assert asked.exit_code == 2
    assert "throws away all queued jobs of tenant acme, for ever: say --yes" in asked.output
    assert shop.run("purge", "--state", "queued", "--tenant", "acme", "--yes").output == "2 jobs purged.\n"
    assert [job["tenant"] for job in shop.json("ls")] == ["globex"]


def test_a_paused_class_is_shown_and_resumed(shop: Shop) -> None:
    """Also a pause of everything, which is told in a sentence."""
    assert shop.run("pause", "--priority", "low").output == "No jobs of class low start until resume.\n"
    numbers = shop.json("stats")
    assert [found["name"] for found in numbers["classes"] if found["paused"]] == ["low"]
    assert shop.run("resume", "--priority", "low").output == "Jobs of class low start again.\n"
    assert shop.json("pause") == {"priority": None, "paused": True}
    assert "Everything is paused: no job starts until resume." in shop.run("stats").output
    shop.run("resume")
    assert "aused" not in shop.run("stats").output


def test_the_numbers_fit_a_terminal(shop: Shop) -> None:
    """Sentences, a row for each class and each tenant, at most 80 columns; the password is not printed."""
    for number in range(3):
        shop.enqueue("greet", "ann", tenant="a tenant with a long name " * 4 if number else "acme")
    told = shop.run("stats").output
    assert max(map(len, told.splitlines())) <= 80
    assert "Now: 3 queued, 0 delayed, 0 running, 0 dead letters, 0 results kept.\n" in told
    assert "acme" in told
    assert f"namespace {shop.namespace!r}: 0 worker processes." in " ".join(told.split())


def test_what_is_asked_for_wrongly_is_said_in_a_sentence(shop: Shop) -> None:
    """Exit code 2: the class, the id, the options that go together."""
    for words, sentence in (
        (["ls", "--priority", "urgent"], "the classes of pool 'default' are critical, high, normal, low"),
        (["show", "7"], "id is '7': it must be 24 lower hex digits"),
        (["dead", "requeue"], "name dead letters by their ids, or say --all"),
        (["dead", "requeue", "0" * 24, "--tenant", "acme"], "--priority and --tenant go with --all"),
    ):
        result = shop.run(*words)
        assert result.exit_code == 2, words
        assert sentence in " ".join(result.output.split())


def test_a_queue_is_named_by_its_application_or_by_its_server() -> None:
    """Neither is an error, and so are both."""
    for words, sentence in (
        (["stats"], "name their queue with --app MODULE:JOBS, or the server that keeps them with --redis URL"),
        (["--app", "shop:jobs", "--pool", "chat", "stats"], "leave out --redis, --pool, --namespace and --config"),
        (["--redis", "redis://:hush@cache:0", "stats"], "--redis is 'redis://:***@cache:0': it has the port '0'"),
        (["--redis", "redis://cache", "--namespace", "a b", "stats"], "--namespace is 'a b': it must be 1 to 64"),
    ):
        result = CliRunner().invoke(cli, ["jobs", *words])
        assert result.exit_code == 2, words
        assert sentence in " ".join(result.output.split())


def test_a_server_that_does_not_answer_is_said_without_a_traceback() -> None:
    """Exit code 1."""
    result = CliRunner().invoke(cli, ["jobs", "--redis", "redis://127.0.0.1:1", "stats"])
    assert result.exit_code == 1
    assert "Error: " in result.output
    assert "redis://127.0.0.1:1" in result.output


def test_the_queue_of_an_application_is_imported_from_the_current_directory(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own classes and its server; another name is suggested, another thing refused."""
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)
    shop.enqueue("greet", "ann")
    monkeypatch.syspath_prepend(str(shop.folder))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    result = CliRunner().invoke(cli, ["jobs", "--app", "shop:jobs", "ls", "--json"])
    assert [job["task"] for job in json.loads(result.output)] == ["greet"]
    assert set(find_queue("shop:jobs").tasks) == {"greet", "forever", "stuck"}
    for name, sentence in (
        ("shop:tasks", "module 'shop' has no 'tasks'; it has jobs, none"),
        ("shop:number", "'shop:number' is int: it must be a JobQueue"),
        ("shop", "'shop' names no queue: write it as module:jobs, such as main:jobs"),
        ("shops:jobs", "there is no module 'shops'"),
    ):
        result = CliRunner().invoke(cli, ["jobs", "--app", name, "ls"])
        assert result.exit_code == 2
        assert sentence in " ".join(result.output.split())
    monkeypatch.delitem(sys.modules, "shop")


# ---------------------------------------------------------------------- admission worker


def test_a_worker_runs_jobs_until_it_is_told_to_stop(shop: Shop) -> None:
    """It says what it does and from where; SIGTERM ends it in order, with exit code 0."""
    id = shop.enqueue("greet", "ann")
    with shop.working("shop:jobs", "--workers", "5", "--threads", "2", "--tenants", "acme", "--steal", "*") as worker:
        assert shop.result(id) == "hello ann"
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(timeout=60) == 0
        worker.wait_for("has stopped")
    told = " ".join("".join(worker.lines).split())
    assert "up to 5 jobs at once, 2 of them in threads." in told
    assert "It takes the jobs of acme first, in fair order; while they have none, those of everyone else." in told
    assert f"Jobs come from pool 'default' in {shop.url}, namespace {shop.namespace!r}." in told
    assert "It knows 3 tasks: forever, greet, stuck." in told


def test_dead_letters_are_looked_at_queued_again_and_thrown_away(shop: Shop) -> None:
    """With error and traceback, in which nothing steers the terminal."""
    id = shop.enqueue("greet", "")
    with shop.working("shop:jobs") as worker:
        worker.wait_for("takes jobs")
        shop.asked(lambda queue: failed(queue, id))
    assert id in shop.run("dead", "list").output
    told = shop.run("dead", "show", id).output
    assert "error        RuntimeError: nobody \\x1b[31mthere\n" in told
    assert 'raise RuntimeError("nobody' in told
    assert "\x1b" not in told
    assert shop.json("dead", "show", id)["kind"] == "failed"
    missing = "0" * 24
    some = shop.run("dead", "requeue", id, missing)
    assert some.exit_code == 1
    assert "1 job queued again." in some.output
    assert f"Error: there is no dead letter {missing}" in some.output
    assert [job["id"] for job in shop.json("ls")] == [id]
    assert shop.run("dead", "list").output == "No dead letters.\n"
    assert shop.run("dead", "purge").exit_code == 2
    assert shop.json("dead", "purge", "--yes") == {"count": 0}
    assert shop.json("dead", "requeue", "--all") == {"count": 0}


async def failed(queue: JobQueue, id: str) -> None:
    with pytest.raises(admission.errors.JobFailed):
        await queue.job(id).result(timeout=60)


def test_a_second_signal_ends_a_worker_where_it_stands(shop: Shop) -> None:
    """A job that does not end cannot hold it up; it is delivered again when the lease is over."""
    shop.enqueue("forever")
    with shop.working("shop:jobs") as worker:
        worker.wait_for("begun")
        worker.process.send_signal(signal.SIGINT)
        worker.wait_for("SIGINT: no more jobs are taken")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(timeout=60) == -signal.SIGTERM


def test_a_function_that_never_ends_does_not_hold_up_the_end(shop: Shop) -> None:
    """Its thread cannot be stopped: the job is handed back after the grace, and the process ends."""
    shop.enqueue("stuck")
    with shop.working("shop:jobs", "--grace", "0") as worker:
        worker.wait_for("begun")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(timeout=60) == 0
        worker.wait_for("ended with 1 threads in which functions still ran")
    assert [job["task"] for job in shop.json("ls")] == ["stuck"]


def test_a_process_that_is_killed_is_replaced(shop: Shop) -> None:
    """Two processes; kill -9 one of them, and a third one starts. SIGTERM ends all, and each once."""
    with shop.working("shop:jobs", "--processes", "2") as workers:
        first, _ = workers.wait_for(r"worker process (\d+) started", 2)
        workers.wait_for("takes jobs", 2)
        os.kill(int(first[1]), signal.SIGKILL)
        workers.wait_for(rf"worker process {first[1]} ended \(signal SIGKILL\); another one starts in 0 s")
        workers.wait_for("takes jobs", 3)
        workers.process.send_signal(signal.SIGTERM)
        assert workers.process.wait(timeout=60) == 0
        workers.wait_for("has stopped", 2)
        assert len(workers.wait_for("SIGTERM: no more jobs are taken")) == 2


def test_processes_whose_parent_is_killed_stop_in_order(shop: Shop) -> None:
    """Nobody is left to pass on a signal, so they do not wait for one."""
    with shop.working("shop:jobs", "--processes", "2") as workers:
        workers.wait_for("takes jobs", 2)
        workers.process.kill()
        workers.wait_for("has stopped", 2)


def test_metrics_are_served_by_each_process(shop: Shop) -> None:
    """On a port of its own: those of the pool, of the queue and of the worker."""
    id = shop.enqueue("greet", "ann")
    with shop.working("shop:jobs", "--metrics-port", "0") as worker:
        (url,) = worker.metrics_urls()
        shop.result(id)
        text = httpx2.get(url).text
    assert 'admission_limit_slots{pool="default"}' in text
    assert re.search(r'admission_job_worker_\w+\{pool="default",worker="worker-\d+"', text)
    assert "admission_jobs_" in text


@pytest.mark.parametrize("deaths", [1, 2, 3, 4, 5, 6, 50, 2000])
def test_deaths_in_a_row_are_followed_by_growing_pauses(deaths: int) -> None:
    """The first by none, and none is too long."""
    expected = {1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 6: 16}
    assert pause_after(deaths) == expected.get(deaths, LONGEST_PAUSE)


def test_a_worker_is_refused_with_a_sentence(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2: no queue, no tasks, a value out of its range, a name without a file."""
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(shop.folder))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    for words, sentence in (
        ([], "there is nothing to work for: name a JobQueue as MODULE:JOBS, such as main:jobs"),
        (["shop:none"], "'shop:none' has no tasks"),
        (["shop:jobs", "--threads", "0"], "--threads is 0: it must be at least 1 and at most 1000"),
        (["shop:jobs", "--metrics-port", "-1"], "--metrics-port is -1: it must be at least 0 and at most 65535"),
        (["shop:jobs", "--tenants", ","], "--tenants is ',': it must name a tenant"),
        (["shop:jobs", "--name", "fast"], "--name goes with --config"),
        (["shop:jobs", "--config", "no.toml"], "no.toml: there is no such file"),
    ):
        result = CliRunner().invoke(cli, ["worker", *words])
        assert result.exit_code == 2, words
        assert sentence in " ".join(result.output.split())
    monkeypatch.delitem(sys.modules, "shop")


# ---------------------------------------------------------------------- files of workers

TOML = """\
[workers.fast]
jobs = "main:jobs"
workers = 50
tenants = ["acme", "globex"]
steal = "*"
processes = 2

[workers.slow]
threads = 5
"""

YAML = """\
workers:
  fast: {jobs: "main:jobs", workers: 50, tenants: "acme, globex", steal: "*", processes: 2}
  slow:
    threads: 5
"""


@pytest.mark.parametrize(("name", "text"), [("workers.toml", TOML), ("workers.yaml", YAML)])
def test_named_workers_come_from_toml_or_yaml(tmp_path: Path, name: str, text: str) -> None:
    """The same in both; options given beside it win; --name picks some."""
    file = tmp_path / name
    file.write_text(text)
    plans = planned(file, (), {"jobs": "other:jobs", "grace": 5})
    assert plans["fast"] == WorkerPlan(
        jobs="other:jobs", workers=50, tenants=("acme", "globex"), steal=("*",), processes=2, grace=5
    )
    assert plans["fast"].steals_from == "*"
    assert plans["slow"].steals_from == ()
    assert list(planned(file, ("fast",), {})) == ["fast"]
    with pytest.raises(SettingsError, match=r"there is no worker 'quick': .* has fast, slow"):
        planned(file, ("quick",), {})
    with pytest.raises(SettingsError, match="worker 'slow' has no queue"):
        planned(file, (), {})


def test_a_mistake_in_a_file_of_workers_is_named_with_its_line(tmp_path: Path) -> None:
    """File, line, key, value, and what is allowed; also by `admission check`."""
    file = tmp_path / "workers.toml"
    file.write_text('[workers.fast]\nworkers = 0\nthread = 3\nsteal = 7\ntenants = ["a", ""]\ngrace = -1\n')
    for words in (["check", str(file)], ["worker", "main:jobs", "--config", str(file)]):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 2
        for sentence in (
            f"{file}:2: workers.fast.workers is 0: it must be at least 1 and at most 10000",
            f"{file}:3: there is no option workers.fast.thread: did you mean threads?",
            f"{file}:4: workers.fast.steal is 7: it must be a list",
            f"{file}:5: workers.fast.tenants is ['a', '']: the name of a tenant has 1 to 128 bytes",
            f"{file}:6: workers.fast.grace is -1: it must be at least 0",
        ):
            assert sentence in result.output


def test_a_file_of_workers_is_checked_and_told_in_sentences(tmp_path: Path) -> None:
    """No application is needed for that."""
    file = tmp_path / "workers.toml"
    file.write_text(TOML)
    result = CliRunner().invoke(cli, ["check", str(file)])
    assert result.exit_code == 0
    told = " ".join(result.output.split())
    assert "is valid." in told
    assert "Worker fast: 2 processes, each with up to 50 jobs at once, 20 of them in threads." in told
    assert "It takes the jobs of acme and globex first" in told
    assert "Worker slow: up to 100 jobs at once, 5 of them in threads. It takes the jobs of all tenants" in told


def test_workers_of_a_file_run_side_by_side(shop: Shop) -> None:
    """Each under its name, in as many processes as it says."""
    (shop.folder / "workers.toml").write_text('[workers.fast]\nprocesses = 2\n[workers.slow]\ntenants = ["acme"]\n')
    id = shop.enqueue("greet", "bob", tenant="acme")
    with shop.working("shop:jobs", "--config", "workers.toml") as workers:
        workers.wait_for("worker 'fast-.* takes jobs", 2)
        workers.wait_for("worker 'slow-.* takes jobs", 1)
        assert shop.result(id) == "hello bob"
