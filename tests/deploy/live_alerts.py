"""The shipped rules in a real Prometheus that watches servers in trouble: which alert fires when?

python -m tests.deploy.live_alerts [--record]

Each scene is a namespace of its own, all at the same time. Time is compressed: rules, timeouts and stalls
take a thirtieth of what they take in life, so that an hour lasts two minutes. `--record` keeps the series of
each scene in `recorded.yml`, as the input of `promtool test rules` with the shipped rules, a sample a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import yaml
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.deploy.faulty_server import FAIL, HANG, HANG_FOR_A_WHILE
from tests.deploy.prometheus import Prometheus, programs, running_prometheus
from tests.load.report import table
from tests.processes import ROOT, free_port

RECORDED = Path(__file__).parent / "recorded.yml"

SPEEDUP = 30
_MINUTE = 60 / SPEEDUP  # in seconds
_PLAY_MINUTES = 45
_EMPTY_MINUTES = 12  # at the end, when nothing is scraped any more
_SCRAPE_SECONDS = 1.0
_PAUSE_SECONDS = 0.1  # of a caller between two calls
# As the settings are by default.
_SCALED = {
    "stall_timeout_seconds": 60 / SPEEDUP,
    "stall_exit_seconds": 300 / SPEEDUP,
    "watchdog_interval_seconds": 0.1,
    "text_cache_bytes": 0,  # not as by default: each call has to reach the device
}
_RECONNECTS = (("grpc.max_reconnect_backoff_ms", 500),)


class Replica:
    """A server of a scene, which can die and be started again at the same address."""

    def __init__(self, **told: Any) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        addresses = {
            "listen": f"127.0.0.1:{self.port}",
            "metrics_listen": f"127.0.0.1:{self.metrics_port}",
            "drain_delay_seconds": 0,
        }
        self._told = {**told, "settings": {**_SCALED, **addresses, **told.get("settings", {})}}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, unless it runs."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.deploy.faulty_server", json.dumps(self._told)],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
            )

    def answers(self, path: str) -> bool:
        """Says whether its page for probes answers 200."""
        try:
            with urlopen(f"http://127.0.0.1:{self.metrics_port}/{path}", timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def ended(self) -> int:
        """Waits until it ends by itself, and returns its exit code."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait)


@dataclass
class Stage:
    """Where a scene plays: its replicas, their callers, and what happened when."""

    namespace: str
    targets: Path
    replicas: list[Replica] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    began: float = 0.0
    end: float = 0.0

    def note(self, event: str) -> None:
        """Remembers that something happens now."""
        self.begin()
        self.events.append((time.time(), event))

    def scrape(self, *ports: int) -> None:
        """Tells Prometheus what to scrape in this namespace from now on."""
        groups = [
            {
                "targets": [f"127.0.0.1:{port}"],
                "labels": {"namespace": self.namespace, "pod": f"{self.namespace}-{number}"},
            }
            for number, port in enumerate(ports)
        ]
        draft = self.targets.with_suffix(".draft")
        draft.write_text(json.dumps(groups))
        draft.replace(self.targets)

    async def replica(self, **told: Any) -> Replica:
        """Starts one more, which is scraped from now on."""
        replica = Replica(**told)
        self.replicas.append(replica)
        replica.start()
        while not await asyncio.to_thread(replica.answers, "healthz"):
            await asyncio.sleep(_PAUSE_SECONDS)
        self.scrape(*(each.metrics_port for each in self.replicas))
        return replica

    async def ready(self, replica: Replica) -> None:
        """Waits until a replica is ready for calls."""
        while not await asyncio.to_thread(replica.answers, "readyz"):
            await asyncio.sleep(_PAUSE_SECONDS)
        self.begin()

    def begin(self) -> None:
        """Remembers this as the time at which the scene begins, unless it has begun."""
        self.began = self.began or time.time()


Play = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """What happens in a namespace, and the alerts that have to fire there, and no others."""

    play: Play
    alerts: frozenset[str]

    @property
    def name(self) -> str:
        return self.play.__name__.strip("_").replace("_", "-")

    @property
    def about(self) -> str:
        return (self.play.__doc__ or "").strip()


SCENES: list[Scene] = []


def _scene(*alerts: str) -> Callable[[Play], Play]:
    def add(play: Play) -> Play:
        SCENES.append(Scene(play, frozenset(f"Alignserve{alert}" for alert in alerts)))
        return play

    return add


@_scene()
async def _production(stage: Stage) -> None:
    """Two replicas serve single texts all the time."""
    replicas = [await stage.replica(batch_seconds=0.02), await stage.replica(batch_seconds=0.02)]
    await asyncio.gather(*(stage.ready(each) for each in replicas))
    await asyncio.gather(*(_keep_calling(each, "a photo") for each in replicas))


