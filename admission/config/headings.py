"""The headings of a settings file, and its options without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from admission.asgi.options import Options, PoolOptions, SharedPoolOptions
from admission.config.file import Key, SettingsError, SettingsFile, dotted
from admission.config.messages import suggestion

HEADINGS: Mapping[str, tuple[str, ...]] = {
    "pool": (*PoolOptions.__annotations__, "mode", "limit"),
    "redis": tuple(SharedPoolOptions.__annotations__),
    "http": tuple(
        Options.__annotations__.keys()
        - PoolOptions.__annotations__.keys()
        - SharedPoolOptions.__annotations__.keys()
        - {"classify"}
    ),
    "metrics": ("metrics_namespace", "metrics_port", "metrics_host", "metrics_tenants"),
    "log": ("log_format", "log_events", "log_tenants", "tracing"),
}
"""Headings a file may use, and the options that may stand below. Below `[metrics]`, `port` is
`metrics_port`."""

_SHORT: Mapping[tuple[str, str], str] = {("redis", "url"): "redis"}
"""Keys below a heading whose options are not called by both."""


def flat(file: SettingsFile) -> tuple[dict[str, Any], dict[str, Key]]:
    """The options of a file without their headings, and the key each of them has in the file."""
    values: dict[str, Any] = {}
    origins: dict[str, Key] = {}
    for heading, value in file.values.items():
        if heading == "config":
            raise SettingsError(f"{file.where((heading,))}: a settings file cannot name another one")
        if heading not in HEADINGS or (heading in HEADINGS[heading] and not isinstance(value, Mapping)):
            entries: dict[str, tuple[Key, object]] = {heading: ((heading,), value)}
        elif isinstance(value, Mapping):
            entries = {_below(file, heading, str(key)): ((heading, str(key)), inner) for key, inner in value.items()}
        else:
            raise SettingsError(f"{file.where((heading,))}: [{heading}] must be a table of options")
        for option, (key, found) in entries.items():
            if option in origins:
                raise SettingsError(
                    f"{file.where(key)}: {dotted(key)} is there twice, also at {file.where(origins[option])}"
                )
            values[option], origins[option] = found, key
    return values, origins


def _below(file: SettingsFile, heading: str, key: str) -> str:
    """The option that *key* means below *heading*."""
    allowed = HEADINGS[heading]
    for option in (_SHORT.get((heading, key), key), f"{heading}_{key}"):
        if option in allowed:
            return option
    short = [name for own, name in _SHORT if own == heading]
    short += [option.removeprefix(f"{heading}_") for option in allowed]
    homes = [other for other, options in HEADINGS.items() if key in options]
    hint = f": it belongs below [{homes[0]}]" if homes else suggestion(key, short)
    raise SettingsError(f"{file.where((heading, key))}: there is no option {heading}.{key}{hint}")
