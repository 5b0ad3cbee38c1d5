"""Why a GPU cannot be used: `auto` warns and takes the CPU, `cuda` refuses to start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from alignserve_server.model import align
from alignserve_server.model.align import resolved_device
from structlog.testing import capture_logs

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
BUSY = (
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, ..."
)


@pytest.fixture(autouse=True)
def _a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU that works, and a CUDA build of torch; tests break something of it."""
    monkeypatch.setattr(align, "_has_gpu_file", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.tensor([1.0]))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: None)


def _fails(message: str) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    return fail


def test_a_gpu_that_works_is_used() -> None:
    """`auto` says nothing then."""
    with capture_logs() as lines:
        assert [resolved_device(device) for device in ("auto", "cuda", "cuda:0")] == ["cuda:0"] * 3
    assert lines == []


@pytest.mark.parametrize(
    ("broken", "replacement", "reason"),
    [
        (
            "torch.cuda.init",
            _fails(OLD_DRIVER),
            "The NVIDIA driver on your system is too old (found version 12020)",
        ),
        ("torch.cuda.init", _fails("No CUDA GPUs are available"), "No CUDA GPUs are available"),
        ("torch.ones", _fails(BUSY), "CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        (
            "torch.ones",
            _fails(
                "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors"
            ),
            "CUDA error: no kernel image is available for execution on the device",
        ),
        (
            "torch.version.cuda",
            None,
            f"torch {torch.__version__} is built without CUDA; install torch from PyPI",
        ),
        ("torch.__version__", "2.9.1+cu128", "torch 2.9.1+cu128 is too old for a GPU; install 2.10 or later"),
    ],
    ids=["old driver", "not visible", "busy", "old GPU", "CPU build", "old torch"],
)
def test_auto_warns_of_a_gpu_that_it_cannot_use(
    monkeypatch: pytest.MonkeyPatch, broken: str, replacement: object, reason: str
) -> None:
    """The server would otherwise be many times slower without a word."""
    monkeypatch.setattr(broken, replacement)

    with capture_logs() as lines:
        device = resolved_device("auto")

    assert device == "cpu"
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("gpu_unused", "warning")
    assert line["reason"].endswith(reason)


def test_hidden_gpus_are_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA itself says only that there is none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "init", _fails("No CUDA GPUs are available"))

    with pytest.raises(ValueError, match=r"No CUDA GPUs are available \(CUDA_VISIBLE_DEVICES is ''\)"):
        resolved_device("cuda")


def test_a_gpu_that_does_not_exist_is_refused() -> None:
    """The message has the number of those that do."""
    with pytest.raises(ValueError, match=r"device cuda:1 does not exist; torch sees 1 GPUs"):
        resolved_device("cuda:1")


def test_several_workers_do_not_try_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take some of its memory until it ends."""
    monkeypatch.setattr(torch, "ones", _fails(BUSY))

    assert resolved_device("auto", is_tried=False) == "cuda:0"
    assert resolved_device("cuda", is_tried=False) == "cuda:0"


def test_a_busy_gpu_that_is_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason, and before the checkpoint is loaded for seconds."""
    monkeypatch.setattr(torch, "ones", _fails(BUSY))

    with pytest.raises(
        ValueError, match="device cuda:0 does not exist or cannot be used: CUDA error: CUDA-cap"
    ):
        resolved_device("cuda")