@_scene("ErrorBudgetBurn", "ItemsFailing")
async def _staging(stage: Stage) -> None:
    """Of the same job in another namespace, every fourth call fails."""
    replica = await stage.replica()
    await stage.ready(replica)
    stage.note("fails")
    await _keep_calling(replica, "a photo", "a cat", "a dog", FAIL)


@_scene("LatencyBudgetBurn")
async def _slow(stage: Stage) -> None:
    """A single text takes 0.7 s."""
    replica = await stage.replica(batch_seconds=0.7)
    await stage.ready(replica)
    stage.note("is slow")
    await _keep_calling(replica, "a photo")


@_scene()
async def _bulk(stage: Stage) -> None:
    """A job of priority bulk embeds 32 texts a call, which takes 0.7 s as well."""
    replica = await stage.replica(batch_seconds=0.7)
    await stage.ready(replica)
    await _keep_calling(replica, "a photo", items=32, priority="bulk", pause=0.3)


@_scene("NotReady")
async def _loading(stage: Stage) -> None:
    """A first start takes 15 minutes, then it serves."""
    replica = await stage.replica(load_seconds=15 * _MINUTE)
    stage.note("starts")
    await stage.ready(replica)
    stage.note("serves")
    await _keep_calling(replica, "a photo")


@_scene("NotReady")
async def _never_ready(stage: Stage) -> None:
    """A start that never ends is killed and begun again every 10 minutes, as by a startup probe."""
    replica = await stage.replica(load_seconds=1e6)
    stage.note("starts")
    while True:
        await asyncio.sleep(10 * _MINUTE)
        replica.kill()
        replica.start()


@_scene("Stalled", "ErrorBudgetBurn")
async def _stalled_called(stage: Stage) -> None:
    """The device hangs, callers go on; after 5 minutes the process ends with code 3 and is started again."""
    replica = await stage.replica()
    await stage.ready(replica)
    calling = asyncio.ensure_future(_keep_calling(replica, "a photo"))
    await asyncio.sleep(5 * _MINUTE)
    stage.note("hangs")
    hanging = asyncio.ensure_future(_call(replica, HANG))
    code = await replica.ended()
    stage.note(f"ends with {code}")
    replica.start()
    await asyncio.gather(calling, hanging)


@_scene("Stalled", "ErrorBudgetBurn", "LatencyBudgetBurn")
async def _stalled_idle(stage: Stage) -> None:
    """The device hangs at one call, nobody calls any more, and stall_exit_seconds is 0."""
    replica = await stage.replica(settings={"stall_exit_seconds": 0})
    await stage.ready(replica)
    await asyncio.sleep(2 * _MINUTE)
    stage.note("hangs")
    await _call(replica, HANG)


@_scene("Stalled", "ErrorBudgetBurn", "LatencyBudgetBurn", "ItemsFailing")
async def _stalling_again_and_again(stage: Stage) -> None:
    """The device hangs for 100 s of every 2 minutes, so that no stall lasts for a whole minute."""
    replica = await stage.replica()
    await stage.ready(replica)
    stage.note("hangs")
    while True:
        await _call(replica, HANG_FOR_A_WHILE.format(round(10 * 100 / SPEEDUP)))
        await asyncio.sleep(20 / SPEEDUP)


@_scene("TargetDown")
async def _dead(stage: Stage) -> None:
    """A server is killed and not started again."""
    replica = await stage.replica()
    await stage.ready(replica)
    await asyncio.sleep(2 * _MINUTE)
    stage.note("dies")
    replica.kill()


@_scene("Vanished")
async def _vanished(stage: Stage) -> None:
    """A server is stopped, and Prometheus no longer told of it, as when a deployment is scaled to 0."""
    replica = await stage.replica()
    await stage.ready(replica)
    await asyncio.sleep(3 * _MINUTE)
    stage.note("vanishes")
    stage.scrape()
    await asyncio.sleep(4 * _MINUTE)  # until Prometheus has taken note
    replica.kill()


@_scene("Restarting")
async def _restarting(stage: Stage) -> None:
    """A server dies every 5 minutes, and is started again at once."""
    replica = await stage.replica()
    await stage.ready(replica)
    stage.note("first dies")
    while True:
        replica.kill()
        replica.start()
        await asyncio.sleep(5 * _MINUTE)


@_scene("Refusing")
async def _refusing(stage: Stage) -> None:
    """Twelve callers, and room for four."""
    replica = await stage.replica(
        batch_seconds=0.05, settings={"max_queue_size": 4, "max_client_batch_size": 4}
    )
    await stage.ready(replica)
    stage.note("is full")
    await asyncio.gather(*(_keep_calling(replica, "a photo") for _ in range(12)))


