"""`alignserve-server check` compares the settings with the machine: cores, memory, files, clock."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import socket
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.cli.check import host
from alignserve_server.cli.check.access import check_clock, check_keys, read_certificates
from alignserve_server.cli.check.deployment import Check, Deployment
from alignserve_server.cli.check.network import listen, reach_collector
from alignserve_server.cli.check.packages import check_packages, unsupported
from alignserve_server.cli.check.report import CheckWarning
from alignserve_server.cli.check.runtime import check_device, check_runtime
from alignserve_server.errors import StartupError
from alignserve_server.host.clock import ClockSteps
from alignserve_server.host.memory_limit import MemoryLimit, memory_limit
from alignserve_server.host.task_limit import task_limit
from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.serving.loading import load_encoder
from alignserve_server.settings import Settings
from packaging.requirements import Requirement

TODAY = datetime.now(UTC)


def deployment(**settings: Any) -> Deployment:
    return Deployment(Settings(**settings), ExitStack())


def warning(check: Check, **settings: Any) -> str:
    """Returns what a check warns about."""
    with pytest.raises(CheckWarning) as raised:
        check(deployment(**settings))
    return str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 3}, "3 on 2 cores: workers would share cores; lower workers"),
        ({"lanes": 2, "threads_per_lane": 2}, "4 threads .* would wait for each other; lower lanes"),
        ({"workers": 2, "lanes": 2}, "2 threads .* in each worker would wait"),
        ({"decode_threads": 5}, "5 decode threads would share cores; lower decode_threads"),
    ],
)
def test_more_threads_than_cores_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], message: str
) -> None:
    """Each says which setting to lower."""
    monkeypatch.setattr(host, "cpu_count", lambda: 2)
    monkeypatch.setattr(host, "cpu_quotas", lambda: iter(()))

    assert re.search(message, warning(host.count_cores, **settings))


def test_a_quota_of_cores_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of cores is rounded up, so the quota itself is shown too."""
    monkeypatch.setattr(host, "cpu_count", lambda: 2)
    monkeypatch.setattr(host, "cpu_quotas", lambda: iter((1.5,)))

    text = host.count_cores(deployment())

    assert text.startswith("1 on 2 cores (a control group allows 1.5 of ")


@pytest.mark.parametrize(
    ("gibibytes", "message"),
    [
        (0.25, "0.25 GiB by the pod: the process would be killed; give it more memory, or lower workers"),
        (2, r"2 GiB by the pod: callers could exhaust it, most of all by .*lower max_queue_bytes"),
    ],
)
def test_too_little_memory_is_a_warning(gibibytes: float, message: str) -> None:
    """For the model and the caches, and for the worst case."""
    examined = deployment()
    examined.checkpoint = resolve_checkpoint()

    with pytest.raises(CheckWarning, match=message):
        host.compare_memory(examined, MemoryLimit(int(gibibytes * (1 << 30)), "the pod"))


def test_enough_memory_is_shown_with_its_limit() -> None:
    """The model counts in float32: the embedded one has 12 million numbers."""
    examined = deployment()
    examined.checkpoint = resolve_checkpoint()

    text = host.compare_memory(examined, MemoryLimit(64 << 30, "the pod"))

    assert re.match(r"needs model 0\.0\d+, processes .* in the worst case; 64 GiB by the pod$", text)


@pytest.mark.parametrize(
    ("limits", "size"),
    [({"memory.max": "max"}, 8 << 30), ({"memory.max": "1048576"}, 1 << 20), ({}, 8 << 30)],
)
def test_the_lowest_memory_limit_counts(tmp_path: Path, limits: dict[str, str], size: int) -> None:
    """The machine's memory, unless a control group allows less."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  8388608 kB\nMemFree: 1 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for name, value in limits.items():
        (tmp_path / "sys/fs/cgroup" / name).write_text(value)

    found = memory_limit(tmp_path)

    assert found is not None
    assert found.size == size


def test_without_proc_no_memory_limit_is_known(tmp_path: Path) -> None:
    """The check then shows only the demand."""
    assert memory_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "settings", "message"),
    [
        (1024, {}, "up to 1024 files and connections: few for many callers.*ulimit -Hn"),
        (
            4096,
            {"http_listen": "127.0.0.1:0", "http_max_connections": 4000},
            "fewer than http_max_connections",
        ),
    ],
)
def test_few_open_files_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, limit: int, settings: dict[str, Any], message: str
) -> None:
    """Every connection is one."""
    monkeypatch.setattr(host, "allow_open_files", lambda: None)
    monkeypatch.setattr(host, "max_open_files", lambda: limit)

    assert re.search(message, warning(host.count_open_files, **settings))


def test_few_threads_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may limit them to fewer than libraries start."""
    monkeypatch.setattr(host, "task_limit", lambda: 64)

    assert re.match(
        r"about \d+ are needed, 64 allowed: .*pids.max", warning(host.count_threads, front_processes=2)
    )


