"""The manifests: every field valid, consistent with image and server, tested without a cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trustme
import yaml
from alignserve_server.settings import Settings, host_and_port

from tests.deploy.container import Container, running_container
from tests.deploy.image import Image
from tests.processes import BIN, ROOT, run

Object: TypeAlias = dict[str, Any]

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
LABELS = {"app.kubernetes.io/name": "alignserve"}
HEALTH_SERVICE = "alignserve.v1.AlignService"

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="needs kubectl to render the manifests"
)
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def rendered(overlay: str) -> dict[str, Object]:
    """Returns the objects of an overlay by kind, one of each."""
    done = run("kubectl", "kustomize", FOLDER / "overlays" / overlay)
    assert done.returncode == 0, done.stderr
    return {found["kind"]: found for found in yaml.safe_load_all(done.stdout)}


def pod(overlay: str) -> Object:
    """Returns the spec of the server's pods."""
    found: Object = rendered(overlay)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(overlay: str) -> Object:
    """Returns the only container of a pod."""
    (found,) = pod(overlay)["containers"]
    assert isinstance(found, dict)
    return found


def image(overlay: str) -> Image:
    """Returns the image that a pod runs, as the Dockerfile builds it."""
    return Image(container(overlay)["image"].removeprefix("alignserve:"))


def environment(overlay: str) -> dict[str, str]:
    """Returns the variables that a pod adds to its image's."""
    values: dict[str, str] = rendered(overlay)["ConfigMap"]["data"]
    return values | {entry["name"]: entry["value"] for entry in container(overlay).get("env", [])}


def settings(overlay: str) -> Settings:
    """Returns the settings that result from the variables of image and pod."""
    variables = image(overlay).environment | environment(overlay)
    return Settings(
        **{
            name.removeprefix("ALIGNSERVE_").lower(): value  # parsed by Settings
            for name, value in variables.items()
            if name.startswith("ALIGNSERVE_")
        }
    )


def mounts(overlay: str) -> Iterator[tuple[str, Object]]:
    """Yields each mount point and its volume."""
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    for mount in container(overlay)["volumeMounts"]:
        yield mount["mountPath"], volumes[mount["name"]]


@pytest.mark.long
@pytest.mark.contract
@each_overlay
def test_every_object_fits_its_schema(overlay: str) -> None:
    """Objects of Kubernetes and of operators have no field unknown to their schema."""
    for found in rendered(overlay).values():
        _validate(found)


@pytest.mark.long
@pytest.mark.contract
@pytest.mark.parametrize("kind", ["Deployment", "PodMonitor", "ScaledObject"])
def test_unknown_fields_are_found(kind: str) -> None:
    """Each kind of schema refuses a misspelt field, which proves that the test above works."""
    found = rendered("keda")[kind]

    with pytest.raises(Exception, match="minReadySecond"):
        _validate(found | {"spec": found["spec"] | {"minReadySecond": 5}})


@each_overlay
def test_every_variable_is_a_setting(overlay: str) -> None:
    """Each value is valid; a server would ignore an unknown name."""
    assert all(name.startswith("ALIGNSERVE_") for name in environment(overlay))
    assert settings(overlay)  # which rejects unknown names


