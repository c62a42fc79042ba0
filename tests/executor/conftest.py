"""What the executor's tests share."""

from __future__ import annotations

import pytest
from gates import Gate


@pytest.fixture
def gate() -> Gate:
    """A task that waits until the test opens it."""
    return Gate()
