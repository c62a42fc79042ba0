"""The FastAPI example does what its docstring says."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_app.py"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """The example, started."""
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with TestClient(module.app) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "key", "tenant", "name"),
    [
        ("/v1/answer", "demo-enterprise-key", "initech", "critical"),
        ("/v1/answer", "demo-pro-key", "hooli", "high"),
        ("/v1/answer", "stolen-key", "", "normal"),
        ("/v1/batches/run", "demo-pro-key", "hooli", "low"),
    ],
)
def test_a_key_makes_a_tenant_and_a_class(client: TestClient, path: str, key: str, tenant: str, name: str) -> None:
    """And the app sees both."""
    answer = client.post(path, json={"question": "?"}, headers={"Authorization": f"Bearer {key}"})
    assert answer.json() == {"answer": "42", "tenant": tenant, "class": name}
    assert answer.headers["x-queue-class"] == name


def test_a_stream_arrives_whole(client: TestClient) -> None:
    """Event by event."""
    assert client.post("/v1/stream", json={"question": "?"}).text.split("\n\n")[:3] == [
        "data: forty",
        "data: two",
        "data: [DONE]",
    ]


def test_health_is_exempt(client: TestClient) -> None:
    """It carries none of our headers."""
    assert "x-queue-class" not in client.get("/health").headers
