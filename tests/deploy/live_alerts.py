"""Runs the shipped rules in a real Prometheus that scrapes failing servers: which alerts fire, and when?

python -m tests.deploy.live_alerts [--record]

Each scene has its own namespace, and all run at the same time. Time is compressed: rules, timeouts and stalls
take a thirtieth of their real duration, so that an hour lasts two minutes. `--record` writes the series of
each scene to `recorded.yml`, as input of `promtool test rules` with the shipped rules, one sample per minute.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.prometheus import SCRAPE_SECONDS, Prometheus, programs, running_prometheus
from tests.deploy.scenes import MINUTE, SCENES, SPEEDUP, Scene, Stage
from tests.load.report import table
from tests.processes import ROOT

RECORDED = Path(__file__).parent / "recorded.yml"

_PLAY_MINUTES = 45
_EMPTY_MINUTES = 12  # at the end, when nothing is scraped any longer


@dataclass(frozen=True)
class Firing:
    """An alert in a namespace, and when it started and stopped firing; None if it still fired at the end."""

    namespace: str
    alert: str
    began: float
    ended: float | None


async def play(prometheus: Prometheus, stages: Sequence[Stage], scenes: Sequence[Scene]) -> list[Firing]:
    """Plays all scenes concurrently, then removes all targets; returns the alerts that fired."""
    began = time.time()
    playing = [asyncio.ensure_future(scene.play(stage)) for scene, stage in zip(scenes, stages, strict=True)]
    try:
        await asyncio.sleep(_PLAY_MINUTES * MINUTE)
        for failed in (each for each in playing if each.done()):
            failed.result()
        over = time.time()
    finally:
        for each in playing:
            each.cancel()
        await asyncio.wait(playing)
    for stage in stages:
        stage.end = over
        stage.tell()
        stage.note("vanishes")
        for replica in stage.replicas:
            replica.kill()
    await asyncio.sleep(_EMPTY_MINUTES * MINUTE)
    return firings(prometheus, began, time.time())


def firings(prometheus: Prometheus, start: float, end: float) -> list[Firing]:
    """Returns the alerts that fired in an interval, once per namespace, in order of their start."""
    expr = 'max by (namespace, alertname) (ALERTS{alertstate="firing"})'
    found = []
    for series in prometheus.query_range(expr, start, end, SCRAPE_SECONDS):
        moments = [float(moment) for moment, _ in series["values"]]
        ended = None if end - moments[-1] < 3 * SCRAPE_SECONDS else moments[-1]
        metric = series["metric"]
        found.append(Firing(metric.get("namespace", ""), metric["alertname"], moments[0], ended))
    return sorted(found, key=lambda firing: firing.began)


def timeline(scenes: Sequence[Scene], stages: Sequence[Stage], found: Sequence[Firing]) -> str:
    """Returns a table of each scene's events and alerts, in minutes of the scene."""
    rows = []
    for scene, stage in zip(scenes, stages, strict=True):
        fired = [
            firing for firing in found if firing.namespace == stage.namespace and firing.began <= stage.end
        ]
        first = stage.began
        happened = "; ".join(f"{event} {_minutes(moment - first)}" for moment, event in stage.events[:-1])
        story = f"{scene.about} {happened[:1].upper()}{happened[1:]}".strip()
        alerts = "; ".join(
            f"{firing.alert.removeprefix('Alignserve')} {_minutes(firing.began - first)}"
            + (
                ""
                if firing.ended is None or firing.ended > stage.end
                else f" to {_minutes(firing.ended - first)}"
            )
            for firing in fired
        )
        rows.append([scene.name, story, alerts or "none"])
    absent = [firing for firing in found if firing.alert == "AlignserveAbsent"]
    over = stages[0].end
    rows.append(
        [
            "all",
            "Finally, Prometheus has no targets.",
            "; ".join(f"Absent {_minutes(firing.began - over)}" for firing in absent) or "none",
        ]
    )
    return table(["namespace", "what happens", "alerts, minutes from the start"], rows)


def surprises(scenes: Sequence[Scene], stages: Sequence[Stage], found: Sequence[Firing]) -> list[str]:
    """Returns the namespaces in which alerts differ from those expected."""
    problems = []
    for scene, stage in zip(scenes, stages, strict=True):
        fired = {f.alert for f in found if f.namespace == stage.namespace and f.began <= stage.end}
        if fired != scene.alerts:
            problems.append(f"{scene.name}: {sorted(fired)} instead of {sorted(scene.alerts)}")
    if not any(firing.alert == "AlignserveAbsent" for firing in found):
        problems.append("AlignserveAbsent did not fire")
    return problems


def _minutes(seconds: float) -> str:
    return f"{seconds / MINUTE:.0f} min"


def recorded(
    prometheus: Prometheus, scene: Scene, stage: Stage, neighbour: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """Returns a case for promtool: the series that the rules query, and the alerts that must fire."""
    series = _recorded_series(prometheus, stage, sorted(_asked_metrics()))
    fired = 'group by (alertname) (max_over_time(ALERTS{alertstate="firing"}[2h]))'
    return {
        "name": f"{scene.name}: {scene.about}",
        "interval": "1m",
        "input_series": [*series, *neighbour],
        "promql_expr_test": [
            {
                "expr": fired,
                "eval_time": f"{stage.minutes - 1}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(scene.alerts)
                ],
            }
        ],
    }


