"""The device on which each worker loads its model."""

from __future__ import annotations

import pytest
from alignserve_server.errors import StartupError
from alignserve_server.model import align
from alignserve_server.serving.loading import load_encoder
from alignserve_server.settings import Settings


@pytest.fixture(autouse=True)
def _gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose number of GPUs is the test's parameter, and where loading returns the device."""

    def resolved(device: str, runtime: str) -> str:
        if device == "cpu" or (device == "auto" and not request.param):
            return "cpu"
        number = int(device.removeprefix("cuda:")) if ":" in device else 0
        if number >= request.param:
            raise ValueError(f"device cuda:{number} does not exist; torch sees {request.param} GPUs")
        return f"cuda:{number}"

    def load_align(_: object, options: align.LoadOptions) -> str:
        return options.device

    monkeypatch.setattr(align, "resolved_device", resolved)
    monkeypatch.setattr(align, "load_align", load_align)


@pytest.mark.parametrize(
    ("_gpus", "device", "expected"),
    [
        (4, "auto", ["cuda:0", "cuda:1"]),
        (2, "cuda", ["cuda:0", "cuda:1"]),
        (2, "cpu", ["cpu", "cpu"]),
        (0, "auto", ["auto", "auto"]),
    ],
    indirect=["_gpus"],
)
def test_each_worker_has_a_gpu_of_its_own(device: str, expected: list[str]) -> None:
    """All workers use the CPU if it is configured or there is no GPU."""
    settings = Settings(workers=2, device=device)

    found: list[object] = [load_encoder(settings, worker) for worker in range(2)]

    assert found == expected


@pytest.mark.parametrize(("_gpus", "device"), [(1, "auto"), (1, "cuda"), (0, "cuda")], indirect=["_gpus"])
def test_too_few_gpus_are_refused_by_the_first_worker(device: str) -> None:
    """The server does not start with only some of its workers."""
    with pytest.raises(StartupError, match=r"cuda.* does not exist"):
        load_encoder(Settings(workers=2, device=device), 0)


@pytest.mark.parametrize(("_gpus", "device"), [(2, "auto"), (2, "cuda:1"), (0, "auto")], indirect=["_gpus"])
def test_a_single_process_uses_the_configured_device(device: str) -> None:
    """The model then decides what `auto` means."""
    found: object = load_encoder(Settings(device=device))

    assert found == device