@_scene("NotReady")
async def _something_else(stage: Stage) -> None:
    """What answers at the metrics port is another program."""
    folder = stage.targets.with_suffix(".page")
    folder.mkdir()
    (folder / "metrics").write_text("other_metric 1\n")
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stage.note("starts")
    stage.scrape(port)
    try:
        await server.wait()
    finally:
        with suppress(ProcessLookupError):
            server.kill()


async def _call(replica: Replica, text: str) -> str:
    """Embeds a text, and returns the code that the call ends with."""
    async with _stub(replica) as stub:
        return await _send(stub, [text], "interactive")


async def _keep_calling(
    replica: Replica,
    *texts: str,
    items: int = 1,
    priority: str = "interactive",
    pause: float = _PAUSE_SECONDS,
) -> None:
    """Sends calls until it is cancelled, each with something new, as equal texts would share a place."""
    async with _stub(replica) as stub:
        for number, text in enumerate(itertools.cycle(texts)):
            called = (
                [text] if text == FAIL else [f"{text} {number} {item} {id(stub)}" for item in range(items)]
            )
            await _send(stub, called, priority)
            await asyncio.sleep(pause)


@asynccontextmanager
async def _stub(replica: Replica) -> AsyncIterator[pb_grpc.AlignServiceAsyncStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}", options=_RECONNECTS) as channel:
        yield pb_grpc.AlignServiceStub(channel)


async def _send(stub: pb_grpc.AlignServiceAsyncStub, texts: Sequence[str], priority: str) -> str:
    try:
        await stub.EmbedText(
            pb.EmbedTextRequest(texts=texts), metadata=(("alignserve-priority", priority),), timeout=30
        )
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@dataclass(frozen=True)
class Firing:
    """An alert in a namespace, and when it began and ended to fire; None if it still did at the end."""

    namespace: str
    alert: str
    began: float
    ended: float | None


async def play(prometheus: Prometheus, stages: Sequence[Stage], scenes: Sequence[Scene]) -> list[Firing]:
    """Plays all scenes at once, then lets all targets vanish; returns what fired."""
    began = time.time()
    playing = [asyncio.ensure_future(scene.play(stage)) for scene, stage in zip(scenes, stages, strict=True)]
    try:
        await asyncio.sleep(_PLAY_MINUTES * _MINUTE)
        for failed in (each for each in playing if each.done()):
            failed.result()
        over = time.time()
    finally:
        for each in playing:
            each.cancel()
        await asyncio.wait(playing)
    for stage in stages:
        stage.end = over
        stage.scrape()
        stage.note("vanishes")
        for replica in stage.replicas:
            replica.kill()
    await asyncio.sleep(_EMPTY_MINUTES * _MINUTE)
    return firings(prometheus, began, time.time())


def firings(prometheus: Prometheus, start: float, end: float) -> list[Firing]:
    """Returns the alerts that fired in a time, once for each namespace, in the order they began."""
    expr = 'max by (namespace, alertname) (ALERTS{alertstate="firing"})'
    found = []
    for series in prometheus.query_range(expr, start, end, _SCRAPE_SECONDS):
        moments = [float(moment) for moment, _ in series["values"]]
        ended = None if end - moments[-1] < 3 * _SCRAPE_SECONDS else moments[-1]
        metric = series["metric"]
        found.append(Firing(metric.get("namespace", ""), metric["alertname"], moments[0], ended))
    return sorted(found, key=lambda firing: firing.began)


def timeline(scenes: Sequence[Scene], stages: Sequence[Stage], found: Sequence[Firing]) -> str:
    """Returns a table of what happened in each scene and which alerts fired when, in minutes of the scene."""
    rows = []
    for scene, stage in zip(scenes, stages, strict=True):
        fired = [
            firing for firing in found if firing.namespace == stage.namespace and firing.began <= stage.end
        ]
        first = stage.began
        happened = "; ".join(f"{event} at {_minutes(moment - first)}" for moment, event in stage.events[:-1])
        alerts = "; ".join(
            f"{firing.alert.removeprefix('Alignserve')} {_minutes(firing.began - first)}"
            + (
                ""
                if firing.ended is None or firing.ended > stage.end
                else f" to {_minutes(firing.ended - first)}"
            )
            for firing in fired
        )
        rows.append([scene.name, f"{scene.about} {happened}".strip(), alerts or "none"])
    absent = [firing for firing in found if firing.alert == "AlignserveAbsent"]
    over = stages[0].end
    rows.append(
        [
            "all",
            "At last Prometheus is told of no target any more.",
            "; ".join(f"Absent {_minutes(firing.began - over)}" for firing in absent) or "none",
        ]
    )
    return table(["namespace", "what happens", "alerts, minutes after that"], rows)