def test_the_lowest_limit_on_threads_counts(tmp_path: Path) -> None:
    """That of the user, or that of a control group."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/pids.max").write_text("3\n")

    assert task_limit(tmp_path) == 3


def test_fronts_need_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made as a front makes it; a container may forbid that."""
    text = host.share_memory(deployment(front_processes=1))

    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(StartupError, match="Operation not permitted; allow both calls"):
        host.share_memory(deployment(front_processes=1))
    assert text.startswith("each front can map 2 GiB")


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    """A server starts without it, but slower."""
    (tmp_path / "file").touch()

    text = warning(host.write_cache, cache_dir=tmp_path / "file")

    assert "is not writable (File exists), so each start converts" in text
    assert "set cache_dir to a writable folder" in text


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The space is compared with what a conversion writes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))

    assert "up to 0.0156 GiB are needed: free some space" in warning(host.write_cache, cache_dir=tmp_path)


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_only_int8_needs_calibration_images(tmp_path: Path, dtype: str) -> None:
    """For other types a missing folder is a warning."""
    with pytest.raises(StartupError if dtype == "int8" else CheckWarning, match="is not readable: No such"):
        host.list_calibration(deployment(calibration_dir=tmp_path / "none", dtype=dtype))


def test_a_package_of_another_version_is_named() -> None:
    """With the command that installs a supported one; packages that are not installed do not matter."""
    needed = ["grpcio>=999", "protobuf>=1", "no-such-package>=1"]

    (line,) = unsupported(map(Requirement, needed))

    assert re.fullmatch(r"grpcio \S+ is not supported; pip install 'grpcio>=999'", line)


def test_the_versions_of_the_packages_are_shown() -> None:
    """Those that decide what is computed and how calls arrive."""
    assert re.search(
        r"^Python 3\.\d+\.\d+, alignserve-server .*grpcio .*protobuf .*openvino ", check_packages()
    )


def test_the_clock_cannot_be_before_the_installation(tmp_path: Path) -> None:
    """It would find certificates not yet valid."""
    file = tmp_path / "installed"
    file.touch()
    then = file.stat().st_mtime

    with pytest.raises(CheckWarning, match=r"but this server was installed at .*set the clock"):
        check_clock(deployment(), file, then - 86400)
    with pytest.raises(CheckWarning, match="far in the future"):
        check_clock(deployment(), file, then + 21 * 365 * 86400)
    assert " UTC" in check_clock(deployment(), file, then + 60)


def test_a_clock_that_is_set_meanwhile_is_a_warning() -> None:
    """It is compared with one that runs steadily."""
    system, steady = [100.0], [5.0]
    examined = deployment()
    examined.clock = ClockSteps(lambda: system[0], lambda: steady[0])
    system[0], steady[0] = 163.0, 8.0

    with pytest.raises(CheckWarning, match=r"the clock moved by \+60\.0 s during the check"):
        check_clock(examined)


@pytest.mark.parametrize(
    ("begins", "ends", "message"),
    [
        (-9, -1, "expired at .*renew it, and check the clock"),
        (1, 9, "is not valid before .*check the clock"),
        (-9, 9, "expires soon, at .*renew it"),
    ],
)
def test_a_certificate_of_another_time_is_a_warning(
    tmp_path: Path, begins: int, ends: int, message: str
) -> None:
    """A server starts with it, since the clock may be wrong."""
    issued = trustme.CA().issue_cert(
        "localhost", not_before=TODAY + timedelta(begins), not_after=TODAY + timedelta(ends)
    )
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "chain.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))

    text = warning(read_certificates, tls_certificate=tmp_path / "chain.pem", tls_key=tmp_path / "key.pem")

    assert re.search(message, text)


