"""Real traffic under overload: what a ticket is told on arrival is right in the median."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest

from admission.core import Core
from admission.policy.limit import FixedLimit
from admission.types import DEFAULT_CLASSES, PriorityClass
from tests.scenarios.simulation import Request, Simulation, azure_conversation, lmsys_arena, slots_for

ONE = (PriorityClass(name="only"),)
SHARED = (PriorityClass(name="high", guaranteed=0.8), PriorityClass(name="low", guaranteed=0.2))


@pytest.mark.parametrize("trace", [lmsys_arena, azure_conversation])
@pytest.mark.parametrize("overload", [1.2, 1.5, 2.5])
@pytest.mark.parametrize("classes", [ONE, DEFAULT_CLASSES, SHARED], ids=["one", "default", "shared"])
@pytest.mark.parametrize("patience", [math.inf, 30.0])
def test_the_median_prediction_is_within_the_band(
    trace: Callable[[], list[Request]], overload: float, classes: tuple[PriorityClass, ...], patience: float
) -> None:
    """Predicted ÷ actual: 0.8 … 1.25, with fair queueing by tokens, push-out, time-outs and shares going on."""
    requests = trace()
    core = Core(limit=FixedLimit(slots_for(requests, overload)), classes=classes, max_queue_size=100)
    simulation = Simulation(core)
    simulation.run(
        replace(request, rank=number % len(classes), patience=patience) for number, request in enumerate(requests)
    )
    ratios = [
        entry.predicted / (entry.granted_at - entry.arrival)
        for _, entry in simulation.granted
        if entry.position and entry.predicted is not None and entry.granted_at > entry.arrival
    ]
    assert len(ratios) > len(requests) / 4
    assert 0.8 <= median(ratios) <= 1.25