def _recorded_series(prometheus: Prometheus, stage: Stage, metrics: Sequence[str]) -> list[dict[str, str]]:
    """Returns the series of a namespace as promtool's input, one sample per minute."""
    start = stage.began
    moments = [start + number * MINUTE for number in range(stage.minutes)]
    series = []
    for metric in metrics:
        selector = f'{metric}{{namespace="{stage.namespace}"}}'
        for found in prometheus.query_range(selector, moments[0], moments[-1], MINUTE):
            values = {round(float(moment) - start, 1): value for moment, value in found["values"]}
            samples = [values.get(round(moment - start, 1)) for moment in moments]
            if _is_telling(found["metric"], samples):
                series.append({"series": _notation(metric, found["metric"]), "values": _packed(samples)})
    return series


def _is_telling(labels: Mapping[str, str], samples: Sequence[str | None]) -> bool:
    """Returns whether a series affects the rules; one with only zeros adds nothing to a sum."""
    if labels["__name__"] == "grpc_server_handling_seconds_bucket":
        return labels["le"] == "0.5"  # the only bucket in the rules; slow calls leave it at 0
    return any(float(sample or 0) for sample in samples)


def _asked_metrics() -> set[str]:
    """Returns the names of the metrics that recording and alerting rules query."""
    rules = ROOT / "deploy/prometheus"
    text = "".join((rules / f"{kind}_rules.yml").read_text() for kind in ("recording", "alerting"))
    asked = set(re.findall(r"(?<![\w:])((?:alignserve|grpc_server|process)_\w+)(?=[\[{) ])", text))
    return {name for name in asked if not name.startswith("alignserve_slo")} | {"up"}


def _notation(metric: str, labels: dict[str, str]) -> str:
    kept = {name: value for name, value in labels.items() if name != "__name__"}
    if "instance" in kept:
        kept["instance"] = kept["pod"] + ":9464"  # replaces the free port
    return metric + "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(kept.items())) + "}"


def _packed(samples: Sequence[str | None]) -> str:
    """Returns samples in promtool's notation: `1x3` is four times 1, `_` a scrape without the series."""
    packed = []
    short = ("_" if sample is None else f"{float(sample):.12g}" for sample in samples)
    for value, same in itertools.groupby(short):
        length = len(list(same))
        if value == "_":
            packed.append(f"_x{length}" if length > 1 else "_")
        else:
            packed.append(f"{value}x{length - 1}" if length > 1 else value)
    return " ".join(packed)


@contextmanager
def _theatre(folder: Path, place: Path) -> Iterator[tuple[Prometheus, list[Stage]]]:
    """Runs Prometheus, and yields it with a stage per scene."""
    targets = place / "targets"
    targets.mkdir()
    stages = [Stage(scene.name, targets / f"{scene.name}.json") for scene in SCENES]
    config = {"file_sd_configs": [{"files": [f"{targets}/*.json"], "refresh_interval": "1s"}]}
    with running_prometheus(folder, config, place, speedup=SPEEDUP) as prometheus:
        yield prometheus, stages


def main() -> int:
    """Plays the scenes, prints the alerts that fired, and returns 0 if they are those expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.live_alerts", description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.relative_to(ROOT)}")
    parser.add_argument("--only", action="append", default=[], metavar="SCENE", help="play only these scenes")
    arguments = parser.parse_args()
    if arguments.only:
        SCENES[:] = [scene for scene in SCENES if scene.name in arguments.only]
    with tempfile.TemporaryDirectory() as name:
        if (found := programs(Path(name))) is None:
            raise SystemExit("prometheus is not installed, and Debian's package cannot be fetched")
        with _theatre(found, Path(name)) as (prometheus, stages):
            fired = asyncio.run(play(prometheus, stages, SCENES))
            print(timeline(SCENES, stages, fired))
            if arguments.record:
                neighbour = _recorded_series(prometheus, stages[0], ("alignserve_state", "up"))
                cases = [
                    recorded(prometheus, scene, stage, neighbour if stage is not stages[0] else ())
                    for scene, stage in zip(SCENES, stages, strict=True)
                ]
                _write(cases)
    for problem in (problems := surprises(SCENES, stages, fired)):
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _write(cases: Sequence[dict[str, Any]]) -> None:
    rules = [f"../../deploy/prometheus/{kind}_rules.yml" for kind in ("recording", "alerting")]
    head = "# Series of real servers, one sample per minute: python -m tests.deploy.live_alerts --record\n"
    tests = {"rule_files": rules, "evaluation_interval": "1m", "tests": list(cases)}
    RECORDED.write_text(head + yaml.safe_dump(tests, sort_keys=False, width=1_000_000))


if __name__ == "__main__":
    raise SystemExit(main())
