"""Errors in settings as sentences: where, which option, its value, what is allowed."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping

from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError as EnvironmentValueError

from admission.backends.redis.address import masked
from admission.config.file import Key, SettingsError, SettingsFile, dotted

PREFIX = "ADMISSION_"
"""First part of the name of every environment variable read here."""


class Sources:
    """Says of an option where its value came from.

    Args:
        given: The keywords.
        file: The settings file, if there is one.
        origins: The key in the file of every option the file sets.
        known: Options by table; those at the top by "".
    """

    def __init__(
        self,
        given: Mapping[str, object],
        file: SettingsFile | None,
        origins: Mapping[str, Key],
        known: Mapping[str, Iterable[str]],
    ) -> None:
        self._given = given
        self._file = file
        self._origins = origins
        self._known = known
        self._variables = {name.upper() for name in os.environ}

    def sentence(self, error: ErrorDetails) -> str:
        """pydantic's error in the words of this project."""
        key = tuple(part for part in error["loc"] if part not in _UNION_TAGS)
        if error["type"] == "extra_forbidden":
            return f"{self._where(key)}there is no option {self._named(key)}{self._suggestion(key)}"
        if error["type"] == "missing":
            return f"{self._where(key)}{self._named(key)} is missing"
        return self.told(key, error["input"], _rule(error))

    def told(self, key: Key, value: object, rule: str) -> str:
        """Where, which option, its value, what is allowed."""
        return f"{self._where(key)}{self._named(key)} is {_shown(key, value)}: {rule}"

    def _where(self, key: Key) -> str:
        option = str(key[0])
        if option in self._given or self._in_environment(option):
            return ""
        if self._file is not None and option in self._origins:
            return f"{self._file.where((*self._origins[option], *key[1:]))}: "
        return ""

    def _named(self, key: Key) -> str:
        option = str(key[0])
        if option not in self._given:
            if self._in_environment(option):
                return dotted((f"{PREFIX}{option}".upper(), *key[1:]))
            if option in self._origins:
                return dotted((*self._origins[option], *key[1:]))
        return dotted(key)

    def _suggestion(self, key: Key) -> str:
        return suggestion(str(key[-1]), self._known["" if len(key) == 1 else str(key[0])])

    def _in_environment(self, option: str) -> bool:
        variable = f"{PREFIX}{option}".upper()
        return any(name == variable or name.startswith(f"{variable}__") for name in self._variables)


_UNION_TAGS = frozenset({"aimd", "gradient", "vegas"})
"""pydantic puts the kind of a limit into the place of an error; in a file there is no such key."""

_KINDS_OF_VALUE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a table",
    "model": "a table",
    "path": "a path",
}


def _rule(error: ErrorDetails) -> str:
    """What pydantic's error says is allowed, in words."""
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "range":
            return str(context["rule"])
        case "literal_error":
            return f"it must be {context['expected']}"
        case "union_tag_invalid":
            return f"kind must be one of {context['expected_tags']}"
        case "union_tag_not_found":
            return "it must have a kind: 'aimd', 'gradient' or 'vegas'"
        case "string_pattern_mismatch":
            return f"it must match {context['pattern']}"
        case "string_too_short" | "too_short":
            return f"it must have at least {context['min_length']}"
        case "string_too_long" | "too_long":
            return f"it must have at most {context['max_length']}"
    wanted = _KINDS_OF_VALUE.get(kind.partition("_")[0])
    return f"it must be {wanted}" if wanted else error["msg"].removeprefix("Value error, ")


def unreadable_variable(error: EnvironmentValueError) -> SettingsError:
    field = re.search(r'field "(\w+)"', str(error))
    if field is None:
        return SettingsError(str(error))
    variable = f"{PREFIX}{field.group(1)}".upper()
    shown = _shortened(os.environ.get(variable, ""))
    return SettingsError(f"{variable} is {shown}: it must be JSON")


def refuse_misspelt_variables(environment: Iterable[str], options: Iterable[str]) -> None:
    """Raise for a variable that looks like an option but is none.

    Others with our prefix are left alone: Kubernetes sets `ADMISSION_SERVICE_HOST` and the like by itself
    where a service is called "admission".
    """
    known = {f"{PREFIX}{option}".upper() for option in options}
    for variable in environment:
        name = variable.upper().partition("__")[0]
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if close:
                raise SettingsError(f"there is no variable {variable}: did you mean {close[0]}?")


def suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]}?" if close else ""


def _shown(key: Key, value: object) -> str:
    """A value as an error may show it."""
    if key[0] == "redis" and isinstance(value, str):
        return _shortened(masked(value))
    return "not shown here" if _is_secret(key) else _shortened(value)


def _is_secret(key: Key) -> bool:
    if key[0] == "tenants":
        return key[-1] not in ("name", "tier", "weight")  # Whatever else is there may hold a key in plain text.
    return key[0] in ("redis", "status_token")


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
