"""An app behind `QoSAdmission`, as each process of `admission serve` makes it."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from admission.asgi.middleware import QoSAdmission
from admission.cli.importing import NotFound, imported
from admission.config import Settings, serve_metrics
from admission.observability.logging import configure_logging

ASGIApp = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

AppNotFound = NotFound

VARIABLE = "ADMISSION_SERVE"
"""Environment variable that carries the plan to the processes of the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to serve, for one process. Options are keywords of `Settings`, as they were typed."""

    app: str
    factory: bool
    processes: int
    options: dict[str, Any]

    def hand_down(self) -> None:
        """Leave the plan for `create_app`, in this process or in one it starts."""
        os.environ[VARIABLE] = json.dumps(asdict(self))


def create_app() -> ASGIApp:
    """The app of the plan behind its own middleware; called once in each process."""
    plan = Plan(**json.loads(os.environ[VARIABLE]))
    settings = Settings(**plan.options)
    configure_logging(settings.log_format)
    found = find_app(plan.app)
    app: ASGIApp = found() if plan.factory else found
    middleware = QoSAdmission(app, **settings.middleware_options())  # type: ignore[arg-type]  # One value, many types.
    return _Served(middleware, settings, plan.processes)


class _Served:
    """The middleware, and what its process has beside it: the metrics server, which needs the running event loop of the
    first call, and a goodbye to a shared pool at the end."""

    def __init__(self, middleware: QoSAdmission, settings: Settings, processes: int) -> None:
        self._middleware = middleware
        self._settings = settings
        self._processes = processes
        self._begun = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if not self._begun:
            self._begun = True
            serve_metrics(self._settings, self._middleware, tries=self._processes)

        await self._middleware(scope, self._overheard(receive) if scope["type"] == "lifespan" else receive, send)

    def _overheard(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> Callable[[], Awaitable[Any]]:
        """The server's messages of start and end, on which a shared pool is joined and left."""
        controller = self._middleware.controller

        async def overheard() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                # The last request has ended. Without a goodbye the others would wait for the lease to run out.
                await controller.aclose()
            else:
                controller.bind()
                await controller.refresh()
            return message

        return overheard


def find_app(name: str) -> Callable[..., Any]:
    """The ASGI app, or the function that makes one, that *name* means: `module:app`, `package.module:holder.app`.

    Raises:
        AppNotFound: There is no such module or no such name in it; or what is there cannot be called.
    """
    found = imported(name, "app", "main:app", _apps_in)
    if not callable(found):
        raise AppNotFound(f"{name!r} is {type(found).__name__}: an ASGI app can be called")
    return found


def _apps_in(module: object) -> str:
    """Names that may have been meant."""
    return ", ".join(name for name in ("app", "application", "api", "create_app") if hasattr(module, name))
