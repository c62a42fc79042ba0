"""What the collectors of Prometheus metrics share: a table's row, and our histograms as samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import HistogramMetricFamily

from admission.types import HistogramSnapshot


@dataclass(frozen=True, slots=True)
class Series:
    """One number of what is watched, and what it is called."""

    name: str
    help: str
    read: Callable[[Any], Any]
    """What a snapshot says; None: there is no such number now, so there is no sample."""


def add_histogram(family: HistogramMetricFamily, labels: Sequence[str], seen: HistogramSnapshot) -> None:
    """One sample of a histogram, from our own."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip([*seen.bounds, math.inf], seen.counts, strict=True):
        total += count
        buckets.append(("+Inf" if math.isinf(bound) else str(float(bound)), total))
    family.add_metric(labels, buckets, seen.sum)
