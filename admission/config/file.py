"""A settings file as plain data, and the line each of its keys stands on.

TOML or YAML, by the file's ending. Python's TOML reader forgets where it read a key, so a second, small look over the
text finds the lines; where it cannot (a key inside an inline table), the line of the key around it is given.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Key = tuple[str | int, ...]
"""A path into nested tables and lists: `("classes", 1, "ceiling")`."""

_TABLE = re.compile(r"\s*\[(?P<list>\[)?(?P<name>[^\[\]]+)\]")
_ASSIGNMENT = re.compile(r"""\s*(?P<name>(?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


class SettingsError(ValueError):
    """An option is wrong. The message names it, its value, what is allowed, and where it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFile:
    """What a settings file says."""

    path: Path
    values: Mapping[str, object]
    lines: Mapping[Key, int]

    def where(self, key: Key) -> str:
        """`file:line` of *key*, or of the nearest key around it; the file alone if there is none."""
        for length in range(len(key), 0, -1):
            if (line := self.lines.get(key[:length])) is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def read_settings_file(path: Path) -> SettingsFile:
    """Read a `.toml`, `.yaml` or `.yml` file.

    Raises:
        SettingsError: It is not there, has another ending, or its text is no such language.
    """
    readers = {".toml": _read_toml, ".yaml": _read_yaml, ".yml": _read_yaml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SettingsError(f"{path}: a settings file must end in .toml, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: it cannot be read: {error}") from error
    return reader(path, text)


def dotted(key: Key) -> str:
    """A key as people write it: `classes[1].ceiling`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{_quoted(part)}" for part in key]
    return "".join(parts).removeprefix(".")


def _quoted(part: str) -> str:
    return part if re.fullmatch(r"[\w-]+", part) else f'"{part}"'


def _read_toml(path: Path, text: str) -> SettingsFile:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"\(at line (\d+)", str(error))
        where = f"{path}:{line.group(1)}" if line else str(path)
        raise SettingsError(f"{where}: no valid TOML: {error}") from error
    lines: dict[Key, int] = {}
    for key, number in _toml_lines(text):
        lines.setdefault(key, number)
    return SettingsFile(path=path, values=values, lines=lines)


def _toml_lines(text: str) -> Iterator[tuple[Key, int]]:
    table: Key = ()
    lengths: dict[Key, int] = {}

    def resolve(names: list[str]) -> Key:
        """The path of a table's name: below a list of tables, a name means the list's last one."""
        path: Key = ()
        for name in names:
            path = (*path, name)
            if path in lengths:
                path = (*path, lengths[path] - 1)
        return path

    for number, line in enumerate(text.splitlines(), start=1):
        if found := _TABLE.match(line):
            names = _parts(found["name"])
            if found["list"]:
                array = (*resolve(names[:-1]), names[-1])
                lengths[array] = lengths.get(array, 0) + 1
                yield array, number
            table = resolve(names)
            yield table, number
        elif found := _ASSIGNMENT.match(line):
            yield (*table, *_parts(found["name"])), number


def _parts(name: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(name)]


def _read_yaml(path: Path, text: str) -> SettingsFile:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise SettingsError(f"{path}: YAML files need the extra: pip install 'admission[yaml]'") from error

    lines: dict[Key, int] = {}

    def walk(node: yaml.Node | None, key: Key) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                inner = (*key, str(name.value))
                line = name.start_mark.line + 1
                if inner in lines:
                    raise SettingsError(f"{path}:{line}: {dotted(inner)} is there twice")
                lines[inner] = line
                walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*key, index)] = value.start_mark.line + 1
                walk(value, (*key, index))

    try:
        walk(yaml.compose(text, Loader=yaml.SafeLoader), ())
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SettingsError(f"{where}: no valid YAML: {getattr(error, 'problem', None) or error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}:1: the file must be a table of options, not {type(values).__name__}")
    return SettingsFile(path=path, values={str(name): value for name, value in values.items()}, lines=lines)