@pytest.mark.parametrize(
    ("days", "message"),
    [([], "contains no key"), ([-1], "contains only expired keys"), ([-1, 9], "1 of 2 keys .* have expired")],
)
def test_expired_keys_are_a_warning(tmp_path: Path, days: list[int], message: str) -> None:
    """Their callers would be refused."""
    path = tmp_path / "keys.json"
    write_keys(path, days)

    assert re.search(f"{message}.*keys add", warning(check_keys, api_keys_file=path))


def test_the_next_expiry_is_shown(tmp_path: Path) -> None:
    """So that a new key can be given out in time."""
    path = tmp_path / "keys.json"
    write_keys(path, [30, 20])

    assert check_keys(deployment(api_keys_file=path)).endswith(
        f"the next one expires on {(TODAY + timedelta(20)).date().isoformat()}"
    )


def write_keys(path: Path, days: list[int]) -> None:
    keys = {
        f"caller{number}": new_key(
            f"caller{number}", frozenset(Scope), expires=(TODAY + timedelta(day)).date()
        )[1]
        for number, day in enumerate(days)
    }
    with changed_keys(path) as stored:
        stored.update(keys)


def test_an_open_port_without_access_is_a_warning() -> None:
    """It names the settings that protect it."""
    with (
        ExitStack() as held,
        pytest.raises(CheckWarning, match=r"without TLS or auth.*; set tls_certificate"),
    ):
        listen(Deployment(Settings(listen="0.0.0.0:0"), held))


def test_a_collector_that_does_not_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans would be lost without a word."""
    pytest.importorskip("opentelemetry.sdk")
    with socket.create_server(("127.0.0.1", 0)) as collector:
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        reached = reach_collector(deployment(tracing=True))

    text = warning(reach_collector, tracing=True)

    assert reached == f"spans are exported to {endpoint}, which accepts connections"
    assert re.search(r"does not accept connections \(Connection refused\), so they are lost; start", text)


def test_a_missing_runtime_is_named_as_a_start_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest)
    )

    with pytest.raises(StartupError, match="not installed: torch, needed for --runtime torch") as raised:
        check_runtime(deployment(runtime="torch", device="cpu"))
    with pytest.raises(StartupError) as refused:
        load_encoder(Settings(runtime="torch", device="cpu"))
    assert str(raised.value) == str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "^openvino .* in float32; if that is below min_cosine_similarity, torch in float32"),
        ({"dtype": "float16"}, "^torch .* in float16; .*Not openvino .*nor in float16"),
        ({"runtime": "openvino"}, "--runtime says so$"),
    ],
)
def test_the_runtime_that_would_be_chosen_is_shown(settings: dict[str, Any], message: str) -> None:
    """And why the other one is not."""
    assert re.search(message, check_runtime(deployment(device="cpu", **settings)))


def test_int8_on_torch_is_refused_as_a_start_does() -> None:
    """Contradictory settings are found without loading."""
    settings = {"runtime": "torch", "dtype": "int8", "device": "cpu"}

    with pytest.raises(StartupError) as raised:
        check_runtime(deployment(**settings))

    with pytest.raises(StartupError) as refused:
        load_encoder(Settings(**settings))
    assert str(raised.value) == str(refused.value)


def test_the_device_is_shown_with_its_reason() -> None:
    """Why it is not a GPU."""
    assert check_device(deployment(device="cpu")) == "cpu: --device says so"
    assert check_device(deployment(runtime="openvino", device="auto")) == "cpu: --runtime says so"


def test_a_gpu_that_cannot_be_used_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the setting that makes the start fail instead."""
    from alignserve_server.model import align

    find = importlib.util.find_spec
    monkeypatch.setattr(align, "_has_gpu_file", lambda: True)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest)
    )

    text = warning(check_device, device="auto")

    assert text == "cpu: torch is not installed; pip install 'alignserve[server,torch]'"
