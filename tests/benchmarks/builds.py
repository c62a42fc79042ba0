"""The builds of admission that are measured: this checkout's, and the compiled one in an environment of its own.

Each build is measured in a process of its own, a `Twin`, so that both can take turns in one run.

    python -m tests.benchmarks.builds

is such a process: it reads `[module, function, arguments]` a line and answers with what the function returned.
"""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

OURS = "admission"
PURE = "admission, pure Python"
"""The usual build, where the compiled one stands beside it."""


@dataclass(frozen=True, slots=True)
class Build:
    """An interpreter, and a directory in which it finds these benchmarks, and admission only as it is installed."""

    python: str
    root: Path

    @classmethod
    def compiled(cls, environment: Path) -> Build:
        """The build that `./dev` has installed into *environment*."""
        return cls(str(environment.absolute() / "bin" / "python"), environment.absolute() / "checkout")


THIS = Build(sys.executable, ROOT)


def builds(compiled: Build | None) -> dict[str, Build]:
    """By the name of the contender: the best build there is, and the pure one beside it."""
    return {OURS: THIS} if compiled is None else {OURS: compiled, PURE: THIS}


class Twin:
    """A process that has one build imported and measures it when told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """What *function*, of one of these modules, returns there. Arguments are sent as JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # Said below.
            self._process.stdin.write(json.dumps([function.__module__, function.__qualname__, arguments]) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that measures {function.__qualname__} has ended; see its error above")
        return cast(T, json.loads(line))


@contextmanager
def twins(compiled: Build | None) -> Iterator[Mapping[str, Twin]]:
    """A twin for each build, by the name of the contender."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(twin(build)) for name, build in builds(compiled).items()}


@contextmanager
def twin(build: Build) -> Iterator[Twin]:
    """A process with that build, which ends with the block."""
    command = [build.python, "-m", "tests.benchmarks.builds"]
    with subprocess.Popen(command, cwd=build.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Twin(process)
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()  # It then ends by itself.


def main() -> None:
    """Measure what is asked for until nobody asks any more."""
    for line in sys.stdin:
        module, function, arguments = json.loads(line)
        measure: Any = getattr(importlib.import_module(module), function)
        gc.collect()
        print(json.dumps(measure(*arguments)), flush=True)


if __name__ == "__main__":
    main()
