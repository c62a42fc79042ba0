"""`run_demo` from start to exit code, with the real server; the real model where it has to answer."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
from rich.console import Console

from admission import AdmissionController, PriorityClass
from admission.demo import run_demo
from admission.demo.report import disagreements, table
from admission.demo.run import curl_lines
from admission.demo.traffic import SHARES, Tally

SERVE_ONLY = "import sys; from admission.demo import run_demo; sys.exit(run_demo(port=0, load=False))"


def pool() -> AdmissionController:
    return AdmissionController(classes=[PriorityClass(name=tier) for tier in SHARES])


def width_of(text: str) -> int:
    return max(len(line) for line in text.splitlines())


@pytest.mark.model
@pytest.mark.servers
def test_a_short_demo_serves_and_both_sides_count_the_same() -> None:
    """Exit code 0; plain text of at most 80 columns where the output is no terminal."""
    out = io.StringIO()
    assert run_demo(port=0, once=True, seconds=3, out=Console(file=out, width=80)) == 0
    assert "Server and clients counted the same." in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert width_of(out.getvalue()) <= 80


@pytest.mark.model
@pytest.mark.servers
def test_control_c_ends_a_demo_that_only_serves() -> None:
    """It prints where it listens, answers there, and ends with 0 when interrupted."""
    demo = subprocess.Popen([sys.executable, "-u", "-c", SERVE_ONLY], stdout=subprocess.PIPE, text=True)
    try:
        assert demo.stdout is not None
        line = next(line for line in demo.stdout if line.startswith("Serving"))
        assert httpx2.get(f"{line.split()[-1]}/health").status_code == 200
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(timeout=30) == 0
        assert "Draining" in rest
    finally:
        demo.kill()
        demo.wait()
        demo.stdout.close()


def test_a_port_that_is_taken_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and a way out, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run_demo(port=taken.getsockname()[1], once=True) == 1
    assert "Try another --port" in capsys.readouterr().err


def test_options_that_leave_nothing_to_do_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """To end after the traffic without sending any is a misunderstanding."""
    assert run_demo(port=0, once=True, load=False) == 1
    assert "choose one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.5}, "seconds is 0.5: it must be at least 1"),
        ({"port": 65536}, "port is 65536: it must be at least 0 and at most 65535"),
    ],
)
def test_an_option_outside_its_range_is_named(options: dict[str, float], message: str) -> None:
    """Option, value and allowed range."""
    with pytest.raises(ValueError, match=message):
        run_demo(**options)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_nothing_served_is_a_failure() -> None:
    """A demo in which the server refused everyone has not shown anything."""
    before = pool().snapshot()
    assert disagreements(before, before, {tier: Tally() for tier in SHARES}) == ["nothing was served"]


@pytest.mark.anyio
async def test_an_answer_the_server_does_not_know_of_is_a_failure() -> None:
    """The clients' counts and the pool's must agree, class by class."""
    controller = pool()
    before = controller.snapshot()
    permit = controller.acquire_nowait(priority="pro")
    tallies = {tier: Tally() for tier in SHARES}
    tallies["pro"] = Tally(sent=1, served=1)
    tallies["free"] = Tally(sent=2, served=1, refused=1)
    wrong = disagreements(before, controller.snapshot(), tallies)
    assert wrong == [
        "pro: 1 slots and 0 places in line were never given back",
        "free: the server admitted 0, the clients got 1 answers",
        "free: the server refused 0, the clients saw 1 refusals",
    ]
    permit.release()


@pytest.mark.anyio
async def test_the_table_fits_80_columns_with_large_numbers() -> None:
    """A long demo on a fast machine must stay readable, too."""
    busy = Tally(sent=99_999, served=99_999, refused=99_999, tokens=9_999_999, waits=[999.99])
    out = io.StringIO()
    Console(file=out, width=80).print(table(pool().snapshot(), dict.fromkeys(SHARES, busy), elapsed=10, whole=True))
    assert "…" not in out.getvalue()
    assert width_of(out.getvalue()) <= 80


def test_the_curl_lines_fit_80_columns() -> None:
    """They are there to be copied."""
    assert width_of(curl_lines("http://127.0.0.1:65535")) <= 80
