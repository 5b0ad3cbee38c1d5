"""The dashboards for Grafana: every query finds data, and every metric of the server is on a panel."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.generator.__main__ import FOLDER, files
from deploy.grafana.generator.panels import RUNBOOKS
from tests.deploy.grafana import (
    DASHBOARDS,
    Question,
    filled_in,
    loaded_servers,
    panels,
    questions,
    tls_flags,
)
from tests.deploy.prometheus import PLACE, Prometheus, Series
from tests.deploy.test_prometheus import ALERTS
from tests.processes import ROOT, wait_until

PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}") for name in DASHBOARDS for panel in panels(name)
]
_NEEDS_GPU = ("alignserve_gpu_", "alignserve_cuda_")
QUESTIONS = [
    pytest.param(question, id=str(question))
    for question in questions()
    if not any(name in question.expr for name in _NEEDS_GPU)
]
_NAME = re.compile(r"(?<![\w$:])(?:(?:job|instance):)?(?:alignserve|grpc_server|process)_[\w:]+(?=[{ )\[])")


@pytest.fixture(scope="module")
def prometheus(prometheus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes a server that refuses many calls, one with workers, and an idle one with TLS."""
    place, fake = tmp_path_factory.mktemp("grafana"), ("--checkpoint", "fake")
    small = (*fake, "--max-queue-size", "4", "--max-client-batch-size", "4")
    called = {"align-0": small, "align-1": (*fake, "--workers", "2")}
    idle = {"align-2": (*fake, *tls_flags(place))}
    with loaded_servers(
        prometheus_folder, place, called, idle, wave_seconds=0.5, pause_seconds=1.5
    ) as running:
        yield running


@pytest.mark.long
@pytest.mark.contract
@pytest.mark.parametrize("question", QUESTIONS)
def test_every_query_finds_data(prometheus: Prometheus, question: Question) -> None:
    """It has a number and every label of its legend, for loaded servers with and without workers."""
    wait_until(lambda: _numbers(prometheus, question), 120)

    found = _numbers(prometheus, question)
    labels = set(re.findall(r"{{(\w+)}}", question.legend)) - {"le"}
    assert any(labels <= series["metric"].keys() for series in found)
    assert all("worker" not in series["metric"] for series in found)


@pytest.mark.long
@pytest.mark.contract
@pytest.mark.parametrize("name", DASHBOARDS)
def test_starts_are_marked_and_servers_can_be_chosen(prometheus: Prometheus, name: str) -> None:
    """The queries of annotations and menus find the servers."""
    starts, alerts = DASHBOARDS[name]["annotations"]["list"]
    menus = [choice["query"]["query"] for choice in DASHBOARDS[name]["templating"]["list"][1:]]
    chosen = [re.fullmatch(r"label_values\((.+), (\w+)\)", menu) for menu in menus]

    expected = {
        **{label: {value} for label, value in PLACE.items()},
        "job": {"alignserve"},
        "instance": {"align-0", "align-1", "align-2"},
    }

    def found() -> dict[str, set[str]]:
        return {match[2]: _values(prometheus, match[1], match[2]) for match in chosen if match}

    wait_until(lambda: found() == expected)  # a scrape may have taken too long
    wait_until(lambda: _values(prometheus, starts["target"]["expr"], "instance") == expected["instance"])
    assert prometheus.query(filled_in(alerts["target"]["expr"])) is not None


@pytest.mark.long
@pytest.mark.contract
def test_metrics_on_panels_are_those_of_the_server(prometheus: Prometheus, metric_names: set[str]) -> None:
    """Panels query only metrics that exist, and each metric of the server, also on a GPU, is on a panel."""
    exposed = prometheus.metric_names() | {name for name in metric_names if name.startswith(_NEEDS_GPU)}
    asked = {name for question in questions() for name in _NAME.findall(question.expr)}

    assert asked - exposed == set()
    own = {name for name in exposed if name.startswith(("alignserve_", "grpc_server_"))}
    assert {_family(name) for name in own} - {_family(name) for name in asked} == set()


def test_the_files_are_what_the_generator_writes() -> None:
    """After a change, run python -m deploy.grafana.generator."""
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == files()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_knows_every_field(name: str) -> None:
    """Its dashboard model keeps every field except those that the data source adds to annotations."""
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    shipped = {**DASHBOARDS[name], "annotations": {}}

    known = json.loads(JSONEncoder().encode(Dashboard.from_json(shipped)))

    assert list(_lost(shipped, known)) == []


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_explains_itself(panel: dict[str, Any]) -> None:
    """It says what a bad value means, its unit, and which servers it covers."""
    assert len(panel["description"]) > 50
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert all('job=~"$job"' in target["expr"] for target in panel["targets"])


def test_every_alert_has_a_panel_that_links_to_its_runbook() -> None:
    """An operator on call finds the graph of an alert, and from there the runbook."""
    links = {link["url"] for name in DASHBOARDS for panel in panels(name) for link in panel["links"]}

    assert links == {f"{RUNBOOKS}#{alert.lower()}" for alert in ALERTS}


def test_dashboards_link_to_each_other() -> None:
    """The links use the common tag, and keep the selected servers and time range."""
    for dashboard in DASHBOARDS.values():
        link = dashboard["links"][0]
        assert set(link["tags"]) <= set(dashboard["tags"])
        assert link["includeVars"]
        assert link["keepTime"]


def test_provisioned_files_agree() -> None:
    """Grafana looks for dashboards where the README mounts them, and knows the data source's type."""
    folder = ROOT / "deploy/grafana"
    provisioning = folder / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/alignserve.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]

    assert f"dashboards:{provider['options']['path']}" in (folder / "README.md").read_text()
    assert all(
        dashboard["templating"]["list"][0]["query"] == source["type"] for dashboard in DASHBOARDS.values()
    )


def _numbers(prometheus: Prometheus, question: Question) -> list[Series]:
    found = prometheus.query(filled_in(question.expr))
    return [series for series in found if not math.isnan(float(series["value"][1]))]


def _values(prometheus: Prometheus, expr: str, label: str) -> set[str]:
    return {series["metric"][label] for series in prometheus.query(filled_in(expr))}


def _family(name: str) -> str:
    return re.sub(r"_(bucket|count|sum)$", "", name)


def _lost(shipped: object, known: object, path: str = "") -> Iterator[str]:
    """Yields the paths of fields that are missing or different in the other value."""
    if isinstance(shipped, dict) and isinstance(known, dict):
        for key, value in shipped.items():
            yield from _lost(value, known.get(key), f"{path}.{key}")
    elif isinstance(shipped, list) and isinstance(known, list) and len(shipped) == len(known):
        for place, (value, other) in enumerate(zip(shipped, known, strict=True)):
            yield from _lost(value, other, f"{path}[{place}]")
    elif shipped != known:
        yield path
