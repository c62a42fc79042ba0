"""The command: `python -m tests.fuzz [--interleavings N] [--models N] [--seed S] [--core NAME]`."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from admission.controller import AdmissionController
from admission.core import Core
from tests.fuzz.broken import BROKEN
from tests.fuzz.controllers import ROUNDS, Totals, run_batch
from tests.fuzz.cores import interleave

KINDS = ("lost", "over-granted", "stuck", "late", "disorder", "unbounded", "model")
"""What can go wrong; "model" is any difference from the naive model."""

SHOWN = 3
"""Failures shown in full."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code: 0 when nothing went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Randomised cancel, grant, timeout and resize interleavings."
    )
    parser.add_argument("--interleavings", type=int, default=1_000_000, help="through the controller (%(default)s)")
    parser.add_argument("--models", type=int, help="of the core beside the naive model (a twentieth of the others)")
    parser.add_argument("--seed", type=int, help="to repeat a run; printed at the start")
    parser.add_argument("--core", choices=sorted(BROKEN), help="a deliberately broken one instead of the real one")
    options = parser.parse_args(arguments)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    models = options.interleavings // 20 if options.models is None else options.models
    core, controller = BROKEN[options.core] if options.core else (Core, AdmissionController)
    print(f"seed {seed}, {options.core or 'the real core'}", flush=True)
    run = Run()
    run.controllers(options.interleavings, seed, core, controller)
    run.models(models, seed, core)
    run.report()
    return 1 if run.failures else 0


class Run:
    """Counts what happened and what went wrong."""

    def __init__(self) -> None:
        self.totals = Totals()
        self.compared = 0
        self.failures: Counter[str] = Counter()
        self.began, self.cpu = time.monotonic(), time.process_time()

    def controllers(self, count: int, seed: int, core: type[Core], controller: type[AdmissionController]) -> None:
        """Whole callers on an event loop."""
        batches = -(-count // ROUNDS)
        for batch in range(batches):
            rounds = min(ROUNDS, count - batch * ROUNDS)
            action = partial(run_batch, seed, batch, self.totals, rounds, core, controller)
            self.attempt(f"batch {batch} of seed {seed}", action)
            if batches > 10 and (batch + 1) % (batches // 10) == 0:
                self.progress(f"{self.totals.interleavings:,} interleavings of callers on an event loop")

    def models(self, count: int, seed: int, core: type[Core]) -> None:
        """The core beside the model."""
        for number in range(count):
            action = partial(interleave, Random(f"{seed}:{number}"), core)
            self.attempt(f"model {number} of seed {seed}", action, "model")
            self.compared += 1
        self.progress(f"{self.compared:,} interleavings beside the naive model")

    def attempt(self, name: str, action: Callable[[], None], kind: str | None = None) -> None:
        """Do it, and note what is wrong with it."""
        try:
            action()
        except Exception as error:  # Whatever a broken pool raises is a finding.
            known = str(error).partition(":")[0]
            self.failures[kind or (known if known in KINDS else "disorder")] += 1
            if self.failures.total() <= SHOWN:
                print(f"FAILED {name}: {error!r}")
                traceback.print_exc(limit=-3)

    def progress(self, done: str) -> None:
        """One line now and then."""
        print(f"{time.monotonic() - self.began:6.0f} s  {done}, {self.failures.total()} failures", flush=True)

    def report(self) -> None:
        """The counts."""
        totals = self.totals
        print(
            f"{totals.interleavings:,} interleavings: {totals.granted:,} granted, {totals.cancelled:,} cancelled, "
            f"{totals.timed_out:,} timed out, {totals.refused:,} refused; {self.compared:,} compared with the model"
        )
        print(", ".join(f"{self.failures[kind]} {kind}" for kind in KINDS))
        print(f"{time.monotonic() - self.began:.0f} s, {time.process_time() - self.cpu:.0f} s of them on the CPU")


if __name__ == "__main__":
    sys.exit(main())
