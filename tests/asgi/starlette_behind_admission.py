"""A pytest plugin for Starlette's own tests: every app its test client serves stands behind `QoSAdmission`."""

from __future__ import annotations

from typing import Any

from starlette import testclient

from admission.asgi import QoSAdmission


class Transport(testclient._TestClientTransport):
    """The test client's transport, one middleware further out."""

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(QoSAdmission(app), *args, **kwargs)


class Client(testclient.TestClient):
    """The test client, whose lifespan goes through the same middleware as its requests."""

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(app, *args, **kwargs)
        transport = self._transport
        assert isinstance(transport, Transport)
        self.app = transport.app


testclient._TestClientTransport = Transport  # type: ignore[misc]
testclient.TestClient = Client  # type: ignore[misc]
