"""How fast it is, next to other packages in the same run.

    ./dev bench [NAMES…] [--rounds N] [--quick] [--json FILE] [--compiled ENVIRONMENT] [--peers ENVIRONMENT]

`./dev bench` builds the compiled build into an environment of its own and gives it along: "admission" is then that one,
beside "admission, pure Python". So it does with other job queues, which want an older redis-py.

Only ratios within one run mean anything: contenders take turns, so that whatever else the machine does hits all of
them alike. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.builds import Build
from tests.benchmarks.calibration import calibrate
from tests.benchmarks.contended_speed import measure_contended
from tests.benchmarks.core_speed import measure_core
from tests.benchmarks.executor_speed import measure_executor
from tests.benchmarks.http_speed import measure_http, measure_in_process
from tests.benchmarks.jobs_speed import measure_jobs
from tests.benchmarks.redis_speed import measure_redis
from tests.benchmarks.report import Plan, Report
from tests.benchmarks.shared_capacity import measure_shared
from tests.benchmarks.wakeup_speed import measure_wakeup

BENCHMARKS: dict[str, Callable[[Report], None]] = {
    "http": measure_http,
    "http-inprocess": measure_in_process,
    "contended": measure_contended,
    "wakeup": measure_wakeup,
    "executor": measure_executor,
    "core": measure_core,
    "redis": measure_redis,
    "jobs": measure_jobs,
    "shared": measure_shared,
}

ON_A_SERVER = {"redis", "jobs", "shared"}
"""Those whose figures are no times of this process's event loop."""


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run what was asked for and print what was found. Missed targets are no failure: machines differ."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; without any, all")
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each measurement (11; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="under a minute: shows that all works, measures little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--compiled", type=Path, metavar="ENVIRONMENT", help="where the compiled build is installed")
    parser.add_argument("--peers", type=Path, metavar="ENVIRONMENT", help="where other job queues are installed")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}: there are {', '.join(BENCHMARKS)}")
    rounds = options.rounds if options.rounds is not None else 2 if options.quick else 11
    if rounds < 1:
        parser.error(f"--rounds is {rounds}: it must be at least 1")
    compiled = None if options.compiled is None else Build.compiled(options.compiled)
    report = Report(Plan(rounds=rounds, quick=options.quick, compiled=compiled, peers=options.peers))
    names = options.names or list(BENCHMARKS)
    if not ON_A_SERVER.issuperset(names):
        calibrate(report)
    for name in names:
        BENCHMARKS[name](report)
    report.summary()
    if options.json is not None:
        report.write(options.json)
    return report


if __name__ == "__main__":
    main()
