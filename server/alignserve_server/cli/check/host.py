"""Checks of the machine or container: cores, memory, open files, shared memory and folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alignserve_server.cli.check.deployment import Check, Deployment
from alignserve_server.cli.check.memory import Demand, gibibytes, largest, memory_demand
from alignserve_server.cli.check.report import CheckWarning
from alignserve_server.errors import StartupError
from alignserve_server.host.cores import cpu_count
from alignserve_server.host.cpu_quota import cpu_quotas
from alignserve_server.host.memory_limit import MemoryLimit, memory_limit
from alignserve_server.host.open_files import allow_open_files, max_open_files
from alignserve_server.host.task_limit import task_limit

_OTHER_FILES = 256  # libraries, lanes, decoders and gRPC connections
_FEW_FILES = 2048
_TASKS_PER_PROCESS = 48  # threads of gRPC, the runtime and decoding, and processes that decode
_FEW_BYTES = 16 << 20  # for measured batch sizes and compiled kernels


def host_checks(deployment: Deployment) -> Iterator[tuple[str, Check]]:
    """Yields the checks that the settings call for."""
    yield "workers", count_cores
    yield "open_files", count_open_files
    yield "threads", count_threads
    if deployment.settings.front_processes:
        yield "front_processes", share_memory
    yield "memory", compare_memory
    yield "cache_dir", write_cache
    if deployment.settings.calibration_dir is not None:
        yield "calibration_dir", list_calibration


def count_cores(deployment: Deployment) -> str:
    """Compares processes and threads with the cores."""
    settings, cores = deployment.settings, cpu_count()
    fronts = f" with {settings.front_processes} front processes" if settings.front_processes else ""
    quota = min(cpu_quotas(), default=None)
    limited = "" if quota is None else f" (a control group allows {quota:g} of {os.cpu_count()})"
    text = f"{settings.workers}{fronts} on {cores} cores{limited}"
    if settings.workers > cores:
        raise CheckWarning(f"{text}: workers would share cores; lower workers")
    threads = (settings.lanes or 1) * (settings.threads_per_lane or 1)
    if threads > max(1, cores // settings.workers):
        raise CheckWarning(
            f"{text}: {threads} threads (lanes x threads_per_lane) in each worker would wait for each other; "
            "lower lanes or threads_per_lane"
        )
    if (settings.decode_threads or 1) > cores:
        raise CheckWarning(
            f"{text}: {settings.decode_threads} decode threads would share cores; lower decode_threads"
        )
    return text


def count_open_files(deployment: Deployment) -> str:
    """Compares the limit on open files with the connections that the settings allow."""
    settings = deployment.settings
    allow_open_files()  # as the server does when it starts
    limit = max_open_files()
    text = f"up to {limit} files and connections"
    if settings.http_listen is not None and limit // 2 < settings.http_max_connections:
        raise CheckWarning(
            f"{text}, of which HTTP gets half: fewer than http_max_connections "
            f"({settings.http_max_connections}); raise the hard limit (ulimit -Hn, LimitNOFILE)"
        )
    if limit < max(_FEW_FILES, _OTHER_FILES + settings.max_streams + settings.max_uploads):
        raise CheckWarning(
            f"{text}: few for many callers, each of which has a connection; raise the hard limit (ulimit "
            "-Hn, LimitNOFILE)"
        )
    return text


def count_threads(deployment: Deployment) -> str:
    """Compares the limit on processes and threads with the number of processes and cores."""
    settings, limit = deployment.settings, task_limit()
    processes = settings.workers * (1 + settings.front_processes) + 1
    needed = processes * (_TASKS_PER_PROCESS + 2 * cpu_count())
    if limit is None:
        return f"about {needed} are needed; no limit"
    text = f"about {needed} are needed, {limit} allowed"
    if limit < needed:
        raise CheckWarning(
            f"{text}: threads could not be started; raise the limit (ulimit -u, pids.max, TasksMax)"
        )
    return text


def share_memory(_deployment: Deployment) -> str:
    """Makes the memory that a front shares with the process that runs the model."""
    from alignserve_server.fronts.front import MEMORY_BYTES
    from alignserve_server.fronts.memory import create

    try:
        descriptor, shared = create(MEMORY_BYTES)
    except OSError as error:
        raise StartupError(
            f"a front cannot make the {MEMORY_BYTES >> 30} GiB of addresses that it shares with the model "
            f"(memfd_create, mmap): {error.strerror}; allow both calls and raise ulimit -v, or set "
            "front_processes to 0"
        ) from error
    shared.close()
    os.close(descriptor)
    return f"each front can map {MEMORY_BYTES >> 30} GiB; only what it uses takes up memory"


def compare_memory(deployment: Deployment, limit: MemoryLimit | None = None) -> str:
    """Compares the memory that the model and the settings need with the limit.

    Args:
        deployment: Its checkpoint gives the size of the model.
        limit: By default, that of this process.
    """
    limit = memory_limit() if limit is None else limit
    demand = memory_demand(deployment.settings, deployment.checkpoint)
    if limit is None:
        return f"{_summary(demand)}; the system does not tell its limit"
    text = f"{_summary(demand)}; {gibibytes(limit.size)} GiB by {limit.source}"
    if sum(demand.always.values()) > limit.size:
        raise CheckWarning(
            f"{text}: the process would be killed; give it more memory, or lower workers, text_cache_bytes "
            "or image_cache_bytes"
        )
    if demand.total > limit.size:
        raise CheckWarning(
            f"{text}: callers could exhaust it, most of all by {largest(demand.worst_case)}; give it more "
            "memory, or lower max_queue_bytes, max_uploads, max_streams or max_request_bytes"
        )
    return text


def _summary(demand: Demand) -> str:
    always = ", ".join(f"{name} {gibibytes(size)}" for name, size in demand.always.items())
    return f"needs {always} GiB, and up to {gibibytes(demand.total)} GiB in the worst case"


def write_cache(deployment: Deployment) -> str:
    """Writes to the cache folder, and compares the free space with what may be written there."""
    from alignserve_server.model.align import default_cache_dir

    folder = deployment.settings.cache_dir or default_cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CheckWarning(
            f"{folder} is not writable ({error.strerror}), so each start converts, compiles and measures "
            "again; set cache_dir to a writable folder"
        ) from error
    needed = _FEW_BYTES + _conversion_bytes(deployment)
    text = f"{folder} is writable and has {gibibytes(free)} GiB free"
    if free < needed:
        raise CheckWarning(f"{text}; up to {gibibytes(needed)} GiB are needed: free some space")
    return text


def _conversion_bytes(deployment: Deployment) -> int:
    """Returns how much a conversion of the checkpoint may write; 0 if it needs none."""
    from alignserve_server.model.preparation import shipped_form, undamaged

    original = deployment.original
    if original is None or deployment.settings.runtime == "torch":
        return 0
    if undamaged(lambda: shipped_form(original)) is not None:
        return 0
    return 2 * memory_demand(deployment.settings, original).model_bytes


def list_calibration(deployment: Deployment) -> str:
    """Lists the folder, which only int8 needs."""
    folder: Path | None = deployment.settings.calibration_dir
    assert folder is not None  # noqa: S101 — otherwise not checked
    try:
        return f"{sum(1 for _ in folder.iterdir())} files in {folder}"
    except OSError as error:
        text = f"{folder} is not readable: {error.strerror}"
        if deployment.settings.dtype == "int8":
            raise StartupError(f"{text}; set calibration_dir to a folder of images") from error
        raise CheckWarning(f"{text}; dtype int8 would need it") from error
