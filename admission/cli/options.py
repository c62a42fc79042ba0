"""Options of the command line made into settings, and what is said when one is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from admission.config import Settings, SettingsError

WIDTH = 80
"""Columns of what is printed: a terminal of the usual size, and a mail."""

_FLAGS = {"max_concurrency": "workers"}
"""Options that are called otherwise on the command line."""


class WrongSettings(click.ClickException):
    """An option is wrong, here, in the environment or in the file; the message says where."""

    exit_code = 2


def settings_of(options: dict[str, Any], flags: Mapping[str, str] = _FLAGS) -> Settings:
    """Settings from what was given here, the environment and the file.

    Args:
        flags: Names on the command line, of options that have another one there.

    Raises:
        WrongSettings: Something is wrong.
    """
    try:
        return Settings(**options)
    except SettingsError as error:
        told = [_with_flag(line, options, flags) for line in str(error).splitlines()]
        raise WrongSettings("\n".join(told)) from None


def _with_flag(line: str, options: Mapping[str, Any], flags: Mapping[str, str]) -> str:
    """The sentence with an option called as it was on the command line."""
    option, verb, rest = line.partition(" is ")
    if option not in options:
        return line
    return f"--{flags.get(option, option).replace('_', '-')}{verb}{rest}"
