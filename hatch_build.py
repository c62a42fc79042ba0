"""The compiled build: `HATCH_BUILD_HOOKS_ENABLE=1 pip install .` makes a wheel whose hot path is machine code.

mypyc turns the modules that pyproject.toml names into extension modules. They lie in the wheel beside their sources,
which stay for people and tracebacks; Python prefers the extension. Nothing is written into the checkout, so that no
extension of yesterday can hide the source of today, and an editable install is always pure. With
`ADMISSION_OPT_LEVEL=0` it is built in half the time, to be tested and not to be fast.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledBuild(BuildHookInterface[Any]):
    """Adds the extension modules to a wheel, and the platform to its name."""

    _directory: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless the wheel is an editable one. A failure fails the build: who asked for it shall know."""
        if version == "editable":
            return
        self._directory = tempfile.TemporaryDirectory()
        with chdir(self.root):
            built = compiled(self.config["modules"], Path(self._directory.name))
        build_data["force_include"].update(built)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is packed."""
        if self._directory is not None:
            self._directory.cleanup()


def compiled(modules: list[str], directory: Path) -> dict[str, str]:
    """Compile *modules* (paths from here) inside *directory*: the files that came out, and their paths in the wheel."""
    # Only an enabled hook has these installed.
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    # What mypy says of the types is `./dev lint`'s to judge; here, packages that are not installed are no error.
    mypy_options = [
        "--config-file=",
        "--ignore-missing-imports",
        "--follow-imports=silent",
        f"--cache-dir={os.devnull}",
    ]
    extensions = mypycify(
        [*mypy_options, *modules],
        opt_level=os.environ.get("ADMISSION_OPT_LEVEL", "3"),
        debug_level="0",
        group_name="admission",
        target_dir=str(directory / "c"),
    )
    command = build_ext(Distribution({"name": "admission", "ext_modules": extensions}))
    command.build_temp = str(directory / "objects")
    command.build_lib = str(directory / "lib")
    command.ensure_finalized()
    command.run()
    lib = directory / "lib"
    return {str(path): path.relative_to(lib).as_posix() for path in sorted(lib.rglob("*")) if path.is_file()}
