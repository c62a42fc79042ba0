"""`admission serve` as a process of its own, spoken to over the loopback interface."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.cli.running import serving, two_free_ports, wait_until

pytestmark = pytest.mark.servers

APP = """\
import asyncio

release = asyncio.Event()
running = 0

async def app(scope, receive, send):
    global running
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    running += 1
    if scope["path"] == "/release":
        release.set()
    elif scope["path"] == "/hold":
        await release.wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"running %d" % running})
    running -= 1

def make_app():
    return app
"""


def test_an_app_is_served_behind_a_queue(tmp_path: Path) -> None:
    """One slot, a line of one: the first runs, the second waits, the third is refused; the app knows nothing of it."""
    with ThreadPoolExecutor() as threads, serving(tmp_path, APP, "--workers", "1", "--max-queue-size", "1") as server:
        url = server.url
        first = threads.submit(httpx2.get, f"{url}/hold", timeout=60)
        status = f"{url}/-/admission/status"
        wait_until(lambda: httpx2.get(status).json()["pool"]["in_flight"] == 1)
        second = threads.submit(httpx2.get, f"{url}/hold", timeout=60)
        wait_until(lambda: httpx2.get(status).json()["pool"]["queued"] == 1)
        third = httpx2.get(f"{url}/hold", headers={"x-priority": "low"}, timeout=60)
        assert third.status_code == 429
        assert third.headers["x-admission-reason"] == "rejected-queue-full"
        server.process.send_signal(signal.SIGTERM)
        evicted = second.result(timeout=60)
        assert evicted.status_code == 503
        assert not first.done()
        server.process.kill()
        with pytest.raises(httpx2.TransportError):
            first.result(timeout=60)


def test_a_shadow_pool_lets_everyone_in(tmp_path: Path) -> None:
    """`--mode shadow` holds nobody back: both requests run on one slot, until the third lets them go."""
    with (
        ThreadPoolExecutor() as threads,
        serving(tmp_path, APP, "--workers", "1", "--max-queue-size", "1", "--mode", "shadow") as server,
    ):
        url = server.url
        held = [threads.submit(httpx2.get, f"{url}/hold", timeout=60) for _ in range(3)]
        wait_until(lambda: httpx2.get(f"{url}/hold-not", timeout=60).text == "running 4")
        assert httpx2.get(f"{url}/release", timeout=60).status_code == 200
        assert [answer.result(timeout=60).status_code for answer in held] == [200, 200, 200]


def test_metrics_have_a_port_of_their_own(tmp_path: Path) -> None:
    """With the namespace of the file, and with what was noticed about requests."""
    (tmp_path / "admission.toml").write_text('[metrics]\nnamespace = "tinyllm"\nport = 0\n')
    with serving(tmp_path, APP, "--config", "admission.toml", "--factory", app="served:make_app") as server:
        assert httpx2.get(f"{server.url}/", headers={"x-priority": "nonsense"}).status_code == 200
        (metrics,) = server.metrics_urls()
        text = httpx2.get(metrics).text
    assert 'tinyllm_queue_requests_total{pool="default",priority="normal"} 1.0' in text
    assert 'tinyllm_http_requests_noticed_total{pool="default",what="unknown_class"} 1.0' in text
    assert "python_info" in text


def test_processes_have_pools_and_metrics_of_their_own(tmp_path: Path) -> None:
    """Two processes, two ports upwards from the first, each with half of the slots."""
    first = two_free_ports()
    with serving(
        tmp_path, APP, "--processes", "2", "--workers", "4", "--metrics-port", str(first), "--log-format", "json"
    ) as server:
        urls = server.metrics_urls(2)
        assert urls == {f"http://127.0.0.1:{port}/metrics" for port in (first, first + 1)}
        for url in urls:
            assert 'admission_limit_slots{pool="default"} 2.0' in httpx2.get(url).text