@each_overlay
def test_ports_agree(overlay: str) -> None:
    """Probes, service, network policy and pod monitor use the ports that the server listens on."""
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    objects = rendered(overlay)
    allowed = [port["port"] for rule in objects["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]]
    offered = [(port["port"], port["targetPort"]) for port in objects["Service"]["spec"]["ports"]]
    served = settings(overlay)
    http = {} if served.http_listen is None else {"http": host_and_port(served.http_listen)[1]}
    assert served.metrics_listen is not None
    grpc_port, metrics_port = (
        host_and_port(address)[1] for address in (served.listen, served.metrics_listen)
    )

    assert ports == {"grpc": grpc_port, "metrics": metrics_port, **http}
    assert allowed == ["grpc", *http, "metrics"]
    assert offered == [(grpc_port, "grpc"), *((port, name) for name, port in http.items())]
    for probe in _probes(overlay):
        if "grpc" in probe:
            assert probe["grpc"] == {"port": grpc_port, "service": HEALTH_SERVICE}
        else:
            assert f"--server=localhost:{grpc_port}" in probe["exec"]["command"]
    if "PodMonitor" in objects:
        assert [end["port"] for end in objects["PodMonitor"]["spec"]["podMetricsEndpoints"]] == ["metrics"]


@each_overlay
def test_every_selector_finds_the_pods(overlay: str) -> None:
    """Each selector and each reference to the deployment means this one."""
    objects = rendered(overlay)
    (spread,) = pod(overlay)["topologySpreadConstraints"]
    selectors = [
        *(objects[kind]["spec"]["selector"] for kind in ("Deployment", "PodDisruptionBudget")),
        objects["NetworkPolicy"]["spec"]["podSelector"],
        spread["labelSelector"],
        *(objects[kind]["spec"]["selector"] for kind in ("PodMonitor",) if kind in objects),
    ]
    targets = [
        objects[kind]["spec"]["scaleTargetRef"]["name"]
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        if kind in objects
    ]

    assert objects["Deployment"]["spec"]["template"]["metadata"]["labels"] == LABELS
    assert objects["Service"]["spec"]["selector"] == LABELS
    assert all(selector == {"matchLabels": LABELS} for selector in selectors)
    assert all(target == objects["Deployment"]["metadata"]["name"] for target in targets)


@each_overlay
def test_a_pod_has_the_time_to_drain(overlay: str) -> None:
    """The grace period is longer than the preStop hook and the server's shutdown together."""
    hook = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    stop = settings(overlay).drain_delay_seconds + settings(overlay).shutdown_grace_seconds + 10

    assert pod(overlay)["terminationGracePeriodSeconds"] > hook + stop


@each_overlay
def test_probe_limits_are_consistent(overlay: str) -> None:
    """A stalled server exits before it is killed, and a rollout waits longer than a startup may take."""
    probes = container(overlay)
    limit = settings(overlay).stall_exit_seconds + 1.0  # the longest interval between checks

    if "livenessProbe" in probes:
        assert _patience(probes["livenessProbe"]) > limit
    assert rendered(overlay)["Deployment"]["spec"]["progressDeadlineSeconds"] > _patience(
        probes["startupProbe"]
    )
    assert _patience(probes["readinessProbe"]) < 60


@each_overlay
def test_pods_are_restricted(overlay: str) -> None:
    """They meet the restricted Pod Security Standard, and have a read-only root filesystem."""
    whole, one = pod(overlay)["securityContext"], container(overlay)["securityContext"]

    assert whole["runAsNonRoot"] is True
    if overlay != "openshift":
        assert f"{whole['runAsUser']}:{whole['runAsGroup']}" == image(overlay).last("USER")
        assert whole["fsGroup"] == whole["runAsGroup"]
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert pod(overlay)["automountServiceAccountToken"] is False


@each_overlay
def test_caches_are_on_volumes(overlay: str) -> None:
    """Converted models and files from the hub are in folders that a pod may write."""
    writable = [path for path, volume in mounts(overlay) if "emptyDir" in volume]
    folders = [image(overlay).environment[name] for name in ("ALIGNSERVE_CACHE_DIR", "HF_HOME")]

    assert image(overlay).last("VOLUME") in writable
    assert all(any(Path(folder).is_relative_to(path) for path in writable) for folder in folders)


def test_a_gpu_is_requested_and_used() -> None:
    """The pod has one whole GPU, the image for it, and a server that does not start without it."""
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert image("gpu").target == "cuda"
    assert settings("gpu").device == "cuda"


def test_openshift_chooses_user_and_group() -> None:
    """SCC restricted-v2 does so if a pod names none; OpenShift's Prometheus is allowed in."""
    policy = rendered("openshift")["NetworkPolicy"]["spec"]["ingress"][1]["from"][0]["namespaceSelector"]

    assert {"runAsUser", "runAsGroup", "fsGroup"} & pod("openshift")["securityContext"].keys() == set()
    assert policy["matchLabels"] == {"kubernetes.io/metadata.name": "openshift-user-workload-monitoring"}


@pytest.mark.parametrize("overlay", ["keda", "monitoring"])
def test_a_prefix_and_labels_reach_all_references(overlay: str, tmp_path: Path) -> None:
    """With two deployments in a namespace, the scaler finds the renamed one, the monitor only its pods."""
    objects = {
        found["kind"]: found
        for found in _own_overlay(
            tmp_path,
            f"""
resources: [../deploy/kubernetes/overlays/{overlay}]
namePrefix: blue-
labels: [{{pairs: {{app.kubernetes.io/instance: blue}}, includeSelectors: true}}]
""",
        )
    }
    scaler = objects["ScaledObject" if overlay == "keda" else "HorizontalPodAutoscaler"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]

    assert scaler["spec"]["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    assert objects["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels


def test_a_pod_monitor_selects_the_pods_of_kuberay() -> None:
    """It selects them by label and port name, with the job label that the rules query."""
    folder = ROOT / "deploy/ray"
    cluster = next(yaml.safe_load_all((folder / "kuberay.yaml").read_text()))["spec"]["rayClusterConfig"]
    (workers,) = (group["template"] for group in cluster["workerGroupSpecs"])
    (monitor,) = yaml.safe_load_all((folder / "pod-monitor.yaml").read_text())
    ports = {port["name"] for each in workers["spec"]["containers"] for port in each["ports"]}

    assert monitor["spec"]["selector"]["matchLabels"].items() <= workers["metadata"]["labels"].items()
    assert {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]} <= ports
    assert workers["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "alignserve"
    _validate(monitor)


def test_missing_data_do_not_mean_no_load() -> None:
    """KEDA keeps the replicas when a query finds nothing, and later runs the maximum."""
    spec = rendered("keda")["ScaledObject"]["spec"]

    assert all(trigger["metadata"]["ignoreNullValues"] == "false" for trigger in spec["triggers"])
    assert all("vector(" not in query for query in _keda_queries().values())
    assert spec["fallback"]["replicas"] == spec["maxReplicaCount"]
    # longer than a startup may take, which has no data either
    assert spec["fallback"]["failureThreshold"] * spec["pollingInterval"] >= _patience(
        container("keda")["startupProbe"]
    )
    # KEDA rejects a fallback if there are triggers of other types
    assert all(trigger["metricType"] == "AverageValue" for trigger in spec["triggers"])


@pytest.mark.parametrize("overlay", ["monitoring", "keda"])
def test_a_scaled_deployment_sets_no_replicas(overlay: str) -> None:
    """Otherwise each apply would undo the autoscaler's decision."""
    assert "replicas" not in rendered(overlay)["Deployment"]["spec"]


def test_the_job_is_the_one_in_the_rules() -> None:
    """The pod monitor reads it from a label of the pods."""
    label = rendered("monitoring")["PodMonitor"]["spec"]["jobLabel"]

    assert LABELS[label] == "alignserve"
    assert 'up{job="alignserve"}' in (ROOT / "deploy/prometheus/alerting_rules.yml").read_text()


def test_the_autoscaler_uses_the_metrics_of_the_adapter() -> None:
    """Both use the same names."""
    asked = [
        metric["pods"]["metric"]["name"]
        for metric in rendered("monitoring")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    ]

    assert asked == [rule["name"]["as"] for rule in _adapter_rules()]


def test_scaling_uses_metrics_that_exist(metric_names: set[str]) -> None:
    """Queries use the names of the server's metrics."""
    asked = " ".join([*_adapter_queries().values(), *_keda_queries().values()])
    seeds = " ".join(rule["seriesQuery"] for rule in _adapter_rules())

    assert set(re.findall(r"alignserve_\w+", f"{asked} {seeds}")) <= metric_names


@pytest.mark.contract
def test_scaling_sees_load_and_idleness(promtool: Path, tmp_path: Path) -> None:
    """Each query has the right answer for a busy pod, an idle one, both, and pods without calls."""
    idle = _series("b", busy_seconds=0, waits=0)
    both = idle | _series("a", busy_seconds=7.5, waits=15)
    adapter, keda = _adapter_queries(), _keda_queries()

    _ask(
        promtool,
        tmp_path,
        _case(both, adapter["alignserve_device_busy_ratio"], {'{pod="a"}': 0.5, '{pod="b"}': 0}),
        _case(both, adapter["alignserve_queue_wait_seconds_p95"], {'{pod="a"}': 0.095, '{pod="b"}': 0}),
        _case(both, keda["device-busy"], {"{}": 0.5}),
        _case(both, keda["queue-wait"], {"{}": 0.095}),
        _case(idle, keda["queue-wait"], {"{}": 0}),
    )


@pytest.mark.contract
@pytest.mark.parametrize("shows_lanes", [False, True], ids=["no lanes yet", "0 lanes, as before 0.1.0"])
def test_a_loading_pod_is_neither_busy_nor_idle(promtool: Path, tmp_path: Path, shows_lanes: bool) -> None:
    """It has no value itself, and the values of the other pods are unaffected."""
    loading = _series("b", busy_seconds=0, waits=0)
    if shows_lanes:
        loading = {name: "0x40" if "_lanes" in name else values for name, values in loading.items()}
    else:
        loading = {name: values for name, values in loading.items() if "_lanes" not in name}
    both = loading | _series("a", busy_seconds=7.5, waits=15)
    adapter, keda = _adapter_queries(), _keda_queries()

    _ask(
        promtool,
        tmp_path,
        _case(both, adapter["alignserve_device_busy_ratio"], {'{pod="a"}': 0.5}),
        _case(both, keda["device-busy"], {"{}": 0.5}),
        _case(both, keda["queue-wait"], {"{}": 0.095}),
    )


@pytest.mark.contract
def test_a_query_without_data_has_no_value(promtool: Path, tmp_path: Path) -> None:
    """KEDA then keeps the replicas instead of scaling a busy deployment to the minimum."""
    other = _series("a", busy_seconds=7.5, waits=15, namespace="staging")

    _ask(
        promtool,
        tmp_path,
        *(_case({}, query, {}) for query in _keda_queries().values()),
        *(_case(other, query, {}) for query in _keda_queries().values()),
    )


@pytest.mark.contract
def test_the_overlays_of_the_readme_are_valid(tmp_path: Path) -> None:
    """They are a user's own overlays, outside the repository, based on its manifests."""
    examples = re.findall(r"^```yaml\n(apiVersion.*?)^```", _readme(), re.DOTALL | re.MULTILINE)

    for example in examples:
        for found in _own_overlay(tmp_path, example):
            _validate(found)

    assert len(examples) == 3


def test_the_queries_name_the_namespace(tmp_path: Path) -> None:
    """The README's example for KEDA adds it to each query once."""
    (example,) = re.findall(r"^```yaml\n([^`]*replacements:.*?)^```", _readme(), re.DOTALL | re.MULTILINE)

    (scaler,) = (found for found in _own_overlay(tmp_path, example) if found["kind"] == "ScaledObject")

    for trigger in scaler["spec"]["triggers"]:
        assert re.findall('namespace="(.*?)"', trigger["metadata"]["query"]) == ["align"]


@pytest.mark.contract
def test_rules_become_objects_by_the_command_of_the_readme() -> None:
    """It wraps both rules files as the Prometheus operator expects them."""
    (command,) = re.findall(r"^(for rules in .*?^done) \| kubectl", _readme(), re.DOTALL | re.MULTILINE)

    done = subprocess.run(
        ["sh", "-euc", command], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )

    objects = list(yaml.safe_load_all(done.stdout))
    assert [found["metadata"]["name"] for found in objects] == [
        "alignserve-recording-rules",
        "alignserve-alerting-rules",
    ]
    assert all(found["metadata"]["labels"] == {"release": "prometheus"} for found in objects)
    for found in objects:
        _validate(found)


@pytest.mark.long
def test_a_pod_serves_its_probes(containers: Path) -> None:
    """With the manifest's variables and volumes it becomes ready for the kubelet, and SIGTERM ends it."""
    probe = container("cpu")["readinessProbe"]["grpc"]
    with _running(containers, "cpu") as server:
        server.event("ready")

        health = server.health(probe["port"], probe["service"])
        code = server.stop()

    assert health == "SERVING"
    assert code == 0


@pytest.mark.long
def test_a_pod_serves_as_any_user(containers: Path) -> None:
    """OpenShift uses a user id from the namespace's range, and group 0."""
    probe = container("openshift")["readinessProbe"]["grpc"]
    with _running(containers, "openshift", user="1000680000:0") as server:
        server.event("ready")

        health = server.health(probe["port"], probe["service"])
        code = server.stop()

    assert health == "SERVING"
    assert code == 0


@pytest.mark.long
def test_a_pod_with_tls_and_keys_serves_its_probes(containers: Path, tmp_path: Path) -> None:
    """The kubelet's health check needs no key; calls need one."""
    secrets = _secrets(tmp_path)
    probe = container("access")["readinessProbe"]["exec"]["command"]
    with _running(containers, "access", secrets) as server:
        server.event("ready")

        probed = server.run(*probe)
        called = server.run(*probe[:-1], "info")

    assert probed.returncode == 0, probed.stderr
    assert "KEY_MISSING" in called.stderr


def _own_overlay(place: Path, text: str) -> list[Object]:
    """Returns the objects of a kustomization outside the repository."""
    (place / "own").mkdir(exist_ok=True)
    if not (place / "deploy").exists():
        (place / "deploy").symlink_to(ROOT / "deploy")
    (place / "own/kustomization.yaml").write_text(text)
    done = run("kubectl", "kustomize", place / "own")
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _ask(promtool: Path, place: Path, *cases: Object) -> None:
    """Runs the cases with promtool."""
    tests = place / "tests.yml"
    tests.write_text(yaml.safe_dump({"evaluation_interval": "15s", "tests": list(cases)}))
    done = run(promtool, "test", "rules", tests)
    assert done.returncode == 0, done.stdout + done.stderr


def _readme() -> str:
    return (FOLDER / "README.md").read_text()


def _probes(overlay: str) -> list[Object]:
    return [value for name, value in container(overlay).items() if name.endswith("Probe")]


def _patience(probe: Object) -> int:
    """Returns the seconds after which a constantly failing probe has an effect."""
    patience: int = probe["periodSeconds"] * probe["failureThreshold"]
    return patience


def _validate(found: Object) -> None:
    """Raises unless an object fits its schema, without extra fields."""
    group = found["apiVersion"].partition("/")[0]
    if group == "keda.sh":
        models = pytest.importorskip("cloudcoil.models.keda.v1alpha1")
    elif group == "monitoring.coreos.com":
        models = pytest.importorskip("cloudcoil.models.prometheus_operator.v1")
    else:
        pytest.importorskip("kubernetes_validate").validate(found, "1.37", strict=True)
        return
    getattr(models, found["kind"]).model_validate(found, extra="forbid")


def _adapter_rules() -> list[Object]:
    values = yaml.safe_load((FOLDER / "components/autoscaling/adapter-values.yaml").read_text())
    rules: list[Object] = values["rules"]["custom"]
    return rules


def _adapter_queries() -> dict[str, str]:
    """Returns the queries that the adapter sends for the autoscaler, by metric."""
    return {
        rule["name"]["as"]: rule["metricsQuery"]
        .replace("<<.GroupBy>>", "pod")
        .replace("<<.LabelMatchers>>", 'pod=~"a|b"')
        for rule in _adapter_rules()
    }


def _keda_queries() -> dict[str, str]:
    triggers = rendered("keda")["ScaledObject"]["spec"]["triggers"]
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in triggers}


def _series(pod: str, *, busy_seconds: float, waits: int, namespace: str = "default") -> dict[str, str]:
    """Returns ten minutes of a pod's series, by their growth in each 15 s; waits are up to 0.1 s."""
    labels = f'namespace="{namespace}", job="alignserve", pod="{pod}"'
    wait = "alignserve_queue_wait_seconds_bucket"
    return {
        f"alignserve_lanes{{{labels}}}": "1x40",
        f"alignserve_device_busy_seconds_total{{{labels}}}": f"0+{busy_seconds}x40",
        f'{wait}{{{labels}, le="0"}}': "0x40",
        f'{wait}{{{labels}, le="0.1"}}': f"0+{waits}x40",
        f'{wait}{{{labels}, le="+Inf"}}': f"0+{waits}x40",
    }


def _case(series: Mapping[str, str], query: str, wanted: Mapping[str, float]) -> Object:
    """Returns a case for `promtool test rules`, with the expected values by labels."""
    samples = [{"labels": labels, "value": value} for labels, value in wanted.items()]
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "10m", "exp_samples": samples}],
    }


