"""The rules for Prometheus: valid, each alert tried, explained, and made of metrics that the server has."""

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
_OF_NO_POD = {"AlignserveAbsent", "AlignserveVanished"}  # since there is none any more
# of the supervisor's page, and of Prometheus itself
_OTHER_METRICS = {
    *("alignserve_worker_up", "alignserve_worker_restarts_total", "alignserve_worker_hangs_total"),
    *("up", "ALERTS"),
}
# The last ones are of Prometheus and of every process, of a supervisor, of TLS.
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
    """As they lie in the folder."""
    done = run(promtool, *command.split(), cwd=FOLDER)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.contract
@pytest.mark.timeout(300)
def test_every_alert_fires_when_it_should_and_only_then(promtool: Path) -> None:
    """As tests.yml says."""
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yml"], cwd=FOLDER, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.contract
def test_alerts_fire_on_what_servers_have_shown(promtool: Path) -> None:
    """Of series recorded from real servers in trouble, each scene fires its alerts and no others."""
    done = run(promtool, "test", "rules", RECORDED.name, cwd=RECORDED.parent)

    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_fed_what_servers_show() -> None:
    """By names and labels that a recording has, with values of `state`, `outcome` and the like that occur."""
    recorded = {_shape(name) for name in recorded_series.read().series}
    fed = {
        _shape(series["series"])
        for case in yaml.safe_load((FOLDER / "tests.yml").read_text())["tests"]
        for series in case["input_series"]
    }

    assert {series for series in fed if series.partition("{")[0] not in _NOT_RECORDED} - recorded == set()


@pytest.mark.parametrize("file", ["recording_rules.yml", "alerting_rules.yml"])
def test_sums_keep_namespaces_and_clusters_apart(file: str) -> None:
    """Or a failing staging would page as production, and a large healthy one hide a small failing one."""
    text = (FOLDER / file).read_text()
    rules = [rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]

    grouped = {labels for expr in rules for labels in re.findall(r"(?:by|on) \(([^)]*)\)", expr)}

    assert grouped
    assert all(labels.startswith("cluster, namespace, job") for labels in grouped)


@pytest.mark.parametrize("alert", _alerting_rules(), ids=lambda rule: rule["alert"])
def test_a_summary_says_where(alert: dict[str, Any]) -> None:
    """By pod or instance, or by the job and what is worst in it, and by the namespace where there is one."""
    annotations = alert["annotations"]
    text = annotations["summary"] + annotations.get("description", "")

    assert alert["alert"] == "AlignserveAbsent" or "$labels.namespace" in annotations["summary"]
    assert alert["alert"] in _OF_NO_POD or "pod" in text


@pytest.mark.parametrize("outcome", [0, 1], ids=["silent", "fires"])
def test_every_alert_is_tried_both_ways(outcome: int) -> None:
    """A case in which it fires, and one in which it does not."""
    tried = {
        match[1]
        for case in yaml.safe_load((FOLDER / "tests.yml").read_text())["tests"]
        for expected in case["promql_expr_test"]
        if expected["exp_samples"][0]["value"] == outcome
        and (match := re.search(r'alertname="(\w+)"', expected["expr"]))
    }

    assert tried == set(ALERTS)


def test_every_alert_has_a_runbook() -> None:
    """A paragraph under its name, to which the alert links."""
    readme = (FOLDER / "README.md").read_text()
    rules = (FOLDER / "alerting_rules.yml").read_text()

    for alert in ALERTS:
        assert f"### {alert}\n\n" in readme
        assert f"README.md#{alert.lower()}" in rules


@pytest.mark.parametrize("file", ["recording_rules.yml", "alerting_rules.yml"])
def test_rules_ask_for_metrics_that_exist(file: str, metric_names: set[str]) -> None:
    """By the names under which the server shows them."""
    text = (FOLDER / file).read_text()
    recorded = set(re.findall(r"record: (\S+)", (FOLDER / "recording_rules.yml").read_text()))
    asked = set(re.findall(r"(?<![\w:])((?:alignserve|grpc_server|process)_\w+)(?=[\[{) ])", text))

    assert asked - metric_names - recorded - _OTHER_METRICS == set()


def _shape(series: str) -> str:
    """Returns a series with its labels in order, without those of its target."""
    name, _, labels = series.rstrip("}").partition("{")
    pairs = sorted(re.findall(r'(\w+)="([^"]*)"', labels))
    kept = [f'{label}="{_bound(value)}"' for label, value in pairs if label not in _OF_THE_TARGET]
    return name + "{" + ",".join(kept) + "}"


def _bound(value: str) -> str:
    """Returns a value, and bounds of buckets all in one way."""
    return re.sub(r"^(\d+)\.0$", r"\1", value)
