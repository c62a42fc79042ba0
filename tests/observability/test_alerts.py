"""The alert rules ask for metrics that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pools import SHARED_POOL, FakeExecutor, FakePool
from prometheus_client import CollectorRegistry

from admission.observability.prometheus import PoolCollector

RULES = Path(__file__).parents[2] / "deploy" / "alerts.yml"


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def samples() -> dict[str, set[str]]:
    """Every sample's name, with the labels it may have; those of a scrape target are Prometheus' own."""
    registry = CollectorRegistry()
    registry.register(PoolCollector(FakePool(SHARED_POOL), executors=[FakeExecutor()]))
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
    return found


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_asks_for_what_is_exported(alert: dict[str, Any]) -> None:
    """Every metric and label of the expression exists; every alert says how bad it is and what it means."""
    known = samples()
    asked = set(re.findall(r"admission_\w+", alert["expr"]))
    assert asked
    assert asked <= known.keys()
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|=|!=)\s*\"", alert["expr"]))
    for group in re.findall(r"(?:by|on) \(([\w, ]+)\)", alert["expr"]):
        labels |= set(re.split(r",\s*", group))
    labels |= set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    assert labels <= set.union(*(known[name] for name in asked))
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    assert alert["annotations"]["summary"]


def test_alerts_have_names_of_their_own() -> None:
    """Two alerts of one name would be one in the pager."""
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names) >= 10
