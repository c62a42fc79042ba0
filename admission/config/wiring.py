"""Settings made into running parts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from admission.config.settings import Settings
from admission.controller import AdmissionController

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from admission.asgi.middleware import QoSAdmission

_log = logging.getLogger("admission.config")


def middleware_options() -> dict[str, object]:
    """What `QoSAdmission()` without arguments is made of: the environment and the file it names.

    With `metrics_port` set, the metrics are served there from now on.

    Raises:
        SettingsError: An option is wrong.
    """
    settings = Settings()
    options = settings.middleware_options()
    controller = options["controller"]
    assert isinstance(controller, AdmissionController)
    serve_metrics(settings, controller)
    return options


def serve_metrics(
    settings: Settings,
    shown: AdmissionController | QoSAdmission,
    *,
    also: Sequence[Collector] = (),
    tries: int = 1,
) -> None:
    """Serve metrics at `metrics_port`, if it is set. Call it on the pool's event loop.

    The server ends with the process. Where it cannot start, the metrics are lost and not the service: it is logged.

    Args:
        shown: The pool, or the middleware with its pool and its own counts.
        also: Further collectors of metrics, read on this event loop.
        tries: Ports to try, upwards from the first: one for each process of the server.
    """
    if settings.metrics_port is None:
        return
    from prometheus_client import REGISTRY

    from admission.observability.exposition import start_metrics_server
    from admission.observability.prometheus import PoolCollector

    collector = PoolCollector(namespace=settings.metrics_namespace, tenants=settings.metrics_tenants)
    if isinstance(shown, AdmissionController):
        collector.add(shown)
    else:
        collector.watch(shown)
    problem: Exception | None = None
    for port in range(settings.metrics_port, settings.metrics_port + tries):
        try:
            server = start_metrics_server(port, collector, host=settings.metrics_host, also=also, registry=REGISTRY)
        except (OSError, RuntimeError) as error:
            problem = error
        else:
            _log.info("metrics on http://%s:%d/metrics", settings.metrics_host, server.port)
            return
    _log.error("no metrics on port %d: %s", settings.metrics_port, problem)
