"""The command: `python -m tests.chaos [--seconds N] [--ticks N] [--seed S] [--processes 4] …`.

`python -m tests.chaos jobs …` is the run of `tests.chaos.jobs`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from random import Random

from tests.chaos.arena import Setting
from tests.chaos.broken import BROKEN
from tests.chaos.faults import FAULTS
from tests.chaos.jobs import main as run_jobs
from tests.chaos.run import WRONGS, Found, Run, Tick

SHOWN = 10
"""Violations shown in full."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code: 0 when nothing went wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["jobs"]:
        return run_jobs(given[1:])
    options = _options(given)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    setting = Setting(
        processes=options.processes,
        limit=options.limit,
        lease=options.lease,
        timeout=options.lease / 5,
        on_outage=options.on_outage,
        kind=options.kind,
        broken=options.broken,
    )
    say = (lambda *_: None) if options.json else _say
    say(f"seed {seed}, {setting.broken or 'the real build'} on {setting.kind}, on_outage {setting.on_outage}")
    began = time.monotonic()
    with _directory(options.keep) as directory:
        run = Run(setting, seed, directory, brief=options.brief)
        try:
            run.start()
            say(f"{setting.processes} processes, limit {setting.limit}, leases of {setting.lease:g} s\n{HEAD}")
            for name in _deck(options.faults, Random(seed), options.ticks):
                if options.ticks is None and time.monotonic() - began > options.seconds:
                    break
                say(line(run.tick(name, FAULTS[name])))
            run.finish()
        except Found:
            say("a violation was found: the run ends here")
        finally:
            run.close()
    if options.json:
        print(json.dumps(report(run, seed), indent=2))
    else:
        for kind, what in run.wrong[:SHOWN]:
            print(f"VIOLATION {kind}: {what}")
        print(summary(run))
        print(f"{time.monotonic() - began:.0f} s")
    return 1 if run.wrong else 0


HEAD = " #  fault         200   429  503 left died  most over lost alone  again  seconds"


def line(tick: Tick) -> str:
    """One row of the table."""
    answers = tick.answers
    return (
        f"{tick.number:>2}  {tick.fault:<11}{answers['200']:>6}{answers['429']:>6}{answers['503']:>5}"
        f"{answers['left']:>5}{answers['died']:>5}{tick.most:>6}{tick.over:>5}{tick.lost:>5}{tick.alone:>6}"
        f"{tick.again:>6.1f}s{tick.seconds:>7.1f}s{'!' if tick.wrong else ''}"
    )


def summary(run: Run) -> str:
    """What is claimed."""
    counts = {kind: sum(found == kind for found, _ in run.wrong) for kind in WRONGS}
    found = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    done = f"{run.setting.processes} processes, {run.load.total:,} requests, {len(run.ticks)} faults"
    return f"{done}: {found}; {run.ledger.unprovoked} times cut off without a fault"


def report(run: Run, seed: int) -> dict[str, object]:
    """The same for programs."""
    return {
        "seed": seed,
        "setting": asdict(run.setting),
        "requests": dict(run.load.answers),
        "ticks": [{field.name: getattr(tick, field.name) for field in fields(tick)} for tick in run.ticks],
        "violations": [{"kind": kind, "what": what} for kind, what in run.wrong],
        "summary": summary(run),
    }


def _deck(names: Sequence[str], dice: Random, ticks: int | None) -> Iterator[str]:
    """Faults in an order that is drawn: all once, then all again."""
    dealt = 0
    while ticks is None or dealt < ticks:
        deck = list(names)
        dice.shuffle(deck)
        yield from deck[: None if ticks is None else ticks - dealt]
        dealt += len(deck)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Where journal and logs are written."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="admission-chaos-") as directory:
        yield Path(directory)


def _say(text: str) -> None:
    print(text, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Real server processes share a pool while everything around breaks."
    )
    parser.add_argument("--seconds", type=float, default=90.0, help="no fault begins later (%(default)s)")
    parser.add_argument("--ticks", type=int, help="faults, instead of --seconds")
    parser.add_argument("--faults", type=_names, default=tuple(FAULTS), help=f"some of {','.join(FAULTS)}")
    parser.add_argument("--seed", type=int, help="to repeat a run; printed at the start")
    parser.add_argument("--processes", type=int, default=4, help="server processes (%(default)s)")
    parser.add_argument("--limit", type=int, default=8, help="slots of the pool (%(default)s)")
    parser.add_argument("--lease", type=float, default=2.0, help="seconds (%(default)s)")
    parser.add_argument("--on-outage", choices=("degrade", "open", "closed"), default="degrade")
    parser.add_argument("--kind", choices=("valkey", "redis"), default="valkey", help="of server (%(default)s)")
    parser.add_argument("--broken", choices=sorted(BROKEN), default="", help="a deliberately broken build")
    parser.add_argument("--brief", action="store_true", help="end after the first violation")
    parser.add_argument("--keep", type=Path, help="a new directory for the journal and the logs of the servers")
    parser.add_argument("--json", action="store_true", help="the whole report, for programs")
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
