"""The command `admission`: serve any ASGI app behind a queue, run jobs and look at them, check settings, see the demo.

Needs the extra `cli`.
"""

from __future__ import annotations

import sys

_NEEDED = frozenset({"click", "rich", "uvicorn"})


def main() -> None:
    """Run the command line."""
    try:
        from admission.cli.commands import cli
    except ModuleNotFoundError as missing:
        if missing.name not in _NEEDED:
            raise
        sys.exit("The command line needs more packages. Install them with: pip install 'admission[cli]'")
    cli(prog_name="admission")
