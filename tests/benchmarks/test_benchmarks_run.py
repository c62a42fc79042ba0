"""The benchmarks run and say what they found; what that is, is not tested."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.builds import ROOT
from tests.benchmarks.load import Connection, Load
from tests.benchmarks.report import Plan, Report


def quick(name: str, *options: str) -> Report:
    """A quick run of one benchmark."""
    return main([name, "--quick", "--rounds", "1", *options])


def test_core_benchmark_tells_cost_position_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """`core` prints a row for each line length and judges its three targets."""
    report = quick("core")
    printed = capsys.readouterr().out
    assert "10 waiting, 10 tenants" in printed
    assert "1,000 tenants, 4 classes" in printed
    assert [claim.what.partition(" at")[0] for claim in report.claims] == [
        "core: offer + release",
        "core: position",
        "core: memory of a waiting ticket, 5,000 waiting",
    ]


def test_compiled_build_is_measured_beside_the_pure_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Here it is this very build again, but in an environment that looks like that of the compiled one."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "checkout").symlink_to(ROOT)
    quick("core", "--compiled", str(tmp_path))
    printed = capsys.readouterr().out
    assert "admission: offer + release" in printed
    assert "admission, pure Python: offer + release" in printed


def test_wakeup_benchmark_tells_both_event_loops(capsys: pytest.CaptureFixture[str]) -> None:
    """`wakeup` compares with a bare future on asyncio and on uvloop."""
    report = quick("wakeup")
    assert "create a future, set its result, go on" in capsys.readouterr().out
    assert [claim.what.split(":")[0] for claim in report.claims] == ["wakeup, asyncio", "wakeup, uvloop"]


def test_in_process_benchmark_tells_what_the_middleware_adds(capsys: pytest.CaptureFixture[str]) -> None:
    """`http-inprocess` measures the app alone, and through uvicorn's protocol."""
    report = quick("http-inprocess")
    printed = capsys.readouterr().out
    assert "called directly, POST, fields as openai's" in printed
    assert "through uvicorn, GET, fields as curl's" in printed
    assert [claim.what for claim in report.claims] == [
        "http-inprocess: CPU added to a request",
        "http-inprocess: the same beyond our 4 fields",
    ]


def test_executor_benchmark_tells_plain_and_full_rates(capsys: pytest.CaptureFixture[str]) -> None:
    """`executor` measures both kinds of submit on both loops; peers that are not installed are named."""
    report = quick("executor")
    printed = capsys.readouterr().out
    assert "admission, timeout, retry, callbacks, context" in printed
    assert {peer for peer in ("aiometer", "pulq", "bulkman") if peer in printed} == {"aiometer", "pulq", "bulkman"}
    assert [c.what for c in report.claims if "÷" not in c.what] == [
        "executor, asyncio: submit + await",
        "executor, asyncio: the same with everything on",
        "executor, uvloop: submit + await",
        "executor, uvloop: the same with everything on",
    ]


@pytest.mark.timeout(300)  # One of the peers takes its time to be imported, where it is installed.
def test_redis_benchmark_tells_rates_round_trips_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """`redis` starts a server and worker processes, and names the peers that are not installed."""
    report = quick("redis")
    printed = capsys.readouterr().out
    assert "EVALSHA of the same three commands, redis-py" in printed
    assert "a waiting ticket, of 200" in printed
    assert "fastapi-stream-lease" in printed
    assert "LiteLLM, max_parallel_requests" in printed
    assert [claim.what.partition(",")[0] for claim in report.claims if "÷" not in claim.what] == [
        "redis: acquire + release"
    ]
    assert len(report.claims) == 4


def test_jobs_benchmark_tells_rates_and_who_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`jobs` enqueues and works off; the peers' environment is one that has none of them."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    report = quick("jobs", "--peers", str(tmp_path))
    printed = capsys.readouterr().out
    assert "admission, results kept" in printed
    assert {"taskiq, stream", "taskiq, list", "saq", "arq", "streaq", "dramatiq"} <= report.absent.keys()
    assert [claim.what for claim in report.claims] == [
        "jobs: enqueued in batches",
        "jobs: complete cycles of one worker process",
    ]


def test_shared_capacity_is_told_for_requests_and_for_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    """`shared` runs a web app without jobs, with a worker beside it, and with one in it."""
    report = quick("shared")
    printed = capsys.readouterr().out
    assert "no jobs" in printed
    assert [claim.what for claim in report.claims] == [
        "shared: p99 wait of requests, jobs in a worker process ÷ no jobs",
        "shared: p99 wait of requests, jobs in the web app's process ÷ no jobs",
        "shared: jobs done ÷ their guaranteed share, at worst",
        "shared: until jobs have all slots after the last request",
    ]


def test_summary_shows_each_claim_and_whoever_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The last table fits 80 columns, and the JSON says the same."""
    report = Report(Plan(rounds=1, quick=False))
    report.at_least("rate", 250_000, 200_000, "/s")
    report.at_most("time", 1.5, 1.0, "µs")
    report.missing("a peer", "not installed")
    report.summary()
    report.write(tmp_path / "found.json")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split("│")[-2].strip() for line in lines if line.startswith("│")] == ["met", "missed"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [claim["met"] for claim in found["claims"]] == [True, False]
    assert found["not_measured"] == {"a peer": "not installed"}


def test_unknown_benchmark_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error says what there is."""
    with pytest.raises(SystemExit):
        main(["htpp"])
    assert "no benchmark 'htpp': there are http, http-inprocess, contended" in capsys.readouterr().err


def test_useful_rate_leaves_refusals_out() -> None:
    """A 503 is no throughput."""
    assert Load(answers=100, refused=90, seconds=2.0).rate == 5.0


def test_built_in_generator_asks_again_after_each_whole_answer() -> None:
    """An answer may come in pieces; whatever is neither 2xx nor 3xx is counted as refused."""
    transport = Wire()
    connection = Connection([b"first", b"second"], 1)
    connection.connection_made(transport)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
    assert transport.sent == [b"first"]
    connection.data_received(b"ay")
    connection.data_received(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
    assert transport.sent == [b"first", b"second", b"first"]
    assert (connection.answers, connection.refused) == (2, 1)


class Wire(asyncio.Transport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return False
