"""The rules for Prometheus: valid, every alert tested and explained, all on metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import recorded_series
from tests.deploy.live_alerts import RECORDED
from tests.processes import ROOT, run

FOLDER = ROOT / "deploy/prometheus"


def _alerting_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerting_rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = [rule["alert"] for rule in _alerting_rules()]
_OF_NO_POD = {"AlignserveAbsent", "AlignserveVanished"}  # there is no pod left to name
# on the supervisor's page, and from Prometheus itself
_OTHER_METRICS = {
    *("alignserve_worker_up", "alignserve_worker_restarts_total", "alignserve_worker_hangs_total"),
    *("up", "ALERTS"),
}
# The last ones come from Prometheus and every process, from a supervisor, and from TLS.
_NOT_RECORDED = {
    *("up", "process_start_time_seconds", "alignserve_worker_up", "alignserve_worker_hangs_total"),
    "alignserve_certificate_expiry_timestamp_seconds",
}
_OF_THE_TARGET = ("job", "namespace", "cluster", "instance", "pod", "worker")


@pytest.mark.contract
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules recording_rules.yml alerting_rules.yml"]
)
def test_promtool_accepts_the_files(promtool: Path, command: str) -> None:
    """The files are valid as shipped."""
    done = run(promtool, *command.split(), cwd=FOLDER)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.contract
@pytest.mark.timeout(300)
def test_every_alert_fires_when_it_should_and_only_then(promtool: Path) -> None:
    """The cases in tests.yml pass."""
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yml"], cwd=FOLDER, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.contract
def test_alerts_fire_on_recorded_series(promtool: Path) -> None:
    """On series recorded from failing servers, each scene fires exactly its alerts."""
    done = run(promtool, "test", "rules", RECORDED.name, cwd=RECORDED.parent)

    assert done.returncode == 0, done.stdout + done.stderr


def test_inputs_of_the_cases_are_series_of_real_servers() -> None:
    """Their names, labels, and values of `state`, `outcome` and so on occur in a recording."""
    recorded = {_shape(name) for name in recorded_series.read().series}
    fed = {
        _shape(series["series"])
        for case in yaml.safe_load((FOLDER / "tests.yml").read_text())["tests"]
        for series in case["input_series"]
    }

    assert {series for series in fed if series.partition("{")[0] not in _NOT_RECORDED} - recorded == set()


@pytest.mark.parametrize("file", ["recording_rules.yml", "alerting_rules.yml"])
def test_sums_keep_namespaces_and_clusters_apart(file: str) -> None:
    """Otherwise failing staging would page as production, or a large healthy job hide a small failing one."""
    text = (FOLDER / file).read_text()
    rules = [rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]

    grouped = {labels for expr in rules for labels in re.findall(r"(?:by|on) \(([^)]*)\)", expr)}

    assert grouped
    assert all(labels.startswith("cluster, namespace, job") for labels in grouped)


@pytest.mark.parametrize("alert", _alerting_rules(), ids=lambda rule: rule["alert"])
def test_a_summary_says_where(alert: dict[str, Any]) -> None:
    """It names pod or instance, or the job and its worst value, and the namespace if there is one."""
    annotations = alert["annotations"]
    text = annotations["summary"] + annotations.get("description", "")

    assert alert["alert"] == "AlignserveAbsent" or "$labels.namespace" in annotations["summary"]
    assert alert["alert"] in _OF_NO_POD or "pod" in text


@pytest.mark.parametrize("outcome", [0, 1], ids=["silent", "fires"])
def test_every_alert_is_tested_both_ways(outcome: int) -> None:
    """There is a case in which it fires, and one in which it does not."""
    tried = {
        match[1]
        for case in yaml.safe_load((FOLDER / "tests.yml").read_text())["tests"]
        for expected in case["promql_expr_test"]
        if expected["exp_samples"][0]["value"] == outcome
        and (match := re.search(r'alertname="(\w+)"', expected["expr"]))
    }

    assert tried == set(ALERTS)


def test_every_alert_has_a_runbook() -> None:
    """The alert links to a section with its name."""
    readme = (FOLDER / "README.md").read_text()
    rules = (FOLDER / "alerting_rules.yml").read_text()

    for alert in ALERTS:
        assert f"### {alert}\n\n" in readme
        assert f"README.md#{alert.lower()}" in rules


@pytest.mark.parametrize("file", ["recording_rules.yml", "alerting_rules.yml"])
def test_rules_query_metrics_that_exist(file: str, metric_names: set[str]) -> None:
    """Rules use the names of the server's metrics."""
    text = (FOLDER / file).read_text()
    recorded = set(re.findall(r"record: (\S+)", (FOLDER / "recording_rules.yml").read_text()))
    asked = set(re.findall(r"(?<![\w:])((?:alignserve|grpc_server|process)_\w+)(?=[\[{) ])", text))

    assert asked - metric_names - recorded - _OTHER_METRICS == set()


def _shape(series: str) -> str:
    """Returns a series with sorted labels, without those of its target."""
    name, _, labels = series.rstrip("}").partition("{")
    pairs = sorted(re.findall(r'(\w+)="([^"]*)"', labels))
    kept = [f'{label}="{_bound(value)}"' for label, value in pairs if label not in _OF_THE_TARGET]
    return name + "{" + ",".join(kept) + "}"


def _bound(value: str) -> str:
    """Returns a value, with bucket bounds in one notation."""
    return re.sub(r"^(\d+)\.0$", r"\1", value)
