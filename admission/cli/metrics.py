"""What `--metrics-port` needs, asked for before the server or the worker starts, not beside it."""

from __future__ import annotations

import socket
from importlib.util import find_spec

import click


def require_metrics() -> None:
    """Raise a `ClickException` unless the package that writes metrics is installed."""
    if find_spec("prometheus_client") is None:
        raise click.ClickException(
            'metrics_port needs the package prometheus_client. Install it with: pip install "admission[metrics]"'
        )


def require_free_port(host: str, port: int) -> None:
    """Raise a `ClickException` unless *port* can be listened on; 0 is any."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise click.ClickException(f"metrics_port: cannot listen on {host}:{port}: {error}") from None
