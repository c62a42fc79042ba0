"""What every test may use: the three event loops, and how hard Hypothesis tries."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    max_examples=1_000,
    derandomize=True,  # The same examples on every run: a change that breaks one is the change at fault.
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# What has passed so on one python, on another or compiled: it is that which is tested, not the rules once more.
settings.register_profile("again", settings.get_profile("ci"), max_examples=200)
settings.register_profile("nightly", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param(("trio", {}), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Every asynchronous test runs on asyncio, uvloop and trio, unless its module says otherwise."""
    backend: tuple[str, dict[str, object]] = request.param
    return backend
