"""Fenced code blocks of the README and the documentation, found so that tests can run them.

A Python block that cannot run here is marked with a comment on the line before its fence, which says why:

    <!-- run: no, it needs a GPU -->
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE
)
_MARK = re.compile(r"<!-- run: no(?P<why>[^>]*)-->\s*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """One fenced block.

    Attributes:
        line: Of its first line of code, from 1.
        skipped: Whether it is marked not to be run.
        why: The reason given; empty when there is none.
    """

    path: Path
    line: int
    language: str
    code: str
    skipped: bool
    why: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """The README and every page of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fences(*languages: str) -> list[Fence]:
    """Every block in one of these languages."""
    return [
        fence for page in pages() for fence in in_text(page, page.read_text("utf-8")) if fence.language in languages
    ]


def in_text(path: Path, text: str) -> Iterator[Fence]:
    """The blocks of one page."""
    for found in _FENCE.finditer(text):
        mark = _MARK.search(text, 0, found.start())
        yield Fence(
            path=path,
            line=text.count("\n", 0, found.start()) + 2,
            language=found["language"],
            code=textwrap.dedent(found["code"]),
            skipped=mark is not None,
            why="" if mark is None else mark["why"].strip(" ,:"),
        )
