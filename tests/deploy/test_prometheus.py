"""The rules for Prometheus: valid, each alert tried, explained, and made of metrics that the server has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.processes import ROOT, run

FOLDER = ROOT / "deploy/prometheus"
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((FOLDER / "alerting_rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
# of the supervisor's page, and of Prometheus itself
_OTHER_METRICS = {
    *("alignserve_worker_up", "alignserve_worker_restarts_total", "alignserve_worker_hangs_total"),
    *("up", "ALERTS"),
}


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
