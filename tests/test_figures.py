"""Every metric that the console, the dashboard and the alerts name is one that the service exposes, with its labels."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from app import telemetry

ROOT = Path(__file__).parent.parent
DASHBOARD, ALERTS = ROOT / "docs/grafana/holdfast.json", ROOT / "docs/grafana/alerts.yml"
SUFFIXES = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_count", "_sum")}


def exposed() -> dict[str, set[str]]:
    """Name every sample of ours, and the labels it has."""
    found = {}
    for metric in vars(telemetry).values():
        for kind, suffixes in SUFFIXES.items():
            if isinstance(metric, kind):
                [described] = metric.describe()
                for suffix in suffixes:
                    extra = {"le"} if suffix == "_bucket" else set()
                    found[described.name + suffix] = {*metric._labelnames, *extra}
    return found


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    alerts = yaml.safe_load(ALERTS.read_text())
    told = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return told + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_what_there_is(expression: str) -> None:
    known = exposed()
    used = re.findall(r"(holdfast_\w+)(?:\{([^}]*)\})?", expression)
    assert used
    for name, inside in used:
        assert name in known
        labels = set(re.findall(r"(\w+)[=!]~?\"", inside)) - {"job"}  # which Prometheus adds
        assert labels <= known[name], name
    by = {label.strip() for told in re.findall(r"by \(([^)]*)\)", expression) for label in told.split(",")}
    assert by <= set().union(*(known[name] for name, _ in used))
    assert expression.count("(") == expression.count(")")


def test_the_page_names_what_there_is() -> None:
    text = (ROOT / "app/pages/static/ops/figures.js").read_text()
    names = set(re.findall(r"\"(holdfast_\w+)\"", text))
    families = {name for metric in exposed() for name in (metric, re.sub("_(bucket|count|sum)$", "", metric))}
    assert len(names) > 5
    assert names <= families


def test_the_dashboard_can_be_imported_anywhere() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    sources: list[Any] = [panel["datasource"]["uid"] for panel in dashboard["panels"]]
    assert set(sources) == {"${datasource}"}


def test_every_alert_says_what_to_do() -> None:
    operations = (ROOT / "docs/operations.md").read_text()
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            assert f"### {rule['alert']}" in operations, rule["alert"]
            assert rule["annotations"]["summary"]
