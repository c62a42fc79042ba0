"""Starlette's own tests, with every app behind `QoSAdmission` and its defaults, pass as they do without."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VERSION = "1.10.0"
SHA256 = "b8399098d4c1e3522734f7235dc79b1fc967f96cf139c81e0fa30479e0685f9b"
"""Of the source distribution, which alone holds the tests. It is fetched once and kept in pytest's cache."""

HERE = Path(__file__).parent
LEAST = 1400
"""How many tests there are at least: a suite that was not collected proves nothing."""


@pytest.fixture(scope="module")
def suite(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    assert pytestconfig.cache is not None
    archive = pytestconfig.cache.mkdir("starlette") / f"starlette-{VERSION}.tar.gz"
    if not archive.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-binary", "starlette", "--dest", str(archive.parent)]
        subprocess.run([*pip, *options, f"starlette=={VERSION}"], check=True, timeout=300)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256
    place = tmp_path_factory.mktemp("starlette")
    with tarfile.open(archive) as files:
        files.extractall(place, filter="data")
    return place / f"starlette-{VERSION}"


def failures(suite: Path, *arguments: str) -> tuple[set[str], int]:
    """Run the suite; what failed, and how many passed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ADMISSION_", "PYTEST"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    run = subprocess.run(
        command, cwd=suite, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=580
    )
    assert run.returncode in (0, 1), run.stdout[-4000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    return set(re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)), int(passed[1]) if passed else 0


def test_every_starlette_test_passes_as_without_admission(suite: Path) -> None:
    """What fails behind the middleware must fail without it as well (for want of a package, or as root)."""
    failed, passed = failures(suite, "-p", "starlette_behind_admission", "tests")
    assert passed + len(failed) >= LEAST
    if failed:
        without, _ = failures(suite, *sorted(failed))
        assert failed == without
