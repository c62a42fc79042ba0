"""The server that the benchmarks of shared pools and of jobs are run against."""

from __future__ import annotations

from tests.benchmarks.report import Report
from tests.redis.servers import Missing, Program, debian_program, valkey_program


def program_for(report: Report) -> Program:
    """Debian's redis-server; without it Valkey, and the report says so."""
    try:
        return debian_program()
    except Missing as absent:
        report.missing("Debian's redis-server", str(absent))
        return valkey_program()