def _running(
    packages: Path, overlay: str, secrets: Mapping[str, Path] | None = None, **options: str
) -> AbstractContextManager[Container]:
    """Runs a pod's container with its variables and volumes, and with its secrets' folders."""
    files = {
        path: secrets[volume["secret"]["secretName"]]
        for path, volume in mounts(overlay)
        if secrets is not None and "secret" in volume
    }
    writable = [path for path, volume in mounts(overlay) if "emptyDir" in volume]
    return running_container(
        packages, image(overlay), environment(overlay), writable=writable, files=files, **options
    )


def _secrets(folder: Path) -> dict[str, Path]:
    """Creates the files of the secrets as in the README, and returns their folders by name."""
    tls, keys = folder / "tls", folder / "keys"
    tls.mkdir()
    keys.mkdir()
    authority = trustme.CA()
    own = authority.issue_cert("alignserve", "localhost")
    authority.cert_pem.write_to_path(tls / "ca.crt")
    own.private_key_pem.write_to_path(tls / "tls.key")
    own.cert_chain_pems[0].write_to_path(tls / "tls.crt")
    add = ("add", "search", "--scopes", "embed")
    run(BIN / "alignserve-server", "keys", "--api-keys-file", keys / "keys.json", *add)
    return {"alignserve-tls": tls, "alignserve-keys": keys}