def surprises(scenes: Sequence[Scene], stages: Sequence[Stage], found: Sequence[Firing]) -> list[str]:
    """Returns in which namespaces other alerts fired than have to."""
    problems = []
    for scene, stage in zip(scenes, stages, strict=True):
        fired = {f.alert for f in found if f.namespace == stage.namespace and f.began <= stage.end}
        if fired != scene.alerts:
            problems.append(f"{scene.name}: {sorted(fired)} instead of {sorted(scene.alerts)}")
    if not any(firing.alert == "AlignserveAbsent" for firing in found):
        problems.append("AlignserveAbsent did not fire")
    return problems


def _minutes(seconds: float) -> str:
    return f"{seconds / _MINUTE:.0f} min"


def recorded(prometheus: Prometheus, scene: Scene, stage: Stage) -> dict[str, Any]:
    """Returns a case for promtool: the series that rules ask for, and the alerts that have to fire."""
    start = stage.began
    count = int((stage.end - start) / _MINUTE)
    moments = [start + number * _MINUTE for number in range(count)]
    series = []
    for metric in sorted(_asked_metrics()):
        selector = f'{metric}{{namespace="{stage.namespace}"}}'
        for found in prometheus.query_range(selector, moments[0], moments[-1], _MINUTE):
            values = {round(float(moment) - start, 1): value for moment, value in found["values"]}
            samples = [values.get(round(moment - start, 1)) for moment in moments]
            if any(float(sample or 0) for sample in samples) and _is_asked(found["metric"]):
                series.append({"series": _notation(metric, found["metric"]), "values": _packed(samples)})
    fired = 'group by (alertname) (max_over_time(ALERTS{alertstate="firing"}[2h]))'
    return {
        "name": f"{scene.name}: {scene.about}",
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": fired,
                "eval_time": f"{count - 1}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(scene.alerts)
                ],
            }
        ],
    }


def _is_asked(labels: Mapping[str, str]) -> bool:
    """Says whether rules can see a series: of the histogram of calls they ask for one bucket."""
    is_bucket = labels["__name__"] == "grpc_server_handling_seconds_bucket"
    return labels["le"] == "0.5" if is_bucket else True


def _asked_metrics() -> set[str]:
    """Returns the names of the metrics that recording and alerting rules ask for."""
    rules = ROOT / "deploy/prometheus"
    text = "".join((rules / f"{kind}_rules.yml").read_text() for kind in ("recording", "alerting"))
    asked = set(re.findall(r"(?<![\w:])((?:alignserve|grpc_server|process)_\w+)(?=[\[{) ])", text))
    return {name for name in asked if not name.startswith("alignserve_slo")} | {"up"}


def _notation(metric: str, labels: dict[str, str]) -> str:
    kept = {name: value for name, value in labels.items() if name != "__name__"}
    if "instance" in kept:
        kept["instance"] = kept["pod"] + ":9464"  # the port was whichever was free
    return metric + "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(kept.items())) + "}"


def _packed(samples: Sequence[str | None]) -> str:
    """Returns samples as promtool writes them: `1x3` is 1 four times, `_` a scrape that lacks the series."""
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
    """Runs Prometheus, and yields it with a stage for each scene."""
    targets = place / "targets"
    targets.mkdir()
    stages = [Stage(scene.name, targets / f"{scene.name}.json") for scene in SCENES]
    config = {"file_sd_configs": [{"files": [f"{targets}/*.json"], "refresh_interval": "1s"}]}
    with running_prometheus(folder, config, place, speedup=SPEEDUP) as prometheus:
        yield prometheus, stages


def main() -> int:
    """Plays, prints what fired, and returns 0 if that is what has to."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.live_alerts", description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.relative_to(ROOT)}")
    parser.add_argument("--only", action="append", default=[], metavar="SCENE", help="play these alone")
    arguments = parser.parse_args()
    if arguments.only:
        SCENES[:] = [scene for scene in SCENES if scene.name in arguments.only]
    with tempfile.TemporaryDirectory() as name:
        if (found := programs(Path(name))) is None:
            raise SystemExit("there is no prometheus here, and Debian's package cannot be fetched")
        with _theatre(found, Path(name)) as (prometheus, stages):
            fired = asyncio.run(play(prometheus, stages, SCENES))
            print(timeline(SCENES, stages, fired))
            if arguments.record:
                cases = [recorded(prometheus, *pair) for pair in zip(SCENES, stages, strict=True)]
                _write(cases)
    for problem in (problems := surprises(SCENES, stages, fired)):
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _write(cases: Sequence[dict[str, Any]]) -> None:
    rules = [f"../../deploy/prometheus/{kind}_rules.yml" for kind in ("recording", "alerting")]
    head = "# What servers showed, a sample a minute: python -m tests.deploy.live_alerts --record\n"
    tests = {"rule_files": rules, "evaluation_interval": "1m", "tests": list(cases)}
    RECORDED.write_text(head + yaml.safe_dump(tests, sort_keys=False, width=1_000_000))


if __name__ == "__main__":
    raise SystemExit(main())
