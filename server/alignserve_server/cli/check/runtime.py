"""Checks of device and runtime: what would be chosen, and why the others are not."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from alignserve_server.cli.check.deployment import Deployment
from alignserve_server.cli.check.memory import gibibytes, memory_demand
from alignserve_server.cli.check.packages import installed
from alignserve_server.cli.check.report import CheckWarning
from alignserve_server.model.checkpoint import Checkpoint
from alignserve_server.model.prepared import PreparedCheckpoint
from alignserve_server.model.runtimes.runtime import DtypeName, RuntimeName
from alignserve_server.settings import Settings

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def check_device(deployment: Deployment) -> str:
    """Resolves the device of each worker, and compares a GPU's free memory with the model."""
    from alignserve_server.model.align import device_choice
    from alignserve_server.serving.loading import worker_device

    settings = deployment.settings
    if isinstance(deployment.checkpoint, PreparedCheckpoint):
        return "cpu: the checkpoint is prepared for it"
    choice = device_choice(settings.device, settings.runtime, is_tried=settings.workers == 1)
    if choice.advice:
        raise CheckWarning(f"{choice.name}: {choice.reason}; {choice.advice}")
    if choice.name == "cpu":
        return f"cpu: {choice.reason}"
    names = dict.fromkeys(worker_device(settings, worker) for worker in range(settings.workers))
    return _gpu(deployment, list(names))


def _gpu(deployment: Deployment, names: list[str]) -> str:
    import torch

    free, size = map(min, zip(*map(torch.cuda.mem_get_info, names), strict=True))
    text = (
        f"{', '.join(names)} ({torch.cuda.get_device_name(names[0])}), {gibibytes(free)} of "
        f"{gibibytes(size)} GiB free, torch for CUDA {torch.version.cuda}{_driver()}"
    )
    # One copy in float32 while it loads, then a smaller one with the graphs and activations.
    needed = memory_demand(deployment.settings, deployment.checkpoint).model_bytes
    if free < needed:
        raise CheckWarning(
            f"{text}; the model needs up to {gibibytes(needed)}: stop other processes on the GPU, or choose "
            "another one with device"
        )
    return text


def _driver() -> str:
    with suppress(OSError):  # another vendor's, or hidden in a container
        first = _NVIDIA_DRIVER.read_text().partition("\n")[0]
        return f", driver {' '.join(first.split()[1:])}"
    return ""


def check_runtime(deployment: Deployment) -> str:
    """Finds out which runtime and data type would be loaded first, and whether it is installed."""
    from alignserve_server.errors import StartupError
    from alignserve_server.model.align import check_runtime_installed

    settings = deployment.settings
    try:
        (runtime, dtype), *later = _choices(settings, deployment.checkpoint)
        check_runtime_installed(runtime)
    except ValueError as error:
        raise StartupError(str(error)) from error
    text = f"{runtime} {installed(runtime)} in {dtype}"
    fallbacks = [f"{name} in {precise}" for name, precise in later]
    if fallbacks:
        text += f"; if that is below min_cosine_similarity, {', then '.join(fallbacks)}"
    return f"{text}{_why_not(settings, runtime)}"


def _choices(
    settings: Settings, checkpoint: Checkpoint | PreparedCheckpoint | None
) -> list[tuple[RuntimeName, DtypeName]]:
    from alignserve_server.model.align import device_choice, prepared_choices, runtime_choices

    if isinstance(checkpoint, PreparedCheckpoint):
        return prepared_choices(checkpoint, settings.runtime, settings.device, settings.dtype)
    device = device_choice(settings.device, settings.runtime, is_tried=False).name
    return runtime_choices(settings.runtime, device, settings.dtype)


def _why_not(settings: Settings, chosen: str) -> str:
    """Returns why the other runtime is not chosen."""
    other = "torch" if chosen == "openvino" else "openvino"
    if installed(other) is None:
        return f". {other} is not installed"
    if settings.runtime == chosen:
        return f". Not {other} {installed(other)}: --runtime says so"
    if other == "torch":
        return f". Not torch {installed(other)}: slower on a CPU"
    return f". Not openvino {installed(other)}: it runs neither on a GPU nor in float16"
